# SPDX-License-Identifier: Apache-2.0
"""From the grid of a slice to the grid that the network sees, and back.

A `Frame` says where on the slice the network's square lies; cutting it out is one interpolation, whatever it turns,
scales and mirrors. Outside the slice the border is repeated, and labels are 255.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from . import IGNORED

__all__ = ["Box", "Frame", "covered", "cut", "resample", "resample_part", "resampled_shape", "source_box"]


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
        hu: (H, W), or a slice with its neighbours (C, H, W).
        label: uint8 (H, W).
        frame: where.
        size_px: side of the square.

    Returns:
        float32 HU (size_px, size_px), or (C, size_px, size_px), and uint8 label (size_px, size_px).
    """
    offset = torch.arange(size_px, dtype=torch.float32) - (size_px - 1) / 2
    down, right = torch.meshgrid(offset, -offset if frame.mirrored else offset, indexing="ij")
    sine, cosine = math.sin(frame.angle_rad), math.cos(frame.angle_rad)
    row = frame.row_px + frame.step_px[0] * (cosine * down - sine * right)
    column = frame.column_px + frame.step_px[1] * (sine * down + cosine * right)
    height, width = label.shape
    points = torch.stack([2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1], dim=-1)[None]
    planes = hu.float().reshape(1, -1, height, width)
    image = functional.grid_sample(planes, points, padding_mode="border", align_corners=True)
    # Zeros stand outside the slice: shifted, they are the ignored label.
    shifted = (label.float() - IGNORED)[None, None]
    ids = functional.grid_sample(shifted, points, mode="nearest", padding_mode="zeros", align_corners=True) + IGNORED
    return image.reshape(*hu.shape[:-2], size_px, size_px), ids[0, 0].to(torch.uint8)


def resampled_shape(shape: tuple[int, int], *, spacing_mm: tuple[float, float], target_mm: float) -> tuple[int, int]:
    """Shape of a slice of `shape` and `spacing_mm` on a grid of `target_mm`; at least one pixel each way."""
    height, width = (max(1, round(size * spacing / target_mm)) for size, spacing in zip(shape, spacing_mm, strict=True))
    return height, width


