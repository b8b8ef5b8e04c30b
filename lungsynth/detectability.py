"""Does the segmentation bundle find the nodules of a run's samples? A check of the images, not of the labels.

The labels are known from how samples are made. What the bundle misses may be a faint nodule, a poor composite or a
weak detector, so nothing is refused: the figures are logged beside the run. Connected pixels of a probability of at
least one half are a mark, if one of them reaches the bundle's operating point. A nodule that a mark touches counts as
found; marks apart from all nodules count as other findings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from lungsynth.ct.write import read_plane
from lungsynth.hounsfield import Label
from lungsynth.types import HuPlane, LabelPlane, MaskPlane, Plane

__all__ = ["Segmenter", "check_detectability", "compare_with_label", "describe_detectability", "marks_of"]

_MARKED = 0.5  # probability from which on a pixel belongs to a mark
_CHECKED_SAMPLES = 16  # half a second of the detector each
_NEIGHBOURHOOD_PX = 3  # a mask that is a little wider than the label is no other finding

Segmenter = Callable[[HuPlane, tuple[float, float]], dict[str, np.ndarray]]
"""HU (H, W) and spacing (row, column) in mm -> probabilities `lung` and `nodule` (H, W)."""


def check_detectability(
    samples: Sequence[Mapping[str, Any]], out: Path, segmenter: Segmenter, *, operating_point: float
) -> dict[str, float]:
    """Segments some of the samples, evenly spread over the catalogue.

    Args:
        samples: all of the run, at least one; their `image` and `label` name NIfTI files.
        out: folder of these files.
        segmenter: of `lung_seg_bundle`.
        operating_point: its own, a probability.

    Returns:
        `checked_samples`, `checked_nodules`, `nodules_found` (share), `other_findings_per_slice`, `lung_dice`.
    """
    places = np.unique(np.linspace(0, len(samples) - 1, _CHECKED_SAMPLES).astype(int))
    hits: list[bool] = []
    others, dice = [], []
    for place in tqdm(places, desc="check", unit="sample"):
        hu, affine = read_plane(out / samples[place]["image"])
        label, _ = read_plane(out / samples[place]["label"])
        column_mm, row_mm = np.abs(np.diag(affine)[:2])
        maps = segmenter(hu, (float(row_mm), float(column_mm)))
        slice_hits, slice_others = compare_with_label(marks_of(maps["nodule"], operating_point), label)
        hits += slice_hits
        others.append(slice_others)
        dice.append(_dice(maps["lung"] >= 0.5, np.isin(label, (Label.LUNG, Label.NODULE))))
    return {
        "checked_samples": float(len(places)),
        "checked_nodules": float(len(hits)),
        "nodules_found": float(np.mean(hits)),
        "other_findings_per_slice": float(np.mean(others)),
        "lung_dice": float(np.mean(dice)),
    }


def describe_detectability(figures: Mapping[str, float]) -> str:
    """The figures in a sentence that says what they mean."""
    nodules, slices = (f"{figures[f'checked_{name}']:.0f}" for name in ("nodules", "samples"))
    found = round(figures["nodules_found"] * figures["checked_nodules"])
    return (
        f"How hard they are: an independent detector (lung_seg_bundle) finds {found} of {nodules} nodules on {slices} "
        f"of the slices, and marks {figures['other_findings_per_slice']:.1f} other spots on a slice. Small and faint "
        "nodules are hard for it in real CT, too. Labels do not depend on it: they are exact, because each nodule was "
        "put there"
    )


def marks_of(probability: Plane, operating_point: float) -> MaskPlane:
    """Pixels of one half or more whose connected ones reach the operating point."""
    pieces, count = ndimage.label(probability >= _MARKED, structure=np.ones((3, 3)))
    highest = np.concatenate([[0], ndimage.maximum(probability, pieces, np.arange(1, count + 1))])
    return np.asarray((highest >= operating_point)[pieces] & (pieces > 0))


def compare_with_label(marked: MaskPlane, label: LabelPlane) -> tuple[list[bool], int]:
    """Which of a slice's nodules are marked, and how many marks lie apart from all nodules."""
    nodules, count = ndimage.label(label == Label.NODULE, structure=np.ones((3, 3)))
    hits = [bool(marked[nodules == index].any()) for index in range(1, count + 1)]
    near = ndimage.binary_dilation(nodules > 0, iterations=_NEIGHBOURHOOD_PX)
    marks, marks_count = ndimage.label(marked, structure=np.ones((3, 3)))
    touching = np.unique(marks[near])
    return hits, marks_count - int((touching > 0).sum())


def _dice(first: MaskPlane, second: MaskPlane) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
