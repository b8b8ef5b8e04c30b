"""The real side: a cohort's held-out samples, measured once, and its training samples; and what is requested for them.

The requests match the held-out samples one by one, or are balanced over the categories, which is the paper's protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evaluation.anatomy.reference import AnatomyReference, read_anatomy_reference
from evaluation.cohort_subsets import Subset
from evaluation.generation.ct_checks import CtCheck, measure_checks
from evaluation.generation.methods import SampleRequests
from evaluation.metrics.c2st import CNN_STEPS
from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.errors import InputError
from lungsynth.similarity.copies import CopyThreshold, copy_threshold, find_copies
from lungsynth.similarity.features import Features, FeatureSet
from lungsynth.similarity.samples import (
    SampleKind,
    Samples,
    as_shown,
    owner_folds,
    read_lungs,
    read_nodules,
    read_slices,
)

__all__ = [
    "FEW_PATIENTS",
    "GenerationReference",
    "MeasurementConfig",
    "balanced_requests",
    "correct_classes",
    "matched_requests",
    "read_reference",
    "take_features",
]

FEW_PATIENTS = 10  # below, held-out samples alone do not show a classifier what real ones look like
_MATCHED_SEED = 1_000_000  # seeds of the matched set begin here, so that they are none of the balanced set's


@dataclass(frozen=True, kw_only=True)
class MeasurementConfig:
    """The effort of a measurement, the same for all rows of a table.

    Args:
        resamples: draws of the bootstrap. Each needs a FID; 400 leave the ends of an interval uncertain by 3 % of its
            width.
        c2st_steps: of the CNN that tells generated from real samples, for each fold.
        pairs: of samples for MS-SSIM. None for 600 of nodules and 200 of others, which take four times as long; more
            narrow its interval.
        min_group_samples: of a category on either side, for figures of its own; with fewer, FID of 64 features is
            mostly bias.
        min_group_patients: held-out patients of a category, likewise; fewer give no interval worth printing.
    """

    resamples: int = 400
    c2st_steps: int = CNN_STEPS
    pairs: int | None = None
    min_group_samples: int = 20
    min_group_patients: int = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationReference:
    """The real side; made by `read_reference`.

    Args:
        kind: nodules, lungs or whole slices.
        held_out: of the evaluated patients, one slice for each nodule.
        shown: the same as they reach an image: nodules on a uniform lung, lungs as they are.
        training: one slice for each nodule, of the training patients.
        training_shown: all slices that a generator may have been trained on, as they reach an image.
        features: the feature network.
        vectors: features of `shown`.
        checks: measurements of `held_out`.
        folds: of `held_out`, for the two-sample tests.
        threshold: the distance below which a sample is a copy.
        held_out_copies: how many of `held_out` are below it.
        seed: of everything random.
        measurement: effort.
        anatomy: the real side at 0.7 mm of the same patients; None for nodules, and where no scan is fine enough.
        anatomy_missing: why there is none; empty for nodules.
    """

    kind: SampleKind
    held_out: Samples
    shown: Samples
    training: Samples
    training_shown: Samples
    features: Features
    vectors: FeatureSet
    checks: dict[str, CtCheck]
    folds: np.ndarray
    threshold: CopyThreshold
    held_out_copies: int
    seed: int
    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)
    anatomy: AnatomyReference | None = None
    anatomy_missing: str = ""

    @property
    def flips(self) -> bool:
        """Whether a mirror image is as good; a heart on the other side is not."""
        return self.kind == "nodules"

    @property
    def n_patients(self) -> int:
        """Held-out patients."""
        return len(set(self.held_out.owners))

    @property
    def correct(self) -> np.ndarray | None:
        """Whether the classifier is correct on each held-out sample; None where it has other classes."""
        return correct_classes(self.features, self.vectors, self.held_out)

    def further_real(self, owners: Sequence[str]) -> Samples:
        """Training samples that also train the two-sample tests where few patients are held out; else none.

        Args:
            owners: of the samples that are tested; training patients among them are left out.
        """
        enough, tested = self.n_patients >= FEW_PATIENTS, set(owners)
        places = [] if enough else [i for i, owner in enumerate(self.training.owners) if owner not in tested]
        return self.training.take(places)

    def take(self, places: np.ndarray) -> "GenerationReference":
        """The reference with these held-out samples alone; its checks and copies remain those of all."""
        return replace(
            self,
            held_out=self.held_out.take(places),
            shown=self.shown.take(places),
            vectors=take_features(self.vectors, places),
            folds=self.folds[places],
        )


def read_reference(
    subset: Subset,
    kind: SampleKind,
    features: Features,
    *,
    seed: int,
    slices: Path | None = None,
    rule: CategoryRule = AS_LISTED,
    measurement: MeasurementConfig | None = None,
) -> GenerationReference:
    """Reads and measures both real sets.

    Args:
        subset: who is evaluated on.
        kind: of the samples.
        features: the feature network.
        seed: of everything random.
        slices: for whole slices, the folder of composed ones.
        rule: gives the categories of nodules.
        measurement: effort.

    Raises:
        InputError: when the evaluated or the training split has no sample, or no category is in both.
    """
    held_out, training, seen = _read(subset, kind, slices or subset.folder, rule)
    shared = set(held_out.categories) & set(training.categories)
    held_out = held_out.take([i for i, name in enumerate(held_out.categories) if name in shared])
    if not len(held_out):
        raise InputError(f"{subset.folder}: no category of its {subset.split} {kind} is in its training split.")
    shown, seen = as_shown(held_out, kind), as_shown(seen, kind)
    nearest = find_copies(shown, seen, flips=kind == "nodules")
    threshold = copy_threshold(nearest, held_out)
    anatomy, anatomy_missing = _read_anatomy(subset, kind, seed=seed)
    return GenerationReference(
        kind=kind,
        held_out=held_out,
        shown=shown,
        training=training,
        training_shown=seen,
        features=features,
        vectors=features(shown.hu),
        checks=measure_checks(held_out, kind),
        folds=owner_folds(held_out.owners, seed=seed),
        threshold=threshold,
        held_out_copies=int(threshold.copied(nearest, held_out).sum()),
        seed=seed,
        measurement=measurement or MeasurementConfig(),
        anatomy=anatomy,
        anatomy_missing=anatomy_missing,
    )


def _read_anatomy(subset: Subset, kind: SampleKind, *, seed: int) -> tuple[AnatomyReference | None, str]:
    """The real side of anatomy, or why there is none; lungs and slices are judged against the same normal slices."""
    if kind == "nodules":
        return None, ""
    try:
        return read_anatomy_reference(subset.folder, (subset.split,), seed=seed), ""
    except InputError as error:
        return None, str(error)


def matched_requests(reference: GenerationReference) -> SampleRequests:
    """One request for each held-out sample: its category and, of a nodule, its diameter."""
    held_out = reference.held_out
    diameters = held_out.diameter_mm.tolist() if reference.kind == "nodules" else [None] * len(held_out)
    first = _MATCHED_SEED * (reference.seed + 1)
    return SampleRequests(
        seeds=tuple(range(first, first + len(held_out))),
        categories=held_out.categories,
        diameters_mm=tuple(diameters),
    )


def balanced_requests(reference: GenerationReference, *, count: int) -> SampleRequests:
    """`count` of each category, diameters as in training: the paper's protocol."""
    names = tuple(sorted(set(reference.held_out.categories))) * count
    first = reference.seed * len(names)
    return SampleRequests(
        seeds=tuple(range(first, first + len(names))), categories=names, diameters_mm=(None,) * len(names)
    )


