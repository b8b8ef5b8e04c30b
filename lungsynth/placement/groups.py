"""Nodule groups: nodules that appear together on one slice, with their transforms; drawn first, then placed on lungs.

A group knows positions in the frame of `presence` (u, v) and how each patch is turned, mirrored and scaled. `rules`
resolves it on a lung; a `NodulePlacement` is one of its nodules there. Its canonical JSON is its identity: equal groups
have equal text and an equal id. `GroupArrays` holds many groups as flat arrays, a line a member.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, get_args

import numpy as np
from jaxtyping import Float64, Int64

from lungsynth.errors import InputError
from lungsynth.io.stored import HASH, Check, booleans, lists, numbers, objects, one_of, parse_json, texts
from lungsynth.types import Origin

if TYPE_CHECKING:
    from lungsynth.placement.assets import Asset
    from lungsynth.placement.presence import PresencePrior

__all__ = ["PHASES", "GroupArrays", "GroupSettings", "Member", "NoduleGroup", "NodulePlacement", "draw_groups", "place"]

PHASES = 4  # a centre lies on a quarter of a pixel: 0.2 mm, and few resampled nodules to keep
_DECK = 1  # tells the random numbers of decks from those of groups
_MAX_SCALE = 10.0  # of a patch: a nodule of 45 mm would be wider than a chest
_MEMBER: dict[str, Check] = {
    "asset": texts(HASH),
    "category": texts(),
    "source": one_of(*get_args(Origin)),
    "diameter_mm": numbers(0),
    "u": numbers(0, 1),
    "v": numbers(0, 1),
    "rotation_deg": numbers(-360, 360),
    "flip": booleans,
    "scale": numbers(0, _MAX_SCALE),
    "row_phase": numbers(0, 1),
    "col_phase": numbers(0, 1),
}
_NEEDED = ("asset", "category", "source", "diameter_mm", "u", "v")
_GROUP = lists(
    objects({name: _MEMBER[name] for name in _NEEDED}, {n: c for n, c in _MEMBER.items() if n not in _NEEDED}), least=1
)
_NUMBERS = 9  # uniform numbers a member takes: nodule, cell, u, v, scale, rotation, flip, two phases


@dataclass(frozen=True, kw_only=True)
class Member:
    """One nodule of a group.

    Args:
        asset: hash of the nodule.
        category: its class.
        source: real or generated.
        diameter_mm: after scaling.
        u: 0 patient's right .. 1 left, in the bounding box of the lungs.
        v: 0 anterior .. 1 posterior.
        rotation_deg: turns the patch's column axis towards its row axis (clockwise on the screen).
        flip: mirrors the patch's columns, before turning.
        scale: enlarges the patch.
        row_phase: fraction of a pixel of its centre, a quarter, the same on every lung, so that a resampled patch
            serves all lungs of one spacing.
        col_phase: likewise.

    Raises:
        InputError: when a value is out of its range.
    """

    asset: str
    category: str
    source: Origin
    diameter_mm: float
    u: float
    v: float
    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0
    row_phase: float = 0.0
    col_phase: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.u <= 1 and 0 <= self.v <= 1 and self.diameter_mm > 0 and self.scale > 0):
            raise InputError(
                f"A member of a group needs u and v in [0, 1], a positive diameter_mm and a positive scale, got "
                f"u={self.u:g}, v={self.v:g}, diameter_mm={self.diameter_mm:g}, scale={self.scale:g}."
            )
        if not all(0 <= phase < 1 and phase * PHASES % 1 == 0 for phase in (self.row_phase, self.col_phase)):
            raise InputError(f"A phase is 0, 0.25, 0.5 or 0.75 pixels, got {self.row_phase:g} and {self.col_phase:g}.")


@dataclass(frozen=True)
class NoduleGroup:
    """Nodules of one slice.

    Raises:
        InputError: when there are none.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise InputError("A nodule group needs at least one member.")

    @cached_property
    def json(self) -> str:
        """Canonical JSON: a list of members, keys sorted, no spaces."""
        return json.dumps([vars(member) for member in self.members], sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:16]

    @property
    def category(self) -> str:
        """The category of all members, or `mixed`."""
        categories = {member.category for member in self.members}
        return categories.pop() if len(categories) == 1 else "mixed"

    @classmethod
    def from_json(cls, text: str) -> "NoduleGroup":
        """The group whose `json` this is.

        Raises:
            InputError: when the text is not that of a group.
        """
        values = parse_json(text, _GROUP, source="A group", what="the JSON of a nodule group", remedy="Plan it again.")
        return cls(tuple(Member(**{name: member[name] for name in _MEMBER if name in member}) for member in values))


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """How groups are drawn.

    Args:
        count_probabilities: nodules a slice -> probability; scaled to a sum of 1.
        scale_range: of the patches; their noise and edges are scaled with them, so it is narrow.
        diameter_range_mm: no nodule of this range is scaled out of it; None for any.
        rotate: by any angle; else not at all.
        flip: mirror every second nodule on average.
        deal: like cards: all nodules come once before any comes again; else each is drawn from all of them.

    Raises:
        InputError: when a probability is negative, all are zero, a count is below 1, or a range is empty.
    """

    count_probabilities: Mapping[int, float] = field(default_factory=lambda: {1: 0.7, 2: 0.2, 3: 0.1})
    scale_range: tuple[float, float] = (0.9, 1.1)
    diameter_range_mm: tuple[float, float] | None = None
    rotate: bool = True
    flip: bool = True
    deal: bool = False

    def __post_init__(self) -> None:
        weights, counts = self.count_probabilities.values(), self.count_probabilities.keys()
        if not counts or min(counts) < 1 or min(weights) < 0 or sum(weights) <= 0:
            raise InputError(
                f"count_probabilities needs counts >= 1 with probabilities, got {dict(self.count_probabilities)}."
            )
        for name in ("scale_range", "diameter_range_mm"):
            limits = getattr(self, name)
            if limits is not None and not 0 < limits[0] <= limits[1]:
                raise InputError(f"{name} needs 0 < low <= high, got {limits}.")

    def scaled(self, diameter_mm: float, share: float) -> float:
        """The scale at a share of the range, 3 digits."""
        low, high = self.scale_range
        scale = low + (high - low) * share
        narrow, wide = self.diameter_range_mm or (0.0, 0.0)
        if narrow <= diameter_mm <= wide:
            scale = min(max(scale, narrow / diameter_mm), wide / diameter_mm)
        return round(scale, 3)


