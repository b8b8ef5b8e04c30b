"""Condition fidelity: whether samples have the diameter and the texture class that were requested.

Diameters are measured on the mask. The texture is read by the domain network's classifier, which errs on real nodules
too. Its agreement with what was requested is therefore divided by its agreement with the label of real held-out
nodules; each category counts evenly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from evaluation.generation.methods import GeneratedSamples
from evaluation.generation.reference import GenerationReference
from evaluation.metrics.bootstrap import (
    Estimate,
    Estimates,
    PatientCounts,
    estimate,
    estimate_ratio,
    patient_index,
)
from evaluation.segmentation.figures import SIZES_MM
from lungsynth.similarity.samples import Samples

__all__ = [
    "TOLERANCE_MM",
    "agreement",
    "diameter_figures",
    "fidelity_by_category",
    "fidelity_by_size",
    "fidelity_figures",
    "texture_figures",
]

TOLERANCE_MM = 1.5  # of a diameter: about two pixels of 0.7 mm


def fidelity_figures(
    balanced: GeneratedSamples, correct: np.ndarray | None, reference: GenerationReference
) -> Estimates:
    """Diameter and texture of the balanced set, as far as they were requested.

    Args:
        balanced: as many of each category.
        correct: whether the classifier names each one's category; None where it has other classes.
        reference: the real side.
    """
    figures: Estimates = {}
    if balanced.requested_mm is not None:
        figures |= diameter_figures(balanced.samples, balanced.requested_mm, seed=reference.seed)
    if correct is not None and reference.correct is not None:
        sides = (reference.held_out, reference.correct), (balanced.samples, correct)
        figures |= texture_figures(*sides, seed=reference.seed)
    return figures


def fidelity_by_category(
    balanced: GeneratedSamples, correct: np.ndarray | None, reference: GenerationReference
) -> dict[str, Estimates]:
    """Diameter and texture of the balanced set against the request, and of real ones against their label."""
    columns: dict[str, np.ndarray] = {}
    if balanced.requested_mm is not None:
        error = balanced.samples.diameter_mm - balanced.requested_mm
        columns |= {"diameter_within": np.abs(error) <= TOLERANCE_MM, "diameter_bias_mm": error}
    if correct is not None:
        columns["texture_agreement"] = correct
    figures = _means_by_category(balanced.samples, columns, seed=reference.seed) if columns else {}
    if (of_real := reference.correct) is not None:
        real = _means_by_category(reference.held_out, {"texture_real": of_real}, seed=reference.seed)
        figures = {name: {**group, **real.get(name, {})} for name, group in figures.items()}
    return figures


def fidelity_by_size(sets: Sequence[GeneratedSamples], *, seed: int) -> dict[str, Estimates]:
    """Share within 1.5 mm and mean error in mm, by the requested diameter (`SIZES_MM`).

    Args:
        sets: generated samples, taken together: large ones are few in each.
        seed: of the bootstrap.
    """
    sized = [(one.samples.diameter_mm, one.requested_mm) for one in sets if one.requested_mm is not None]
    if not sized:
        return {}
    measured, requested = (np.concatenate(side) for side in zip(*sized, strict=True))
    groups: dict[str, Estimates] = {}
    for name, (low, high) in SIZES_MM.items():
        error = (measured - requested)[(requested >= low) & (requested < high)]
        if len(error):
            columns = {"diameter_within": np.abs(error) <= TOLERANCE_MM, "diameter_bias_mm": error}
            groups[name] = {key: _mean_of_independent(values, seed=seed) for key, values in columns.items()}
    return groups


def diameter_figures(samples: Samples, requested_mm: Float[np.ndarray, " n"], *, seed: int) -> Estimates:
    """Share within 1.5 mm, mean absolute error and mean error, in mm; a sample without a mask measures 0."""
    error = samples.diameter_mm - requested_mm
    columns = {
        "diameter_within": np.abs(error) <= TOLERANCE_MM,
        "diameter_error_mm": np.abs(error),
        "diameter_bias_mm": error,
    }
    return {name: _mean(samples, values, seed=seed) for name, values in columns.items()}


def texture_figures(real: tuple[Samples, np.ndarray], generated: tuple[Samples, np.ndarray], *, seed: int) -> Estimates:
    """Agreement with the label of real samples, with the request, and the second over the first.

    Args:
        real: held-out samples, and whether the classifier was correct on each.
        generated: likewise.
        seed: of the bootstrap.
    """
    sides = [_ClassifiedSide(samples, correct) for samples, correct in (real, generated)]

    def figures(counts: PatientCounts) -> Sequence[float]:
        of_real, of_generated = (
            side.agreement(own) for side, own in zip(sides, np.split(counts, [len(sides[0].owners)]), strict=True)
        )
        return of_real, of_generated, of_generated / of_real if of_real else float("nan")

    groups = [[f"{index}:{owner}" for owner in side.owners] for index, side in enumerate(sides)]
    n = [len(real[0]), len(generated[0]), len(generated[0])]
    estimates = [replace(figure, patients=len(groups[0])) for figure in estimate(groups, figures, n=n, seed=seed)]
    return dict(zip(("texture_real", "texture_agreement", "texture_ratio"), estimates, strict=True))


def agreement(categories: Sequence[str], correct: Bool[np.ndarray, " n"], counts: Float[np.ndarray, " n"]) -> float:
    """Mean over the categories of the share that is correct; categories that were not drawn are left out."""
    names = np.array(categories, dtype=object)
    shares = [
        float(counts[names == name] @ correct[names == name] / counts[names == name].sum())
        for name in sorted(set(categories))
        if counts[names == name].sum() > 0
    ]
    return float(np.mean(shares)) if shares else float("nan")


class _ClassifiedSide:
    """Samples with whether each was classified correctly, weighted by owner."""

    def __init__(self, samples: Samples, correct: np.ndarray) -> None:
        self.owners = sorted(set(samples.owners))
        self._index = patient_index(samples.owners, self.owners)
        self._categories, self._correct = samples.categories, correct

    def agreement(self, counts: PatientCounts) -> float:
        return agreement(self._categories, self._correct, counts[self._index])


def _means_by_category(samples: Samples, columns: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Estimates]:
    means = {}
    for category in sorted(set(samples.categories)):
        places = samples.of(category)
        own = samples.take(places)
        means[category] = {name: _mean(own, values[places], seed=seed) for name, values in columns.items()}
    return means


def _mean(samples: Samples, values: np.ndarray, *, seed: int) -> Estimate:
    mean = estimate_ratio(samples.owners, values.astype(np.float64).tolist(), [1.0] * len(samples), seed=seed)
    return replace(mean, patients=0) if samples.independent else mean


def _mean_of_independent(values: np.ndarray, *, seed: int) -> Estimate:
    """Over samples that no patient is behind."""
    names = [str(index) for index in range(len(values))]
    mean = estimate_ratio(names, values.astype(np.float64).tolist(), [1.0] * len(values), seed=seed)
    return replace(mean, patients=0)
