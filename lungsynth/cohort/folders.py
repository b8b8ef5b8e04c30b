"""Folders of nodule crops and cubes: nodules without their scans, straight into a cohort."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from lungsynth.cohort.calibration import compare_with_cubes
from lungsynth.cohort.collections import recognise
from lungsynth.cohort.layout import FolderTask
from lungsynth.cohort.lidc_nodules import ImportedNodule, nodule_folders, read_crops, read_cubes, read_slices
from lungsynth.cohort.schema import NoduleRow, SeriesRow
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.io.tables import markdown_table

__all__ = ["calibration_rows", "nodules_listed", "prepare_folder"]


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
