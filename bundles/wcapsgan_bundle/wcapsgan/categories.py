# SPDX-License-Identifier: Apache-2.0
"""Which category an entry of a data list has: a name that stands there, or the bin of a number, such as a mean rating.

`lungsynth/categories.py` is the same rule for those who use a generator (tests/test_categories.py).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["ANY", "CategoryRule"]

ANY = "any"  # the one category of an unconditional generator


class CategoryRule:
    """How entries of a data list get their category.

    Args:
        names: the categories, in the order of their indices; empty for one that takes all.
        key: of the entries, such as "category", "malignancy" or "solid_fraction".
        edges: bins of a number, one fewer than names: below the first edge is the first category, from the last one
            on the last. Empty: the entry's value is the name.

    Raises:
        ValueError: when edges and names do not fit.
    """

    def __init__(self, names: Sequence[str], *, key: str = "category", edges: Sequence[float] = ()) -> None:
        if edges and len(names) != len(edges) + 1:
            raise ValueError(
                f"category_edges {list(edges)} make {len(edges) + 1} bins, but categories has {len(names)} names, "
                f"{list(names)}. Give one name a bin."
            )
        if any(low >= high for low, high in pairwise(edges)):
            raise ValueError(f"category_edges must grow, got {list(edges)}.")
        self.names = tuple(names)
        self.key = key
        self.edges = tuple(edges)

    def categories_of(self, data: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The category of each entry; None where it has none, or one that is none of the names.

        Raises:
            ValueError: when no entry has the key, or a value is no number where bins need one.
        """
        if not self.names:
            return [ANY] * len(data)
        if data and not any(self.key in entry for entry in data):
            present = sorted({name for entry in data for name in entry})
            raise ValueError(
                f"category_key is {self.key!r}, but the data list has {present} only. Name one of them, or prepare the "
                "cohort again: older ones lack most columns of nodules.csv."
            )
        return [self._category(entry.get(self.key)) for entry in data]

    def _category(self, value: Any) -> str | None:
        if not self.edges:
            return str(value) if str(value) in self.names else None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"category_edges need numbers, but {self.key!r} has {value!r}. Leave out category_edges.")
        return self.names[bisect_right(self.edges, value)]
