"""CT series in folders, zips and files of any layout, detected automatically, with their masks and annotations.

DICOM is recognised by its contents, tables by their columns, XML by its root; NIfTI and MetaImage by name, their masks
by the layouts of `lungsynth.ct.pairing`. What is no CT is passed over; what should be one and is damaged is a problem.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from lungsynth.ct.dicom import is_ct, looks_like_dicom, read_header
from lungsynth.ct.lidc import lidc_series_id
from lungsynth.ct.luna16 import is_annotations, read_luna16_annotations
from lungsynth.ct.pairing import pair_volumes, patient_folder
from lungsynth.ct.read import is_metaimage, is_nifti
from lungsynth.ct.series import Annotations, NoduleSphere, Problem, SeriesFiles
from lungsynth.ct.source_files import SourceFiles, list_files
from lungsynth.errors import InputError

__all__ = ["Discovery", "find_series"]

_logger = logging.getLogger(__name__)
_NEVER_DICOM = {".csv", ".gz", ".jpg", ".json", ".md", ".npy", ".npz", ".pdf", ".png", ".raw", ".txt", ".xml", ".zraw"}


@dataclass(frozen=True)
class Discovery:
    """What a source holds.

    Files of zips lie in temporary folders. They stay until `close`, the end of a `with` block, or the end of Python.
    """

    series: tuple[SeriesFiles, ...]
    problems: tuple[Problem, ...]
    _files: SourceFiles

    def close(self) -> None:
        """Removes what was unpacked from zips."""
        self._files.close()

    def __enter__(self) -> "Discovery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_series(source: Path, *, subset: bool = False) -> Discovery:
    """Finds the CT series of a source.

    Args:
        source: a folder (with all below it, zips too), a zip, or one file.
        subset: the source is a part of its collection, so `annotations.csv` may name series that are not in it.

    Returns:
        The series, sorted by id, and files that should be CT or annotations and are damaged.

    Raises:
        InputError: when there is no source, no CT in it, or an `annotations.csv` that does not fit it.
    """
    files = list_files(source)
    problems = list(files.problems)
    scanned = _scan_dicom(files.paths, problems)
    series_files = {**_dicom_series(scanned, files.roots), **_volume_series(files.paths, files.roots)}
    if not series_files:
        files.close()
        raise InputError(_nothing(source, problems))
    notes = _annotations(files.paths, series_files, _slices(scanned), problems, subset=subset)
    series = tuple(replace(series_files[key], annotations=notes[key]) for key in sorted(series_files))
    return Discovery(series=series, problems=tuple(problems), _files=files)


def _nothing(source: Path, problems: list[Problem]) -> str:
    first = f" First problem: {problems[0].message}" if problems else ""
    return (
        f"{source}: no CT series found (DICOM, NIfTI or MetaImage, also in zips); give a folder that holds one.{first}"
    )


@dataclass(frozen=True)
class _DicomFile:
    path: Path
    series_id: str
    sop_uid: str
    patient_id: str


# Series of a source by (kind and folder, id): two NIfTI of one name in two folders are two series.
_Key = tuple[str, str]


def _scan_dicom(paths: Iterable[Path], problems: list[Problem]) -> list[_DicomFile]:
    candidates = [
        path
        for path in paths
        if path.suffix.lower() not in _NEVER_DICOM and not is_metaimage(path) and not is_nifti(path)
    ]
    dicom_files = []
    for path in tqdm(candidates, desc="Looking for DICOM", unit="file", disable=None, leave=False):
        try:
            header = read_header(path) if looks_like_dicom(path) else None
        except (InputError, OSError) as error:
            problems.append(Problem(path, str(error)))
            continue
        if header is not None and is_ct(header):
            series_id = str(header.get("SeriesInstanceUID") or path.parent.name)
            sop_uid, patient = str(header.get("SOPInstanceUID") or ""), str(header.get("PatientID") or "").strip()
            dicom_files.append(_DicomFile(path=path, series_id=series_id, sop_uid=sop_uid, patient_id=patient))
    return dicom_files


def _dicom_series(scanned: Iterable[_DicomFile], roots: Collection[Path]) -> dict[_Key, SeriesFiles]:
    groups: dict[str, list[_DicomFile]] = {}
    for file in scanned:
        groups.setdefault(file.series_id, []).append(file)
    series: dict[_Key, SeriesFiles] = {}
    for series_id, group in groups.items():
        patients = Counter(file.patient_id for file in group if file.patient_id)
        patient = patients.most_common(1)[0][0] if patients else patient_folder(group[0].path, roots)
        series["dicom", series_id] = SeriesFiles(
            kind="dicom",
            series_id=series_id,
            patient_id=patient or series_id,
            patient_known=patient is not None,
            files=tuple(file.path for file in group),
        )
    return series


def _volume_series(paths: Iterable[Path], roots: Collection[Path]) -> dict[_Key, SeriesFiles]:
    series: dict[_Key, SeriesFiles] = {}
    for volume in pair_volumes(path for path in paths if is_nifti(path) or is_metaimage(path)):
        patient = volume.series_id if volume.named else patient_folder(volume.path, roots)
        series[str(volume.path), volume.series_id] = SeriesFiles(
            kind="nifti" if is_nifti(volume.path) else "metaimage",
            series_id=volume.series_id,
            patient_id=patient or volume.series_id,
            patient_known=patient is not None,
            files=(volume.path,),
            lung_mask=volume.lung_mask,
            nodule_mask=volume.nodule_mask,
        )
    return series


def _slices(scanned: Iterable[_DicomFile]) -> dict[str, str]:
    """Series id by SOPInstanceUID."""
    return {file.sop_uid: file.series_id for file in scanned}


def _annotations(
    paths: Iterable[Path],
    series: dict[_Key, SeriesFiles],
    slices: dict[str, str],
    problems: list[Problem],
    *,
    subset: bool,
) -> dict[_Key, Annotations]:
    paths = list(paths)
    series_ids = {series_id for _, series_id in series}
    spheres = _spheres([path for path in paths if path.suffix.lower() == ".csv"], None if subset else series_ids)
    lidc: dict[str, Path] = {}
    boxes: dict[str, list[Path]] = {}
    for path in (path for path in paths if path.suffix.lower() == ".xml"):
        if path.stem in slices:
            boxes.setdefault(slices[path.stem], []).append(path)
            continue
        try:
            series_id = lidc_series_id(path)
        except InputError as error:
            problems.append(Problem(path, str(error)))
            continue
        if series_id in series_ids and lidc.setdefault(series_id, path) is not path:
            _logger.warning("%s: %s is read already for series %s", path, lidc[series_id], series_id)
    return {
        (place, series_id): Annotations(
            lidc_xml=lidc.get(series_id),
            voc_xml=tuple(boxes.get(series_id, ())),
            spheres=tuple(sphere for sphere in spheres if sphere.series_id == series_id),
        )
        for place, series_id in series
    }


def _spheres(tables: Iterable[Path], series_ids: set[str] | None) -> list[NoduleSphere]:
    """Rows of all annotation tables, each once: LUNA16 brings its table twice."""
    rows = (row for path in tables if is_annotations(path) for row in read_luna16_annotations(path, series_ids))
    return list(dict.fromkeys(rows))