def draw_groups(
    nodules: Sequence["Asset"], n: int, *, seed: int, prior: "PresencePrior", settings: GroupSettings | None = None
) -> list[NoduleGroup]:
    """Draws n groups; group i depends on the seed and i alone, so a longer list begins with the shorter one.

    Args:
        nodules: to choose from, all equally likely (the paper: 200 real and 1,000 generated ones).
        n: number of groups (the paper: 5,000 a category).
        seed: not negative.
        prior: presence probability.
        settings: counts, scales and turns.

    Raises:
        InputError: when there is no nodule.
    """
    if not nodules:
        raise InputError("Drawing groups needs at least one nodule, got none. Ask for another category or add nodules.")
    settings = settings or GroupSettings()
    counts = sorted(settings.count_probabilities)
    edges = np.cumsum([settings.count_probabilities[count] for count in counts])
    width = 1 + counts[-1] * _NUMBERS
    numbers = np.array([np.random.default_rng([seed, index]).random(width) for index in range(n)]).reshape(n, width)
    sizes = np.searchsorted(edges[:-1], numbers[:, 0] * edges[-1], side="right")
    draws = numbers[:, 1:].reshape(n, counts[-1], _NUMBERS)
    places = prior.positions(draws[:, :, 1:4].reshape(-1, 3)).reshape(n, counts[-1], 2)
    members = [counts[size] for size in sizes]
    if settings.deal:
        hands = _hands(members, len(nodules), seed=seed)
    else:
        hands = [_choose(draws[index, :count, 0].tolist(), len(nodules)) for index, count in enumerate(members)]
    return [
        NoduleGroup(_members([nodules[place] for place in hand], draws[index], places[index], settings))
        for index, hand in enumerate(hands)
    ]


def _members(
    nodules: Sequence["Asset"], draws: np.ndarray, places: np.ndarray, settings: GroupSettings
) -> tuple[Member, ...]:
    members = []
    numbers, positions = draws[: len(nodules)].tolist(), places[: len(nodules)].tolist()
    for nodule, (_, _, _, _, scale, rotation, flip, row, col), (u, v) in zip(nodules, numbers, positions, strict=True):
        diameter_mm = nodule.diameter_mm or 0.0
        scaled = settings.scaled(diameter_mm, scale)
        # Rounded so that the text is short and says all there is.
        members.append(
            Member(
                asset=nodule.hash,
                category=nodule.category,
                source=nodule.source,
                diameter_mm=round(diameter_mm * scaled, 3),
                u=round(u, 4),
                v=round(v, 4),
                rotation_deg=round(rotation * 360, 1) if settings.rotate else 0.0,
                flip=flip < 0.5 and settings.flip,
                scale=scaled,
                row_phase=int(row * PHASES) / PHASES,
                col_phase=int(col * PHASES) / PHASES,
            )
        )
    return tuple(members)


def _hands(sizes: Sequence[int], n: int, *, seed: int) -> list[list[int]]:
    """Indices below n for each group, dealt from one shuffled deck after the other; none twice in a hand."""
    deck: list[int] = []
    hands, decks = [], 0
    for size in sizes:
        hand: list[int] = []
        for _ in range(size):
            if not deck:
                deck, decks = np.random.default_rng([seed, decks, _DECK]).permutation(n).tolist(), decks + 1
            fresh = next((place for place, index in enumerate(deck) if index not in hand), 0)
            hand.append(deck.pop(fresh))
        hands.append(hand)
    return hands


