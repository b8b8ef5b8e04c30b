# SPDX-License-Identifier: Apache-2.0
"""How far a place lies from the edge of the lung."""

import numpy as np
from scipy import ndimage

__all__ = ["pleural_distances"]

DISTANCE_GRID_MM = 1.5  # grid on which distances are measured; they are exact to about one step of it
CLOSING_MM = 6.0  # vessels and nodules that the lung leaves out are narrower than twice this


def pleural_distances(lung: np.ndarray, places: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distance in mm from each place to the edge of the lung, 0 outside; accurate to about 1 mm.

    The lung is filled slice by slice and closed, so that vessels and nodules inside it are no edges.

    Args:
        lung: probability (D, H, W).
        places: (n, 3) in voxels: slice, row, column.
        spacing_mm: (slice, row, column).

    Returns:
        float64 (n,).
    """
    # No step is longer than its axis: half of it would lie beyond the only slice.
    steps = tuple(
        min(max(1, int(DISTANCE_GRID_MM / mm + 0.5)), max(1, size))
        for mm, size in zip(spacing_mm, lung.shape, strict=True)
    )
    grid_mm = np.array([mm * step for mm, step in zip(spacing_mm, steps, strict=True)])
    sampled = lung[tuple(slice(step // 2, None, step) for step in steps)]
    if not len(places) or not sampled.size:
        return np.zeros(len(places))
    inside = _solid(sampled >= 0.5, grid_mm)
    # The scan's ends are no edges of the lung, its sides are: there the lung is cut off.
    depth = ndimage.distance_transform_edt(np.pad(inside, ((0, 0), (1, 1), (1, 1))), sampling=grid_mm)[:, 1:-1, 1:-1]
    at = (np.asarray(places, dtype=float) - [step // 2 for step in steps]) / steps
    values = ndimage.map_coordinates(depth.astype(np.float32), at.T, order=1, mode="nearest")
    # Distances run from centre to centre of voxels; the edge lies half a voxel before the first outside.
    return np.maximum(values - grid_mm[1:].mean() / 2, 0).astype(np.float64)


def _solid(mask: np.ndarray, grid_mm: np.ndarray) -> np.ndarray:
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    closed = [_closed(plane, grid_mm[1:]) for plane in filled]
    return np.stack(closed)


def _closed(plane: np.ndarray, grid_mm: np.ndarray) -> np.ndarray:
    if not plane.any():
        return plane
    pad = int(np.ceil(CLOSING_MM / grid_mm.min())) + 1
    wide = np.pad(plane, pad)
    grown = ndimage.distance_transform_edt(~wide, sampling=grid_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=grid_mm) > CLOSING_MM
    return np.asarray((closed | wide)[pad:-pad, pad:-pad])
