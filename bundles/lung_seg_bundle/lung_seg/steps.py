# SPDX-License-Identifier: Apache-2.0
"""What MONAI's supervised engines do with a batch (`iteration_update`).

MONAI's own steps know only CUDA's autocast and one target; these use bfloat16 on any device, which needs no gradient
scaler, and pass on which channels are labelled. Batches hold `image` and `label` (B, 1, H, W), `labelled` (B, 2).
"""

from collections.abc import Mapping

import torch
from ignite.engine import Engine
from torch import Tensor

__all__ = ["TrainStep", "ValidationStep"]


def _predict(engine: Engine, image: Tensor, *, amp: bool) -> Tensor:
    image = image.to(memory_format=torch.channels_last)
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp):
        return engine.inferer(image, engine.network).float()


def _on_device(engine: Engine, batch: Mapping[str, Tensor]) -> list[Tensor]:
    return [
        torch.as_tensor(batch[key]).to(engine.state.device, non_blocking=True) for key in ("image", "label", "labelled")
    ]


class TrainStep:
    """One step of the optimizer; returns the loss and its terms as floats.

    Args:
        amp: whether the network runs in bfloat16; the loss is always in float32.
    """

    def __init__(self, *, amp: bool = False) -> None:
        self.amp = amp

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Trains `engine.network` on one batch.

        Raises:
            ValueError: when the loss is not finite.
        """
        image, label, labelled = _on_device(engine, batch)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        loss, terms = engine.loss_function(_predict(engine, image, amp=self.amp), label, labelled)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {loss.item()} at iteration {engine.state.iteration}. Lower --learning_rate, or resume "
                "from the last resume_*.pt with --resume_from."
            )
        loss.backward()
        engine.optimizer.step()
        return {"loss": loss.item(), **{name: term.item() for name, term in terms._asdict().items()}}


class ValidationStep:
    """Logits and labels of a batch, for the metrics.

    Args:
        amp: whether the network runs in bfloat16.
    """

    def __init__(self, *, amp: bool = False) -> None:
        self.amp = amp

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs `engine.network` on one batch; returns `pred`, `label`, `labelled`."""
        image, label, labelled = _on_device(engine, batch)
        with engine.mode(engine.network):
            return {"pred": _predict(engine, image, amp=self.amp), "label": label, "labelled": labelled}
