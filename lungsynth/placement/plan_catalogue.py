"""From a library's nodules and lungs to a catalogue: groups are drawn, tried on all lungs, and the best pairs kept.

Each category gets groups of its own. Of the pairs that the rules accept, the policy says which are best, and
`placement.spread` which of those repeat nothing. In the paper's crossing no lung and no group gets more than
`max_reuse` times its even share, so that a short catalogue is not the widest lung and the most central group alone. At
the paper's size that hardly binds. Where the number of groups is not fixed, more are drawn while too few pairs are
accepted.

The catalogue remembers its plan: a `PlanRecord` stands in its file and all groups in one beside it, enough to explain
any pair (`placement.explain`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.config import GenerateConfig, PlacementConfig, even_shares, shares_of
from lungsynth.errors import InputError
from lungsynth.io.atomic import replacing
from lungsynth.io.stored import (
    anything,
    booleans,
    integers,
    lists,
    mappings,
    numbers,
    objects,
    parse_json,
    read_parquet,
)
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import Catalogue, PlanWeights, TableWriter, write_pairs
from lungsynth.placement.groups import GroupSettings, NoduleGroup, draw_groups
from lungsynth.placement.lung_shape import Frames, LibraryLungs, LungShape
from lungsynth.placement.planning import CategoryPlan, PairOrder, PlacementPlan, plan_categories
from lungsynth.placement.policy import SIZE_EDGES_MM, PolicyWeights, shares_of_samples, size_class, target_of
from lungsynth.placement.presence import NoduleStatistics, PresencePrior, measure_nodules
from lungsynth.placement.rules import PlacementRules
from lungsynth.placement.spread import CategoryChoice, Uses, spread_pairs, spread_plans
from lungsynth.seeds import SeedStream, seeds

if TYPE_CHECKING:
    from lungsynth.cohort.reader import CohortSplit

__all__ = [
    "METADATA_KEY",
    "CategoryRecord",
    "Occurrence",
    "PlanRecord",
    "groups_path",
    "measure_occurrence",
    "plan_catalogue",
    "read_groups",
    "sample_seed",
    "uses_of",
    "write_groups",
]

METADATA_KEY = "plan"
_GROUPS = pa.schema([(name, pa.string()) for name in ("category", "id", "group")])
_CATEGORY = objects(
    {
        **{name: integers(0) for name in ("groups", "kept", "candidates")},
        "threshold": integers(),
        "verdicts": mappings(integers(0)),
        "seed": integers(0),
    },
    {
        "weights": objects({"distance": lists(numbers(0)), "size": lists(numbers(0))}),
        "gaps": lists(numbers(), length=2),
    },
)
_SETTINGS = objects({}, {"rules": mappings(anything), "real_voxels": booleans, "lungs": integers(1)})
_RECORD = objects(
    {
        "identity": objects({}, {"settings": _SETTINGS}),
        "sample_seed": integers(0),
        "parts": mappings(_CATEGORY),
        "figures": mappings(anything),
        "prior": lists(lists(numbers(0), least=1), least=1),
    }
)
_GROWTH = 1.5  # by which the groups grow while too few pairs are accepted
_LEAST_GROUPS = 12  # of a category that gets few samples, so that there is a choice
_RANKED_PER_SAMPLE, _RANKED = 60, 20_000  # pairs remembered for the choice among them; more find more, and take memory
_MAX_GROWTH = 10  # times the groups of the beginning; then the lungs are too narrow, and the user is told


@dataclass(frozen=True, eq=False, kw_only=True)
class Occurrence:
    """Where nodules occur, how many on a slice, and of which sizes.

    Args:
        prior: LIDC-IDRI's nodules on the lungs at hand, and those of the cohort's training slices.
        real: what was measured on the cohort.
        sample: some of the lungs.
    """

    prior: PresencePrior
    real: NoduleStatistics
    sample: Sequence[LungShape]

    def group_settings(self, category: str | None = None) -> GroupSettings:
        """How groups are drawn; with a category, no nodule is scaled out of the range of its real diameters."""
        limits = None if category is None else self.real.diameter_range_mm(category)
        return GroupSettings(count_probabilities=self.real.counts(), diameter_range_mm=limits)


@dataclass(frozen=True, eq=False, kw_only=True)
class CategoryRecord:
    """One category of a plan.

    Args:
        groups: all that were tried.
        kept: samples.
        candidates: pairs.
        verdicts: pairs by name of the verdict.
        threshold: the highest rank kept.
        order: what pairs were ranked by.
        gaps: see `placement.planning.Plan`.
    """

    groups: int
    kept: int
    candidates: int
    verdicts: Mapping[str, int]
    threshold: int
    order: PairOrder
    gaps: tuple[float, float] | None

    @classmethod
    def of(cls, plan: PlacementPlan, groups: int) -> "CategoryRecord":
        """The record of a plan."""
        return cls(
            groups=groups,
            kept=len(plan),
            candidates=plan.candidates,
            verdicts={verdict.name: count for verdict, count in plan.verdicts.items()},
            threshold=plan.threshold,
            order=plan.order,
            gaps=plan.gaps,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        weights = self.order.weights
        return {
            **{name: getattr(self, name) for name in ("groups", "kept", "candidates", "threshold")},
            "verdicts": dict(self.verdicts),
            "weights": None
            if weights is None
            else {"distance": weights.distance.tolist(), "size": weights.size.tolist()},
            "seed": self.order.seed,
            "gaps": self.gaps,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "CategoryRecord":
        """The record of which these are the values."""
        stored = values.get("weights")
        weights = None if stored is None else PolicyWeights(**{key: np.array(v) for key, v in stored.items()})
        names = ("groups", "kept", "candidates", "threshold", "verdicts")
        order = PairOrder(weights=weights, seed=values["seed"])
        gaps = values.get("gaps")
        return cls(
            **{name: values[name] for name in names}, order=order, gaps=None if gaps is None else (gaps[0], gaps[1])
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PlanRecord:
    """A plan as its catalogue remembers it.

    Args:
        identity: settings, cohort and assets; equal for equal plans.
        sample_seed: what the samples' seeds are mixed with.
        parts: by category.
        figures: what was reported.
        prior: presence of nodules.
    """

    identity: Mapping[str, Any]
    sample_seed: int
    parts: Mapping[str, CategoryRecord]
    figures: Mapping[str, Any]
    prior: PresencePrior

    @property
    def rules(self) -> PlacementRules:
        """Of placement."""
        return PlacementRules.from_json(self.identity["settings"]["rules"])

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "identity": dict(self.identity),
            "sample_seed": self.sample_seed,
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "figures": dict(self.figures),
            "prior": np.round(self.prior.grid, 4).tolist(),
        }

    @staticmethod
    def stands_in(catalogue: Catalogue) -> bool:
        """Whether a catalogue's file has a record."""
        return f"lungsynth.{METADATA_KEY}".encode() in (catalogue.table.schema.metadata or {})

    @classmethod
    def read(cls, catalogue: Catalogue) -> "PlanRecord":
        """The record in a catalogue's file.

        Raises:
            InputError: when there is none.
        """
        text = (catalogue.table.schema.metadata or {}).get(f"lungsynth.{METADATA_KEY}".encode())
        if text is None:
            raise InputError(f"{catalogue.path}: no plan is noted in it; catalogues of scripts/plan.py have one.")
        values = parse_json(
            text, _RECORD, source=catalogue.path, what="a catalogue with its plan", remedy="Plan it again."
        )
        return cls(
            identity=values["identity"],
            sample_seed=values["sample_seed"],
            parts={name: CategoryRecord.from_json(part) for name, part in values["parts"].items()},
            figures=values["figures"],
            prior=PresencePrior(np.array(values["prior"])),
        )


