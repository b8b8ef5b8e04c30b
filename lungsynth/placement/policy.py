"""Policies: which of the pairs that the rules accept become samples.

- `varied` (the default): nodules are distributed by distance to the edge as real ones are, at least `_NEAR_SHARE` of
  them near the pleura, and by size as those that there are; categories as asked for, else evenly.
- `farthest` (the paper's): those whose nodule nearest to the edge of the lung is farthest from it. Equal distances: the
  earlier lung, then the earlier group.
- `matched`: nodules are distributed as the real ones are, by distance to the edge and by size.
- `balanced`: together with the real ones, all classes of distance and of size are as frequent as each other, as far as
  the number of samples can make up for what is lacking.

All but `farthest` draw pairs at random with unequal chances: a pair with the uniform number U and the weight w has the
rank U / w, and the lowest are taken (sequential Poisson sampling, Ohlsson, 1998). U follows from seed, lung and group.
The weight is a product over a pair's nodules of one factor for the class of its distance and one for the class of its
size. The factors are found by trying on some of the lungs: a class that comes out too often gets a lower one, and again
(raking).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from lungsynth.config import Policy
from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.placement.groups import GroupArrays
from lungsynth.placement.lung_shape import LungShape

if TYPE_CHECKING:
    from lungsynth.placement.presence import NoduleStatistics, PresencePrior
from lungsynth.seeds import HashDomain, hash_arrays

__all__ = [
    "DISTANCE_EDGES_MM",
    "SIZE_EDGES_MM",
    "Classes",
    "PolicyWeights",
    "TargetDistribution",
    "balanced_target",
    "classes_of",
    "distance_class",
    "fit_weights",
    "order_rank",
    "shares_by_counts",
    "shares_of_samples",
    "size_class",
    "target_of",
    "varied_ranks",
]

# Limits of the classes whose shares `matched` and `balanced` aim at, finer where nodules are many. Sizes follow the
# thresholds of nodule management (4, 6, 8 mm) and of masses (30 mm). Other edges give other catalogues.
DISTANCE_EDGES_MM = (2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 20.0, 25.0, 30.0)
SIZE_EDGES_MM = (4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)
_ROUNDS = 40  # of raking; fewer leave a larger gap to the target, more change little
_FITTED_PAIRS = 100_000  # on which it is done at most: time, against noise of the shares
_FACTORS = (1e-6, 1e6)  # range of a class's factor: a class that cannot be reached must not run away
_WEIGHTS = (1e-150, 1e150)  # range of a pair's weight, so that U / w stays a finite, positive float64
_NEAR_CLASSES = 4  # of distance, up to 10 mm
_NEAR_SHARE = 0.35  # of nodules, at least; LIDC-IDRI's density is blurred, so that it gives fewer (0.30) than there are
_MIN_COUNT = 0.5  # an empty class counts as half a nodule, so that its factor rises by a finite step

DistanceShares = Float64[np.ndarray, " distance_classes"]
SizeShares = Float64[np.ndarray, " size_classes"]


def distance_class(distance_mm: np.ndarray) -> np.ndarray:
    """Class of distances in mm: the number of edges that they reach."""
    return np.searchsorted(DISTANCE_EDGES_MM, distance_mm, side="right")


def size_class(diameter_mm: np.ndarray) -> np.ndarray:
    """Class of diameters in mm: the number of edges that they reach."""
    return np.searchsorted(SIZE_EDGES_MM, diameter_mm, side="right")


@dataclass(frozen=True, eq=False, kw_only=True)
class TargetDistribution:
    """How nodules should be distributed.

    Args:
        distance: share of each class of distance.
        size: share of each class of size.

    Raises:
        InputError: when there is another number of classes, or a share is negative, or all are zero.
    """

    distance: DistanceShares
    size: SizeShares

    def __post_init__(self) -> None:
        for name, edges in (("distance", DISTANCE_EDGES_MM), ("size", SIZE_EDGES_MM)):
            shares = getattr(self, name)
            if len(shares) != len(edges) + 1 or not (np.min(shares) >= 0 and np.sum(shares) > 0):
                raise InputError(
                    f"A target needs {len(edges) + 1} shares of {name}, none negative and not all zero, got {shares}."
                )
            object.__setattr__(self, name, np.asarray(shares, dtype=np.float64) / float(np.sum(shares)))


def balanced_target(real: TargetDistribution, *, real_nodules: float, nodules: float) -> TargetDistribution:
    """What nodules must add to real ones so that all classes become as frequent as each other.

    Args:
        real: distribution of the real nodules.
        real_nodules: how many there are.
        nodules: how many will be added.
    """
    return TargetDistribution(
        distance=_complement(real.distance * real_nodules, nodules), size=_complement(real.size * real_nodules, nodules)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Classes:
    """Classes of the members of some groups on one lung; -1 beyond a group's members.

    Args:
        distance: (group, member).
        size: (group, member).
    """

    distance: Int64[np.ndarray, "groups widest"]
    size: Int64[np.ndarray, "groups widest"]

    def counts(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Members of each class of distance, and of size, in some of the groups."""
        distance, size = self.distance[index], self.size[index]
        return (
            np.bincount(distance[distance >= 0], minlength=len(DISTANCE_EDGES_MM) + 1),
            np.bincount(size[size >= 0], minlength=len(SIZE_EDGES_MM) + 1),
        )

    def gaps(self, target: TargetDistribution) -> tuple[float, float]:
        """Share of nodules that would have to change class for the target to be met: by distance, and by size."""
        distance, size = self.counts(np.arange(len(self.distance)))
        return _gap(distance, target.distance), _gap(size, target.size)

    @staticmethod
    def joined(parts: Sequence["Classes"]) -> "Classes":
        """Classes of groups one after the other."""
        return Classes(
            distance=np.concatenate([part.distance for part in parts]), size=np.concatenate([p.size for p in parts])
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PolicyWeights:
    """Factors of the classes; a pair's weight is the product over its nodules."""

    distance: DistanceShares
    size: SizeShares

    def of(self, classes: Classes) -> np.ndarray:
        """Weights of groups, float64."""
        padded = [np.append(factors, 1.0) for factors in (self.distance, self.size)]  # index -1
        each = padded[0][classes.distance] * padded[1][classes.size]
        weights = each[:, 0].copy()
        for place in range(1, each.shape[1]):
            weights *= each[:, place]
        return np.clip(weights, *_WEIGHTS)


def classes_of(groups: GroupArrays, distance: np.ndarray, index: np.ndarray) -> Classes:
    """Classes of some groups.

    Args:
        groups: all of them.
        distance: of the members of the groups asked for, (group, member), in 1/64 mm.
        index: of the groups asked for.
    """
    places = groups.places[index]
    absent = np.arange(places.shape[1]) >= groups.sizes[index][:, None]
    return Classes(
        distance=np.where(absent, -1, distance_class(distance / UNITS_PER_MM)),
        size=np.where(absent, -1, size_class(groups.diameter_mm)[places]),
    )


def order_rank(numbers: UInt64[np.ndarray, " pairs"], weights: np.ndarray) -> UInt64[np.ndarray, " pairs"]:
    """Ranks U / w, as the bits of a positive float64, which sort as the number does."""
    uniform = ((numbers >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return (uniform / weights).view(np.uint64)


def varied_ranks(classes: Classes, expected: np.ndarray, *, seed: int) -> UInt64[np.ndarray, " pairs"]:
    """Ranks of groups on a single lung with which nodules come near to the pleura as often as `varied` has it.

    Args:
        classes: of the groups.
        expected: share of each class of distance where nodules lie as drawn.
        seed: of the order.
    """
    wanted = _with_near(expected)
    distance = np.where(expected > 0, wanted / np.maximum(expected / expected.sum(), 1e-9), 1.0)
    weights = PolicyWeights(distance=distance, size=np.ones(len(SIZE_EDGES_MM) + 1)).of(classes)
    return order_rank(np.random.default_rng(seed).integers(0, 1 << 63, len(weights), dtype=np.uint64) << 1, weights)


def shuffled(seed: int, lung: int, groups: UInt64[np.ndarray, " groups"]) -> UInt64[np.ndarray, " groups"]:
    """The random number of each pair of a lung with groups, from their hashes."""
    return hash_arrays(HashDomain.ORDER, seed, lung, groups)


def fit_weights(classes: Classes, numbers: np.ndarray, *, keep: int, target: TargetDistribution) -> PolicyWeights:
    """Finds factors with which `keep` of these pairs are distributed as the target says.

    Args:
        classes: of all pairs that may be used.
        numbers: their random numbers, uint64.
        keep: how many are taken; all of them when there are no more.
        target: what to reach.
    """
    factors = [np.ones(len(target.distance)), np.ones(len(target.size))]
    if keep >= len(numbers):
        return PolicyWeights(distance=factors[0], size=factors[1])
    if len(numbers) > _FITTED_PAIRS:
        # The lowest numbers are a random part, and uniform themselves.
        part = np.argpartition(numbers, _FITTED_PAIRS - 1)[:_FITTED_PAIRS]
        keep = max(1, keep * _FITTED_PAIRS // len(numbers))
        classes, numbers = Classes(distance=classes.distance[part], size=classes.size[part]), numbers[part]
    for _ in range(_ROUNDS):
        ranks = order_rank(numbers, PolicyWeights(distance=factors[0], size=factors[1]).of(classes))
        best = np.argpartition(ranks, keep - 1)[:keep]
        for place, (counts, wanted) in enumerate(
            zip(classes.counts(best), (target.distance, target.size), strict=True)
        ):
            # The square root damps: the two factors of a nodule, and those of a pair's nodules, act together.
            step = np.sqrt(wanted * int(counts.sum()) / np.maximum(counts, _MIN_COUNT))
            factors[place] = np.clip(factors[place] * step, *_FACTORS)
    return PolicyWeights(distance=factors[0], size=factors[1])


def shares_of_samples(policy: Policy, keep: int, real: "NoduleStatistics", categories: Sequence[str]) -> dict[str, int]:
    """Samples of each category.

    `varied` and `farthest`: `keep` of each. `matched`: in the proportions of the real nodules, the most frequent
    category gets `keep`. `balanced`: so many that with the real ones all categories are equally frequent, the rarest
    gets `keep`.

    Args:
        policy: of the plan.
        keep: see above.
        real: nodules of the cohort.
        categories: that the library has.

    Raises:
        InputError: when `matched` finds no real nodule of these categories.
    """
    return shares_by_counts(
        policy, keep, {category: len(real.diameters_mm.get(category, ())) for category in categories}
    )


def shares_by_counts(policy: Policy, keep: int, counts: Mapping[str, int]) -> dict[str, int]:
    """As `shares_of_samples`, from the number of real nodules of each category.

    Raises:
        InputError: likewise.
    """
    categories = list(counts)
    if policy in ("varied", "farthest"):
        return dict.fromkeys(categories, keep)
    if policy == "balanced":
        level = keep + min(counts.values())
        return {category: level - count for category, count in counts.items() if level > count}
    most = max(counts.values())
    if not most:
        raise InputError(
            f"The policy matched needs real nodules: the cohort's training patients have none of {categories}."
        )
    return {category: max(1, round(keep * count / most)) for category, count in counts.items() if count}


def target_of(
    policy: Policy,
    category: str,
    real: "NoduleStatistics",
    prior: "PresencePrior",
    lungs: Sequence[LungShape],
    *,
    nodules: float,
    diameters_mm: Sequence[float] = (),
) -> TargetDistribution | None:
    """What a category's nodules should be distributed like; None for `farthest`.

    Args:
        policy: of the plan.
        category: of nodules.
        real: nodules of the cohort.
        prior: where nodules are found.
        lungs: some of the plan's.
        nodules: how many will be added.
        diameters_mm: of the nodules that there are to place, for `varied`.
    """
    if policy == "farthest":
        return None
    if policy == "varied":
        sizes = np.bincount(size_class(np.array(diameters_mm)), minlength=len(SIZE_EDGES_MM) + 1)
        return TargetDistribution(distance=_with_near(real.distances(prior, lungs)), size=sizes.astype(np.float64))
    target = real.target(category, prior, lungs)
    if policy == "matched":
        return target
    if target is None:
        return TargetDistribution(distance=np.ones(len(DISTANCE_EDGES_MM) + 1), size=np.ones(len(SIZE_EDGES_MM) + 1))
    return balanced_target(target, real_nodules=float(len(real.diameters_mm[category])), nodules=nodules)


def _with_near(shares: np.ndarray) -> np.ndarray:
    """Shares of classes of distance with at least `_NEAR_SHARE` near the edge; within near and far as they were."""
    shares = shares / shares.sum()
    near = float(shares[:_NEAR_CLASSES].sum())
    if near >= _NEAR_SHARE or near in (0.0, 1.0):
        return np.asarray(shares)
    factors = np.where(np.arange(len(shares)) < _NEAR_CLASSES, _NEAR_SHARE / near, (1 - _NEAR_SHARE) / (1 - near))
    return np.asarray(shares * factors)


def _gap(counts: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(counts / max(int(counts.sum()), 1) - wanted).sum() / 2)


def _complement(real: np.ndarray, added: float) -> np.ndarray:
    """What to add to counts so that their smallest become equal, with `added` in all."""
    order = np.sort(real)
    filled = (np.cumsum(order) + added) / np.arange(1, len(order) + 1)
    level = filled[np.flatnonzero(filled > order)[-1]]
    return np.maximum(level - real, 0)
