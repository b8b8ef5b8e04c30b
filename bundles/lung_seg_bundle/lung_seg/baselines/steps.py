# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines do with a batch when a detector is trained or validated (`iteration_update`)."""

from collections.abc import Mapping

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from .cubes import CubeBank

__all__ = ["DetectionStep", "FindStep", "on_device", "step_optimizer"]


def on_device(engine: Engine, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`image`, `label` and `labelled` of a batch, as plain tensors on the engine's device."""
    image, label, labelled = (
        torch.as_tensor(batch[key]).as_subclass(Tensor).to(engine.state.device, non_blocking=True)
        for key in ("image", "label", "labelled")
    )
    return image.to(memory_format=torch.channels_last), label, labelled


def step_optimizer(engine: Engine, loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """One step of the optimizer, unless a gradient is not finite; returns the loss and its terms as floats.

    Raises:
        ValueError: when the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise ValueError(
            f"The loss is {loss.item()} at iteration {engine.state.iteration}. Lower --learning_rate, or resume from "
            "the last resume_*.pt with --resume_from."
        )
    engine.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), 10.0)
    if torch.isfinite(norm):
        engine.optimizer.step()
    return {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}


class DetectionStep:
    """One step of `FasterRcnn3d` on a batch of squares and as many cubes as asked for.

    Args:
        cubes: where they come from.
        positives: cubes with a nodule.
        negatives: cubes without: two thirds those most like a nodule among `drawn_negatives`, one third any.
        drawn_negatives: cubes among which they are sought.
        amp: whether the networks run in bfloat16.
    """

    def __init__(
        self,
        cubes: CubeBank,
        *,
        positives: int = 8,
        negatives: int = 12,
        drawn_negatives: int = 24,
        amp: bool = False,
    ) -> None:
        self.cubes = cubes
        self.positives = positives
        self.negatives = negatives
        self.drawn_negatives = drawn_negatives
        self.amp = amp

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Trains `engine.network` on one batch."""
        image, label, labelled = on_device(engine, batch)
        # A seed from torch's generator, which a resumed training puts back.
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        cubes, is_nodule = (x.to(image.device) for x in self.cubes.draw(self.positives, self.drawn_negatives, rng))
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.amp):
            used = self._hardest(engine, cubes)
            engine.network.train()
            terms = engine.network(image, label, labelled, cubes[used], is_nodule[used])
        return step_optimizer(engine, terms.total(), terms._asdict())

    def _hardest(self, engine: Engine, cubes: Tensor) -> Tensor:
        network = getattr(engine.network, "module", engine.network)
        network.eval()
        order = network.judge(cubes[self.positives :]).argsort(descending=True, stable=True) + self.positives
        hard, rest = order.split([2 * self.negatives // 3, len(order) - 2 * self.negatives // 3])
        some = rest[torch.randperm(len(rest), device=rest.device)[: self.negatives - len(hard)]]
        return torch.cat([torch.arange(self.positives, device=order.device), hard, some]).clone()


class FindStep:
    """Finds on a batch of images, for `froc.ImageFroc`.

    Args:
        amp: whether the network runs in bfloat16.
    """

    def __init__(self, *, amp: bool = False) -> None:
        self.amp = amp

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, object]:
        """Applies `engine.network`; returns `finds`, `label`, `labelled`."""
        image, label, labelled = on_device(engine, batch)
        network = getattr(engine.network, "module", engine.network)
        network.eval()
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.amp):
            finds, _ = network.find(image)
        return {"finds": [one.float() for one in finds], "label": label, "labelled": labelled}
