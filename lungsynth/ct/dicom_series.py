"""The DICOM files of the sources as series: what each file is by its header, which slices are copies, what is no slice.

One SeriesInstanceUID is one series, unless its slices are of two people or two studies: then nobody knows which slice
is whose, and it is refused. Slices that were sent twice (same SOPInstanceUID and position) are read once, so are series
that were sent twice under other UIDs.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from tqdm import tqdm

from lungsynth.ct.dicom import is_ct, looks_like_dicom, read_header
from lungsynth.ct.file_kinds import FileReport
from lungsynth.ct.patients import Person
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError, naming_file

__all__ = ["DicomFiles", "DicomSeries", "Marks", "sort_dicom"]

_MARKS = {"SEG": "DICOM SEG", "RTSTRUCT": "RTSTRUCT", "SR": "structured report", "PR": "presentation state"}
_DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
_PHANTOM = "lungsynth phantom"  # Manufacturer of what `lungsynth phantom` draws to be read again
_MARK_TAGS = [
    "SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence", "CurrentRequestedProcedureEvidenceSequence", "SyntheticData", "Manufacturer",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DicomSlice:
    """A CT slice by its header."""

    path: Path
    series_id: str
    sop_uid: str
    person: Person
    frame: str
    position: tuple[float, ...]
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """A CT series, and the person that it is of."""

    series_id: str
    files: tuple[Path, ...]
    sop_uids: tuple[str, ...]
    positions: tuple[tuple[float, ...], ...]
    person: Person
    frame: str


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A DICOM object with what somebody drew, and what it says of the series that it belongs to."""

    path: Path
    kind: str
    series_ids: frozenset[str]
    frame: str
    study: str
    patient_id: str

    def belongs_to(self, series: DicomSeries) -> bool:
        """Whether it may mark the series: by its UID, else by its frame of reference, study or patient."""
        if self.series_ids:
            return series.series_id in self.series_ids
        for own, other in (
            (self.frame, series.frame),
            (self.study, series.person.study),
            (self.patient_id, series.person.patient_id),
        ):
            if own and other:
                return own == other
        return False


@dataclass
class DicomFiles:
    """What the DICOM files of the sources are."""

    series: list[DicomSeries] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)
    reports: list[FileReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    synthetic: list[Path] = field(default_factory=list)


def sort_dicom(paths: Sequence[Path], shown: Callable[[Path], str], *, synthetic: bool) -> DicomFiles:
    """Sorts files that may be DICOM.

    Args:
        paths: candidates; those that are no DICOM come back as `others`.
        shown: a path as a user knows it.
        synthetic: whether synthetic slices count.
    """
    found = DicomFiles()
    slices: list[DicomSlice] = []
    passed: Counter[tuple[str, str]] = Counter()
    for path in tqdm(paths, desc="Looking for DICOM", unit="file", disable=None, leave=False):
        try:
            with naming_file(path, "a tag in its DICOM header cannot be read", remedy="write it again or remove it"):
                if looks_like_dicom(path):
                    _sort_one(path, shown, found, slices, passed)
                else:
                    found.others.append(path)
        except InputError as error:
            told = str(error).replace(str(path), shown(path))
            found.problems.append(Problem(path, told))
            found.reports.append(FileReport(name=shown(path), taken_for="nothing", why=told))
    if not synthetic:
        found.synthetic += [one.path for one in slices if one.synthetic]
        slices = [one for one in slices if not one.synthetic]
    _group(slices, shown, found)
    for (folder, what), count in sorted(passed.items()):
        found.reports.append(FileReport(name=folder, count=count, taken_for="not used", why=f"DICOM, {what}"))
    return found


def _sort_one(
    path: Path,
    shown: Callable[[Path], str],
    found: DicomFiles,
    slices: list[DicomSlice],
    passed: Counter[tuple[str, str]],
) -> None:
    header = read_header(path)
    if header is not None and is_ct(header):
        slices.append(_slice(path, header, shown))
        return
    marks = _marks(path)
    if marks is not None:
        found.marks.append(marks)
        return
    modality = "" if header is None else str(header.get("Modality") or "")
    what = "no image" if header is None else f"no CT slice{f' ({modality})' if modality else ''}"
    if header is not None and "LOCALIZER" in (header.get("ImageType") or []):
        what = "a scout (LOCALIZER)"
    passed[shown(path.parent), what] += 1


def _slice(path: Path, header: pydicom.Dataset, shown: Callable[[Path], str]) -> DicomSlice:
    def text(name: str) -> str:
        return str(header.get(name) or "").strip()

    position = tuple(round(float(value), 3) for value in header.get("ImagePositionPatient") or ())
    return DicomSlice(
        path=path,
        series_id=text("SeriesInstanceUID"),
        sop_uid=text("SOPInstanceUID"),
        person=Person(
            patient_id=text("PatientID"),
            name=text("PatientName"),
            birth_date=text("PatientBirthDate"),
            sex=text("PatientSex"),
            age=text("PatientAge"),
            study=text("StudyInstanceUID"),
        ),
        frame=text("FrameOfReferenceUID"),
        position=position,
        synthetic=text("SyntheticData") == "YES" and text("Manufacturer") != _PHANTOM,
    )


def _marks(path: Path) -> Marks | None:
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_MARK_TAGS))
    kind = _MARKS.get(str(dataset.get("Modality") or ""))
    if kind is None or str(dataset.get("SOPClassUID") or "") == _DOSE_REPORT:
        return None
    named = {str(item.get("SeriesInstanceUID") or "") for item in dataset.get("ReferencedSeriesSequence") or []}
    frames = set()
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        frames.add(str(frame.get("FrameOfReferenceUID") or ""))
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                named.add(str(series.get("SeriesInstanceUID") or ""))
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            named.add(str(series.get("SeriesInstanceUID") or ""))
    return Marks(
        path=path,
        kind=kind,
        series_ids=frozenset(named - {""}),
        frame=str(dataset.get("FrameOfReferenceUID") or next(iter(frames - {""}), "")),
        study=str(dataset.get("StudyInstanceUID") or ""),
        patient_id=str(dataset.get("PatientID") or ""),
    )


