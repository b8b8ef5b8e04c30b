"""Streaming selection: of millions of pairs of a lung and a group, the few with the lowest rank, seen once.

`TopK` holds little more than what it keeps, with the settled positions of each pair, so memory grows with what is kept
and not with what is looked at. What it ends with does not depend on the order or the size of the parts it was given.

Planning: which pairs of a lung and a nodule group become samples, without rendering any.

The paper overlays 5,000 groups on 500 lungs and keeps, of 2,500,000 pairs, the 1,000,000 farthest from the edge of
the lung parenchyma (Chi et al., 2023). Lungs are measured one after the other and forgotten; only the best pairs so far
are in memory. `policy` says what is best, `rules` what is allowed at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from jaxtyping import Int16, Int32, UInt64
from tqdm import tqdm

from lungsynth.config import Policy
from lungsynth.errors import InputError
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup
from lungsynth.placement.lung_shape import UNITS_PER_MM, LungShape
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
_PART = 1000  # so that few pairs are not sorted out again and again


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
        if len(self) > self.keep + self.keep // 4 + _PART:
            self._shrink()

    def sorted(self) -> Pairs:
        """The best pairs, the lowest rank first; equal ranks: the earlier lung, then the earlier group."""
        self._shrink()
        found = self._parts[0]
        return found.take(np.lexsort((found.group, found.lung, found.rank)))

    def _shrink(self) -> None:
        pairs = Pairs.joined(self._parts)
        if len(pairs) > self.keep:
            pairs = pairs.take(np.argpartition(pairs.rank, self.keep - 1)[: self.keep])
            self.threshold = pairs.rank.max()
        self._parts = [pairs]


def _widened(values: np.ndarray, widest: int) -> np.ndarray:
    missing = widest - values.shape[1] if values.ndim == 2 else 0
    return np.pad(values, ((0, 0), (0, missing))) if missing else values


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


_FITTED_LUNGS = 64  # on which the weights of a policy are found


@dataclass(frozen=True, eq=False, kw_only=True)
class CategoryPlan:
    """A part of a plan with groups of its own, as a rule one category.

    Args:
        groups: all of them are tried on each lung.
        keep: at most so many pairs.
        policy: which of them.
        target: what `matched` and `balanced` should reach.
        max_per_lung: at most so many pairs of one lung; for short lists, which the widest lung would fill alone.

    Raises:
        InputError: when the policy is unknown, lacks its target, or a number is below 1.
    """

    groups: Sequence[NoduleGroup]
    keep: int
    policy: Policy = "farthest"
    target: TargetDistribution | None = None
    max_per_lung: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy) or self.keep < 1 or (self.max_per_lung or 1) < 1:
            raise InputError(
                f"A plan needs a policy of {get_args(Policy)}, keep >= 1 and max_per_lung >= 1, "
                f"got {self.policy!r}, {self.keep} and {self.max_per_lung}."
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
        ranking: what pairs were ranked by.
        gaps: share of the kept nodules that are of another class than the target says, by distance and by size; None
            without a target.
    """

    pairs: Pairs
    candidates: int
    verdicts: dict[PlacementVerdict, int]
    ranking: PairOrder
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
    max_per_lung: int | None = None,
    seed: int = 0,
) -> PlacementPlan:
    """Scores all pairs of one part; see `CategoryPlan` and `plan_categories`."""
    part = CategoryPlan(groups=groups, keep=keep, policy=policy, target=target, max_per_lung=max_per_lung)
    return plan_categories(lungs, {"": part}, rules=rules, seed=seed)[""]


