"""What generated samples are held against: a cohort's held-out samples, measured once, and its training samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.cohort_subsets import Subset
from evaluation.generation.condition_fidelity import right_class
from evaluation.generation.ct_checks import Check, measure_checks
from evaluation.generation.methods import Requests
from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.errors import InputError
from lungsynth.similarity.copies import CopyThreshold, copy_threshold, find_copies
from lungsynth.similarity.features import Features, FeatureSet
from lungsynth.similarity.folds import owner_folds
from lungsynth.similarity.samples import SampleKind, Samples, as_shown, read_lungs, read_nodules, read_slices

__all__ = [
    "FEW_PATIENTS",
    "Reference",
    "balanced_requests",
    "matched_requests",
    "read_reference",
    "right_classes",
]

FEW_PATIENTS = 10  # below, what real samples are cannot be learnt from the held-out ones alone
_MATCHED_SEED = 1_000_000  # seeds of the matched set begin here, so that they are none of the balanced set's


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """The real side.

    Args:
        kind: nodules, lungs or whole slices.
        held_out: of the judged part, one slice a nodule.
        pasted: nodules as they reach an image; lungs as they are.
        training: likewise, of the training patients.
        slices: all slices that a generator may have been trained on, pasted.
        features: the feature network.
        vectors: features of `pasted`.
        checks: measurements of `held_out`.
        folds: of `held_out`, for the two-sample tests.
        threshold: below which a distance is a copy's.
        held_out_copies: how many of `held_out` lie below it.
        seed: of everything random.
    """

    kind: SampleKind
    held_out: Samples
    pasted: Samples
    training: Samples
    slices: Samples
    features: Features
    vectors: FeatureSet
    checks: dict[str, Check]
    folds: np.ndarray
    threshold: CopyThreshold
    held_out_copies: int
    seed: int

    @property
    def flips(self) -> bool:
        """Whether a mirror image is as good; a heart on the other side is not."""
        return self.kind == "nodules"

    def further_real(self, owners: Sequence[str]) -> Samples:
        """Training samples that two-sample tests learn from where few patients are held out; else none.

        Args:
            owners: of the samples that are to be told; training patients among them are no further ones.
        """
        enough = len(set(self.held_out.owners)) >= FEW_PATIENTS
        handed_out = set(owners)
        places = [] if enough else [i for i, who in enumerate(self.training.owners) if who not in handed_out]
        return self.training.take(places)

    @property
    def right(self) -> np.ndarray | None:
        """Whether the classifier is right on each held-out sample; None where it has other classes."""
        return right_classes(self.features, self.vectors, self.held_out)


def read_reference(
    part: Subset,
    kind: SampleKind,
    features: Features,
    *,
    seed: int,
    slices: Path | None = None,
    rule: CategoryRule = AS_LISTED,
) -> Reference:
    """Reads and measures both real sets.

    Args:
        part: on whom is judged.
        kind: of what.
        features: the feature network.
        seed: of everything random.
        slices: for whole slices, what `scripts/make_slices.py` wrote.
        rule: what the categories of nodules are.

    Raises:
        InputError: when the judged or the training part has none, or no category is in both.
    """
    held_out, training, seen = _read(part, kind, slices or part.folder, rule)
    shared = set(held_out.categories) & set(training.categories)
    held_out = held_out.take([i for i, name in enumerate(held_out.categories) if name in shared])
    if not len(held_out):
        raise InputError(f"{part.folder}: no category of its {part.part} {kind} is in its training part.")
    shown, seen = as_shown(held_out, kind), as_shown(seen, kind)
    near = find_copies(shown, seen, flips=kind == "nodules")
    threshold = copy_threshold(near, held_out)
    return Reference(
        kind=kind,
        held_out=held_out,
        pasted=shown,
        training=training,
        slices=seen,
        features=features,
        vectors=features(shown.hu),
        checks=measure_checks(held_out, kind),
        folds=owner_folds(held_out.owners, seed=seed),
        threshold=threshold,
        held_out_copies=int(threshold.copied(near, held_out).sum()),
        seed=seed,
    )


def matched_requests(reference: Reference) -> Requests:
    """One request a held-out sample: its category and, of a nodule, its diameter."""
    held_out = reference.held_out
    sizes = held_out.diameter_mm.tolist() if reference.kind == "nodules" else [None] * len(held_out)
    first = _MATCHED_SEED * (reference.seed + 1)
    return Requests(
        seeds=tuple(range(first, first + len(held_out))), categories=held_out.categories, diameters_mm=tuple(sizes)
    )


def balanced_requests(reference: Reference, *, count: int) -> Requests:
    """`count` of each category, diameters as in training: the paper's protocol."""
    names = tuple(sorted(set(reference.held_out.categories))) * count
    first = reference.seed * len(names)
    return Requests(seeds=tuple(range(first, first + len(names))), categories=names, diameters_mm=(None,) * len(names))


def right_classes(features: Features, found: FeatureSet, samples: Samples) -> np.ndarray | None:
    """Whether the network's classifier names each sample's category; None where its classes are others."""
    if found.probabilities is None or not set(samples.categories) <= set(features.classes):
        return None
    return right_class(found.probabilities, features.classes, samples)


def _read(part: Subset, kind: SampleKind, folder: Path, rule: CategoryRule) -> tuple[Samples, Samples, Samples]:
    if kind != "nodules":
        read = read_lungs if kind == "lungs" else read_slices
        training = read(folder, "training")
        return read(folder, part.part), training, training
    return (
        read_nodules(part.folder, part.part, rule=rule),
        read_nodules(part.folder, "training", rule=rule),
        read_nodules(part.folder, "training", largest_only=False, rule=rule),
    )
