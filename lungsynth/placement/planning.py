"""Planning: which pairs of a lung and a nodule group become samples, without rendering any.

The paper overlays 5,000 groups on 500 lungs and keeps, of 2,500,000 pairs, the 1,000,000 farthest from the edge of
the lung parenchyma (Chi et al., 2023). `rules` says which pairs are allowed at all, `policy` which of those are best.

Lungs are measured one after the other and forgotten. Of the pairs only the best so far are in memory, with the settled
positions of their nodules (`TopK`), so memory grows with what is kept and not with what is looked at. What a plan ends
with does not depend on the order or the size of the parts in which pairs arrive.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from jaxtyping import Int16, Int32, UInt64
from tqdm import tqdm

from lungsynth.config import Policy
from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.policy import (
    Classes,
    PolicyWeights,
    TargetDistribution,
    classes_of,
    fit_weights,
    order_rank,
    shuffled,
)
from lungsynth.placement.rules import PairScores, PlacementRules, PlacementVerdict, score

__all__ = [
    "CategoryPlan",
    "PairOrder",
    "Pairs",
    "PlacementPlan",
    "TopK",
    "farthest_rank",
    "plan_categories",
    "plan_pairs",
    "usable_pairs",
]

_PAIR_BITS = np.uint64(48)  # of a rank, for the number of the pair; the distance stands above
_SLACK = 1000  # pairs beyond what is kept, so that few are not sorted out again and again; speed alone
_FITTED_LEAST = 2000  # pairs whose shares are fitted, where few are kept of many
_FITTED_LUNGS = 64  # on which the weights of a policy are fitted; more fit better, and measure more lungs twice


@dataclass(frozen=True, eq=False, kw_only=True)
class CategoryPlan:
    """What is planned of one category: its groups, and how many of their pairs are kept.

    Args:
        groups: all of them are tried on each lung.
        keep: at most so many pairs.
        policy: which of them.
        target: what all policies but `farthest` should reach.
        pool: pairs to remember, the best, for a choice among them (`placement.spread`); `keep` when None.

    Raises:
        InputError: when the policy is unknown, lacks its target, or a number is below 1.
    """

    groups: Sequence[NoduleGroup]
    keep: int
    policy: Policy = "farthest"
    target: TargetDistribution | None = None
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy) or self.keep < 1:
            raise InputError(
                f"A plan needs a policy of {get_args(Policy)} and keep >= 1, got {self.policy!r} and {self.keep}."
            )
        if self.policy != "farthest" and self.target is None:
            raise InputError(f"The policy {self.policy} needs a target: the distribution of real nodules.")


@dataclass(frozen=True, eq=False, kw_only=True)
class PairOrder:
    """What a policy ranks by: weights of classes and the seed of its random numbers, or neither (`farthest`)."""

    weights: PolicyWeights | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PlacementPlan:
    """The pairs kept, the best first.

    Args:
        pairs: what is kept.
        candidates: pairs looked at.
        verdicts: pairs of each verdict; `KEPT` are those that may be used, of which the best stand in `pairs`.
        order: what pairs were ranked by.
        gaps: share of the kept nodules that are of another class than the target says, by distance and by size; None
            without a target.
    """

    pairs: "Pairs"
    candidates: int
    verdicts: dict[PlacementVerdict, int]
    order: PairOrder
    gaps: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.pairs.lung.tolist(), self.pairs.group.tolist(), strict=True)

    @property
    def threshold(self) -> int:
        """The highest rank that is kept; pairs with a higher one are not."""
        return int(self.pairs.rank.max()) if len(self.pairs) else 0


def plan_pairs(
    lungs: Sequence[LungShape],
    groups: Sequence[NoduleGroup],
    *,
    keep: int,
    rules: PlacementRules | None = None,
    policy: Policy = "farthest",
    target: TargetDistribution | None = None,
    seed: int = 0,
) -> PlacementPlan:
    """Plans one category alone; see `CategoryPlan` and `plan_categories`."""
    category = CategoryPlan(groups=groups, keep=keep, policy=policy, target=target)
    return plan_categories(lungs, {"": category}, rules=rules, seed=seed)[""]


def plan_categories(
    lungs: Sequence[LungShape],
    categories: Mapping[str, CategoryPlan],
    *,
    lung_hashes: Sequence[int] | None = None,
    rules: PlacementRules | None = None,
    seed: int = 0,
) -> dict[str, PlacementPlan]:
    """Scores all pairs of lungs and groups, and keeps the best of each category.

    Args:
        lungs: one shape a lung; may measure them when asked (`__getitem__`), each is asked for once or twice.
        categories: each with groups of its own.
        lung_hashes: 64-bit numbers that name the lungs in random orders; their indices when None.
        rules: of placement.
        seed: of random orders.
    """
    rules, names = rules or PlacementRules(), list(lung_hashes or range(len(lungs)))
    runs = {name: _CategoryRun(category, rules, seed) for name, category in categories.items()}
    if any(category.policy != "farthest" for category in categories.values()):
        step = max(1, len(lungs) // _FITTED_LUNGS)
        fitted = [(names[index], lungs[index]) for index in range(0, len(lungs), step)]
        for run in runs.values():
            run.fit(fitted, share=len(fitted) / len(lungs))
    for index in tqdm(range(len(lungs)), desc="lungs planned", unit="lung", disable=len(lungs) < _FITTED_LUNGS or None):
        shape = lungs[index]
        for run in runs.values():
            run.observe(index, names[index], shape)
    return {name: run.select() for name, run in runs.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs:
    """Pairs of a lung and a group, with the settled places of the group's members.

    Args:
        rank: lower is better.
        lung: index of the lung.
        group: index of the group.
        row, col: of the members, in quarters of a pixel; beyond a group's members the values mean nothing.
        distance: to the edge of the lung, in 1/64 mm.
        min_distance: of the member nearest to the edge, likewise.
    """

    rank: UInt64[np.ndarray, " pairs"]
    lung: Int32[np.ndarray, " pairs"]
    group: Int32[np.ndarray, " pairs"]
    row: Int16[np.ndarray, "pairs widest"]
    col: Int16[np.ndarray, "pairs widest"]
    distance: Int16[np.ndarray, "pairs widest"]
    min_distance: Int16[np.ndarray, " pairs"]

    @classmethod
    def none(cls, widest: int) -> "Pairs":
        """No pairs, of groups with up to `widest` members."""
        index = np.empty(0, dtype=np.int32)
        places = np.empty((0, widest), dtype=np.int16)
        return cls(
            rank=np.empty(0, dtype=np.uint64),
            lung=index,
            group=index,
            row=places,
            col=places,
            distance=places,
            min_distance=np.empty(0, dtype=np.int16),
        )

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def min_distance_mm(self) -> np.ndarray:
        """Distance to the edge of the member nearest to it, float32."""
        return (self.min_distance / np.float32(UNITS_PER_MM)).astype(np.float32)

    def take(self, index: np.ndarray) -> "Pairs":
        """Some pairs, in the order asked for."""
        return Pairs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def positions(self, index: int, members: int) -> list[tuple[float, float, float]]:
        """(row_px, col_px, distance_mm) of the members of a pair."""
        planes = (self.row, self.col, self.distance)
        row, col, distance = (plane[index, :members].tolist() for plane in planes)
        return [(r / PHASES, c / PHASES, d / UNITS_PER_MM) for r, c, d in zip(row, col, distance, strict=True)]

    @staticmethod
    def joined(parts: Sequence["Pairs"]) -> "Pairs":
        """Pairs one after the other; groups of fewer members are widened."""
        widest = max(part.row.shape[1] for part in parts)
        return Pairs(
            **{
                field.name: np.concatenate([_widened(getattr(part, field.name), widest) for part in parts])
                for field in fields(Pairs)
            }
        )


class TopK:
    """The pairs with the lowest ranks so far.

    Args:
        keep: how many.
        widest: members of the largest group.
    """

    def __init__(self, keep: int, widest: int) -> None:
        self.keep = keep
        self.threshold = np.uint64(np.iinfo(np.uint64).max)  # no rank above it can be among the best
        self._parts = [Pairs.none(widest)]

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def add(self, pairs: Pairs) -> None:
        """Takes up some pairs; those above the threshold may be left out before."""
        self._parts.append(pairs)
        if len(self) > self.keep + self.keep // 4 + _SLACK:
            self._shrink()

    def sorted(self) -> Pairs:
        """The best pairs, the lowest rank first; equal ranks: the earlier lung, then the earlier group."""
        self._shrink()
        pairs = self._parts[0]
        return pairs.take(np.lexsort((pairs.group, pairs.lung, pairs.rank)))

    def _shrink(self) -> None:
        pairs = Pairs.joined(self._parts)
        if len(pairs) > self.keep:
            pairs = pairs.take(np.argpartition(pairs.rank, self.keep - 1)[: self.keep])
            self.threshold = pairs.rank.max()
        self._parts = [pairs]


def farthest_rank(scores: PairScores, usable: np.ndarray, first_pair: int) -> UInt64[np.ndarray, " pairs"]:
    """Ranks of `farthest`: farther first, then the earlier pair.

    Raises:
        InputError: beyond 2**48 pairs.
    """
    if first_pair + len(scores.verdict) > 1 << int(_PAIR_BITS):
        raise InputError("A plan holds at most 2**48 pairs of a lung and a group; plan fewer at a time.")
    nearer = (np.iinfo(np.int16).max - scores.min_distance[usable]).astype(np.uint64)
    return (nearer << _PAIR_BITS) | (usable + first_pair).astype(np.uint64)


def usable_pairs(scores: PairScores) -> np.ndarray:
    """Indices of the groups that the rules accept."""
    return np.flatnonzero(scores.verdict == PlacementVerdict.KEPT)


class _CategoryRun:
    """One category while the lungs pass."""

    def __init__(self, category: CategoryPlan, rules: PlacementRules, seed: int) -> None:
        self.category, self.rules = category, rules
        self.arrays = GroupArrays.of(category.groups)
        self.order = PairOrder(seed=seed)
        self.best = TopK(category.pool or category.keep, self.arrays.places.shape[1])
        self.counts = np.zeros(len(PlacementVerdict), dtype=np.int64)
        self.hashes = np.empty(0, dtype=np.uint64)
        if category.policy != "farthest":
            self.hashes = np.array([int(group.id, 16) for group in category.groups], dtype=np.uint64)

    def fit(self, lungs: Sequence[tuple[int, LungShape]], *, share: float) -> None:
        """Finds the weights on some of the lungs."""
        if self.category.target is None or self.category.policy == "farthest":
            return
        classes: list[Classes] = []
        numbers: list[np.ndarray] = []
        for name, shape in lungs:
            scores = score(shape, self.arrays, self.rules)
            usable = usable_pairs(scores)
            classes.append(classes_of(self.arrays, scores.distance[self.arrays.places[usable]], usable))
            numbers.append(shuffled(self.order.seed, name, self.hashes[usable]))
        joined, ranks = Classes.joined(classes), np.concatenate(numbers)
        keep = max(1, round(self.category.keep * share))
        if self.category.pool is not None:  # the shares of a few pairs are noise
            keep = max(keep, min(_FITTED_LEAST, len(ranks) // 2))
        weights = fit_weights(joined, ranks, keep=keep, target=self.category.target)
        self.order = PairOrder(weights=weights, seed=self.order.seed)

    def observe(self, index: int, name: int, shape: LungShape) -> None:
        """Scores all groups on a lung and remembers the best."""
        scores = score(shape, self.arrays, self.rules)
        self.counts += np.bincount(scores.verdict, minlength=len(PlacementVerdict))
        usable = usable_pairs(scores)
        ranks = self.ranks(scores, usable, index, name)
        below = np.flatnonzero(ranks <= self.best.threshold)
        groups = usable[below]
        places = self.arrays.places[groups]
        self.best.add(
            Pairs(
                rank=ranks[below],
                lung=np.full(len(groups), index, dtype=np.int32),
                group=groups.astype(np.int32),
                row=scores.row[places],
                col=scores.col[places],
                distance=scores.distance[places],
                min_distance=scores.min_distance[groups],
            )
        )

    def ranks(self, scores: PairScores, usable: np.ndarray, index: int, name: int) -> np.ndarray:
        """Ranks of the usable pairs of a lung."""
        if self.order.weights is None:
            return farthest_rank(scores, usable, index * len(self.arrays))
        distance = scores.distance[self.arrays.places[usable]]
        weights = self.order.weights.of(classes_of(self.arrays, distance, usable))
        return order_rank(shuffled(self.order.seed, name, self.hashes[usable]), weights)

    def select(self) -> PlacementPlan:
        """The plan when all lungs have passed."""
        pairs, target = self.best.sorted(), self.category.target
        gaps = None if target is None else classes_of(self.arrays, pairs.distance, pairs.group).gaps(target)
        return PlacementPlan(
            pairs=pairs,
            candidates=int(self.counts.sum()),
            verdicts={verdict: int(self.counts[verdict]) for verdict in PlacementVerdict},
            order=self.order,
            gaps=gaps,
        )


def _widened(values: np.ndarray, widest: int) -> np.ndarray:
    missing = widest - values.shape[1] if values.ndim == 2 else 0
    return np.pad(values, ((0, 0), (0, missing))) if missing else values
