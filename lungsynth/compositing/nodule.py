"""A nodule ready for blending, on its own grid; `stamp` brings it to that of a lung.

Three planes belong to a patch: `alpha` (the label is where it is at least 0.5), the blend weight, and weight * HU. The
weight is 1 as far as the patch's HU are the nodule's own, half a pixel beyond its outline, and falls to 0 where alpha
does; colour travels multiplied by it, so the patch's surroundings do not leak in.

All arithmetic is of integers or of single IEEE operations, and what comes from libm (cosines, exponentials) is rounded
to few bits: a nodule has the same bits on every machine.

A nodule on the grid of a lung: mirrored, turned, scaled, and averaged over each pixel where that is coarser.

A stamp depends on the fraction of the placement's pixels alone, so one of them serves all lungs of its spacing on which
a group lies. Positions in the patch are in fixed point; see `patch` for why.

Fitting a nodule to a lung: the edge that its scanner would have given it, and no more grain than it has.

A nodule from a sharper scan, or from a network that leaves a grid behind, is louder than a quiet lung. Its HU are then
smoothed in small steps until their fine structure is at most half as strong again as noise of the lung would be.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32

from lungsynth.compositing.noise import LungNoise
from lungsynth.grids import PATCH_SPACING_MM
from lungsynth.hounsfield import LUNG_HU
from lungsynth.placement.assets import ALPHA_SCALE, AssetArray
from lungsynth.placement.resolve import NodulePlacement

__all__ = [
    "BLUR_STEP_PX",
    "NodulePatch",
    "Planes",
    "ResampledNodule",
    "blur_steps",
    "match_noise_and_edge",
    "noise_class",
    "resample_nodule",
]

Planes = Float32[np.ndarray, "3 height width"]  # alpha, weight, weight * HU

BLUR_STEP_PX = 0.25  # blurs are multiples of it, so that few patches need be kept
_WEIGHT_RISE = 4.0  # weight = min(1, 4 alpha): see docs/results/compositing.md for the profiles it was chosen by
_LEAST_WEIGHT = np.float32(1 / 128)
_MARGIN_PX = 2  # zeros around the support, so that interpolation ends in them


@dataclass(frozen=True, eq=False)
class NodulePatch:
    """A nodule at 0.7 mm, cropped to its support.

    Args:
        planes: see above.
        anchor_px: (row, column) of the centroid of alpha >= 0.5; it comes to lie where the nodule is placed.
        reach_mm: from the anchor to the farthest pixel with a weight, and one more.
    """

    planes: Planes
    anchor_px: tuple[float, float]
    reach_mm: float

    @classmethod
    def from_asset(cls, stored: AssetArray, *, blur_steps: int = 0, grain_steps: int = 0) -> "NodulePatch":
        """The patch of a stored nodule (see `assets`), its edge softened by a Gaussian.

        Args:
            stored: HU and alpha.
            blur_steps: standard deviation of the Gaussian, in `BLUR_STEP_PX` of the patch.
            grain_steps: likewise of one that smooths the HU alone, not the edge.
        """
        kernel = _gaussian(blur_steps)
        grain = _gaussian(grain_steps)
        pad = max(len(kernel), len(grain)) // 2 + _MARGIN_PX
        alpha = np.pad(stored[1].astype(np.float32) / np.float32(ALPHA_SCALE), pad)
        weight = np.minimum(alpha * np.float32(_WEIGHT_RISE), np.float32(1))
        colour = weight * _smooth(np.pad(stored[0].astype(np.float32), pad, mode="edge"), grain)
        weight, colour = _smooth(weight, kernel), _smooth(colour, kernel)
        seen = weight >= _LEAST_WEIGHT
        planes = np.stack([alpha, np.where(seen, weight, 0), np.where(seen, colour, 0)]).astype(np.float32)
        row, column = (int(index.sum()) / len(index) for index in np.nonzero(alpha >= 0.5))
        rows, columns = np.nonzero(seen | (alpha > 0))
        reach_px = math.sqrt(((rows - row) ** 2 + (columns - column) ** 2).max()) + 1
        top, left = int(rows.min()) - _MARGIN_PX, int(columns.min()) - _MARGIN_PX
        cropped = planes[:, top : int(rows.max()) + _MARGIN_PX + 1, left : int(columns.max()) + _MARGIN_PX + 1]
        return cls(np.ascontiguousarray(cropped), (row - top, column - left), reach_px * PATCH_SPACING_MM)


@lru_cache(maxsize=64)
def _gaussian(blur_steps: int) -> tuple[float, ...]:
    """Taps that sum to 1, multiples of 1/4096 but for that division."""
    sigma = blur_steps * BLUR_STEP_PX
    radius = math.ceil(2.5 * sigma)
    taps = [round(math.exp(-0.5 * (k / sigma) ** 2) * 4096) if sigma else 4096 for k in range(-radius, radius + 1)]
    return tuple(tap / sum(taps) for tap in taps)


def _smooth(plane: np.ndarray, kernel: tuple[float, ...]) -> np.ndarray:
    """Separable convolution in a fixed order of adding; what comes round from the other side has no weight there."""
    radius = len(kernel) // 2
    for axis in (0, 1):
        taps = [np.roll(plane, k - radius, axis) * np.float32(tap) for k, tap in enumerate(kernel)]
        plane = sum(taps[1:], taps[0])
    return plane


_POSITIONS = 128  # placements are multiples of 1/64 pixel, centres of pixel parts of 1/128
_BITS = 30  # fixed point of positions in the patch
_MAX_PARTS = 4
_CORE_ALPHA = np.float32(0.95)
_FEWEST_CORE_PX = 12
_MEDIAN_OF_NORMAL = 0.6745


@dataclass(frozen=True, eq=False)
class ResampledNodule:
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


def resample_nodule(placement: NodulePlacement, patch: NodulePatch, spacing_mm: tuple[float, float]) -> ResampledNodule:
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
    density = np.clip((hu - np.float32(LUNG_HU)) / np.float32(-LUNG_HU), 0, 1)
    core = alpha[here] >= _CORE_ALPHA
    return ResampledNodule(
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


_PATCH_EDGE_MM = 0.56  # the edge that patches bring along: 0.8 pixels of 0.7 mm (contract C2.3)
_LEAST_BLUR_MM = 0.45  # what the fading of a patch's HU beyond its outline takes away from its edge
_MOST_BLUR_STEPS = 8
_MOST_GRAIN_STEPS = 6
_LOUDER = 1.5
_CLASSES_PER_OCTAVE = 2


def blur_steps(texture: LungNoise | None, scale: float) -> int:
    """How much a patch must be blurred (in `patch.BLUR_STEP_PX`) to get the edge of a lung with this texture."""
    if texture is None:
        return 0
    # Variances of Gaussians add up, so the patch lacks the difference.
    lacking = max(texture.edge_mm**2 - _PATCH_EDGE_MM**2, _LEAST_BLUR_MM**2) ** 0.5
    return min(_MOST_BLUR_STEPS, round(lacking / (PATCH_SPACING_MM * scale * BLUR_STEP_PX)))


def noise_class(texture: LungNoise | None) -> int | None:
    """The fine structure of a lung's noise in half octaves, so that a stamp serves all lungs of a class; None without
    noise, where nodules stay as they are.
    """
    if texture is None or texture.whole_hu == 0:
        return None
    return round(_CLASSES_PER_OCTAVE * math.log2(max(1.0, texture.fine * texture.whole_hu)))


def match_noise_and_edge(
    placed: NodulePlacement,
    patch_of: Callable[[int, int], NodulePatch],
    spacing_mm: tuple[float, float],
    *,
    steps: int,
    loudness: int | None,
) -> ResampledNodule:
    """The stamp of a nodule for the lungs of one spacing, edge and loudness.

    Args:
        placed: the nodule.
        patch_of: (blur steps, grain steps) -> the nodule's patch.
        spacing_mm: (row, column) of the lungs.
        steps: see `blur_steps`.
        loudness: see `noise_class`.
    """
    stamp = resample_nodule(placed, patch_of(steps, 0), spacing_mm)
    if loudness is None:
        return stamp
    bearable = _LOUDER * 2.0 ** (loudness / _CLASSES_PER_OCTAVE)
    for grain in range(1, _MOST_GRAIN_STEPS + 1):
        if stamp.fine_hu <= bearable:
            break
        stamp = resample_nodule(placed, patch_of(steps, grain), spacing_mm)
    return stamp
