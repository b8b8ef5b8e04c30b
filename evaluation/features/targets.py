"""What the feature networks learn: radiologists' words and measurements of nodules, places and tissue of lung slices.

A target is NaN where it is not known. Nodules: texture class (the classes), ratings, size and density. Lungs have few
patients and no ratings: the classes are thirds of the scanned range, the targets what the image and its lung mask tell.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from einops import rearrange, reduce
from jaxtyping import Float, Int
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.hounsfield import SOLID_HU
from lungsynth.similarity.samples import Samples

__all__ = ["LUNG_CLASSES", "NODULE_CLASSES", "LungPlaces", "Targets", "lung_classes", "lung_targets", "nodule_targets"]

NODULE_CLASSES = ("ground_glass", "part_solid", "solid")
LUNG_CLASSES = ("lower", "middle", "upper")
_RATINGS = ("malignancy", "spiculation", "lobulation", "margin", "sphericity", "calcification", "subtlety")
_TISSUES_HU = {"air": (-1025, -950), "lung": (-950, -700), "dense_lung": (-700, -300), "soft": (-300, 150)}
_GRID = 4

Targets = dict[str, Float[np.ndarray, " n"]]
LungPlaces = Int[np.ndarray, " n"]


def nodule_targets(samples: Samples, cohort: Path) -> Targets:
    """Ratings of each nodule from `nodules.csv`, log2 of its diameter, and its HU.

    Raises:
        InputError: when the table lacks a rating's column.
    """
    table = pd.read_csv(cohort / "nodules.csv", dtype={"nodule_id": str}).set_index("nodule_id")
    if missing := sorted(set(_RATINGS) - set(table.columns)):
        raise InputError(f"{cohort / 'nodules.csv'}: expected columns {missing}. Prepare the cohort again.")
    found: Targets = {name: table.loc[list(samples.names), name].to_numpy(np.float64) for name in _RATINGS}
    inside = samples.mask >= 0.5
    area = np.maximum(inside.sum(axis=(1, 2)), 1)
    hu = samples.hu.astype(np.float32)
    mean = (hu * inside).sum(axis=(1, 2)) / area
    square = (hu**2 * inside).sum(axis=(1, 2)) / area
    return found | {
        "log2_diameter": np.log2(np.maximum(samples.diameter_mm, 1.0)),
        "mean_hu": mean.astype(np.float64),
        "spread_hu": np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float64),
        "solid_fraction": ((samples.hu > SOLID_HU) & inside).sum(axis=(1, 2)) / area,
    }


def lung_targets(samples: Samples) -> Targets:
    """The lung mask's share of each of 4 x 4 fields, tissues' shares, and structure in the lungs at three scales."""
    side = samples.hu.shape[-1] // _GRID
    # Named axes: rows and columns of fields, and of pixels within a field.
    fields = reduce(
        samples.mask[:, : side * _GRID, : side * _GRID].astype(np.float32),
        "n (row h) (column w) -> n (row column)",
        "mean",
        row=_GRID,
        column=_GRID,
    )
    found: Targets = {
        f"lung_{i}": column.astype(np.float64) for i, column in enumerate(rearrange(fields, "n f -> f n"))
    }
    for name, (low, high) in _TISSUES_HU.items():
        found[name] = ((samples.hu >= low) & (samples.hu < high)).mean(axis=(1, 2))
    rows = [_structure(hu, mask >= 0.5) for hu, mask in zip(samples.hu, samples.mask, strict=True)]
    names = ("mean_hu", "fine", "middle", "coarse")
    return found | {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def lung_classes(samples: Samples) -> LungPlaces:
    """Which third of the cohort's slices of its series each slice lies in: 0 lower, 1 middle, 2 upper."""
    places = [name.rpartition("_") for name in samples.names]
    series = np.array([head for head, _, _ in places], dtype=object)
    index = np.array([int(tail) for _, _, tail in places])
    found = np.zeros(len(index), np.int64)
    for name in set(series):
        own = series == name
        low, high = index[own].min(), index[own].max()
        found[own] = np.minimum((index[own] - low) * 3 // max(high - low + 1, 1), 2)
    return found


def _structure(hu: np.ndarray, lung: np.ndarray) -> tuple[float, float, float, float]:
    """Mean HU in the lung, and log of the spread of three bands in it, fine (noise) to coarse (vessels)."""
    inside = ndimage.binary_erosion(lung, iterations=3)
    if not inside.any():
        return float("nan"), float("nan"), float("nan"), float("nan")
    plane = hu.astype(np.float32)
    blurred = [plane, *(ndimage.gaussian_filter(plane, sigma) for sigma in (0.7, 1.5, 3.0))]
    bands = [np.log(max(float((a - b)[inside].std()), 1.0)) for a, b in pairwise(blurred)]
    return float(plane[inside].mean()), bands[0], bands[1], bands[2]
