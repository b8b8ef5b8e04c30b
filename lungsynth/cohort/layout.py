"""What there is to prepare: series, and folders of nodule crops and cubes, detected in the sources."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lungsynth.cohort.collections import recognise
from lungsynth.cohort.lidc_nodules import is_crop_folder, is_cube_folder
from lungsynth.cohort.lidc_slices import nodule_folders
from lungsynth.cohort.patient_table import read_patient_maps
from lungsynth.cohort.series import SeriesTask
from lungsynth.ct.discover import Discovery, find_series
from lungsynth.ct.series import Problem, SeriesFiles
from lungsynth.errors import InputError

__all__ = ["CohortLayout", "FolderTask", "file_fingerprint", "find_layout"]


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
    """Everything found, in the order of the task ids, and what could not be used.

    What was unpacked from zips stays until `close`.
    """

    series: tuple[SeriesTask, ...]
    folders: tuple[FolderTask, ...]
    problems: tuple[Problem, ...]
    discoveries: tuple[Discovery, ...] = ()

    def close(self) -> None:
        """Removes what was unpacked from zips."""
        for discovery in self.discoveries:
            discovery.close()


def find_layout(sources: Sequence[Path], *, subset: bool = False) -> CohortLayout:
    """Looks into the sources for what can be prepared.

    Args:
        sources: folders, zips or files, in any mix of layouts.
        subset: annotation tables may name series that are not in their source.

    Raises:
        InputError: when a source does not exist.
    """
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: there is no such source; give an existing folder, zip or file.")
    patients, unread = read_patient_maps(sources)
    folders: list[FolderTask] = []
    tasks: list[SeriesTask] = []
    problems: list[Problem] = []
    discoveries = []
    tables = tuple(sorted(path for source in sources for path in _nodule_tables(source)))
    for source in sources:
        own = [*_nodule_folders(source), *_slice_folders(source, tables)]
        folders += own
        try:
            discovery = find_series(source, subset=subset)
        except InputError as error:
            if not own:
                problems.append(Problem(source, str(error)))
            continue
        discoveries.append(discovery)
        inside = [task.path for task in own]
        problems += [p for p in discovery.problems if not any(p.path.is_relative_to(path) for path in inside)]
        tasks += [_task(files, source, patients) for files in discovery.series]
    unique, twice = _unique(tasks)
    return CohortLayout(
        series=tuple(sorted(unique, key=lambda task: task.task_id)),
        folders=tuple(sorted(folders, key=lambda task: task.task_id)),
        problems=(*problems, *unread, *twice),
        discoveries=tuple(discoveries),
    )


def file_fingerprint(files: Iterable[Path], *facts: str) -> str:
    """SHA-256 of the names and sizes of files, and of further facts."""
    lines = sorted(f"{path.name} {path.stat().st_size}" for path in files)
    return hashlib.sha256("\n".join((*lines, *facts)).encode()).hexdigest()


def _task(files: SeriesFiles, source: Path, patients: Mapping[str, str]) -> SeriesTask:
    """With the patient of the map where the files do not tell, and with the fingerprint of all of its files."""
    if not files.patient_known and files.series_id in patients:
        files = replace(files, patient_id=patients[files.series_id], patient_known=True)
    folder = source.resolve().stem
    notes = files.annotations
    masks = [path for path in (files.lung_mask, files.nodule_mask, notes.lidc_xml) if path is not None]
    return SeriesTask(
        files=files,
        collection=recognise(_telling_ids(files), folder=folder),
        folder=folder,
        task_id=files.series_id,
        fingerprint=file_fingerprint([*files.files, *masks, *notes.voc_xml], files.patient_id, repr(notes.spheres)),
    )


def _telling_ids(files: SeriesFiles) -> tuple[str, ...]:
    """What names the collection; LUNA16 holds LIDC's patients, so there the series tells more."""
    ids = (files.patient_id, files.series_id, files.files[0].name)
    return ids if files.kind == "dicom" or files.patient_id.lower().startswith("phantom") else ids[1:] + ids[:1]


def _unique(tasks: Iterable[SeriesTask]) -> tuple[list[SeriesTask], list[Problem]]:
    """The first task of each series id."""
    first: dict[str, SeriesTask] = {}
    problems = []
    for task in tasks:
        kept = first.setdefault(task.task_id, task)
        if kept is not task:
            path = task.files.files[0]
            problems.append(
                Problem(
                    path,
                    f"{path}: series {task.task_id} was found before, in {kept.files.files[0]}, and is prepared "
                    "once; if this is another scan, rename its file.",
                )
            )
    return list(first.values()), problems


def _nodule_tables(source: Path) -> Iterator[Path]:
    """Tables that may tell spacing and ratings of nodules that come as slices."""
    if source.is_dir():
        yield from (path for name in ("index.csv", "nodules.csv") for path in source.rglob(name))


def _slice_folders(source: Path, tables: tuple[Path, ...]) -> list[FolderTask]:
    """One task for all nodules of a source that come as slices in PNG."""
    nodules = nodule_folders(source) if source.is_dir() else []
    if not nodules:
        return []
    files = [path for nodule in nodules for path in sorted((nodule / "images").iterdir())]
    name = re.sub(r"[^\w.-]", "_", source.resolve().name)
    return [
        FolderTask(
            kind="slices",
            path=source,
            folder=source.resolve().stem,
            task_id=f"slices_{name}",
            fingerprint=file_fingerprint([*files, *tables]),
            tables=tables,
        )
    ]


def _nodule_folders(source: Path) -> list[FolderTask]:
    if not source.is_dir():
        return []
    folders = []
    for index in sorted(source.rglob("index.csv")):
        path = index.parent
        kind = "crops" if is_crop_folder(path) else "cubes" if is_cube_folder(path) else None
        if kind is not None:
            files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".npz"))
            name = re.sub(r"[^\w.-]", "_", path.resolve().name)
            folders.append(
                FolderTask(
                    kind=kind,
                    path=path,
                    folder=source.resolve().stem,
                    task_id=f"{kind}_{name}",
                    fingerprint=file_fingerprint(files),
                )
            )
    return folders
