# SPDX-License-Identifier: Apache-2.0
"""Nodule candidates of a scan: what hangs together above a low probability, taken apart where it has several cores.

A candidate's extent is where the probability is at least half of its height, so that faint and clear nodules are
measured alike. Its height is the mean of its highest voxels, as many as fill a small sphere: one bright voxel is noise.
Single slices have areas and discs where scans have volumes and spheres.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .split import split_cores

__all__ = ["COLUMNS", "CandidateFinder"]

COLUMNS = ("slice", "row", "column", "diameter_mm", "probability")
SMALLEST_CHEST_MM = 200.0  # narrower images need not show lung around a nodule
SMALLEST_LUNG = 0.005  # share of the voxels; a scan with less has no lung to go by
CORNERS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class CandidateFinder:
    """Finds candidates in the probability maps of a scan.

    Args:
        threshold: probability from which on voxels belong to a candidate; low, so that a FROC can be drawn.
        min_diameter_mm: smaller ones are left out.
        pleura_mm: voxels so far from the lung still count as lung, so that nodules at the pleura are kept.
        inside: share of a candidate's voxels that must lie in the lung, or so close to it.
        core_mm: diameter of the sphere over whose volume a candidate's height is averaged.

    Raises:
        ValueError: for a threshold or share outside (0, 1), or a negative length.
    """

    threshold: float = 0.1
    min_diameter_mm: float = 2.0
    pleura_mm: float = 4.0
    inside: float = 0.25
    core_mm: float = 3.0

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and 0 <= self.inside < 1):
            raise ValueError(
                f"A threshold lies in (0, 1) and a share in [0, 1), got {self.threshold} and {self.inside}."
            )
        if min(self.min_diameter_mm, self.pleura_mm, self.core_mm) < 0:
            raise ValueError(f"A finder's lengths are not negative, got {self}.")

    def __call__(self, nodule: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Candidates float32 (n, 5), the most probable first; columns as in `COLUMNS`, places in voxels.

        Args:
            nodule: probability (D, H, W).
            lung: probability (D, H, W).
            spacing_mm: (slice, row, column).

        Raises:
            ValueError: when the maps differ in shape.
        """
        if nodule.shape != lung.shape or nodule.ndim != 3:
            raise ValueError(f"Expected two maps (D, H, W) of one shape, got {nodule.shape} and {lung.shape}.")
        shows_lung = _shows_lung(lung, spacing_mm)
        rows = []
        for corner, probability in self._pieces(nodule, spacing_mm):
            height = _height(probability, spacing_mm, core_mm=self.core_mm)
            extent = probability >= max(self.threshold, 0.5 * height)
            diameter = _diameter(extent, spacing_mm, flat=len(nodule) == 1)
            if diameter < self.min_diameter_mm:
                continue
            if shows_lung and self._share_in_lung(extent, corner, lung, spacing_mm) < self.inside:
                continue
            centre = np.argwhere(extent).mean(axis=0) + corner
            rows.append([*centre, diameter, height])
        table = np.array(rows, dtype=np.float32).reshape(-1, len(COLUMNS))
        return table[np.argsort(-table[:, -1], kind="stable")]

    def _pieces(
        self, nodule: np.ndarray, spacing_mm: tuple[float, float, float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """First voxel and probability, 0 elsewhere in the box, of each candidate."""
        region = _box_of(nodule >= self.threshold)
        if region is None:
            return
        labels, count = ndimage.label(nodule[region] >= self.threshold, structure=CORNERS)
        offset = np.array([axis.start for axis in region])
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        smallest = _voxels_of(self.min_diameter_mm, spacing_mm, flat=len(nodule) == 1)
        for index, box in enumerate(ndimage.find_objects(labels), start=1):
            if sizes[index] < smallest:
                continue
            piece = np.where(labels[box] == index, nodule[region][box], 0).astype(np.float32)
            start = offset + [axis.start for axis in box]
            for cut, core in split_cores(piece, spacing_mm, lowest=self.threshold):
                yield start + cut, core

    def _share_in_lung(
        self, extent: np.ndarray, corner: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float, float]
    ) -> float:
        pads = [math.ceil(self.pleura_mm / mm) for mm in spacing_mm]
        starts = [max(0, int(start) - pad) for start, pad in zip(corner, pads, strict=True)]
        stops = [int(start) + size + pad for start, size, pad in zip(corner, extent.shape, pads, strict=True)]
        near = lung[tuple(map(slice, starts, stops))] >= 0.5
        if not near.any():
            return 0.0
        distance = ndimage.distance_transform_edt(~near, sampling=spacing_mm)
        own = tuple(
            slice(int(first) - start, int(first) - start + size)
            for first, start, size in zip(corner, starts, extent.shape, strict=True)
        )
        return float((distance[own][extent] <= self.pleura_mm).mean())


def _shows_lung(lung: np.ndarray, spacing_mm: tuple[float, float, float]) -> bool:
    """Whether an image is wide enough, and has lung enough, to say what lies outside."""
    if min(lung.shape[1] * spacing_mm[1], lung.shape[2] * spacing_mm[2]) < SMALLEST_CHEST_MM:
        return False
    return float((lung[:, ::4, ::4] >= 0.5).mean()) >= SMALLEST_LUNG


def _box_of(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Around all that is true; None when nothing is."""
    sides = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(places):
            return None
        sides.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(sides)


def _height(probability: np.ndarray, spacing_mm: tuple[float, float, float], *, core_mm: float) -> float:
    """Mean of the highest voxels that fill a sphere (in a single slice: a disc) of `core_mm`."""
    voxels = probability[probability > 0]
    count = max(1, round(_voxels_of(core_mm, spacing_mm, flat=len(probability) == 1)))
    highest = voxels if len(voxels) <= count else np.partition(voxels, -count)[-count:]
    return float(highest.mean())


def _voxels_of(diameter_mm: float, spacing_mm: tuple[float, float, float], *, flat: bool) -> float:
    """Voxels that a sphere (in a single slice: a disc) fills."""
    if flat:
        return math.pi * diameter_mm**2 / 4 / math.prod(spacing_mm[1:])
    return math.pi * diameter_mm**3 / 6 / math.prod(spacing_mm)


def _diameter(extent: np.ndarray, spacing_mm: tuple[float, float, float], *, flat: bool) -> float:
    """Of the sphere, or in a single slice the disc, of equal size."""
    if flat:
        return 2 * math.sqrt(extent.sum() * math.prod(spacing_mm[1:]) / math.pi)
    return float(6 * extent.sum() * math.prod(spacing_mm) / math.pi) ** (1 / 3)
