"""One series of a cohort: read, labelled, and written as slices, lungs and nodules."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.collections import Collection
from lungsynth.cohort.hu_check import check_lung_and_tissue, explain_missing_lung
from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.cohort.not_normal import listed_slices
from lungsynth.cohort.scan_nodules import (
    ScanNodules,
    cut_nodule,
    nodule_row,
    read_scan_nodules,
    with_cube,
    with_sphere,
    with_window,
)
from lungsynth.cohort.schema import NoduleRow, SeriesRow, SliceRow, nodule_id, slice_id
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.cohort.slices import label_volume, lung_area_cm2, lung_on_grid, normal_slices, relative_size
from lungsynth.ct.annotations import read_lungs
from lungsynth.ct.dicom import RESCALE_MISSING
from lungsynth.ct.read import read_volume
from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_arrays
from lungsynth.types import LabelVolume

__all__ = ["LabelledScan", "SeriesTask", "SliceExtraction", "prepare_series", "read_labelled_scan"]

_NEAR_LUNG_MM = 20.0  # of each nodule is lung: thicker than what a tumour at the pleura hides of it
_ADULT_NORMAL_CM2 = 120.0  # lung in a slice of an adult from which on the lungs' shape can be learnt


@dataclass(frozen=True, kw_only=True)
class SliceExtraction:
    """Which slices are kept, and the generator's grid.

    Args:
        lung_size_px: 256 (1.4 mm) or 512 (0.7 mm).
        min_slice_cm2: slices of an adult with less lung are not written; of a smaller patient less is enough.
        min_normal_cm2: slices with less lung do not train the lung generator; 120 for an adult when None, and less the
            smaller the patient.
        nodule_gap_mm: a normal slice is farther than this from each nodule of its patient.
    """

    lung_size_px: int = 256
    min_slice_cm2: float = 15.0
    min_normal_cm2: float | None = None
    nodule_gap_mm: float = 10.0


@dataclass(frozen=True, kw_only=True)
class SeriesTask:
    """A series to prepare; `folder` is the name of the source's folder, `not_normal` a user's list of names."""

    files: SeriesFiles
    collection: Collection
    folder: str
    task_id: str
    fingerprint: str
    not_normal: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledScan:
    """A series with all that its source says of it.

    Args:
        volume: HU.
        findings: its nodules.
        lung: true in lung, nodules included.
        labels: `Label` ids.
        notes: what was left out, taken on trust, or looks odd.
    """

    volume: Volume
    findings: ScanNodules
    lung: Bool[np.ndarray, "depth height width"]
    labels: LabelVolume
    notes: tuple[str, ...] = ()


def read_labelled_scan(files: SeriesFiles) -> LabelledScan:
    """Reads a series with its nodules and lungs; lungs that nobody drew are found by threshold.

    Raises:
        InputError: when the series cannot be used, naming the file.
    """
    volume = read_volume(files)
    findings = read_scan_nodules(files, volume)
    lung = _lungs(files, volume)
    _check_levels(files, volume, lung)
    notes = (*volume.notes, *findings.notes, *_far_from_lung(volume, lung, findings))
    lung |= findings.nodule
    labels = label_volume(lung=lung, nodule=findings.nodule, unlabelled=findings.unlabelled)
    return LabelledScan(volume=volume, findings=findings, lung=lung, labels=labels, notes=notes)


def prepare_series(task: SeriesTask, out: Path, settings: SliceExtraction) -> SeriesRows:
    """Prepares one series; its rows are written last.

    Args:
        task: the series.
        out: the cohort, with its folders.
        settings: see `SliceExtraction`.

    Raises:
        InputError: when the series cannot be used, naming the file.
    """
    scan = read_labelled_scan(task.files)
    volume, findings, lung, labels = scan.volume, scan.findings, scan.lung, scan.labels
    listed = listed_slices(task.not_normal, task.files, volume.series_id, len(labels))
    slices = _write_slices(volume, labels, lung, findings, out, settings, may_be_normal=~listed)
    nodules, notes = _write_nodules(volume, findings, task.collection.name, out)
    rows = SeriesRows(
        task_id=task.task_id,
        fingerprint=task.fingerprint,
        series=(_series_row(task, volume, len(slices), expert=findings.expert),),
        slices=tuple(slices),
        nodules=tuple(nodules),
        notes=(*scan.notes, *notes),
    )
    rows.save(out)
    return rows


def _series_row(task: SeriesTask, volume: Volume, slices: int, *, expert: bool) -> SeriesRow:
    spacing, has_lung_mask = volume.spacing_mm, task.files.lung_mask is not None
    return SeriesRow(
        series_id=volume.series_id,
        patient_id=volume.patient_id,
        patient_known=volume.patient_known,
        source=task.collection.name,
        licence=task.files.licence,
        family=task.collection.family,
        folder=task.folder,
        slices=slices,
        spacing_slice_mm=spacing[0],
        spacing_row_mm=spacing[1],
        spacing_column_mm=spacing[2],
        lung_mask="data" if has_lung_mask else "threshold",
        nodule_mask="data" if expert else "none",
        labelled=("lung",) * has_lung_mask + ("nodule",) * expert,
    )


def _far_from_lung(volume: Volume, lung: Bool[np.ndarray, "depth height width"], findings: ScanNodules) -> list[str]:
    """A note for each nodule with no lung near it: its mask may be flipped, or that of another scan."""
    reach = [math.ceil(_NEAR_LUNG_MM / mm) for mm in volume.spacing_mm]
    notes = []
    for nodule in findings.nodules:
        box = tuple(
            slice(max(start - more, 0), start + size + more)
            for start, size, more in zip(nodule.offset, nodule.votes.shape, reach, strict=True)
        )
        if not lung[box].any():
            place = tuple(round(value, 1) for value in nodule.centre_lps_mm)
            notes.append(
                f"{volume.series_id}: the nodule at {place} mm (LPS) is kept, though no lung is within "
                f"{_NEAR_LUNG_MM:g} mm of it; is its mask that of this scan, and not flipped?"
            )
    return notes


def _lungs(files: SeriesFiles, volume: Volume) -> Bool[np.ndarray, "depth height width"]:
    drawn = read_lungs(files, volume)
    if drawn is not None:
        return drawn
    lung = threshold_lung_mask(volume.hu, spacing_mm=volume.spacing_mm)
    if not lung.any():
        name, hint = f"{files.files[0]}: series {volume.series_id}", _rescale_hint(volume)
        raise InputError(explain_missing_lung(volume.hu, spacing_mm=volume.spacing_mm, name=name, hint=hint))
    return lung


def _check_levels(files: SeriesFiles, volume: Volume, lung: Bool[np.ndarray, "depth height width"]) -> None:
    check_lung_and_tissue(
        volume.hu,
        lung,
        spacing_mm=volume.spacing_mm,
        drawn=files.lung_mask is not None,
        name=f"{files.files[0]}: series {volume.series_id}",
        hint=_rescale_hint(volume),
    )


def _rescale_hint(volume: Volume) -> str:
    """What reading has noticed of the scale of the values; empty where nothing is unusual."""
    if any(RESCALE_MISSING in note for note in volume.notes):
        return RESCALE_MISSING
    slope, intercept = (volume.modality_info.get(f"Rescale{name}", "") for name in ("Slope", "Intercept"))
    return f"RescaleSlope is {slope}, RescaleIntercept is {intercept}" if slope or intercept else ""


def _write_slices(
    volume: Volume,
    labels: LabelVolume,
    lung: Bool[np.ndarray, "depth height width"],
    findings: ScanNodules,
    out: Path,
    settings: SliceExtraction,
    *,
    may_be_normal: Bool[np.ndarray, " depth"],
) -> list[SliceRow]:
    area = lung_area_cm2(lung, spacing_mm=volume.spacing_mm)
    size = relative_size(volume.hu, lung, spacing_mm=volume.spacing_mm)
    normal = normal_slices(
        findings.diseased,
        area,
        slice_mm=volume.spacing_mm[0],
        gap_mm=settings.nodule_gap_mm,
        min_cm2=_ADULT_NORMAL_CM2 * size if settings.min_normal_cm2 is None else settings.min_normal_cm2,
    )
    rows = []
    for index in np.flatnonzero(area >= settings.min_slice_cm2 * size).tolist():
        row = SliceRow(
            slice_id=slice_id(volume.series_id, index),
            series_id=volume.series_id,
            shows_nodule=bool(findings.nodule[index].any()),
            normal=bool(normal[index] and may_be_normal[index]),
        )
        affine = volume.plane_affine(index)
        write_plane(out / row.image, volume.plane(index), affine)
        write_plane(out / row.label, labels[index], affine)
        if row.normal:
            _write_lung(out / row.lung, volume, lung, index, settings.lung_size_px)
        rows.append(row)
    return rows


def _write_lung(path: Path, volume: Volume, lung: np.ndarray, index: int, size_px: int) -> None:
    hu, mask = lung_on_grid(volume.plane(index), lung[index], spacing_mm=volume.spacing_mm[1:], size_px=size_px)
    write_arrays(path, hu=hu, mask=mask)


def _write_nodules(volume: Volume, findings: ScanNodules, source: str, out: Path) -> tuple[list[NoduleRow], list[str]]:
    rows, notes = [], []
    for number, nodule in enumerate(findings.nodules):
        name = nodule_id(volume.series_id, number)
        row = nodule_row(volume, nodule, nodule_id=name, source=source, expert=bool(findings.expert))
        patches = cut_nodule(volume, nodule)
        if patches is None:
            notes.append(
                f"{name} ({row.diameter_mm:.1f} mm, sphere of equal volume) reaches beyond a patch of 44.8 mm: "
                "it has a row, but no patch"
            )
        else:
            if findings.expert:
                patches = with_cube(patches, volume, nodule)
            else:
                patches = with_sphere(patches, volume, nodule, findings.nodule | findings.unlabelled)
            patches = with_window(patches, volume, nodule, findings)
            patches.save(out, name)
        has_cube = patches is not None and patches.cube is not None
        rows.append(replace(row, has_patch=patches is not None, has_cube=has_cube, sphere=not findings.expert))
    return rows, notes
