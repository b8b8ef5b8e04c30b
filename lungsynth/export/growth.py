"""The samples of a recipe: itself, the same slice without its nodules, and its nodules as they grow.

A nodule whose volume doubles in D days has 2^(t / D) times its volume after t days, so 2^(t / 3D) times its diameter.
Lung and noise stay as they are: what differs between two days is the nodule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lungsynth.errors import InputError
from lungsynth.placement.catalogue import Recipe
from lungsynth.placement.groups import NodulePlacement

__all__ = ["Growth", "Variant", "variants"]

_DAY_DIGITS = 4
_MAX_DOUBLINGS = 64  # of a diameter in a growth series; more are beyond numbers, not only beyond a lung


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A growth series.

    Args:
        days: of the scans, rising; the catalogue's nodules are those of day 0.
        doubling_days: in which the volume doubles (solid cancers: often 100-400).

    Raises:
        InputError: when the days do not rise from 0 on, or the doubling time is not positive.
    """

    days: tuple[int, ...]
    doubling_days: float = 150.0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.days, self.days[1:], strict=False))
        if not self.days or not rising or self.days[0] < 0 or self.days[-1] >= 10**_DAY_DIGITS:
            raise InputError(f"The days of a growth series must rise, from 0 to below 10000, got {list(self.days)}.")
        if not (math.isfinite(self.doubling_days) and self.doubling_days > 0):
            raise InputError(f"The doubling time must be positive, got {self.doubling_days:g} days.")
        if self.days[-1] / (3 * self.doubling_days) > _MAX_DOUBLINGS:
            raise InputError(
                f"In {self.days[-1]} days with a doubling time of {self.doubling_days:g} days a diameter doubles more "
                f"than {_MAX_DOUBLINGS} times. Give fewer days or a longer doubling time."
            )

    def factor(self, day: int) -> float:
        """By which a diameter has grown; rounded, so that it is the same number on every machine."""
        return round(2.0 ** (day / (3 * self.doubling_days)), 6)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One sample to make.

    Args:
        name: of its files; the recipe's id, or that with an ending.
        recipe: with the nodules as they are on this day.
        nodules: False for the lung without them.
        day: of the scan.
    """

    name: str
    recipe: Recipe
    nodules: bool = True
    day: int = 0


def variants(recipe: Recipe, *, pairs: bool = False, growth: Growth | None = None) -> list[Variant]:
    """The samples of a recipe.

    Args:
        recipe: of the catalogue.
        pairs: add `<id>-without`, the slice without nodules.
        growth: make `<id>-day<DDDD>` for each day, instead of `<id>`. None are made of a recipe one of whose nodules
            lies in the lung at first and would grow beyond its edge: that would be a nodule cut off, not one grown.
    """
    if growth is None:
        samples = [Variant(name=recipe.id, recipe=recipe)]
    elif any(_outgrows(nodule, growth) for nodule in recipe.nodules):
        return []
    else:
        samples = [_on_day(recipe, growth, day) for day in growth.days]
    return [*samples, Variant(name=f"{recipe.id}-without", recipe=recipe, nodules=False)] if pairs else samples


def _on_day(recipe: Recipe, growth: Growth, day: int) -> Variant:
    nodules = tuple(_grown(nodule, growth.factor(day)) for nodule in recipe.nodules)
    name = f"{recipe.id}-day{day:0{_DAY_DIGITS}}"
    return Variant(name=name, recipe=replace(recipe, nodules=nodules), day=day)


def _grown(nodule: NodulePlacement, factor: float) -> NodulePlacement:
    scale, diameter_mm = round(nodule.scale * factor, 6), round(nodule.diameter_mm * factor, 4)
    return replace(nodule, scale=scale, diameter_mm=diameter_mm)


def _outgrows(nodule: NodulePlacement, growth: Growth) -> bool:
    sizes: Sequence[float] = [nodule.diameter_mm / 2 * growth.factor(day) for day in (growth.days[0], growth.days[-1])]
    return sizes[0] <= nodule.distance_mm < sizes[1]
