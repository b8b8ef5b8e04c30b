"""Detectors: one call, timed and checked; the baselines; and the methods of Table I.

The product's `dense_unet` is lung_seg_bundle as it is. What a detector takes and returns is in
docs/reference/bundle_interface.md, Detector.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from evaluation.cohort_subsets import Subset
from evaluation.methods import (
    OVERLAY,
    Method,
    code_digest,
    configured_methods,
    count_parameters,
    digest_of,
    relation_to,
    train_minutes,
    usable_methods,
)
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule, Vector3
from evaluation.paper import DETECTOR_NAMES
from lungsynth.bundles import bundle_root, open_bundle, read_weights, read_weights_file, resolved_config
from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.errors import InputError
from lungsynth.types import CandidateDetector, Candidates, HuVolume, LabelVolume

__all__ = [
    "OWN",
    "Detection",
    "MiddleGuess",
    "NothingFound",
    "ThresholdDetector",
    "baselines",
    "detect",
    "detector_names",
    "find_detectors",
    "labels_at",
    "open_detector",
    "stated_operating_point",
]

OWN = "dense_unet"
_BUNDLE = "lung_seg"
_DEFAULT_THRESHOLD = 0.5  # of probabilities and of maps, where a detector states none

# The threshold baseline.
_DENSE_HU = -400  # denser than any lung, and than a faint nodule
_CROP_MM = 120.0  # of an image: a smaller one shows no whole lung
_DIAMETERS_MM = (3.0, 40.0)  # of candidates: LIDC's smallest nodules, and nearly a whole crop (44.8 mm)

VolumeMask = Bool[np.ndarray, "depth height width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """The output of a detector on one image.

    Args:
        candidates: slice, row, column (voxels), diameter_mm, probability.
        nodule: mask of nodules; None where the method has no such map.
        probability: the map itself.
        lung: mask of lungs, nodules included; likewise.
        slices: of the image.
        seconds: of the call.
        marked: candidates at or above the operating point.
    """

    candidates: Float64[np.ndarray, "candidates 5"]
    nodule: VolumeMask | None
    probability: np.ndarray | None
    lung: VolumeMask | None
    slices: int
    seconds: float
    marked: int

    def case(
        self,
        name: str,
        patient: str,
        nodules: tuple[ReferenceNodule, ...],
        false_positives: tuple[FalsePositive, ...],
    ) -> Case:
        """The record of this image, after its candidates were matched."""
        return Case(
            id=name,
            patient=patient,
            slices=self.slices,
            seconds=self.seconds,
            marked=self.marked,
            nodules=nodules,
            false_positives=false_positives,
        )


def detect(detector: CandidateDetector, hu: HuVolume, spacing_mm: Vector3, *, name: str) -> Detection:
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
    output = dict(detector(hu, spacing_mm))
    seconds = time.perf_counter() - begin
    candidates = _checked_candidates(output, name=name)
    pixel_threshold = float(getattr(detector, "pixel_threshold", _DEFAULT_THRESHOLD))
    return Detection(
        candidates=candidates,
        nodule=_thresholded(output, "nodule", pixel_threshold, hu.shape, name=name),
        probability=np.asarray(output["nodule"]) if "nodule" in output else None,
        lung=_thresholded(output, "lung", _DEFAULT_THRESHOLD, hu.shape, name=name),
        slices=len(hu),
        seconds=seconds,
        marked=int((candidates[:, 4] >= stated_operating_point(detector)).sum()),
    )


def stated_operating_point(detector: CandidateDetector) -> float:
    """The probability from which on a candidate counts; 0.5 where the detector states none."""
    return float(getattr(detector, "operating_point", _DEFAULT_THRESHOLD))


def labels_at(candidates: Candidates, label: LabelVolume) -> np.ndarray:
    """Label ids (candidates,) under the candidates' centres."""
    slices, rows, columns = (
        np.clip(np.rint(candidates[:, axis]).astype(int), 0, size - 1) for axis, size in enumerate(label.shape)
    )
    return np.asarray(label[slices, rows, columns])


def detector_names(bundles: Path) -> list[str]:
    """All methods that the bundle has configs for, in the table's order."""
    return configured_methods(bundles, _BUNDLE, own=OWN, titles=DETECTOR_NAMES)


def find_detectors(
    subset: Subset, bundles: Path, weights: Path, *, requested: Sequence[str] | None = None
) -> tuple[list[Method], dict[str, str]]:
    """The methods of Table I that have weights.

    Args:
        subset: on whom they are evaluated.
        bundles: folder of the bundles.
        weights: folder with `NAME.pt` and `NAME.json` of the methods but the product's.
        requested: names; all when None.

    Returns:
        The methods in the table's order, and why each other one is left out.

    Raises:
        InputError: when a requested method is unknown or has no usable weights.
    """
    return usable_methods(
        detector_names(bundles),
        lambda name: _detector_method(name, subset, bundles, weights),
        requested=requested,
        folders=(weights, bundles),
    )


def open_detector(bundles: Path, name: str, weights: str | Path) -> CandidateDetector:
    """Builds a method's detector.

    Args:
        bundles: folder of the bundles.
        name: of the method.
        weights: name of a file of the bundle's `models/`, or a path.

    Raises:
        InputError: when the bundle cannot build it, or it states no operating point.
    """
    detector: CandidateDetector = open_bundle(
        bundles, _BUNDLE, component="detector", configs=_configs(name), weights=weights
    )
    point = getattr(detector, "operating_point", None)
    if not isinstance(point, int | float) or not 0 <= point <= 1:
        raise InputError(
            f"{name}: its detector needs an `operating_point` in [0, 1], the probability from which a candidate "
            f"counts, got {point!r}. Set it in {_configs(name)[-1]}."
        )
    return detector


