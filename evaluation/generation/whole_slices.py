"""The second reference of Table III: real whole slices with nodules, which nobody composed.

The first reference is composed, because real whole slices with outlined nodules are few. How far the composed held-out
slices are from the real ones says what the first reference is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.generation.reference import GenerationReference
from evaluation.generation.reference_distances import measure_distances
from evaluation.metrics.bootstrap import Estimates
from lungsynth.errors import NoSamplesError
from lungsynth.similarity.samples import Samples, read_slices

__all__ = ["COMPOSED", "WholeSlices", "measure_whole_slices"]

COMPOSED = "held_out"  # key of the composed slices of the same split among the methods


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeSlices:
    """Real whole slices.

    Args:
        samples: with nodules.
        figures: distances to them, by method; `held_out` are the composed ones of the same split.
    """

    samples: Samples
    figures: Mapping[str, Estimates]


def measure_whole_slices(
    matched: Mapping[str, Samples], reference: GenerationReference, folder: Path, split: str
) -> WholeSlices | None:
    """Measures all methods against the real whole slices of a split; None where it has none.

    Args:
        matched: samples by method.
        reference: the composed slices.
        folder: of composed slices, with `diseased.json`.
        split: the evaluated one.

    Raises:
        InputError: when a file is damaged.
    """
    try:
        samples = read_slices(folder, split, whole=True)
    except NoSamplesError:
        return None
    second = replace(
        reference, held_out=samples, shown=samples, vectors=reference.features(samples.hu), folds=reference.folds[:0]
    )
    sides = {COMPOSED: reference.held_out, **matched}
    figures = {name: measure_distances(side, reference.features(side.hu), second) for name, side in sides.items()}
    return WholeSlices(samples=samples, figures=figures)
