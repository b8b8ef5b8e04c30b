"""Stage 2: which groups lie on which lungs, as recipes in `catalogue.parquet`.

Each category gets its own groups and an equal share of the samples. All its groups are tried on all lungs; of the pairs
that the rules accept, the farthest from the edge of the lung are kept, but of no lung and no group more than twice its
share while there are others, so that a short list is not the widest lung and the most central group alone. At the
paper's size this hardly binds. Groups are added while too few pairs are accepted.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from lungsynth.chain.cohort_source import CohortSource
from lungsynth.chain.settings import ChainSettings, Purpose, seeds, share
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.layers import (
    Asset,
    AssetLibrary,
    LungShape,
    NoduleGroup,
    PlacementRules,
    Plan,
    PresencePrior,
    Recipe,
    analytic_presence,
    draw_groups,
    fit_presence,
    make_recipe,
    plan,
    resolve,
    write_catalogue,
)

__all__ = ["PlanWeights", "make_catalogue", "presence", "spread"]

_GROWTH = 1.5
_MAX_GROWTH = 10
_SHARE = 2.0  # of what a lung or a group would have if all had the same
_MEASURED_SLICES = 200

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanWeights:
    """SHA-256 of the weights that recipes name; `enhancer` is None when the samples are not enhanced."""

    nodule: str
    enhancer: str | None


@dataclass(frozen=True, kw_only=True)
class _Lungs:
    """The lungs of a run with their shapes, in one order."""

    assets: list[Asset]
    shapes: list[LungShape]


def make_catalogue(
    library: AssetLibrary, path: Path, settings: ChainSettings, *, prior: PresencePrior, weights: PlanWeights
) -> dict[str, int]:
    """Plans the run's samples and writes them, one of each category in turn.

    Args:
        library: with the run's nodules and lungs.
        path: `catalogue.parquet`.
        settings: of the run.
        prior: where nodules are found.
        weights: for the recipes.

    Returns:
        Pairs looked at, groups drawn, and pairs by verdict.

    Raises:
        InputError: when the rules accept too few pairs.
    """
    lungs = _measure_lungs(library)
    nodules = [asset for asset in library if asset.kind == "nodule"]
    categories = sorted({asset.category for asset in nodules})
    columns: list[list[Recipe]] = []
    figures: Counter[str] = Counter()
    for index, (category, keep) in enumerate(zip(categories, share(settings.count, len(categories)), strict=True)):
        if keep:
            pool = [asset for asset in nodules if asset.category == category]
            seed = seeds(settings.seed, Purpose.GROUPS, index, n=1)[0]
            draw = partial(draw_groups, pool, seed=seed, prior=prior)
            begin = max(1, share(settings.sizes.groups, len(categories))[index])
            planned, groups = _plan_enough(lungs, draw, keep, begin=begin, grow=settings.groups is None)
            pairs = spread(planned, keep, lungs=len(lungs.assets), groups=len(groups))
            columns.append(_recipes(pairs, groups, lungs, settings.seed, weights))
            figures.update(pairs=planned.candidates, groups=len(groups))
            figures.update({f"pairs_{verdict.name.lower()}": n for verdict, n in planned.verdicts.items()})
    write_catalogue((recipe for recipe in chain(*zip_longest(*columns)) if recipe is not None), path)
    return dict(figures)


def presence(cohort: CohortSource | None) -> PresencePrior:
    """Where nodules are found: measured on the cohort's training slices, else the analytic prior."""
    if cohort is None:
        return analytic_presence()
    points = [point for entry in cohort.diseased[:_MEASURED_SLICES] for point in _points(cohort, entry)]
    return fit_presence(np.array(points)) if points else analytic_presence()


def _measure_lungs(library: AssetLibrary) -> _Lungs:
    assets = [asset for asset in library if asset.kind == "lung"]
    shapes = []
    for asset in assets:
        hu, mask = library.load(asset.hash)
        shapes.append(LungShape.from_mask(mask > 0, spacing_mm=asset.spacing_mm, hu=hu))
    return _Lungs(assets=assets, shapes=shapes)


def _plan_enough(
    lungs: _Lungs, draw: Callable[[int], list[NoduleGroup]], keep: int, *, begin: int, grow: bool
) -> tuple[Plan, list[NoduleGroup]]:
    """All pairs that fit, farthest first, and their groups: as few, from `begin` on, as `keep` samples take."""
    count = begin
    while True:
        groups = draw(count)
        planned = plan(lungs.shapes, groups, keep=len(lungs.assets) * count)
        if len(planned) >= keep:
            return planned, groups
        if not grow or count > begin * _MAX_GROWTH + _MAX_GROWTH:
            raise InputError(
                f"{len(lungs.assets)} lungs and {count} groups of a category give {len(planned)} usable samples, "
                f"{keep} are needed. Give more with --lungs or --groups in a new --out, or ask for a smaller --count."
            )
        count = ceil(count * _GROWTH)


def spread(pairs: Iterable[tuple[int, int]], keep: int, *, lungs: int, groups: int) -> list[tuple[int, int]]:
    """Takes `keep` pairs (lung, group) in their order, first those that leave no lung and no group above its cap."""
    chosen: list[tuple[int, int]] = []
    postponed: list[tuple[int, int]] = []
    per_lung, per_group = ceil(_SHARE * keep / lungs), ceil(_SHARE * keep / groups)
    lung_uses, group_uses = [0] * lungs, [0] * groups
    for lung, group in pairs:
        if lung_uses[lung] < per_lung and group_uses[group] < per_group:
            chosen.append((lung, group))
            lung_uses[lung] += 1
            group_uses[group] += 1
        else:
            postponed.append((lung, group))
        if len(chosen) == keep:
            break
    return chosen + postponed[: keep - len(chosen)]


def _recipes(
    pairs: list[tuple[int, int]], groups: list[NoduleGroup], lungs: _Lungs, seed: int, weights: PlanWeights
) -> list[Recipe]:
    recipes = []
    for lung_index, group_index in pairs:
        lung, group = lungs.assets[lung_index], groups[group_index]
        keys = (int(lung.hash, 16), int(group.id, 16))  # the pair, so that a sample's seed depends on no other sample
        recipe = make_recipe(
            lung,
            group,
            resolve(lungs.shapes[lung_index], group, PlacementRules()).placements,
            seed=seeds(seed, Purpose.SAMPLES, *keys, n=1)[0],
            weights_nodule=weights.nodule,
            weights_enhancer=weights.enhancer,
        )
        recipes.append(recipe)
    return recipes


def _points(cohort: CohortSource, entry: dict[str, Any]) -> list[tuple[float, float]]:
    """(u, v) of the nodules of a slice; none where its lungs were not outlined."""
    try:
        _, label, affine = cohort.read_pair(entry)
    except InputError as error:
        _LOG.warning("left out of the presence prior: %s", error)
        return []
    if not (label == Label.LUNG).any():
        return []
    columns_mm, rows_mm = (float(value) for value in np.linalg.norm(affine[:3, :2], axis=0))
    inside = (label == Label.LUNG) | (label == Label.NODULE)
    shape = LungShape.from_mask(inside, spacing_mm=(rows_mm, columns_mm))
    nodules, count = ndimage.label(label == Label.NODULE)
    centres = np.array(ndimage.center_of_mass(nodules > 0, nodules, np.arange(1, count + 1))).reshape(-1, 2)
    u, v = shape.to_unit(centres[:, 0], centres[:, 1])
    return list(zip(u.tolist(), v.tolist(), strict=True))
