"""From a library's nodules and lungs to a catalogue: groups are drawn, tried on all lungs, and the best pairs kept.

Each category gets groups of its own. Of the pairs that the rules accept, the policy says which are best; with
`max_reuse`, no lung and no group gets more than so many times its even share while there are others, so that a short
catalogue is not the widest lung and the most central group alone. At the paper's size that hardly binds. Where the
number of groups is not fixed, more are drawn while too few pairs are accepted.

The catalogue remembers its plan: a `PlanRecord` stands in its file and all groups in one beside it, enough to explain
any pair (`placement.explain`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.config import GenerateConfig, PlacementConfig, even_shares
from lungsynth.errors import InputError
from lungsynth.io.atomic import replacing
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import Catalogue, PlanWeights, TableWriter, write_pairs
from lungsynth.placement.groups import GroupSettings, NoduleGroup, draw_groups
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.planning import CategoryPlan, PairOrder, PlacementPlan, plan_categories
from lungsynth.placement.policy import PolicyWeights, shares_of_samples, target_of
from lungsynth.placement.presence import NoduleStatistics, PresencePrior, measure_nodules
from lungsynth.placement.rules import PlacementRules
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
    "spread_pairs",
    "write_groups",
]

METADATA_KEY = "plan"
_GROWTH = 1.5  # by which the groups grow while too few pairs are accepted
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
        stored = values["weights"]
        weights = None if stored is None else PolicyWeights(**{key: np.array(v) for key, v in stored.items()})
        names = ("groups", "kept", "candidates", "threshold", "verdicts")
        order = PairOrder(weights=weights, seed=values["seed"])
        gaps = values["gaps"]
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

    @classmethod
    def read(cls, catalogue: Catalogue) -> "PlanRecord":
        """The record in a catalogue's file.

        Raises:
            InputError: when there is none.
        """
        text = (catalogue.table.schema.metadata or {}).get(f"lungsynth.{METADATA_KEY}".encode())
        if text is None:
            raise InputError(f"{catalogue.path}: no plan is noted in it; catalogues of scripts/plan.py have one.")
        values = json.loads(text)
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
) -> PlanRecord:
    """Plans the samples of a run and writes its catalogue, one sample of each category in turn.

    Args:
        library: the nodules and lungs.
        config: of the run; of it `count`, `seed`, `placement` and the catalogue's path.
        cohort: says where real nodules lie, and how many and how large they are.
        enhancer: SHA-256 of the enhancer's weights, for the recipes; None when samples are not enhanced.
        identity: of the plan, for its record.

    Raises:
        InputError: when the library lacks nodules or lungs, or the rules accept too few pairs.
    """
    placement = config.placement
    lungs = LibraryLungs.of(library, real_voxels=placement.real_voxels, vessel_masks=placement.vessel_masks)
    lungs = lungs.first(placement.lungs) if placement.lungs else lungs
    nodules = _usable_nodules(library, placement)
    occurrence = measure_occurrence(lungs, cohort)
    plans = _Planner(lungs, nodules, occurrence, config).plan()
    record = PlanRecord(
        identity=identity or {},
        sample_seed=sample_seed(config.seed),
        parts={category: CategoryRecord.of(plan, len(groups)) for category, (plan, groups) in plans.items()},
        figures=_figures(lungs, nodules, plans),
        prior=occurrence.prior,
    )
    write_groups({category: groups for category, (_, groups) in plans.items()}, config.catalogue_path)
    with TableWriter(config.catalogue_path, {METADATA_KEY: record.to_json()}) as writer:
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


def spread_pairs(
    pairs: Iterable[tuple[int, int]], keep: int, *, lungs: int, groups: int, max_reuse: float
) -> list[int]:
    """Chooses `keep` pairs that use no lung and no group too often.

    Args:
        pairs: (lung, group), the best first.
        keep: how many.
        lungs: number of lungs.
        groups: number of groups.
        max_reuse: times the even share of one lung or group, above which a pair is taken only for want of others.

    Returns:
        Places in `pairs`.
    """
    taken: list[int] = []
    postponed: list[int] = []
    per_lung, per_group = ceil(max_reuse * keep / lungs), ceil(max_reuse * keep / groups)
    lung_uses, group_uses = [0] * lungs, [0] * groups
    for place, (lung, group) in enumerate(pairs):
        if lung_uses[lung] < per_lung and group_uses[group] < per_group:
            taken.append(place)
            lung_uses[lung] += 1
            group_uses[group] += 1
        else:
            postponed.append(place)
        if len(taken) == keep:
            break
    return taken + postponed[: keep - len(taken)]


def groups_path(catalogue: Path) -> Path:
    """Where the groups of a catalogue are, those included of which no pair was kept."""
    return catalogue.with_name(f"{catalogue.stem}.groups.parquet")


def write_groups(groups: Mapping[str, Sequence[NoduleGroup]], catalogue: Path) -> Path:
    """Writes the groups of each category."""
    rows = [(category, group.id, group.json) for category, own in groups.items() for group in own]
    names = ("category", "id", "group")
    columns = zip(*rows, strict=True)
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    with replacing(groups_path(catalogue)) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["category"])
    return groups_path(catalogue)


def read_groups(catalogue: Path) -> Iterator[tuple[str, str, str]]:
    """(category, id, canonical JSON) of each group, in the order of the plan.

    Raises:
        InputError: when the file is missing.
    """
    path = groups_path(catalogue)
    if not path.is_file():
        raise InputError(f"{path}: expected the groups of {catalogue.name}, found no such file. Plan it again.")
    table = pq.read_table(path)
    return zip(*(table[name].to_pylist() for name in ("category", "id", "group")), strict=True)


@dataclass(frozen=True, eq=False)
class _Planner:
    """The plans of all categories: those with too few pairs are planned again with more groups."""

    lungs: LibraryLungs
    nodules: Mapping[str, Sequence[Asset]]
    occurrence: Occurrence
    config: GenerateConfig

    def plan(self) -> dict[str, tuple[PlacementPlan, list[NoduleGroup]]]:
        wanted, counts = self._wanted(), self._group_counts()
        complete: dict[str, tuple[PlacementPlan, list[NoduleGroup]]] = {}
        # Measured once where they may be planned with again; streamed where there may be thousands.
        shapes: Sequence[LungShape] = self.lungs if self.config.placement.allow_fewer else list(self.lungs)
        while missing := [category for category in wanted if category not in complete]:
            groups = {category: self._draw(category, counts[category]) for category in missing}
            parts = {category: self._part(category, groups[category], wanted[category]) for category in missing}
            plans = plan_categories(
                shapes,
                parts,
                lung_hashes=self.lungs.hashes,
                rules=self.config.placement.placement_rules,
                seed=sample_seed(self.config.seed),
            )
            for category, plan in plans.items():
                if self._suffices(plan, wanted[category], counts[category], begin=self._group_counts()[category]):
                    complete[category] = self._spread(plan, wanted[category], counts[category]), groups[category]
                counts[category] = ceil(counts[category] * _GROWTH)
        return {category: complete[category] for category in wanted}

    def _wanted(self) -> dict[str, int]:
        """Samples of each category that gets any."""
        count, placement, categories = self.config.count, self.config.placement, tuple(self.nodules)
        if placement.per_category:
            return shares_of_samples(placement.policy, count, self.occurrence.real, categories)
        shares = zip(categories, even_shares(count, len(categories)), strict=True)
        return {category: share for category, share in shares if share}

    def _group_counts(self) -> dict[str, int]:
        """Groups of each category to begin with."""
        total = self.config.sizes(len(self.nodules)).groups
        shares = even_shares(total, len(self.nodules))
        return {category: max(1, share) for category, share in zip(self.nodules, shares, strict=True)}

    def _draw(self, category: str, count: int) -> list[NoduleGroup]:
        index = list(self.nodules).index(category)
        seed = seeds(self.config.seed, SeedStream.GROUPS, index, n=1)[0]
        settings = self.occurrence.group_settings(category if self.config.placement.keep_real_sizes else None)
        pool = self.nodules[category]
        return draw_groups(pool, count, seed=seed, prior=self.occurrence.prior, settings=settings)

    def _part(self, category: str, groups: Sequence[NoduleGroup], wanted: int) -> CategoryPlan:
        placement, occurrence = self.config.placement, self.occurrence
        per_group = sum(len(group.members) for group in groups) / len(groups)
        target = None
        if placement.policy != "farthest":
            measured = (occurrence.real, occurrence.prior, occurrence.sample)
            target = target_of(placement.policy, category, *measured, nodules=wanted * per_group)
        keep = wanted if placement.max_reuse is None else len(self.lungs) * len(groups)
        return CategoryPlan(groups=groups, keep=keep, policy=placement.policy, target=target)

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

    def _spread(self, plan: PlacementPlan, wanted: int, groups: int) -> PlacementPlan:
        if (max_reuse := self.config.placement.max_reuse) is None:
            return plan
        places = spread_pairs(plan, wanted, lungs=len(self.lungs), groups=groups, max_reuse=max_reuse)
        return replace(plan, pairs=plan.pairs.take(np.array(places)))


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
    lungs: LibraryLungs,
    nodules: Mapping[str, Sequence[Asset]],
    plans: Mapping[str, tuple[PlacementPlan, Sequence[NoduleGroup]]],
) -> dict[str, float | int | None]:
    """Images out / images in: slices of real lungs, and the slices from which real nodules were cut."""
    real_lungs = sum(asset.source == "real" for asset in lungs.assets)
    real_nodules = {asset.origin for pool in nodules.values() for asset in pool if asset.source == "real"}
    samples, sources = sum(len(plan) for plan, _ in plans.values()), real_lungs + len(real_nodules)
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