def _configs(name: str) -> tuple[str, ...]:
    return ("inference.json",) if name == OWN else ("inference.json", f"{OVERLAY}{name}.json")


def _detector_method(name: str, subset: Subset, bundles: Path, folder: Path) -> Method:
    weights: str | Path = "model.pt" if name == OWN else folder / f"{name}.pt"
    info = read_weights_file(weights) if isinstance(weights, Path) else read_weights(bundles, _BUNDLE, file=weights)
    config = resolved_config(bundles, _BUNDLE, configs=_configs(name))
    code = code_digest(bundle_root(bundles, _BUNDLE), Path(__file__).parents[1])
    return Method(
        name=name,
        title=DETECTOR_NAMES.get(name, name),
        open=lambda: open_detector(bundles, name, weights),
        identity=digest_of([config, info.sha256, code]),
        parameters=count_parameters(info),
        train_minutes=train_minutes(info.sidecar),
        relation=relation_to(subset, info.sidecar),
        stated_operating_point=info.sidecar.get("operating_point"),
    )


def _checked_candidates(output: dict[str, Any], *, name: str) -> np.ndarray:
    candidates = np.asarray(output.get("candidates", ()), dtype=np.float64)
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


def _thresholded(
    output: dict[str, Any], key: str, threshold: float, shape: tuple[int, ...], *, name: str
) -> np.ndarray | None:
    if key not in output:
        return None
    probability = np.asarray(output[key])
    if probability.shape != shape:
        raise InputError(
            f"{name}: `{key}` must have the image's shape {shape}, got {probability.shape}. "
            "See docs/reference/bundle_interface.md, Detector."
        )
    return probability >= threshold


def baselines() -> list[Method]:
    """Nothing, a threshold, and a guess: what a figure is worth shows beside them alone."""
    return [
        Method(name="nothing", title="nothing found", open=NothingFound, identity="1", parameters=0),
        Method(name="threshold", title="HU threshold", open=ThresholdDetector, identity="2", parameters=0),
        Method(name="middle", title="middle of the image", open=MiddleGuess, identity="1", parameters=0),
    ]


class NothingFound:
    """Finds no nodule anywhere."""

    operating_point = 0.5

    def __call__(self, hu: HuVolume, spacing_mm: Vector3) -> dict[str, Any]:
        """No candidates, and a nodule map of zeros.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        return {"candidates": np.zeros((0, 5), np.float32), "nodule": np.zeros(hu.shape, np.float16)}


class MiddleGuess:
    """Says that a nodule lies in the middle of every image: what a figure is worth where nodules are centred."""

    operating_point = 0.5

    def __call__(self, hu: HuVolume, spacing_mm: Vector3) -> dict[str, Any]:
        """One candidate of 8 mm with probability 1, no maps.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        middle = [(size - 1) / 2 for size in hu.shape]
        return {"candidates": np.array([[*middle, 8.0, 1.0]], np.float32)}


class ThresholdDetector:
    """Dense connected components inside the lungs; the rounder, the more probable.

    The lungs are those of `threshold_lung_mask`, closed over what lies at the pleura. On a crop, which shows no whole
    lung, dense components that reach its border are the chest wall.
    """

    operating_point = 0.25  # chosen on validation patients, as is that of each method
    pixel_threshold = operating_point

    def __call__(self, hu: HuVolume, spacing_mm: Vector3) -> dict[str, Any]:
        """Candidates, nodule map and lung mask.

        Args:
            hu: (D, H, W).
            spacing_mm: (slice, row, column).
        """
        is_crop = min(hu.shape[1] * spacing_mm[1], hu.shape[2] * spacing_mm[2]) < _CROP_MM
        lung = np.ones(hu.shape, bool) if is_crop else threshold_lung_mask(hu, spacing_mm=spacing_mm)
        components, count = ndimage.label(lung & (hu > _DENSE_HU), structure=np.ones((3, 3, 3)))
        probability = np.zeros(count + 1, np.float32)
        candidates = []
        for index, box in enumerate(ndimage.find_objects(components), start=1):
            inside = components[box] == index
            diameter_mm, roundness = _measure_component(inside, spacing_mm)
            if _DIAMETERS_MM[0] <= diameter_mm <= _DIAMETERS_MM[1] and not (is_crop and _at_border(box, hu.shape)):
                probability[index] = roundness
                centre = np.argwhere(inside).mean(axis=0) + [side.start for side in box]
                candidates.append((*centre, diameter_mm, roundness))
        table = np.array(candidates, dtype=np.float32).reshape(-1, 5)
        output = {
            "candidates": table[np.argsort(-table[:, 4], kind="stable")],
            "nodule": probability[components].astype(np.float16),
        }
        return output if is_crop else {**output, "lung": lung.astype(np.float16)}


def _measure_component(inside: np.ndarray, spacing_mm: Vector3) -> tuple[float, float]:
    """Diameter of the sphere (one slice: disc) of equal size, and the share of the circumscribed one that it fills."""
    flat = inside.shape[0] == 1
    spacing = spacing_mm[1:] if flat else spacing_mm
    size = float(inside.sum() * np.prod(spacing))
    diameter_mm = 2 * (size / np.pi) ** 0.5 if flat else (6 * size / np.pi) ** (1 / 3)
    extent_mm = max(side * mm for side, mm in zip(inside.shape[1:] if flat else inside.shape, spacing, strict=True))
    return diameter_mm, min(1.0, (diameter_mm / extent_mm) ** (2 if flat else 3))


def _at_border(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(side.start == 0 or side.stop == size for side, size in zip(box[1:], shape[1:], strict=True))