def measure_occurrence(lungs: LibraryLungs, cohort: "CohortSplit | None") -> Occurrence:
    """Measures a cohort; without one, LIDC-IDRI's figures stand alone."""
    real, sample = measure_nodules(cohort), lungs.sample()
    return Occurrence(prior=real.presence(sample), real=real, sample=sample)


def plan_catalogue(
    library: AssetLibrary,
    config: GenerateConfig,
    cohort: "CohortSplit | None",
    *,
    enhancer: str | None = None,
    identity: Mapping[str, Any] | None = None,
    previous: Catalogue | None = None,
) -> PlanRecord:
    """Plans the samples of a run and writes its catalogue, one sample of each category in turn.

    Args:
        library: the nodules and lungs.
        config: of the run; of it `count`, `seed`, `placement` and the catalogue's path.
        cohort: says where real nodules lie, and how many and how large they are.
        enhancer: SHA-256 of the enhancer's weights, for the recipes; None when samples are not enhanced.
        identity: of the plan, for its record.
        previous: a smaller plan of this run; its samples stand first, and others are added up to `count`.

    Raises:
        InputError: when the library lacks nodules or lungs, or the rules accept too few pairs.
    """
    placement = config.placement
    lungs = LibraryLungs.of(library, real_voxels=placement.real_voxels, vessel_masks=placement.vessel_masks)
    lungs = lungs.first(placement.lungs) if placement.lungs else lungs
    nodules = _usable_nodules(library, placement)
    occurrence = measure_occurrence(lungs, cohort)
    planner = _Planner(lungs, nodules, occurrence, config, previous)
    plans = planner.plan()
    record = PlanRecord(
        identity=identity or {},
        sample_seed=sample_seed(config.seed),
        parts={category: CategoryRecord.of(plan, len(groups)) for category, (plan, groups) in plans.items()},
        figures={**_figures(lungs, nodules, plans, previous), **planner.expected(plans)},
        prior=occurrence.prior,
    )
    earlier = list(read_groups(config.catalogue_path)) if previous is not None else []
    write_groups({category: groups for category, (_, groups) in plans.items()}, config.catalogue_path, earlier=earlier)
    with TableWriter(config.catalogue_path, {METADATA_KEY: record.to_json()}) as writer:
        if previous is not None:
            writer.write(previous.table)
        if not plans:
            return record
        write_pairs(
            writer,
            lungs.assets,
            [(plan.pairs, groups) for plan, groups in plans.values()],
            seed=record.sample_seed,
            weights=PlanWeights(nodule=_nodule_weights(library, nodules), enhancer=enhancer),
        )
    return record


