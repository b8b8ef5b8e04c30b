"""All figures of a generator against the reference, each with n and an interval.

Patients are drawn again on the real side, samples on the generated one. Intervals of distances are centred on the
figure (`bootstrap.estimate`, `recentre`), because a set that is drawn from a set is farther from everything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lungsynth.errors import InputError
from lungsynth.judge.bootstrap import Estimate, Weights, estimate, estimate_ratio, patient_index
from lungsynth.judge.generation.asked import TOLERANCE_MM, by_category, diameter_figures, texture_figures
from lungsynth.judge.generation.ct_checks import compare_checks, measure_checks
from lungsynth.judge.generation.diversity import pair_similarity
from lungsynth.judge.generation.generators import Drawn
from lungsynth.judge.generation.reference import Reference, right_classes
from lungsynth.judge.generation.two_sample import balanced_accuracy, tell_by_features, tell_by_pixels
from lungsynth.likeness.copies import find_copies
from lungsynth.likeness.distances import frechet_distance, inception_score, kernel_distance, kernel_matrices
from lungsynth.likeness.features import FeatureSet
from lungsynth.likeness.folds import paired_folds
from lungsynth.likeness.manifold import compare_manifolds
from lungsynth.likeness.samples import Kind, Samples, as_shown

__all__ = ["GeneratorFigures", "Group", "measure_distances", "measure_generator", "measure_real"]

_RESAMPLES = 400
_NONE = float("inf")
_BOUNDS = ((0.0, _NONE), (-_NONE, _NONE), (0.0, 1.0), (0.0, 1.0), (0.0, _NONE), (0.0, 1.0))
_PAIRS: Mapping[Kind, int] = {"nodules": 600, "lungs": 200, "slices": 200}

Group = dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class GeneratorFigures:
    """Figures of a line of Table II.

    Args:
        headline: by column.
        copies: how many of the matched set lie nearer to a training sample than 99 % of held-out ones do.
        fid_by_n: FID of random subsets of both sides at a quarter, half and all of n.
        checks: distance of each CT check, in its unit.
        by_category: of the balanced set: diameter and texture.
    """

    headline: Group = field(default_factory=dict)
    copies: int | None = None
    fid_by_n: dict[int, float] = field(default_factory=dict)
    checks: Group = field(default_factory=dict)
    by_category: dict[str, Group] = field(default_factory=dict)


def measure_generator(matched: Drawn, balanced: Drawn, reference: Reference) -> GeneratorFigures:
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
    share = estimate_ratio(matched.samples.owners, copied.tolist(), [1.0] * len(copied), seed=reference.seed)
    headline = {
        "copy_share": share,
        **measure_distances(shown, vectors, reference),
        **_two_sample(matched.samples, vectors, reference),
        **_alone(shown_balanced, balanced_vectors, reference),
        **_asked(balanced, right, reference),
    }
    return GeneratorFigures(
        headline=headline,
        copies=int(copied.sum()),
        fid_by_n=_fid_by_n(reference.vectors.vectors, vectors.vectors, seed=reference.seed),
        checks=_checks(matched.samples, reference),
        by_category=_by_category(balanced, right, reference),
    )


def measure_real(reference: Reference) -> GeneratorFigures:
    """The held-out samples themselves: what a figure of one set alone is worth. Categories count evenly in the IS."""
    return GeneratorFigures(
        headline=_alone(reference.pasted, reference.vectors, reference), copies=reference.held_out_copies
    )


def _against(
    generated: Samples,
    reference: Reference,
    statistic: Callable[[Weights, Weights], Sequence[float]],
    *,
    n: Sequence[int],
    recentre: bool,
) -> list[Estimate]:
    """A statistic of weights a held-out sample and weights a generated one."""
    owners = (reference.held_out.owners, generated.owners)
    groups = [[f"{side}:{name}" for name in sorted(set(names))] for side, names in enumerate(owners)]
    places = [patient_index([f"{side}:{name}" for name in names], groups[side]) for side, names in enumerate(owners)]

    def weighted(weights: Weights) -> Sequence[float]:
        real, made = np.split(weights, [len(groups[0])])
        return statistic(real[places[0]], made[places[1]])

    found = estimate(groups, weighted, n=n, seed=reference.seed, resamples=_RESAMPLES, recentre=recentre)
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

    def figures(w: Weights, v: Weights) -> Sequence[float]:
        fid = frechet_distance(real, made, x_weights=w, y_weights=v)
        return fid, kernel_distance(kernels, x_weights=w, y_weights=v), *manifolds.figures(w, v)

    estimates = _against(samples, reference, figures, n=[len(made)] * len(names), recentre=True)
    bounded = [_bounded(figure, bounds) for figure, bounds in zip(estimates, _BOUNDS, strict=True)]
    return dict(zip(names, bounded, strict=True))


def _bounded(figure: Estimate, bounds: tuple[float, float]) -> Estimate:
    """Keeps an interval that was moved within what the figure can be."""
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=max(figure.low, bounds[0]), high=min(figure.high, bounds[1]))


def _two_sample(samples: Samples, found: FeatureSet, reference: Reference) -> Group:
    folds, shown = (reference.folds, paired_folds(reference.folds, samples.owners)), as_shown(samples, reference.kind)
    known = reference.further_real(samples.owners)
    known_shown = as_shown(known, reference.kind)
    known_vectors = reference.features(known_shown.hu).vectors if len(known) else None
    try:
        rights = {
            "c2st": tell_by_pixels(reference.pasted, shown, folds, seed=reference.seed, known=known_shown),
            "c2st_features": tell_by_features(reference.vectors.vectors, found.vectors, folds, known=known_vectors),
        }
        if reference.kind == "nodules":
            rights["c2st_patch"] = tell_by_pixels(reference.held_out, samples, folds, seed=reference.seed, known=known)
    except InputError:  # one patient: nobody learns
        return {}

    def figures(w: Weights, v: Weights) -> Sequence[float]:
        return [balanced_accuracy(right, w, v) for right in rights.values()]

    count = len(samples) + len(reference.held_out)
    estimates = _against(samples, reference, figures, n=[count] * len(rights), recentre=False)
    return dict(zip(rights, estimates, strict=True))


def _alone(samples: Samples, found: FeatureSet, reference: Reference) -> Group:
    """Inception Score, categories evenly, and MS-SSIM of a set alone."""
    owners = sorted(set(samples.owners))
    place, even = patient_index(samples.owners, owners), _even_weights(samples)
    pairs = pair_similarity(samples, pairs=_PAIRS[reference.kind], seed=reference.seed)
    counts = {"inception_score": len(samples), "ms_ssim": len(pairs.values)}

    def figures(weights: Weights) -> Sequence[float]:
        drawn = weights[place]
        score = float("nan")
        if found.probabilities is not None and drawn.sum():
            score = inception_score(found.probabilities, weights=drawn * even)
        return score, pairs.mean(drawn)

    estimates = estimate([owners], figures, n=list(counts.values()), seed=reference.seed, resamples=_RESAMPLES)
    patients = 0 if samples.independent else len(owners)
    return {
        name: replace(figure, patients=patients)
        for name, figure in zip(counts, estimates, strict=True)
        if figure.value is not None
    }


def _asked(balanced: Drawn, right: np.ndarray | None, reference: Reference) -> Group:
    group: Group = {}
    if balanced.asked_mm is not None:
        group |= diameter_figures(balanced.samples, balanced.asked_mm, seed=reference.seed)
    truth = reference.right
    if right is not None and truth is not None:
        group |= texture_figures((reference.held_out, truth), (balanced.samples, right), seed=reference.seed)
    return group


def _by_category(balanced: Drawn, right: np.ndarray | None, reference: Reference) -> dict[str, Group]:
    columns: dict[str, np.ndarray] = {}
    if balanced.asked_mm is not None:
        error = balanced.samples.diameter_mm - balanced.asked_mm
        columns["diameter_within"] = np.abs(error) <= TOLERANCE_MM
        columns["diameter_bias_mm"] = error
    truth = reference.right
    if right is not None:
        columns["texture_agreement"] = right
    found = by_category(balanced.samples, columns, seed=reference.seed) if columns else {}
    if truth is not None:
        real = by_category(reference.held_out, {"texture_real": truth}, seed=reference.seed)
        found = {name: {**group, **real.get(name, {})} for name, group in found.items()}
    return found


def _checks(samples: Samples, reference: Reference) -> Group:
    measured = measure_checks(samples, reference.kind)
    pairs = {name: compare_checks(reference.checks[name], check) for name, check in measured.items()}

    def figures(w: Weights, v: Weights) -> Sequence[float]:
        return [pair.distance(w, v) for pair in pairs.values()]

    counts = [int(pair.generated_known.sum()) for pair in pairs.values()]
    return dict(zip(pairs, _against(samples, reference, figures, n=counts, recentre=True), strict=True))


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
