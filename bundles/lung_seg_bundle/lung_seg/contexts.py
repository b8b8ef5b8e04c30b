# SPDX-License-Identifier: Apache-2.0
"""Parts of nodule crops in lungs, for training: real nodules with what surrounds them, and vessels that are none.

Crops come from many more patients than whole lungs do. `composites.py` inserts nodules alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import IGNORED
from .composites import TRIES, RandOverlay, overlap
from .losses import LUNG, NODULE
from .stacks import read_nodule

__all__ = ["ContextBank", "RandOverlayContexts"]

_SOFT_HU = -300
_INSIDE = 0.97  # of a rectangle's pixels lie in the lung, the others stay as they are


class ContextBank:
    """Crops of nodules with what surrounds them, read when the first is asked for.

    Args:
        files: npz files of a COHORT's nodules.
        weights: how often each is drawn; all alike when None.
    """

    def __init__(self, files: Sequence[str | Path], *, weights: Sequence[float] | None = None) -> None:
        self.files = list(files)
        self._shares = None if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
        self._stacks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """int16 HU and uint8 label ids of a nodule's slice, both (64, 64), turned by quarters and mirrored."""
        index = int(random.choice(len(self.files), p=self._shares))
        if index not in self._stacks:
            stack = read_nodule(self.files[index])
            self._stacks[index] = stack.hu.numpy(), stack.label.numpy()
        hu, label = self._stacks[index]
        place, quarters, step = random.randint(len(hu)), random.randint(4), 1 - 2 * random.randint(2)
        return np.rot90(hu[place], quarters)[:, ::step], np.rot90(label[place], quarters)[:, ::step]


class RandOverlayContexts(RandOverlay):
    """Blends rectangles of crops into the lungs of squares on which nobody drew nodules: real nodules, and vessels that
    are none, of many more patients than those who lend whole lungs.

    Rectangles lie anywhere in the crop, so that some show no nodule: that something was blended in says nothing. Those
    with much soft tissue beside the nodule (wall, mediastinum) are left out; the lung's level is that of the slice.

    Args:
        bank: where the crops come from; without any, the data pass as they are.
        count_probs: how often 0, 1, 2, ... rectangles are blended into a square, as shares that sum to 1.
        size_px: smallest and largest side of a rectangle.
        feather_px: width of the seam.
        soft: largest share of soft tissue.
    """

    def __init__(
        self,
        bank: ContextBank,
        *,
        count_probs: Sequence[float] = (1.0,),
        size_px: tuple[int, int] = (24, 48),
        feather_px: int = 4,
        soft: float = 0.12,
    ) -> None:
        super().__init__(bank, count_probs=count_probs)
        self.size_px = size_px
        self.feather_px = feather_px
        self.soft = soft

    def _insert_one(self, image: Tensor, label: Tensor) -> None:
        rectangle = self._draw_rectangle()
        places = torch.nonzero(label == LUNG)
        if rectangle is None or not len(places):
            return
        hu, ids = rectangle
        weight = _feathered(ids.shape, self.feather_px)
        for _ in range(TRIES):
            row, column = places[self.R.randint(len(places))].tolist()
            here, there = overlap(image.shape, ids.shape, row, column)
            inside = label[here] == LUNG
            if inside.float().mean() < _INSIDE:
                continue
            level = image[here].median() - hu[there].median()
            share = weight[there] * inside
            image[here] = torch.lerp(image[here], hu[there] + level, share)
            shown = (share >= 0.5) & ((ids[there] == NODULE) | (ids[there] == IGNORED))
            label[here] = torch.where(shown, ids[there], label[here])
            return

    def _draw_rectangle(self) -> tuple[Tensor, Tensor] | None:
        """float32 HU and label ids of a part of a crop that lies in the lung; None when none was found."""
        for _ in range(TRIES):
            hu, ids = self.bank.draw(self.R)
            sides = [int(self.R.randint(self.size_px[0], self.size_px[1] + 1)) for _ in range(2)]
            starts = [int(self.R.randint(size - side + 1)) for size, side in zip(hu.shape, sides, strict=True)]
            part = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
            soft = (hu[part] > _SOFT_HU) & (ids[part] == 0)
            if soft.mean() < self.soft and np.median(hu[part]) < 2 * _SOFT_HU:
                return torch.from_numpy(hu[part].astype(np.float32)), torch.from_numpy(ids[part].copy())
        return None


def _feathered(shape: Sequence[int], width_px: int) -> Tensor:
    """Weights (H, W) that rise from the border to 1 within `width_px`."""
    rows, columns = (
        torch.minimum(ramp := torch.arange(1, size + 1) / (width_px + 1), ramp.flip(0)).clamp(max=1) for size in shape
    )
    return torch.minimum(rows[:, None], columns[None, :])
