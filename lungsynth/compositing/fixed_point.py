"""Blurring and resampling in fixed point, along two axes or three: the same bits on every machine.

Positions are integers, multiples of 2**-`POSITION_BITS` voxels of what is sampled; taps and turns are rounded to few
bits, and sums are added in a fixed order.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = [
    "BLUR_STEP_PX",
    "POSITIONS",
    "POSITION_BITS",
    "convolved",
    "cos_sin",
    "gaussian",
    "interpolate",
    "mean_over_parts",
    "offsets",
]

# Another value of any constant below renders existing catalogues differently.
BLUR_STEP_PX = 0.25  # blurs are multiples of it, so that few patches need be kept
POSITION_BITS = 30  # fixed point of positions
POSITIONS = 128  # placements are multiples of 1/64 pixel, so centres of parts of pixels are multiples of 1/128
_FRACTION_BITS = 15  # of a position, used as the weight of interpolation: exact in float32
_TAP_UNIT = 4096  # taps of a Gaussian are rounded to 1/4096
_KERNEL_SIGMAS = 2.5  # reach of a Gaussian; beyond lies 1 % of its weight


@lru_cache(maxsize=64)
def gaussian(steps: int) -> tuple[float, ...]:
    """Taps of a Gaussian of `steps` quarters of a pixel, which sum to 1: multiples of 1/4096 but for that division."""
    sigma = steps * BLUR_STEP_PX
    radius = math.ceil(_KERNEL_SIGMAS * sigma)
    shifts = range(-radius, radius + 1)
    taps = [round(math.exp(-0.5 * (k / sigma) ** 2) * _TAP_UNIT) if sigma else _TAP_UNIT for k in shifts]
    return tuple(tap / sum(taps) for tap in taps)


def convolved(array: np.ndarray, kernel: tuple[float, ...], axes: Sequence[int] = (0, 1)) -> np.ndarray:
    """Separable convolution along some axes; what comes round from the other side must have no weight there."""
    radius = len(kernel) // 2
    for axis in axes:
        taps = [np.roll(array, k - radius, axis) * np.float32(tap) for k, tap in enumerate(kernel)]
        array = sum(taps[1:], taps[0])
    return array


@lru_cache(maxsize=4096)
def cos_sin(rotation_deg: float) -> tuple[float, float]:
    """Cosine and sine, rounded to 24 bits: more than libms agree on, less than they know."""
    angle = math.radians(rotation_deg)
    return round(math.cos(angle) * (1 << 24)) / (1 << 24), round(math.sin(angle) * (1 << 24)) / (1 << 24)


def offsets(start: int, stop: int, centre_px: float, parts: int) -> np.ndarray:
    """From a placement to the centres of the parts of pixels start .. stop, in 1 / (128 * parts) pixel."""
    first = (start * POSITIONS - POSITIONS // 2 - round(centre_px * POSITIONS)) * parts + POSITIONS // 2
    return np.arange(first, first + (stop - start) * parts * POSITIONS, POSITIONS, dtype=np.int64)


def interpolate(planes: np.ndarray, positions: Sequence[np.ndarray]) -> np.ndarray:
    """Linear between the voxels; 0 outside, because the planes end in zeros.

    Args:
        planes: float32 (n, *grid), n functions on one grid.
        positions: fixed-point positions along each axis of the grid, arrays that broadcast to one shape.

    Returns:
        float32 (n, *shape).
    """
    sizes = planes.shape[1:]
    placed = [_index_and_fraction(position, size) for position, size in zip(positions, sizes, strict=True)]
    at, shifts = placed[0][0], [0]
    for (index, _), size in zip(placed[1:], sizes[1:], strict=True):
        at = at * size + index
    for step in _strides(sizes):
        shifts = [shift + far for shift in shifts for far in (0, step)]
    flat = planes.reshape(len(planes), -1)
    corners = [flat.take(at + shift, axis=1) for shift in shifts]
    for _, fraction in reversed(placed):
        corners = [_between(corners[k], corners[k + 1], fraction) for k in range(0, len(corners), 2)]
    return corners[0]


def mean_over_parts(planes: np.ndarray, parts: Sequence[int]) -> np.ndarray:
    """Means over blocks of `parts` along the last axes of (n, *grid)."""
    if math.prod(parts) == 1:
        return planes
    total = planes
    # Slices instead of a reduction, whose order of adding depends on the machine.
    for axis, count in enumerate(parts, start=1):
        lines = np.moveaxis(total, axis, 0)
        total = np.moveaxis(sum((lines[k::count] for k in range(1, count)), lines[::count]), 0, axis)
    return total * np.float32(1 / math.prod(parts))


def _strides(sizes: Sequence[int]) -> list[int]:
    """Steps to the next voxel along each axis, in a flat array."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _index_and_fraction(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of fixed-point positions; outside the grid both stay where it is zero."""
    index = position >> POSITION_BITS
    fraction = (position >> (POSITION_BITS - _FRACTION_BITS) & ((1 << _FRACTION_BITS) - 1)).astype(np.float32)
    fraction *= np.float32(1 / (1 << _FRACTION_BITS))
    return np.clip(index, 0, size - 2, out=index), fraction


def _between(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    second -= first
    second *= fraction
    second += first
    return second
