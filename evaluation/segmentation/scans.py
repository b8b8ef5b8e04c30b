"""Whole scans: the written slices of a series, stacked back into a volume.

A slice that was not written (too little lung, or none) between two that were is filled with its neighbour's HU and is
unlabelled. Lesions are the rows of `nodules.csv`: they count from 3 mm on where the label map shows them, so that what
one of LIDC's readers drew alone is neither to be found nor a false alarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import MIN_DIAMETER_MM, Subset, SubsetNodule, SubsetSeries
from evaluation.metrics.dice import dice
from evaluation.metrics.matching import CandidateDetector, Case, Lesion, match
from evaluation.segmentation.detection import detect, labels_at
from lungsynth.ct.volume import lps_to_voxel
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.types import Affine, HuVolume, LabelVolume

__all__ = ["LungScore", "Scan", "ScanRecords", "evaluate_scans", "read_scan"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """A series as a volume.

    Args:
        hu: (D, H, W).
        label: (D, H, W).
        first: index of slice 0 in its series.
        lesions: with their places in this volume.
    """

    series: SubsetSeries
    hu: HuVolume
    label: LabelVolume
    first: int
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, kw_only=True)
class LungScore:
    """Dice of the lungs of one series; `worst_slice` is an index of the series, with its own Dice."""

    series: str
    patient: str
    slices: int
    dice: float
    worst_slice: int
    worst_dice: float


@dataclass(frozen=True, kw_only=True)
class ScanRecords:
    """What a method did on the scans.

    Args:
        cases: where the lesions are known.
        unknown: where nobody looked for lesions; without alarms.
        lungs: where an expert drew them.
    """

    cases: tuple[Case, ...] = ()
    unknown: tuple[Case, ...] = ()
    lungs: tuple[LungScore, ...] = ()


def read_scan(folder: Path, series: SubsetSeries) -> Scan:
    """Stacks the slices of a series.

    Raises:
        InputError: when a file is missing or damaged, or slices differ in shape.
    """
    first, last = series.indices[0], series.indices[-1]
    planes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    affine: Affine | None = None
    for index in range(first, last + 1):
        name = f"{series.id}_{index:04d}.nii.gz"
        if index not in series.indices:
            planes.append(planes[-1])
            labels.append(np.full_like(labels[-1], Label.UNLABELLED))
            continue
        hu, here = read_plane(folder / "slices" / name)
        label, _ = read_plane(folder / "labels" / name)
        if hu.shape != label.shape or (planes and hu.shape != planes[0].shape):
            raise InputError(
                f"{folder / 'slices' / name}: its slice, its label map and the series' first slice differ in shape. "
                "Prepare the cohort again."
            )
        affine = here if affine is None else affine
        planes.append(hu)
        labels.append(label)
    volume, label_volume = np.stack(planes), np.stack(labels)
    lesions = [_lesion(nodule, affine, label_volume, series.spacing_mm) for nodule in series.nodules]
    return Scan(series=series, hu=volume, label=label_volume, first=first, lesions=tuple(lesions))


def evaluate_scans(part: Subset, detector: CandidateDetector, *, name: str, problems: list[str]) -> ScanRecords:
    """Runs a detector on all series with expert nodules, known places of nodules, or expert lungs.

    Args:
        part: lends the series.
        detector: the method.
        name: of the method.
        problems: takes what could not be read.

    Raises:
        InputError: when the detector returns no detection.
    """
    chosen = [series for series in part.series if series.expert_lung or series.expert_nodule or series.nodules]
    found: list[ScanRecords] = []
    for series in tqdm(chosen, desc=f"{name}: scans", unit="scan", leave=False):
        try:
            scan = read_scan(part.folder, series)
        except InputError as error:
            problems.append(f"left out of the scans: {error}")
            continue
        found.append(_judge_scan(scan, detector, name=name))
    return ScanRecords(
        cases=tuple(case for records in found for case in records.cases),
        unknown=tuple(case for records in found for case in records.unknown),
        lungs=tuple(score for records in found for score in records.lungs),
    )


def _judge_scan(scan: Scan, detector: CandidateDetector, *, name: str) -> ScanRecords:
    series, known = scan.series, scan.series.expert_nodule or any(lesion.counts for lesion in scan.lesions)
    found = detect(detector, scan.hu, series.spacing_mm, name=name)
    on_finding = np.isin(labels_at(found.candidates, scan.label), (Label.NODULE, Label.UNLABELLED))
    targets, alarms = match(found.candidates, scan.lesions, spacing_mm=series.spacing_mm, on_finding=on_finding)
    case = found.case(series.id, series.patient, targets, alarms if known else ())
    lungs = () if found.lung is None or not series.expert_lung else (_lung_score(scan, found.lung),)
    return ScanRecords(
        cases=(case,) if known else (),
        unknown=() if known else (case,),
        lungs=lungs,
    )


def _lung_score(scan: Scan, answer: np.ndarray) -> LungScore:
    written = np.array(scan.series.indices) - scan.first
    looked_at = scan.label != Label.UNLABELLED
    truth = np.isin(scan.label, (Label.LUNG, Label.NODULE))
    by_slice = [dice(answer[k] & looked_at[k], truth[k]) for k in written]
    worst = int(np.argmin(by_slice))
    return LungScore(
        series=scan.series.id,
        patient=scan.series.patient,
        slices=len(written),
        dice=dice(answer[written] & looked_at[written], truth[written]),
        worst_slice=int(written[worst]) + scan.first,
        worst_dice=by_slice[worst],
    )


def _lesion(
    nodule: SubsetNodule, affine: Affine | None, label: LabelVolume, spacing_mm: tuple[float, float, float]
) -> Lesion:
    if affine is None or nodule.centre_lps_mm is None:
        raise InputError(f"{nodule.id}: its place is not known. Prepare the cohort again.")
    centre = lps_to_voxel(affine, np.asarray(nodule.centre_lps_mm))
    return Lesion(
        id=nodule.id,
        patient=nodule.patient,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        diameter_mm=nodule.diameter_mm,
        category=nodule.category,
        counts=nodule.diameter_mm >= MIN_DIAMETER_MM and _is_drawn(centre, nodule.diameter_mm, label, spacing_mm),
    )


def _is_drawn(centre: np.ndarray, diameter_mm: float, label: LabelVolume, spacing_mm: Sequence[float]) -> bool:
    """Whether the label map shows a nodule within a radius, and a voxel, of the centre."""
    reach = [diameter_mm / 2 / mm + 1 for mm in spacing_mm]
    box = tuple(slice(max(0, int(c - r)), max(0, int(np.ceil(c + r)) + 1)) for c, r in zip(centre, reach, strict=True))
    return bool((label[box] == Label.NODULE).any())
