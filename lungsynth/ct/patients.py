"""Whose a scan is: the one place that decides it, and says who told.

1. A table of the user: a CSV or TSV with a column `patient` (or `patient_id`, `subject`, ...) and one that names scans
   by file, id or SeriesInstanceUID. A column `licence` tells theirs.
2. DICOM's PatientID.
3. Names: BIDS (`sub-01`), ids of collections (LIDC-IDRI-0001, TCGA-05-4244, ...), what counts scans of one person
   (`_s1`, `_visit2`, `_baseline`), folders named by a patient, and file names that say that they are a CT
   (`X_ct`, `imagesTr/X`).
4. Nobody: the scan counts as a patient of its own, and `patient_known` is false.

People whom an id does not tell apart, and one person under several ids, are noticed by DICOM's other tags and said.
They stay or become one patient, so that no person stands in two parts of a split.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lungsynth.ct.annotations import TableHead, read_table
from lungsynth.ct.pairing import bare_stem, patient_folder, volume_stem
from lungsynth.ct.series import Problem, SeriesFiles
from lungsynth.ct.source_files import as_text
from lungsynth.errors import InputError

__all__ = ["NOBODY", "PatientTable", "Person", "check_people", "name_patient", "read_patient_table", "with_table"]

NOBODY = "nobody: each scan is a patient of its own"
_PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id", "subjectid", "person")
_LICENCE_COLUMNS = ("licence", "license")
_SCAN_COLUMNS = {
    "seriesuid", "series_uid", "series_instance_uid", "seriesinstanceuid", "series", "series_id", "file", "filename",
    "file_name", "image", "image_id", "path", "scan", "scan_id", "case", "case_id", "study_file", "name", "id",
}  # fmt: skip
_COLLECTION_IDS = re.compile(
    r"(lidc-idri-\d{4}|tcga-[a-z0-9]{2}-[a-z0-9]{4}|c3[ln]-\d{5}|lung_dx-[a-z]\d{4}|lung1-\d{3}|r01-\d{3}|amc-\d{3}"
    r"|lctsc-[a-z]+-s\d-\d{3}|qin-ls[cl]-\d{4}|qin-lung-\d{2}-\d{4}|rider-\d{10})(?![a-z0-9])",
    re.IGNORECASE,
)
_BIDS = re.compile(r"^(sub-[a-zA-Z0-9]+)(?=_|$)")
# What counts scans of one person at the end of a name.
_COUNTS_SCANS = re.compile(
    r"[_\-. ]+(s|visit|v|ses|sess|session|tp?|timepoint|time|level|lvl|day|week|month|year|w|fu|followup|follow-up|run)"
    r"[_\-]?\d+$"
    r"|[_\-. ]+(baseline|bl|follow[_\-]?up|fu|pre|post|prior|current|insp(iration)?|exp(iration)?|soft|sharp)$"
    r"|[_\-. ]+(19|20)\d{2}[-_.]?(0[1-9]|1[0-2])[-_.]?([0-2]\d|3[01])$",
    re.IGNORECASE,
)
# These count scans of one person only behind an id; behind a word they count patients (`covid_scan_12`).
_COUNTS_BEHIND_IDS = re.compile(
    r"[_\-. ]+(scan|series|ser|exam|study|slice|sl|part|rec|recon|acq|vol|volume|ct)[_\-]?\d+$", re.IGNORECASE
)
# Ids that anonymisers give to everybody.
_PLACEHOLDER = re.compile(
    r"^(anon\w*|anonymi[sz]ed?\w*|unknown|none|null|n/?a|patient|subject|test|removed|deid\w*|[0x]+)$", re.IGNORECASE
)
_TELL_APART = "say so with a table that has the columns series_uid and patient"
_AGE = re.compile(r"^(\d{1,3})Y$")
_AGE_TOLERANCE_YEARS = 15  # of one person: follow-up lasts years


@dataclass(frozen=True)
class Person:
    """What DICOM's tags say of the person in a series, as text; empty where they do not."""

    patient_id: str = ""
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    age: str = ""
    study: str = ""


@dataclass(frozen=True)
class PatientTable:
    """A table of patients, and of the licences of their scans: by the text that names a scan, in lower case."""

    path: Path
    patients: Mapping[str, str]
    licences: Mapping[str, str] = field(default_factory=dict)


