"""What a detector's answers mean: which nodules it found, what else it marked, and the figures that follow.

A candidate hits the nodule when its centre lies within the nodule's radius of its centre (at least 2 mm, as LUNA16
counts), or on its outline grown by 2 mm, or, of a mask, when its piece touches the nodule. A candidate apart from it
counts as caused by the insertion when nothing was marked near its place in the pair without the nodule.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from lungsynth.compositing.render import Renderer
from lungsynth.hounsfield import Label
from lungsynth.trial.design import FACTORS, TrialDesign, level_label
from lungsynth.trial.detections import Detection, TrialImage
from lungsynth.trial.samples import TrialSample
from lungsynth.trial.statistics import Comparison, Curve, Interaction, Interval, Trials, compare, holm, interval_of
from lungsynth.types import MIN_HIT_RADIUS_MM

__all__ = [
    "DetectorAnswers",
    "JudgedDetector",
    "Outcome",
    "Pair",
    "Place",
    "Truth",
    "compare_detectors",
    "judge",
    "operating_point_at",
    "record_of",
]

_GROWN_MM = 2.0
_SAME_PLACE_MM = 5.0  # two candidates so near to each other mark the same thing
_DIGITS = 4  # of places and probabilities that are kept
_LEAST = 5  # pairs of a cell, with fewer its sensitivity says little
_HIT = 5  # index of a record's column

Record = Mapping[str, Any]  # `name`, and `candidates` (slice, row, column, diameter_mm, probability, hit) or `error`


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a nodule was put.

    Args:
        centre: (slice, row, column) in voxels.
        diameter_mm: of the disc or sphere of equal size.
    """

    centre: tuple[float, float, float]
    diameter_mm: float

    @property
    def hit_mm(self) -> float:
        """From its centre, within which a candidate hits."""
        return max(self.diameter_mm / 2, MIN_HIT_RADIUS_MM)


class Truth(NamedTuple):
    """A nodule: its place, and its mask (D, H, W)."""

    place: Place
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A pair at an operating point.

    Args:
        score: the highest probability of what hits the nodule, 0 without; None where the detector failed.
        found: whether that reaches the operating point.
        marked_without: whether something at its place reaches it without the nodule; None where that is not known.
        caused: candidates that the insertion caused elsewhere; likewise.
        lost: candidates elsewhere that vanished with it; likewise.
        error: why there is no answer.
    """

    score: float | None
    found: bool | None
    marked_without: bool | None = None
    caused: int | None = None
    lost: int | None = None
    error: str | None = None


def record_of(image: TrialImage, answer: Detection | str, truth: Truth | None) -> dict[str, Any]:
    """An answer as it is kept: the candidates with whether each hits, or the reason why there are none."""
    if isinstance(answer, str):
        return {"name": image.name, "error": answer}
    hits = np.zeros(len(answer.candidates)) if truth is None else _hits(answer, truth, image.spacing_mm)
    table = np.hstack([np.asarray(answer.candidates, dtype=np.float64), hits[:, None]])
    order = np.argsort(-table[:, 4], kind="stable")
    return {"name": image.name, "candidates": np.round(table[order], _DIGITS).tolist()}


def judge(
    with_nodule: Record, without: Record | None, place: Place, spacing_mm: Sequence[float], *, point: float
) -> Outcome:
    """What a pair's two records say.

    Args:
        with_nodule: of the slice with the nodule.
        without: of the slice without; None where that was not asked.
        place: of the nodule.
        spacing_mm: (slice, row, column).
        point: probability from which on a candidate counts.
    """
    if "error" in with_nodule:
        return Outcome(score=None, found=None, error=str(with_nodule["error"]))
    table = _table(with_nodule)
    hit = table[:, _HIT] > 0
    score = float(table[hit, 4].max()) if hit.any() else 0.0
    if without is None or "error" in without:
        return Outcome(score=score, found=score >= point and bool(hit.any()))
    other = _table(without)
    others = table[~hit & (table[:, 4] >= point)]
    counted = other[other[:, 4] >= point]
    on_nodule = _distances(counted, np.array([place.centre]), spacing_mm)[:, 0] <= place.hit_mm
    elsewhere = counted[~on_nodule]
    return Outcome(
        score=score,
        found=score >= point and bool(hit.any()),
        marked_without=bool(on_nodule.any()),
        caused=_unmatched(others, counted, spacing_mm),
        lost=_unmatched(elsewhere, table[table[:, 4] >= point], spacing_mm),
    )


def operating_point_at(without: Sequence[Record], rate: float) -> float:
    """The lowest probability at which slices without a nodule have at most `rate` candidates on average."""
    answered = [record for record in without if "error" not in record]
    allowed = int(rate * len(answered) + 1e-9)
    scores = sorted((row[4] for record in answered for row in record["candidates"]), reverse=True)
    return float(np.nextafter(scores[allowed], 2.0)) if len(scores) > allowed else 0.0


def _table(record: Record) -> np.ndarray:
    return np.array(record["candidates"], dtype=np.float64).reshape(-1, _HIT + 1)


def _hits(answer: Detection, truth: Truth, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    candidates = np.asarray(answer.candidates, dtype=np.float64)
    near = _distances(candidates, np.array([truth.place.centre]), spacing_mm)[:, 0] <= truth.place.hit_mm
    grown = ndimage.distance_transform_edt(~truth.mask, sampling=spacing_mm) <= _GROWN_MM
    at = tuple(
        np.clip(np.rint(candidates[:, axis]).astype(int), 0, size - 1) for axis, size in enumerate(truth.mask.shape)
    )
    hits = near | grown[at]
    if answer.pieces is not None:
        touching = np.unique(answer.pieces[truth.mask])
        hits |= np.isin(np.arange(1, len(candidates) + 1), touching)
    return np.asarray(hits, dtype=np.float64)


def _distances(first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mm between places, (first, second)."""
    apart = (first[:, None, :3] - second[None, :, :3]) * np.asarray(spacing_mm)
    return np.asarray(np.sqrt((apart**2).sum(axis=-1)))


