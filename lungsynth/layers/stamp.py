"""A nodule on the grid of a lung: mirrored, turned, scaled, and averaged over each pixel where that is coarser.

A stamp depends on the fraction of the placement's pixels alone, so one of them serves all lungs of its spacing on which
a group lies. Positions in the patch are in fixed point; see `patch` for why.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32

from lungsynth.layers.assets import PATCH_SPACING_MM
from lungsynth.layers.patch import NodulePatch, Planes
from lungsynth.layers.placement import NodulePlacement

__all__ = ["Stamp", "make_stamp"]

_POSITIONS = 128  # placements are multiples of 1/64 pixel, centres of pixel parts of 1/128
_BITS = 30  # fixed point of positions in the patch
_MAX_PARTS = 4
_CORE_ALPHA = np.float32(0.95)
_FEWEST_CORE_PX = 12
_LUNG_HU = -850
_MEDIAN_OF_NORMAL = 0.6745


@dataclass(frozen=True, eq=False)
class Stamp:
    """A nodule ready for a lung of one spacing.

    Args:
        weight: of the nodule, in [0, 1]; 0 on the border.
        hu: of the nodule, where it has a weight.
        density: 0 where the nodule is as thin as lung, 1 where it is as dense as soft tissue.
        nodule: what the label map shows, at least one pixel.
        top: row of the first pixel less that of the placement, rounded down.
        left: likewise its column.
        fine_hu: standard deviation of the fourth difference (second in rows, then in columns) of the nodule's HU in
            its core; 0 where the core is too small to tell.
        core_density: median density of the core.
    """

    weight: Float32[np.ndarray, "height width"]
    hu: Float32[np.ndarray, "height width"]
    density: Float32[np.ndarray, "height width"]
    nodule: Bool[np.ndarray, "height width"]
    top: int
    left: int
    fine_hu: float
    core_density: float


def make_stamp(placement: NodulePlacement, patch: NodulePatch, spacing_mm: tuple[float, float]) -> Stamp:
    """The stamp of a placed nodule.

    Args:
        placement: where (its fraction of a pixel counts), and how the patch is mirrored, turned and scaled.
        patch: what.
        spacing_mm: (row, column) of the lung.
    """
    fractions = [centre % 1 for centre in (placement.row_px, placement.col_px)]
    reach = [patch.reach_mm * placement.scale / spacing + 1 for spacing in spacing_mm]
    begin = [math.floor(fraction - r) for fraction, r in zip(fractions, reach, strict=True)]
    end = [math.ceil(fraction + r) + 1 for fraction, r in zip(fractions, reach, strict=True)]
    alpha, weight, colour = _sample(placement, patch, spacing_mm, fractions, begin, end)
    rows, columns = (np.flatnonzero((weight > 0).any(axis=axis)) for axis in (1, 0))
    # One pixel of zeros is left around, so that what touches the border of a stamp is seen to be cut.
    top, left = max(0, int(rows[0]) - 1), max(0, int(columns[0]) - 1)
    here = slice(top, int(rows[-1]) + 2), slice(left, int(columns[-1]) + 2)
    hu = (colour / np.maximum(weight, np.float32(1 / 256)))[here]
    density = np.clip((hu - np.float32(_LUNG_HU)) / np.float32(-_LUNG_HU), 0, 1)
    core = alpha[here] >= _CORE_ALPHA
    return Stamp(
        weight=np.ascontiguousarray(weight[here]),
        hu=hu,
        density=density,
        nodule=_nodule_pixels(alpha[here]),
        top=begin[0] + top,
        left=begin[1] + left,
        fine_hu=_fine_hu(hu, core),
        core_density=_middle(density[core]) if core.any() else 0.0,
    )


def _sample(
    placement: NodulePlacement,
    patch: NodulePatch,
    spacing_mm: tuple[float, float],
    fractions: list[float],
    begin: list[int],
    end: list[int],
) -> Planes:
    """The patch's planes on the pixels begin .. end, each the mean over the lung's pixel (partial volume)."""
    step_mm = PATCH_SPACING_MM * placement.scale
    parts = [min(_MAX_PARTS, max(1, round(spacing / step_mm))) for spacing in spacing_mm]
    per_part = [s / step_mm * (1 << _BITS) / (_POSITIONS * n) for s, n in zip(spacing_mm, parts, strict=True)]
    down = _offsets(begin[0], end[0], fractions[0], parts[0])[:, None]
    left = _offsets(begin[1], end[1], fractions[1], parts[1])[None, :]
    cos, sin = _turn(placement.rotation_deg)
    mirror = -1 if placement.flip else 1
    row = down * round(cos * per_part[0]) - left * round(sin * per_part[1])
    column = mirror * (down * round(sin * per_part[0]) + left * round(cos * per_part[1]))
    anchor = [round(a * (1 << _BITS)) for a in patch.anchor_px]
    return _mean_over_parts(_interpolate(patch.planes, row + anchor[0], column + anchor[1]), parts)


@lru_cache(maxsize=4096)
def _turn(rotation_deg: float) -> tuple[float, float]:
    """Cosine and sine, rounded to 24 bits: more than libms agree on, less than they know."""
    angle = math.radians(rotation_deg)
    return round(math.cos(angle) * (1 << 24)) / (1 << 24), round(math.sin(angle) * (1 << 24)) / (1 << 24)


def _offsets(start: int, stop: int, centre_px: float, parts: int) -> np.ndarray:
    """From the placement to the centres of the parts of pixels start .. stop, in 1 / (128 * parts) pixel."""
    first = (start * _POSITIONS - _POSITIONS // 2 - round(centre_px * _POSITIONS)) * parts + _POSITIONS // 2
    return np.arange(first, first + (stop - start) * parts * _POSITIONS, _POSITIONS, dtype=np.int64)


def _interpolate(planes: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Linear between the pixels at fixed-point positions; 0 outside, because the planes end in zeros."""
    height, width = planes.shape[1:]
    row_index, row_part = _split(row, height)
    column_index, column_part = _split(column, width)
    at = row_index * width
    at += column_index
    flat = planes.reshape(3, height * width)
    corners = [flat.take(at + shift, axis=1) for shift in (0, 1, width, width + 1)]
    upper, lower = (_between(corners[k], corners[k + 1], column_part) for k in (0, 2))
    return _between(upper, lower, row_part)


