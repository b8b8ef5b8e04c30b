"""Whether the boundary of an inserted nodule is visible: gradient and noise inside, across and outside its outline.

A nodule is measured on the patch grid of a cohort (64 x 64 at 0.7 mm), to which real and composited ones are brought by
the same code. Distances are from the outline, positive inside. Each feature is compared with those of real nodules, of
patients who lent a catalogue none; the boundary score of a nodule is that of its strangest feature: 0 for the median
real nodule, 1 at the edge of the middle 90 %.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from einops import rearrange, repeat
from jaxtyping import Bool, Float64, Int16
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from evaluation.cohort_subsets import EVALUATION_SPLITS
from evaluation.runner import FORMAT
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.patches import NodulePlanes, cut_patches
from lungsynth.cohort.reader import Cohort
from lungsynth.compositing.render import Rendered, Renderer
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.geometry import PATCH_SPACING_MM, Box
from lungsynth.hounsfield import DENSE_HU, DISPLAY_WINDOW, Label
from lungsynth.io.atomic import write_json, write_picture, write_text
from lungsynth.placement.catalogue import Catalogue

__all__ = [
    "BoundaryFeatures",
    "BoundaryReference",
    "BoundaryReport",
    "composited_patch",
    "measure_boundary",
    "measure_catalogue",
    "real_patches",
    "write_boundary_report",
]

Patch = Int16[np.ndarray, "64 64"]
PatchMask = Bool[np.ndarray, "64 64"]

_ACROSS_MM = 1.4  # two pixels of a patch on either side of the outline: the width of a blend
_OUTSIDE_MM = 5.6  # the surroundings reach so far; the nearer half is `near`, the farther `far`
_MIN_PX = 12  # of each zone: medians of fewer are noise, and smaller nodules are left out
_MIN_CONTRAST_HU = 100.0  # of the core over the lung: features are shares of it
_MEDIAN_OF_NORMAL = 0.6745  # median of |x| of a standard normal x
_MIDDLE = 0.9  # share of real nodules whose features score at most 1
_MIN_REAL = 20  # measured nodules of the reference: the ends of their middle 90 % then rest on one nodule each
_CUT_PX = 96  # cut around a nodule before it is brought to the patch grid, larger than a patch at 0.5 mm
_MIN_NOISE = 1e-6  # HU, so that a ratio to a flat zone is finite
_COLUMNS, _ROWS = 10, 4  # of the picture of the worst patches
_ENLARGE = 2


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
    if min(zone.sum() for zone in (core, across, near, far)) < _MIN_PX:
        return None
    level = float(np.median(image[far]))
    contrast = float(np.median(image[core])) - level
    fine, coarse = _fourth_difference(image), _first_difference(image)
    noise = _spread(fine[near | far])
    if contrast < _MIN_CONTRAST_HU or noise == 0:
        return None
    rows, columns = np.gradient(image, PATCH_SPACING_MM)
    grain_outside = noise / max(_spread(coarse[near | far]), _MIN_NOISE)
    return BoundaryFeatures(
        edge_per_mm=float(np.hypot(rows, columns)[across].mean()) / contrast,
        halo=(float(np.median(image[near])) - level) / contrast,
        noise_inside=_spread(fine[core]) / noise,
        noise_across=_spread(fine[across]) / noise,
        grain_inside=_spread(fine[core]) / max(_spread(coarse[core]), _MIN_NOISE) / grain_outside,
    )


def _fourth_difference(image: np.ndarray) -> np.ndarray:
    """Second difference along rows, then along columns: what is left is noise and the finest structure."""
    return ndimage.correlate(image, np.outer([1, -2, 1], [1, -2, 1]), mode="nearest")


def _first_difference(image: np.ndarray) -> np.ndarray:
    return ndimage.correlate(image, np.array([[1.0, -1.0]]), mode="nearest")


def _spread(values: np.ndarray) -> float:
    """Standard deviation of noise around 0, from the median of its size."""
    return float(np.median(np.abs(values))) / _MEDIAN_OF_NORMAL


def composited_patch(sample: Rendered, box: Box, spacing_mm: tuple[float, float]) -> tuple[Patch, PatchMask]:
    """A nodule of a sample with its surroundings, brought to the patch grid as `lungsynth prepare` does with real ones.

    Args:
        sample: rendered.
        box: of the nodule.
        spacing_mm: (row, column) of the sample.
    """
    top = max(0, (box.row_from + box.row_to - _CUT_PX) // 2)
    left = max(0, (box.column_from + box.column_to - _CUT_PX) // 2)
    cut = slice(top, top + _CUT_PX), slice(left, left + _CUT_PX)
    nodule = np.zeros(sample.label.shape, dtype=bool)
    inside = slice(box.row_from, box.row_to), slice(box.column_from, box.column_to)
    nodule[inside] = sample.label[inside] == Label.NODULE
    votes = nodule[cut][None].astype(np.uint8) * np.uint8(2)
    patch = cut_patches(NodulePlanes(hu=sample.image[cut][None], votes=votes, spacing_mm=spacing_mm))
    return patch.context[0], patch.alpha[0] >= 0.5


@dataclass(frozen=True, eq=False)
class BoundaryReference:
    """Features of real nodules (n, features), sorted along n."""

    real: Float64[np.ndarray, "nodules features"]

    @classmethod
    def of(cls, patches: Iterable[tuple[Patch, PatchMask]]) -> "BoundaryReference":
        """Measures real nodules, each with its surroundings as measured (`context`).

        Raises:
            NoSamplesError: when fewer than 20 can be measured.
        """
        rows = [features.as_array() for hu, mask in patches if (features := measure_boundary(hu, mask))]
        if len(rows) < _MIN_REAL:
            raise NoSamplesError(
                f"A boundary score needs at least {_MIN_REAL} real nodules with lung around them, {len(rows)} of those "
                "given can be measured. Prepare a larger cohort."
            )
        return cls(np.sort(np.stack(rows), axis=0))

    def deviations(self, features: BoundaryFeatures) -> Float64[np.ndarray, " features"]:
        """Of each feature: 0 at the real median, -1 and 1 at the ends of the middle 90 %."""
        low, median, high = np.quantile(self.real, [(1 - _MIDDLE) / 2, 0.5, (1 + _MIDDLE) / 2], axis=0)
        offset = features.as_array() - median
        return offset / np.where(offset < 0, median - low, high - median)

    def score(self, features: BoundaryFeatures) -> float:
        """The largest deviation."""
        return float(np.abs(self.deviations(features)).max())

    def compare(self, nodules: Sequence[BoundaryFeatures]) -> dict[str, dict[str, float]]:
        """Of each feature, real and composited medians, the share of composited ones within the real middle 90 %,
        and the chance that a composited one is the larger of a pair (0.5 where the two cannot be told apart).
        """
        values = np.stack([features.as_array() for features in nodules])
        within = np.abs(np.stack([self.deviations(features) for features in nodules])) <= 1
        table = {}
        for column, field in enumerate(fields(BoundaryFeatures)):
            real, composited = self.real[:, column], values[:, column]
            below = np.searchsorted(real, composited, side="left") + np.searchsorted(real, composited, side="right")
            table[field.name] = {
                "real_median": float(np.median(real)),
                "composited_median": float(np.median(composited)),
                "within_middle_90": float(within[:, column].mean()),
                "larger_than_real": float(below.mean() / 2 / len(real)),
            }
        return table


class BoundaryReport(NamedTuple):
    """A row for each nodule (worst first), the table of `BoundaryReference.compare`, and the worst patches."""

    nodules: pd.DataFrame
    features: dict[str, dict[str, float]]
    worst: list[np.ndarray]


def real_patches(cohort: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Context and mask of the largest slice of each nodule of a cohort's validation and test patients.

    Raises:
        InputError: when the folder is no cohort.
    """
    for name in EVALUATION_SPLITS[::-1]:
        for nodule in Cohort.open(cohort).split(name).nodules():
            context, alpha, valid, largest = read_arrays(cohort / nodule.nodule, "context", "alpha", "valid", "largest")
            index = int(largest)
            if valid[index].all():  # where the source ended, the context was filled in
                yield context[index], alpha[index] >= 0.5


