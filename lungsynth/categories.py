"""What a generator's categories mean for the real nodules of a cohort: which of its entries are of which category.

A generator of nodules may have been trained with any column of `nodules.json` as its category, with bins of a number,
or with no categories at all; its bundle's `configs/inference.json` says so. `relabelled` gives the real nodules the
same categories, so that all that reads their `category` (the chain, the ranking, the judge) works with any generator.
`wcapsgan/categories.py` is the same rule in training (tests/test_categories.py).
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from lungsynth.errors import InputError

__all__ = ["ANY", "AS_LISTED", "TEXTURES", "UNKNOWN", "CategoryRule"]

TEXTURES = ("ground_glass", "part_solid", "solid")  # the categories that a data list names
ANY = "any"  # the one category of an unconditional generator
UNKNOWN = "unknown"  # a nodule without a category; no generator can be asked for it
_LISTED = "category"  # where a data list has the texture class


@dataclass(frozen=True, kw_only=True)
class CategoryRule:
    """How entries of a data list get their category.

    Args:
        names: the categories; empty for one that takes all, None for whatever the entries say.
        key: of the entries.
        edges: bins of a number, one fewer than names: below the first edge is the first name, from the last one on the
            last. Empty: the entry's value is the name.

    Raises:
        InputError: when edges and names do not fit.
    """

    names: tuple[str, ...] | None = None
    key: str = _LISTED
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.edges and len(self.names or ()) != len(self.edges) + 1:
            raise InputError(
                f"category_edges {list(self.edges)} make {len(self.edges) + 1} bins, but categories are "
                f"{list(self.names or ())}. Give one name a bin."
            )
        if any(low >= high for low, high in pairwise(self.edges)):
            raise InputError(f"category_edges must grow, got {list(self.edges)}.")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "CategoryRule":
        """The rule that the configs of a bundle state (`bundles.resolved_config`)."""
        names = config.get("categories")
        return cls(
            names=tuple(str(name) for name in names) if isinstance(names, list) else None,
            key=str(config.get("category_key", _LISTED)),
            edges=tuple(float(edge) for edge in config.get("category_edges") or ()),
        )

    @property
    def identity(self) -> str:
        """JSON that differs where entries get other categories; empty where they keep theirs."""
        plain = self.key == _LISTED and not self.edges and self.names != ()
        return "" if plain else json.dumps(asdict(self), sort_keys=True)

    def relabelled(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The entries with `category` by this rule, `unknown` where they have none of its names.

        Raises:
            InputError: when no entry has the key, or a value is no number where bins need one.
        """
        rows = [dict(entry) for entry in entries]
        if not self.identity:
            return rows
        if self.names != () and rows and not any(self.key in entry for entry in rows):
            raise InputError(
                f"The generator's categories are those of {self.key!r}, which no nodule of the cohort has. Prepare the "
                "cohort again (older ones lack most columns of nodules.csv), or use a generator of texture classes."
            )
        return [{**entry, "category": self._category(entry)} for entry in rows]

    def _category(self, entry: Mapping[str, Any]) -> str:
        if self.names == ():
            return ANY
        value = entry.get(self.key)
        if value is None:
            return UNKNOWN
        if self.edges and self.names:
            return _bin(value, self.names, self.edges, self.key)
        return str(value) if self.names is None or str(value) in self.names else UNKNOWN


AS_LISTED = CategoryRule()


def _bin(value: Any, names: Sequence[str], edges: Sequence[float], key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"category_edges need numbers, but {key!r} of the cohort has {value!r}.")
    return names[bisect_right(edges, value)]