def _unmatched(rows: np.ndarray, others: np.ndarray, spacing_mm: Sequence[float]) -> int:
    """How many rows have none of the others at their place."""
    if not len(rows) or not len(others):
        return len(rows)
    reach = np.maximum(_SAME_PLACE_MM, np.maximum(rows[:, None, 3], others[None, :, 3]) / 2)
    return int((~(_distances(rows, others, spacing_mm) <= reach).any(axis=1)).sum())


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row of `pairs.csv`.

    Args:
        id: of the recipe and of the slice with the nodule.
        host: name of the slice.
        patient: a number.
        replicate: which nodule of its cell on its host.
        levels: of each factor, in words.
        diameter_mm: measured on the label map.
        distance_mm: from the nodule's centre to the pleura.
        contrast_hu: by how much the nodule made its pixels denser, mean.
        row_px, col_px: of its centre.
        row_mm, column_mm: spacing of the slice.
    """

    id: str
    host: str
    patient: int
    replicate: int
    levels: Mapping[str, str]
    measured_diameter_mm: float
    centre_distance_mm: float
    measured_contrast_hu: float
    row_px: float
    col_px: float
    row_mm: float
    column_mm: float

    @property
    def place(self) -> Place:
        """Of its nodule."""
        return Place(centre=(0.0, self.row_px, self.col_px), diameter_mm=self.measured_diameter_mm)

    @classmethod
    def measured(cls, sample: TrialSample, renderer: Renderer, *, patient: int) -> "Pair":
        """Of a sample, rendered."""
        made, lung = renderer.render(sample.recipe), renderer.lung(sample.recipe)
        inside = made.label == Label.NODULE
        nodule = sample.recipe.nodules[0]
        return cls(
            id=sample.id,
            host=sample.host,
            patient=patient,
            replicate=sample.replicate,
            levels=sample.labels,
            measured_diameter_mm=made.annotations[0].diameter_mm,
            centre_distance_mm=nodule.distance_mm,
            measured_contrast_hu=float((made.image[inside].astype(np.float64) - lung.image[inside]).mean()),
            row_px=nodule.row_px,
            col_px=nodule.col_px,
            row_mm=renderer.spacing_mm(sample.recipe)[0],
            column_mm=renderer.spacing_mm(sample.recipe)[1],
        )

    @classmethod
    def of(cls, row: Mapping[str, Any], design: TrialDesign) -> "Pair":
        """Of a row of the file."""
        values = {key: value for key, value in row.items() if key not in design.factors}
        return cls(levels={name: str(row[name]) for name in design.factors}, **values)

    def to_row(self) -> dict[str, Any]:
        """As it stands in the file: a column a factor."""
        own = asdict(self)
        levels = own.pop("levels")
        head = {name: own.pop(name) for name in ("id", "host", "patient", "replicate")}
        return {**head, **levels, **own}


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectorAnswers:
    """All that a detector answered.

    Args:
        name: of the detector.
        records: by the name of the image, see `outcomes`.
        without: for each pair the name of its slice without the nodule.
        operating_point: probability from which on a candidate counts.
    """

    name: str
    records: Mapping[str, Mapping[str, Any]]
    without: Mapping[str, str]
    operating_point: float


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedDetector:
    """A detector's outcomes, and the figures that follow from them.

    Args:
        answers: all that it answered.
        pairs: all.
        design: of the trial.
        seed: of the draws.
        rate: candidates on a slice without nodules that decide its operating point; None for its own.
    """

    answers: DetectorAnswers
    pairs: Sequence[Pair]
    design: TrialDesign
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        """Of the detector."""
        return self.answers.name

    @cached_property
    def point(self) -> float:
        """Probability from which on a candidate counts."""
        if self.rate is None:
            return self.answers.operating_point
        names = sorted(set(self.answers.without.values()))
        return operating_point_at([self.answers.records[name] for name in names], self.rate)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Of each pair."""
        records, made = self.answers.records, []
        for pair in self.pairs:
            without = records[self.answers.without[pair.id]]
            spacing_mm = (1.0, pair.row_mm, pair.column_mm)
            made.append(judge(records[pair.id], without, pair.place, spacing_mm, point=self.point))
        return made

    @cached_property
    def found(self) -> list[float]:
        """Of each pair 1 or 0; NaN where there was no answer."""
        return [float("nan") if outcome.found is None else float(outcome.found) for outcome in self.outcomes]

    @cached_property
    def trials(self) -> Trials:
        """The pairs as trials of the design's factors."""
        names = self.design.factors
        return Trials(
            self.found,
            [str(pair.patient) for pair in self.pairs],
            {name: [pair.levels[name] for pair in self.pairs] for name in names},
            {name: [level_label(level) for level in levels] for name, levels in names.items()},
            seed=self.seed,
        )

    @cached_property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """For each numeric factor that is varied: over all pairs, and at each texture."""
        curves: dict[str, dict[str, Curve]] = {}
        for name in self.design.varied:
            if (scale := FACTORS[name].curve) is None:
                continue
            numbers = [float(level) for level in self.design.factors[name]]  # type: ignore[arg-type]
            fit = {"all": self.trials.curve(name, numbers, log=scale == "log")}
            if "texture" in self.design.varied:
                for code, texture in enumerate(self.trials.order["texture"]):
                    chosen = self.trials.codes["texture"] == code
                    fit[texture] = self.trials.curve(name, numbers, log=scale == "log", chosen=chosen)
            curves[name] = fit
        return curves

    @cached_property
    def interactions(self) -> list[tuple[Interaction, float | None]]:
        """Of varied factors with their corrected p, the clearest first."""
        found = [self.trials.interaction(a, b) for a, b in itertools.combinations(self.design.varied, 2)]
        kept = [interaction for interaction in found if interaction]
        tested = list(zip(kept, holm([interaction.p for interaction in kept]), strict=True))
        return sorted(tested, key=lambda item: (1.0 if item[1] is None else item[1], item[0].factors))

    @cached_property
    def cells(self) -> list[tuple[dict[str, str], Interval]]:
        """All cells of varied factors with enough pairs, the worst first."""
        varied = self.design.varied
        keys = [tuple(pair.levels[name] for name in varied) for pair in self.pairs]
        answered = [key for key, found in zip(keys, self.found, strict=True) if np.isfinite(found)]
        cells = []
        least = min(_LEAST, max(Counter(answered).values(), default=0))
        for key in sorted(set(answered)):
            chosen = np.array([own == key for own in answered])
            if chosen.sum() >= least:
                cells.append((dict(zip(varied, key, strict=True)), self.trials.sensitivity(chosen)))
        return sorted(cells, key=lambda cell: (cell[1].value or 0.0, list(cell[0].values())))

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Of `report.json`."""
        errors = Counter(outcome.error for outcome in self.outcomes if outcome.error)
        failed_without = sum("error" in self.answers.records[name] for name in set(self.answers.without.values()))
        known = [outcome for outcome in self.outcomes if outcome.caused is not None]
        return {
            "operating_point": self.point,
            "sensitivity": asdict(self.trials.sensitivity()),
            "failed": sum(errors.values()),
            "failed_without": failed_without,
            "sensitivity_with_failures_missed": _mean([found == 1.0 for found in self.found]),
            "candidates_a_slice_without": self._candidates_without(),
            "marked_without_share": _mean([bool(outcome.marked_without) for outcome in known]),
            "caused_share": asdict(self.caused),
            "lost_share": _mean([(outcome.lost or 0) > 0 for outcome in known]),
            "factors": {
                name: {
                    "levels": {level: asdict(own) for level, own in self.trials.by_level(name).items()},
                    "p": self.trials.effect_p(name),
                }
                for name in self.design.varied
            },
            "curves": {
                name: {key: _curve_json(curve) for key, curve in fit.items()} for name, fit in self.curves.items()
            },
            "interactions": [{**asdict(own), "p_holm": p} for own, p in self.interactions],
            "cells": [{"levels": levels, **asdict(own)} for levels, own in self.cells],
            "errors": dict(sorted(errors.items())),
        }

    def _candidates_without(self) -> float | None:
        records = [self.answers.records[name] for name in sorted(set(self.answers.without.values()))]
        counts = [
            sum(row[4] >= self.point for row in record["candidates"]) for record in records if "error" not in record
        ]
        return _mean(counts)

    @cached_property
    def caused(self) -> Interval:
        """Share of pairs in which the insertion caused a candidate elsewhere."""
        values = [float("nan") if outcome.caused is None else float(outcome.caused > 0) for outcome in self.outcomes]
        if not np.isfinite(values).any():
            return interval_of(np.zeros(0), 0)
        return Trials(values, [str(pair.patient) for pair in self.pairs], {}, {}, seed=self.seed).sensitivity()


def compare_detectors(detectors: Sequence[JudgedDetector], design: TrialDesign, *, seed: int) -> dict[str, Any]:
    """The `comparison` of `report.json`: of two detectors, over all pairs and at each level of the varied factors."""
    first, second = detectors
    patients = [str(pair.patient) for pair in first.pairs]

    def of(chosen: Sequence[bool]) -> dict[str, Any] | None:
        both = [[hit if own else np.nan for hit, own in zip(side.found, chosen, strict=True)] for side in detectors]
        compared = compare(both[0], both[1], patients, seed=seed)
        return asdict(compared) if isinstance(compared, Comparison) else None

    return {
        "first": first.name,
        "second": second.name,
        "all": of([True] * len(patients)),
        "factors": {
            name: {
                label: of([pair.levels[name] == label for pair in first.pairs])
                for label in map(level_label, design.factors[name])
            }
            for name in design.varied
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _curve_json(curve: Curve) -> dict[str, Any]:
    points = {f"{level:g}": asdict(point) for level, point in curve.points.items()}
    return {"offset": curve.offset, "slope": curve.slope, "log": curve.log, "tested": list(curve.tested), "at": points}
