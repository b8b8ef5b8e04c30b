"""From the records of a method to its figures: Table I's row, by size, by category, on composites and on scans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.metrics.bootstrap import Estimate, Estimates, estimate_ratio
from evaluation.metrics.dice import pixel_estimates
from evaluation.metrics.froc import Froc
from evaluation.metrics.matching import Case, ReferenceNodule
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.records import SegmentationResult
from evaluation.segmentation.windows import WindowRecords, found_at, window_estimates

__all__ = ["MIN_LESIONS", "SIZES_MM", "SegmentationFigures", "measure_result"]

SIZES_MM: Mapping[str, tuple[float, float]] = {  # diameters, lower bound included
    "3-6 mm": (3, 6),
    "6-10 mm": (6, 10),
    "10-20 mm": (10, 20),
    "> 20 mm": (20, float("inf")),
}
MIN_LESIONS = 5  # of scans, for a CPM: with fewer, one lesion moves it by more than 0.2

# Each headline figure is taken from the first kind of images that has it.
_HEADLINE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "sensitivity_at_0.5": (("windows", "sensitivity_at_0.5"),),
    "sensitivity": (("crops", "sensitivity"),),
    "nodules_per_scan": (("scans", "nodules_per_scan"),),
    "accuracy": (("crops", "accuracy"),),
    "balanced_accuracy": (("crops", "balanced_accuracy"),),
    "dice": (("crops", "dice"),),
    "cpm": (("scans", "cpm"), ("composites", "cpm")),
    "false_positives_per_slice": (("composites", "false_positives"),),
    "false_positives_per_scan": (("scans", "false_positives"),),
    "seconds_per_scan": (("scans", "seconds_per_scan"),),
    "lung_dice": (("scans", "lung_dice"),),
}


@dataclass(frozen=True, kw_only=True)
class SegmentationFigures:
    """All figures of a method.

    Args:
        headline: Table I's columns; a name is missing where there is no such figure.
        origin: the images that each headline figure comes from: `windows`, `crops`, `composites`, `scans`.
        windows: sensitivity at rates of false positives per 100 cm2, and Dice.
        windows_by_group: sensitivity at one false positive per 100 cm2, by diameter and texture class.
        crops: of the crops, also with one reader's pixels ignored.
        by_size: sensitivity, balanced accuracy and Dice on the crops by diameter.
        by_category: likewise by texture class.
        composites: sensitivity and false positives at the operating point, sensitivity at 1 a slice, CPM.
        scans: the same for each scan, with counts.
        probability_at_one: the probability at which one false positive for each composite is left.
    """

    headline: Estimates
    origin: dict[str, str]
    windows: Estimates = field(default_factory=dict)
    windows_by_group: dict[str, Estimate] = field(default_factory=dict)
    crops: Estimates = field(default_factory=dict)
    by_size: dict[str, Estimates] = field(default_factory=dict)
    by_category: dict[str, Estimates] = field(default_factory=dict)
    composites: Estimates = field(default_factory=dict)
    scans: Estimates = field(default_factory=dict)
    probability_at_one: float | None = None

    @property
    def by_group(self) -> dict[str, Estimates]:
        """By size, then by category."""
        return {**self.by_size, **self.by_category}


def measure_result(result: SegmentationResult, *, seed: int) -> SegmentationFigures:
    """Computes the figures of a method's records.

    Args:
        result: the records.
        seed: of the bootstrap.
    """
    point = result.operating_point

    def of_group(belongs: Callable[[ReferenceNodule], bool]) -> Estimates:
        return _crop_figures(_select_crops(result.crops, belongs), point, seed=seed)

    crops = _crop_figures(result.crops, point, seed=seed)
    composites = Froc(result.composites).estimates(point, seed=seed) if result.composites else {}
    scans = _scan_figures(result, seed=seed)
    windows = window_estimates(result.windows, seed=seed)
    headline, origin = _headline({"windows": windows, "crops": crops, "composites": composites, "scans": scans})
    categories = sorted({nodule.category for case in result.crops.cases for nodule in case.nodules})
    return SegmentationFigures(
        headline=headline,
        origin=origin,
        windows=windows,
        windows_by_group=_window_groups(result.windows, seed=seed),
        crops=crops,
        by_size={name: of_group(_is_sized(*bounds)) for name, bounds in SIZES_MM.items()},
        by_category={name: of_group(_is_of(name)) for name in categories},
        composites=composites,
        scans=scans,
        probability_at_one=_probability_at_one(result),
    )


def _window_groups(records: WindowRecords, *, seed: int) -> dict[str, Estimate]:
    found = found_at(records, 1.0) if records.cases else []
    categories = sorted({nodule.category for nodule, _ in found})
    groups = {name: _is_sized(*bounds) for name, bounds in SIZES_MM.items()}
    groups |= {name: _is_of(name) for name in categories}
    estimates = {}
    for name, belongs in groups.items():
        own = [(nodule.patient, float(hit)) for nodule, hit in found if belongs(nodule)]
        if own:
            owners, hits = zip(*own, strict=True)
            estimates[name] = estimate_ratio(owners, hits, [1.0] * len(hits), seed=seed)
    return estimates


def _probability_at_one(result: SegmentationResult) -> float | None:
    """From which on a composite has one false positive; None where no probability gives that."""
    at_one = Froc(result.composites).threshold_at(1.0) if result.composites else 2.0
    return at_one if at_one <= 1 else None


def _crop_figures(records: CropRecords, point: float, *, seed: int) -> Estimates:
    figures: Estimates = {}
    if records.cases:
        figures["sensitivity"] = _sensitivity(records.cases, point, seed=seed)
    if records.off_centre:
        figures["sensitivity_off_centre"] = _sensitivity(records.off_centre, point, seed=seed)
    if records.pixels:
        figures |= pixel_estimates(records.pixels, seed=seed)
    if records.pixels_ignored:
        ignored = pixel_estimates(records.pixels_ignored, seed=seed)
        figures |= {f"{name}_one_vote_ignored": figure for name, figure in ignored.items()}
    return figures


def _sensitivity(cases: Sequence[Case], point: float, *, seed: int) -> Estimate:
    nodules = [nodule for case in cases for nodule in case.nodules]
    hits = [nodule.is_found(point) for nodule in nodules]
    return estimate_ratio([nodule.patient for nodule in nodules], hits, [1] * len(hits), seed=seed)


def _is_sized(low_mm: float, high_mm: float) -> Callable[[ReferenceNodule], bool]:
    return lambda nodule: low_mm <= nodule.diameter_mm < high_mm


def _is_of(category: str) -> Callable[[ReferenceNodule], bool]:
    return lambda nodule: nodule.category == category


def _select_crops(records: CropRecords, belongs: Callable[[ReferenceNodule], bool]) -> CropRecords:
    cases = tuple(case for case in records.cases if any(belongs(nodule) for nodule in case.nodules))
    ids = {case.id for case in cases}
    return CropRecords(cases=cases, pixels=tuple(count for count in records.pixels if count.nodule in ids))


def _scan_figures(result: SegmentationResult, *, seed: int) -> Estimates:
    """Of the scans whose lesions are known; candidates and seconds of the others where there are none."""
    scans = result.scans
    figures = Froc(scans.cases).estimates(result.operating_point, seed=seed) if scans.cases else {}
    if timed := scans.cases or scans.unknown:
        figures["nodules_per_scan"] = _mean(timed, [case.marked for case in timed], seed=seed)
        figures["seconds_per_scan"] = _mean(timed, [case.seconds for case in timed], seed=seed)
        figures["slices_per_scan"] = _mean(timed, [case.slices for case in timed], seed=seed)
    if scans.lungs:
        owners, dices = [score.patient for score in scans.lungs], [score.dice for score in scans.lungs]
        figures["lung_dice"] = estimate_ratio(owners, dices, [1] * len(dices), seed=seed)
    return figures


def _mean(cases: Sequence[Case], values: Sequence[float], *, seed: int) -> Estimate:
    return estimate_ratio([case.patient for case in cases], values, [1] * len(values), seed=seed)


def _headline(groups: Mapping[str, Estimates]) -> tuple[Estimates, dict[str, str]]:
    """The headline figures, and the images that each comes from."""
    headline: Estimates = {}
    origin: dict[str, str] = {}
    for name, sources in _HEADLINE.items():
        for images, key in sources:
            figure = groups[images].get(key)
            if figure and figure.value is not None and _is_meaningful(images, key, figure):
                headline[name], origin[name] = figure, images
                break
    return headline, origin


def _is_meaningful(images: str, key: str, figure: Estimate) -> bool:
    return (images, key) != ("scans", "cpm") or figure.n >= MIN_LESIONS
