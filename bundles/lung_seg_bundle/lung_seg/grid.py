# SPDX-License-Identifier: Apache-2.0
"""From the grid of a slice to the grid that the network sees, and back.

A `Frame` says where on the slice the network's square lies; cutting it out is one interpolation, whatever it turns,
scales and mirrors. Outside the slice the border is repeated, and labels are 255.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import IGNORED

__all__ = ["Frame", "cut", "resample", "resampled_shape"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A square of the network's grid on a slice.

    Args:
        row_px: centre of the square, in the slice's pixels.
        column_px: centre of the square, in the slice's pixels.
        step_px: the slice's pixels (row, column) in one pixel of the square.
        angle_rad: rotation of the square about its centre.
        mirrored: whether the square's columns run the other way.
    """

    row_px: float
    column_px: float
    step_px: tuple[float, float]
    angle_rad: float = 0.0
    mirrored: bool = False

    def __post_init__(self) -> None:
        if min(self.step_px) <= 0:
            raise ValueError(f"A frame needs positive step_px, got {self.step_px}.")


def cut(hu: Tensor, label: Tensor, frame: Frame, *, size_px: int) -> tuple[Tensor, Tensor]:
    """Cuts a frame out of a slice: bilinear for the image, nearest for the label.

    Args:
        hu: (H, W).
        label: uint8 (H, W).
        frame: where.
        size_px: side of the square.

    Returns:
        float32 HU and uint8 label, both (size_px, size_px).
    """
    offset = torch.arange(size_px, dtype=torch.float32) - (size_px - 1) / 2
    down, right = torch.meshgrid(offset, -offset if frame.mirrored else offset, indexing="ij")
    sine, cosine = math.sin(frame.angle_rad), math.cos(frame.angle_rad)
    row = frame.row_px + frame.step_px[0] * (cosine * down - sine * right)
    column = frame.column_px + frame.step_px[1] * (sine * down + cosine * right)
    height, width = hu.shape
    points = torch.stack([2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1], dim=-1)[None]
    image = functional.grid_sample(hu.float()[None, None], points, padding_mode="border", align_corners=True)
    # Zeros stand outside the slice: shifted, they are the ignored label.
    shifted = (label.float() - IGNORED)[None, None]
    ids = functional.grid_sample(shifted, points, mode="nearest", padding_mode="zeros", align_corners=True) + IGNORED
    return image[0, 0], ids[0, 0].to(torch.uint8)


def resampled_shape(shape: tuple[int, int], *, spacing_mm: tuple[float, float], target_mm: float) -> tuple[int, int]:
    """Shape of a slice of `shape` and `spacing_mm` on a grid of `target_mm`; at least one pixel each way."""
    height, width = (max(1, round(size * spacing / target_mm)) for size, spacing in zip(shape, spacing_mm, strict=True))
    return height, width


def resample(planes: Tensor, shape: tuple[int, int], *, mode: str = "bilinear") -> Tensor:
    """Resamples (B, C, H, W) to `shape` over the same extent; the same values when the shape is the same."""
    if tuple(planes.shape[-2:]) == tuple(shape):
        return planes
    return functional.interpolate(planes, size=shape, mode=mode, align_corners=False if mode == "bilinear" else None)