def correct_classes(features: Features, vectors: FeatureSet, samples: Samples) -> np.ndarray | None:
    """Whether the network's most probable class is each sample's category; None where its classes are others."""
    if vectors.probabilities is None or not set(samples.categories) <= set(features.classes):
        return None
    predicted = np.array(features.classes, dtype=object)[vectors.probabilities.argmax(axis=1)]
    return np.asarray(predicted == np.array(samples.categories, dtype=object))


def take_features(features: FeatureSet, places: np.ndarray) -> FeatureSet:
    """Features of the samples at these places."""
    probabilities = features.probabilities
    return FeatureSet(
        vectors=features.vectors[places], probabilities=None if probabilities is None else probabilities[places]
    )


def _read(subset: Subset, kind: SampleKind, folder: Path, rule: CategoryRule) -> tuple[Samples, Samples, Samples]:
    """Held-out and training samples, and all slices that a generator may have been trained on."""
    if kind != "nodules":
        read = read_lungs if kind == "lungs" else read_slices
        training = read(folder, "training")
        return read(folder, subset.split), training, training
    return (
        read_nodules(subset.folder, subset.split, rule=rule),
        read_nodules(subset.folder, "training", rule=rule),
        read_nodules(subset.folder, "training", largest_only=False, rule=rule),
    )
