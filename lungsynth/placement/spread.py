"""Choosing among ranked pairs so that a set does not repeat itself.

A policy ranks the pairs that the rules accept. Here they are gone through in that order, the categories in turn, and a
pair is passed over when

0. one of its nodules lies where one of a sample already taken does (`_NEARNESS` of the mean distance between places);
1. its classes of distance or size have had their share;
2. real nodules, or generated ones, have had theirs;
3. its lung or its group has been used more often than the others;
4. one of its nodules has been used while others have not.

Where pairs run out, the conditions are given up one after the other, in this order: a nodule that comes again is the
last resort. What is known of a finished set (`Uses`) counts, so that samples can be added to it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from lungsynth.config import shares_of
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup
from lungsynth.placement.lung_shape import Frames
from lungsynth.placement.planning import Pairs, PlacementPlan
from lungsynth.placement.policy import TargetDistribution, classes_of

__all__ = ["CategoryChoice", "Uses", "spread_pairs", "spread_plans"]

_NEARNESS = 0.5  # of the mean distance between places: two nodules of a set do not lie nearer to each other
_LUNG_SHARE = 0.5  # of the box around both lungs that is lung
_CONDITIONS = 5


@dataclass(eq=False, kw_only=True)
class Uses:
    """What the samples of a set use.

    Args:
        lungs: samples on each, by hash.
        nodules: samples with each, by hash.
        places_mm: of nodules, see `Frames.places_mm`.
    """

    lungs: Counter[str] = field(default_factory=Counter)
    nodules: Counter[str] = field(default_factory=Counter)
    places_mm: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, eq=False, kw_only=True)
class CategoryChoice:
    """What is chosen from of one category.

    Args:
        plan: its pairs, the best first.
        groups: that the pairs mean.
        wanted: pairs.
        target: of distances and sizes; None where the policy has none.
        real_share: of nodules; None where there are none, or nothing is asked.
        nodules: how many there are to choose from.
    """

    plan: PlacementPlan
    groups: Sequence[NoduleGroup]
    wanted: int
    target: TargetDistribution | None
    real_share: float | None
    nodules: int


def spread_plans(
    choices: Mapping[str, CategoryChoice],
    *,
    lung_hashes: Sequence[str],
    frames: Frames,
    max_reuse: float,
    uses: Uses | None = None,
) -> dict[str, PlacementPlan]:
    """Chooses the pairs of all categories together, one of each in turn.

    Args:
        choices: by category.
        lung_hashes: of the lungs that pairs mean.
        frames: of these lungs.
        max_reuse: times the even share of a lung, group or nodule.
        uses: of samples that are there already; extended.
    """
    taken = _Taken(choices, lung_hashes, frames, max_reuse, uses or Uses())
    pickers = {name: _Picker(choice, frames, taken, max_reuse) for name, choice in choices.items()}
    open_pickers = list(pickers.values())
    while open_pickers:
        open_pickers = [picker for picker in open_pickers if picker.pick()]
    return {name: picker.result() for name, picker in pickers.items()}


def spread_pairs(
    pairs: Iterable[tuple[int, int]], keep: int, *, lungs: int, groups: int, max_reuse: float
) -> list[int]:
    """Chooses `keep` pairs that use no lung and no group too often: the paper's crossing, kept from one lung alone.

    Args:
        pairs: (lung, group), the best first.
        keep: how many.
        lungs: number of lungs.
        groups: number of groups.
        max_reuse: times the even share of one lung or group, above which a pair is taken only for want of others.

    Returns:
        Places in `pairs`.
    """
    taken: list[int] = []
    postponed: list[int] = []
    per_lung, per_group = ceil(max_reuse * keep / lungs), ceil(max_reuse * keep / groups)
    lung_uses, group_uses = [0] * lungs, [0] * groups
    for place, (lung, group) in enumerate(pairs):
        if lung_uses[lung] < per_lung and group_uses[group] < per_group:
            taken.append(place)
            lung_uses[lung] += 1
            group_uses[group] += 1
        else:
            postponed.append(place)
        if len(taken) == keep:
            break
    return taken + postponed[: keep - len(taken)]


class _Taken:
    """What the samples taken so far use, of all categories."""

    def __init__(
        self,
        choices: Mapping[str, CategoryChoice],
        lung_hashes: Sequence[str],
        frames: Frames,
        max_reuse: float,
        uses: Uses,
    ) -> None:
        self.lung_hashes, self.uses = lung_hashes, uses
        wanted = sum(choice.wanted for choice in choices.values())
        samples = wanted + sum(uses.lungs.values())
        self.per_lung = max(1, ceil(max_reuse * samples / len(lung_hashes)))
        nodules = sum(_members(choice) for choice in choices.values()) + len(uses.places_mm)
        area_mm2 = frames.size_mm[0] * frames.size_mm[1] * _LUNG_SHARE
        self.nearest_mm = _NEARNESS * (area_mm2 / max(nodules, 1)) ** 0.5
        self._cells: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for place in uses.places_mm:
            self._cells[self._cell(place)].append(place)
        self.distance_left = self._distances(choices)

    def add(self, lung: str, nodules: Iterable[str], places: Sequence[tuple[float, float]]) -> None:
        self.uses.lungs[lung] += 1
        self.uses.nodules.update(nodules)
        self.uses.places_mm.extend(places)
        for place in places:
            self._cells[self._cell(place)].append(place)

    def near(self, place: tuple[float, float]) -> bool:
        down, left = self._cell(place)
        limit = self.nearest_mm**2
        around = ((down + i, left + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        there = (other for cell in around for other in self._cells.get(cell, ()))
        return any((place[0] - y) ** 2 + (place[1] - x) ** 2 < limit for y, x in there)

    def _cell(self, place: tuple[float, float]) -> tuple[int, int]:
        return int(place[0] // self.nearest_mm), int(place[1] // self.nearest_mm)

    @staticmethod
    def _distances(choices: Mapping[str, CategoryChoice]) -> list[int] | None:
        """Nodules of each class of distance that are still to come, over all categories; None without targets."""
        aimed = [(choice.target.distance, _members(choice)) for choice in choices.values() if choice.target]
        if not aimed:
            return None
        shares = sum((distance * members for distance, members in aimed[1:]), aimed[0][0] * aimed[0][1])
        return shares_of(sum(members for _, members in aimed), shares.tolist())


class _Picker:
    """Picks the pairs of one category, one at a time."""

    def __init__(self, choice: CategoryChoice, frames: Frames, taken: _Taken, max_reuse: float) -> None:
        self.choice, self.taken = choice, taken
        pairs, arrays = choice.plan.pairs, GroupArrays.of(choice.groups)
        self.classes = classes_of(arrays, pairs.distance, pairs.group)
        row, col = pairs.row / PHASES, pairs.col / PHASES
        self.places = frames.places_mm(pairs.lung, row, col)
        self.lungs, self.groups = pairs.lung.tolist(), pairs.group.tolist()
        self.picked: list[int] = []
        self._was_picked = np.zeros(len(pairs), np.bool_)
        self._group_uses: Counter[int] = Counter()
        members = _members(choice)
        self._per_group = max(1, ceil(max_reuse * choice.wanted / len(choice.groups)))
        self._per_nodule = max(1, ceil(max_reuse * members / max(choice.nodules, 1)))
        # Of all categories together the shares are exact; of each, as near as whole numbers allow.
        self._distance_left = None if choice.target is None else np.ceil(choice.target.distance * members).tolist()
        self._sizes_left = None if choice.target is None else shares_of(members, choice.target.size.tolist())
        has_real = np.array([any(member.source == "real" for member in group.members) for group in choice.groups])
        # Pairs with real nodules first, up to their share: they are few, and would be passed over else.
        self._order = np.argsort(~has_real[pairs.group], kind="stable").tolist()
        share = choice.real_share
        self._real_left = None if share is None else shares_of(members, [1 - share, share])
        self._search = self._candidates()

    def pick(self) -> bool:
        """Takes the next pair; False when there is none, or enough are taken."""
        if len(self.picked) >= self.choice.wanted:
            return False
        place = next(self._search, None)
        if place is None:
            return False
        self._take(place)
        return len(self.picked) < self.choice.wanted

    def result(self) -> PlacementPlan:
        """The plan of the pairs taken."""
        pairs: Pairs = self.choice.plan.pairs.take(np.sort(np.array(self.picked, dtype=np.int64)))
        target, gaps = self.choice.target, None
        if target is not None:
            gaps = classes_of(GroupArrays.of(self.choice.groups), pairs.distance, pairs.group).gaps(target)
        return replace(self.choice.plan, pairs=pairs, gaps=gaps)

    def _candidates(self) -> Iterator[int]:
        """Places of pairs to take. Uses only grow, so that a pair passed over once stays so under equal conditions."""
        for given_up in range(_CONDITIONS + 1):
            for place in self._order:
                if not self._was_picked[place] and self._accepted(place, given_up):
                    yield place

    def _accepted(self, place: int, given_up: int) -> bool:
        group = self.groups[place]
        members, uses = self.choice.groups[group].members, self.taken.uses
        if given_up <= 4 and any(uses.nodules[member.asset] >= self._per_nodule for member in members):
            return False
        lung = self.taken.lung_hashes[self.lungs[place]]
        often = uses.lungs[lung] >= self.taken.per_lung or self._group_uses[group] >= self._per_group
        if given_up <= 3 and often:
            return False
        real = [int(member.source == "real") for member in members]
        if given_up <= 2 and not _has(self._real_left, real):
            return False
        if given_up <= 1 and not self._has_shares(place, len(members)):
            return False
        return given_up > 0 or not any(map(self.taken.near, self._places(place)))

    def _has_shares(self, place: int, members: int) -> bool:
        distance, size = (values[place][:members].tolist() for values in (self.classes.distance, self.classes.size))
        lefts = ((self.taken.distance_left, distance), (self._distance_left, distance), (self._sizes_left, size))
        return all(_has(left, own) for left, own in lefts)

    def _places(self, place: int) -> list[tuple[float, float]]:
        members = len(self.choice.groups[self.groups[place]].members)
        return [(down, left) for down, left in self.places[place][:members].tolist()]

    def _take(self, place: int) -> None:
        group = self.groups[place]
        members = self.choice.groups[group].members
        self.picked.append(place)
        self._was_picked[place] = True
        self._group_uses[group] += 1
        lung = self.taken.lung_hashes[self.lungs[place]]
        self.taken.add(lung, (member.asset for member in members), self._places(place))
        for at, member in enumerate(members):
            counted = (
                (self.taken.distance_left, int(self.classes.distance[place][at])),
                (self._distance_left, int(self.classes.distance[place][at])),
                (self._sizes_left, int(self.classes.size[place][at])),
                (self._real_left, int(member.source == "real")),
            )
            for left, name in counted:
                if left is not None:
                    left[name] -= 1


def _has(left: Sequence[float] | None, classes: Sequence[int]) -> bool:
    """Whether as many of these classes are still to come; always where nothing is asked."""
    return left is None or all(left[name] >= count for name, count in Counter(classes).items())


def _members(choice: CategoryChoice) -> int:
    """Nodules that are expected of a category."""
    per_group = sum(len(group.members) for group in choice.groups) / len(choice.groups)
    return max(1, round(choice.wanted * per_group))
