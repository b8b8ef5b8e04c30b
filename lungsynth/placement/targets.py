"""What the policies `matched` and `balanced` aim at, from the real nodules of a cohort."""

from collections.abc import Sequence

import numpy as np

from lungsynth.errors import InputError
from lungsynth.placement.cohort_statistics import NoduleStatistics
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.policy import DISTANCE_EDGES_MM, SIZE_EDGES_MM, Policy, TargetDistribution, balanced_target
from lungsynth.placement.presence import PresencePrior

__all__ = ["shares_of_samples", "target_of"]


def shares_of_samples(policy: Policy, keep: int, real: NoduleStatistics, categories: Sequence[str]) -> dict[str, int]:
    """Samples of each category.

    `farthest`: `keep` of each. `matched`: in the proportions of the real nodules, the most frequent category gets
    `keep`. `balanced`: so many that with the real ones all categories are equally frequent, the rarest gets `keep`.

    Args:
        policy: of the plan.
        keep: see above.
        real: nodules of the cohort.
        categories: that the library has.

    Raises:
        InputError: when `matched` finds no real nodule of these categories.
    """
    counts = {category: len(real.diameters_mm.get(category, ())) for category in categories}
    if policy == "farthest":
        return dict.fromkeys(categories, keep)
    if policy == "balanced":
        level = keep + min(counts.values())
        return {category: level - count for category, count in counts.items() if level > count}
    most = max(counts.values())
    if not most:
        raise InputError(
            f"The policy matched needs real nodules: the cohort's training part has none of {list(categories)}."
        )
    return {category: max(1, round(keep * count / most)) for category, count in counts.items() if count}


def target_of(
    policy: Policy,
    category: str,
    real: NoduleStatistics,
    prior: PresencePrior,
    lungs: Sequence[LungShape],
    *,
    nodules: float,
) -> TargetDistribution | None:
    """What a category's nodules should be distributed like; None for `farthest`.

    Args:
        policy: of the plan.
        category: of nodules.
        real: nodules of the cohort.
        prior: where nodules are found.
        lungs: some of the plan's.
        nodules: how many will be added.
    """
    if policy == "farthest":
        return None
    target = real.target(category, prior, lungs)
    if policy == "matched":
        return target
    if target is None:
        return TargetDistribution(distance=np.ones(len(DISTANCE_EDGES_MM) + 1), size=np.ones(len(SIZE_EDGES_MM) + 1))
    return balanced_target(target, real_nodules=float(len(real.diameters_mm[category])), nodules=nodules)
