"""A stored nodule brought to the grid of a lung, with the edge and the noise that the lung's scanner would give it.

`NodulePatch` is the nodule on its own grid of 0.7 mm: `alpha` (the label is where it is at least 0.5), the blend
weight, and weight * HU. The weight is 1 as far as the patch's HU are the nodule's own, half a pixel beyond its outline,
and falls to 0 where alpha does; HU travel multiplied by it, so the patch's surroundings do not leak in.

`resample_nodule` mirrors, turns and scales a patch onto a lung's pixels, averaging over pixels that are coarser. The
result depends on the fraction of the placement's pixels alone, so one of them serves all lungs of its spacing on which
a group lies.

`match_noise_and_edge` does so for a lung of some noise: the patch's edge is blurred by what it lacks of the lung's, and
a nodule noisier than its lung (from a sharper scan, or from a network that leaves a grid behind) is smoothed in small
steps until the fine structure of its HU is at most half as strong again as that of the lung's noise.

All arithmetic is of integers or of single IEEE operations, and what comes from libm (cosines, exponentials) is rounded
to few bits: a nodule has the same bits on every machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from lungsynth.compositing.fixed_point import (
    BLUR_STEP_PX,
    POSITION_BITS,
    POSITIONS,
    convolved,
    cos_sin,
    gaussian,
    interpolate,
    mean_over_parts,
    offsets,
)
from lungsynth.compositing.noise import MEDIAN_OF_NORMAL, LungNoise, fourth_difference
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.hounsfield import LUNG_HU
from lungsynth.placement.assets import ALPHA_SCALE, AssetArray
from lungsynth.placement.groups import NodulePlacement

__all__ = [
    "MARGIN_PX",
    "MAX_PARTS",
    "MAX_SMOOTHING_STEPS",
    "MIN_WEIGHT",
    "WEIGHT_RISE",
    "NoduleMatch",
    "NodulePatch",
    "Planes",
    "ResampledNodule",
    "match_noise_and_edge",
    "resample_nodule",
    "resampled_plane",
]

Planes = Float32[np.ndarray, "3 height width"]  # alpha, weight, weight * HU

# Of patches. Another value of any constant below renders existing catalogues differently.
WEIGHT_RISE = 4.0  # weight = min(1, 4 alpha): docs/results/compositing.md has the profiles it was chosen by
MIN_WEIGHT = np.float32(1 / 128)  # what is below adds less than a grey level, and would widen the window
MARGIN_PX = 2  # zeros around the support, so that interpolation ends in them

# Of resampling.
MAX_PARTS = 4  # of a pixel, along each axis, over which a patch is averaged: for pixels of up to 2.8 mm
_CORE_ALPHA = np.float32(0.95)  # the core of a nodule, free of its edge
_MIN_CORE_PX = 12  # with fewer, the fine structure of the core is unknown and nothing is smoothed

_MAX_REACH_PX = 2048  # from the middle of a nodule: wider than any slice, and some 500 MB while it is resampled

# Of matching.
_PATCH_EDGE_MM = 0.56  # standard deviation of the edge of stored patches: cohort.resampling.EDGE_PX = 0.8 at 0.7 mm
_MIN_BLUR_MM = 0.45  # what the fading of a patch's HU beyond its outline takes away from its edge
_MAX_BLUR_STEPS = 8  # 2 pixels (1.4 mm): more would dissolve small nodules
MAX_SMOOTHING_STEPS = 6  # 1.5 pixels, likewise
_MAX_NOISE_RATIO = 1.5  # of a nodule's fine structure over the lung's: real nodules have anatomy of their own
_CLASSES_PER_OCTAVE = 2  # of noise levels: few enough to share resampled nodules between lungs


@dataclass(frozen=True, eq=False)
class NodulePatch:
    """A nodule at 0.7 mm, cropped to its support.

    Args:
        planes: alpha, weight, and weight * HU.
        anchor_px: (row, column) of the centroid of alpha >= 0.5; it comes to lie where the nodule is placed.
        reach_mm: from the anchor to the farthest pixel with a weight, and one more.
    """

    planes: Planes
    anchor_px: tuple[float, float]
    reach_mm: float

    @classmethod
    def from_asset(cls, stored: AssetArray, *, blur_steps: int = 0, smoothing_steps: int = 0) -> "NodulePatch":
        """The patch of a stored nodule.

        Args:
            stored: HU and alpha, see `placement.assets`.
            blur_steps: standard deviation of a Gaussian that softens the edge, in quarters of a pixel of the patch.
            smoothing_steps: likewise of one that smooths the HU alone, not the edge.
        """
        blur, smoothing = gaussian(blur_steps), gaussian(smoothing_steps)
        pad = max(len(blur), len(smoothing)) // 2 + MARGIN_PX
        alpha = np.pad(stored[1].astype(np.float32) / np.float32(ALPHA_SCALE), pad)
        weight = np.minimum(alpha * np.float32(WEIGHT_RISE), np.float32(1))
        weighted_hu = weight * convolved(np.pad(stored[0].astype(np.float32), pad, mode="edge"), smoothing)
        weight, weighted_hu = convolved(weight, blur), convolved(weighted_hu, blur)
        visible = weight >= MIN_WEIGHT
        planes = np.stack([alpha, np.where(visible, weight, 0), np.where(visible, weighted_hu, 0)]).astype(np.float32)
        row, column = (int(index.sum()) / len(index) for index in np.nonzero(alpha >= 0.5))
        rows, columns = np.nonzero(visible | (alpha > 0))
        reach_px = math.sqrt(((rows - row) ** 2 + (columns - column) ** 2).max()) + 1
        top, left = int(rows.min()) - MARGIN_PX, int(columns.min()) - MARGIN_PX
        cropped = planes[:, top : int(rows.max()) + MARGIN_PX + 1, left : int(columns.max()) + MARGIN_PX + 1]
        return cls(np.ascontiguousarray(cropped), (row - top, column - left), reach_px * PATCH_SPACING_MM)


@dataclass(frozen=True, eq=False)
class ResampledNodule:
    """A nodule on the grid of lungs of one spacing.

    Args:
        weight: of the nodule, in [0, 1]; 0 on the border.
        hu: of the nodule, where it has a weight.
        density: 0 where the nodule is as thin as lung, 1 where it is as dense as soft tissue (0 HU).
        nodule: what the label map shows; in a slice of its own, at least one pixel.
        top: row of the first pixel less that of the placement, rounded down.
        left: likewise its column.
        fine_hu: standard deviation of the fourth difference of the nodule's HU in its core (`noise.fourth_difference`);
            0 where the core is too small to tell.
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
    """Resamples a placed nodule.

    Args:
        placement: where (its fraction of a pixel counts), and how the patch is mirrored, turned and scaled.
        patch: what.
        spacing_mm: (row, column) of the lung.

    Raises:
        InputError: when the pixels are so fine that the nodule would be wider than any slice.
    """
    fractions = [centre % 1 for centre in (placement.row_px, placement.col_px)]
    reach = [patch.reach_mm * placement.scale / spacing + 1 for spacing in spacing_mm]
    if max(reach) > _MAX_REACH_PX:
        raise InputError(
            f"Nodule {placement.asset}: would be {2 * max(reach):,.0f} pixels wide on a lung with pixels of "
            f"{spacing_mm[0]:g} x {spacing_mm[1]:g} mm, at a scale of {placement.scale:g}; at most "
            f"{2 * _MAX_REACH_PX:,} are resampled. Mend the lung's affine, in mm."
        )
    begin = [math.floor(fraction - r) for fraction, r in zip(fractions, reach, strict=True)]
    end = [math.ceil(fraction + r) + 1 for fraction, r in zip(fractions, reach, strict=True)]
    alpha, weight, weighted_hu = _sample(placement, patch, spacing_mm, fractions, begin, end)
    return resampled_plane(alpha, weight, weighted_hu, _nodule_pixels(alpha), begin=(begin[0], begin[1]))