def name_patient(path: Path, roots: Iterable[Path], *, says_ct: bool) -> tuple[str | None, str]:
    """The patient by the names of a file and its folders, and who told.

    Args:
        path: a NIfTI or MetaImage file, or a slice of a DICOM series that has no PatientID.
        roots: of the sources: what stands above them says nothing.
        says_ct: the file name says that the file is a CT: the rest of it, then, names a patient.
    """
    roots = list(roots)
    inside = [path.name, *(folder.name for folder in _within(path, roots))]
    for name in inside:
        if bids := _BIDS.match(volume_stem(Path(name))):
            return bids[1], "names: BIDS subjects"
    for name in inside:
        if known := _COLLECTION_IDS.search(name):
            return known[1], "names: ids of public collections"
    stem = bare_stem(as_text(volume_stem(path)))
    shorter = _without_counts(stem)
    if shorter and shorter != stem:
        return shorter, "names: what counts scans of one person (_s1, _visit2, dates)"
    folder = patient_folder(path, roots)
    if not stem:
        return folder or path.parent.name, "names: folders"
    if says_ct:
        return stem, "names: files that are called CT or image"
    return folder, "names: folders" if folder else NOBODY


def _within(path: Path, roots: Sequence[Path]) -> Iterable[Path]:
    for folder in path.parents:
        if folder in roots:
            return
        yield folder


def _without_counts(stem: str) -> str:
    """A name without what counts the scans of a person at its end, again and again."""
    while True:
        shorter = _COUNTS_SCANS.sub("", stem)
        behind = _COUNTS_BEHIND_IDS.sub("", shorter)
        shorter = bare_stem(behind if re.search(r"\d", behind) else shorter)
        if not shorter or shorter == stem:
            return stem
        stem = shorter


def names_patients(head: TableHead) -> bool:
    """Whether a table has a column of patients, and one of scans."""
    lower = {name.lower() for name in head.columns}
    return not lower.isdisjoint(_PATIENT_COLUMNS) and not lower.isdisjoint(_SCAN_COLUMNS)


def read_patient_table(path: Path, head: TableHead, scans: Mapping[str, Sequence[str]]) -> PatientTable | None:
    """A table of patients; None when it names no patient or none of the scans.

    Args:
        path: CSV or TSV.
        head: its first line.
        scans: for each scan the texts that may name it, in lower case.

    Raises:
        InputError: when it cannot be read, or gives a scan two patients.
    """
    lower = {name.lower(): name for name in head.columns}
    patient = next((lower[name] for name in _PATIENT_COLUMNS if name in lower), None)
    if patient is None:
        return None
    table = read_table(path, head.separator)
    if patient not in table:
        return None
    known = {text for texts in scans.values() for text in texts}
    best, rows = None, 0
    for name in table.columns:
        cells = table[name].fillna("").map(_as_key)
        hits = int(cells.isin(known).sum())
        named = str(name).lower() in _SCAN_COLUMNS
        enough = hits > 0 if named else 2 * hits >= len(table) and cells.str.contains("[a-z]").any()
        if name != patient and enough and hits > rows:
            best, rows = cells, hits
    if best is None:
        return None
    pairs = {
        (scan, str(who).strip())
        for scan, who in zip(best, table[patient].fillna(""), strict=True)
        if scan and str(who).strip()
    }
    twice = [scan for scan, times in Counter(scan for scan, _ in pairs).items() if times > 1 and scan in known]
    if twice:
        raise InputError(f"{path}: {min(twice)} has two patients; keep one row of them.")
    said = next((lower[name] for name in _LICENCE_COLUMNS if name in lower), None)
    licences = zip(best, table[said].fillna(""), strict=True) if said in table else ()
    return PatientTable(
        path=path,
        patients={scan: who for scan, who in pairs if scan in known},
        licences={scan: text for scan, cell in licences if scan in known and (text := " ".join(str(cell).split()))},
    )


def _as_key(cell: str) -> str:
    """A cell as it may name a scan: without folders and suffixes, in lower case."""
    name = cell.strip().replace("\\", "/").rpartition("/")[2]
    return volume_stem(Path(name)).lower() if name else ""


def with_table(series: SeriesFiles, texts: Iterable[str], tables: Iterable[tuple[str, PatientTable]]) -> SeriesFiles:
    """A series with the patient, and the licence, of the first table that names it.

    Args:
        series: with the patient that its own files tell.
        texts: that may name it, in lower case.
        tables: with their names for the report.
    """
    names = list(texts)
    for shown, table in tables:
        name = next((text for text in names if text in table.patients), None)
        if name is not None:
            return replace(
                series,
                patient_id=table.patients[name],
                patient_known=True,
                patient_from=f"the table {shown}",
                licence=table.licences.get(name, ""),
            )
    return series


