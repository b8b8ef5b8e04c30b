"""What there is to prepare: series, and folders of nodule crops and cubes, detected in the sources.

A folder of crops or cubes holds nodules without their scans; they go straight into a cohort (`prepare_folder`).
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lungsynth.cohort.calibration import compare_with_cubes
from lungsynth.cohort.collections import recognise
from lungsynth.cohort.lidc_nodules import (
    ImportedNodule,
    is_crop_folder,
    is_cube_folder,
    nodule_folders,
    read_crops,
    read_cubes,
    read_slices,
)
from lungsynth.cohort.schema import NoduleRow, SeriesRow
from lungsynth.cohort.series import SeriesTask
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.ct.discover import Discovery, SortSettings, sort_files
from lungsynth.ct.file_kinds import FileReport
from lungsynth.ct.read import count_slices
from lungsynth.ct.series import Problem, SeriesFiles
from lungsynth.ct.source_files import SourceFiles, list_files
from lungsynth.io.tables import duration, markdown_table

__all__ = [
    "CohortLayout",
    "FolderTask",
    "calibration_rows",
    "file_fingerprint",
    "find_layout",
    "nodules_listed",
    "origins",
    "outlook",
    "prepare_folder",
]

# Of `lungsynth prepare` on 397 slices and 2,097 nodules: CPU time on one core, and what it wrote.
_START_S, _SLICE_S, _NODULE_S = 10.0, 0.08, 0.1
_SLICE_MB, _NODULE_MB = 0.24, 0.12


@dataclass(frozen=True, kw_only=True)
class FolderTask:
    """A folder of nodules without their scans; `kind` is `slices`, `crops` or `cubes`.

    `tables` may say more about slices: spacings and ratings, from any of the sources.
    """

    kind: str
    path: Path
    folder: str
    task_id: str
    fingerprint: str
    tables: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CohortLayout:
    """Everything found, in the order of the task ids, what could not be used, and what each file was taken for.

    What was unpacked from archives stays until `close`.
    """

    series: tuple[SeriesTask, ...]
    folders: tuple[FolderTask, ...]
    problems: tuple[Problem, ...]
    reports: tuple[FileReport, ...] = ()
    discovery: Discovery | None = None

    def close(self) -> None:
        """Removes what was unpacked from archives."""
        if self.discovery is not None:
            self.discovery.close()


def find_layout(sources: Sequence[Path], settings: SortSettings | None = None) -> CohortLayout:
    """Looks into the sources for what can be prepared.

    Args:
        sources: folders, archives or files, in any mix of layouts.
        settings: what a user says of the files.

    Raises:
        InputError: when a source does not exist, or an `annotations.csv` does not fit the scans.
    """
    files = list_files(sources)
    try:
        folders = _nodule_folders(files)
        left_out = [task.path for task in folders]
        for task, read_by_it in _slice_folders(files):
            folders.append(task)
            left_out += read_by_it
        discovery = sort_files(files, settings or SortSettings(), left_out)
    except BaseException:
        files.close()
        raise
    tasks = [_task(found, files.source_of(found.files[0])) for found in discovery.series]
    read = [
        FileReport(name=files.shown(task.path), taken_for=f"LIDC {task.kind}", why="names of its files")
        for task in folders
    ]
    return CohortLayout(
        series=tuple(sorted(tasks, key=lambda task: task.task_id)),
        folders=tuple(sorted(folders, key=lambda task: task.task_id)),
        problems=discovery.problems,
        reports=(*discovery.reports, *read),
        discovery=discovery,
    )


def outlook(layout: CohortLayout) -> list[str]:
    """What a cohort of these files would hold, take and need, for a user; times and sizes are estimates."""
    slices = sum(count_slices(task.files) for task in layout.series)
    nodules = {task.path.name: nodules_listed(task) for task in layout.folders}
    patients = {task.files.patient_id for task in layout.series}
    seconds = _START_S + slices * _SLICE_S + sum(nodules.values()) * _NODULE_S
    megabytes = slices * _SLICE_MB + sum(nodules.values()) * _NODULE_MB
    return [
        f"Scans      {len(layout.series):,} of {len(patients):,} patients, about {slices:,} slices",
        *(f"Nodules    {count:,} without their scans in {name}" for name, count in nodules.items()),
        f"Time       about {duration(seconds)} of one core",
        f"Disk       about {megabytes:,.0f} MB",
        "Nothing was written.",
        "",
    ]


def origins(layout: CohortLayout) -> list[str]:
    """What each file was taken for and why, and who told the patients, as tables in Markdown."""
    reports = sorted(layout.reports, key=lambda report: (report.taken_for == "not used", report.name))
    rows = [(report.name, report.count, report.taken_for, report.why) for report in reports]
    told = Counter(task.files.patient_from or "the files" for task in layout.series)
    owners: dict[str, set[str]] = defaultdict(set)
    for task in layout.series:
        owners[task.files.patient_from or "the files"].add(task.files.patient_id)
    patients = [(who, len(owners[who]), count) for who, count in sorted(told.items())]
    return [
        *markdown_table(("patients told by", "patients", "scans"), map(_one_line, patients)),
        "",
        *markdown_table(("file", "files", "taken for", "because"), map(_one_line, rows)),
    ]


def _one_line(cells: Iterable[Any]) -> list[str]:
    """Cells that cannot break a table."""
    return [" ".join(str(cell).split()).replace("|", "\\|") for cell in cells]


def file_fingerprint(files: Iterable[Path], *facts: str) -> str:
    """SHA-256 of the names and sizes of files, and of further facts."""
    lines = sorted(f"{path.name} {path.stat().st_size}" for path in files)
    return hashlib.sha256("\n".join((*lines, *facts)).encode("utf-8", "surrogateescape")).hexdigest()


def _task(files: SeriesFiles, source: Path) -> SeriesTask:
    """With the fingerprint of all of its files, and of what they are taken for."""
    folder = _bare_name(source.resolve().name)
    notes = files.annotations
    beside = [*(mask.path for mask in files.masks), *([notes.lidc_xml] if notes.lidc_xml else []), *notes.voc_xml]
    meanings = repr([(mask.path.name, mask.lung, mask.nodule, mask.finding, mask.votes) for mask in files.masks])
    told = (files.patient_id, files.licence, repr(notes.spheres), meanings, repr(sorted(p.name for p in files.unread)))
    return SeriesTask(
        files=files,
        collection=recognise(_telling_ids(files), folder=folder),
        folder=folder,
        task_id=files.series_id,
        fingerprint=file_fingerprint([*files.files, *beside], *told),
    )


def _bare_name(name: str) -> str:
    """The name of a source without its suffix."""
    return re.sub(r"(\.nii\.gz|\.tar\.\w+|\.[A-Za-z]\w*)$", "", name) or name


def _telling_ids(files: SeriesFiles) -> tuple[str, ...]:
    """What names the collection; LUNA16 holds LIDC's patients, so there the series tells more."""
    ids = (files.patient_id, files.series_id, files.files[0].name)
    return ids if files.kind == "dicom" or files.patient_id.lower().startswith("phantom") else ids[1:] + ids[:1]