def resampled_plane(
    alpha: Float32[np.ndarray, "height width"],
    weight: Float32[np.ndarray, "height width"],
    weighted_hu: Float32[np.ndarray, "height width"],
    nodule: Bool[np.ndarray, "height width"],
    *,
    begin: tuple[int, int],
) -> ResampledNodule:
    """A nodule in a slice, from what was sampled there; some weight is above 0.

    Args:
        alpha: of the nodule.
        weight: likewise.
        weighted_hu: weight * HU.
        nodule: what the label map shows.
        begin: (row, column) of the first pixel less that of the placement, rounded down.
    """
    rows, columns = (np.flatnonzero((weight > 0).any(axis=axis)) for axis in (1, 0))
    # One pixel of zeros is left around, so that what touches the border is seen to be cut.
    top, left = max(0, int(rows[0]) - 1), max(0, int(columns[0]) - 1)
    window = slice(top, int(rows[-1]) + 2), slice(left, int(columns[-1]) + 2)
    hu = (weighted_hu / np.maximum(weight, np.float32(1 / 256)))[window]
    density = np.clip((hu - np.float32(LUNG_HU)) / np.float32(-LUNG_HU), 0, 1)
    core = alpha[window] >= _CORE_ALPHA
    return ResampledNodule(
        weight=np.ascontiguousarray(weight[window]),
        hu=hu,
        density=density,
        nodule=np.ascontiguousarray(nodule[window]),
        top=begin[0] + top,
        left=begin[1] + left,
        fine_hu=_fine_hu(hu, core),
        core_density=_median(density[core]) if core.any() else 0.0,
    )


