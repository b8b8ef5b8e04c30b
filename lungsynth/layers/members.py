"""Nodule groups as flat arrays: a line a member, those of a group next to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64

from lungsynth.errors import InputError
from lungsynth.layers.groups import PHASES, NoduleGroup

__all__ = ["GroupArrays"]


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
