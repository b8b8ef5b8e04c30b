# SPDX-License-Identifier: Apache-2.0
"""Neighbouring slices as channels: a vessel end-on is a round spot on one slice, and goes on in the next.

A slice is shown with those that lie `STEP_MM` below and above it. Where a stack ends, or its slices lie too far apart,
the slice itself stands in for a neighbour: single slices are read like any others.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["STEP_MM", "neighbour_indices", "neighbour_table", "with_neighbours"]

STEP_MM = 2.5  # LIDC-IDRI's usual distance of slices; thinner scans skip some
_TOLERANCE = 0.5  # of a step, by which a neighbour may lie nearer or farther


def neighbour_indices(z_mm: np.ndarray, slices: int) -> np.ndarray:
    """Indices int64 (n, slices) of what is shown with each of n slices, inferior to superior, the slice in the middle.

    Args:
        z_mm: positions of the slices along the stack, ascending, (n,).
        slices: how many are shown, an odd number; 1 shows each slice alone.

    Raises:
        ValueError: for an even number of slices.
    """
    if slices < 1 or slices % 2 == 0:
        raise ValueError(f"A slice has as many neighbours below as above: slices is odd, got {slices}.")
    own = np.arange(len(z_mm))
    columns = []
    for step in range(-(slices // 2), slices // 2 + 1):
        wanted = z_mm + step * STEP_MM * (1 - 1e-6)  # of two as near, the one closer to the slice
        nearest = np.abs(z_mm[None, :] - wanted[:, None]).argmin(axis=1)
        known = np.abs(z_mm[nearest] - wanted) <= _TOLERANCE * STEP_MM
        columns.append(np.where(known, nearest, own))
    return np.stack(columns, axis=1)


def with_neighbours(image: Tensor, slices: int) -> Tensor:
    """A slice (1, H, W) as its own neighbours: (slices, H, W). What has its neighbours, (slices, H, W), stays."""
    return image.expand(slices, -1, -1) if image.shape[0] == 1 else image


def neighbour_table(count: int, between_mm: float, slices: int) -> Tensor:
    """`neighbour_indices` of a scan's evenly spaced slices."""
    return torch.from_numpy(neighbour_indices(np.arange(count) * between_mm, slices))
