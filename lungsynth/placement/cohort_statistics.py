"""What a cohort's training part says of real nodules: where they lie, how far from the edge, how large, how many."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from lungsynth.cohort.reader import CohortSplit
from lungsynth.cohort.schema import DiseasedEntry
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.lidc_presence import expected_distances, lidc_nodules_per_slice, lidc_presence
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.policy import DISTANCE_EDGES_MM, SIZE_EDGES_MM, TargetDistribution, distance_class, size_class
from lungsynth.placement.presence import PresencePrior, fit_presence

__all__ = ["NoduleStatistics", "measure_nodules"]

_SLICES_PER_SERIES = 4
_MEASURED_SLICES = 200
_PRIOR_NODULES = 50  # what is known of other nodules counts as so many of the cohort's

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class NoduleStatistics:
    """Nodules of a cohort's training part.

    Args:
        points: (u, v) of nodules on slices whose lungs are outlined; each nodule is seen on a few slices.
        weights: a series counts as one nodule's worth.
        distance_mm: of those nodules' centres to the edge of the lung.
        per_slice: slices with 1, 2, ... nodules.
        diameters_mm: by category, of all nodules.
    """

    points: Float64[np.ndarray, "points 2"]
    weights: Float64[np.ndarray, " points"]
    distance_mm: Float64[np.ndarray, " points"]
    per_slice: Counter[int]
    diameters_mm: dict[str, list[float]]

    def presence(self, lungs: Sequence[LungShape]) -> PresencePrior:
        """LIDC-IDRI's density on these lungs, which counts as `_PRIOR_NODULES`, with the cohort's own positions."""
        prior = lidc_presence(lungs)
        return fit_presence(self.points, weights=self.weights, prior=prior, prior_points=_PRIOR_NODULES)

    def counts(self) -> dict[int, float]:
        """Share of slices with 1, 2, 3 nodules: LIDC-IDRI's, worth `_PRIOR_NODULES` slices, and the cohort's."""
        known = lidc_nodules_per_slice()
        sums = {count: _PRIOR_NODULES * known.get(count, 0.0) + self.per_slice[count] for count in (1, 2, 3)}
        return {count: round(value / sum(sums.values()), 4) for count, value in sums.items()}

    def diameter_range_mm(self, category: str) -> tuple[float, float] | None:
        """The measured range of a category's diameters; None when nothing is known."""
        found = self.diameters_mm.get(category)
        return (min(found), max(found)) if found else None

    def target(self, category: str, prior: PresencePrior, lungs: Sequence[LungShape]) -> TargetDistribution | None:
        """Distribution of a category's real nodules; None when the cohort has none of them.

        Few cohorts outline lungs and nodules on the same slices, so the distances that the prior gives on these lungs
        count as `_PRIOR_NODULES`, and measured ones are taken for all categories alike.
        """
        sizes = self.diameters_mm.get(category)
        if not sizes:
            return None
        measured = np.bincount(
            distance_class(self.distance_mm), weights=self.weights, minlength=len(DISTANCE_EDGES_MM) + 1
        )
        return TargetDistribution(
            distance=measured + _PRIOR_NODULES * expected_distances(prior, lungs),
            size=np.bincount(size_class(np.array(sizes)), minlength=len(SIZE_EDGES_MM) + 1).astype(np.float64),
        )


def measure_nodules(cohort: CohortSplit | None) -> NoduleStatistics:
    """Measures a cohort; without one, nothing is known."""
    points, per_slice = list[tuple[float, float, float, float]](), Counter[int]()
    diameters: dict[str, list[float]] = defaultdict(list)
    for nodule in cohort.nodules() if cohort else ():
        if not np.isnan(nodule.diameter_mm):
            diameters[nodule.category].append(nodule.diameter_mm)
    for entries in _some_slices(cohort.diseased() if cohort else ()):
        found = [nodules for entry in entries if cohort and (nodules := list(_points(cohort, entry)))]
        per_slice.update(len(nodules) for nodules in found)
        seen = sum(len(nodules) for nodules in found)
        most = max((len(nodules) for nodules in found), default=0)
        points += [(u, v, distance, most / seen) for nodules in found for u, v, distance in nodules]
    table = np.array(points, dtype=np.float64).reshape(-1, 4)
    return NoduleStatistics(
        points=table[:, :2],
        distance_mm=table[:, 2],
        weights=table[:, 3],
        per_slice=per_slice,
        diameters_mm=dict(diameters),
    )


def _some_slices(entries: Sequence[DiseasedEntry]) -> Iterator[list[DiseasedEntry]]:
    """A few slices of each series, evenly spread; neighbours show the same nodule."""
    series: dict[str, list[DiseasedEntry]] = defaultdict(list)
    for entry in entries:
        series[entry.series_id or entry.image].append(entry)
    left = _MEASURED_SLICES
    for slices in series.values():
        places = np.unique(np.linspace(0, len(slices) - 1, min(_SLICES_PER_SERIES, len(slices))).astype(int))
        if left <= 0:
            return
        left -= len(places)
        yield [slices[int(place)] for place in places]


def _points(cohort: CohortSplit, entry: DiseasedEntry) -> Iterator[tuple[float, float, float]]:
    """(u, v, distance in mm) of the nodules of a slice; none where its lungs were not outlined."""
    try:
        _, label, affine = cohort.cohort.read_slice(entry)
    except InputError as error:
        _logger.warning("left out of the measurement of real nodules: %s", error)
        return
    if not (label == Label.LUNG).any():
        return
    columns_mm, rows_mm = (float(value) for value in np.linalg.norm(affine[:3, :2], axis=0))
    inside = (label == Label.LUNG) | (label == Label.NODULE)
    shape = LungShape.from_mask(inside, spacing_mm=(rows_mm, columns_mm))
    nodules, count = ndimage.label(label == Label.NODULE)
    centres = np.array(ndimage.center_of_mass(nodules > 0, nodules, np.arange(1, count + 1))).reshape(-1, 2)
    u, v = shape.to_unit(centres[:, 0], centres[:, 1])
    distances = shape.distance_mm(centres[:, 0], centres[:, 1])
    yield from zip(u.tolist(), v.tolist(), distances.tolist(), strict=True)
