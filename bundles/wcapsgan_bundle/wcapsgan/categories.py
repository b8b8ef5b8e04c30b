# SPDX-License-Identifier: Apache-2.0
"""Which category an entry of a data list has: a name that stands there, or the bin of a number, such as a mean rating.

`lungsynth/categories.py` says the same to those who use a generator (tests/test_categories.py).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["categories_of"]


def categories_of(
    data: Sequence[Mapping[str, Any]], categories: Sequence[str], *, key: str = "category", edges: Sequence[float] = ()
) -> list[str | None]:
    """The category of each entry; None where it has none, or one that is not asked for.

    Args:
        data: entries of a data list.
        categories: names that are asked for; empty: all that are there.
        key: of the entries, such as "category", "malignancy" or "solid_fraction".
        edges: bins of a number, one fewer than categories: below the first edge is the first category, from the last
            one on the last. Empty: the entry's value is the name.

    Raises:
        ValueError: when edges and categories do not fit, no entry has the key, or a value is no number.
    """
    _check_edges(categories, edges)
    if data and not any(key in entry for entry in data):
        known = sorted({name for entry in data for name in entry})
        raise ValueError(
            f"category_key is {key!r}, but the data list has {known} only. Name one of them, or prepare the COHORT "
            "again: older ones lack most columns of nodules.csv."
        )
    values = [entry.get(key) for entry in data]
    if edges:
        return [None if value is None else categories[bisect_right(edges, _number(value, key))] for value in values]
    return [str(value) if not categories or str(value) in categories else None for value in values]


def _check_edges(categories: Sequence[str], edges: Sequence[float]) -> None:
    if edges and len(categories) != len(edges) + 1:
        raise ValueError(
            f"category_edges {list(edges)} make {len(edges) + 1} bins, but categories has {len(categories)} names, "
            f"{list(categories)}. Give one name a bin."
        )
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"category_edges must grow, got {list(edges)}.")


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"category_edges need numbers, but {key!r} has {value!r}. Leave out category_edges.")
    return float(value)
