"""Sets of generated samples against the held-out ones: distances and two-sample tests, each with n and an interval.

Patients are drawn again on the real side, samples on the generated one. Intervals of distances are centred on the
figure (`bootstrap.estimate`, `recentre`), because a set that is drawn from a set is farther from everything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluation.generation.reference import Reference
from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index
from evaluation.metrics.c2st import CorrectShare, balanced_accuracy, c2st_cnn, c2st_logistic
from evaluation.metrics.fid_kid import frechet_distance, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from lungsynth.errors import InputError
from lungsynth.similarity.features import FeatureSet
from lungsynth.similarity.folds import paired_folds
from lungsynth.similarity.samples import Samples, as_shown

__all__ = [
    "RESAMPLES",
    "Group",
    "compare_with_reference",
    "measure_distances",
    "measure_two_sample",
    "two_sample_rights",
]

RESAMPLES = 400
_NONE = float("inf")
_BOUNDS = ((0.0, _NONE), (-_NONE, _NONE), (0.0, 1.0), (0.0, 1.0), (0.0, _NONE), (0.0, 1.0))

Group = dict[str, Estimate]


def compare_with_reference(
    generated: Samples,
    reference: Reference,
    statistic: Callable[[PatientCounts, PatientCounts], Sequence[float]],
    *,
    n: Sequence[int],
    recentre: bool,
) -> list[Estimate]:
    """A statistic of weights a held-out sample and weights a generated one.

    Args:
        generated: the other side.
        reference: the real side.
        statistic: its figures.
        n: what each figure counts.
        recentre: see `bootstrap.estimate`.
    """
    owners = (reference.held_out.owners, generated.owners)
    groups = [[f"{side}:{name}" for name in sorted(set(names))] for side, names in enumerate(owners)]
    places = [patient_index([f"{side}:{name}" for name in names], groups[side]) for side, names in enumerate(owners)]

    def weighted(weights: PatientCounts) -> Sequence[float]:
        real, made = np.split(weights, [len(groups[0])])
        return statistic(real[places[0]], made[places[1]])

    found = estimate(groups, weighted, n=n, seed=reference.seed, resamples=RESAMPLES, recentre=recentre)
    return [replace(figure, patients=len(groups[0])) for figure in found]


def measure_distances(samples: Samples, found: FeatureSet, reference: Reference) -> Group:
    """FID, KID, precision, recall, density and coverage; none where either side has fewer than six samples.

    Args:
        samples: as they are compared.
        found: their features.
        reference: the real side.
    """
    real, made = reference.vectors.vectors, found.vectors
    names = ("fid", "kid", "precision", "recall", "density", "coverage")
    try:
        kernels, manifolds = kernel_matrices(real, made), compare_manifolds(real, made)
    except InputError:  # fewer than six samples: such figures do not exist
        return {}

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        fid = frechet_distance(real, made, x_weights=w, y_weights=v)
        return fid, kernel_distance(kernels, x_weights=w, y_weights=v), *manifolds.figures(w, v)

    estimates = compare_with_reference(samples, reference, figures, n=[len(made)] * len(names), recentre=True)
    bounded = [_bounded(figure, bounds) for figure, bounds in zip(estimates, _BOUNDS, strict=True)]
    return dict(zip(names, bounded, strict=True))


def _bounded(figure: Estimate, bounds: tuple[float, float]) -> Estimate:
    """Keeps an interval that was moved within what the figure can be."""
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=max(figure.low, bounds[0]), high=min(figure.high, bounds[1]))


def two_sample_rights(samples: Samples, found: FeatureSet, reference: Reference) -> dict[str, CorrectShare]:
    """Whether each answer of each two-sample test was right, of both sides; none where one patient is held out.

    Args:
        samples: one a held-out one, as made.
        found: features of them as they are compared.
        reference: the real side.
    """
    folds, shown = (reference.folds, paired_folds(reference.folds, samples.owners)), as_shown(samples, reference.kind)
    known = reference.further_real(samples.owners)
    known_shown = as_shown(known, reference.kind)
    known_vectors = reference.features(known_shown.hu).vectors if len(known) else None
    try:
        rights = {
            "c2st": c2st_cnn(reference.pasted, shown, folds, seed=reference.seed, known=known_shown),
            "c2st_features": c2st_logistic(reference.vectors.vectors, found.vectors, folds, known=known_vectors),
        }
        if reference.kind == "nodules":
            rights["c2st_patch"] = c2st_cnn(reference.held_out, samples, folds, seed=reference.seed, known=known)
    except InputError:  # one patient: nobody learns
        return {}
    return rights


def measure_two_sample(samples: Samples, rights: Mapping[str, CorrectShare], reference: Reference) -> Group:
    """Shares of right answers, both sides counting evenly.

    Args:
        samples: the generated side of `rights`.
        rights: of `two_sample_rights`.
        reference: whose held-out samples are the real side of `rights`.
    """

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        return [balanced_accuracy(right, w, v) for right in rights.values()]

    count = len(samples) + len(reference.held_out)
    estimates = compare_with_reference(samples, reference, figures, n=[count] * len(rights), recentre=False)
    return dict(zip(rights, estimates, strict=True))
