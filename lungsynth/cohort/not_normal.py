"""A user's list of scans and slices that are not normal lungs: tumours, effusions, tubes that no annotation tells.

A text file or a CSV, a line each: the name of a file, a series, a patient or a slice (`<series>_<index:04d>`, as the
files in `lungs/` are called). What stands behind a comma, a semicolon, a tab or `#` is a remark.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.schema import slice_id
from lungsynth.ct.pairing import volume_stem
from lungsynth.ct.series import SeriesFiles
from lungsynth.errors import InputError, naming_file
from lungsynth.io.names import file_stem

__all__ = ["check_names", "listed_slices", "read_names"]

_REMARK = re.compile(r"\s*[,;\t#].*$")
_HEADER = re.compile(
    r"(file(_?name)?|image|scan|series(_?(id|uid))?|slice(_?id)?|patient(_?id)?|name|id)", re.IGNORECASE
)
_SHOWN = 3  # unknown names that a message tells


def read_names(path: Path) -> tuple[str, ...]:
    """The names of a list, sorted, each once.

    Raises:
        InputError: when the file cannot be read, or names nothing.
    """
    with naming_file(path, "cannot be read as a list of what is not normal"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [_REMARK.sub("", line).strip().strip("\"'") for line in lines]
    if names and _HEADER.fullmatch(names[0]):
        names = names[1:]
    kept = tuple(sorted({_key(name) for name in names if name}))
    if not kept:
        raise InputError(f"{path}: expected a file, series, patient or slice in a line, got none.")
    return kept


def check_names(names: Iterable[str], series: Iterable[SeriesFiles]) -> None:
    """Whether each name is that of a scan, a patient or a slice.

    Raises:
        InputError: when one is not: a diseased slice would train normal lungs.
    """
    known = {name for files in series for name in _names(files)}
    unknown = sorted(name for name in names if name not in known and re.sub(r"_\d{4,}$", "", name) not in known)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InputError(
            f"`not_normal` names {', '.join(unknown[:_SHOWN])}{more}: no file, series, patient or slice of the "
            "sources. Correct the list, or set `subset` when the sources are parts of what it was written for."
        )


def listed_slices(names: Iterable[str], files: SeriesFiles, series_id: str, count: int) -> Bool[np.ndarray, " depth"]:
    """Which slices of a series are listed.

    Args:
        names: of the list.
        files: of the series.
        series_id: as it was read.
        count: its slices.
    """
    listed = set(names)
    if listed & _names(files):
        return np.ones(count, dtype=bool)
    return np.array([_key(slice_id(series_id, index)) in listed for index in range(count)], dtype=bool)


def _names(files: SeriesFiles) -> set[str]:
    """All by which a scan may be listed: its file where it is one, its series, its patient."""
    file = [files.files[0].name] if len(files.files) == 1 else []
    patient = [files.patient_id] if files.patient_known else []
    return {_key(name) for name in (*file, *patient, files.series_id, file_stem(files.series_id))}


def _key(name: str) -> str:
    """Without folders and suffixes of volumes and lungs, in lower case."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return volume_stem(Path(last)).lower().removesuffix(".npz") if last else ""
