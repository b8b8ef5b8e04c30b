"""The nodules and lungs of a run, real and generated, into its `AssetLibrary`.

The shares of real ones are the paper's: of 1,200 nodules 200 are real, of 500 lungs 50. Categories get equal numbers,
or those asked for; where a cohort has too few real ones of a category, generated ones fill up. Sizes are asked of the
generator evenly over the range of the run. With a cohort, more are generated than needed, ranked by
similarity to its training samples, and copies of those refused (`similarity.selection`). All follows from the seed.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lungsynth.bundles import LungGenerator, open_bundle
from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.cohort.reader import CohortSplit
from lungsynth.cohort.slices import LUNG_SIZES_PX, lung_on_grid
from lungsynth.config import GenerateConfig, Selection, Sizes, even_shares, shares_of
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM, axial_affine
from lungsynth.placement.assets import Asset, AssetLibrary, TooSmallError, nodule_diameter
from lungsynth.placement.policy import shares_by_counts
from lungsynth.seeds import SeedStream, seeds
from lungsynth.similarity.samples import SampleKind
from lungsynth.similarity.selection import (
    TRIES,
    CandidateCounts,
    CandidateSource,
    Store,
    kept_assets,
    store_usable,
    write_selection,
)
from lungsynth.types import Affine

__all__ = [
    "Samplers",
    "centred_affine",
    "make_assets",
    "open_samplers",
    "real_lungs",
    "real_nodules",
]

_logger = logging.getLogger(__name__)

_SHOWN = 32  # from so many on, progress is shown
_SHOWN_MARGIN = 1.02  # of the smallest diameter: what comes out is a little smaller or larger than what was asked
_SLICE_MM = 1.0  # thickness that a generated slice states


@dataclass(frozen=True, kw_only=True)
class Samplers:
    """The samplers of wcapsgan_bundle, SHA-256 of their weights, and what categories of nodules are."""

    nodules: Any
    lungs: Any
    nodule_weights: str
    lung_weights: str
    rule: CategoryRule = AS_LISTED


def open_samplers(
    bundles: Path,
    *,
    nodule_weights: str,
    lung_weights: str,
    lungs: LungGenerator,
    rule: CategoryRule = AS_LISTED,
) -> Samplers:
    """Opens the samplers of nodules and of lungs.

    Args:
        bundles: folder of the bundles.
        nodule_weights: SHA-256 that the generated nodules will name.
        lung_weights: SHA-256 that the generated lungs will name.
        lungs: what makes them (`bundles.lung_generator`).
        rule: what categories of nodules mean for real ones (`bundles.nodule_rule`).

    Raises:
        InputError: when the bundle or its weights cannot be used.
    """
    return Samplers(
        nodules=open_bundle(bundles, "wcapsgan"),
        lungs=open_bundle(bundles, "wcapsgan", configs=lungs.configs, weights=lungs.weights),
        nodule_weights=nodule_weights,
        lung_weights=lung_weights,
        rule=rule,
    )


def make_assets(
    library: AssetLibrary, samplers: Samplers, config: GenerateConfig, *, cohort: CohortSplit | None = None
) -> None:
    """Fills the library, writes `selection.json` beside it, and last its table.

    Args:
        library: of the run's folder.
        samplers: of nodules and lungs.
        config: of the run; of it the sizes, the selection and the seed.
        cohort: lends real ones; without it all are generated.

    A library that has some already gets what is missing.

    Raises:
        InputError: when a sampler gives too few usable samples.
    """
    made = Counter((str(asset.kind), asset.category) for asset in library if asset.source == "generated")
    grown = (len(library),) if len(library) else ()
    lender = cohort if config.placement.real_voxels else None
    maker = _Maker(library, samplers, config, lender, made, grown)
    counts: dict[SampleKind, dict[str, CandidateCounts]] = {"nodules": maker.nodules(), "lungs": maker.lungs()}
    write_selection(library.folder, config.chosen, counts, assets=sum(grown))
    library.save_table()


def centred_affine(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> Affine:
    """Affine of a generated slice of shape (H, W), spacing (row, column): its centre is the origin."""
    row_mm, column_mm = spacing_mm
    origin = (-(shape[1] - 1) / 2 * column_mm, -(shape[0] - 1) / 2 * row_mm, 0.0)
    return axial_affine(spacing_mm=(_SLICE_MM, row_mm, column_mm), origin_lps_mm=origin)


@dataclass(frozen=True, eq=False)
class _Maker:
    """Puts real nodules and lungs into a library, then as many generated ones as are missing."""

    library: AssetLibrary
    samplers: Samplers
    config: GenerateConfig
    cohort: CohortSplit | None
    made: Mapping[tuple[str, str], int]  # generated ones that are there, by kind and category
    grown: tuple[int, ...]  # how many assets are there, a key of the seeds of further ones

    @property
    def sizes(self) -> Sizes:
        return self.config.sizes(len(self.samplers.nodules.categories))

    def nodules(self) -> dict[str, CandidateCounts]:
        sampler, sizes, seed = self.samplers.nodules, self.sizes, self.config.seed
        placement, categories = self.config.placement, list(sampler.categories)
        missing, real_shares = (self._shares(count, categories) for count in (sizes.nodules, sizes.real_nodules))
        self._tell_unused(categories)
        for index, (category, count) in enumerate(real_shares.items()):
            order = seeds(seed, SeedStream.REAL_NODULES, index, n=1)[0]
            real = real_nodules(self.library, self.cohort, category, seed=order, diameters_mm=placement.allowed_mm)
            missing[category] -= len(_distinct(real, count)) + self.made["nodule", category]

        least = self._least_mm

        def store(hu: np.ndarray, alpha: np.ndarray, *, category: str, origin: str) -> Asset:
            if nodule_diameter(alpha) < least:
                raise TooSmallError(f"nodule {origin} is smaller than {least:.1f} mm")
            facts: dict[str, Any] = {"category": category, "source": "generated", "origin": origin}
            return self.library.add_nodule(hu, alpha, weights=self.samplers.nodule_weights, **facts)

        source = _source(sampler, "nodules", self.config.chosen, rule=self.samplers.rule)
        source = replace(source, diameters_mm=self._requested_mm())
        return self._generate(source, missing, store, stream=SeedStream.GENERATED_NODULES)

    @property
    def _least_mm(self) -> float:
        """The smallest nodule that a generated lung can show; the paper's preset makes smaller ones, too."""
        if self.config.placement.crossing:
            return 0.0
        row_mm, column_mm = (float(mm) for mm in np.broadcast_to(self.samplers.lungs.spacing_mm, 2))
        return self.config.placement.placement_rules.smallest_mm((row_mm, column_mm))

    def _requested_mm(self) -> tuple[float, float] | None:
        placement, least = self.config.placement, self._least_mm * _SHOWN_MARGIN
        if (requested := placement.requested_mm) is None or requested[0] >= least:
            return requested
        if placement.diameters_mm is not None:
            _logger.warning("no nodules under %.1f mm are made: the lungs' pixels cannot show them", self._least_mm)
        if requested[1] <= least:
            raise InputError(
                f"`diameters_mm` up to {requested[1]:g} mm were asked for; the lungs' pixels show {least:.1f} mm at "
                "least. Ask for larger ones."
            )
        return least, requested[1]

    def _shares(self, total: int, categories: Sequence[str]) -> dict[str, int]:
        """Nodules of each category: in the proportions in which the policy places them."""
        placement = self.config.placement
        if placement.crossing or self.cohort is None or placement.policy not in ("matched", "balanced"):
            return placement.category_shares(total, categories)
        counts = Counter(nodule.category for nodule in self.cohort.nodules())
        weights = shares_by_counts(placement.policy, self.config.count, {name: counts[name] for name in categories})
        return dict(zip(categories, shares_of(total, [weights.get(name, 0) for name in categories]), strict=True))

    def _tell_unused(self, categories: Sequence[str]) -> None:
        """Says which real nodules cannot be placed."""
        real = self.cohort.nodules() if self.cohort else ()
        low, high = self.config.placement.allowed_mm
        other = sum(nodule.category not in categories for nodule in real)
        beyond = sum(nodule.category in categories and not low <= nodule.diameter_mm <= high for nodule in real)
        if other:
            _logger.warning(
                "%d of %d real nodules are of none of the categories %s (their texture is unknown), and are not placed",
                other,
                len(real),
                ", ".join(categories),
            )
        if beyond:
            limits = f"under {low:g} mm" if high == inf else f"outside {low:g} to {high:g} mm"
            _logger.warning("%d of %d real nodules are %s, and are not placed", beyond, len(real), limits)

    def lungs(self) -> dict[str, CandidateCounts]:
        sampler, sizes = self.samplers.lungs, self.sizes
        order = seeds(self.config.seed, SeedStream.REAL_LUNGS, n=1)[0]
        row_mm, column_mm = (float(mm) for mm in np.broadcast_to(sampler.spacing_mm, 2))
        size_px = None if self.config.placement.own_grids else _shared_size_px(row_mm, sizes)
        real = _distinct(real_lungs(self.library, self.cohort, seed=order, size_px=size_px), sizes.real_lungs)
        categories = list(sampler.categories)
        missing = dict(zip(categories, even_shares(sizes.lungs - len(real), len(categories)), strict=True))
        missing = {category: count - self.made["lung", category] for category, count in missing.items()}

        def store(hu: np.ndarray, mask: np.ndarray, *, category: str, origin: str) -> Asset:
            facts: dict[str, Any] = {"category": category, "source": "generated", "origin": origin}
            mask, spacing_mm = mask > 0, (row_mm, column_mm)
            if size_px is not None and hu.shape != (size_px, size_px):  # where real ones alone were asked for
                hu, mask = lung_on_grid(hu, mask, spacing_mm=spacing_mm, size_px=size_px)
                spacing_mm = (LUNG_FIELD_MM / size_px, LUNG_FIELD_MM / size_px)
            affine = centred_affine(hu.shape, spacing_mm)
            return self.library.add_lung(hu, mask, affine=affine, weights=self.samplers.lung_weights, **facts)

        source = _source(sampler, "lungs", self.config.chosen)
        return self._generate(source, missing, store, stream=SeedStream.GENERATED_LUNGS)

    def _generate(
        self, source: CandidateSource, missing: Mapping[str, int], store: Store, *, stream: SeedStream
    ) -> dict[str, CandidateCounts]:
        """Stores as many generated ones of each category as are missing, and says what became of the candidates."""
        counts = {}
        for index, (category, wanted) in enumerate(missing.items()):
            if wanted <= 0:
                counts[category] = CandidateCounts()
                continue
            n = TRIES * source.selection.candidates * wanted
            candidates = seeds(self.config.seed, stream, index, *self.grown, n=n)
            kept, counts[category] = kept_assets(source, category, wanted, candidates, store)
            _check_complete(kept, wanted, counts[category], what=f"{source.kind} of category {category}")
        return counts


