"""The cohort to be pseudo-labelled: the rows of its series and its split."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lungsynth.cohort.records import SeriesRows, SliceRow
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError

__all__ = ["SourceCohort", "drop_missing", "part_files", "read_source"]

_REMEDY = "`cohort` must be a folder that `prepare` wrote, with its hidden folder .parts."
_IDENTIFYING = ("series.csv", "nodules.csv", "segmentation.json", "nodules.json", "lungs.json", "enhancement.json")


@dataclass(frozen=True, kw_only=True)
class SourceCohort:
    """A cohort as `prepare` left it.

    Args:
        folder: where it stands.
        described: content of `cohort.json`.
        parts: in the order of their ids.
        splits: by series id.
        digest: SHA-256 of its tables and lists.
    """

    folder: Path
    described: dict[str, Any]
    parts: tuple[SeriesRows, ...]
    splits: dict[str, str]
    digest: str


def read_source(folder: Path) -> SourceCohort:
    """Reads a cohort.

    Raises:
        InputError: when a file of the cohort is missing or damaged, or it is pseudo-labelled already.
    """
    try:
        described = json.loads((folder / "cohort.json").read_text())
        names = sorted(path for path in (folder / ".parts").glob("*.json") if path.stem != "identity")
        parts = tuple(SeriesRows.read(path) for path in names)
        table = pd.read_csv(folder / "series.csv", dtype=str)
        splits = dict(zip(table["series_id"], table["split"], strict=True))
        digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in _IDENTIFYING)).hexdigest()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: could not be read as a cohort ({error}). {_REMEDY}") from error
    if "separation" in described:
        raise InputError(f"{folder}: is pseudo-labelled already. Give the cohort that `prepare` wrote as `cohort`.")
    if {row.series_id for part in parts for row in part.series} != set(splits):
        raise InputError(f"{folder}: its .parts are not those of its series.csv. {_REMEDY}")
    return SourceCohort(folder=folder, described=described, parts=parts, splits=splits, digest=digest)


def part_files(part: SeriesRows) -> Iterator[str]:
    """Files of a series, relative to the cohort."""
    for row in part.slices:
        yield from _slice_files(row)
    for nodule in part.nodules:
        if nodule.has_patch:
            yield f"nodules/{nodule.nodule_id}.npz"
        if nodule.has_cube:
            yield f"cubes/{nodule.nodule_id}.npz"


def _slice_files(row: SliceRow) -> list[str]:
    lung = [f"lungs/{row.slice_id}.npz"] if row.normal else []
    return [f"slices/{row.slice_id}.nii.gz", f"labels/{row.slice_id}.nii.gz", *lung]


def drop_missing(part: SeriesRows, folder: Path) -> tuple[SeriesRows, list[Problem]]:
    """A part without the slices and patches whose files are not in its cohort, and a problem for each such file."""
    missing = {name for name in part_files(part) if not (folder / name).is_file()}
    if not missing:
        return part, []
    slices = tuple(row for row in part.slices if not missing.intersection(_slice_files(row)))
    nodules = tuple(
        replace(
            row,
            has_patch=row.has_patch and f"nodules/{row.nodule_id}.npz" not in missing,
            has_cube=row.has_cube and f"cubes/{row.nodule_id}.npz" not in missing,
        )
        for row in part.nodules
    )
    series = tuple(replace(row, slices=len(slices)) if part.slices else row for row in part.series)
    problems = [
        Problem(folder / name, f"{folder / name}: is missing, so it is left out; prepare the cohort again.")
        for name in sorted(missing)
    ]
    return replace(part, series=series, slices=slices, nodules=nodules), problems