def _slice_folders(files: SourceFiles) -> list[tuple[FolderTask, list[Path]]]:
    """One task for all nodules of a source that come as slices in PNG, with the files that it reads."""
    tables = tuple(sorted(path for path in files.paths if path.name in ("index.csv", "nodules.csv")))
    slices: dict[Path, list[Path]] = {}
    for path in files.paths:
        nodule = path.parent.parent
        if fnmatch(path.as_posix(), "*/nodule-*/images/slice-*.png") and nodule.name.startswith("nodule-"):
            slices.setdefault(files.source_of(path), []).append(path)
    found = []
    for source, images in slices.items():
        name = re.sub(r"[^\w.-]", "_", source.resolve().name)
        task = FolderTask(
            kind="slices",
            path=source,
            folder=_bare_name(source.resolve().name),
            task_id=f"slices_{name}",
            fingerprint=file_fingerprint([*images, *tables]),
            tables=tables,
        )
        found.append((task, [*sorted({path.parent.parent for path in images}), *tables]))
    return found


def _nodule_folders(files: SourceFiles) -> list[FolderTask]:
    """Folders of crops and cubes; not those in archives, whose arrays are not unpacked."""
    folders = []
    for path in [path.parent for path in files.paths if path.name == "index.csv"]:
        kind = "crops" if is_crop_folder(path) else "cubes" if is_cube_folder(path) else None
        if kind is not None:
            inside = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".npz"))
            name = re.sub(r"[^\w.-]", "_", path.resolve().name)
            folders.append(
                FolderTask(
                    kind=kind,
                    path=path,
                    folder=_bare_name(files.source_of(path).resolve().name),
                    task_id=f"{kind}_{name}",
                    fingerprint=file_fingerprint(inside),
                )
            )
    return folders


