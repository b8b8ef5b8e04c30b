# SPDX-License-Identifier: Apache-2.0
"""Training of the CycleGAN: per batch one step of both generators, then one of both discriminators.

A batch holds, unpaired, `x` and `y` (B, 1, H, W) in units and `x_nodule`, `y_nodule` (B, 1, H, W) bool; the sizes of
x and y may differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from .history import ImageHistory
from .losses import GeneratorLoss, Translation, discriminator_loss

__all__ = ["CycleGANTrainer", "Histories", "Networks", "Optimizers"]

_SHIFTS = 4  # the stride of the discriminators: more shifts would repeat


@dataclass(frozen=True, kw_only=True)
class Networks:
    """G: X -> Y, F: Y -> X, and the discriminators of X and of Y; each may be wrapped for distributed training."""

    G: nn.Module
    F: nn.Module
    D_X: nn.Module
    D_Y: nn.Module


@dataclass(frozen=True, kw_only=True)
class Optimizers:
    """One for G and F, one for D_X and D_Y."""

    generators: Optimizer
    discriminators: Optimizer


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Earlier fakes of X, made by F, and of Y, made by G."""

    x: ImageHistory
    y: ImageHistory


class CycleGANTrainer(Trainer):
    """CycleGAN (Zhu et al., 2017) as a MONAI trainer; its output is a dict of floats, `loss` the generators' total.

    Args:
        device: where the networks are.
        max_epochs: epochs to train.
        train_data_loader: of the batches described above.
        networks: the four networks, on `device`.
        optimizers: of the networks' parameters.
        histories: what the discriminators see of earlier fakes.
        loss: of the generators.
        inferer: called as `inferer(image, generator)`.
        amp: whether networks run in bfloat16, by autocast on `device`'s type; bfloat16 needs no scaling of the loss.
        train_handlers: attached to this engine, in this order.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[dict[str, Tensor]],
        networks: Networks,
        optimizers: Optimizers,
        histories: Histories,
        loss: GeneratorLoss,
        inferer: Any,
        amp: bool,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        # `amp` stays here: with it, the base class makes a loss scaler for CUDA.
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            handlers=list(train_handlers),
            decollate=False,
        )
        self.networks, self.optimizers, self.histories = networks, optimizers, histories
        self.loss, self.inferer = loss, inferer
        self.autocast = torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=amp)

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, float]:
        batch = {
            key: batchdata[key].to(self.state.device, non_blocking=True) for key in ("x", "x_nodule", "y", "y_nodule")
        }
        g_losses, fake_y, fake_x = self._step_generators(batch)
        d_losses = self._step_discriminators(batch["x"], batch["y"], fake_x=fake_x, fake_y=fake_y)
        return {name: value.item() for name, value in (g_losses | d_losses).items()}

    def _step_generators(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        nets = self.networks
        self.optimizers.generators.zero_grad()
        with _Frozen(nets.D_X) as D_X, _Frozen(nets.D_Y) as D_Y:
            with self.autocast:
                to_y, to_x = self._translate(batch, D_X, D_Y)
            terms = {"x": self.loss.terms(to_y), "y": self.loss.terms(to_x)}  # by the domain that is translated
            loss = self.loss.total(terms["x"]) + self.loss.total(terms["y"])
            loss.backward()
        self.optimizers.generators.step()
        named = {
            f"{name}_{domain}": value.detach() for domain in terms for name, value in terms[domain]._asdict().items()
        }
        return {"loss": loss.detach()} | named, to_y.fake.detach(), to_x.fake.detach()

    def _translate(self, batch: dict[str, Tensor], D_X: nn.Module, D_Y: nn.Module) -> tuple[Translation, Translation]:
        """Both directions; each generator works on all of its first round, then of its second, at once."""
        x, y, G, F = batch["x"], batch["y"], self.networks.G, self.networks.F
        fake_y, same_y = self._apply(G, x, y)
        fake_x, same_x = self._apply(F, y, x)
        (back_x,), (back_y,) = self._apply(F, fake_y), self._apply(G, fake_x)
        to_y = Translation(x, batch["x_nodule"], fake=fake_y, back=back_x, same=same_x, score=D_Y(_shifted(fake_y)))
        to_x = Translation(y, batch["y_nodule"], fake=fake_x, back=back_y, same=same_y, score=D_X(_shifted(fake_x)))
        return to_y, to_x

    def _apply(self, network: nn.Module, *images: Tensor) -> Sequence[Tensor]:
        """The network on batches of one size together, or one by one where their sizes differ."""
        if len({image.shape[1:] for image in images}) > 1:
            return [self.inferer(image, network) for image in images]
        return self.inferer(torch.cat(images), network).split([len(image) for image in images])

    def _step_discriminators(self, x: Tensor, y: Tensor, *, fake_x: Tensor, fake_y: Tensor) -> dict[str, Tensor]:
        D_X, D_Y = self.networks.D_X, self.networks.D_Y
        self.optimizers.discriminators.zero_grad()
        with self.autocast:
            x_scores = self._score(D_X, x, self.histories.x(fake_x))
            y_scores = self._score(D_Y, y, self.histories.y(fake_y))
        d_x, d_y = discriminator_loss(*x_scores), discriminator_loss(*y_scores)
        (d_x + d_y).backward()
        self.optimizers.discriminators.step()
        return {"d_x": d_x.detach(), "d_y": d_y.detach()}

    def _score(self, network: nn.Module, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        if real.shape[1:] != fake.shape[1:]:
            return network(_shifted(real)), network(_shifted(fake))
        return network(_shifted(torch.cat([real, fake]))).split([len(real), len(fake)])


def _shifted(images: Tensor) -> Tensor:
    """The images less `_SHIFTS` - 1 rows and columns, at random on which side.

    The generators work on cells of 2 x 2 px and the discriminators in strides of 4 from the same corner: without this,
    a pattern of cells can hide between the strides.
    """
    row, column = torch.randint(_SHIFTS, (2,)).tolist()
    rows, columns = (
        slice(at, size - _SHIFTS + 1 + at) for at, size in zip((row, column), images.shape[2:], strict=True)
    )
    return images[:, :, rows, columns]


class _Frozen:
    """The network itself, out of its distributed wrapping, without gradients of its weights inside a `with`."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network

    def __enter__(self) -> nn.Module:
        return self.network.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        self.network.requires_grad_(True)
