"""How far generated lungs are from real ones by anatomy, in standard deviations of the real ones, patients evenly.

The floor says what real lungs reach: patients drawn at random stand in for the generated ones, and others judge them,
as many as judge the generated ones. No patient is ever on both sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.anatomy.measures import MEASURES, AnatomySet
from evaluation.anatomy.two_sample import even_weights, forest_accuracy, patch_accuracy
from lungsynth.errors import InputError

__all__ = ["FEWEST_PATIENTS", "AnatomyFloor", "AnatomyJudgement", "Range", "anatomy_floor", "judge_anatomy", "moments"]

FEWEST_PATIENTS = 4  # with fewer no two sides can be formed
_DRAWS = 200  # of patients, for the floor of distances
_TEST_DRAWS = 6  # for the floor of the two-sample tests, which train forests
_HIGH = 0.95  # quantile over draws
_KEYS = tuple(measure.key for measure in MEASURES)


@dataclass(frozen=True, kw_only=True)
class AnatomyJudgement:
    """Generated lungs against real ones; None where a figure is not defined.

    Args:
        means: of the generated, by key of `MEASURES`.
        distances: of the means to the real ones, in standard deviations of the real slices, signed.
        mean_distance: mean of their sizes.
        worst: the largest size.
        worst_measure: whose.
        forest: balanced accuracy of a forest on the measures; 0.5 is chance.
        patches: that of a forest on patches of lung.
        n: slices.
        owners: patients, or lungs.
    """

    means: Mapping[str, float | None]
    distances: Mapping[str, float | None]
    mean_distance: float | None
    worst: float | None
    worst_measure: str
    forest: float | None
    patches: float | None
    n: int
    owners: int

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Mean and 95 % quantile over draws of patients; None where not defined."""

    mean: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class AnatomyFloor:
    """What real lungs reach against other real ones.

    Args:
        mean_distance: over draws.
        worst: likewise.
        forest: likewise.
        patches: likewise.
        patients: all from whom both sides are drawn.
        judges: of them on the judging side.
    """

    mean_distance: Range
    worst: Range
    forest: Range
    patches: Range
    patients: int
    judges: int

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def judge_anatomy(
    generated: AnatomySet, real: AnatomySet, *, further: AnatomySet | None = None, seed: int = 0
) -> AnatomyJudgement:
    """Compares two sides that share no owner.

    Args:
        generated: the judged ones.
        real: of the judging patients.
        further: real slices of other patients, which only train the two-sample tests; those of judged patients are
            left out.
        seed: of folds and forests.

    Raises:
        InputError: when an owner is on both sides.
    """
    if shared := set(generated.owners) & set(real.owners):
        raise InputError(f"{len(shared)} patients are on both sides of the comparison of anatomy; each belongs to one.")
    if further is not None:
        further = further.of_owners(set(further.owners) - {*generated.owners, *real.owners})
    distances, means = _distances(generated, real)
    sizes = np.abs(distances)
    defined = bool(np.isfinite(sizes).any())
    worst = int(np.nanargmax(sizes)) if defined else 0
    return AnatomyJudgement(
        means=_by_key(means),
        distances=_by_key(distances),
        mean_distance=_number(np.nanmean(sizes)) if defined else None,
        worst=_number(sizes[worst]),
        worst_measure=_KEYS[worst] if defined else "",
        forest=_number(forest_accuracy(generated, real, further=further, seed=seed)),
        patches=_number(patch_accuracy(generated, real, further=further, seed=seed)),
        n=len(generated),
        owners=generated.n_owners,
    )


def anatomy_floor(
    real: AnatomySet, *, judges: int, seed: int = 0, draws: int = _DRAWS, test_draws: int = _TEST_DRAWS
) -> AnatomyFloor:
    """What patients reach against other ones.

    Args:
        real: slices of all patients, whether they train or judge.
        judges: patients on the judging side; at least 2, at most all but two.
        seed: of the draws.
        draws: for distances.
        test_draws: for the two-sample tests, at most `draws`.

    Raises:
        InputError: with fewer than four patients.
    """
    patients = sorted(set(real.owners))
    if len(patients) < FEWEST_PATIENTS:
        raise InputError(
            f"The floor of anatomy needs {FEWEST_PATIENTS} patients or more with slices at full resolution, got "
            f"{len(patients)}."
        )
    judges = min(max(judges, 2), len(patients) - 2)
    rng = np.random.default_rng(seed)
    judging = [{patients[place] for place in rng.permutation(len(patients))[:judges]} for _ in range(draws)]
    sides = [(real.of_owners(set(patients) - own), real.of_owners(own)) for own in judging]
    sizes = [np.abs(_distances(*pair)[0]) for pair in sides]
    return AnatomyFloor(
        mean_distance=_range([float(np.nanmean(one)) for one in sizes]),
        worst=_range([float(np.nanmax(one)) for one in sizes]),
        forest=_range([forest_accuracy(*pair, seed=seed) for pair in sides[:test_draws]]),
        patches=_range([patch_accuracy(*pair, seed=seed) for pair in sides[:test_draws]]),
        patients=len(patients),
        judges=judges,
    )


def moments(side: AnatomySet) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation of each measure, owners evenly."""
    mean, spread = _moments(side)
    return _by_key(mean), _by_key(spread)


def _distances(generated: AnatomySet, real: AnatomySet) -> tuple[np.ndarray, np.ndarray]:
    """Of the means, in standard deviations of the real slices, and the generated means; by measure."""
    centre, spread = _moments(real)
    means, _ = _moments(generated)
    return (means - centre) / np.where(spread > 0, spread, np.nan), means


def _moments(side: AnatomySet) -> tuple[np.ndarray, np.ndarray]:
    weights = even_weights(side.owners)[:, None] * np.isfinite(side.values)
    total = weights.sum(axis=0)
    weights = weights / np.where(total > 0, total, np.nan)
    values = np.nan_to_num(side.values)
    mean = (weights * values).sum(axis=0)
    return mean, np.sqrt((weights * (values - mean) ** 2).sum(axis=0))


def _by_key(values: np.ndarray) -> dict[str, float | None]:
    return {key: _number(value) for key, value in zip(_KEYS, values, strict=True)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _range(values: Sequence[float]) -> Range:
    kept = [value for value in values if np.isfinite(value)]
    return (
        Range(mean=float(np.mean(kept)), high=float(np.quantile(kept, _HIGH))) if kept else Range(mean=None, high=None)
    )