def sample_seed(seed: int) -> int:
    """What the seeds of a run's samples are mixed with."""
    return seeds(seed, SeedStream.SAMPLES, n=1)[0]


def uses_of(catalogue: Catalogue, lungs: LibraryLungs, frames: Frames) -> Uses:
    """What the samples of a catalogue use; its lungs must be among these."""
    index = {asset.hash: place for place, asset in enumerate(lungs.assets)}
    uses = Uses()
    for recipe in catalogue:
        uses.lungs[recipe.lung] += 1
        uses.nodules.update(nodule.asset for nodule in recipe.nodules)
        row, col = (np.array([[getattr(nodule, name) for nodule in recipe.nodules]]) for name in ("row_px", "col_px"))
        places = frames.places_mm(np.array([index[recipe.lung]]), row, col)[0].tolist()
        uses.places_mm += [(down, left) for down, left in places]
    return uses


def groups_path(catalogue: Path) -> Path:
    """Where the groups of a catalogue are, those included of which no pair was kept."""
    return catalogue.with_name(f"{catalogue.stem}.groups.parquet")


def write_groups(
    groups: Mapping[str, Sequence[NoduleGroup]], catalogue: Path, *, earlier: Sequence[tuple[str, str, str]] = ()
) -> Path:
    """Writes the groups of each category, after those that `read_groups` found."""
    rows = [
        *earlier,
        *((category, group.id, group.json) for category, own in groups.items() for group in own),
    ]
    names = ("category", "id", "group")
    columns = zip(*dict.fromkeys(rows), strict=True)  # after a stop, those of a growing run are there already
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    with replacing(groups_path(catalogue)) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["category"])
    return groups_path(catalogue)


def read_groups(catalogue: Path) -> Iterator[tuple[str, str, str]]:
    """(category, id, canonical JSON) of each group, in the order of the plan.

    Raises:
        InputError: when the file is missing.
    """
    table = read_parquet(
        groups_path(catalogue), _GROUPS, what=f"the groups of {catalogue.name}", remedy="Plan it again."
    )
    return zip(*(table[name].to_pylist() for name in ("category", "id", "group")), strict=True)


_Planned = dict[str, tuple[PlacementPlan, list[NoduleGroup]]]  # a category's plan, and the groups that it means