class NoduleMatch(NamedTuple):
    """What makes a nodule look like the lung it lies on; equal for many lungs, so that resampled nodules are shared.

    Args:
        blur_steps: by which its edge is blurred, in quarters of a pixel of the patch.
        noise_class: fine structure of the lung's noise in half octaves of 1 HU; None leaves the nodule's HU alone.
    """

    blur_steps: int = 0
    noise_class: int | None = None

    @classmethod
    def of(cls, noise: LungNoise | None, scale: float) -> "NoduleMatch":
        """For a lung, and a nodule of this scale; without a lung's noise, the nodule stays as it is."""
        if noise is None:
            return cls()
        # Variances of Gaussians add up, so the patch lacks the difference.
        lacking_mm = max(noise.edge_mm**2 - _PATCH_EDGE_MM**2, _MIN_BLUR_MM**2) ** 0.5
        blur_steps = min(_MAX_BLUR_STEPS, round(lacking_mm / (PATCH_SPACING_MM * scale * BLUR_STEP_PX)))
        if noise.whole_hu == 0:
            return cls(blur_steps)
        return cls(blur_steps, round(_CLASSES_PER_OCTAVE * math.log2(max(1.0, noise.fine * noise.whole_hu))))

    @property
    def allowed_fine_hu(self) -> float:
        """Fine structure that a nodule's HU may have; a nodule with more is smoothed."""
        if self.noise_class is None:
            return math.inf
        return _MAX_NOISE_RATIO * 2.0 ** (self.noise_class / _CLASSES_PER_OCTAVE)


def match_noise_and_edge(
    placement: NodulePlacement,
    patch_of: Callable[[int, int], NodulePatch],
    spacing_mm: tuple[float, float],
    match: NoduleMatch,
) -> ResampledNodule:
    """Resamples a placed nodule for the lungs of one spacing, edge and noise.

    Args:
        placement: see `resample_nodule`.
        patch_of: (blur steps, smoothing steps) -> the nodule's patch.
        spacing_mm: (row, column) of the lungs.
        match: of the lungs.
    """
    nodule = resample_nodule(placement, patch_of(match.blur_steps, 0), spacing_mm)
    for smoothing_steps in range(1, MAX_SMOOTHING_STEPS + 1):
        if nodule.fine_hu <= match.allowed_fine_hu:
            break
        nodule = resample_nodule(placement, patch_of(match.blur_steps, smoothing_steps), spacing_mm)
    return nodule


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
    parts = [min(MAX_PARTS, max(1, round(spacing / step_mm))) for spacing in spacing_mm]
    per_part = [s / step_mm * (1 << POSITION_BITS) / (POSITIONS * n) for s, n in zip(spacing_mm, parts, strict=True)]
    down = offsets(begin[0], end[0], fractions[0], parts[0])[:, None]
    left = offsets(begin[1], end[1], fractions[1], parts[1])[None, :]
    cos, sin = cos_sin(placement.rotation_deg)
    mirror = -1 if placement.flip else 1
    row = down * round(cos * per_part[0]) - left * round(sin * per_part[1])
    column = mirror * (down * round(sin * per_part[0]) + left * round(cos * per_part[1]))
    anchor = [round(a * (1 << POSITION_BITS)) for a in patch.anchor_px]
    return mean_over_parts(interpolate(patch.planes, (row + anchor[0], column + anchor[1])), parts)


def _nodule_pixels(alpha: np.ndarray) -> np.ndarray:
    """A nodule smaller than a pixel is the pixel that shows it best, so that no nodule is without a label."""
    nodule = alpha >= 0.5
    if not nodule.any():
        nodule.flat[np.argmax(alpha)] = True
    return nodule


def _fine_hu(hu: np.ndarray, core: np.ndarray) -> float:
    fine = np.abs(fourth_difference(hu)[core[1:-1, 1:-1]])
    return _median(fine) / MEDIAN_OF_NORMAL if len(fine) >= _MIN_CORE_PX else 0.0


def _median(values: np.ndarray) -> float:
    """The upper one of two in the middle: a value that occurs, no mean of two."""
    return float(np.sort(values)[len(values) // 2])
