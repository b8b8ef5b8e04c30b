"""Stage 1: the nodules and lungs of a run, real and generated, into its `AssetLibrary`.

The shares are the paper's: of 1,200 nodules 200 are real, of 500 lungs 50. Categories get equal numbers; where a cohort
has too few real ones of a category, generated ones fill up. With a cohort, more are generated than needed, ranked by
its training samples, and copies of those refused (`selecting`, `ranking`, `real_set`). All follows from the run's seed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lungsynth.bundles import nodule_rule, open_bundle
from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.chain.cohort_source import CohortSource
from lungsynth.chain.settings import SeedStream, Sizes, seeds, share
from lungsynth.ct.volume import axial_affine
from lungsynth.errors import InputError
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.similarity.reference import open_reference_set
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
from lungsynth.similarity.strategies import Selection
from lungsynth.types import Affine

__all__ = [
    "LUNG_CONFIGS",
    "LUNG_WEIGHTS",
    "Samplers",
    "centred_affine",
    "make_assets",
    "open_samplers",
    "real_lungs",
    "real_nodules",
]

LUNG_CONFIGS = ("inference.json", "inference_lung.json")
LUNG_WEIGHTS = "model_lung.pt"
_SHOWN = 32  # from so many on, progress is shown
_SLICE_MM = 1.0  # thickness that a generated slice states


@dataclass(frozen=True, kw_only=True)
class Samplers:
    """The samplers of wcapsgan_bundle (contract C6.5), SHA-256 of their weights, and what categories of nodules are."""

    nodules: Any
    lungs: Any
    nodule_weights: str
    lung_weights: str
    rule: CategoryRule = AS_LISTED


def open_samplers(bundles: Path, *, nodule_weights: str, lung_weights: str) -> Samplers:
    """Opens the samplers of nodules and of lungs.

    Args:
        bundles: folder of the bundles.
        nodule_weights: SHA-256 that the generated nodules will name.
        lung_weights: SHA-256 that the generated lungs will name.

    Raises:
        InputError: when the bundle or its weights cannot be used.
    """
    return Samplers(
        nodules=open_bundle(bundles, "wcapsgan"),
        lungs=open_bundle(bundles, "wcapsgan", configs=LUNG_CONFIGS, weights=LUNG_WEIGHTS),
        nodule_weights=nodule_weights,
        lung_weights=lung_weights,
        rule=nodule_rule(bundles),
    )


def make_assets(
    library: AssetLibrary,
    samplers: Samplers,
    sizes: Sizes,
    *,
    selection: Selection,
    seed: int,
    cohort: CohortSource | None = None,
) -> None:
    """Fills the library, writes `selection.json` beside it, and last its table.

    Args:
        library: of the run's folder.
        samplers: of nodules and lungs.
        sizes: how many of each.
        selection: how generated ones are chosen.
        seed: of the run.
        cohort: lends real ones; without it all are generated.

    Raises:
        InputError: when a sampler gives too few usable samples.
    """
    counts: dict[SampleKind, dict[str, CandidateCounts]] = {
        "nodules": _mix_nodules(library, samplers, sizes, selection, seed=seed, cohort=cohort),
        "lungs": _mix_lungs(library, samplers, sizes, selection, seed=seed, cohort=cohort),
    }
    write_selection(library.folder, selection, counts)
    library.save_table()


def centred_affine(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> Affine:
    """Affine of a generated slice of shape (H, W), spacing (row, column): its centre is the origin (contract C1.4)."""
    row_mm, column_mm = spacing_mm
    origin = (-(shape[1] - 1) / 2 * column_mm, -(shape[0] - 1) / 2 * row_mm, 0.0)
    return axial_affine(spacing_mm=(_SLICE_MM, row_mm, column_mm), origin_lps_mm=origin)


def _mix_nodules(
    library: AssetLibrary,
    samplers: Samplers,
    sizes: Sizes,
    selection: Selection,
    *,
    seed: int,
    cohort: CohortSource | None,
) -> dict[str, CandidateCounts]:
    categories = list(samplers.nodules.categories)
    missing = dict(zip(categories, share(sizes.nodules, len(categories)), strict=True))
    for index, (category, n) in enumerate(zip(categories, share(sizes.real_nodules, len(categories)), strict=True)):
        order = seeds(seed, SeedStream.REAL_NODULES, index, n=1)[0]
        missing[category] -= len(_distinct(real_nodules(library, cohort, category, seed=order), n))

    def store(hu: np.ndarray, alpha: np.ndarray, *, category: str, origin: str) -> Asset:
        weights = samplers.nodule_weights
        return library.add_nodule(hu, alpha, category=category, source="generated", origin=origin, weights=weights)

    source = _source(samplers.nodules, "nodules", selection, rule=samplers.rule)
    return _generate(source, missing, store, purpose=SeedStream.GENERATED_NODULES, seed=seed, what="nodules")


def _mix_lungs(
    library: AssetLibrary,
    samplers: Samplers,
    sizes: Sizes,
    selection: Selection,
    *,
    seed: int,
    cohort: CohortSource | None,
) -> dict[str, CandidateCounts]:
    order = seeds(seed, SeedStream.REAL_LUNGS, n=1)[0]
    real = _distinct(real_lungs(library, cohort, seed=order), sizes.real_lungs)
    categories = list(samplers.lungs.categories)
    missing = dict(zip(categories, share(sizes.lungs - len(real), len(categories)), strict=True))
    row_mm, column_mm = (float(mm) for mm in np.broadcast_to(samplers.lungs.spacing_mm, 2))

    def store(hu: np.ndarray, mask: np.ndarray, *, category: str, origin: str) -> Asset:
        facts: dict[str, Any] = {"category": category, "source": "generated", "origin": origin}
        affine = centred_affine(hu.shape, (row_mm, column_mm))
        return library.add_lung(hu, mask > 0, affine=affine, weights=samplers.lung_weights, **facts)

    source = _source(samplers.lungs, "lungs", selection)
    return _generate(source, missing, store, purpose=SeedStream.GENERATED_LUNGS, seed=seed, what="lungs")


def _generate(
    source: CandidateSource, missing: Mapping[str, int], store: Store, *, purpose: SeedStream, seed: int, what: str
) -> dict[str, CandidateCounts]:
    """Stores as many generated ones of each category as are missing, and says what became of the candidates."""
    counts = {}
    for index, (category, wanted) in enumerate(missing.items()):
        candidates = seeds(seed, purpose, index, n=TRIES * source.selection.candidates * wanted)
        found, counts[category] = kept_assets(source, category, wanted, candidates, store)
        _check_complete(found, wanted, counts[category], what=f"{what} of category {category}")
    return counts


def _source(sampler: Any, kind: SampleKind, selection: Selection, *, rule: CategoryRule = AS_LISTED) -> CandidateSource:
    real = open_reference_set(selection.cohort, kind, rule=rule) if selection.cohort else None
    return CandidateSource(
        sampler=sampler, mask="alpha" if kind == "nodules" else "mask", selection=selection, real=real
    )


def real_nodules(library: AssetLibrary, cohort: CohortSource | None, category: str, *, seed: int) -> Iterator[Asset]:
    """Adds the cohort's nodules of a category to the library, one by one, in an order that the seed gives."""
    for nodule in cohort.read_nodules(category, seed=seed) if cohort else ():
        facts = {"category": category, "source": "real", "origin": nodule.origin}
        if asset := store_usable(library.add_nodule, nodule.hu, nodule.alpha, **facts):
            yield asset


