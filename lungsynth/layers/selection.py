"""Streaming selection: of millions of pairs of a lung and a group, the few with the lowest rank, seen once.

`Best` holds little more than what it keeps, with the settled positions of each pair, so memory grows with what is kept
and not with what is looked at. What it ends with does not depend on the order or the size of the parts it was given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int16, Int32, UInt64

from lungsynth.layers.groups import PHASES
from lungsynth.layers.lung_shape import UNITS_PER_MM

__all__ = ["Best", "Pairs", "in_turn"]

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


class Best:
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


def in_turn(sizes: Sequence[int]) -> np.ndarray:
    """Indices into lists that lie one after the other: the first of each, the second of each, and so on."""
    place = np.concatenate([np.arange(size) for size in sizes])
    which = np.repeat(np.arange(len(sizes)), sizes)
    return np.lexsort((which, place))


def _widened(values: np.ndarray, widest: int) -> np.ndarray:
    missing = widest - values.shape[1] if values.ndim == 2 else 0
    return np.pad(values, ((0, 0), (0, missing))) if missing else values