def resample(planes: Tensor, shape: tuple[int, int], *, mode: str = "bilinear") -> Tensor:
    """Resamples (B, C, H, W) to `shape` over the same extent; the same values when the shape is the same."""
    if tuple(planes.shape[-2:]) == tuple(shape):
        return planes
    return functional.interpolate(planes, size=shape, mode=mode, align_corners=False if mode == "bilinear" else None)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a grid: rows and columns from `start` to before `stop`.

    Raises:
        ValueError: for a box without pixels.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]

    def __post_init__(self) -> None:
        for start, stop in (self.rows, self.columns):
            if not 0 <= start < stop:
                raise ValueError(f"A box needs 0 <= start < stop, got rows {self.rows} and columns {self.columns}.")

    @classmethod
    def whole(cls, shape: tuple[int, int]) -> Self:
        """All of a grid."""
        return cls(rows=(0, shape[0]), columns=(0, shape[1]))

    @property
    def index(self) -> tuple[slice, slice]:
        """What takes the box out of an array's last two axes, after an ellipsis."""
        return slice(*self.rows), slice(*self.columns)

    def union(self, other: Self) -> Self:
        """The smallest box around both."""
        pairs = [(self.rows, other.rows), (self.columns, other.columns)]
        rows, columns = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs)
        return type(self)(rows=rows, columns=columns)

    def rounded(self, multiple: int, shape: tuple[int, int]) -> Self:
        """Grown on both sides until they measure multiples of `multiple` pixels, within a grid of `shape`."""
        rows, columns = (
            _rounded(side, multiple, size) for side, size in zip((self.rows, self.columns), shape, strict=True)
        )
        return type(self)(rows=rows, columns=columns)

    def grown(self, px: int) -> Self:
        """Grown by so many pixels on each side, but for those before the grid's first."""
        rows, columns = ((max(0, side[0] - px), side[1] + px) for side in (self.rows, self.columns))
        return type(self)(rows=rows, columns=columns)

    def within(self, other: Self) -> Self | None:
        """What is in both; None where that is nothing."""
        pairs = [(self.rows, other.rows), (self.columns, other.columns)]
        rows, columns = ((max(a[0], b[0]), min(a[1], b[1])) for a, b in pairs)
        return type(self)(rows=rows, columns=columns) if rows[0] < rows[1] and columns[0] < columns[1] else None

    def aligned(self, multiple: int, other: Self) -> Self:
        """Grown to whole blocks of `multiple` pixels, counted from the grid's first, and cut to `other`.

        Raises:
            ValueError: when nothing of it is in `other`.
        """
        rows, columns = (
            (start // multiple * multiple, -(-stop // multiple) * multiple) for start, stop in (self.rows, self.columns)
        )
        found = type(self)(rows=rows, columns=columns).within(other)
        if found is None:
            raise ValueError(f"Expected a box that meets {other}, got {self}.")
        return found


def _rounded(side: tuple[int, int], multiple: int, size: int) -> tuple[int, int]:
    length = min(-(-(side[1] - side[0]) // multiple) * multiple, size)
    start = min(max(0, (side[0] + side[1] - length) // 2), size - length)
    return start, start + length


def resample_part(planes: Tensor, shape: tuple[int, int], part: Box, *, held: Box, extent: tuple[int, int]) -> Tensor:
    """The same as `resample(whole, shape)` within `part`, from planes that hold only `held` of the whole's `extent`.

    Args:
        planes: (B, C, h, w), `held` of a grid of `extent`.
        shape: of the grid wanted, over the same extent.
        part: of the grid wanted.
        held: what `planes` covers; its border is repeated where more would be needed (see `covered`).
        extent: (H, W) of the whole that `planes` was cut from.
    """
    for axis, wanted, have, size, target in zip(
        (-2, -1), (part.rows, part.columns), (held.rows, held.columns), extent, shape, strict=True
    ):
        low, high, weight = _taps(torch.arange(*wanted, device=planes.device), size, target)
        last = have[1] - have[0] - 1
        below = planes.index_select(axis, (low - have[0]).clamp(0, last))
        if size == target:
            planes = below
            continue
        above = planes.index_select(axis, (high - have[0]).clamp(0, last))
        planes = torch.lerp(below, above, weight[:, None] if axis == -2 else weight)
    return planes


def source_box(part: Box, shape: tuple[int, int], extent: tuple[int, int]) -> Box:
    """What `resample_part` needs of a grid of `extent` to make `part` of a grid of `shape`."""
    needed = []
    for (start, stop), size, target in zip((part.rows, part.columns), extent, shape, strict=True):
        low, high, _ = _taps(torch.tensor([start, stop - 1]), size, target)
        needed.append((int(low[0]), int(high[-1]) + 1))
    return Box(rows=needed[0], columns=needed[1])


def covered(held: Box, extent: tuple[int, int], shape: tuple[int, int]) -> Box | None:
    """The part of a grid of `shape` that `held` of a grid of `extent` determines; None where that is nothing."""
    found = []
    for (start, stop), size, target in zip((held.rows, held.columns), extent, shape, strict=True):
        low, high, _ = _taps(torch.arange(target), size, target)
        inside = torch.nonzero((low >= start) & (high < stop))
        if not len(inside):
            return None
        found.append((int(inside[0]), int(inside[-1]) + 1))
    return Box(rows=found[0], columns=found[1])


def _taps(places: Tensor, size: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours and weight of the upper one, for `places` of a grid of `target` pixels on one of `size`."""
    at = ((places.to(torch.float64) + 0.5) * (size / target) - 0.5).clamp(min=0)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    return low, high, (at - low).float()
