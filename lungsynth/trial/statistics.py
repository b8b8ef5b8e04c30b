"""What outcomes say beyond the slices they were seen on: intervals, curves, interactions and paired tests.

What is resampled is whole patients, because what comes from one is not independent: every figure is a function of how
often each patient was drawn, and all figures share the draws. Pairs without an answer count nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import binomtest

from lungsynth.errors import InputError

__all__ = ["Comparison", "Curve", "Interaction", "Interval", "Trials", "compare", "holm"]

RESAMPLES = 2000  # the ends of a 95 % interval vary by about 1.5 % of its width
_PERCENTILES = (2.5, 97.5)
_LEVELS = (0.5, 0.8)  # of detection, at which a curve's stimulus is told
_RIDGE = 0.05  # a weak prior on the slope (in standard units), so that a curve exists where all are found
_STEPS = 25  # of Newton's method; it converges in fewer
_MAX_SLOPE = 30.0
_LEAST_PATIENTS = 6  # of whom draws tell what chance does; of fewer there is no p
_CORRELATION = 0.1  # of a patient's pairs, as in `design`
_CONFIDENCE = 0.975  # at each end of an interval
_EXACT_UP_TO = 12  # patients of whom all swaps of two detectors are tried
_SWAPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval, which is None with fewer than two patients."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Detection over a numeric factor, as a logistic curve.

    Args:
        offset: at a stimulus of 0 on the curve's scale.
        slope: per unit of that scale.
        log: whether the scale is the logarithm.
        points: stimulus at which 50 % and 80 % are found; None where the curve does not rise.
        tested: the smallest and largest level; beyond them a point is an extrapolation.
    """

    offset: float
    slope: float
    log: bool
    points: Mapping[float, Interval]
    tested: tuple[float, float]

    def at(self, stimulus: np.ndarray) -> np.ndarray:
        """Probability of detection."""
        x = np.log(stimulus) if self.log else stimulus
        return np.asarray(1 / (1 + np.exp(-(self.offset + self.slope * x))))


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two factors whose effects do not add up.

    Args:
        factors: their names.
        p: that deviations as large come from the choice of patients alone; None with fewer than six.
        levels: the two levels whose cell deviates most.
        sensitivity: of that cell.
        expected: of it, were the two effects to add up.
    """

    factors: tuple[str, str]
    p: float | None
    levels: tuple[str, str]
    sensitivity: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two detectors on the same pairs.

    Args:
        difference: of their sensitivities, first less second.
        only_first: nodules that the first alone finds.
        only_second: likewise.
        p_mcnemar: exact, as if all pairs were independent.
        p_patients: by swapping the two detectors within whole patients; None with fewer than two.
    """

    difference: Interval
    only_first: int
    only_second: int
    p_mcnemar: float
    p_patients: float | None


