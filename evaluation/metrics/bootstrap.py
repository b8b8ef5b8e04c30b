"""Confidence intervals over patients: whole patients are resampled, because what comes from one is not independent.

A statistic is a function of how often each patient was drawn; all ones give the figure itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lungsynth.errors import InputError

__all__ = ["RESAMPLES", "Estimate", "Estimates", "PatientCounts", "estimate", "estimate_ratio", "patient_index"]

# Draws. With 1,000 the ends of a 95 % interval vary by about 2 % of its width (standard error of a quantile, normal
# draws); the error falls with the square root of the number, the time grows with it.
RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)  # of the draws: a 95 % interval

PatientCounts = Float[np.ndarray, " patients"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval.

    Args:
        value: over all patients; None where it is not defined.
        low: lower end; None with fewer than two patients.
        high: upper end; likewise.
        n: what was counted (nodules, slices, scans).
        patients: whom they came from; 0 for samples that come from nobody.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    patients: int = 0


Estimates = dict[str, Estimate]


def patient_index(owners: Sequence[str], patients: Sequence[str]) -> Int[np.ndarray, " owners"]:
    """The position of each owner among the patients."""
    position = {patient: index for index, patient in enumerate(patients)}
    return np.array([position[owner] for owner in owners], dtype=np.int64)


def estimate(
    groups: Sequence[Sequence[str]],
    statistic: Callable[[PatientCounts], Sequence[float]],
    *,
    n: Sequence[int],
    seed: int,
    resamples: int | None = None,
    recentre: bool = False,
) -> list[Estimate]:
    """Percentile bootstrap of several figures at once.

    Args:
        groups: patients, each in one group. Each group is resampled to its own size, so that no draw lacks one.
        statistic: maps the counts of all patients, group after group, to the figures; NaN where one is not defined.
        n: what each figure counts.
        seed: of the draws; the same draws serve all figures.
        resamples: number of draws; `RESAMPLES` when None.
        recentre: shift the draws so that their mean is the figure. For statistics that a repeated or missing sample
            biases, such as the distance of two sets; without it such an interval may not even contain its figure.

    Raises:
        InputError: when a patient is in two groups.
    """
    patients = [patient for group in groups for patient in group]
    if len(set(patients)) < len(patients):
        raise InputError("Each patient belongs to one group of the bootstrap; some are in two.")
    values = np.asarray(statistic(np.ones(len(patients))), dtype=np.float64)
    resamples = RESAMPLES if resamples is None else resamples
    draws = np.full((resamples, len(values)), np.nan)
    if len(patients) > 1:
        rng = np.random.default_rng(seed)
        counts = np.concatenate([_resample(rng, len(group), resamples) for group in groups], axis=1)
        draws = np.array([statistic(row) for row in counts], dtype=np.float64)
    return [
        _with_interval(value, draws[:, column], n=n[column], patients=len(patients), recentre=recentre)
        for column, value in enumerate(values.tolist())
    ]


def estimate_ratio(
    owners: Sequence[str], numerator: Sequence[float], denominator: Sequence[float], *, seed: int, n: int | None = None
) -> Estimate:
    """A sum over a sum: a mean where each denominator is 1, a proportion where the numerators count hits.

    Args:
        owners: patient of each item.
        numerator: of each item.
        denominator: of each item.
        seed: of the draws.
        n: what is counted; the items when None.
    """
    patients = sorted(set(owners))
    index = patient_index(owners, patients)
    tops = np.bincount(index, weights=np.asarray(numerator, dtype=np.float64), minlength=len(patients))
    bottoms = np.bincount(index, weights=np.asarray(denominator, dtype=np.float64), minlength=len(patients))

    def ratio(counts: PatientCounts) -> list[float]:
        bottom = float(counts @ bottoms)
        return [float(counts @ tops) / bottom if bottom > 0 else float("nan")]

    return estimate([patients], ratio, n=[len(owners) if n is None else n], seed=seed)[0]


def _with_interval(value: float, draws: np.ndarray, *, n: int, patients: int, recentre: bool) -> Estimate:
    """Draws in which the figure is not defined do not count; without any there is no interval."""
    if not np.isfinite(value):
        return Estimate(value=None, n=int(n), patients=patients)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value=value, n=int(n), patients=patients)
    low, high = np.percentile(draws - draws.mean() + value if recentre else draws, _PERCENTILES)
    return Estimate(value=value, low=float(low), high=float(high), n=int(n), patients=patients)


def _resample(rng: np.random.Generator, count: int, resamples: int) -> Float[np.ndarray, "resamples patients"]:
    """How often each of `count` patients is drawn, in each resample."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
