"""Does a nodule show that it was laid on? Gradient and noise inside, across and outside its outline, against real ones.

A nodule is measured on the patch grid of a cohort (64 x 64 at 0.7 mm), to which real and composed ones are brought by
the same code. Distances are from the outline, positive inside. Each feature is set against those of real nodules; the
seam score of a nodule is that of its strangest feature: 0 for the median real nodule, 1 at the edge of the middle 90 %.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int16
from scipy import ndimage

from lungsynth.cohort.patches import NodulePlanes, cut_patches
from lungsynth.compositing.render import Rendered
from lungsynth.errors import InputError
from lungsynth.grids import PATCH_SPACING_MM
from lungsynth.hounsfield import DENSE_HU, Label
from lungsynth.placement.lung_shape import Box

__all__ = ["BoundaryFeatures", "BoundaryReference", "composed_patch", "measure_boundary"]

Patch = Int16[np.ndarray, "64 64"]
PatchMask = Bool[np.ndarray, "64 64"]

_ACROSS_MM = 1.4
_OUTSIDE_MM = 5.6
_FEWEST_PX = 12
_LEAST_CONTRAST_HU = 100.0
_MEDIAN_OF_NORMAL = 0.6745
_MIDDLE = 0.9
_FEWEST_REAL = 20
_CUT_PX = 96  # cut around a nodule before it is brought to the patch grid


@dataclass(frozen=True, kw_only=True)
class BoundaryFeatures:
    """One nodule.

    Args:
        edge_per_mm: mean gradient across the outline, as a share of the contrast.
        halo: step between the nearer and the farther surroundings, as a share of the contrast.
        noise_inside: fourth differences inside, as a share of those outside.
        noise_across: likewise across the outline.
        grain_inside: fourth as a share of first differences inside, over the same share outside: 1 where the noise
            has one texture.
    """

    edge_per_mm: float
    halo: float
    noise_inside: float
    noise_across: float
    grain_inside: float

    def as_array(self) -> Float64[np.ndarray, " features"]:
        """The values in the order above."""
        return np.array([getattr(self, field.name) for field in fields(self)])


def measure_boundary(hu: Patch, mask: PatchMask) -> BoundaryFeatures | None:
    """Measures a nodule with its surroundings; None when it is too small, too faint or has too little lung around."""
    inside_mm = ndimage.distance_transform_edt(mask) * PATCH_SPACING_MM - PATCH_SPACING_MM / 2
    outside_mm = ndimage.distance_transform_edt(~mask) * PATCH_SPACING_MM - PATCH_SPACING_MM / 2
    distance = np.where(mask, inside_mm, -outside_mm)
    image = hu.astype(np.float64)
    dark = image < DENSE_HU  # the vessels and the wall are no part of what a nodule should look like
    core, across = distance >= _ACROSS_MM, np.abs(distance) < _ACROSS_MM
    near = (distance <= -_ACROSS_MM) & (distance > -_OUTSIDE_MM / 2) & dark
    far = (distance <= -_OUTSIDE_MM / 2) & (distance > -_OUTSIDE_MM) & dark
    if min(zone.sum() for zone in (core, across, near, far)) < _FEWEST_PX:
        return None
    level = float(np.median(image[far]))
    contrast = float(np.median(image[core])) - level
    fine, coarse = _fourth_difference(image), _first_difference(image)
    noise = _spread(fine[near | far])
    if contrast < _LEAST_CONTRAST_HU or noise == 0:
        return None
    rows, columns = np.gradient(image, PATCH_SPACING_MM)
    grain_outside = noise / max(_spread(coarse[near | far]), 1e-6)
    return BoundaryFeatures(
        edge_per_mm=float(np.hypot(rows, columns)[across].mean()) / contrast,
        halo=(float(np.median(image[near])) - level) / contrast,
        noise_inside=_spread(fine[core]) / noise,
        noise_across=_spread(fine[across]) / noise,
        grain_inside=_spread(fine[core]) / max(_spread(coarse[core]), 1e-6) / grain_outside,
    )


def _fourth_difference(image: np.ndarray) -> np.ndarray:
    """Second difference along rows, then along columns: what is left is noise and the finest structure."""
    return ndimage.correlate(image, np.outer([1, -2, 1], [1, -2, 1]), mode="nearest")


def _first_difference(image: np.ndarray) -> np.ndarray:
    return ndimage.correlate(image, np.array([[1.0, -1.0]]), mode="nearest")


def _spread(values: np.ndarray) -> float:
    """Standard deviation of noise around 0, from the median of its size."""
    return float(np.median(np.abs(values))) / _MEDIAN_OF_NORMAL


def composed_patch(sample: Rendered, box: Box, spacing_mm: tuple[float, float]) -> tuple[Patch, PatchMask]:
    """A nodule of a sample with its surroundings, brought to the patch grid as `scripts/prepare.py` brings real ones.

    Args:
        sample: rendered.
        box: of the nodule.
        spacing_mm: (row, column) of the sample.
    """
    top = max(0, (box.row_from + box.row_to - _CUT_PX) // 2)
    left = max(0, (box.column_from + box.column_to - _CUT_PX) // 2)
    here = slice(top, top + _CUT_PX), slice(left, left + _CUT_PX)
    nodule = np.zeros(sample.label.shape, dtype=bool)
    own = slice(box.row_from, box.row_to), slice(box.column_from, box.column_to)
    nodule[own] = sample.label[own] == Label.NODULE
    votes = nodule[here][None].astype(np.uint8) * np.uint8(2)
    patch = cut_patches(NodulePlanes(hu=sample.image[here][None], votes=votes, spacing_mm=spacing_mm))
    return patch.context[0], patch.alpha[0] >= 0.5


@dataclass(frozen=True, eq=False)
class BoundaryReference:
    """Features of real nodules (n, features), sorted along n."""

    real: Float64[np.ndarray, "nodules features"]

    @classmethod
    def of(cls, patches: Iterable[tuple[Patch, PatchMask]]) -> "BoundaryReference":
        """Measures real nodules, each with its surroundings as measured (`context`).

        Raises:
            InputError: when fewer than 20 can be measured.
        """
        found = [features.as_array() for hu, mask in patches if (features := measure_boundary(hu, mask))]
        if len(found) < _FEWEST_REAL:
            raise InputError(
                f"A seam score needs at least {_FEWEST_REAL} real nodules with lung around them, {len(found)} of those "
                "given can be measured. Prepare a larger cohort."
            )
        return cls(np.sort(np.stack(found), axis=0))

    def deviations(self, features: BoundaryFeatures) -> Float64[np.ndarray, " features"]:
        """Of each feature: 0 at the real median, -1 and 1 at the ends of the middle 90 %."""
        low, median, high = np.quantile(self.real, [(1 - _MIDDLE) / 2, 0.5, (1 + _MIDDLE) / 2], axis=0)
        offset = features.as_array() - median
        return offset / np.where(offset < 0, median - low, high - median)

    def score(self, features: BoundaryFeatures) -> float:
        """The largest deviation."""
        return float(np.abs(self.deviations(features)).max())

    def compare(self, found: Sequence[BoundaryFeatures]) -> dict[str, dict[str, float]]:
        """Of each feature, real and composed medians, the share of composed ones within the real middle 90 %, and the
        chance that a composed one is the larger of a pair (0.5 where the two cannot be told apart).
        """
        values = np.stack([features.as_array() for features in found])
        within = np.abs(np.stack([self.deviations(features) for features in found])) <= 1
        table = {}
        for column, field in enumerate(fields(BoundaryFeatures)):
            real, composed = self.real[:, column], values[:, column]
            below = np.searchsorted(real, composed, side="left") + np.searchsorted(real, composed, side="right")
            table[field.name] = {
                "real_median": float(np.median(real)),
                "composed_median": float(np.median(composed)),
                "within_middle_90": float(within[:, column].mean()),
                "larger_than_real": float(below.mean() / 2 / len(real)),
            }
        return table
