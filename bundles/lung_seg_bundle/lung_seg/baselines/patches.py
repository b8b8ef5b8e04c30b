# SPDX-License-Identifier: Apache-2.0
"""Patches to train the patch classifier on, sampled from the batches of squares, and the step that does it.

Only images on which nodules were drawn give patches, and only pixels that somebody looked at are their middles. Of the
patches without a nodule, a third each are drawn anywhere, from what is dense beside air (vessels, walls) and from the
surroundings of nodules; more are drawn than used, and the classifier's largest errors among them are kept.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from ignite.engine import Engine
from torch import Tensor
from torch.nn import functional

from .. import IGNORED
from ..losses import NODULE
from .objects import objects_of
from .steps import on_device, step_optimizer
from .vgg import PATCH_PX, REFERENCE_PX

__all__ = ["PatchStep", "Patches", "patch_terms", "sample_patches"]

_DENSE = -0.43  # -600 HU in the window [-1000, 400]
_AIR = -0.71  # -800 HU
_RIM_PX = 2  # beside a nodule's edge nothing is said


class Patches(NamedTuple):
    """Patches (n, 1, 60, 60), whether their middle lies in a nodule (n,), and its diameter in pixels (n,), else 1."""

    images: Tensor
    is_nodule: Tensor
    diameters: Tensor


def _cut(image: Tensor, places: Tensor) -> Tensor:
    """Patches (n, 1, 60, 60) of images (B, 1, H, W), around places (n, 3): image, row, column."""
    before = PATCH_PX // 2 - 1
    padded = functional.pad(image, (before, PATCH_PX - before) * 2, mode="replicate")
    offset = torch.arange(PATCH_PX, device=image.device)
    rows, columns = places[:, 1, None] + offset, places[:, 2, None] + offset
    return padded[places[:, 0, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def _draw(allowed: Tensor, count: int) -> Tensor:
    """`count` places (n, 3) from a mask (B, 1, H, W), with replacement; none where it is empty."""
    places = torch.nonzero(allowed[:, 0])
    chosen = torch.randint(max(len(places), 1), (count if len(places) else 0,), device=places.device)
    return places[chosen]


def _positives(label: Tensor, drawn: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places (n, 3) in nodules, each nodule equally often, and their diameters (n,)."""
    inside, diameters = [], []
    for index in torch.nonzero(drawn)[:, 0].tolist():
        objects = objects_of(label[index, 0])
        regions = torch.as_tensor(objects.regions, device=label.device)
        for number, diameter in enumerate(objects.diameters.tolist(), start=1):
            pixels = torch.nonzero(regions == number)
            inside.append(torch.cat([torch.full_like(pixels[:, :1], index), pixels], dim=1))
            diameters.append(diameter)
    if not inside:
        return torch.zeros(0, 3, dtype=torch.long, device=label.device), torch.zeros(0, device=label.device)
    chosen = torch.randint(len(inside), (count,)).tolist()
    places = torch.cat([inside[number][torch.randint(len(inside[number]), (1,))] for number in chosen])
    return places, torch.tensor([diameters[number] for number in chosen], device=label.device)


def sample_patches(
    image: Tensor, label: Tensor, labelled: Tensor, *, positives: int, negatives: int
) -> tuple[Patches, Patches]:
    """Patches with and without a nodule in their middle; either may be empty.

    Args:
        image: (B, 1, H, W) in [-1, 1].
        label: (B, 1, H, W).
        labelled: (B, 2).
        positives: how many with a nodule.
        negatives: how many without.
    """
    drawn = labelled[:, 1] > 0
    nodule = (label == NODULE) & drawn[:, None, None, None]
    free = (label != IGNORED) & drawn[:, None, None, None] & ~_grown(nodule, _RIM_PX)
    dense = free & (image > _DENSE) & _grown(image < _AIR, 8)
    kinds = (free, dense, free & _grown(nodule, 16))
    clear = torch.cat([_draw(allowed, negatives // 3) for allowed in kinds])
    places, diameters = _positives(label, drawn, positives)
    return (
        Patches(_cut(image, places), torch.ones(len(places), device=image.device), diameters),
        Patches(
            _cut(image, clear),
            torch.zeros(len(clear), device=image.device),
            torch.ones(len(clear), device=image.device),
        ),
    )


def patch_terms(out: Tensor, patches: Patches) -> dict[str, Tensor]:
    """Cross-entropy of nodule or not, and smooth L1 of the log-diameter where there is one.

    Args:
        out: (n, 2) of `PatchVgg`.
        patches: of which.
    """
    error = functional.smooth_l1_loss(out[:, 1], torch.log2(patches.diameters / REFERENCE_PX), reduction="none")
    return {
        "bce": functional.binary_cross_entropy_with_logits(out[:, 0], patches.is_nodule),
        "diameter": (error * patches.is_nodule).sum() / patches.is_nodule.sum().clamp(min=1),
    }


class PatchStep:
    """One step of the optimizer on patches of a batch; returns the loss and its terms as floats.

    Args:
        positives: patches with a nodule.
        negatives: patches without.
        drawn_negatives: patches without among which the largest errors are sought; a third of `negatives` are not.
        amp: whether the network runs in bfloat16.
    """

    def __init__(
        self, *, positives: int = 64, negatives: int = 96, drawn_negatives: int = 288, amp: bool = False
    ) -> None:
        self.positives = positives
        self.negatives = negatives
        self.drawn_negatives = drawn_negatives
        self.amp = amp

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Trains `engine.network` on one batch; one without drawn nodules changes nothing and costs nothing."""
        image, label, labelled = on_device(engine, batch)
        with_nodule, without = sample_patches(
            image, label, labelled, positives=self.positives, negatives=self.drawn_negatives
        )
        if not len(without.images):
            return {"loss": 0.0, "bce": 0.0, "diameter": 0.0}
        hard = self._largest_errors(engine, without.images)
        patches = Patches(*(torch.cat([a, b[hard]]) for a, b in zip(with_nodule, without, strict=True)))
        engine.network.train()
        terms = patch_terms(self._apply(engine, patches.images), patches)
        return step_optimizer(engine, terms["bce"] + 0.5 * terms["diameter"], terms)

    def _apply(self, engine: Engine, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return engine.network(patches.to(memory_format=torch.channels_last)).float()

    def _largest_errors(self, engine: Engine, patches: Tensor) -> Tensor:
        """Indices of the patches to use: two thirds those most like a nodule, one third whatever comes first."""
        engine.network.eval()
        with torch.no_grad():
            order = self._apply(engine, patches)[:, 0].argsort(descending=True, stable=True)
        hardest, others = order[: 2 * self.negatives // 3], order[2 * self.negatives // 3 :]
        others = others[torch.randperm(len(others), device=others.device)]
        return torch.cat([hardest, others[: self.negatives // 3]])
