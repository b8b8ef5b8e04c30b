"""Examples of the classifier: isolated nodules of 64 x 64 pixels at 0.7 mm, in HU.

Isolated means `hu` of a cohort's npz: the nodule on the smooth level of its lung, without vessels or pleura, which is
what the generator makes. So the classifier tells textures of nodules, not whether there is one. Copies are real
nodules composited by the product's overlay (mirrored, turned, scaled by up to 10 %) on a uniform lung of their own
level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int16, Int64

from evaluation.cohort_subsets import Subset
from evaluation.utility.subcohort import CATEGORIES
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.schema import NoduleEntry
from lungsynth.compositing.nodule import NodulePatch, resample_nodule
from lungsynth.compositing.overlay import LungBackground, overlay
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import to_int16
from lungsynth.placement.assets import ALPHA_SCALE
from lungsynth.placement.groups import NodulePlacement

__all__ = [
    "HeldOutNodules",
    "NoduleExamples",
    "copy_examples",
    "generate_examples",
    "join_examples",
    "read_examples",
    "read_held_out",
]

_MIN_AREA_SHARE = 0.5  # of a nodule's largest slice: smaller slices do not train, as for the generator
_COPY_SCALES = (0.9, 1.1)  # as in the product's groups
_CHUNK = 32  # seeds in a call of the sampler; memory only
_SEEDS_PER_SAMPLE = 4  # seeds at most for each sample: a generator that needs more gives too many empty ones


@dataclass(frozen=True, eq=False, kw_only=True)
class NoduleExamples:
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

    def take(self, places: Sequence[int]) -> "NoduleExamples":
        """The examples at these places."""
        index = np.asarray(places, dtype=np.int64)
        return NoduleExamples(
            hu=self.hu[index], alpha=self.alpha[index], category=self.category[index], weight=self.weight[index]
        )

    @property
    def mean_hu(self) -> Float64[np.ndarray, " n"]:
        """Over each nodule's mask."""
        mask = self.alpha >= 0.5
        return np.asarray((self.hu * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutNodules:
    """Nodules that are evaluated on: their patches, and whose they are."""

    examples: NoduleExamples
    ids: tuple[str, ...]
    patients: tuple[str, ...]


def join_examples(sets: Sequence[NoduleExamples]) -> NoduleExamples:
    """All of them.

    Raises:
        InputError: when there is none.
    """
    filled = [examples for examples in sets if len(examples)]
    if not filled:
        raise InputError("A classifier needs examples, got none. Give more patients, or another dose.")
    names = ("hu", "alpha", "category", "weight")
    return NoduleExamples(**{name: np.concatenate([getattr(one, name) for one in filled]) for name in names})


def read_examples(folder: Path, entries: Sequence[NoduleEntry]) -> NoduleExamples:
    """The slices of a cohort's nodules that show at least half of their largest area.

    Raises:
        InputError: naming the file, when it is no nodule of a cohort.
    """
    examples = []
    for entry in entries:
        if entry.category in CATEGORIES:
            hu, alpha, _ = read_arrays(folder / entry.nodule, "hu", "alpha", "largest")
            area = (alpha >= 0.5).sum(axis=(1, 2))
            large = np.flatnonzero(area >= max(1.0, _MIN_AREA_SHARE * area.max()))
            if len(large):
                examples.append(_examples(hu[large], alpha[large], entry.category, weight=1 / len(large)))
    return join_examples(examples)


def read_held_out(subset: Subset) -> HeldOutNodules:
    """The largest slice of each evaluated nodule whose category is known.

    Raises:
        InputError: when there is none, or a file is no nodule of a cohort.
    """
    nodules = [nodule for nodule in subset.evaluated_nodules if nodule.texture_class in CATEGORIES]
    examples = []
    for nodule in nodules:
        hu, alpha, largest = read_arrays(subset.patch_path(nodule), "hu", "alpha", "largest")
        examples.append(_examples(hu[[int(largest)]], alpha[[int(largest)]], nodule.texture_class))
    if not examples:
        raise InputError(f"{subset.folder}: its {subset.split} split has no nodule of {list(CATEGORIES)}.")
    return HeldOutNodules(
        examples=join_examples(examples),
        ids=tuple(nodule.nodule_id for nodule in nodules),
        patients=tuple(nodule.patient_id for nodule in nodules),
    )


def generate_examples(sampler: Any, counts: Sequence[int], *, seed: int) -> list[NoduleExamples]:
    """Samples of each category, diameters as the generator was trained; empty ones are passed over.

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
        words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(_SEEDS_PER_SAMPLE * count, np.uint64)
        usable = _usable_samples(sampler, [int(word) >> 1 for word in words], category)
        examples = [example for example, _ in zip(usable, range(count), strict=False)]
        if len(examples) < count:
            raise InputError(f"wcapsgan_bundle gave {len(examples)} usable nodules of {category}, {count} are needed.")
        pools.append(join_examples(examples) if examples else _no_examples())
    return pools


def copy_examples(real: NoduleExamples, counts: Sequence[int], *, seed: int) -> list[NoduleExamples]:
    """Copies of the real nodules of each category; fewer copies are the first of more."""
    pools = []
    for index, count in enumerate(counts):
        places = np.flatnonzero(real.category == index)
        share = real.weight[places] / real.weight[places].sum()
        copies = []
        for number in range(count):
            rng = np.random.default_rng([seed, index, number])
            copies.append(_copy(real, int(rng.choice(places, p=share)), rng))
        pools.append(join_examples(copies) if copies else _no_examples())
    return pools


def _copy(real: NoduleExamples, place: int, rng: np.random.Generator) -> NoduleExamples:
    """One nodule by the product's overlay, at the middle of a uniform lung of its own level."""
    hu, alpha = real.hu[place], real.alpha[place]
    level = int(np.median(hu[alpha == 0])) if (alpha == 0).any() else int(hu.min())
    lung = LungBackground.of(
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
        scale=round(rng.uniform(*_COPY_SCALES), 3),
    )
    patch = NodulePatch.from_asset(np.stack([hu, np.rint(alpha * ALPHA_SCALE).astype(np.int16)]))
    composite = overlay(lung, [(placement, resample_nodule(placement, patch, lung.spacing_mm))])
    mask = (composite.label == composite.label.max()).astype(np.float64)
    return _examples(composite.image[None], mask[None], placement.category)


def _usable_samples(sampler: Any, seeds: Sequence[int], category: str) -> Iterator[NoduleExamples]:
    for begin in range(0, len(seeds), _CHUNK):
        chunk = list(seeds[begin : begin + _CHUNK])
        batch = sampler(chunk, [category] * len(chunk), [None] * len(chunk))
        for hu, alpha in zip(batch["hu"], batch["alpha"], strict=True):
            if alpha.max() >= 0.5:
                yield _examples(to_int16(hu)[None], np.asarray(alpha, dtype=np.float64)[None], category)


def _examples(hu: np.ndarray, alpha: np.ndarray, category: str, *, weight: float = 1.0) -> NoduleExamples:
    return NoduleExamples(
        hu=hu.astype(np.int16),
        alpha=alpha.astype(np.float64),
        category=np.full(len(hu), CATEGORIES.index(category), dtype=np.int64),
        weight=np.full(len(hu), weight),
    )


def _no_examples() -> NoduleExamples:
    empty = np.empty((0, PATCH_PX, PATCH_PX))
    return NoduleExamples(hu=empty.astype(np.int16), alpha=empty, category=np.empty(0, np.int64), weight=np.empty(0))
