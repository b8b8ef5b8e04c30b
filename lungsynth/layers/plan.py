"""Planning: which pairs of a lung and a nodule group become samples, without rendering any.

The paper overlays 5,000 groups on 500 lungs and keeps, of 2,500,000 pairs, the 1,000,000 farthest from the edge of
the lung parenchyma (Chi et al., 2023). Lungs are measured one after the other and forgotten; only the best pairs so far
are in memory. `policy` says what is best, `rules` what is allowed at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from tqdm import tqdm

from lungsynth.errors import InputError
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.lung_shape import LungShape
from lungsynth.layers.members import GroupArrays
from lungsynth.layers.policy import (
    Classes,
    Policy,
    Target,
    Weights,
    classes_of,
    farthest_rank,
    fit_weights,
    order_rank,
    shuffled,
    usable_pairs,
)
from lungsynth.layers.rules import PlacementRules, Verdict
from lungsynth.layers.scoring import Scores, score
from lungsynth.layers.selection import Best, Pairs

__all__ = ["Part", "Plan", "Ranking", "plan", "plan_parts"]

_FITTED_LUNGS = 64  # on which the weights of a policy are found


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
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
    target: Target | None = None
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
class Ranking:
    """What a policy ranks by: weights of classes and the seed of its random numbers, or neither (`farthest`)."""

    weights: Weights | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
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
    verdicts: dict[Verdict, int]
    ranking: Ranking
    gaps: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.pairs.lung.tolist(), self.pairs.group.tolist(), strict=True)

    @property
    def threshold(self) -> int:
        """The highest rank that is kept; pairs with a higher one are not."""
        return int(self.pairs.rank.max()) if len(self.pairs) else 0


def plan(
    lungs: Sequence[LungShape],
    groups: Sequence[NoduleGroup],
    *,
    keep: int,
    rules: PlacementRules | None = None,
    policy: Policy = "farthest",
    target: Target | None = None,
    max_per_lung: int | None = None,
    seed: int = 0,
) -> Plan:
    """Scores all pairs of one part; see `Part` and `plan_parts`."""
    part = Part(groups=groups, keep=keep, policy=policy, target=target, max_per_lung=max_per_lung)
    return plan_parts(lungs, {"": part}, rules=rules, seed=seed)[""]


def plan_parts(
    lungs: Sequence[LungShape],
    parts: Mapping[str, Part],
    *,
    lung_hashes: Sequence[int] | None = None,
    rules: PlacementRules | None = None,
    seed: int = 0,
) -> dict[str, Plan]:
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

    def __init__(self, part: Part, rules: PlacementRules, seed: int) -> None:
        self.part, self.rules = part, rules
        self.arrays = GroupArrays.of(part.groups)
        self.ranking = Ranking(seed=seed)
        self.best = Best(part.keep, self.arrays.places.shape[1])
        self.counts = np.zeros(len(Verdict), dtype=np.int64)
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
        self.ranking = Ranking(weights=weights, seed=self.ranking.seed)

    def see(self, index: int, name: int, shape: LungShape) -> None:
        """Scores all groups on a lung and remembers the best."""
        scores = score(shape, self.arrays, self.rules)
        self.counts += np.bincount(scores.verdict, minlength=len(Verdict))
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

    def ranks(self, scores: Scores, usable: np.ndarray, index: int, name: int) -> np.ndarray:
        """Ranks of the usable pairs of a lung."""
        if self.ranking.weights is None:
            return farthest_rank(scores, usable, index * len(self.arrays))
        distance = scores.distance[self.arrays.places[usable]]
        weights = self.ranking.weights.of(classes_of(self.arrays, distance, usable))
        return order_rank(shuffled(self.ranking.seed, name, self.hashes[usable]), weights)

    def finish(self) -> Plan:
        """The plan when all lungs have passed."""
        pairs, target = self.best.sorted(), self.part.target
        gaps = None if target is None else classes_of(self.arrays, pairs.distance, pairs.group).gaps(target)
        return Plan(
            pairs=pairs,
            candidates=int(self.counts.sum()),
            verdicts={verdict: int(self.counts[verdict]) for verdict in Verdict},
            ranking=self.ranking,
            gaps=gaps,
        )
