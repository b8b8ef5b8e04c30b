"""One call of a detector (contract C6.5): timed, checked, and turned into what the judges compare."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from evaluation.metrics.matching import CandidateDetector, Case, FalsePositive, Point, ReferenceNodule
from lungsynth.errors import InputError
from lungsynth.types import HuVolume, LabelVolume

__all__ = ["Detection", "detect", "labels_at"]

_LUNG = 0.5
_NODULE = 0.5  # where a detector states no `pixel_threshold`

_Mask = Bool[np.ndarray, "depth height width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """What a detector found on one image.

    Args:
        candidates: slice, row, column (voxels), diameter_mm, probability.
        nodule: mask of nodules; None where the method has no such map.
        lung: mask of lungs, nodules included; likewise.
        seconds: of the call.
        marked: candidates at or above the operating point.
    """

    candidates: Float64[np.ndarray, "candidates 5"]
    nodule: _Mask | None
    lung: _Mask | None
    slices: int
    seconds: float
    marked: int

    def case(
        self, name: str, patient: str, targets: tuple[ReferenceNodule, ...], alarms: tuple[FalsePositive, ...]
    ) -> Case:
        """The record of this image, after its candidates were matched."""
        return Case(
            id=name,
            patient=patient,
            slices=self.slices,
            seconds=self.seconds,
            marked=self.marked,
            targets=targets,
            alarms=alarms,
        )


def detect(detector: CandidateDetector, hu: HuVolume, spacing_mm: Point, *, name: str) -> Detection:
    """Runs a detector on an image.

    Args:
        detector: a nodule is where its map reaches its `pixel_threshold`, 0.5 where it states none.
        hu: (D, H, W).
        spacing_mm: (slice, row, column).
        name: of the method, for messages.

    Raises:
        InputError: naming the method, when what it returns is no detection.
    """
    begin = time.perf_counter()
    result = detector(hu, spacing_mm)
    seconds = time.perf_counter() - begin
    candidates = _candidates(result, name=name)
    return Detection(
        candidates=candidates,
        nodule=_mask(result, "nodule", float(getattr(detector, "pixel_threshold", _NODULE)), hu.shape, name=name),
        lung=_mask(result, "lung", _LUNG, hu.shape, name=name),
        slices=len(hu),
        seconds=seconds,
        marked=int((candidates[:, 4] >= float(getattr(detector, "operating_point", 0.5))).sum()),
    )


def labels_at(candidates: Float64[np.ndarray, "candidates 5"], label: LabelVolume) -> np.ndarray:
    """Label ids (candidates,) under the candidates' centres."""
    slices, rows, columns = (
        np.clip(np.rint(candidates[:, axis]).astype(int), 0, size - 1) for axis, size in enumerate(label.shape)
    )
    return np.asarray(label[slices, rows, columns])


def _candidates(result: Mapping[str, Any], *, name: str) -> np.ndarray:
    candidates = np.asarray(result.get("candidates", ()), dtype=np.float64)
    if candidates.ndim != 2 or candidates.shape[1] != 5 or not np.isfinite(candidates).all():
        raise InputError(
            f"{name}: a detector returns `candidates` (n, 5) of finite slice, row, column, diameter_mm, probability, "
            f"got {candidates.shape}. See docs/reference/bundle_interface.md, Detector."
        )
    probability = candidates[:, 4]
    if len(probability) and not 0 <= probability.min() <= probability.max() <= 1:
        raise InputError(
            f"{name}: the probabilities of candidates lie in [0, 1], got {probability.min():g} to "
            f"{probability.max():g}. See docs/reference/bundle_interface.md, Detector."
        )
    return candidates


def _mask(
    result: Mapping[str, Any], key: str, threshold: float, shape: tuple[int, ...], *, name: str
) -> np.ndarray | None:
    if key not in result:
        return None
    found = np.asarray(result[key])
    if found.shape != shape:
        raise InputError(
            f"{name}: `{key}` must have the image's shape {shape}, got {found.shape}. "
            "See docs/reference/bundle_interface.md, Detector."
        )
    return found >= threshold
