"""Table I on crops: nodules that readers drew, each with its surroundings of 44.8 mm (contract C2.3).

A crop shows one nodule, so that a false alarm on it may be another nodule that nobody was asked about: crops tell the
sensitivity and the agreement of pixels, not false alarms. Pixels are compared on slices that show the nodule.

Nodules are centred in their crops, so that a guess at the middle hits them all, and so does a candidate that is as
large as the crop. The detector therefore sees each nodule a second time, in a window of 33.6 mm out of whose middle it
lies 7.9 mm.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset, SubsetNodule
from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import CandidateDetector, Case, Lesion, Point, match
from evaluation.segmentation.detection import detect
from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM

__all__ = ["Crop", "CropRecords", "evaluate_crops", "one_reader_ceiling", "read_crop", "read_crops"]


_WINDOW_PX = 48
_SHIFT_PX = PATCH_PX - _WINDOW_PX  # of the window, from one corner to the next


@dataclass(frozen=True, eq=False, kw_only=True)
class Crop:
    """A nodule's slices, all arrays (n, 64, 64).

    Args:
        hu: int16.
        votes: uint8, readers who drew the pixel.
        valid: what the source covered.
        mask: the consensus.
    """

    nodule: SubsetNodule
    hu: np.ndarray
    votes: np.ndarray
    valid: np.ndarray
    mask: np.ndarray

    @property
    def spacing_mm(self) -> Point:
        """(slice, row, column)."""
        return self.nodule.slice_mm, PATCH_SPACING_MM, PATCH_SPACING_MM

    @property
    def lesion(self) -> Lesion:
        """The nodule as something to be found."""
        slices = np.flatnonzero(self.mask.any(axis=(1, 2)))
        centre = np.argwhere(self.mask).mean(axis=0)
        return Lesion(
            id=self.nodule.id,
            patient=self.nodule.patient,
            centre=(float(centre[0]), float(centre[1]), float(centre[2])),
            diameter_mm=self.nodule.diameter_mm,
            category=self.nodule.category,
            slices=(int(slices[0]), int(slices[-1])),
        )


@dataclass(frozen=True, kw_only=True)
class CropRecords:
    """What a method did on the crops.

    Args:
        cases: one a nodule.
        pixels: one a slice with nodule, one reader's pixels counted as other tissue; empty without a nodule map.
        pixels_ignored: the same without the pixels that one reader alone drew.
        off_centre: one a nodule, in a window of the crop.
    """

    cases: tuple[Case, ...] = ()
    off_centre: tuple[Case, ...] = ()
    pixels: tuple[PixelCounts, ...] = ()
    pixels_ignored: tuple[PixelCounts, ...] = ()


def read_crop(nodule: SubsetNodule, *, min_votes: int) -> Crop:
    """Reads a nodule's npz.

    Raises:
        ValueError: when it lacks arrays or shows no nodule.
        OSError: when it cannot be read.
    """
    if nodule.patch is None:
        raise ValueError(f"{nodule.id} has no patch")
    try:
        with np.load(nodule.patch, allow_pickle=False) as arrays:
            hu, votes, valid = arrays["context"], arrays["votes"], arrays["valid"].astype(bool)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{nodule.patch}: no nodule of a cohort ({error})") from error
    mask = (votes >= min_votes) & valid
    if not mask.any():
        raise ValueError(f"{nodule.patch}: no pixel that {min_votes} readers drew")
    return Crop(nodule=nodule, hu=hu, votes=votes, valid=valid, mask=mask)


def read_crops(part: Subset, problems: list[str]) -> list[Crop]:
    """All crops of a part; what cannot be read is added to `problems`."""
    crops = []
    for nodule in part.judged_nodules:
        if nodule.drawn:
            try:
                crops.append(read_crop(nodule, min_votes=part.min_votes))
            except (ValueError, OSError) as error:
                problems.append(f"left out of the crops: {error}")
    return crops


def evaluate_crops(crops: Sequence[Crop], detector: CandidateDetector, *, name: str) -> CropRecords:
    """Runs a detector on the crops.

    Args:
        crops: to look at.
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
        found = detect(detector, crop.hu, crop.spacing_mm, name=name)
        targets, alarms = match(found.candidates, [crop.lesion], spacing_mm=crop.spacing_mm)
        cases.append(found.case(crop.nodule.id, crop.nodule.patient, targets, alarms))
        off_centre.append(_judge_window(crop, detector, name=name))
        if found.nodule is not None:
            pixels += _count(crop, found.nodule, crop.valid)
            ignored += _count(crop, found.nodule, crop.valid & (crop.mask | (crop.votes == 0)))
    return CropRecords(
        cases=tuple(cases), off_centre=tuple(off_centre), pixels=tuple(pixels), pixels_ignored=tuple(ignored)
    )


def one_reader_ceiling(crops: Sequence[Crop]) -> CropRecords:
    """The readers against themselves: what any reader drew, taken as an answer to what two of them agree on."""
    return CropRecords(pixels=tuple(count for crop in crops for count in _count(crop, crop.votes >= 1, crop.valid)))


def _judge_window(crop: Crop, detector: CandidateDetector, *, name: str) -> Case:
    """The nodule in a corner of its crop; which of the four follows from its id."""
    corner = zlib.crc32(crop.nodule.id.encode())
    top, left = _SHIFT_PX * (corner & 1), _SHIFT_PX * (corner >> 1 & 1)
    window = np.ascontiguousarray(crop.hu[:, top : top + _WINDOW_PX, left : left + _WINDOW_PX])
    slices, row, column = crop.lesion.centre
    lesion = replace(crop.lesion, centre=(slices, row - top, column - left))
    found = detect(detector, window, crop.spacing_mm, name=name)
    targets, alarms = match(found.candidates, [lesion], spacing_mm=crop.spacing_mm)
    return found.case(crop.nodule.id, crop.nodule.patient, targets, alarms)


def _count(crop: Crop, answer: np.ndarray, looked_at: np.ndarray) -> Iterator[PixelCounts]:
    for index in np.flatnonzero(crop.mask.any(axis=(1, 2))):
        planes = answer[index], crop.mask[index], looked_at[index]
        yield PixelCounts.of(*planes, patient=crop.nodule.patient, nodule=crop.nodule.id)
