"""The trivial baselines, as detectors (contract C6.5): what a method is worth shows beside them alone."""

from typing import Any

import numpy as np
from scipy import ndimage

from evaluation.metrics.matching import Point
from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.types import HuVolume

__all__ = ["MiddleGuess", "NothingFound", "ThresholdDetector"]

_SOLID_HU = -400  # denser than any lung, and than a faint nodule
_CROP_MM = 120.0  # a smaller view shows no whole lung
_DIAMETERS_MM = (3.0, 40.0)


class NothingFound:
    """Finds no nodule anywhere."""

    operating_point = 0.5

    def __call__(self, hu: HuVolume, spacing_mm: Point) -> dict[str, Any]:
        """No candidates, and a nodule map of zeros.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        return {"candidates": np.zeros((0, 5), np.float32), "nodule": np.zeros(hu.shape, np.float16)}


class MiddleGuess:
    """Says that a nodule lies in the middle of every image: what a figure is worth where nodules are centred."""

    operating_point = 0.5

    def __call__(self, hu: HuVolume, spacing_mm: Point) -> dict[str, Any]:
        """One candidate of 8 mm with probability 1, no maps.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        middle = [(size - 1) / 2 for size in hu.shape]
        return {"candidates": np.array([[*middle, 8.0, 1.0]], np.float32)}


class ThresholdDetector:
    """Dense pieces inside the lungs; the rounder, the more probable.

    The lungs are those of `threshold_lung_mask`, closed over what lies at the pleura. On a crop, which shows no whole
    lung, dense pieces that reach its border are the chest wall.
    """

    operating_point = 0.25  # chosen on validation patients, as is that of each method
    pixel_threshold = operating_point

    def __call__(self, hu: HuVolume, spacing_mm: Point) -> dict[str, Any]:
        """Candidates, nodule map and lung mask.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        is_crop = min(hu.shape[1] * spacing_mm[1], hu.shape[2] * spacing_mm[2]) < _CROP_MM
        lung = np.ones(hu.shape, bool) if is_crop else threshold_lung_mask(hu, spacing_mm=spacing_mm)
        pieces, count = ndimage.label(lung & (hu > _SOLID_HU), structure=np.ones((3, 3, 3)))
        probability = np.zeros(count + 1, np.float32)
        candidates = []
        for index, box in enumerate(ndimage.find_objects(pieces), start=1):
            inside = pieces[box] == index
            diameter_mm, roundness = _measure(inside, spacing_mm)
            if _DIAMETERS_MM[0] <= diameter_mm <= _DIAMETERS_MM[1] and not (is_crop and _at_border(box, hu.shape)):
                probability[index] = roundness
                centre = np.argwhere(inside).mean(axis=0) + [side.start for side in box]
                candidates.append((*centre, diameter_mm, roundness))
        table = np.array(candidates, dtype=np.float32).reshape(-1, 5)
        result = {
            "candidates": table[np.argsort(-table[:, 4], kind="stable")],
            "nodule": probability[pieces].astype(np.float16),
        }
        return result if is_crop else {**result, "lung": lung.astype(np.float16)}


def _measure(inside: np.ndarray, spacing_mm: Point) -> tuple[float, float]:
    """Diameter of the ball (one slice: disc) of equal size, and how much of the ball around the piece it fills."""
    flat = inside.shape[0] == 1
    used = spacing_mm[1:] if flat else spacing_mm
    size = float(inside.sum() * np.prod(used))
    diameter_mm = 2 * (size / np.pi) ** 0.5 if flat else (6 * size / np.pi) ** (1 / 3)
    extent_mm = max(side * mm for side, mm in zip(inside.shape[1:] if flat else inside.shape, used, strict=True))
    return diameter_mm, min(1.0, (diameter_mm / extent_mm) ** (2 if flat else 3))


def _at_border(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(side.start == 0 or side.stop == size for side, size in zip(box[1:], shape[1:], strict=True))
