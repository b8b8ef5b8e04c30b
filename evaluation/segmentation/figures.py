"""From the records of a method to its figures: Table I's row, by size, by class, on composites and on scans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from evaluation.metrics.bootstrap import Estimate, estimate_ratio
from evaluation.metrics.dice import pixel_estimates
from evaluation.metrics.froc import Froc
from evaluation.metrics.matching import Case, ReferenceNodule
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.records import SegmentationResult

__all__ = ["FEWEST_LESIONS", "SIZES_MM", "Figures", "measure"]

SIZES_MM: Mapping[str, tuple[float, float]] = {
    "3-6 mm": (3, 6),
    "6-10 mm": (6, 10),
    "10-20 mm": (10, 20),
    "> 20 mm": (20, float("inf")),
}

FEWEST_LESIONS = 5  # of scans, for a CPM that says anything

Group = dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of a method.

    Args:
        headline: Table I's columns; a name is missing where there is no such figure.
        origin: which images each headline figure comes from: `crops`, `composites`, `scans`.
        crops: of the crops, also with one reader's pixels ignored.
        by_size: sensitivity, balanced accuracy and Dice on the crops by diameter.
        by_category: likewise by texture class.
        composites: sensitivity and alarms at the operating point, sensitivity at one alarm a slice, CPM.
        scans: the same a scan, with counts.
        probability_at_one: the probability at which one alarm a slice of the composites is left.
    """

    headline: Group
    origin: dict[str, str]
    crops: Group = field(default_factory=dict)
    by_size: dict[str, Group] = field(default_factory=dict)
    by_category: dict[str, Group] = field(default_factory=dict)
    composites: Group = field(default_factory=dict)
    scans: Group = field(default_factory=dict)
    probability_at_one: float | None = None


def measure(outcome: SegmentationResult, *, seed: int) -> Figures:
    """Computes the figures of a method's records.

    Args:
        outcome: the records.
        seed: of the bootstrap.
    """
    point = outcome.operating_point
    crops = _crop_figures(outcome.crops, point, seed=seed)
    composites = Froc(outcome.composites).estimates(point, seed=seed) if outcome.composites else {}
    scans = _scan_figures(outcome, seed=seed)
    headline, origin = _headline(crops, composites, scans)
    categories = sorted({target.category for case in outcome.crops.cases for target in case.targets})
    return Figures(
        headline=headline,
        origin=origin,
        crops=crops,
        by_size={name: _split_figures(outcome, partial(_is_sized, bounds=b), seed) for name, b in SIZES_MM.items()},
        by_category={name: _split_figures(outcome, partial(_is_of, category=name), seed) for name in categories},
        composites=composites,
        scans=scans,
        probability_at_one=_probability_at_one(outcome),
    )


def _probability_at_one(outcome: SegmentationResult) -> float | None:
    """From which on a composite has one false alarm; None where no probability gives that."""
    at_one = Froc(outcome.composites).threshold_at(1.0) if outcome.composites else 2.0
    return at_one if at_one <= 1 else None


def _crop_figures(records: CropRecords, point: float, *, seed: int) -> Group:
    found: Group = {}
    if records.cases:
        found["sensitivity"] = _sensitivity(records.cases, point, seed=seed)
    if records.off_centre:
        found["sensitivity_off_centre"] = _sensitivity(records.off_centre, point, seed=seed)
    if records.pixels:
        found |= pixel_estimates(records.pixels, seed=seed)
    if records.pixels_ignored:
        ignored = pixel_estimates(records.pixels_ignored, seed=seed)
        found |= {f"{name}_one_vote_ignored": figure for name, figure in ignored.items()}
    return found


def _sensitivity(cases: Sequence[Case], point: float, *, seed: int) -> Estimate:
    targets = [target for case in cases for target in case.targets]
    hits = [target.score is not None and target.score >= point for target in targets]
    return estimate_ratio([target.patient for target in targets], hits, [1] * len(hits), seed=seed)


def _split_figures(outcome: SegmentationResult, wanted: Callable[[ReferenceNodule], bool], seed: int) -> Group:
    return _crop_figures(_crops_of(outcome.crops, wanted), outcome.operating_point, seed=seed)


def _is_sized(target: ReferenceNodule, *, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= target.diameter_mm < bounds[1]


def _is_of(target: ReferenceNodule, *, category: str) -> bool:
    return target.category == category


def _crops_of(records: CropRecords, wanted: Callable[[ReferenceNodule], bool]) -> CropRecords:
    cases = tuple(case for case in records.cases if any(wanted(target) for target in case.targets))
    kept = {case.id for case in cases}
    return CropRecords(cases=cases, pixels=tuple(count for count in records.pixels if count.nodule in kept))


def _scan_figures(outcome: SegmentationResult, *, seed: int) -> Group:
    """Of the scans whose lesions are known; candidates and seconds of the others where there are none."""
    scans, found = outcome.scans, {}
    if scans.cases:
        found = Froc(scans.cases).estimates(outcome.operating_point, seed=seed)
    if timed := scans.cases or scans.unknown:
        found["nodules_per_scan"] = _mean(timed, [case.marked for case in timed], seed=seed)
        found["seconds_per_scan"] = _mean(timed, [case.seconds for case in timed], seed=seed)
        found["slices_per_scan"] = _mean(timed, [case.slices for case in timed], seed=seed)
    if scans.lungs:
        owners, dices = [score.patient for score in scans.lungs], [score.dice for score in scans.lungs]
        found["lung_dice"] = estimate_ratio(owners, dices, [1] * len(dices), seed=seed)
    return found


def _mean(cases: Sequence[Case], values: Sequence[float], *, seed: int) -> Estimate:
    return estimate_ratio([case.patient for case in cases], values, [1] * len(values), seed=seed)


def _headline(crops: Group, composites: Group, scans: Group) -> tuple[Group, dict[str, str]]:
    """Each column from the first kind of images that has it."""
    groups = {"crops": crops, "composites": composites, "scans": scans}
    wanted: dict[str, tuple[tuple[str, str], ...]] = {
        "sensitivity": (("crops", "sensitivity"),),
        "nodules_per_scan": (("scans", "nodules_per_scan"),),
        "accuracy": (("crops", "accuracy"),),
        "balanced_accuracy": (("crops", "balanced_accuracy"),),
        "dice": (("crops", "dice"),),
        "cpm": (("scans", "cpm"), ("composites", "cpm")),
        "false_positives_per_slice": (("composites", "alarms"),),
        "false_positives_per_scan": (("scans", "alarms"),),
        "seconds_per_scan": (("scans", "seconds_per_scan"),),
        "lung_dice": (("scans", "lung_dice"),),
    }
    headline, origin = {}, {}
    for name, places in wanted.items():
        for kind, key in places:
            figure = groups[kind].get(key)
            enough = key != "cpm" or kind != "scans" or (figure and figure.n >= FEWEST_LESIONS)
            if figure and figure.value is not None and enough:
                headline[name], origin[name] = figure, kind
                break
    return headline, origin