def _choose(numbers: list[float], n: int) -> list[int]:
    """Indices below n, one for each uniform number, none twice while there are enough."""
    free = list(range(n)) if n < 2 * len(numbers) else None
    indices: list[int] = []
    for number in numbers:
        if free is not None:
            free = free or list(range(n))
            indices.append(free.pop(int(number * len(free))))
            continue
        index = int(number * n)
        while index in indices:
            index = (index + 1) % n
        indices.append(index)
    return indices


@dataclass(frozen=True, kw_only=True)
class NodulePlacement:
    """A nodule on a lung.

    Args:
        asset: hash of the nodule.
        category: its class.
        source: real or generated.
        row_px: of its centre (the centroid of alpha >= 0.5), on the lung's grid, a multiple of 1/4.
        col_px: likewise.
        diameter_mm: after scaling.
        distance_mm: from its centre to the edge of the lung, a multiple of 1/64.
        rotation_deg: see `groups.Member`.
        flip: likewise.
        scale: likewise.

    Raises:
        InputError: when diameter, scale or distance are not positive.
    """

    asset: str
    category: str
    source: Origin
    row_px: float
    col_px: float
    diameter_mm: float
    distance_mm: float
    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.diameter_mm > 0 and self.scale > 0 and self.distance_mm > 0):
            raise InputError(
                f"A placed nodule needs a positive diameter_mm, scale and distance_mm, got {self.diameter_mm:g}, "
                f"{self.scale:g} and {self.distance_mm:g}."
            )


def place(group: NoduleGroup, positions: Sequence[tuple[float, float, float]]) -> tuple[NodulePlacement, ...]:
    """The members of a group at (row_px, col_px, distance_mm)."""
    return tuple(
        NodulePlacement(
            asset=member.asset,
            category=member.category,
            source=member.source,
            row_px=row_px,
            col_px=col_px,
            diameter_mm=member.diameter_mm,
            distance_mm=distance_mm,
            rotation_deg=member.rotation_deg,
            flip=member.flip,
            scale=member.scale,
        )
        for member, (row_px, col_px, distance_mm) in zip(group.members, positions, strict=True)
    )


@dataclass(frozen=True, eq=False)
class GroupArrays:
    """Members of groups.

    Args:
        u, v, diameter_mm: see `groups.Member`.
        row_phase, col_phase: in quarters of a pixel.
        group: index of the member's group, ascending.
    """

    u: Float64[np.ndarray, " members"]
    v: Float64[np.ndarray, " members"]
    diameter_mm: Float64[np.ndarray, " members"]
    row_phase: Int64[np.ndarray, " members"]
    col_phase: Int64[np.ndarray, " members"]
    group: Int64[np.ndarray, " members"]

    @classmethod
    def of(cls, groups: Sequence[NoduleGroup]) -> "GroupArrays":
        """Arrays of a list of groups.

        Raises:
            InputError: when there is none.
        """
        if not groups:
            raise InputError("A plan needs at least one nodule group, got none.")
        rows = [
            (member.u, member.v, member.diameter_mm, member.row_phase * PHASES, member.col_phase * PHASES)
            for group in groups
            for member in group.members
        ]
        u, v, diameter_mm, row, col = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        sizes = np.array([len(group.members) for group in groups])
        group = np.repeat(np.arange(len(groups)), sizes)
        return cls(u, v, diameter_mm, row.astype(np.int64), col.astype(np.int64), group)

    def __len__(self) -> int:
        return int(self.group[-1]) + 1

    @cached_property
    def starts(self) -> Int64[np.ndarray, " groups"]:
        """The first member of each group."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    @cached_property
    def sizes(self) -> Int64[np.ndarray, " groups"]:
        """Members of each group."""
        return np.bincount(self.group)

    @cached_property
    def places(self) -> Int64[np.ndarray, "groups widest"]:
        """Indices of each group's members; its first member again where there are fewer than in the largest group."""
        place = np.arange(int(self.sizes.max()))
        return self.starts[:, None] + np.where(place < self.sizes[:, None], place, 0)

    @cached_property
    def pairs(self) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
        """Members that share a group, each two once."""
        pairs = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))]
        for first, second in combinations(range(int(self.sizes.max())), 2):
            start = self.starts[self.sizes > second]
            pairs.append((start + first, start + second))
        return np.concatenate([first for first, _ in pairs]), np.concatenate([second for _, second in pairs])

    def take(self, members: np.ndarray) -> "GroupArrays":
        """Some members, without their groups."""
        return GroupArrays(
            self.u[members],
            self.v[members],
            self.diameter_mm[members],
            self.row_phase[members],
            self.col_phase[members],
            self.group[members],
        )
