"""Whether a generator gives what it is asked for: the diameter, measured on the mask, and the texture class.

The texture is read by the domain network's classifier, which errs on real nodules too. Its agreement with what was
asked is therefore divided by its agreement with the label of real held-out nodules; each category counts evenly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, estimate_ratio, patient_index
from lungsynth.similarity.samples import Samples

__all__ = ["TOLERANCE_MM", "agreement", "by_category", "diameter_figures", "right_class", "texture_figures"]

TOLERANCE_MM = 1.5


def diameter_figures(samples: Samples, asked_mm: Float[np.ndarray, " n"], *, seed: int) -> dict[str, Estimate]:
    """Share within 1.5 mm, mean absolute error and mean error, in mm; a sample without a mask measures 0."""
    error = samples.diameter_mm - asked_mm
    columns = {
        "diameter_within": np.abs(error) <= TOLERANCE_MM,
        "diameter_error_mm": np.abs(error),
        "diameter_bias_mm": error,
    }
    ones = np.ones(len(samples)).tolist()
    return {
        name: _mean(samples, values.astype(np.float64).tolist(), ones, seed=seed) for name, values in columns.items()
    }


def right_class(
    probabilities: Float[np.ndarray, "n classes"], classes: Sequence[str], samples: Samples
) -> Bool[np.ndarray, " n"]:
    """Whether the classifier's most probable class is the sample's category."""
    names = np.array(classes, dtype=object)[probabilities.argmax(axis=1)]
    return np.asarray(names == np.array(samples.categories, dtype=object))


def texture_figures(
    real: tuple[Samples, np.ndarray], generated: tuple[Samples, np.ndarray], *, seed: int
) -> dict[str, Estimate]:
    """Agreement with the label of real samples, with what was asked, and the second over the first.

    Args:
        real: held-out samples, and whether the classifier was right on each.
        generated: likewise.
        seed: of the bootstrap.
    """
    sides = [_Side(samples, right) for samples, right in (real, generated)]

    def figures(weights: PatientCounts) -> Sequence[float]:
        truth, asked = (
            side.agreement(part) for side, part in zip(sides, np.split(weights, [len(sides[0].owners)]), strict=True)
        )
        return truth, asked, asked / truth if truth else float("nan")

    groups = [[f"{index}:{owner}" for owner in side.owners] for index, side in enumerate(sides)]
    n = [len(real[0]), len(generated[0]), len(generated[0])]
    found = estimate(groups, figures, n=n, seed=seed)
    found = [replace(figure, patients=len(groups[0])) for figure in found]
    return dict(zip(("texture_real", "texture_agreement", "texture_ratio"), found, strict=True))


def agreement(categories: Sequence[str], right: Bool[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
    """Mean over the categories of the share of right answers; categories that were not drawn are left out."""
    names = np.array(categories, dtype=object)
    shares = [
        float(weights[names == name] @ right[names == name] / weights[names == name].sum())
        for name in sorted(set(categories))
        if weights[names == name].sum() > 0
    ]
    return float(np.mean(shares)) if shares else float("nan")


class _Side:
    """Samples with whether each was classified rightly, weighted by owner."""

    def __init__(self, samples: Samples, right: np.ndarray) -> None:
        self.owners = sorted(set(samples.owners))
        self._place = patient_index(samples.owners, self.owners)
        self._categories, self._right = samples.categories, right

    def agreement(self, weights: PatientCounts) -> float:
        return agreement(self._categories, self._right, weights[self._place])


def by_category(samples: Samples, values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, dict[str, Estimate]]:
    """Means of values a sample, by category."""
    found = {}
    for category in sorted(set(samples.categories)):
        places = samples.of(category)
        part, ones = samples.take(places), np.ones(len(places)).tolist()
        found[category] = {
            name: _mean(part, column[places].astype(np.float64).tolist(), ones, seed=seed)
            for name, column in values.items()
        }
    return found


def _mean(samples: Samples, values: list[float], ones: list[float], *, seed: int) -> Estimate:
    found = estimate_ratio(samples.owners, values, ones, seed=seed)
    return replace(found, patients=0) if samples.independent else found
