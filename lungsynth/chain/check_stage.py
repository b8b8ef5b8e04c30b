"""Stage 5: does the segmentation bundle find in the samples what their labels say?

A look at some of the samples, logged beside the run: it changes nothing and refuses nothing. A nodule counts as found
when the segmenter gives one of its pixels a probability of at least one half; what it marks outside all nodules and
their neighbourhood counts as another finding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from lungsynth.chain.render_stage import image_path, mask_path
from lungsynth.ct.write import read_plane
from lungsynth.hounsfield import Label
from lungsynth.placement.catalogue import Recipe
from lungsynth.types import HuPlane, LabelPlane, MaskPlane

__all__ = ["Segmenter", "check_samples", "compare"]

CHECKED_SAMPLES = 32
_NEIGHBOURHOOD_PX = 3  # a mask that is a little wider than the label is no other finding

Segmenter = Callable[[HuPlane, tuple[float, float]], dict[str, np.ndarray]]  # contract C6.5


def check_samples(recipes: Sequence[Recipe], out: Path, segmenter: Segmenter) -> dict[str, float]:
    """Segments some of the samples, evenly spread over the catalogue.

    Args:
        recipes: all samples of the run, at least one.
        out: folder of the run, with its images and label maps.
        segmenter: of `lung_seg_bundle`.

    Returns:
        `checked_samples`, `checked_nodules`, `nodules_found` (share), `other_findings_per_slice`, `lung_dice`.
    """
    places = np.unique(np.linspace(0, len(recipes) - 1, CHECKED_SAMPLES).astype(int))
    found: list[bool] = []
    others, dice = [], []
    for place in tqdm(places, desc="check", unit="sample"):
        hu, affine = read_plane(image_path(out, recipes[place].id))
        label, _ = read_plane(mask_path(out, recipes[place].id))
        column_mm, row_mm = np.abs(np.diag(affine)[:2])
        maps = segmenter(hu, (float(row_mm), float(column_mm)))
        here, other = compare(maps["nodule"] >= 0.5, label)
        found += here
        others.append(other)
        dice.append(_dice(maps["lung"] >= 0.5, np.isin(label, (Label.LUNG, Label.NODULE))))
    return {
        "checked_samples": float(len(places)),
        "checked_nodules": float(len(found)),
        "nodules_found": float(np.mean(found)),
        "other_findings_per_slice": float(np.mean(others)),
        "lung_dice": float(np.mean(dice)),
    }


def compare(marked: MaskPlane, label: LabelPlane) -> tuple[list[bool], int]:
    """Which of a slice's nodules are marked, and how many marks lie apart from all nodules."""
    nodules, count = ndimage.label(label == Label.NODULE, structure=np.ones((3, 3)))
    here = [bool(marked[nodules == index].any()) for index in range(1, count + 1)]
    near = ndimage.binary_dilation(nodules > 0, iterations=_NEIGHBOURHOOD_PX)
    marks, marks_count = ndimage.label(marked, structure=np.ones((3, 3)))
    touching = np.unique(marks[near])
    return here, marks_count - int((touching > 0).sum())


def _dice(first: MaskPlane, second: MaskPlane) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
