"""Intervals over patients: whole patients are drawn again, because what comes from one patient is not independent.

A statistic is a function of weights, how often each patient was drawn; all ones give the figure itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lungsynth.errors import InputError

__all__ = ["RESAMPLES", "Estimate", "PatientCounts", "estimate", "estimate_ratio", "patient_index"]

RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)

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


def patient_index(owners: Sequence[str], patients: Sequence[str]) -> Int[np.ndarray, " owners"]:
    """Where each owner stands among the patients."""
    place = {patient: index for index, patient in enumerate(patients)}
    return np.array([place[owner] for owner in owners], dtype=np.int64)


def estimate(
    groups: Sequence[Sequence[str]],
    statistic: Callable[[PatientCounts], Sequence[float]],
    *,
    n: Sequence[int],
    seed: int,
    resamples: int = RESAMPLES,
    recentre: bool = False,
) -> list[Estimate]:
    """Percentile bootstrap of several figures at once.

    Args:
        groups: patients, each in one group; each group is drawn for itself, to its own size, so that no draw lacks one.
        statistic: weights of all patients, group after group -> the figures; NaN where one is not defined.
        n: what each figure counts.
        seed: of the draws; the same draws serve all figures.
        resamples: number of draws.
        recentre: move the draws so that their mean is the figure. For statistics that a repeated or missing sample
            biases, such as the distance of two sets; without it such an interval may not even hold its figure.

    Raises:
        InputError: when a patient is in two groups.
    """
    everyone = [patient for group in groups for patient in group]
    if len(set(everyone)) < len(everyone):
        raise InputError("Each patient belongs to one group of the bootstrap; some stand in two.")
    whole = np.asarray(statistic(np.ones(len(everyone))), dtype=np.float64)
    draws = np.full((resamples, len(whole)), np.nan)
    if len(everyone) > 1:
        rng = np.random.default_rng(seed)
        weights = np.concatenate([_draws(rng, len(group), resamples) for group in groups], axis=1)
        draws = np.array([statistic(row) for row in weights], dtype=np.float64)
    found = []
    for column, value in enumerate(whole):
        usable = draws[np.isfinite(draws[:, column]), column]
        usable = usable - usable.mean() + value if recentre and len(usable) else usable
        low, high = np.percentile(usable, _PERCENTILES) if len(usable) else (None, None)
        known = bool(np.isfinite(value))
        found.append(
            Estimate(
                value=float(value) if known else None,
                low=float(low) if known and low is not None else None,
                high=float(high) if known and high is not None else None,
                n=int(n[column]),
                patients=len(everyone),
            )
        )
    return found


def estimate_ratio(
    owners: Sequence[str], numerator: Sequence[float], denominator: Sequence[float], *, seed: int, n: int | None = None
) -> Estimate:
    """A sum over a sum: a mean where each denominator is 1, a share where the numerators count hits.

    Args:
        owners: patient of each item.
        numerator: of each item.
        denominator: of each item.
        seed: of the draws.
        n: what is counted; the items when None.
    """
    patients = sorted(set(owners))
    place = patient_index(owners, patients)
    tops = np.bincount(place, weights=np.asarray(numerator, dtype=np.float64), minlength=len(patients))
    bottoms = np.bincount(place, weights=np.asarray(denominator, dtype=np.float64), minlength=len(patients))

    def ratio(weights: PatientCounts) -> list[float]:
        bottom = float(weights @ bottoms)
        return [float(weights @ tops) / bottom if bottom > 0 else float("nan")]

    return estimate([patients], ratio, n=[len(owners) if n is None else n], seed=seed)[0]


def _draws(rng: np.random.Generator, count: int, resamples: int) -> Float[np.ndarray, "resamples patients"]:
    """How often each of `count` patients is drawn, in each resample."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
