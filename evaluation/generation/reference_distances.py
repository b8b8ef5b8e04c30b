"""Distances of a set to the held-out samples, and two-sample tests, each with n and an interval.

Patients are resampled on the real side, samples on the generated one. Intervals of distances are centred on the figure
(`bootstrap.estimate`, `recentre`), because a resampled set is farther from everything than the set itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluation.generation.reference import GenerationReference, take_features
from evaluation.metrics.bootstrap import Estimate, Estimates, PatientCounts, estimate, patient_index
from evaluation.metrics.c2st import CorrectShare, balanced_accuracy, c2st_cnn, c2st_logistic
from evaluation.metrics.fid_kid import frechet_distance, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from lungsynth.errors import InputError
from lungsynth.similarity.features import FeatureSet
from lungsynth.similarity.samples import Samples, as_shown, paired_folds

__all__ = [
    "compare_with_reference",
    "distances_by_category",
    "measure_c2st",
    "measure_distances",
    "run_two_sample_tests",
]

_INFINITE = float("inf")
_BOUNDS: Mapping[str, tuple[float, float]] = {  # of what a figure can be; a shifted interval may reach beyond
    "fid": (0.0, _INFINITE),
    "kid": (-_INFINITE, _INFINITE),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, _INFINITE),
    "coverage": (0.0, 1.0),
}
_OF_CATEGORIES = ("fid", "kid")


def compare_with_reference(
    generated: Samples,
    reference: GenerationReference,
    statistic: Callable[[PatientCounts, PatientCounts], Sequence[float]],
    *,
    n: Sequence[int],
    recentre: bool,
) -> list[Estimate]:
    """A statistic of how often each held-out and each generated sample was drawn.

    Args:
        generated: the other side.
        reference: the real side.
        statistic: its figures.
        n: what each figure counts.
        recentre: see `bootstrap.estimate`.
    """
    owners = (reference.held_out.owners, generated.owners)
    groups = [[f"{side}:{name}" for name in sorted(set(names))] for side, names in enumerate(owners)]
    index = [patient_index([f"{side}:{name}" for name in names], groups[side]) for side, names in enumerate(owners)]

    def of_owners(counts: PatientCounts) -> Sequence[float]:
        of_real, of_generated = np.split(counts, [len(groups[0])])
        return statistic(of_real[index[0]], of_generated[index[1]])

    estimates = estimate(
        groups, of_owners, n=n, seed=reference.seed, resamples=reference.measurement.resamples, recentre=recentre
    )
    return [replace(figure, patients=len(groups[0])) for figure in estimates]


def measure_distances(samples: Samples, features: FeatureSet, reference: GenerationReference) -> Estimates:
    """FID, KID, precision, recall, density and coverage; none where either side has fewer than six samples.

    Args:
        samples: as they are compared.
        features: of the samples.
        reference: the real side.
    """
    real, generated = reference.vectors.vectors, features.vectors
    try:
        kernels, manifolds = kernel_matrices(real, generated), compare_manifolds(real, generated)
    except InputError:  # fewer than six samples: such figures do not exist
        return {}

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        fid = frechet_distance(real, generated, x_weights=w, y_weights=v)
        return fid, kernel_distance(kernels, x_weights=w, y_weights=v), *manifolds.figures(w, v)

    n = [len(generated)] * len(_BOUNDS)
    estimates = compare_with_reference(samples, reference, figures, n=n, recentre=True)
    return {name: _bounded(figure, *bounds) for (name, bounds), figure in zip(_BOUNDS.items(), estimates, strict=True)}


def run_two_sample_tests(
    samples: Samples, features: FeatureSet, reference: GenerationReference
) -> dict[str, CorrectShare]:
    """Whether each prediction of each two-sample test was correct, of both sides; none where one patient is held out.

    Args:
        samples: one for each held-out one, as generated.
        features: of the samples as they are compared.
        reference: the real side.
    """
    folds, shown = (reference.folds, paired_folds(reference.folds, samples.owners)), as_shown(samples, reference.kind)
    further = reference.further_real(samples.owners)
    further_shown = as_shown(further, reference.kind)
    further_vectors = reference.features(further_shown.hu).vectors if len(further) else None
    effort = {"seed": reference.seed, "steps": reference.measurement.c2st_steps}
    try:
        tests = {
            "c2st": c2st_cnn(reference.shown, shown, folds, further_real=further_shown, **effort),
            "c2st_features": c2st_logistic(
                reference.vectors.vectors, features.vectors, folds, further_real=further_vectors
            ),
        }
        if reference.kind == "nodules":
            tests["c2st_patch"] = c2st_cnn(reference.held_out, samples, folds, further_real=further, **effort)
    except InputError:  # one patient cannot both train and test
        return {}
    return tests


def measure_c2st(samples: Samples, tests: Mapping[str, CorrectShare], reference: GenerationReference) -> Estimates:
    """Balanced accuracies of two-sample tests.

    Args:
        samples: the generated side of the tests.
        tests: of `run_two_sample_tests`.
        reference: whose held-out samples are the real side of the tests.
    """

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        return [balanced_accuracy(correct, w, v) for correct in tests.values()]

    n = [len(samples) + len(reference.held_out)] * len(tests)
    estimates = compare_with_reference(samples, reference, figures, n=n, recentre=False)
    return dict(zip(tests, estimates, strict=True))


def distances_by_category(
    shown: Samples, features: FeatureSet, tests: Mapping[str, CorrectShare], reference: GenerationReference
) -> dict[str, Estimates]:
    """FID, KID and two-sample tests of each category that has enough samples and patients.

    Distances compare a category's held-out samples with those that match them, at the same n and sizes. The two-sample
    tests are those of the whole table on the samples of the category: a category of thirty could not train one.

    Args:
        shown: one sample for each held-out one, as they are compared.
        features: of the samples.
        tests: on all samples, whether each prediction was correct.
        reference: the real side.
    """
    groups: dict[str, Estimates] = {}
    for category in sorted(set(reference.held_out.categories)):
        real, generated = reference.held_out.of(category), shown.of(category)
        own = reference.take(real)
        effort = reference.measurement
        if min(len(real), len(generated)) < effort.min_group_samples or own.n_patients < effort.min_group_patients:
            continue
        samples = shown.take(generated)
        distances = measure_distances(samples, take_features(features, generated), own)
        correct = {name: (sides[0][real], sides[1][generated]) for name, sides in tests.items()}
        groups[category] = {
            **{name: distances[name] for name in _OF_CATEGORIES},
            **(measure_c2st(samples, correct, own) if correct else {}),
        }
    return groups


def _bounded(figure: Estimate, low: float, high: float) -> Estimate:
    """With an interval within what the figure can be."""
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=max(figure.low, low), high=min(figure.high, high))