@dataclass(frozen=True, eq=False)
class _Planner:
    """The plans of all categories: those with too few pairs are planned again with more groups."""

    lungs: LibraryLungs
    nodules: Mapping[str, Sequence[Asset]]
    occurrence: Occurrence
    config: GenerateConfig
    previous: Catalogue | None

    def plan(self) -> "_Planned":
        complete: _Planned = {}
        # Measured once where they may be planned with again; streamed where there may be thousands.
        shapes: Sequence[LungShape] = self.lungs if self.config.placement.allow_fewer else list(self.lungs)
        counts = dict(self.group_counts)
        while missing := [category for category in self.wanted if category not in complete]:
            groups = {category: self._draw(category, counts[category]) for category in missing}
            parts = {category: self._part(category, groups[category]) for category in missing}
            plans = plan_categories(
                shapes,
                parts,
                lung_hashes=self.lungs.hashes,
                rules=self.config.placement.placement_rules,
                seed=sample_seed(self.config.seed),
            )
            for category, plan in plans.items():
                if self._suffices(plan, self.wanted[category], counts[category], begin=self.group_counts[category]):
                    complete[category] = plan, groups[category]
                counts[category] = ceil(counts[category] * _GROWTH)
        return self._chosen({category: complete[category] for category in self.wanted})

    @cached_property
    def wanted(self) -> dict[str, int]:
        """Samples of each category that gets any, beyond those that are there."""
        count, placement, categories = self.config.count, self.config.placement, tuple(self.nodules)
        if not placement.per_category and placement.policy in ("matched", "balanced"):
            weights = shares_of_samples(placement.policy, count, self.occurrence.real, categories)
            shares = dict(zip(weights, shares_of(count, list(weights.values())), strict=True))
        elif not placement.per_category:
            shares = placement.category_shares(count, categories)
        elif placement.categories is not None:
            most = max(placement.categories.values())
            scaled = {name: share / most for name, share in placement.categories.items()}
            shares = {name: round(count * scaled.get(name, 0.0)) for name in categories}
        else:
            shares = shares_of_samples(placement.policy, count, self.occurrence.real, categories)
        there = Counter(self.previous.table["category"].to_pylist()) if self.previous else Counter[str]()
        return {category: share - there[category] for category, share in shares.items() if share > there[category]}

    @cached_property
    def group_counts(self) -> dict[str, int]:
        """Groups of each category to begin with."""
        placement, names = self.config.placement, list(self.wanted)
        total = self.config.sizes(len(self.nodules)).groups
        if placement.crossing or placement.groups is not None:
            shares = even_shares(total, len(self.nodules))
            return {name: max(1, dict(zip(self.nodules, shares, strict=True))[name]) for name in names}
        samples = sum(self.wanted.values())
        return {name: max(_LEAST_GROUPS, ceil(total * self.wanted[name] / samples)) for name in names}

    def expected(self, plans: "_Planned") -> dict[str, Any]:
        """What the set is to be held against: what was asked for, and real nodules by distance, size and category."""
        real, parts = self.occurrence.real, [(self._part(name, groups), plan) for name, (plan, groups) in plans.items()]
        distances = real.distances(self.occurrence.prior, self.occurrence.sample)
        diameters = np.array([mm for own in real.diameters_mm.values() for mm in own])
        aimed = [part.target.distance * len(plan) for part, plan in parts if part.target is not None]
        total = sum(aimed[1:], aimed[0]) if aimed else None
        return {
            "asked": sum(self.wanted.values()) + (0 if self.previous is None else len(self.previous)),
            "target_distances": None if total is None else np.round(total / total.sum(), 4).tolist(),
            "real_distances": np.round(distances / distances.sum(), 4).tolist(),
            "real_sizes": np.bincount(size_class(diameters), minlength=len(SIZE_EDGES_MM) + 1).tolist(),
            "real_categories": {category: len(own) for category, own in sorted(real.diameters_mm.items())},
        }

    def _draw(self, category: str, count: int) -> list[NoduleGroup]:
        index = list(self.nodules).index(category)
        grown = () if self.previous is None else (len(self.previous),)
        seed = seeds(self.config.seed, SeedStream.GROUPS, index, *grown, n=1)[0]
        settings = self.occurrence.group_settings(category if self.config.placement.keep_real_sizes else None)
        settings = replace(settings, deal=not self.config.placement.crossing)
        pool = self.nodules[category]
        return draw_groups(pool, count, seed=seed, prior=self.occurrence.prior, settings=settings)

    def _part(self, category: str, groups: Sequence[NoduleGroup]) -> CategoryPlan:
        placement, occurrence, wanted = self.config.placement, self.occurrence, self.wanted[category]
        per_group = sum(len(group.members) for group in groups) / len(groups)
        target = target_of(
            placement.policy,
            category,
            occurrence.real,
            occurrence.prior,
            occurrence.sample,
            nodules=wanted * per_group,
            diameters_mm=[nodule.diameter_mm or 0.0 for nodule in self.nodules[category]],
        )
        pairs = len(self.lungs) * len(groups)
        pool = None if placement.max_reuse is None else min(pairs, wanted * _RANKED_PER_SAMPLE + _RANKED)
        if placement.crossing and placement.max_reuse is not None:
            pool = pairs
        return CategoryPlan(groups=groups, keep=wanted, policy=placement.policy, target=target, pool=pool)

    def _suffices(self, plan: PlacementPlan, wanted: int, groups: int, *, begin: int) -> bool:
        placement = self.config.placement
        if placement.allow_fewer or len(plan) >= wanted:
            return True
        if placement.groups is not None or groups > begin * _MAX_GROWTH + _MAX_GROWTH:
            raise InputError(
                f"{len(self.lungs)} lungs and {groups} groups of a category give {len(plan)} usable samples, {wanted} "
                "are needed. Give more `lungs` or `groups` in a new `out`, or ask for a smaller `count`."
            )
        return False

    def _chosen(self, plans: "_Planned") -> "_Planned":
        """Of the ranked pairs, those that become samples."""
        placement = self.config.placement
        if placement.max_reuse is None or not plans:
            return plans
        if placement.crossing:
            return {
                category: (self._limited(*plan, self.wanted[category]), plan[1]) for category, plan in plans.items()
            }
        choices = {
            category: CategoryChoice(
                plan=plan,
                groups=groups,
                wanted=self.wanted[category],
                target=self._part(category, groups).target,
                real_share=self._real_share(category),
                nodules=len(self.nodules[category]),
            )
            for category, (plan, groups) in plans.items()
        }
        frames = self.lungs.frames()
        chosen = spread_plans(
            choices,
            lung_hashes=[asset.hash for asset in self.lungs.assets],
            frames=frames,
            max_reuse=placement.max_reuse,
            uses=None if self.previous is None else uses_of(self.previous, self.lungs, frames),
        )
        return {category: (chosen[category], groups) for category, (_, groups) in plans.items()}

    def _limited(self, plan: PlacementPlan, groups: Sequence[NoduleGroup], wanted: int) -> PlacementPlan:
        max_reuse = self.config.placement.max_reuse or 1.0
        places = spread_pairs(plan, wanted, lungs=len(self.lungs), groups=len(groups), max_reuse=max_reuse)
        pairs = plan.pairs.take(np.array(places, dtype=np.int64))
        return replace(plan, pairs=pairs)

    def _real_share(self, category: str) -> float | None:
        """Of a category's nodules in samples: as many as the library was to have, as far as it has them."""
        pool = self.nodules[category]
        real = sum(nodule.source == "real" for nodule in pool)
        if not real or real == len(pool):
            return None
        return min(float(self.config.sizes(1).real_nodules_share), real / len(pool))