def _source(sampler: Any, kind: SampleKind, selection: Selection, *, rule: CategoryRule = AS_LISTED) -> CandidateSource:
    real = None
    if selection.cohort:
        from lungsynth.similarity.reference import open_reference_set  # torch and the feature networks, to rank alone

        real = open_reference_set(selection.cohort, kind, rule=rule)
    return CandidateSource(sampler=sampler, kind=kind, selection=selection, real=real)


def real_nodules(
    library: AssetLibrary,
    cohort: CohortSplit | None,
    category: str,
    *,
    seed: int,
    diameters_mm: tuple[float, float] = (0.0, inf),
) -> Iterator[Asset]:
    """Adds the cohort's nodules of a category and a range of sizes to the library, one by one, in a seeded order."""
    for nodule in cohort.read_nodules(category, seed=seed) if cohort else ():
        if not diameters_mm[0] <= nodule_diameter(nodule.alpha) <= diameters_mm[1]:
            continue
        facts = {"category": category, **_owner(cohort, nodule.origin)}
        if asset := store_usable(library.add_nodule, nodule.hu, nodule.alpha, **facts):
            yield asset


def real_lungs(
    library: AssetLibrary, cohort: CohortSplit | None, *, seed: int, size_px: int | None = None
) -> Iterator[Asset]:
    """Adds the cohort's normal slices to the library, likewise.

    Args:
        library: to add to.
        cohort: lends them; nothing is added without one.
        seed: gives the order.
        size_px: of the grid of `LUNG_FIELD_MM` that they are brought to, centred on their lungs; None for their own.
    """
    for lung in cohort.read_lungs(seed=seed) if cohort else ():
        hu, mask, affine = lung.hu, lung.mask, lung.affine
        if size_px is not None:
            columns_mm, rows_mm = np.linalg.norm(affine[:3, :2], axis=0)
            hu, mask = lung_on_grid(hu, mask, spacing_mm=(float(rows_mm), float(columns_mm)), size_px=size_px)
            affine = centred_affine(hu.shape, (LUNG_FIELD_MM / size_px, LUNG_FIELD_MM / size_px))
        if asset := store_usable(library.add_lung, hu, mask, affine=affine, **_owner(cohort, lung.origin)):
            yield asset


