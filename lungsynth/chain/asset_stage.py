"""Stage 1: the nodules and lungs of a run, real and generated, into its `AssetLibrary`.

The shares are the paper's: of 1,200 nodules 200 are real, of 500 lungs 50. Categories get equal numbers; where a cohort
has too few real ones of a category, generated ones fill up. Candidate i of a category has a seed of its own, and what
cannot be used (an empty mask) is passed over, so the assets follow from the run's seed alone.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lungsynth.bundles import open_bundle
from lungsynth.chain.cohort_source import CohortSource
from lungsynth.chain.settings import Purpose, Sizes, seeds, share
from lungsynth.ct.volume import axial_affine
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16
from lungsynth.layers import Asset, AssetLibrary
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
    )


def make_assets(
    library: AssetLibrary, samplers: Samplers, sizes: Sizes, *, seed: int, cohort: CohortSource | None = None
) -> None:
    """Fills the library and writes its table.

    Args:
        library: of the run's folder.
        samplers: of nodules and lungs.
        sizes: how many of each.
        seed: of the run.
        cohort: lends real ones; without it all are generated.

    Raises:
        InputError: when a sampler gives too few usable samples.
    """
    _mix_nodules(library, samplers, sizes, seed=seed, cohort=cohort)
    _mix_lungs(library, samplers, sizes, seed=seed, cohort=cohort)
    library.save_table()


def centred_affine(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> Affine:
    """Affine of a generated slice of shape (H, W), spacing (row, column): its centre is the origin (contract C1.4)."""
    row_mm, column_mm = spacing_mm
    origin = (-(shape[1] - 1) / 2 * column_mm, -(shape[0] - 1) / 2 * row_mm, 0.0)
    return axial_affine(spacing_mm=(_SLICE_MM, row_mm, column_mm), origin_lps_mm=origin)


def _mix_nodules(
    library: AssetLibrary, samplers: Samplers, sizes: Sizes, *, seed: int, cohort: CohortSource | None
) -> list[Asset]:
    found: list[Asset] = []
    categories = list(samplers.nodules.categories)
    reals = share(sizes.real_nodules, len(categories))
    for index, (category, wanted) in enumerate(zip(categories, share(sizes.nodules, len(categories)), strict=True)):
        order = seeds(seed, Purpose.REAL_NODULES, index, n=1)[0]
        real = _distinct(real_nodules(library, cohort, category, seed=order), reals[index])
        missing = wanted - len(real)
        candidates = seeds(seed, Purpose.GENERATED_NODULES, index, n=_TRIES * missing)
        generated = _distinct(_generated_nodules(library, samplers, candidates, category), missing)
        found += real + _complete(generated, missing, what=f"nodules of category {category}")
    return found


def _mix_lungs(
    library: AssetLibrary, samplers: Samplers, sizes: Sizes, *, seed: int, cohort: CohortSource | None
) -> list[Asset]:
    order = seeds(seed, Purpose.REAL_LUNGS, n=1)[0]
    found = _distinct(real_lungs(library, cohort, seed=order), sizes.real_lungs)
    categories = list(samplers.lungs.categories)
    for index, (category, missing) in enumerate(
        zip(categories, share(sizes.lungs - len(found), len(categories)), strict=True)
    ):
        candidates = seeds(seed, Purpose.GENERATED_LUNGS, index, n=_TRIES * missing)
        generated = _distinct(_generated_lungs(library, samplers, candidates, category), missing)
        found = found + _complete(generated, missing, what=f"lungs of category {category}")
    return found


def real_nodules(library: AssetLibrary, cohort: CohortSource | None, category: str, *, seed: int) -> Iterator[Asset]:
    """Adds the cohort's nodules of a category to the library, one by one, in an order that the seed gives."""
    for nodule in cohort.read_nodules(category, seed=seed) if cohort else ():
        facts = {"category": category, "source": "real", "origin": nodule.origin}
        yield from _usable(library.add_nodule, nodule.hu, nodule.alpha, **facts)


def real_lungs(library: AssetLibrary, cohort: CohortSource | None, *, seed: int) -> Iterator[Asset]:
    """Adds the cohort's normal slices to the library, likewise."""
    for lung in cohort.read_lungs(seed=seed) if cohort else ():
        yield from _usable(library.add_lung, lung.hu, lung.mask, affine=lung.affine, source="real", origin=lung.origin)


def _generated_nodules(
    library: AssetLibrary, samplers: Samplers, candidates: Sequence[int], category: str
) -> Iterator[Asset]:
    for sample in _samples(samplers.nodules, candidates, category):
        facts = {"category": category, "source": "generated", "origin": str(int(sample["seed"]))}
        hu, alpha = to_int16(sample["hu"]), sample["alpha"]
        yield from _usable(library.add_nodule, hu, alpha, weights=samplers.nodule_weights, **facts)


def _generated_lungs(
    library: AssetLibrary, samplers: Samplers, candidates: Sequence[int], category: str
) -> Iterator[Asset]:
    row_mm, column_mm = (float(value) for value in np.broadcast_to(samplers.lungs.spacing_mm, 2))
    for sample in _samples(samplers.lungs, candidates, category):
        hu, mask = to_int16(sample["hu"]), np.asarray(sample["mask"])
        facts = {"category": category, "source": "generated", "origin": str(int(sample["seed"]))}
        affine = centred_affine(hu.shape, (row_mm, column_mm))
        yield from _usable(library.add_lung, hu, mask, affine=affine, weights=samplers.lung_weights, **facts)


def _samples(sampler: Any, candidates: Sequence[int], category: str) -> Iterator[dict[str, Any]]:
    """Asks the sampler for a few seeds at a time; yields one dictionary a seed."""
    step = max(1, min(_CHUNK, len(candidates) // _TRIES))
    for begin in range(0, len(candidates), step):
        chunk = list(candidates[begin : begin + step])
        batch = sampler(chunk, [category] * len(chunk), [None] * len(chunk))
        for index in range(len(chunk)):
            yield {key: values[index] for key, values in batch.items()}


def _usable(add: Callable[..., Asset], *arrays: np.ndarray, **facts: Any) -> Iterator[Asset]:
    """The stored asset, or nothing when the library refuses it: one bad sample must not end a long run."""
    try:
        yield add(*arrays, **facts)
    except InputError as error:
        _LOG.warning("passed over: %s", error)


def _distinct(assets: Iterable[Asset], n: int) -> list[Asset]:
    """The first n assets that differ from each other; takes no more from the iterator than it needs."""
    found: dict[str, Asset] = {}
    iterator = iter(assets)
    with tqdm(total=n, desc="assets", leave=False, disable=n < _CHUNK) as progress:
        while len(found) < n and (asset := next(iterator, None)) is not None:
            progress.update(asset.hash not in found)
            found[asset.hash] = asset
    return list(found.values())


def _complete(assets: list[Asset], n: int, *, what: str) -> list[Asset]:
    if len(assets) < n:
        raise InputError(
            f"wcapsgan_bundle gave {len(assets)} distinct usable {what} in {_TRIES * n} attempts, {n} are needed. "
            "Use better trained weights (--bundles), or ask for fewer with --count, --lungs or --groups."
        )
    return assets