def check_people(
    series: Sequence[SeriesFiles], people: Mapping[str, Person]
) -> tuple[list[SeriesFiles], list[Problem]]:
    """Looks whether ids tell people apart, and joins the ids of one person.

    Args:
        series: of all sources; those that a table names are left as they are.
        people: by series id, what DICOM says of the person.

    Returns:
        The series, one person under one id, and a sentence for each doubt.
    """
    mine = [files for files in series if files.patient_from == "DICOM: PatientID" and files.series_id in people]
    problems = [
        *_two_in_one(mine, people),
        *_one_study_for_two(mine, people),
    ]
    joined, said = _one_in_many(mine, people)
    problems += said
    changed = [
        replace(files, patient_id=joined[files.patient_id]) if files in mine and files.patient_id in joined else files
        for files in series
    ]
    return changed, problems


def _two_in_one(series: Sequence[SeriesFiles], people: Mapping[str, Person]) -> Iterable[Problem]:
    groups: dict[str, list[SeriesFiles]] = defaultdict(list)
    for files in series:
        groups[files.patient_id].append(files)
    for patient, group in groups.items():
        persons = [people[files.series_id] for files in group]
        reasons = list(_differences(persons))
        studies = {person.study for person in persons if person.study}
        if not reasons and _PLACEHOLDER.match(patient) and len(studies) > 1:
            reasons = [f"it is no id, and stands in {len(studies)} studies"]
        if reasons:
            yield Problem(
                group[0].files[0],
                f"PatientID {patient} of {len(group)} series seems to be of several people ({'; '.join(reasons)}). "
                f"They count as one patient, so that nobody stands in two parts of the split; {_TELL_APART}.",
            )


def _differences(persons: Sequence[Person]) -> Iterable[str]:
    for what, values in (
        ("PatientSex", {person.sex for person in persons if person.sex in ("F", "M")}),
        ("PatientBirthDate", {person.birth_date for person in persons if person.birth_date}),
        ("PatientName", {person.name for person in persons if person.name}),
    ):
        if len(values) > 1:
            told = " and ".join(sorted(values)) if what == "PatientSex" else f"{len(values)} different ones"
            yield f"{what}: {told}"
    ages = sorted(int(found[1]) for person in persons if (found := _AGE.match(person.age)))
    if ages and ages[-1] - ages[0] > _AGE_TOLERANCE_YEARS:
        yield f"PatientAge: {ages[0]} and {ages[-1]} years"


def _one_study_for_two(series: Sequence[SeriesFiles], people: Mapping[str, Person]) -> Iterable[Problem]:
    groups: dict[str, list[SeriesFiles]] = defaultdict(list)
    for files in series:
        if people[files.series_id].study:
            groups[people[files.series_id].study].append(files)
    for group in groups.values():
        ids = sorted({files.patient_id for files in group})
        if len(ids) > 1:
            yield Problem(
                group[0].files[0],
                f"One StudyInstanceUID stands under {len(ids)} PatientIDs ({', '.join(ids[:3])}): the same person "
                f"under several ids, or a mistake. If it is one person, {_TELL_APART}.",
            )


def _one_in_many(series: Sequence[SeriesFiles], people: Mapping[str, Person]) -> tuple[dict[str, str], list[Problem]]:
    """Ids of one person, each with the id that stands for all; by name and date of birth."""
    groups: dict[tuple[str, str], list[SeriesFiles]] = defaultdict(list)
    for files in series:
        person = people[files.series_id]
        if person.name and person.birth_date and not _PLACEHOLDER.match(person.name):
            groups[person.name.lower(), person.birth_date].append(files)
    joined: dict[str, str] = {}
    problems = []
    for group in groups.values():
        ids = sorted({files.patient_id for files in group})
        if len(ids) > 1:
            joined |= dict.fromkeys(ids[1:], ids[0])
            told = (
                f"PatientIDs {', '.join(ids[:4])} have one PatientName and PatientBirthDate: one person, who counts as "
                f"patient {ids[0]}. If they are several people, {_TELL_APART}."
            )
            problems.append(Problem(group[0].files[0], told))
    return joined, problems
