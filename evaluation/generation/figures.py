"""All figures of a generator against the reference, each with n and an interval.

Patients are drawn again on the real side, samples on the generated one. Intervals of distances are centred on the
figure (`bootstrap.estimate`, `recentre`), because a set that is drawn from a set is farther from everything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation.generation.by_group import asked_by_category, asked_by_size, joined, likeness_by_category
from evaluation.generation.condition_fidelity import diameter_figures, texture_figures
from evaluation.generation.ct_checks import compare_checks, measure_checks
from evaluation.generation.methods import GeneratedSamples
from evaluation.generation.reference import Reference, right_classes
from evaluation.generation.reference_distances import (
    RESAMPLES,
    Group,
    compare_with_reference,
    measure_distances,
    measure_two_sample,
    two_sample_rights,
)
from evaluation.metrics.bootstrap import PatientCounts, estimate, estimate_ratio, patient_index
from evaluation.metrics.fid_kid import frechet_distance, inception_score
from evaluation.metrics.ms_ssim import pair_similarity
from lungsynth.similarity.copies import find_copies
from lungsynth.similarity.features import FeatureSet
from lungsynth.similarity.samples import SampleKind, Samples, as_shown

__all__ = ["GeneratorFigures", "measure_generator", "measure_real"]

_PAIRS: Mapping[SampleKind, int] = {"nodules": 600, "lungs": 200, "slices": 200}


@dataclass(frozen=True, kw_only=True)
class GeneratorFigures:
    """Figures of a line of Table II.

    Args:
        headline: by column.
        copies: how many of the matched set lie nearer to a training sample than 99 % of held-out ones do.
        fid_by_n: FID of random subsets of both sides at a quarter, half and all of n.
        checks: distance of each CT check, in its unit.
        by_category: of the balanced set diameter and texture; of the matched set, where a category has enough samples,
            FID, KID and two-sample tests.
        by_size: diameter of both sets by the one that was asked for.
    """

    headline: Group = field(default_factory=dict)
    copies: int | None = None
    fid_by_n: dict[int, float] = field(default_factory=dict)
    checks: Group = field(default_factory=dict)
    by_category: dict[str, Group] = field(default_factory=dict)
    by_size: dict[str, Group] = field(default_factory=dict)


def measure_generator(matched: GeneratedSamples, balanced: GeneratedSamples, reference: Reference) -> GeneratorFigures:
    """Measures a generator.

    Args:
        matched: one sample a held-out one, of its category and diameter: distances, two-sample tests, checks, copies.
        balanced: as many of each category: Inception Score, diversity, asked against measured.
        reference: the real side.
    """
    shown, shown_balanced = (as_shown(drawn.samples, reference.kind) for drawn in (matched, balanced))
    vectors, balanced_vectors = (reference.features(samples.hu) for samples in (shown, shown_balanced))
    near = find_copies(shown, reference.slices, flips=reference.flips)
    copied = reference.threshold.copied(near, matched.samples)
    right = right_classes(reference.features, balanced_vectors, balanced.samples)
    rights = two_sample_rights(matched.samples, vectors, reference)
    share = estimate_ratio(matched.samples.owners, copied.tolist(), [1.0] * len(copied), seed=reference.seed)
    headline = {
        "copy_share": share,
        **measure_distances(shown, vectors, reference),
        **measure_two_sample(matched.samples, rights, reference),
        **_alone(shown_balanced, balanced_vectors, reference),
        **_asked(balanced, right, reference),
    }
    return GeneratorFigures(
        headline=headline,
        copies=int(copied.sum()),
        fid_by_n=_fid_by_n(reference.vectors.vectors, vectors.vectors, seed=reference.seed),
        checks=_checks(matched.samples, reference),
        by_category=joined(
            asked_by_category(balanced, right, reference), likeness_by_category(shown, vectors, rights, reference)
        ),
        by_size=asked_by_size((matched, balanced), seed=reference.seed),
    )


def measure_real(reference: Reference) -> GeneratorFigures:
    """The held-out samples themselves: what a figure of one set alone is worth. Categories count evenly in the IS."""
    return GeneratorFigures(
        headline=_alone(reference.pasted, reference.vectors, reference), copies=reference.held_out_copies
    )


def _alone(samples: Samples, found: FeatureSet, reference: Reference) -> Group:
    """Inception Score, categories evenly, and MS-SSIM of a set alone."""
    owners = sorted(set(samples.owners))
    place, even = patient_index(samples.owners, owners), _even_weights(samples)
    pairs = pair_similarity(samples, pairs=_PAIRS[reference.kind], seed=reference.seed)
    counts = {"inception_score": len(samples), "ms_ssim": len(pairs.values)}

    def figures(weights: PatientCounts) -> Sequence[float]:
        drawn = weights[place]
        score = float("nan")
        if found.probabilities is not None and drawn.sum():
            score = inception_score(found.probabilities, weights=drawn * even)
        return score, pairs.mean(drawn)

    estimates = estimate([owners], figures, n=list(counts.values()), seed=reference.seed, resamples=RESAMPLES)
    patients = 0 if samples.independent else len(owners)
    return {
        name: replace(figure, patients=patients)
        for name, figure in zip(counts, estimates, strict=True)
        if figure.value is not None
    }


def _asked(balanced: GeneratedSamples, right: np.ndarray | None, reference: Reference) -> Group:
    group: Group = {}
    if balanced.asked_mm is not None:
        group |= diameter_figures(balanced.samples, balanced.asked_mm, seed=reference.seed)
    truth = reference.right
    if right is not None and truth is not None:
        group |= texture_figures((reference.held_out, truth), (balanced.samples, right), seed=reference.seed)
    return group


def _checks(samples: Samples, reference: Reference) -> Group:
    measured = measure_checks(samples, reference.kind)
    pairs = {name: compare_checks(reference.checks[name], check) for name, check in measured.items()}

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        return [pair.distance(w, v) for pair in pairs.values()]

    counts = [int(pair.generated_known.sum()) for pair in pairs.values()]
    return dict(zip(pairs, compare_with_reference(samples, reference, figures, n=counts, recentre=True), strict=True))


def _fid_by_n(real: np.ndarray, made: np.ndarray, *, seed: int) -> dict[int, float]:
    """Mean over disjoint random subsets, so that all samples count at each n."""
    rng, count, found = np.random.default_rng(seed), min(len(real), len(made)), {}
    for pieces in (4, 2, 1):
        size = count // pieces
        if size >= 2:
            orders = [rng.permutation(len(side))[: size * pieces].reshape(pieces, size) for side in (real, made)]
            values = [frechet_distance(real[i], made[j]) for i, j in zip(*orders, strict=True)]
            found[size] = float(np.mean(values))
    return found


def _even_weights(samples: Samples) -> np.ndarray:
    names, inverse, counts = np.unique(np.array(samples.categories), return_inverse=True, return_counts=True)
    return len(samples) / (len(names) * counts[inverse])
