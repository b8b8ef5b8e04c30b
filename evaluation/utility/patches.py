"""Examples of the classifier: isolated nodules of 64 x 64 pixels at 0.7 mm (contract C2.3), in HU.

Isolated means `hu` of a cohort's npz: the nodule on the smooth level of its lung, without vessels or pleura, which is
what the generator makes. So the classifier tells textures of nodules, not whether there is one. Copies are real
nodules pasted by the product's overlay (mirrored, turned, scaled by up to 10 %) on a flat lung of their own level.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int16, Int64

from evaluation.cohort_subsets import Subset
from evaluation.utility.subcohort import CATEGORIES
from lungsynth.compositing.nodule import NodulePatch, resample_nodule
from lungsynth.compositing.overlay import LungBackground, overlay
from lungsynth.errors import InputError
from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import to_int16
from lungsynth.placement.assets import ALPHA_SCALE
from lungsynth.placement.groups import NodulePlacement

__all__ = ["Examples", "Held", "copied", "generated", "held_out", "joined", "read_examples"]

_LARGE_ENOUGH = 0.5  # slices of a nodule train from this share of its largest area on, as for the generator
_SCALES = (0.9, 1.1)  # of copies, as in the product's groups
_CHUNK = 32  # seeds a call of the sampler
_TRIES = 4  # asked for, for each sample wanted


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """Patches that train.

    Args:
        hu: the patches.
        alpha: their masks, soft, in [0, 1].
        category: indices into `CATEGORIES`.
        weight: how much each counts; the slices of a nodule count as one together.
    """

    hu: Int16[np.ndarray, "n 64 64"]
    alpha: Float64[np.ndarray, "n 64 64"]
    category: Int64[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.hu)

    def take(self, places: Sequence[int]) -> "Examples":
        """Some of them."""
        index = np.asarray(places, dtype=np.int64)
        return Examples(
            hu=self.hu[index], alpha=self.alpha[index], category=self.category[index], weight=self.weight[index]
        )

    @property
    def mean_hu(self) -> Float64[np.ndarray, " n"]:
        """Over each nodule's mask."""
        mask = self.alpha >= 0.5
        return np.asarray((self.hu * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Held:
    """Nodules that are judged on: their patches, and whose they are."""

    examples: Examples
    ids: tuple[str, ...]
    patients: tuple[str, ...]


def joined(parts: Sequence[Examples]) -> Examples:
    """All of them.

    Raises:
        InputError: when there is none.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        raise InputError("A classifier needs examples, got none. Give more patients, or another dose.")
    return Examples(
        **{name: np.concatenate([getattr(p, name) for p in filled]) for name in ("hu", "alpha", "category", "weight")}
    )


def read_examples(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Examples:
    """The slices of a cohort's nodules (`nodules.json`) that show at least half of their largest area.

    Raises:
        InputError: naming the file, when it is no nodule of a cohort.
    """
    found = []
    for entry in entries:
        if entry["category"] in CATEGORIES:
            hu, alpha, _ = _read(folder / entry["nodule"])
            area = (alpha >= 0.5).sum(axis=(1, 2))
            kept = np.flatnonzero(area >= max(1.0, _LARGE_ENOUGH * area.max()))
            if len(kept):
                found.append(_examples(hu[kept], alpha[kept], entry["category"], weight=1 / len(kept)))
    return joined(found)


def held_out(part: Subset) -> Held:
    """The largest slice of each judged nodule whose category is known.

    Raises:
        InputError: when there is none, or a file is no nodule of a cohort.
    """
    nodules = [nodule for nodule in part.judged_nodules if nodule.category in CATEGORIES]
    found = []
    for nodule in nodules:
        hu, alpha, largest = _read(nodule.patch or part.folder)
        found.append(_examples(hu[[largest]], alpha[[largest]], nodule.category))
    if not found:
        raise InputError(f"{part.folder}: its {part.part} part has no nodule of {list(CATEGORIES)} to judge on.")
    return Held(
        examples=joined(found),
        ids=tuple(nodule.id for nodule in nodules),
        patients=tuple(nodule.patient for nodule in nodules),
    )


def generated(sampler: Any, counts: Sequence[int], *, seed: int) -> list[Examples]:
    """Samples of each category (contract C6.5), diameters as the generator was trained; empty ones are passed over.

    Args:
        sampler: of wcapsgan_bundle.
        counts: by category; fewer samples are the first of more.
        seed: of all.

    Raises:
        InputError: when the sampler knows other categories, or gives too few usable samples.
    """
    if missing := set(CATEGORIES) - set(sampler.categories):
        raise InputError(f"wcapsgan_bundle: its generator lacks the categories {sorted(missing)}; train it with them.")
    pools = []
    for index, (category, count) in enumerate(zip(CATEGORIES, counts, strict=True)):
        words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(_TRIES * count, np.uint64)
        samples = _samples(sampler, [int(word) >> 1 for word in words], category)
        found = [example for example, _ in zip(samples, range(count), strict=False)]
        if len(found) < count:
            raise InputError(f"wcapsgan_bundle gave {len(found)} usable nodules of {category}, {count} are needed.")
        pools.append(joined(found) if found else _none())
    return pools


def copied(real: Examples, counts: Sequence[int], *, seed: int) -> list[Examples]:
    """Copies of the real nodules of each category; fewer copies are the first of more."""
    pools = []
    for index, count in enumerate(counts):
        own = np.flatnonzero(real.category == index)
        share = real.weight[own] / real.weight[own].sum()
        found = []
        for number in range(count):
            rng = np.random.default_rng([seed, index, number])
            found.append(_pasted(real, int(rng.choice(own, p=share)), rng))
        pools.append(joined(found) if found else _none())
    return pools


def _pasted(real: Examples, place: int, rng: np.random.Generator) -> Examples:
    """One nodule by the product's overlay, at the middle of a flat lung of its own level."""
    hu, alpha = real.hu[place], real.alpha[place]
    level = int(np.median(hu[alpha == 0])) if (alpha == 0).any() else int(hu.min())
    flat = LungBackground.of(
        np.full((PATCH_PX, PATCH_PX), level, np.int16),
        np.ones((PATCH_PX, PATCH_PX), bool),
        spacing_mm=(PATCH_SPACING_MM, PATCH_SPACING_MM),
        matched=False,
    )
    placement = NodulePlacement(
        asset="",
        category=CATEGORIES[int(real.category[place])],
        source="real",
        row_px=PATCH_PX / 2,
        col_px=PATCH_PX / 2,
        diameter_mm=1.0,
        distance_mm=1.0,
        rotation_deg=round(rng.uniform(0, 360), 1),
        flip=bool(rng.random() < 0.5),
        scale=round(rng.uniform(*_SCALES), 3),
    )
    patch = NodulePatch.from_asset(np.stack([hu, np.rint(alpha * ALPHA_SCALE).astype(np.int16)]))
    laid = overlay(flat, [(placement, resample_nodule(placement, patch, flat.spacing_mm))])
    mask = (laid.label == laid.label.max()).astype(np.float64)
    return _examples(laid.image[None], mask[None], placement.category)


def _samples(sampler: Any, seeds: Sequence[int], category: str) -> Iterator[Examples]:
    for begin in range(0, len(seeds), _CHUNK):
        chunk = list(seeds[begin : begin + _CHUNK])
        batch = sampler(chunk, [category] * len(chunk), [None] * len(chunk))
        for hu, alpha in zip(batch["hu"], batch["alpha"], strict=True):
            if alpha.max() >= 0.5:
                yield _examples(to_int16(hu)[None], np.asarray(alpha, dtype=np.float64)[None], category)


def _examples(hu: np.ndarray, alpha: np.ndarray, category: str, *, weight: float = 1.0) -> Examples:
    return Examples(
        hu=hu.astype(np.int16),
        alpha=alpha.astype(np.float64),
        category=np.full(len(hu), CATEGORIES.index(category), dtype=np.int64),
        weight=np.full(len(hu), weight),
    )


def _none() -> Examples:
    empty = np.empty((0, PATCH_PX, PATCH_PX))
    return Examples(hu=empty.astype(np.int16), alpha=empty, category=np.empty(0, np.int64), weight=np.empty(0))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["hu"], arrays["alpha"], int(arrays["largest"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected a nodule of a cohort, got {error}. Prepare the cohort again.") from error
