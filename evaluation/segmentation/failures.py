"""The largest errors of a method, each with one sentence made from the facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, FalsePositive, Point, ReferenceNodule
from evaluation.segmentation.records import SegmentationResult

__all__ = ["Failure", "largest_failures"]

_EACH = {"crop": 6, "outline": 6, "composite": 4, "scan": 4, "alarm": 4, "lung": 2}  # pictures of each kind
_SMALLEST_OUTLINED_MM = 6.0  # a pixel more or less decides the Dice of smaller ones
_GOOD_DICE = 0.8  # readers agree no better
_SAME_PX = 8
_TEXTURES = {
    "ground_glass": "ground-glass nodule",
    "part_solid": "part-solid nodule",
    "solid": "solid nodule",
    "unknown": "nodule of unknown texture",
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One error.

    Args:
        image: where it happened.
        case: id of the crop, composite or series.
        sentence: what happened, without any id.
        centre: (slice, row, column) to look at, in the image's voxels.
        diameter_mm: of what lies there; 0 for a whole slice.
    """

    image: Literal["crop", "composite", "scan", "lung"]
    case: str
    sentence: str
    centre: Point
    diameter_mm: float


def largest_failures(outcome: SegmentationResult) -> list[Failure]:
    """The largest nodules missed, the worst outlines, the most probable false alarms, and the worst lungs."""
    point = outcome.operating_point
    found = [
        *_first(_missed(outcome.crops.cases, "crop", point), _EACH["crop"]),
        *_outlines(outcome, point)[: _EACH["outline"]],
        *_first(_missed(outcome.composites, "composite", point), _EACH["composite"]),
        *_first(_missed(outcome.scans.cases, "scan", point), _EACH["scan"]),
        *_apart(_first(_alarms(outcome.composites, "composite", point), None))[: _EACH["alarm"]],
        *_first(_alarms(outcome.scans.cases, "scan", point), _EACH["alarm"]),
        *_lungs(outcome)[: _EACH["lung"]],
    ]
    return found


def _first(found: Iterator[tuple[float, Failure]], count: int | None) -> list[Failure]:
    return [failure for _, failure in sorted(found, key=lambda item: -item[0])[:count]]


def _apart(failures: Sequence[Failure]) -> list[Failure]:
    """One of those at the same place: a lung carries several composites, and its false alarm comes with each."""
    places: dict[tuple[int, int], Failure] = {}
    for failure in failures:
        places.setdefault((round(failure.centre[1] / _SAME_PX), round(failure.centre[2] / _SAME_PX)), failure)
    return list(places.values())


def _missed(cases: Sequence[Case], image: Any, point: float) -> Iterator[tuple[float, Failure]]:
    """(diameter, failure) of the lesions that no candidate at the operating point hit."""
    for case in cases:
        for target in case.targets:
            if target.score is None or target.score < point:
                yield (
                    target.diameter_mm,
                    Failure(
                        image=image,
                        case=case.id,
                        sentence=f"Missed on a {image}: a {_named(target)}; {_why_missed(target, point)}.",
                        centre=target.centre,
                        diameter_mm=target.diameter_mm,
                    ),
                )


def _why_missed(target: ReferenceNodule, point: float) -> str:
    if target.score is not None:
        return f"a candidate lies on it, but its probability {target.score:.2f} is below {point:.2f}"
    if target.nearest_mm is None:
        return "there is no candidate at all"
    return (
        f"the nearest candidate lies {target.nearest_mm:.1f} mm from its centre, with probability "
        f"{target.nearest_probability or 0:.2f}"
    )


def _outlines(outcome: SegmentationResult, point: float) -> list[Failure]:
    """Nodules that were found but outlined badly, the worst first."""
    sums: dict[str, list[PixelCounts]] = {}
    for count in outcome.crops.pixels:
        sums.setdefault(count.nodule, []).append(count)
    scored = []
    for case in outcome.crops.cases:
        target = case.targets[0]
        counts = sums.get(case.id, [])
        if (
            counts
            and target.score is not None
            and target.score >= point
            and target.diameter_mm >= _SMALLEST_OUTLINED_MM
        ):
            scored.append(_outline(case, target, counts))
    return [failure for value, failure in sorted(scored, key=lambda item: item[0]) if value < _GOOD_DICE]


def _outline(case: Case, target: ReferenceNodule, counts: Sequence[PixelCounts]) -> tuple[float, Failure]:
    true, false, lost = (
        sum(getattr(count, name) for count in counts) for name in ("true_positive", "false_positive", "false_negative")
    )
    dice = 2 * true / (2 * true + false + lost)
    sentence = (
        f"Dice {dice:.2f} on a crop: of a {_named(target)}, {lost / (true + lost):.0%} of the pixels are missed, and "
        f"{false / (true + lost):.0%} as many lie outside."
    )
    return dice, Failure(
        image="crop", case=case.id, sentence=sentence, centre=target.centre, diameter_mm=target.diameter_mm
    )


def _alarms(cases: Sequence[Case], image: Any, point: float) -> Iterator[tuple[float, Failure]]:
    """(probability, failure) of the most probable false alarm of each image."""
    for case in cases:
        if case.alarms and case.alarms[0].probability >= point:
            alarm = case.alarms[0]
            yield (
                alarm.probability,
                Failure(
                    image=image,
                    case=case.id,
                    sentence=f"False alarm on a {image}: probability {alarm.probability:.2f}, "
                    f"{alarm.diameter_mm:.1f} mm{_distance(alarm)}.",
                    centre=alarm.centre,
                    diameter_mm=alarm.diameter_mm,
                ),
            )


def _distance(alarm: FalsePositive) -> str:
    return "" if alarm.nearest_mm is None else f", {alarm.nearest_mm:.0f} mm from the nearest nodule"


def _lungs(outcome: SegmentationResult) -> list[Failure]:
    return [
        Failure(
            image="lung",
            case=score.series,
            sentence=f"Lungs: Dice {score.worst_dice:.3f} on the worst slice of a scan of Dice {score.dice:.3f}.",
            centre=(float(score.worst_slice), 0.0, 0.0),
            diameter_mm=0.0,
        )
        for score in sorted(outcome.scans.lungs, key=lambda score: score.worst_dice)
    ]


def _named(target: ReferenceNodule) -> str:
    return f"{_TEXTURES.get(target.category, target.category)} of {target.diameter_mm:.1f} mm"
