"""Table I on whole scans: the written slices of a series, stacked into a volume.

A slice that was not written (too little lung, or none) between two that were has its neighbour's HU and is unlabelled.
Lesions are the rows of `nodules.csv`: they count from 3 mm on where the label map shows them, so that what one of
LIDC's readers drew alone is neither to be found nor a false positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import MIN_DIAMETER_MM, Subset
from evaluation.metrics.dice import dice
from evaluation.metrics.matching import Case, Lesion, match
from evaluation.segmentation.detectors import detect, labels_at
from lungsynth.cohort.schema import NoduleRow, SeriesRow
from lungsynth.errors import InputError
from lungsynth.geometry import lps_to_voxel
from lungsynth.hounsfield import Label
from lungsynth.types import Affine, CandidateDetector, HuVolume, LabelVolume

__all__ = ["LabelledScan", "LungScore", "ScanRecords", "evaluate_scans", "read_labelled_scan"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledScan:
    """A series as a volume.

    Args:
        series: its row.
        indices: of the slices that were written, in the series, ascending.
        hu: (D, H, W).
        label: (D, H, W).
        first: index of slice 0 in its series.
        lesions: with their places in this volume.
    """

    series: SeriesRow
    indices: tuple[int, ...]
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
        unknown: where nobody looked for lesions; without false positives.
        lungs: where an expert drew them.
    """

    cases: tuple[Case, ...] = ()
    unknown: tuple[Case, ...] = ()
    lungs: tuple[LungScore, ...] = ()


def read_labelled_scan(subset: Subset, series: SeriesRow) -> LabelledScan:
    """Stacks the slices of a series.

    Raises:
        InputError: when a file is missing or damaged, or slices differ in shape.
    """
    stack = subset.cohort.read_scan(series)
    lesions = [
        _lesion(nodule, stack.volume.affine, stack.labels, series.spacing_mm)
        for nodule in subset.located_nodules(series)
    ]
    return LabelledScan(
        series=series,
        indices=subset.cohort.slice_indices[series.series_id],
        hu=stack.volume.hu,
        label=stack.labels,
        first=stack.first,
        lesions=tuple(lesions),
    )


def evaluate_scans(subset: Subset, detector: CandidateDetector, *, name: str, problems: list[str]) -> ScanRecords:
    """Runs a detector on all series with expert nodules, known places of nodules, or expert lungs.

    Args:
        subset: whose series.
        detector: the method.
        name: of the method.
        problems: takes what could not be read.

    Raises:
        InputError: when the detector returns no detection.
    """
    records: list[ScanRecords] = []
    labelled = [
        row for row in subset.series if "data" in (row.lung_mask, row.nodule_mask) or subset.located_nodules(row)
    ]
    for series in tqdm(labelled, desc=f"{name}: scans", unit="scan", leave=False):
        try:
            scan = read_labelled_scan(subset, series)
        except InputError as error:
            problems.append(f"left out of the scans: {error}")
            continue
        records.append(_evaluate_scan(scan, detector, name=name))
    return ScanRecords(
        cases=tuple(case for record in records for case in record.cases),
        unknown=tuple(case for record in records for case in record.unknown),
        lungs=tuple(score for record in records for score in record.lungs),
    )


def _evaluate_scan(scan: LabelledScan, detector: CandidateDetector, *, name: str) -> ScanRecords:
    series = scan.series
    lesions_known = series.nodule_mask == "data" or any(lesion.counts for lesion in scan.lesions)
    detection = detect(detector, scan.hu, series.spacing_mm, name=name)
    ignored = np.isin(labels_at(detection.candidates, scan.label), (Label.NODULE, Label.UNLABELLED))
    nodules, false_positives = match(detection.candidates, scan.lesions, spacing_mm=series.spacing_mm, ignored=ignored)
    case = detection.case(series.series_id, series.patient_id, nodules, false_positives if lesions_known else ())
    lungs = () if detection.lung is None or series.lung_mask != "data" else (_lung_score(scan, detection.lung),)
    return ScanRecords(
        cases=(case,) if lesions_known else (),
        unknown=() if lesions_known else (case,),
        lungs=lungs,
    )


def _lung_score(scan: LabelledScan, lung: np.ndarray) -> LungScore:
    written = np.array(scan.indices) - scan.first
    labelled = scan.label != Label.UNLABELLED
    reference = np.isin(scan.label, (Label.LUNG, Label.NODULE))
    by_slice = [dice(lung[k] & labelled[k], reference[k]) for k in written]
    worst = int(np.argmin(by_slice))
    return LungScore(
        series=scan.series.series_id,
        patient=scan.series.patient_id,
        slices=len(written),
        dice=dice(lung[written] & labelled[written], reference[written]),
        worst_slice=int(written[worst]) + scan.first,
        worst_dice=by_slice[worst],
    )


def _lesion(nodule: NoduleRow, affine: Affine, label: LabelVolume, spacing_mm: tuple[float, float, float]) -> Lesion:
    centre = lps_to_voxel(affine, np.asarray(nodule.centre_lps_mm))
    return Lesion(
        id=nodule.nodule_id,
        patient=nodule.patient_id,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        diameter_mm=nodule.diameter_mm,
        category=nodule.texture_class,
        counts=nodule.diameter_mm >= MIN_DIAMETER_MM and _is_drawn(centre, nodule.diameter_mm, label, spacing_mm),
    )


def _is_drawn(centre: np.ndarray, diameter_mm: float, label: LabelVolume, spacing_mm: Sequence[float]) -> bool:
    """Whether the label map shows a nodule within a radius, and a voxel, of the centre."""
    reach = [diameter_mm / 2 / mm + 1 for mm in spacing_mm]
    box = tuple(slice(max(0, int(c - r)), max(0, int(np.ceil(c + r)) + 1)) for c, r in zip(centre, reach, strict=True))
    return bool((label[box] == Label.NODULE).any())
