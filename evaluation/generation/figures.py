"""All figures of a method of generation against the reference, each with n and an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from evaluation.anatomy.compare import AnatomyJudgement
from evaluation.generation.condition_fidelity import fidelity_by_category, fidelity_by_size, fidelity_figures
from evaluation.generation.ct_checks import compare_checks, measure_checks
from evaluation.generation.methods import GeneratedSamples
from evaluation.generation.reference import GenerationReference, correct_classes
from evaluation.generation.reference_distances import (
    compare_with_reference,
    distances_by_category,
    measure_c2st,
    measure_distances,
    run_two_sample_tests,
)
from evaluation.metrics.bootstrap import Estimate, Estimates, PatientCounts, estimate, estimate_ratio, patient_index
from evaluation.metrics.fid_kid import frechet_distance, inception_score
from evaluation.metrics.ms_ssim import pair_similarity
from lungsynth.similarity.copies import find_copies
from lungsynth.similarity.features import FeatureSet
from lungsynth.similarity.samples import SampleKind, Samples, as_shown

__all__ = ["ANATOMY_FIGURES", "GenerationFigures", "measure_generator", "measure_real"]

_PAIRS: Mapping[SampleKind, int] = {"nodules": 600, "lungs": 200, "slices": 200}
ANATOMY_FIGURES: Mapping[str, str] = {  # by key of a column
    "anatomy_distance": "mean_distance",
    "anatomy_worst": "worst",
    "anatomy_c2st": "forest",
    "patches_c2st": "patches",
}
_FID_PARTS = (4, 2, 1)  # FID is also measured on disjoint quarters and halves of the samples


@dataclass(frozen=True, kw_only=True)
class GenerationFigures:
    """Figures of a row of Table II.

    Args:
        headline: by column.
        copies: how many of the matched set are nearer to a training sample than 99 % of held-out ones are.
        fid_by_n: FID of random subsets of both sides at a quarter, half and all of n.
        checks: distance of each CT check, in its unit.
        by_category: of the balanced set diameter and texture; of the matched set, where a category has enough samples,
            FID, KID and two-sample tests.
        by_size: diameter of both sets by the requested one.
        anatomy: of the matched set, at 0.7 mm; None for nodules, and without a real side of anatomy.
    """

    headline: Estimates = field(default_factory=dict)
    copies: int | None = None
    fid_by_n: dict[int, float] = field(default_factory=dict)
    checks: Estimates = field(default_factory=dict)
    by_category: dict[str, Estimates] = field(default_factory=dict)
    by_size: dict[str, Estimates] = field(default_factory=dict)
    anatomy: AnatomyJudgement | None = None

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GenerationFigures":
        """From what `to_json` gave.

        Raises:
            KeyError, TypeError: when it is something else.
        """
        return cls(
            headline=_estimates(content["headline"]),
            copies=content["copies"],
            fid_by_n={int(n): value for n, value in content["fid_by_n"].items()},
            checks=_estimates(content["checks"]),
            by_category={name: _estimates(group) for name, group in content["by_category"].items()},
            by_size={name: _estimates(group) for name, group in content["by_size"].items()},
            anatomy=AnatomyJudgement(**content["anatomy"]) if content["anatomy"] else None,
        )


def measure_generator(
    matched: GeneratedSamples, balanced: GeneratedSamples, reference: GenerationReference
) -> GenerationFigures:
    """Measures a method.

    Args:
        matched: one sample for each held-out one, of its category and diameter: distances, two-sample tests, checks,
            copies.
        balanced: as many of each category: Inception Score, diversity, condition fidelity.
        reference: the real side.
    """
    shown, shown_balanced = (as_shown(one.samples, reference.kind) for one in (matched, balanced))
    vectors, balanced_vectors = (reference.features(samples.hu) for samples in (shown, shown_balanced))
    nearest = find_copies(shown, reference.training_shown, flips=reference.flips)
    copied = reference.threshold.copied(nearest, matched.samples)
    correct = correct_classes(reference.features, balanced_vectors, balanced.samples)
    tests = run_two_sample_tests(matched.samples, vectors, reference)
    distances = distances_by_category(shown, vectors, tests, reference)
    anatomy = reference.anatomy.judge(matched.samples) if reference.anatomy else None
    return GenerationFigures(
        headline={
            "copy_share": estimate_ratio(
                matched.samples.owners, copied.tolist(), [1.0] * len(copied), seed=reference.seed
            ),
            **measure_distances(shown, vectors, reference),
            **measure_c2st(matched.samples, tests, reference),
            **_figures_of_one_set(shown_balanced, balanced_vectors, reference),
            **fidelity_figures(balanced, correct, reference),
            **_anatomy_figures(anatomy),
        },
        copies=int(copied.sum()),
        fid_by_n=_fid_by_n(reference.vectors.vectors, vectors.vectors, seed=reference.seed),
        checks=_check_distances(matched.samples, reference),
        by_category=_merged(fidelity_by_category(balanced, correct, reference), distances),
        by_size=fidelity_by_size((matched, balanced), seed=reference.seed),
        anatomy=anatomy,
    )


def _anatomy_figures(judgement: AnatomyJudgement | None) -> Estimates:
    """The columns of a judgement; their floor stands in for an interval."""
    if judgement is None:
        return {}
    values = {key: getattr(judgement, name) for key, name in ANATOMY_FIGURES.items()}
    return {key: Estimate(value=value, n=judgement.n) for key, value in values.items()}


def measure_real(reference: GenerationReference) -> GenerationFigures:
    """The held-out samples themselves: what a figure of one set alone is worth. Categories count evenly in the IS."""
    headline = _figures_of_one_set(reference.shown, reference.vectors, reference)
    return GenerationFigures(headline=headline, copies=reference.held_out_copies)


def _figures_of_one_set(samples: Samples, features: FeatureSet, reference: GenerationReference) -> Estimates:
    """Inception Score, categories evenly, and MS-SSIM."""
    owners = sorted(set(samples.owners))
    index, even = patient_index(samples.owners, owners), _even_weights(samples)
    n_pairs = reference.measurement.pairs or _PAIRS[reference.kind]
    pairs = pair_similarity(samples, pairs=n_pairs, seed=reference.seed)
    n = {"inception_score": len(samples), "ms_ssim": len(pairs.values)}

    def figures(counts: PatientCounts) -> Sequence[float]:
        drawn = counts[index]
        score = float("nan")
        if features.probabilities is not None and drawn.sum():
            score = inception_score(features.probabilities, weights=drawn * even)
        return score, pairs.mean(drawn)

    resamples = reference.measurement.resamples
    estimates = estimate([owners], figures, n=list(n.values()), seed=reference.seed, resamples=resamples)
    patients = 0 if samples.independent else len(owners)
    return {
        name: replace(figure, patients=patients)
        for name, figure in zip(n, estimates, strict=True)
        if figure.value is not None
    }


def _check_distances(samples: Samples, reference: GenerationReference) -> Estimates:
    checks = measure_checks(samples, reference.kind)
    pairs = {name: compare_checks(reference.checks[name], check) for name, check in checks.items()}

    def figures(w: PatientCounts, v: PatientCounts) -> Sequence[float]:
        return [pair.distance(w, v) for pair in pairs.values()]

    n = [int(pair.generated_defined.sum()) for pair in pairs.values()]
    return dict(zip(pairs, compare_with_reference(samples, reference, figures, n=n, recentre=True), strict=True))


def _fid_by_n(real: np.ndarray, generated: np.ndarray, *, seed: int) -> dict[int, float]:
    """Mean over disjoint random subsets, so that all samples count at each n."""
    rng, count, means = np.random.default_rng(seed), min(len(real), len(generated)), {}
    for parts in _FID_PARTS:
        size = count // parts
        if size >= 2:
            orders = [rng.permutation(len(side))[: size * parts].reshape(parts, size) for side in (real, generated)]
            values = [frechet_distance(real[i], generated[j]) for i, j in zip(*orders, strict=True)]
            means[size] = float(np.mean(values))
    return means


def _even_weights(samples: Samples) -> np.ndarray:
    names, inverse, counts = np.unique(np.array(samples.categories), return_inverse=True, return_counts=True)
    return len(samples) / (len(names) * counts[inverse])


def _merged(first: Mapping[str, Estimates], second: Mapping[str, Estimates]) -> dict[str, Estimates]:
    """The figures of both, by category."""
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in sorted({*first, *second})}


def _estimates(content: Mapping[str, Any]) -> Estimates:
    return {name: Estimate(**figure) for name, figure in content.items()}