def _split(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and fraction; outside the plane both stay where it is zero."""
    index = position >> _BITS
    part = (position >> (_BITS - 15) & 0x7FFF).astype(np.float32)
    part *= np.float32(1 / 0x8000)
    return np.clip(index, 0, size - 2, out=index), part


def _between(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    second -= first
    second *= part
    second += first
    return second


def _mean_over_parts(planes: np.ndarray, parts: list[int]) -> np.ndarray:
    per_row, per_column = parts
    if per_row * per_column == 1:
        return planes
    # Slices instead of a reduction, whose order of adding depends on the machine.
    rows = sum((planes[:, k::per_row] for k in range(1, per_row)), planes[:, ::per_row])
    total = sum((rows[:, :, k::per_column] for k in range(1, per_column)), rows[:, :, ::per_column])
    return total * np.float32(1 / (per_row * per_column))


def _nodule_pixels(alpha: np.ndarray) -> np.ndarray:
    """A nodule smaller than a pixel is the pixel that shows it best, so that no nodule is without a label."""
    nodule = alpha >= 0.5
    if not nodule.any():
        nodule.flat[np.argmax(alpha)] = True
    return nodule


def _fine_hu(hu: np.ndarray, core: np.ndarray) -> float:
    rows = hu[2:] - 2 * hu[1:-1] + hu[:-2]
    both = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
    fine = np.abs(both[core[1:-1, 1:-1]])
    return _middle(fine) / _MEDIAN_OF_NORMAL if len(fine) >= _FEWEST_CORE_PX else 0.0


def _middle(values: np.ndarray) -> float:
    return float(np.sort(values)[len(values) // 2])