def _usable_nodules(library: AssetLibrary, placement: PlacementConfig) -> dict[str, list[Asset]]:
    """The nodules of each category, in the order of their hashes."""
    nodules: dict[str, list[Asset]] = {}
    for asset in library:
        if asset.kind == "nodule" and (placement.real_voxels or asset.source != "real"):
            nodules.setdefault(asset.category, []).append(asset)
    if not nodules:
        raise InputError(f"{library.folder}: a plan needs nodules, the library has none that may be used.")
    return dict(sorted(nodules.items()))


def _nodule_weights(library: AssetLibrary, nodules: Mapping[str, Sequence[Asset]]) -> str | None:
    """SHA-256 of the weights that made the nodules; None where all are real."""
    weights = {asset.weights for pool in nodules.values() for asset in pool if asset.source == "generated"}
    if len(weights) > 1:
        raise InputError(
            f"{library.folder}: its nodules come from {len(weights)} different weights; use a library of one training."
        )
    return next(iter(weights), None)


def _figures(
    lungs: LibraryLungs, nodules: Mapping[str, Sequence[Asset]], plans: "_Planned", previous: Catalogue | None
) -> dict[str, float | int | None]:
    """Images out / images in: slices of real lungs, and the slices from which real nodules were cut."""
    real_lungs = sum(asset.source == "real" for asset in lungs.assets)
    real_nodules = {asset.origin for pool in nodules.values() for asset in pool if asset.source == "real"}
    samples = sum(len(plan) for plan, _ in plans.values()) + (0 if previous is None else len(previous))
    sources = real_lungs + len(real_nodules)
    verdicts: Counter[str] = Counter()
    for plan, _ in plans.values():
        verdicts.update({f"pairs_{verdict.name.lower()}": count for verdict, count in plan.verdicts.items()})
    return {
        "lungs": len(lungs),
        "real_lungs": real_lungs,
        "nodules": sum(len(pool) for pool in nodules.values()),
        "real_nodules": len(real_nodules),
        "groups": sum(len(groups) for _, groups in plans.values()),
        "pairs": sum(plan.candidates for plan, _ in plans.values()),
        **verdicts,
        "samples": samples,
        "images_in": sources,
        "expansion": samples / sources if sources else None,
    }
