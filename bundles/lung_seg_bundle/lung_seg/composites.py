# SPDX-License-Identifier: Apache-2.0
"""Composites for training: nodules of training patients in lungs on which nobody drew nodules, with exact masks.

A nodule's npz holds it isolated: `hu` is defined everywhere and passes smoothly into the lung's level, `alpha` is its
soft mask, on a grid of 0.7 mm. The network's grid has the same spacing, so that a patch is turned, mirrored and scaled
in one interpolation and blended in HU. A nodule is where alpha >= 0.5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform
from torch import Tensor
from torch.nn import functional

from .losses import LUNG, NODULE

__all__ = ["Insert", "NoduleBank", "RandOverlayNodules", "blend", "overlap", "read_planes"]

_SMALLEST_PX = 6  # of a slice's mask; less is a nodule's end cap
_TRIES = 8  # places looked at for a nodule before it is given up


@dataclass(frozen=True, eq=False)
class Insert:
    """A nodule's slice, ready for blending: alpha in [0, 1] and alpha * HU, both float32 (side, side)."""

    alpha: Tensor
    premultiplied: Tensor

    @property
    def mask(self) -> Tensor:
        """Where the nodule is."""
        return self.alpha >= 0.5

    def turned(self, *, angle_rad: float, scale: float, mirrored: bool) -> "Insert":
        """The same nodule turned about the patch's middle, enlarged by `scale`, and mirrored."""
        cosine, sine = math.cos(angle_rad) / scale, math.sin(angle_rad) / scale
        mirror = -1.0 if mirrored else 1.0
        theta = torch.tensor([[[mirror * cosine, -mirror * sine, 0.0], [sine, cosine, 0.0]]])
        planes = torch.stack([self.alpha, self.premultiplied])[None]
        grid = functional.affine_grid(theta, list(planes.shape), align_corners=False)
        alpha, premultiplied = functional.grid_sample(planes, grid, align_corners=False)[0]
        return Insert(alpha, premultiplied)


def blend(image: Tensor, label: Tensor, insert: Insert, *, row: int, column: int) -> None:
    """Blends a nodule into a slice, in place; what lies beyond the slice's border is cut off.

    Args:
        image: float32 HU (H, W).
        label: uint8 (H, W).
        insert: what.
        row: of the slice, where the patch's middle comes to lie.
        column: likewise.
    """
    here, there = overlap(image.shape, insert.alpha.shape, row, column)
    alpha = insert.alpha[there]
    image[here] = insert.premultiplied[there] + (1 - alpha) * image[here]
    label[here] = torch.where(alpha >= 0.5, torch.tensor(NODULE, dtype=label.dtype), label[here])


def overlap(
    shape: Sequence[int], side: Sequence[int], row: int, column: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a patch centred at (row, column) covers: in the slice, and of the patch."""
    here, there = [], []
    for size, extent, centre in zip(shape, side, (row, column), strict=True):
        start = centre - extent // 2
        low, high = max(start, 0), min(start + extent, size)
        here.append(slice(low, high))
        there.append(slice(low - start, high - start))
    return tuple(here), tuple(there)


class NoduleBank:
    """Nodules to insert, read when the first is asked for.

    Only nodules that two readers agree on, or that are known by their sphere, are kept, and of them the slices that
    show more than an end cap.

    Args:
        files: npz files of a COHORT's nodules.
        weights: how often each is drawn; all alike when None.

    Raises:
        ValueError: when there are weights for another number of files.
    """

    def __init__(self, files: Sequence[str | Path], *, weights: Sequence[float] | None = None) -> None:
        self.files = list(files)
        self.weights = [1.0] * len(self.files) if weights is None else list(weights)
        if len(self.weights) != len(self.files):
            raise ValueError(f"Expected a weight for each of {len(self.files)} nodules, got {len(self.weights)}.")
        self._nodules: list[np.ndarray] | None = None
        self._shares: np.ndarray | None = None

    def draw(self, random: np.random.RandomState) -> Insert | None:
        """A slice of a nodule; None when there is none."""
        if self._nodules is None:
            read = [(planes, w) for planes, w in zip(map(read_planes, self.files), self.weights, strict=True)]
            self._nodules = [planes for planes, _ in read if len(planes)]
            weights = np.array([weight for planes, weight in read if len(planes)])
            self._shares = weights / weights.sum() if len(set(weights)) > 1 else None
        if not self._nodules:
            return None
        nodule = self._nodules[random.choice(len(self._nodules), p=self._shares)]
        hu, alpha = torch.from_numpy(nodule[random.randint(len(nodule))].astype(np.float32))
        return Insert(alpha, alpha * hu)


def read_planes(path: str | Path) -> np.ndarray:
    """HU and alpha of the slices of a nodule that can be inserted, float16 (n, 2, 64, 64); n is 0 where none can.

    These are the slices with more than an end cap of a nodule that two readers drew, or that is known by its sphere.

    Raises:
        ValueError: when the file has not the arrays of a COHORT's nodule.
    """
    try:
        with np.load(path) as arrays:
            known = bool({"sphere", "ball"} & set(arrays.files)) or arrays["votes"].max() >= 2
            large = known & ((arrays["alpha"] >= 0.5).sum(axis=(1, 2)) >= _SMALLEST_PX)
            return np.stack([arrays["hu"][large], arrays["alpha"][large]], axis=1).astype(np.float16)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a nodule's npz with hu, alpha and votes ({error}). Prepare the cohort again."
        ) from error


class RandOverlayNodules(RandomizableTransform):
    """Puts nodules into the lungs of squares on which nobody drew nodules, and marks these as labelled for both.

    Whatever else the slice shows counts as free of nodules from then on.

    Args:
        bank: where the nodules come from; without any, the data pass as they are.
        count_probs: how often 0, 1, 2, ... nodules are put into a square, as shares that sum to 1.
        zoom: nodules are scaled by a factor within [1 / zoom, zoom].
        inside: share of a nodule's pixels that must lie in the lung.
    """

    def __init__(
        self,
        bank: NoduleBank,
        *,
        count_probs: Sequence[float] = (0.2, 0.4, 0.25, 0.15),
        zoom: float = 1.3,
        inside: float = 0.8,
    ) -> None:
        super().__init__(prob=1.0)
        self.bank = bank
        self.count_probs = count_probs
        self.zoom = zoom
        self.inside = inside

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        lung, nodule = data["labelled"].tolist()
        if not lung or nodule or not self.bank.files:
            return dict(data)
        image, label = data["image"].clone(), data["label"].clone()
        for _ in range(self.R.choice(len(self.count_probs), p=self.count_probs)):
            self._insert_one(image[0], label[0])
        return {**data, "image": image, "label": label, "labelled": torch.ones(2)}

    def _insert_one(self, image: Tensor, label: Tensor) -> None:
        insert = self.bank.draw(self.R)
        if insert is None:
            return
        insert = insert.turned(
            angle_rad=self.R.uniform(0, 2 * math.pi),
            scale=math.exp(self.R.uniform(-1, 1) * math.log(self.zoom)),
            mirrored=bool(self.R.random() < 0.5),
        )
        places = torch.nonzero(label == LUNG)
        for _ in range(_TRIES if len(places) else 0):
            row, column = places[self.R.randint(len(places))].tolist()
            here, there = overlap(image.shape, insert.alpha.shape, row, column)
            within = (label[here] == LUNG) & insert.mask[there]
            if within.sum() >= self.inside * insert.mask.sum():
                blend(image, label, insert, row=row, column=column)
                return
