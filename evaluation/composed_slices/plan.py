"""Which real nodules lie on which real lungs: the plan of whole diseased slices, all of one part of a cohort.

A slice shows one to three nodules of one category, drawn and placed by `lungsynth.placement` as in the chain: where and
how many as LIDC-IDRI and the cohort have them, at their own size, mirrored and turned. The first place that the rules
accept is taken, whatever its distance to the edge, so that nothing of the product's choice is in what it is compared
with. Patients of the lungs take turns, and so do their slices.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lungsynth.cohort.reader import CohortSplit
from lungsynth.generate_assets import real_lungs, real_nodules
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import Recipe, make_recipe
from lungsynth.placement.groups import GroupSettings, draw_groups
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.plan_catalogue import measure_occurrence
from lungsynth.placement.presence import PresencePrior
from lungsynth.placement.rules import PlacementRules, PlacementVerdict, resolve
from lungsynth.seeds import SeedStream, seeds

__all__ = ["UNRATED", "PlannedSlice", "categories_of", "plan_slices"]

_GROUPS = 32  # tried on a lung before the next lung is taken
_LUNGS = 4  # tried before the slice is left out
UNRATED = "unknown"  # category of nodules that nobody rated

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedSlice:
    """One slice.

    Args:
        id: of the slice.
        category: of all its nodules.
        recipe: how it is made from the library.
        lung: id of the normal slice.
        nodules: their ids.
        patients: of the lung, then of the nodules; none twice.
    """

    id: str
    category: str
    recipe: Recipe
    lung: str
    nodules: tuple[str, ...]
    patients: tuple[str, ...]


def categories_of(source: CohortSplit) -> list[str]:
    """Categories of the nodules of a part; unrated ones only where there are no others."""
    found = sorted({nodule.category for nodule in source.nodules()})
    return [name for name in found if name != UNRATED] or found


def plan_slices(
    library: AssetLibrary, source: CohortSplit, *, categories: Sequence[str], count: int, seed: int, key: int
) -> list[PlannedSlice]:
    """Plans the slices of a part and puts what they need into a library.

    Args:
        library: an empty one.
        source: the part; it lends lungs and nodules, and says where nodules lie.
        categories: as many slices of each.
        count: of slices a category; fewer where the part has no lung or no nodule, or no place is found.
        seed: of everything random.
        key: of the part, so that parts draw differently.
    """
    order = seeds(seed, SeedStream.SLICES, key, n=1)[0]
    lungs = list(dict.fromkeys(real_lungs(library, source, seed=order)))
    pools = {name: list(dict.fromkeys(real_nodules(library, source, name, seed=order))) for name in categories}
    if not lungs or not any(pools.values()):
        return []
    turns = _Turns(library, lungs, source.patient_of)
    occurrence = measure_occurrence(LibraryLungs.of(library), source)
    draws = _Draws(occurrence.prior, replace(occurrence.group_settings(), scale_range=(1.0, 1.0)))
    return [
        planned
        for index, (category, pool) in enumerate(pools.items())
        for planned in _of_category(
            turns, pool, draws, category, first=index * count, words=seeds(seed, SeedStream.SLICES, key, index, n=count)
        )
    ]


class _Draws(NamedTuple):
    """How groups are drawn."""

    prior: PresencePrior
    settings: GroupSettings


class _Turns:
    """The lungs of a library, patient after patient, each patient's slices one after the other; measured once."""

    def __init__(self, library: AssetLibrary, lungs: Sequence[Asset], patients: Mapping[str, str]) -> None:
        self.library, self.patients = library, patients
        groups: dict[str, list[Asset]] = {}
        for lung in lungs:
            groups.setdefault(patients.get(lung.origin, lung.origin), []).append(lung)
        self._groups = [groups[name] for name in sorted(groups)]
        self._shapes: dict[str, LungShape] = {}

    def __getitem__(self, turn: int) -> Asset:
        own = self._groups[turn % len(self._groups)]
        return own[turn // len(self._groups) % len(own)]

    def shape(self, lung: Asset) -> LungShape:
        """The shape of a lung."""
        if lung.hash not in self._shapes:
            hu, mask = self.library.load(lung.hash, keep=False)
            self._shapes[lung.hash] = LungShape.from_mask(mask > 0, spacing_mm=lung.spacing_mm, hu=hu)
        return self._shapes[lung.hash]


def _of_category(
    turns: _Turns, pool: Sequence[Asset], draws: _Draws, category: str, *, first: int, words: Sequence[int]
) -> Iterator[PlannedSlice]:
    for number, word in enumerate(words if pool else ()):
        recipe = next(filter(None, (_place(turns, pool, draws, first + number + k, word) for k in range(_LUNGS))), None)
        if recipe is None:
            _logger.warning("no place for nodules of category %s on %d lungs: a slice is left out", category, _LUNGS)
            continue
        lung = turns.library[recipe.lung].origin
        nodules = tuple(turns.library[placed.asset].origin for placed in recipe.nodules)
        owners = [turns.patients.get(origin, origin) for origin in (lung, *nodules)]
        yield PlannedSlice(
            id=f"{category}_{number:04d}",
            category=category,
            recipe=recipe,
            lung=lung,
            nodules=nodules,
            patients=tuple(dict.fromkeys(owners)),
        )


def _place(turns: _Turns, pool: Sequence[Asset], draws: _Draws, turn: int, word: int) -> Recipe | None:
    """The first group that the rules accept on the lung whose turn it is; None when there is none among those drawn."""
    lung = turns[turn]
    for group in draw_groups(pool, _GROUPS, seed=word, prior=draws.prior, settings=draws.settings):
        resolution = resolve(turns.shape(lung), group, PlacementRules())
        if resolution.verdict is PlacementVerdict.KEPT:
            return make_recipe(lung, group, resolution.placements, seed=word)
    return None