def measure_catalogue(
    catalogue: Catalogue, renderer: Renderer, reference: BoundaryReference, *, samples: int, seed: int = 0
) -> BoundaryReport:
    """Renders samples of a catalogue, drawn at random, and measures their nodules.

    Args:
        catalogue: of the samples.
        renderer: of their library.
        reference: real nodules.
        samples: at most so many.
        seed: of the draw.

    Raises:
        InputError: when no nodule of them can be measured.
    """
    places = np.sort(np.random.default_rng(seed).permutation(len(catalogue))[:samples])
    rows: list[dict[str, Any]] = []
    measured: list[BoundaryFeatures] = []
    patches: list[np.ndarray] = []
    for index in tqdm(places, desc="boundaries", unit="sample"):
        recipe = catalogue[int(index)]
        sample = renderer.render(recipe)
        for placement, box in zip(recipe.nodules, sample.boxes, strict=True):
            hu, mask = composited_patch(sample, box, renderer.spacing_mm(recipe))
            if features := measure_boundary(hu, mask):
                facts = {"id": recipe.id, "category": placement.category, "diameter_mm": placement.diameter_mm}
                rows.append(facts | asdict(features) | {"score": reference.score(features)})
                measured.append(features)
                patches.append(hu)
    if not measured:
        raise InputError(
            f"{catalogue.path}: of {len(places)} samples no nodule is large and distinct enough. Take more `samples`."
        )
    table = pd.DataFrame(rows)
    order = table["score"].argsort(kind="stable")[::-1].to_numpy()
    worst = [patches[index] for index in order[: _ROWS * _COLUMNS]]
    return BoundaryReport(table.iloc[order], reference.compare(measured), worst)


def write_boundary_report(report: BoundaryReport, out: Path) -> None:
    """Writes `boundary.csv` (a row for each nodule), `boundary.json` (the features) and `worst.png` (worst first)."""
    table = report.nodules.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_text(out / "boundary.csv", table)
    scores = report.nodules["score"]
    summary = {
        "format": FORMAT,
        "nodules": len(scores),
        "median_score": float(scores.median()),
        "share_up_to_1": float((scores <= 1).mean()),
        "features": report.features,
    }
    write_json(out / "boundary.json", summary)
    write_picture(out / "worst.png", _montage(report.worst))


def _montage(patches: Sequence[np.ndarray]) -> Image.Image:
    missing = -len(patches) % _COLUMNS
    tiles = np.stack([DISPLAY_WINDOW.to_grey(hu) for hu in patches])
    tiles = np.concatenate([tiles, np.zeros((missing, *tiles.shape[1:]), np.uint8)])
    larger = repeat(tiles, "n h w -> n (h a) (w b)", a=_ENLARGE, b=_ENLARGE)
    return Image.fromarray(rearrange(larger, "(r c) h w -> (r h) (c w)", c=_COLUMNS))
