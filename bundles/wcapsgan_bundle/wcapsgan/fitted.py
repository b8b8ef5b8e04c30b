# SPDX-License-Identifier: Apache-2.0
"""Nodules in three dimensions fill their frame: cubes of a cohort are scaled to it, and generated ones back.

A frame of 32 voxels that shows 45 mm has four voxels across a nodule of 6 mm, and none left for its outline. Here each
nodule is scaled so that its frame is as wide as `span_diameters` of its own diameters, whatever that is in mm: all of
them teach, and are taught, at the same resolution, and the diameter remains a condition. What is generated is scaled
back to a cube of the cohort's grid, to exactly the diameter that was asked.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .diameters import equivalent_diameter

__all__ = ["FittedFrame", "Placed", "second_moments"]

_OUTLINE = 0.5  # of a soft mask
_NO_ALPHA = 0.02  # alpha below this is 0, as in a cohort
_SUPPORT = 2.0  # times the mask: HU are the nodule's own from 0.5 on and fade below it, as those of `Generator` do
_DIAMETER_TOLERANCE = 0.002  # relative
_SCALINGS = 16  # at most, until a cube has the diameter asked
_SCALE_RANGE = 2.5  # by which a soft edge on the cube's grid may change a diameter
_LONGER = 2  # side of the frame of a nodule that is stretched, in sides of the frame


class Placed(NamedTuple):
    """A nodule in a cube of a cohort's grid.

    Attributes:
        hu: int16 (n, n, n), one level around it.
        alpha: float16 (n, n, n), a soft mask, 0 on the faces.
    """

    hu: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True, kw_only=True)
class FittedFrame:
    """How cubes are scaled.

    Args:
        size: voxels of the frame's side.
        span_diameters: side of the frame in diameters of its nodule.
        edge_px: standard deviation in voxels of the frame of the soft edge of masks in it, as in `FrameSettings`.
        cube_size: voxels of the side of a cohort's cubes.
        cube_spacing_mm: of such a voxel.
    """

    size: int
    span_diameters: float
    edge_px: float
    cube_size: int
    cube_spacing_mm: float

    def voxel_mm(self, diameter_mm: Tensor) -> Tensor:
        """Sides in mm of the frame's voxels for nodules of these diameters."""
        return diameter_mm * self.span_diameters / self.size

    def fit(self, hu: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Scales a cube of a cohort.

        Args:
            hu: (n, n, n).
            alpha: its soft mask, at least 0.5 somewhere.

        Returns:
            HU float32 and soft mask float32, both (size, size, size), centred; None where the nodule does not fit.
        """
        inside = alpha >= _OUTLINE
        step = self.span_diameters * _diameter(inside) / self.size
        offset = np.array(ndimage.center_of_mass(inside)) - step * (self.size - 1) / 2
        fitted = _resampled(alpha.astype(np.float32), step, offset, self.size) >= _OUTLINE
        if not fitted.any() or _faces(fitted).any():
            return None
        mask = ndimage.gaussian_filter(fitted.astype(np.float32), self.edge_px)
        image = _resampled(hu.astype(np.float32), step, offset, self.size)
        level = float(np.median(hu[alpha == 0])) if (alpha == 0).any() else float(image.min())
        return level + np.minimum(_SUPPORT * mask, 1) * (image - level), mask

    def holds(self, mask: np.ndarray, diameter_mm: float) -> bool:
        """Whether a cube holds the nodule of a generated mask (size, size, size) at that diameter, if there is one."""
        inside = _largest(mask >= _OUTLINE)
        if not inside.any():
            return False
        points = np.argwhere(inside)
        reach_mm = np.abs(points - points.mean(axis=0)).max() * diameter_mm / _diameter(inside)
        return bool(reach_mm <= (self.cube_size / 2 - 1) * self.cube_spacing_mm)

    def place(self, hu: np.ndarray, mask: np.ndarray, diameter_mm: float, *, edge_px: float) -> Placed:
        """Scales what was generated to a cube in which its nodule, where alpha is 0.5 or more, has that diameter.

        Args:
            hu: (size, size, size).
            mask: its soft mask; the largest component of what is 0.5 or more is the nodule.
            diameter_mm: of the sphere of the nodule's volume.
            edge_px: standard deviation in voxels of the cube of the soft edge that a cohort's masks have.
        """
        inside = _largest(mask >= _OUTLINE)
        outline = ndimage.gaussian_filter(inside.astype(np.float32), self.edge_px)
        middle = np.array(ndimage.center_of_mass(inside))
        step, alpha = self._scaled(outline, middle, diameter_mm / self.cube_spacing_mm, edge_px)
        level = float(np.median(hu[mask < _NO_ALPHA])) if (mask < _NO_ALPHA).any() else float(hu.min())
        image = _resampled(hu.astype(np.float32), step, self._offset(step, middle), self.cube_size)
        image[alpha == 0] = level
        return Placed(np.rint(image).astype(np.int16), alpha)

    def stretched(self, hu: np.ndarray, mask: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gives what was generated the proportions of a nodule of a cohort.

        The map is linear, keeps the volume, and of all that turn the one ellipsoid of inertia into the other it moves
        voxels least (Olkin and Pukelsheim, 1982).

        Args:
            hu: (size, size, size).
            mask: its soft mask, at least 0.5 somewhere.
            moments: that it is to have (`second_moments`).

        Returns:
            HU and soft mask, float32, in a frame of twice the side.
        """
        inside = _largest(mask >= _OUTLINE)
        root = _root(second_moments(inside))
        unroot = np.linalg.inv(root)
        back = np.linalg.inv(unroot @ _root(root @ moments @ root) @ unroot)
        size = _LONGER * self.size
        offset = np.array(ndimage.center_of_mass(inside)) - back @ np.full(3, (size - 1) / 2)
        image, outline = (
            ndimage.affine_transform(volume.astype(np.float32), back, offset, (size,) * 3, order=1, mode="nearest")
            for volume in (hu, mask)
        )
        return image, outline

    def _scaled(
        self, outline: np.ndarray, middle: np.ndarray, wanted: float, edge_px: float
    ) -> tuple[float, np.ndarray]:
        """Voxels of the frame for each of the cube, and the alpha whose diameter in voxels is nearest to `wanted`."""
        start = _diameter(outline >= _OUTLINE) / wanted
        low, high = start / _SCALE_RANGE, start * _SCALE_RANGE
        tried: list[tuple[float, float, np.ndarray]] = []
        for _ in range(_SCALINGS):
            step = math.sqrt(low * high)
            alpha = self._alpha(outline, step, middle, edge_px)
            ratio = _diameter(alpha >= _OUTLINE) / wanted
            tried.append((abs(ratio - 1), step, alpha))
            if abs(ratio - 1) <= _DIAMETER_TOLERANCE:
                break
            low, high = (step, high) if ratio > 1 else (low, step)
        _, step, alpha = min(tried, key=lambda one: one[0])
        return step, alpha

    def _alpha(self, outline: np.ndarray, step: float, middle: np.ndarray, edge_px: float) -> np.ndarray:
        """The soft mask of a cube, made where the outline lies."""
        margin = max(self.cube_size - 2 * math.ceil(len(outline) / step / 2 + 4 * edge_px), 0) // 2
        size = self.cube_size - 2 * margin
        inside = _resampled(outline, step, middle - step * (size - 1) / 2, size) >= _OUTLINE
        alpha = ndimage.gaussian_filter(inside.astype(np.float32), edge_px)
        alpha[alpha < _NO_ALPHA] = 0
        alpha = np.pad(alpha, margin)
        for axis in range(3):
            np.moveaxis(alpha, axis, 0)[[0, -1]] = 0
        return alpha.astype(np.float16)

    def _offset(self, step: float, middle: np.ndarray) -> np.ndarray:
        return middle - step * (self.cube_size - 1) / 2


def _resampled(volume: np.ndarray, step: float, offset: np.ndarray, size: int) -> np.ndarray:
    """Samples (size, size, size) of a cubic volume at `offset` and multiples of `step`, its border repeated.

    Linear interpolation where voxels are made, a triangle as wide as the step where they are lost; a matrix an axis.
    """
    for first in offset:
        places = (first + step * np.arange(size)).clip(0, volume.shape[0] - 1)[:, None]
        weights = (1 - np.abs(places - np.arange(volume.shape[0])) / max(step, 1.0)).clip(min=0)
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        volume = np.moveaxis(np.tensordot(weights, volume, axes=1), 0, -1)  # the first axis each time, which goes last
    return volume


def second_moments(inside: np.ndarray) -> np.ndarray:
    """The covariance (3, 3) of the voxels of a mask, of determinant 1: its proportions and how they lie."""
    points = np.argwhere(inside).astype(np.float64)
    points -= points.mean(axis=0)
    moments = points.T @ points / len(points) + np.eye(3) / 12  # a voxel has its own extent
    return moments / np.linalg.det(moments) ** (1 / 3)


def _root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def _diameter(inside: np.ndarray) -> float:
    """Of the sphere of as many voxels, in voxels."""
    return float(equivalent_diameter(torch.tensor(float(inside.sum()), dtype=torch.float64), 3))


def _largest(inside: np.ndarray) -> np.ndarray:
    """The largest component."""
    labels, count = ndimage.label(inside)
    return inside if count < 2 else labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def _faces(inside: np.ndarray) -> np.ndarray:
    return np.concatenate([np.moveaxis(inside, axis, 0)[[0, -1]].ravel() for axis in range(inside.ndim)])
