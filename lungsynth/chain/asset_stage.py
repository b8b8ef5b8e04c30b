"""Stage 1: the nodules and lungs of a run, real and generated, into its `AssetLibrary`.

The shares are the paper's: of 1,200 nodules 200 are real, of 500 lungs 50. Categories get equal numbers; where a cohort has too
few real ones of a category, generated ones fill up. Candidate i of a category has a seed of its own, and what cannot be used (an
empty mask) is passed over, so the assets follow from the run's seed alone.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lungsynth.bundles import open_bundle, read_weights
from lungsynth.chain.cohort_source import CohortSource
from lungsynth.chain.settings import Purpose, Sizes, seeds, share
from lungsynth.ct.volume import axial_affine
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16
from lungsynth.layers.assets import Asset, AssetLibrary
from lungsynth.types import Affine

__all__ = ["LUNG_CONFIGS", "LUNG_WEIGHTS", "Samplers", "centred_affine", "make_assets", "open_samplers"]

LUNG_CONFIGS = ("inference.json", "inference_lung.json")
LUNG_WEIGHTS = "model_lung.pt"
REAL_NODULES = Fraction(200, 1200)
REAL_LUNGS = Fraction(50, 500)
_CHUNK = 32  # seeds a call; only a matter of progress
_TRIES = 4  # candidates for each sample wanted
_SLICE_MM = 1.0  # thickness that a generated slice states

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Samplers:
    """The two samplers of wcapsgan_bundle (contract C6.5) and the SHA-256 of their weights."""

    nodules: Any
    lungs: Any
    nodule_weights: str
    lung_weights: str


def open_samplers(bundles: Path) -> Samplers:
    """Opens the samplers of nodules and of lungs.

    Raises:
        InputError: when the bundle or its weights cannot be used.
    """
    return Samplers(
        nodules=open_bundle(bundles, "wcapsgan"),
        lungs=open_bundle(bundles, "wcapsgan", configs=LUNG_CONFIGS, weights=LUNG_WEIGHTS),
        nodule_weights=read_weights(bundles, "wcapsgan").sha256,
        lung_weights=read_weights(bundles, "wcapsgan", file=LUNG_WEIGHTS).sha256,
    )


def make_assets(
    library: AssetLibrary, samplers: Samplers, sizes: Sizes, *, seed: int, cohort: CohortSource | None = None
) -> dict[str, int]:
    """Fills the library and writes its table.

    Args:
        library: of the run's folder.
        samplers: of nodules and lungs.
        sizes: how many of each.
        seed: of the run.
        cohort: lends real ones; without it all are generated.

    Returns:
        Counts by kind and source, e.g. `nodules_real`.

    Raises:
        InputError: when a sampler gives too few usable samples.
    """
    nodules = _mix_nodules(library, samplers, sizes.nodules, seed=seed, cohort=cohort)
    lungs = _mix_lungs(library, samplers, sizes.lungs, seed=seed, cohort=cohort)
    library.save_table()
    return {
        f"{kind}s_{source}": sum(asset.source == source for asset in assets)
        for kind, assets in (("nodule", nodules), ("lung", lungs))
        for source in ("real", "generated")
    }


def centred_affine(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> Affine:
    """Affine of a generated slice of shape (H, W), spacing (row, column): its centre is the origin (contract C1.4)."""
    row_mm, column_mm = spacing_mm
    origin = (-(shape[1] - 1) / 2 * column_mm, -(shape[0] - 1) / 2 * row_mm, 0.0)
    return axial_affine(spacing_mm=(_SLICE_MM, row_mm, column_mm), origin_lps_mm=origin)


def _mix_nodules(library: AssetLibrary, samplers: Samplers, n: int, *, seed: int, cohort: CohortSource | None) -> list[Asset]:
    categories = list(samplers.nodules.categories)
    found: list[Asset] = []
    for index, (category, wanted) in enumerate(zip(categories, share(n, len(categories)), strict=True)):
        real: list[Asset] = []
        if cohort:
            order = seeds(seed, Purpose.REAL_NODULES, index, n=1)[0]
            adders = (
                lambda nodule=nodule: library.add_nodule(
                    nodule.hu, nodule.alpha, category=category, source="real", origin=nodule.origin
                )
                for nodule in cohort.read_nodules(category, seed=order)
            )
            real = _first(adders, round(wanted * REAL_NODULES))
        missing = wanted - len(real)
        candidates = seeds(seed, Purpose.GENERATED_NODULES, index, n=_TRIES * missing)
        samples = _samples(samplers.nodules, candidates, category)
        adders = (
            lambda sample=sample: library.add_nodule(
                to_int16(sample["hu"]),
                sample["alpha"],
                category=category,
                source="generated",
                origin=str(int(sample["seed"])),
                weights=samplers.nodule_weights,
            )
            for sample in samples
        )
        found += real + _all_of(adders, missing, what=f"nodules of category {category}")
    return found


def _mix_lungs(library: AssetLibrary, samplers: Samplers, n: int, *, seed: int, cohort: CohortSource | None) -> list[Asset]:
    real: list[Asset] = []
    if cohort:
        order = seeds(seed, Purpose.REAL_LUNGS, n=1)[0]
        adders = (
            lambda lung=lung: library.add_lung(lung.hu, lung.mask, affine=lung.affine, source="real", origin=lung.origin)
            for lung in cohort.read_lungs(seed=order)
        )
        real = _first(adders, round(n * REAL_LUNGS))
    categories = list(samplers.lungs.categories)
    found = real
    for index, (category, missing) in enumerate(zip(categories, share(n - len(real), len(categories)), strict=True)):
        candidates = seeds(seed, Purpose.GENERATED_LUNGS, index, n=_TRIES * missing)
        row_mm, column_mm = (float(value) for value in np.broadcast_to(samplers.lungs.spacing_mm, 2))
        adders = (
            lambda sample=sample: library.add_lung(
                to_int16(sample["hu"]),
                sample["mask"],
                affine=centred_affine(sample["hu"].shape, (row_mm, column_mm)),
                source="generated",
                origin=str(int(sample["seed"])),
                category=category,
                weights=samplers.lung_weights,
            )
            for sample in _samples(samplers.lungs, candidates, category)
        )
        found = found + _all_of(adders, missing, what=f"lungs of category {category}")
    return found
