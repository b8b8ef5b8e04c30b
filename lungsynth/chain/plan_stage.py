"""Stage 2: which groups lie on which lungs, as recipes in `catalogue.parquet`.

Each category gets its own groups and an equal share of the samples. All its groups are tried on all lungs; of the pairs
that the rules accept, the farthest from the edge of the lung are kept, but of no lung and no group more than twice its
share while there are others, so that a short list is not the widest lung and the most central group alone. At the
paper's size this hardly binds. Groups are added while too few pairs are accepted. `plan_run` plans at that size.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np

from lungsynth.chain.cohort_source import CohortSource
from lungsynth.chain.settings import ChainSettings, SeedStream, seeds, share
from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import PlanWeights, TableWriter, write_pairs
from lungsynth.placement.cohort_statistics import measure_nodules
from lungsynth.placement.groups import GroupSettings, NoduleGroup, draw_groups
from lungsynth.placement.library_lungs import LibraryLungs
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.planning import Pairs, PlacementPlan, plan_pairs
from lungsynth.placement.presence import PresencePrior

__all__ = ["Presence", "make_catalogue", "presence", "sample_seed", "spread"]

_GROWTH = 1.5
_MAX_GROWTH = 10
_SHARE = 2.0  # of what a lung or a group would have if all had the same


@dataclass(frozen=True, eq=False, kw_only=True)
class Presence:
    """Where nodules are found, and how many on a slice."""

    prior: PresencePrior
    settings: GroupSettings


def presence(library: AssetLibrary, cohort: CohortSource | None) -> Presence:
    """LIDC-IDRI's nodules on the lungs of a library, and those of the cohort's training slices."""
    real = measure_nodules(cohort)
    prior = real.presence(LibraryLungs.of(library).sample())
    return Presence(prior=prior, settings=GroupSettings(count_probabilities=real.counts()))


def make_catalogue(
    library: AssetLibrary, path: Path, settings: ChainSettings, *, found: Presence, weights: PlanWeights
) -> dict[str, int]:
    """Plans the run's samples and writes them, one of each category in turn.

    Args:
        library: with the run's nodules and lungs.
        path: `catalogue.parquet`.
        settings: of the run.
        found: where nodules are found.
        weights: for the recipes.

    Returns:
        Pairs looked at, groups drawn, and pairs by verdict.

    Raises:
        InputError: when the rules accept too few pairs.
    """
    lungs = LibraryLungs.of(library)
    shapes = list(lungs)  # the groups of a category may be drawn more than once
    nodules = [asset for asset in library if asset.kind == "nodule"]
    categories = sorted({asset.category for asset in nodules})
    parts: list[tuple[Pairs, Sequence[NoduleGroup]]] = []
    figures: Counter[str] = Counter()
    for index, (category, keep) in enumerate(zip(categories, share(settings.count, len(categories)), strict=True)):
        if keep:
            pool = [asset for asset in nodules if asset.category == category]
            seed = seeds(settings.seed, SeedStream.GROUPS, index, n=1)[0]
            draw = partial(draw_groups, pool, seed=seed, prior=found.prior, settings=found.settings)
            begin = max(1, share(settings.sizes.groups, len(categories))[index])
            planned, groups = _plan_enough(shapes, draw, keep, begin=begin, grow=settings.groups is None)
            chosen = spread(planned, keep, lungs=len(shapes), groups=len(groups))
            parts.append((planned.pairs.take(np.array(chosen)), groups))
            figures.update(pairs=planned.candidates, groups=len(groups))
            figures.update({f"pairs_{verdict.name.lower()}": n for verdict, n in planned.verdicts.items()})
    with TableWriter(path) as writer:
        write_pairs(writer, lungs.assets, parts, seed=sample_seed(settings.seed), weights=weights)
    return dict(figures)


def sample_seed(seed: int) -> int:
    """What the seeds of a run's samples are mixed with."""
    return seeds(seed, SeedStream.SAMPLES, n=1)[0]


def _plan_enough(
    shapes: Sequence[LungShape], draw: Callable[[int], list[NoduleGroup]], keep: int, *, begin: int, grow: bool
) -> tuple[PlacementPlan, list[NoduleGroup]]:
    """All pairs that fit, farthest first, and their groups: as few, from `begin` on, as `keep` samples take."""
    count = begin
    while True:
        groups = draw(count)
        planned = plan_pairs(shapes, groups, keep=len(shapes) * count)
        if len(planned) >= keep:
            return planned, groups
        if not grow or count > begin * _MAX_GROWTH + _MAX_GROWTH:
            raise InputError(
                f"{len(shapes)} lungs and {count} groups of a category give {len(planned)} usable samples, "
                f"{keep} are needed. Give more with --lungs or --groups in a new --out, or ask for a smaller --count."
            )
        count = ceil(count * _GROWTH)


def spread(pairs: Iterable[tuple[int, int]], keep: int, *, lungs: int, groups: int) -> list[int]:
    """Places of `keep` pairs (lung, group): in order, first those that leave no lung and no group above its cap."""
    chosen: list[int] = []
    postponed: list[int] = []
    per_lung, per_group = ceil(_SHARE * keep / lungs), ceil(_SHARE * keep / groups)
    lung_uses, group_uses = [0] * lungs, [0] * groups
    for place, (lung, group) in enumerate(pairs):
        if lung_uses[lung] < per_lung and group_uses[group] < per_group:
            chosen.append(place)
            lung_uses[lung] += 1
            group_uses[group] += 1
        else:
            postponed.append(place)
        if len(chosen) == keep:
            break
    return chosen + postponed[: keep - len(chosen)]
