"""Tables that name the patient of a series, such as LIDC's for LUNA16; recognised by their columns."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from lungsynth.ct.series import Problem
from lungsynth.errors import InputError

__all__ = ["read_patient_map", "read_patient_maps"]

_SERIES_COLUMNS = ("seriesuid", "series_uid")
_PATIENT_COLUMNS = ("patient", "patient_id")
_UNREADABLE = (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError)


def read_patient_map(path: Path) -> dict[str, str]:
    """Patients by series id; empty when the table has not both columns.

    Raises:
        InputError: when the table gives a series two patients.
    """
    try:
        header = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
        series = next((name for name in _SERIES_COLUMNS if name in header), None)
        patient = next((name for name in _PATIENT_COLUMNS if name in header), None)
        if series is None or patient is None:
            return {}
        table = pd.read_csv(path, usecols=[series, patient], dtype=str, encoding="utf-8-sig")
    except _UNREADABLE:
        return {}  # whoever needs this file for something else will say what is wrong with it
    pairs = table.dropna().drop_duplicates()
    if (twice := pairs[series].duplicated()).any():
        raise InputError(f"{path}: series {pairs[series][twice].iloc[0]} has two patients; keep one row of them.")
    return dict(zip(pairs[series], pairs[patient], strict=True))


def read_patient_maps(sources: Iterable[Path]) -> tuple[dict[str, str], list[Problem]]:
    """The maps of all sources as one: a table in one source may name the patients of another's series."""
    patients: dict[str, str] = {}
    problems = []
    for source in sources:
        for path in sorted(source.rglob("*.csv")) if source.is_dir() else []:
            try:
                patients.update(read_patient_map(path))
            except InputError as error:
                problems.append(Problem(path, str(error)))
    return patients, problems