class Trials:
    """Outcomes of one detector with their levels, ready to be weighted by patient.

    Args:
        found: 1 or 0 for each pair; NaN where there is no answer.
        patients: of each pair.
        levels: for each factor the level of each pair.
        order: for each factor its levels in order.
        seed: of the draws.
        shares: whether outcomes are shares: where all or none are found, draws of them say nothing, and the interval is
            the exact one of as many pairs as these are worth, if those of a patient correlate by 0.1.
    """

    def __init__(
        self,
        found: Sequence[float],
        patients: Sequence[str],
        levels: Mapping[str, Sequence[str]],
        order: Mapping[str, Sequence[str]],
        *,
        seed: int,
        shares: bool = True,
    ) -> None:
        values = np.asarray(found, dtype=np.float64)
        if not len(values):
            raise InputError("A trial needs at least one pair.")
        answered = np.isfinite(values)
        self.found = values[answered]
        names = sorted(set(patients))
        position = {name: index for index, name in enumerate(names)}
        self.owner = np.array([position[name] for name in patients])[answered]
        self.n_patients = len(names)
        self.order = {name: tuple(own) for name, own in order.items()}
        self.codes = {
            name: np.array([self.order[name].index(level) for level in own])[answered] for name, own in levels.items()
        }
        self.seed = seed
        self.shares = shares

    @cached_property
    def draws(self) -> np.ndarray:
        """How often each patient was drawn, (1 + draws, patients); the first row is all of them once."""
        rng = np.random.default_rng(self.seed)
        n = self.n_patients
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES if n > 1 else 0).astype(np.float64)
        return np.vstack([np.ones((1, n)), drawn.reshape(-1, n)])

    def sensitivity(self, chosen: np.ndarray | None = None) -> Interval:
        """Share found, of all or of some pairs (bool)."""
        chosen = np.ones(len(self.found), dtype=bool) if chosen is None else chosen
        rates, _ = self._rates(np.zeros(len(self.found), dtype=int), 1, chosen)
        return self._share(rates[:, 0], int(chosen.sum()))

    def by_level(self, factor: str) -> dict[str, Interval]:
        """Share found at each level of a factor."""
        codes, names = self.codes[factor], self.order[factor]
        rates, _ = self._rates(codes, len(names))
        return {name: self._share(rates[:, code], int((codes == code).sum())) for code, name in enumerate(names)}

    def effect_p(self, factor: str) -> float | None:
        """That the levels of a factor differ as much by the choice of patients alone."""
        rates, _ = self._rates(self.codes[factor], len(self.order[factor]))
        return _centred_p(rates - _known_mean(rates, 1), self.n_patients)

    def curve(self, factor: str, numbers: Sequence[float], *, log: bool, chosen: np.ndarray | None = None) -> Curve:
        """The logistic curve over a factor's levels.

        Args:
            factor: its name.
            numbers: of its levels, in order.
            log: fit over their logarithm.
            chosen: pairs that count; all when None.
        """
        _, sums = self._rates(self.codes[factor], len(numbers), chosen)
        x = np.log(numbers) if log else np.asarray(numbers, dtype=np.float64)
        centre, scale = float(x.mean()), float(max(x.std(), 1e-9))
        fits = _logistic((x - centre) / scale, *sums)
        slopes = fits[:, 1] / scale
        offsets = fits[:, 0] - slopes * centre
        n = int(sums[1][0].sum())
        points = {}
        for level in _LEVELS:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                at = (np.log(level / (1 - level)) - offsets) / slopes
                at = np.exp(np.clip(at, -50, 50)) if log else at
            # Where a draw's curve falls, no stimulus suffices.
            points[level] = interval_of(np.where(slopes > 1e-6, at, np.inf), n)
        tested = (float(min(numbers)), float(max(numbers)))
        return Curve(offset=float(offsets[0]), slope=float(slopes[0]), log=log, points=points, tested=tested)

    def interaction(self, first: str, second: str) -> Interaction | None:
        """How far two factors' effects do not add up; None where a pair of levels has no pair at all."""
        shape = len(self.order[first]), len(self.order[second])
        rates, _ = self._rates(self.codes[first] * shape[1] + self.codes[second], shape[0] * shape[1])
        cells = rates.reshape(-1, *shape)
        if not np.isfinite(cells[0]).all():
            return None
        expected = _known_mean(cells, 2) + _known_mean(cells, 1) - _known_mean(cells, (1, 2))
        away = cells - expected
        row, column = np.unravel_index(int(np.abs(away[0]).argmax()), shape)
        return Interaction(
            factors=(first, second),
            p=_centred_p(away.reshape(len(away), -1), self.n_patients),
            levels=(self.order[first][row], self.order[second][column]),
            sensitivity=float(cells[0, row, column]),
            expected=float(expected[0, row, column]),
        )

    def _rates(
        self, codes: np.ndarray, n: int, chosen: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Share found of each code in each draw, NaN where none was drawn; and the two sums."""
        weight = np.ones(len(codes)) if chosen is None else chosen.astype(np.float64)
        flat = self.owner * n + codes
        size = self.n_patients * n
        hits = np.bincount(flat, weights=weight * self.found, minlength=size).reshape(-1, n)
        totals = np.bincount(flat, weights=weight, minlength=size).reshape(-1, n)
        top, bottom = self.draws @ hits, self.draws @ totals
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(bottom > 0, top / bottom, np.nan), (top, bottom)

    def _share(self, values: np.ndarray, n: int) -> Interval:
        """The interval of a share."""
        made = interval_of(values, n)
        if not self.shares or made.value not in (0.0, 1.0) or self.n_patients < 2:
            return made
        worth = n / (1 + max(0.0, n / self.n_patients - 1) * _CORRELATION)
        bound = float((1 - _CONFIDENCE) ** (1 / worth))
        return replace(made, low=0.0 if made.value == 0 else bound, high=1.0 if made.value == 1 else 1 - bound)


def interval_of(values: np.ndarray, n: int) -> Interval:
    """The figure (first value) with the interval of its draws (the others)."""
    if not len(values) or np.isnan(values[0]):
        return Interval(value=None, low=None, high=None, n=n)
    draws = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(draws, _PERCENTILES, method="inverted_cdf") if len(draws) else (np.nan, np.nan)
    return Interval(value=_finite(values[0]), low=_finite(low), high=_finite(high), n=n)


def compare(
    first: Sequence[float], second: Sequence[float], patients: Sequence[str], *, seed: int
) -> Comparison | None:
    """Two detectors on the pairs that both answered; None where there is none.

    Args:
        first: 1 or 0 for each pair, NaN without an answer.
        second: likewise.
        patients: of each pair.
        seed: of draws and swaps.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return None
    owners = [patient for patient, answered in zip(patients, both, strict=True) if answered]
    difference = (a - b)[both]
    trials = Trials(difference.tolist(), owners, {}, {}, seed=seed, shares=False)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    changed = only_first + only_second
    return Comparison(
        difference=trials.sensitivity(),
        only_first=only_first,
        only_second=only_second,
        p_mcnemar=float(binomtest(only_first, changed).pvalue) if changed else 1.0,
        p_patients=_swap_p(np.bincount(trials.owner, weights=difference, minlength=trials.n_patients), seed=seed),
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P values of several tests, so that any is below 5 % by chance in 5 % of trials (Holm, 1979)."""
    known = sorted((value, index) for index, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, index) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def _swap_p(sums: np.ndarray, *, seed: int) -> float | None:
    """That the sum of patients' differences is as far from 0 when each patient's sign is a coin's."""
    if len(sums) < 2:
        return None
    n = len(sums)
    if n <= _EXACT_UP_TO:
        signs = 1.0 - 2.0 * (np.arange(1 << n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_SWAPS, n))
    return float(((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum() + 1) / (_SWAPS + 1))


def _known_mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean along axes, which stay, of what is not NaN; NaN where nothing is known."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / known.sum(axis=axis, keepdims=True))


def _centred_p(away: np.ndarray, patients: int) -> float | None:
    """That deviations (draws, n) as large as the first row's arise where there are none: draws, shifted to none."""
    if len(away) < 2 or patients < _LEAST_PATIENTS:
        return None
    with np.errstate(invalid="ignore"):
        observed = float(np.nansum(away[0] ** 2))
        shifted = np.nansum((away[1:] - away[0]) ** 2, axis=1)
    return float(((shifted >= observed - 1e-12).sum() + 1) / (len(shifted) + 1))


def _logistic(x: np.ndarray, hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Offset and slope of each draw, (draws, 2), by Newton's method on all draws at once."""
    design = np.stack([np.ones_like(x), x])  # (2, levels)
    fits = np.zeros((len(hits), 2))
    prior = np.diag([1e-3, _RIDGE])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(fits @ design, -_MAX_SLOPE, _MAX_SLOPE)))
        gradient = (hits - totals * p) @ design.T - fits @ prior
        curvature = np.einsum("al,dl,bl->dab", design, totals * p * (1 - p), design) + prior
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        fits = fits + np.clip(step, -2, 2)
    return fits


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