def plan_categories(
    lungs: Sequence[LungShape],
    parts: Mapping[str, CategoryPlan],
    *,
    lung_hashes: Sequence[int] | None = None,
    rules: PlacementRules | None = None,
    seed: int = 0,
) -> dict[str, PlacementPlan]:
    """Scores all pairs of lungs and groups, and keeps the best of each part.

    Args:
        lungs: one shape a lung; may measure them when asked (`__getitem__`), each is asked for once or twice.
        parts: each with groups of its own.
        lung_hashes: 64-bit numbers that name the lungs in random orders; their indices when None.
        rules: of placement.
        seed: of random orders.
    """
    chosen, names = rules or PlacementRules(), list(lung_hashes or range(len(lungs)))
    runs = {name: _Run(part, chosen, seed) for name, part in parts.items()}
    if any(part.policy != "farthest" for part in parts.values()):
        step = max(1, len(lungs) // _FITTED_LUNGS)
        fitted = [(names[index], lungs[index]) for index in range(0, len(lungs), step)]
        for run in runs.values():
            run.fit(fitted, share=len(fitted) / len(lungs))
    for index in tqdm(range(len(lungs)), desc="lungs planned", unit="lung", disable=len(lungs) < _FITTED_LUNGS):
        shape = lungs[index]
        for run in runs.values():
            run.see(index, names[index], shape)
    return {name: run.finish() for name, run in runs.items()}


class _Run:
    """One part while its lungs pass."""

    def __init__(self, part: CategoryPlan, rules: PlacementRules, seed: int) -> None:
        self.part, self.rules = part, rules
        self.arrays = GroupArrays.of(part.groups)
        self.ranking = PairOrder(seed=seed)
        self.best = TopK(part.keep, self.arrays.places.shape[1])
        self.counts = np.zeros(len(PlacementVerdict), dtype=np.int64)
        self.hashes = np.empty(0, dtype=np.uint64)
        if part.policy != "farthest":
            self.hashes = np.array([int(group.id, 16) for group in part.groups], dtype=np.uint64)

    def fit(self, lungs: Sequence[tuple[int, LungShape]], *, share: float) -> None:
        """Finds the weights on some of the lungs."""
        if self.part.target is None or self.part.policy == "farthest":
            return
        classes: list[Classes] = []
        numbers: list[np.ndarray] = []
        for name, shape in lungs:
            scores = score(shape, self.arrays, self.rules)
            usable = usable_pairs(scores)
            classes.append(classes_of(self.arrays, scores.distance[self.arrays.places[usable]], usable))
            numbers.append(shuffled(self.ranking.seed, name, self.hashes[usable]))
        keep = max(1, round(self.part.keep * share))
        weights = fit_weights(Classes.joined(classes), np.concatenate(numbers), keep=keep, target=self.part.target)
        self.ranking = PairOrder(weights=weights, seed=self.ranking.seed)

    def see(self, index: int, name: int, shape: LungShape) -> None:
        """Scores all groups on a lung and remembers the best."""
        scores = score(shape, self.arrays, self.rules)
        self.counts += np.bincount(scores.verdict, minlength=len(PlacementVerdict))
        usable = usable_pairs(scores)
        ranks = self.ranks(scores, usable, index, name)
        below = np.flatnonzero(ranks <= self.best.threshold)
        if (limit := self.part.max_per_lung) is not None and len(below) > limit:
            below = below[np.argpartition(ranks[below], limit - 1)[:limit]]
        chosen, ranks = usable[below], ranks[below]
        places = self.arrays.places[chosen]
        self.best.add(
            Pairs(
                rank=ranks,
                lung=np.full(len(chosen), index, dtype=np.int32),
                group=chosen.astype(np.int32),
                row=scores.row[places],
                col=scores.col[places],
                distance=scores.distance[places],
                min_distance=scores.min_distance[chosen],
            )
        )

    def ranks(self, scores: PairScores, usable: np.ndarray, index: int, name: int) -> np.ndarray:
        """Ranks of the usable pairs of a lung."""
        if self.ranking.weights is None:
            return farthest_rank(scores, usable, index * len(self.arrays))
        distance = scores.distance[self.arrays.places[usable]]
        weights = self.ranking.weights.of(classes_of(self.arrays, distance, usable))
        return order_rank(shuffled(self.ranking.seed, name, self.hashes[usable]), weights)

    def finish(self) -> PlacementPlan:
        """The plan when all lungs have passed."""
        pairs, target = self.best.sorted(), self.part.target
        gaps = None if target is None else classes_of(self.arrays, pairs.distance, pairs.group).gaps(target)
        return PlacementPlan(
            pairs=pairs,
            candidates=int(self.counts.sum()),
            verdicts={verdict: int(self.counts[verdict]) for verdict in PlacementVerdict},
            ranking=self.ranking,
            gaps=gaps,
        )
