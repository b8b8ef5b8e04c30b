"""How many patients an arm is worth: its figures beside the curve of real patients alone, with intervals.

Seeds and evaluated patients are resampled together, and all arms are compared on the same draws, so that a difference
is paired. What an arm is worth is read off the curve: the sensitivity of real patients alone over the logarithm of
their number, made to rise, straight between its points. It ends with the curve: an arm above it is worth all patients,
one below it the fewest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from evaluation.metrics.bootstrap import RESAMPLES, Estimate, PatientCounts, estimate
from evaluation.metrics.froc import Froc
from evaluation.metrics.matching import Case, ReferenceNodule
from evaluation.segmentation.figures import SIZES_MM
from evaluation.segmentation.windows import RATES_PER_100_CM2, SIDE_PX, rate_per_window
from evaluation.utility.arms import REAL_WINDOWS, WindowArm
from evaluation.utility.detection_runs import CHOOSING_RATE, DetectionRun
from lungsynth.cohort.patches import WINDOW_PX

__all__ = ["FIGURES", "MAIN_FIGURE", "MIDDLE_FIGURE", "WorthRow", "chosen_arms", "power", "worth_rows"]

MAIN_FIGURE = f"sensitivity_at_{CHOOSING_RATE:g}"
_AT_RATES = {f"sensitivity_at_{rate:g}": rate for rate in RATES_PER_100_CM2}
_TEXTURES = {"ground_glass_and_part_solid": ("ground_glass", "part_solid"), "solid": ("solid",)}
_IN_THE_MIDDLE = "false positives in the middle"
FIGURES = (
    *_AT_RATES,
    *(f"{name}, {_IN_THE_MIDDLE}" for name in _AT_RATES),
    *(f"{MAIN_FIGURE}, {name}" for name in (*_TEXTURES, *SIZES_MM)),
    "dice",
)
MIDDLE_FIGURE = f"{MAIN_FIGURE}, {_IN_THE_MIDDLE}"
_COPIES = "copied"
_OF_ALL = 2 * len(_AT_RATES)  # the first figures, those of all nodules
_NEAR_PX = 2
_MIDDLE_PX = (WINDOW_PX // 2 - (WINDOW_PX - SIDE_PX) - _NEAR_PX, WINDOW_PX // 2 + _NEAR_PX)  # where nodules can lie

_Cell = tuple[int, WindowArm]


@dataclass(frozen=True, kw_only=True)
class WorthRow:
    """A figure of an arm with a number of patients.

    Args:
        patients: that trained.
        arm: what was added.
        figure: one of `FIGURES`.
        value: of the figure.
        worth_patients: of real patients alone with the same figure; None for Dice and groups.
        gap_closed: share of the distance from real only to all patients; likewise.
        vs_real_only: difference.
        vs_copy_paste: difference to the copies of the dose that validation patients chose.
        chosen: whether validation patients chose this dose in its family.
        seeds: how many.
        n: nodules.
        own_generator: whether generated nodules come from a generator of these patients alone.
    """

    patients: int
    arm: WindowArm
    figure: str
    value: Estimate
    worth_patients: Estimate | None
    gap_closed: Estimate | None
    vs_real_only: Estimate | None
    vs_copy_paste: Estimate | None
    chosen: bool
    seeds: int
    n: int
    own_generator: bool | None


def chosen_arms(runs: Sequence[DetectionRun]) -> set[_Cell]:
    """The dose of each family, at each number of patients, with the best mean on validation patients; the smaller one
    of equal ones. Arms without a dose are chosen always.
    """
    scores: dict[_Cell, list[float]] = {}
    for run in runs:
        scores.setdefault((run.patients, run.arm), []).append(run.validation)
    best: dict[tuple[int, str], _Cell] = {}
    for cell in sorted(scores, key=lambda cell: (-float(np.mean(scores[cell])), cell[1].dose)):
        best.setdefault((cell[0], cell[1].family), cell)
    return set(best.values())


def worth_rows(runs: Sequence[DetectionRun], *, seed: int, resamples: int = RESAMPLES) -> list[WorthRow]:
    """All figures of all arms.

    Args:
        runs: any; real only is needed at a number of patients for the differences there, and at two for the curve.
        seed: of the draws.
        resamples: number of draws.
    """
    cells = list(dict.fromkeys((run.patients, run.arm) for run in sorted(runs, key=lambda run: run.patients)))
    by_cell = {cell: {run.seed: run for run in runs if (run.patients, run.arm) == cell} for cell in cells}
    chosen = chosen_arms(runs)
    table = _Table(by_cell, chosen)
    estimates = iter(estimate(table.groups, table.statistic, n=table.n, seed=seed, resamples=resamples))
    rows = []
    for cell in cells:
        own = {run.own_generator for run in by_cell[cell].values()}
        for figure in FIGURES:
            value, worth, gap, real, copies = (next(estimates) for _ in range(5))
            is_real = cell[1] == REAL_WINDOWS
            rows.append(
                WorthRow(
                    patients=cell[0],
                    arm=cell[1],
                    figure=figure,
                    value=value,
                    worth_patients=_defined(worth),
                    gap_closed=None if is_real else _defined(gap),
                    vs_real_only=None if is_real else _defined(real),
                    vs_copy_paste=None if cell[1].family == _COPIES else _defined(copies),
                    chosen=cell in chosen,
                    seeds=len(by_cell[cell]),
                    n=value.n,
                    own_generator=None if own == {None} else own == {True},
                )
            )
    return rows


def power(rows: Sequence[WorthRow]) -> dict[str, float]:
    """Half of the widest interval of a difference to real only, by figure and number of patients: what can be seen."""
    widths: dict[str, float] = {}
    for row in rows:
        difference = row.vs_real_only
        if row.figure in (MAIN_FIGURE, MIDDLE_FIGURE) and difference and difference.high is not None:
            name, width = f"{row.figure}, {row.patients} patients", (difference.high - (difference.low or 0)) / 2
            widths[name] = max(widths.get(name, 0.0), width)
    return widths


def _defined(figure: Estimate) -> Estimate | None:
    return None if figure.value is None else figure


class _Table:
    """Figures of all cells as a function of how often seeds and patients are drawn."""

    def __init__(self, runs: Mapping[_Cell, Mapping[int, DetectionRun]], chosen: set[_Cell]) -> None:
        self.cells = list(runs)
        seeds = sorted({number for own in runs.values() for number in own})
        self._figures = [
            {seeds.index(number): _RunFigures(run) for number, run in own.items()} for own in runs.values()
        ]
        one = next(iter(self._figures[0].values()))
        self.groups = [*one.groups, [f"seed {number}" for number in seeds]]
        self.n = [count for _ in self.cells for count in one.n for _ in range(5)]
        self._real = {patients: index for index, (patients, arm) in enumerate(self.cells) if arm == REAL_WINDOWS}
        self._copies = {
            patients: index
            for index, (patients, arm) in enumerate(self.cells)
            if arm.family == _COPIES and (patients, arm) in chosen
        }
        self._n_seeds = len(seeds)

    def statistic(self, counts: PatientCounts) -> list[float]:
        """For each cell and figure: value, worth, gap closed, and the differences to real only and to copies."""
        of_patients, of_seeds = counts[: -self._n_seeds], counts[-self._n_seeds :]
        drawn = [
            {index: (run(of_patients), of_seeds[index]) for index, run in own.items() if of_seeds[index] > 0}
            for own in self._figures
        ]
        values = np.array([_mean(own) for own in drawn])
        results = []
        for index, (patients, _) in enumerate(self.cells):
            real, copies = (
                _difference(drawn[index], drawn[places[patients]]) if patients in places else _mean({})
                for places in (self._real, self._copies)
            )
            worth, gap = self._worth(values, index, real)
            results += np.stack([values[index], worth, gap, real, copies], axis=1).ravel().tolist()
        return [float(value) for value in results]

    def _worth(
        self,
        values: Float64[np.ndarray, "cells figures"],
        index: int,
        vs_real: Float64[np.ndarray, " figures"],
    ) -> tuple[Float64[np.ndarray, " figures"], Float64[np.ndarray, " figures"]]:
        worth, gap = np.full(len(FIGURES), np.nan), np.full(len(FIGURES), np.nan)
        numbers = sorted(self._real)
        own = self._real.get(self.cells[index][0])
        if len(numbers) < 2 or own is None:
            return worth, gap
        for column in range(_OF_ALL):
            curve = values[[self._real[number] for number in numbers], column]
            if not np.isfinite([*curve, vs_real[column]]).all():
                continue
            reached = values[own, column] + vs_real[column]
            worth[column] = np.exp(np.interp(reached, *_distinct(np.maximum.accumulate(curve), np.log(numbers))))
            if curve[-1] > values[own, column]:
                gap[column] = vs_real[column] / (curve[-1] - values[own, column])
        return worth, gap


_Drawn = Mapping[int, tuple[Float64[np.ndarray, " figures"], float]]  # by seed, and how often it is drawn


def _mean(drawn: _Drawn) -> Float64[np.ndarray, " figures"]:
    """Over seeds; NaN without any."""
    if not drawn:
        return np.full(len(FIGURES), np.nan)
    return np.average([value for value, _ in drawn.values()], axis=0, weights=[weight for _, weight in drawn.values()])


def _difference(own: _Drawn, other: _Drawn) -> Float64[np.ndarray, " figures"]:
    """Mean over the seeds that both have, so that it is paired."""
    both = own.keys() & other.keys()
    return _mean({seed: (own[seed][0] - other[seed][0], own[seed][1]) for seed in sorted(both)})


def _distinct(
    rising: Float64[np.ndarray, " points"], at: Float64[np.ndarray, " points"]
) -> tuple[Float64[np.ndarray, " distinct"], Float64[np.ndarray, " distinct"]]:
    """The first of equal heights: fewer patients do as well."""
    keep = np.concatenate([[True], np.diff(rising) > 0])
    return rising[keep], at[keep]


class _RunFigures:
    """The figures of one run as a function of how often each patient is drawn."""

    def __init__(self, run: DetectionRun) -> None:
        self._all = Froc(run.records.cases)
        self._middle = Froc([_in_the_middle(case) for case in run.records.cases])
        self._groups = [_only(run.records.cases, _is_of(wanted)) for wanted in _TEXTURES.values()]
        self._groups += [_only(run.records.cases, _is_sized(low, high)) for low, high in SIZES_MM.values()]
        self.groups = self._all.groups
        patients = [patient for group in self.groups for patient in group]
        self._dice = np.zeros((len(patients), 2))
        for count in run.records.pixels:
            self._dice[patients.index(count.patient)] += (count.dice, 1)
        lesions = [self._all.n_lesions] * _OF_ALL + [froc.n_lesions for froc in self._groups]
        self.n = [*lesions, len(run.records.pixels)]

    def __call__(self, counts: PatientCounts) -> Float64[np.ndarray, " figures"]:
        rates = [rate_per_window(rate) for rate in _AT_RATES.values()]
        at_rates = [*self._all.sensitivity_at(rates, counts), *self._middle.sensitivity_at(rates, counts)]
        of_groups = [froc.sensitivity_at([rate_per_window(CHOOSING_RATE)], counts)[0] for froc in self._groups]
        total, number = counts @ self._dice
        return np.array([*at_rates, *of_groups, total / number if number > 0 else np.nan])


def _in_the_middle(case: Case) -> Case:
    """Without the false positives where no nodule of these windows can lie.

    A network that was trained on windows of the size that judges knows where nodules lie in them. One that was trained
    on smaller pieces does not, and shows its worth here as such a one.
    """
    low, high = _MIDDLE_PX
    kept = (item for item in case.false_positives if all(low <= place <= high for place in item.centre[1:]))
    return replace(case, false_positives=tuple(kept))


def _is_of(categories: Sequence[str]) -> Callable[[ReferenceNodule], bool]:
    return lambda nodule: nodule.category in categories


def _is_sized(low: float, high: float) -> Callable[[ReferenceNodule], bool]:
    return lambda nodule: low <= nodule.diameter_mm < high


def _only(cases: Sequence[Case], wanted: Callable[[ReferenceNodule], bool]) -> Froc:
    """The cases with the nodules of a group alone, and all false positives."""
    return Froc([replace(case, nodules=tuple(filter(wanted, case.nodules))) for case in cases])