def _read(task: FolderTask) -> Iterator[ImportedNodule]:
    if task.kind == "slices":
        return read_slices(nodule_folders(task.path), tables=task.tables)
    return read_crops(task.path) if task.kind == "crops" else read_cubes(task.path)


def prepare_folder(task: FolderTask, out: Path) -> SeriesRows:
    """Saves the nodules of a folder; its rows are written last.

    Raises:
        InputError: when the folder's files are damaged or lack columns.
    """
    nodules, notes = [], []
    total = nodules_listed(task)
    for nodule in tqdm(_read(task), desc=task.task_id, total=total, unit="nodule"):
        nodule.patches.save(out, nodule.row.nodule_id)
        nodules.append((nodule.row, nodule.patient_known))
        notes += nodule.notes
    rows = SeriesRows(
        task_id=task.task_id,
        fingerprint=task.fingerprint,
        series=tuple(_series_rows(nodules, task)),
        nodules=tuple(row for row, _ in nodules),
        notes=(*_left_out(task, total, len(nodules)), *notes),
    )
    rows.save(out)
    return rows


def calibration_rows(folders: Iterable[FolderTask], out: Path) -> SeriesRows | None:
    """How far the HU of crops are off against the cubes of the same nodules; None unless both are there."""
    by_kind = {task.kind: task for task in folders}
    if set(by_kind) != {"crops", "cubes"}:
        return None
    fingerprint = by_kind["crops"].fingerprint + by_kind["cubes"].fingerprint
    finished = SeriesRows.load(out, "calibration", fingerprint=fingerprint)
    if finished is not None:
        return finished
    table = compare_with_cubes(by_kind["crops"].path, by_kind["cubes"].path)
    rows = SeriesRows(task_id="calibration", fingerprint=fingerprint, figures=_markdown(table))
    rows.save(out)
    return rows


def _series_rows(nodules: list[tuple[NoduleRow, bool]], task: FolderTask) -> list[SeriesRow]:
    """One row for each series that the nodules name; the scans themselves are not there."""
    rows = []
    ordered = sorted(nodules, key=lambda item: item[0].series_id)
    for series_id, group in groupby(ordered, key=lambda item: item[0].series_id):
        first, known = next(group)
        rows.append(
            SeriesRow(
                series_id=series_id,
                patient_id=first.patient_id,
                patient_known=known,
                source=first.source,
                family=recognise([first.source], folder=task.folder).family,
                folder=task.folder,
                slices=0,
                lung_mask="none",
                nodule_mask="data",
                labelled=("nodule",),
            )
        )
    return rows


def nodules_listed(task: FolderTask) -> int:
    """How many nodules the folder names, usable or not."""
    if task.kind == "slices":
        return len(nodule_folders(task.path))
    index = pd.read_csv(task.path / "index.csv")
    keys = [name for name in ("patient", "nodule") if name in index.columns]
    return len(index.drop_duplicates(keys)) if task.kind == "crops" and keys else len(index)


def _left_out(task: FolderTask, listed: int, used: int) -> list[str]:
    reason = "cut by their crop, drawn by nobody, or of unknown pixel size"
    return [f"{task.task_id}: {listed - used} of {listed} nodules left out ({reason})"] if listed > used else []


def _markdown(table: pd.DataFrame) -> str:
    rounded = table.round(1).astype(str)
    return "\n".join(markdown_table(list(rounded.columns), rounded.to_numpy().tolist())) + "\n"