def _group(slices: Iterable[DicomSlice], shown: Callable[[Path], str], found: DicomFiles) -> None:
    groups: dict[tuple[str, Path | None], list[DicomSlice]] = defaultdict(list)
    for one in slices:
        groups[one.series_id, None if one.series_id else one.path.parent].append(one)
    for (series_id, folder), group in groups.items():
        where = shown(group[0].path.parent)
        name = series_id or f"{where} (without SeriesInstanceUID)"
        if told := _mixture(group, name):
            found.problems.append(Problem(group[0].path, told))
            found.reports.append(FileReport(name=where, count=len(group), taken_for="not used", why=told))
            continue
        kept = _once(group, shown, found)
        found.series.append(
            DicomSeries(
                series_id=series_id or _name_of(folder, where, found),
                files=tuple(one.path for one in kept),
                sop_uids=tuple(one.sop_uid for one in kept),
                positions=tuple(one.position for one in kept),
                person=_common(kept),
                frame=kept[0].frame,
            )
        )
        why = (
            "DICOM header: CT"
            if series_id
            else "DICOM header: CT; SeriesInstanceUID is missing, the folder stands for it"
        )
        taken_for = f"slices of series {series_id}" if series_id else "slices of a series"
        found.reports.append(FileReport(name=where, count=len(kept), taken_for=taken_for, why=why))
    _drop_copies(shown, found)


def _name_of(folder: Path | None, where: str, found: DicomFiles) -> str:
    """An id for a series without one: its folder's name, longer where that is taken."""
    taken = {series.series_id for series in found.series}
    short = folder.name if folder is not None else where
    return where.replace("/", "_") if short in taken else short


def _mixture(group: Sequence[DicomSlice], name: str) -> str:
    """Why slices under one UID are of several scans; empty when they are not."""
    for what, values in (
        ("PatientID", {one.person.patient_id for one in group}),
        ("PatientBirthDate", {one.person.birth_date for one in group}),
        ("StudyInstanceUID", {one.person.study for one in group}),
    ):
        several = sorted(values - {""})
        if len(several) > 1:
            listed = ", ".join(several[:3]) if what != "PatientBirthDate" else "different ones"
            return (
                f"Series {name}: its {len(group)} slices have {len(several)} values of {what} ({listed}), so they are "
                "of several people or scans under one SeriesInstanceUID. Give each scan a UID of its own and export "
                "it again."
            )
    return ""


def _once(group: Sequence[DicomSlice], shown: Callable[[Path], str], found: DicomFiles) -> list[DicomSlice]:
    first: dict[tuple[str, tuple[float, ...]], DicomSlice] = {}
    copies: Counter[str] = Counter()
    for one in group:
        key = (one.sop_uid or str(one.path), one.position)
        if first.setdefault(key, one) is not one:
            copies[shown(one.path.parent)] += 1
    for where, count in sorted(copies.items()):
        why = "copies of slices that are read already (same SOPInstanceUID)"
        found.reports.append(FileReport(name=where, count=count, taken_for="not used", why=why))
    return list(first.values())


def _common(group: Sequence[DicomSlice]) -> Person:
    """What most slices say of the person."""

    def most(values: Iterable[str]) -> str:
        counts = Counter(value for value in values if value)
        return counts.most_common(1)[0][0] if counts else ""

    names = ("patient_id", "name", "birth_date", "sex", "age", "study")
    return Person(**{name: most(getattr(one.person, name) for one in group) for name in names})


def _drop_copies(shown: Callable[[Path], str], found: DicomFiles) -> None:
    """A series whose slices all stand in another one under the same SOPInstanceUIDs is its copy."""
    seen: dict[frozenset[Any], DicomSeries] = {}
    kept = []
    for series in found.series:
        uids = frozenset(zip(series.sop_uids, series.positions, strict=True))
        if all(series.sop_uids) and seen.setdefault(uids, series) is not series:
            told = f"copies of the slices of series {seen[uids].series_id} under another SeriesInstanceUID"
            where = shown(series.files[0].parent)
            found.reports.append(FileReport(name=where, count=len(series.files), taken_for="not used", why=told))
            continue
        kept.append(series)
    found.series = kept
