# SPDX-License-Identifier: Apache-2.0
"""Taking a piece of a probability map apart into its cores.

Two nodules can hang together at a low probability and stand apart at a higher one. The threshold is raised step by
step; where a piece falls into several cores that are each large and high enough, each voxel goes to the nearest.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

__all__ = ["split_cores"]

STEP = 0.1  # of the threshold
RISE = 0.1  # a core reaches so far above the threshold that sets it apart
SMALLEST_MM = 2.0  # diameter of a core, at that threshold
CORNERS = np.ones((3, 3, 3), dtype=bool)


def split_cores(
    piece: np.ndarray, spacing_mm: tuple[float, float, float], *, lowest: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cores of one piece, in the order of the array.

    Args:
        piece: probability float32 (d, h, w), 0 outside the piece.
        spacing_mm: (slice, row, column).
        lowest: threshold at which the piece hangs together.

    Yields:
        First voxel of the core's box in the piece, and its probability (0 outside the core) in that box. The cores
        share out all voxels of the piece.
    """
    smallest = _voxels(piece, spacing_mm)
    peak = float(piece.max())
    if np.count_nonzero(piece) >= 2 * smallest:
        for step in range(1, math.ceil((peak - RISE - lowest) / STEP) + 1):
            cores = _cores(piece, lowest + step * STEP, smallest)
            if cores.max() > 1:
                shares = _grow(piece, cores, spacing_mm)
                for index, box in enumerate(ndimage.find_objects(shares), start=1):
                    start = np.array([axis.start for axis in box])
                    core = np.where(shares[box] == index, piece[box], 0).astype(np.float32)
                    for cut, part in split_cores(core, spacing_mm, lowest=lowest + step * STEP):
                        yield start + cut, part
                return
    yield np.zeros(piece.ndim, dtype=int), piece


def _voxels(piece: np.ndarray, spacing_mm: tuple[float, float, float]) -> int:
    flat = len(piece) == 1
    size = math.pi * SMALLEST_MM**2 / 4 if flat else math.pi * SMALLEST_MM**3 / 6
    return max(1, round(size / math.prod(spacing_mm[1:] if flat else spacing_mm)))


def _cores(piece: np.ndarray, level: float, smallest: int) -> np.ndarray:
    """Labels 1.. of what stands apart at `level`, is large enough and rises above it."""
    labels, count = ndimage.label(piece >= level, structure=CORNERS)
    if count < 2:
        return labels
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    heights = ndimage.maximum(piece, labels, index=np.arange(count + 1))
    kept = (sizes >= smallest) & (np.asarray(heights) >= level + RISE)
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels]


def _grow(piece: np.ndarray, cores: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Each voxel of the piece to the nearest core."""
    nearest = ndimage.distance_transform_edt(
        cores == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    return np.where(piece > 0, cores[tuple(nearest)], 0)
