"""Samples that are compared: nodule patches, lungs or whole diseased slices, real or generated, as arrays.

A nodule is its patch `hu` with its alpha, as generators make it; `on_uniform_lung` shows one in an image. A lung is a
normal slice on the generator's grid, a slice one with nodules there, whose mask is the lungs', nodules included. Each
sample has an owner, drawn as a whole by the bootstrap: a patient, or itself.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from lungsynth.categories import AS_LISTED, UNKNOWN, CategoryRule
from lungsynth.cohort.files import read_arrays, read_cohort_json
from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.geometry import LUNG_FIELD_MM, LUNG_SPACING_MM, PATCH_SPACING_MM, disc_diameter
from lungsynth.hounsfield import LUNG_HU
from lungsynth.types import Float16Planes, HuPlanes

__all__ = [
    "SampleKind",
    "Samples",
    "as_shown",
    "join",
    "on_uniform_lung",
    "owner_folds",
    "paired_folds",
    "read_lungs",
    "read_nodules",
    "read_slices",
]

SampleKind = Literal["nodules", "lungs", "slices"]

_MIN_AREA_SHARE = 0.5  # of a nodule's largest area: smaller slices show its poles
_logger = logging.getLogger(__name__)

Facts = TypeVar("Facts")


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """Samples of one kind.

    Args:
        hu: int16 (N, S, S).
        mask: float16 (N, S, S), the nodule's alpha or the lung mask, in [0, 1].
        categories: of each.
        owners: of each, what the bootstrap draws.
        names: of each; a nodule's or slice's id, or a seed.
        spacing_mm: of a pixel.

    Raises:
        InputError: when the lengths differ.
    """

    hu: HuPlanes
    mask: Float16Planes
    categories: tuple[str, ...]
    owners: tuple[str, ...]
    names: tuple[str, ...]
    spacing_mm: float

    def __post_init__(self) -> None:
        lengths = {len(self.hu), len(self.mask), len(self.categories), len(self.owners), len(self.names)}
        if len(lengths) > 1:
            raise InputError(f"Samples need as many images, masks, categories, owners and names, got {lengths}.")

    def __len__(self) -> int:
        return len(self.hu)

    @cached_property
    def diameter_mm(self) -> Float[np.ndarray, " n"]:
        """Of the disc as large as the mask (at least 0.5)."""
        return np.asarray(disc_diameter((self.mask >= 0.5).sum(axis=(1, 2))) * self.spacing_mm)

    @property
    def independent(self) -> bool:
        """Whether each sample is its own owner, so that no patient is behind them."""
        return self.owners == self.names

    def take(self, indices: Sequence[int] | np.ndarray) -> "Samples":
        """The samples at these places, in this order."""
        places = np.asarray(indices, dtype=np.int64)
        return Samples(
            hu=self.hu[places],
            mask=self.mask[places],
            categories=tuple(self.categories[i] for i in places),
            owners=tuple(self.owners[i] for i in places),
            names=tuple(self.names[i] for i in places),
            spacing_mm=self.spacing_mm,
        )

    def of(self, category: str) -> np.ndarray:
        """Places of the samples of a category."""
        return np.flatnonzero(np.array(self.categories, dtype=object) == category)


def on_uniform_lung(samples: Samples) -> Samples:
    """Nodules blended by their alpha onto a lung of a uniform `LUNG_HU`.

    A patch's surroundings are levelled for real nodules and never reach an image; compared as they are, they would
    give away each generated nodule by a trace of noise that nobody will see.
    """
    alpha = samples.mask.astype(np.float32)
    return replace(samples, hu=np.rint(alpha * samples.hu + (1 - alpha) * LUNG_HU).astype(np.int16))


def as_shown(samples: Samples, kind: SampleKind) -> Samples:
    """Nodules on a uniform lung, others as they are."""
    return on_uniform_lung(samples) if kind == "nodules" else samples


def join(parts: Sequence[Samples]) -> Samples:
    """Samples of several sets, one after the other.

    Raises:
        InputError: when there is none, or their grids differ.
    """
    if len({(part.hu.shape[1:], part.spacing_mm) for part in parts}) != 1:
        raise InputError("Samples are joined when they are on one grid; there are none, or several grids.")
    return Samples(
        hu=np.concatenate([part.hu for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        categories=tuple(name for part in parts for name in part.categories),
        owners=tuple(name for part in parts for name in part.owners),
        names=tuple(name for part in parts for name in part.names),
        spacing_mm=parts[0].spacing_mm,
    )


def read_nodules(
    cohort: Path, split: str, *, largest_only: bool = True, tolerant: bool = False, rule: CategoryRule = AS_LISTED
) -> Samples:
    """The nodules of a split that have patches and a category and show: one pixel at alpha >= 0.5 at least.

    Args:
        cohort: what `lungsynth prepare` wrote.
        split: `training`, `validation` or `test`.
        largest_only: one slice a nodule, its largest; else each of at least half the largest area.
        tolerant: leave out files that are damaged, with a warning.
        rule: what a category is.

    Raises:
        InputError: when the split has none, or a file is damaged.
    """
    listed = Cohort.open(cohort, rule=rule).split(split).nodules()
    rated = [(nodule, cohort / nodule.nodule) for nodule in listed if nodule.category != UNKNOWN]
    pieces = []
    for nodule, (hu, alpha, largest) in _read(rated, "hu", "alpha", "largest", tolerant=tolerant):
        area = (alpha >= 0.5).sum(axis=(1, 2))
        slices = [int(largest)] if largest_only else np.flatnonzero(area >= _MIN_AREA_SHARE * area.max())
        keep = [int(index) for index in slices if area[index]]
        pieces.append(_Piece(nodule.nodule_id, nodule.patient_id, nodule.category, hu[keep], alpha[keep]))
    return _joined(pieces, cohort / "nodules.json", split, PATCH_SPACING_MM)


def read_lungs(cohort: Path, split: str, *, tolerant: bool = False) -> Samples:
    """The normal slices of a split, on the generator's grid.

    Args:
        cohort: what `lungsynth prepare` wrote.
        split: `training`, `validation` or `test`.
        tolerant: leave out files that are damaged, with a warning.

    Raises:
        InputError: when the split has none, or a file is damaged.
    """
    lungs = Cohort.open(cohort).split(split).lungs()
    planes = [((lung.patient_id, lung.category), cohort / lung.lung) for lung in lungs]
    return _read_planes(planes, cohort / "lungs.json", split, tolerant=tolerant)


def read_slices(folder: Path, split: str, *, whole: bool = False) -> Samples:
    """The composed slices of a split of `slices.json`.

    Args:
        folder: what `scripts/make_slices.py` wrote.
        split: `training`, `validation` or `test`.
        whole: those of `diseased.json` instead, which nobody composed.

    Raises:
        InputError: when the split has none, or a file is damaged.
    """
    path = folder / ("diseased.json" if whole else "slices.json")
    entries = read_cohort_json(path).get(split, [])
    planes = [((entry.get("patient_id", ""), entry["category"]), folder / entry["slice"]) for entry in entries]
    return _read_planes(planes, path, split)


class _Piece(NamedTuple):
    """Samples of one file."""

    name: str
    owner: str
    category: str
    hu: np.ndarray
    mask: np.ndarray


def _read_planes(
    planes: Sequence[tuple[tuple[str, str], Path]], listed: Path, split: str, *, tolerant: bool = False
) -> Samples:
    """Planes, each with its owner and category, and the file that it is in."""
    named = [((path.stem, *facts), path) for facts, path in planes]
    read = _read(named, "hu", "mask", tolerant=tolerant)
    pieces = [_Piece(*facts, hu[None], mask[None]) for facts, (hu, mask) in read]
    return _joined(pieces, listed, split, LUNG_FIELD_MM / pieces[0].hu.shape[-1] if pieces else LUNG_SPACING_MM)


def _joined(pieces: Sequence[_Piece], listed: Path, split: str, spacing_mm: float) -> Samples:
    if not pieces:
        raise NoSamplesError(
            f"{listed}: expected rated samples in `{split}`, got none. Prepare the cohort from more patients, or with "
            "ratings (LIDC's XML)."
        )
    if len(shapes := {piece.hu.shape[1:] for piece in pieces}) > 1:
        raise InputError(f"{listed}: the files of `{split}` have several sizes: {sorted(shapes)}. Prepare it again.")
    each = [piece for piece in pieces for _ in piece.hu]
    return Samples(
        hu=np.concatenate([piece.hu for piece in pieces]).astype(np.int16),
        mask=np.concatenate([piece.mask for piece in pieces]).astype(np.float16),
        categories=tuple(piece.category for piece in each),
        owners=tuple(piece.owner or piece.name for piece in each),
        names=tuple(piece.name for piece in each),
        spacing_mm=spacing_mm,
    )


def _read(
    files: Iterable[tuple[Facts, Path]], *names: str, tolerant: bool
) -> Iterator[tuple[Facts, tuple[np.ndarray, ...]]]:
    """What belongs to each file, with its arrays of these names."""
    for facts, path in files:
        try:
            yield facts, read_arrays(path, *names)
        except InputError as error:
            if not tolerant:
                raise
            _logger.warning("left out: %s", error)


FOLDS = 3  # a classifier is trained on two thirds; more folds cost more trainings


def owner_folds(owners: Sequence[str], *, seed: int, folds: int = FOLDS) -> np.ndarray:
    """A fold (0 ..) for each sample; those of one owner share it."""
    names = sorted(set(owners))
    order = np.random.default_rng(seed).permutation(len(names))
    place = {names[index]: rank % folds for rank, index in enumerate(order)}
    return np.array([place[owner] for owner in owners], dtype=np.int64)


def paired_folds(folds: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """Folds of samples that were each made to match a real one: the fold of that one.

    A classifier that saw a sample's twin on the other side, of the same size and category, would answer the other
    side: pairs that are split make chance look like 0.4. An owner of several samples has the fold of most of them.

    Args:
        folds: of the real samples.
        owners: of as many matched ones.
    """
    names = np.array(owners, dtype=object)
    most = {name: int(np.bincount(folds[names == name]).argmax()) for name in set(owners)}
    return np.array([most[owner] for owner in owners], dtype=np.int64)
