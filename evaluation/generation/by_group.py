"""Figures of a generator by category and by size: rare categories and large nodules are lost in a mean.

Distances of a category compare its held-out samples with those that match them, at the same n and the same sizes. Its
two-sample test is the classifier of the whole table, asked about the samples of that category: it has learnt from all,
and a category of thirty could not train one. Below `FEWEST` samples or `FEWEST_PATIENTS` real patients there are none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluation.generation.condition_fidelity import TOLERANCE_MM, by_category
from evaluation.generation.methods import GeneratedSamples
from evaluation.generation.reference import Reference
from evaluation.generation.reference_distances import Group, measure_distances, measure_two_sample
from evaluation.metrics.bootstrap import Estimate, estimate_ratio
from evaluation.metrics.c2st import CorrectShare
from evaluation.segmentation.figures import SIZES_MM
from lungsynth.similarity.features import FeatureSet
from lungsynth.similarity.samples import Samples

__all__ = ["FEWEST", "FEWEST_PATIENTS", "asked_by_category", "asked_by_size", "joined", "likeness_by_category"]

FEWEST, FEWEST_PATIENTS = 20, 10
_DISTANCES = ("fid", "kid")


def likeness_by_category(
    matched: Samples, found: FeatureSet, rights: Mapping[str, CorrectShare], reference: Reference
) -> dict[str, Group]:
    """FID, KID and two-sample tests of each category that has enough samples on both sides.

    Args:
        matched: one sample a held-out one, as they are compared.
        found: their features.
        rights: of the two-sample tests on all samples, whether each answer was right.
        reference: the real side.
    """
    groups: dict[str, Group] = {}
    for category in sorted(set(reference.held_out.categories)):
        real, made = reference.held_out.of(category), matched.of(category)
        part = _part(reference, real)
        if min(len(real), len(made)) < FEWEST or len(set(part.held_out.owners)) < FEWEST_PATIENTS:
            continue
        samples = matched.take(made)
        measured = measure_distances(samples, _features(found, made), part)
        right = {name: (sides[0][real], sides[1][made]) for name, sides in rights.items()}
        groups[category] = {
            **{name: measured[name] for name in _DISTANCES},
            **(measure_two_sample(samples, right, part) if right else {}),
        }
    return groups


def joined(groups: Mapping[str, Group], others: Mapping[str, Group]) -> dict[str, Group]:
    """The figures of both, by category."""
    return {name: {**groups.get(name, {}), **others.get(name, {})} for name in sorted({*groups, *others})}


def asked_by_category(balanced: GeneratedSamples, right: np.ndarray | None, reference: Reference) -> dict[str, Group]:
    """Diameter and texture of the balanced set against what was asked, and of real ones against their label."""
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


def asked_by_size(sets: Sequence[GeneratedSamples], *, seed: int) -> dict[str, Group]:
    """Share within 1.5 mm and mean error in mm, by the diameter that was asked for (`SIZES_MM`, lower bound included).

    Args:
        sets: drawn samples, taken together: large ones are few in each.
        seed: of the bootstrap.
    """
    known = [(drawn.samples.diameter_mm, drawn.asked_mm) for drawn in sets if drawn.asked_mm is not None]
    if not known:
        return {}
    measured, asked = (np.concatenate(side) for side in zip(*known, strict=True))
    groups: dict[str, Group] = {}
    for name, (low, high) in SIZES_MM.items():
        error = (measured - asked)[(asked >= low) & (asked < high)]
        if len(error):
            columns = {"diameter_within": np.abs(error) <= TOLERANCE_MM, "diameter_bias_mm": error}
            groups[name] = {key: _mean(values.astype(np.float64), seed=seed) for key, values in columns.items()}
    return groups


def _mean(values: np.ndarray, *, seed: int) -> Estimate:
    """Over samples that no patient is behind."""
    names = [str(index) for index in range(len(values))]
    return replace(estimate_ratio(names, values.tolist(), np.ones(len(values)).tolist(), seed=seed), patients=0)


def _part(reference: Reference, places: np.ndarray) -> Reference:
    """The reference with these held-out samples alone; its checks remain those of all."""
    return replace(
        reference,
        held_out=reference.held_out.take(places),
        pasted=reference.pasted.take(places),
        vectors=_features(reference.vectors, places),
        folds=reference.folds[places],
    )


def _features(found: FeatureSet, places: np.ndarray) -> FeatureSet:
    known = found.probabilities
    return FeatureSet(vectors=found.vectors[places], probabilities=None if known is None else known[places])
