"""Table I on crops: nodules that readers drew, each with 44.8 mm of its surroundings.

A crop shows one nodule, and nobody says whether there are others on it: crops give the sensitivity and the agreement of
pixels, no false positives. Pixels are compared on slices that show the nodule.

Nodules are centred in their crops, so that a guess at the middle hits them all, and so does a candidate that is as
large as the crop. The detector therefore sees each nodule a second time, in a window of 33.6 mm out of whose middle it
lies 7.9 mm.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, Lesion, Vector3, match
from evaluation.segmentation.detectors import detect
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.schema import NoduleRow
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.types import CandidateDetector

__all__ = ["Crop", "CropRecords", "evaluate_crops", "one_reader_ceiling", "read_crop", "read_crops"]

_WINDOW_PX = 48  # of 64: the centre of the crop is then 8 pixels out of the window's middle in both directions
_SHIFT_PX = PATCH_PX - _WINDOW_PX  # of the window, from one corner to the next


@dataclass(frozen=True, eq=False, kw_only=True)
class Crop:
    """A nodule's slices, all arrays (n, 64, 64).

    Args:
        nodule: whose they are.
        slice_mm: spacing of the slices.
        hu: int16.
        votes: uint8, readers who drew the pixel.
        valid: what the source covered.
        mask: the consensus.
    """

    nodule: NoduleRow
    slice_mm: float
    hu: np.ndarray
    votes: np.ndarray
    valid: np.ndarray
    mask: np.ndarray

    @property
    def spacing_mm(self) -> Vector3:
        """(slice, row, column)."""
        return self.slice_mm, PATCH_SPACING_MM, PATCH_SPACING_MM

    @property
    def lesion(self) -> Lesion:
        """The nodule as a lesion of the crop."""
        slices = np.flatnonzero(self.mask.any(axis=(1, 2)))
        centre = np.argwhere(self.mask).mean(axis=0)
        return Lesion(
            id=self.nodule.nodule_id,
            patient=self.nodule.patient_id,
            centre=(float(centre[0]), float(centre[1]), float(centre[2])),
            diameter_mm=self.nodule.diameter_mm,
            category=self.nodule.texture_class,
            slices=(int(slices[0]), int(slices[-1])),
        )


@dataclass(frozen=True, kw_only=True)
class CropRecords:
    """What a method did on the crops.

    Args:
        cases: one for each nodule.
        off_centre: one for each nodule, in a window of the crop.
        pixels: one for each slice with nodule, one reader's pixels counted as other tissue; empty without a map.
        pixels_ignored: the same without the pixels that one reader alone drew.
    """

    cases: tuple[Case, ...] = ()
    off_centre: tuple[Case, ...] = ()
    pixels: tuple[PixelCounts, ...] = ()
    pixels_ignored: tuple[PixelCounts, ...] = ()


def read_crop(subset: Subset, nodule: NoduleRow) -> Crop:
    """Reads a nodule's npz.

    Raises:
        InputError: when it cannot be read, lacks arrays or shows no nodule.
    """
    path = subset.patch_path(nodule)
    hu, votes, valid = read_arrays(path, "context", "votes", "valid")
    valid = valid.astype(bool)
    mask = (votes >= subset.min_votes) & valid
    if not mask.any():
        raise InputError(f"{path}: no pixel that {subset.min_votes} readers drew. Prepare the cohort again.")
    return Crop(nodule=nodule, slice_mm=subset.slice_mm(nodule), hu=hu, votes=votes, valid=valid, mask=mask)


def read_crops(subset: Subset, problems: list[str]) -> list[Crop]:
    """All crops of a subset; what cannot be read is added to `problems`."""
    crops = []
    for nodule in subset.evaluated_nodules:
        if nodule.expert_mask:
            try:
                crops.append(read_crop(subset, nodule))
            except InputError as error:
                problems.append(f"left out of the crops: {error}")
    return crops


def evaluate_crops(crops: Sequence[Crop], detector: CandidateDetector, *, name: str) -> CropRecords:
    """Runs a detector on the crops.

    Args:
        crops: of the subset.
        detector: the method.
        name: of the method.

    Raises:
        InputError: when the detector returns no detection.
    """
    cases: list[Case] = []
    off_centre: list[Case] = []
    pixels: list[PixelCounts] = []
    ignored: list[PixelCounts] = []
    for crop in tqdm(crops, desc=f"{name}: crops", unit="nodule", leave=False):
        detection = detect(detector, crop.hu, crop.spacing_mm, name=name)
        matched = match(detection.candidates, [crop.lesion], spacing_mm=crop.spacing_mm)
        cases.append(detection.case(crop.nodule.nodule_id, crop.nodule.patient_id, *matched))
        off_centre.append(_evaluate_window(crop, detector, name=name))
        if detection.nodule is not None:
            pixels += _count_pixels(crop, detection.nodule, crop.valid)
            ignored += _count_pixels(crop, detection.nodule, crop.valid & (crop.mask | (crop.votes == 0)))
    return CropRecords(
        cases=tuple(cases), off_centre=tuple(off_centre), pixels=tuple(pixels), pixels_ignored=tuple(ignored)
    )


def one_reader_ceiling(crops: Sequence[Crop]) -> CropRecords:
    """The readers against themselves: what any reader drew, compared with what two of them agree on."""
    counts = (count for crop in crops for count in _count_pixels(crop, crop.votes >= 1, crop.valid))
    return CropRecords(pixels=tuple(counts))


def _evaluate_window(crop: Crop, detector: CandidateDetector, *, name: str) -> Case:
    """The nodule in a corner of its crop; which of the four follows from its id."""
    corner = zlib.crc32(crop.nodule.nodule_id.encode())
    top, left = _SHIFT_PX * (corner & 1), _SHIFT_PX * (corner >> 1 & 1)
    window = np.ascontiguousarray(crop.hu[:, top : top + _WINDOW_PX, left : left + _WINDOW_PX])
    slices, row, column = crop.lesion.centre
    lesion = replace(crop.lesion, centre=(slices, row - top, column - left))
    detection = detect(detector, window, crop.spacing_mm, name=name)
    matched = match(detection.candidates, [lesion], spacing_mm=crop.spacing_mm)
    return detection.case(crop.nodule.nodule_id, crop.nodule.patient_id, *matched)


def _count_pixels(crop: Crop, mask: np.ndarray, valid: np.ndarray) -> Iterator[PixelCounts]:
    for index in np.flatnonzero(crop.mask.any(axis=(1, 2))):
        planes = mask[index], crop.mask[index], valid[index]
        yield PixelCounts.of(*planes, patient=crop.nodule.patient_id, nodule=crop.nodule.nodule_id)