def real_lungs(library: AssetLibrary, cohort: CohortSource | None, *, seed: int) -> Iterator[Asset]:
    """Adds the cohort's normal slices to the library, likewise."""
    for lung in cohort.read_lungs(seed=seed) if cohort else ():
        facts = {"affine": lung.affine, "source": "real", "origin": lung.origin}
        if asset := store_usable(library.add_lung, lung.hu, lung.mask, **facts):
            yield asset


def _distinct(assets: Iterable[Asset], n: int) -> list[Asset]:
    """The first n assets that differ from each other; takes no more from the iterator than it needs."""
    found: dict[str, Asset] = {}
    iterator = iter(assets)
    with tqdm(total=n, desc="real ones", leave=False, disable=n < _SHOWN) as progress:
        while len(found) < n and (asset := next(iterator, None)) is not None:
            progress.update(asset.hash not in found)
            found[asset.hash] = asset
    return list(found.values())


def _check_complete(found: list[Asset], wanted: int, counts: CandidateCounts, *, what: str) -> None:
    if len(found) < wanted:
        raise InputError(
            f"wcapsgan_bundle gave {len(found)} distinct usable {what} in {counts.generated} attempts, {wanted} are "
            f"needed; {counts.copies} were copies of training samples. Use better trained weights (--bundles), or ask "
            "for fewer with --count, --lungs or --groups."
        )