def _shared_size_px(generated_mm: float, sizes: Sizes) -> int:
    """Of the grid that all lungs of a run share: the generator's or, where none is generated, the finer one."""
    return round(LUNG_FIELD_MM / generated_mm) if sizes.real_lungs < sizes.lungs else max(LUNG_SIZES_PX)


def _owner(cohort: CohortSplit | None, origin: str) -> dict[str, Any]:
    return {"source": "real", "origin": origin, "patient": cohort.patient_of.get(origin) if cohort else None}


def _distinct(assets: Iterable[Asset], n: int) -> list[Asset]:
    """The first n assets that differ from each other; takes no more from the iterator than it needs."""
    distinct: dict[str, Asset] = {}
    iterator = iter(assets)
    with tqdm(total=n, desc="real ones", leave=False, disable=n < _SHOWN or None) as progress:
        while len(distinct) < n and (asset := next(iterator, None)) is not None:
            progress.update(asset.hash not in distinct)
            distinct[asset.hash] = asset
    return list(distinct.values())


def _check_complete(kept: list[Asset], wanted: int, counts: CandidateCounts, *, what: str) -> None:
    if len(kept) < wanted:
        raise InputError(
            f"wcapsgan_bundle gave {len(kept)} distinct usable {what} in {counts.generated} attempts, {wanted} are "
            f"needed; {counts.copies} were copies of training samples. Give `bundles` with better trained weights, or "
            "ask for fewer with `count`, `lungs` or `groups`."
        )
