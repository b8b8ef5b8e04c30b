"""A plan at the paper's size: assets -> pairs scored -> `catalogue.parquet`, without rendering any sample."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lungsynth.chain.cohort_source import CohortSource, open_cohort
from lungsynth.chain.plan_settings import PlanSettings
from lungsynth.chain.plan_stage import sample_seed
from lungsynth.chain.settings import SeedStream, Sizes, seeds
from lungsynth.ct.write import write_atomically
from lungsynth.errors import InputError
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import PlanWeights, TableWriter, read_catalogue, write_pairs
from lungsynth.placement.cohort_statistics import NoduleStatistics, measure_nodules
from lungsynth.placement.groups import GroupSettings, NoduleGroup, draw_groups
from lungsynth.placement.library_lungs import LibraryLungs
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.plan_record import METADATA_KEY, PartRecord, PlanRecord, write_groups
from lungsynth.placement.planning import CategoryPlan, PlacementPlan, plan_categories
from lungsynth.placement.presence import PresencePrior
from lungsynth.placement.targets import rule_of, shares_of_samples, target_of

__all__ = ["PlanOutcome", "run_plan"]

_ASSETS_FILE = "assets.json"  # what the library beside a catalogue was made with


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """What came of a plan.

    Args:
        record: as the catalogue remembers it.
        asset_seconds: to make the assets; 0 when they were there.
        plan_seconds: from the library's lungs to the written catalogue; 0 when that was there.
    """

    record: PlanRecord
    asset_seconds: float
    plan_seconds: float


def run_plan(settings: PlanSettings) -> PlanOutcome:
    """Plans a catalogue, or finds that it is there.

    Raises:
        InputError: before anything is written, when an input cannot be used; or when `out` is of another plan.
    """
    cohort = open_cohort(settings.cohort, rule=rule_of(settings)) if settings.cohort else None
    started = time.monotonic()
    library = _library(settings, cohort)
    identity = _identity(settings, cohort, library)
    asset_seconds, started = time.monotonic() - started, time.monotonic()
    if settings.out.exists():
        record = PlanRecord.read(read_catalogue(settings.out))
        if json.loads(json.dumps(identity)) != record.identity:
            raise InputError(f"{settings.out}: holds another plan. Give another --out, or repeat its settings.")
        return PlanOutcome(record=record, asset_seconds=asset_seconds, plan_seconds=0.0)
    record = _plan(settings, library, measure_nodules(cohort), identity)
    return PlanOutcome(record=record, asset_seconds=asset_seconds, plan_seconds=time.monotonic() - started)


def _plan(
    settings: PlanSettings, library: AssetLibrary, real: NoduleStatistics, identity: Mapping[str, Any]
) -> PlanRecord:
    lungs = LibraryLungs.of(library, real_voxels=settings.real_voxels, vessel_masks=settings.vessel_masks)
    lungs = lungs.first(settings.lungs)
    nodules = _nodules(library, settings)
    sample = lungs.sample()
    prior = real.presence(sample)
    groups = {
        category: _draw(pool, index, settings, real, prior) for index, (category, pool) in enumerate(nodules.items())
    }
    parts = _parts(settings, groups, real, prior, sample)
    plans = plan_categories(
        lungs, parts, lung_hashes=lungs.hashes, rules=settings.placement_rules, seed=sample_seed(settings.seed)
    )
    record = PlanRecord(
        identity=identity,
        sample_seed=sample_seed(settings.seed),
        parts={category: PartRecord.of(found, len(groups[category])) for category, found in plans.items()},
        figures=_figures(lungs, nodules, plans),
        prior=prior,
    )
    write_groups({category: groups[category] for category in plans}, settings.out)
    with TableWriter(settings.out, {METADATA_KEY: record.to_json()}) as writer:
        write_pairs(
            writer,
            lungs.assets,
            [(plans[category].pairs, groups[category]) for category in plans],
            seed=record.sample_seed,
            weights=_weights(settings, nodules),
        )
    return record


def _library(settings: PlanSettings, cohort: CohortSource | None) -> AssetLibrary:
    """The library that is there, or one made beside the catalogue."""
    if settings.library or settings.bundles is None:
        return AssetLibrary(settings.folder)
    # Here, because torch and MONAI take seconds and half a gigabyte that a plan of a library does not need.
    from lungsynth.bundles import read_weights
    from lungsynth.chain.asset_stage import LUNG_WEIGHTS, make_assets, open_samplers
    from lungsynth.similarity.reference import selection_identity

    weights = {
        "nodule_weights": read_weights(settings.bundles, "wcapsgan").sha256,
        "lung_weights": read_weights(settings.bundles, "wcapsgan", file=LUNG_WEIGHTS).sha256,
    }
    identity = {
        "lungsynth": version("lungsynth"),
        "seed": settings.seed,
        "lungs": settings.lungs,
        "nodules": settings.nodules,
        "real_voxels": settings.real_voxels,
        "cohort": cohort.identity if cohort else None,
        **selection_identity(settings.selection),
        **weights,
    }
    library, made = AssetLibrary(settings.folder), settings.folder / _ASSETS_FILE
    _check_assets(library, made, identity)
    if not len(library):
        samplers = open_samplers(settings.bundles, **weights)
        write_atomically(made, (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode())
        nodules = settings.nodules * len(samplers.nodules.categories)
        sizes = Sizes(lungs=settings.lungs, groups=settings.groups, nodules=nodules)
        lends = cohort if settings.real_voxels else None
        make_assets(library, samplers, sizes, selection=settings.selection, seed=settings.seed, cohort=lends)
    return library


def _check_assets(library: AssetLibrary, path: Path, identity: Mapping[str, Any]) -> None:
    if not path.is_file():
        if len(library):
            raise InputError(
                f"{library.folder}: holds assets that no plan made. Give --library {library.folder} to use them, or "
                "another folder in --out."
            )
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the settings of a library, got {error}. Give another --out.") from error
    if differing := sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key)):
        raise InputError(
            f"{path}: the assets beside --out were made with other {', '.join(differing)}. Give another --out, or "
            f"--library {library.folder} to use them as they are."
        )


def _identity(settings: PlanSettings, cohort: CohortSource | None, library: AssetLibrary) -> dict[str, Any]:
    return {
        "lungsynth": version("lungsynth"),
        "settings": settings.to_json(),
        "cohort": cohort.identity if cohort else None,
        "assets": hashlib.sha256("".join(asset.hash for asset in library).encode()).hexdigest(),
    }


def _nodules(library: AssetLibrary, settings: PlanSettings) -> dict[str, list[Asset]]:
    """The nodules of each category that may be used, in the order of their hashes."""
    found: dict[str, list[Asset]] = {}
    for asset in library:
        if asset.kind == "nodule" and (settings.real_voxels or asset.source != "real"):
            found.setdefault(asset.category, []).append(asset)
    if not found:
        raise InputError(f"{library.folder}: a plan needs nodules, the library has none that may be used.")
    return dict(sorted(found.items()))


def _draw(
    pool: Sequence[Asset], index: int, settings: PlanSettings, real: NoduleStatistics, prior: PresencePrior
) -> list[NoduleGroup]:
    drawn = GroupSettings(count_probabilities=real.counts(), diameter_range_mm=real.diameter_range_mm(pool[0].category))
    seed = seeds(settings.seed, SeedStream.GROUPS, index, n=1)[0]
    return draw_groups(pool, settings.groups, seed=seed, prior=prior, settings=drawn)


def _parts(
    settings: PlanSettings,
    groups: Mapping[str, Sequence[NoduleGroup]],
    real: NoduleStatistics,
    prior: PresencePrior,
    sample: Sequence[LungShape],
) -> dict[str, CategoryPlan]:
    keeps = shares_of_samples(settings.policy, settings.keep, real, tuple(groups))
    parts = {}
    for category, keep in keeps.items():
        own = groups[category]
        per_group = sum(len(group.members) for group in own) / len(own)
        target = target_of(settings.policy, category, real, prior, sample, nodules=keep * per_group)
        parts[category] = CategoryPlan(groups=own, keep=keep, policy=settings.policy, target=target)
    return parts


def _weights(settings: PlanSettings, nodules: Mapping[str, Sequence[Asset]]) -> PlanWeights:
    found = {asset.weights for pool in nodules.values() for asset in pool if asset.source == "generated"}
    if len(found) > 1:
        raise InputError(
            f"{settings.folder}: its nodules come from {len(found)} different weights; use a library of one training."
        )
    enhancer = None
    if settings.enhance and settings.bundles is not None:
        from lungsynth.bundles import read_weights

        enhancer = read_weights(settings.bundles, "cyclegan").sha256
    return PlanWeights(nodule=next(iter(found), None), enhancer=enhancer)


def _figures(
    lungs: LibraryLungs, nodules: Mapping[str, Sequence[Asset]], plans: Mapping[str, PlacementPlan]
) -> dict[str, float | int | None]:
    """Images out / images in: slices of real lungs, and the slices from which real nodules were cut."""
    real_lungs = sum(asset.source == "real" for asset in lungs.assets)
    real_nodules = {asset.origin for pool in nodules.values() for asset in pool if asset.source == "real"}
    kept, sources = sum(len(plan) for plan in plans.values()), real_lungs + len(real_nodules)
    return {
        "lungs": len(lungs),
        "real_lungs": real_lungs,
        "nodules": sum(len(pool) for pool in nodules.values()),
        "real_nodules": len(real_nodules),
        "pairs": sum(plan.candidates for plan in plans.values()),
        "samples": kept,
        "images_in": sources,
        "expansion": kept / sources if sources else None,
    }
