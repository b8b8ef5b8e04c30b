"""The real samples that generated ones are ranked by: those of a cohort's training patients, and of no others.

They also say what a copy is. The evaluation measures the threshold of copies on held-out patients, who are not to be
touched here; so training patients take turns: a fifth of them is held against the other four fifths.

All training patients count, also those whom `exclude_enhancer_patients` leaves out: the generator knew them, so a copy
of theirs is a copy, and nothing of a ranking's real samples reaches an image.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional

from lungsynth.bundles import read_weights_file
from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.errors import InputError
from lungsynth.similarity.copies import Copies, CopyThreshold, copy_threshold, find_copies
from lungsynth.similarity.features import WEIGHTS, Features, open_features, pairwise_distance
from lungsynth.similarity.samples import SampleKind, Samples, as_shown, owner_folds, read_lungs, read_nodules
from lungsynth.similarity.selection import NEIGHBOURS, SimilarityScores, unranked

__all__ = ["ReferenceCategory", "ReferenceSet", "feature_weights", "open_reference_set"]

_FOLDS = 5  # of the training patients; more leave more to compare with, and cost more
_MEASURED = 600  # samples at most that the threshold of copies is measured on: 1 % of them are 6

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceCategory:
    """The real samples of a category.

    Args:
        vectors: features, one sample a nodule or slice.
        radii: of each sample's sphere: the distance to its fifth nearest of other patients.
    """

    vectors: Float[np.ndarray, "real features"]
    radii: Float[np.ndarray, " real"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceSet:
    """The real side of a ranking; made by `open_reference_set`.

    Args:
        kind: nodules or lungs.
        features: the feature network.
        categories: those with enough real samples to rank by.
        largest: one sample a nodule or slice, as they reach an image.
        slices: all that a generator may have been trained on, as they reach an image.
        threshold: below which a distance is a copy's; None where one patient is all there is.
    """

    kind: SampleKind
    features: Features
    categories: dict[str, ReferenceCategory]
    largest: Samples
    slices: Samples
    threshold: CopyThreshold | None

    def score(self, samples: Samples, category: str) -> SimilarityScores:
        """Compares candidates of a category with the real samples."""
        shown = _on_grid(as_shown(samples, self.kind), self.slices)
        scores = unranked(len(samples))
        if self.threshold is not None:
            near = find_copies(shown, self.slices, flips=self.kind == "nodules")
            scores = replace(scores, copied=self.threshold.copied(near, shown))
        if (real := self.categories.get(category)) is not None:
            distances = pairwise_distance(self.features(shown.hu).vectors, real.vectors)
            unlike = np.all(distances > real.radii, axis=1)
            scores = replace(scores, unlike=unlike, distances=distances)
        return scores


def feature_weights() -> dict[SampleKind, str]:
    """SHA-256 of the feature networks' weights.

    Raises:
        InputError: when a file is missing or damaged.
    """
    kinds: tuple[SampleKind, ...] = ("nodules", "lungs")
    return {kind: read_weights_file(WEIGHTS / f"{kind}_features.pt").sha256 for kind in kinds}


def open_reference_set(cohort: Path, kind: SampleKind, *, rule: CategoryRule = AS_LISTED) -> ReferenceSet | None:
    """Reads and measures the training part of a cohort; files that cannot be read are reported and left out.

    Args:
        cohort: folder that `lungsynth prepare` wrote.
        kind: nodules or lungs.
        rule: what the categories of nodules are.

    Returns:
        None, after a warning, where the part has no such samples.

    Raises:
        InputError: when the data list or the feature network cannot be read.
    """
    try:
        slices = _read_slices(cohort, kind, rule)
    except InputError as error:
        _logger.warning("Generated %s are not ranked, and no copy is recognised: %s", kind, error)
        return None
    slices = as_shown(slices, kind)
    largest = _largest(slices)
    features = open_features("domain", kind)
    vectors = features(largest.hu).vectors
    categories = {}
    for name in sorted(set(largest.categories)):
        own = largest.of(name)
        if (category := _category(vectors[own], [largest.owners[i] for i in own])) is not None:
            categories[name] = category
    return ReferenceSet(
        kind=kind,
        features=features,
        categories=categories,
        largest=largest,
        slices=slices,
        threshold=_threshold(largest, slices, kind),
    )


def _read_slices(cohort: Path, kind: SampleKind, rule: CategoryRule) -> Samples:
    if kind == "lungs":
        return read_lungs(cohort, "training", tolerant=True)
    return read_nodules(cohort, "training", largest_only=False, tolerant=True, rule=rule)


def _largest(slices: Samples) -> Samples:
    """One slice a name, that of the largest area."""
    best: dict[str, int] = {}
    for place, name in enumerate(slices.names):
        if name not in best or slices.diameter_mm[place] > slices.diameter_mm[best[name]]:
            best[name] = place
    return slices.take(list(best.values()))


def _category(vectors: Float[np.ndarray, "real features"], owners: list[str]) -> ReferenceCategory | None:
    """None where a sample has too few of other patients to have a sphere."""
    names = np.array(owners, dtype=object)
    distances = pairwise_distance(vectors, vectors)
    distances[names[:, None] == names[None]] = np.inf
    if len(vectors) <= NEIGHBOURS:
        return None
    radii = np.sort(distances, axis=1)[:, NEIGHBOURS - 1]
    return ReferenceCategory(vectors=vectors, radii=radii) if np.isfinite(radii).all() else None


def _threshold(largest: Samples, slices: Samples, kind: SampleKind) -> CopyThreshold | None:
    """What 1 % of the samples lie below when each is held against the patients of the other folds."""
    if len(set(slices.owners)) < 2:
        return None
    folds = owner_folds(slices.owners, seed=0, folds=_FOLDS)
    fold_of = dict(zip(slices.owners, folds, strict=True))
    some = np.sort(np.random.default_rng(0).permutation(len(largest))[:_MEASURED])
    measured = largest.take(some)
    own_folds = np.array([fold_of[owner] for owner in measured.owners])
    distances = np.zeros(len(measured))
    for fold in np.unique(own_folds):
        own, others = np.flatnonzero(own_folds == fold), np.flatnonzero(folds != fold)
        distances[own] = find_copies(measured.take(own), slices.take(others), flips=kind == "nodules").distances
    return copy_threshold(Copies(distances=distances, indices=np.zeros(len(distances), np.int64)), measured)


def _on_grid(samples: Samples, like: Samples) -> Samples:
    """Samples on the grid of others with the same field of view: a generator of 512 pixels beside slices of 256."""
    size = like.hu.shape[-1]
    if samples.hu.shape[-1] == size:
        return samples
    planes = torch.from_numpy(np.stack([samples.hu, samples.mask], axis=1).astype(np.float32))
    hu, mask = functional.interpolate(planes, size=[size, size], mode="bilinear", antialias=True).numpy().swapaxes(0, 1)
    return replace(samples, hu=np.rint(hu).astype(np.int16), mask=mask.astype(np.float16), spacing_mm=like.spacing_mm)
