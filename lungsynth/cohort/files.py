"""The files of a cohort: JSON, tables and arrays, read in the words of today, with one error for what is damaged."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lungsynth.cohort.schema import (
    FORMAT_1_NAMES,
    columns,
    from_format_1,
    from_mapping,
)
from lungsynth.errors import InputError

__all__ = ["damaged", "read_arrays", "read_cohort_json", "read_table"]

_REMEDY = "Give `cohort` a folder that `lungsynth prepare` wrote."
_DAMAGED = (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
_OLD_NAMES = {new: old for old, new in FORMAT_1_NAMES.items()}

Row = TypeVar("Row")


def read_arrays(path: Path, *names: str) -> tuple[np.ndarray, ...]:
    """Arrays of an npz of a cohort.

    Args:
        path: the file.
        names: of its arrays.

    Raises:
        InputError: naming the file, when it is missing or damaged, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            old = {name: _OLD_NAMES[name] for name in names if name not in arrays and name in _OLD_NAMES}
            return tuple(arrays[old.get(name, name)] for name in names)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. Prepare the cohort again.") from error
    except _DAMAGED as error:
        raise damaged(path, error) from error


def read_cohort_json(path: Path) -> dict[str, Any]:
    """A JSON file of a cohort, in the words of today.

    Raises:
        InputError: naming the file, when it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, f"a {type(content).__name__} in place of an object")
    return dict(from_format_1(content))


def read_table(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """Typed rows of a table of a cohort; empty cells have the default.

    Raises:
        InputError: naming the file, when it is missing or damaged.
    """
    kinds = {column.name: column.kind for column in columns(row_type)}
    texts = {name: str for name, kind in kinds.items() if kind is str}
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
        for row in table.to_dict("records"):
            values = {str(name): value for name, value in row.items() if not pd.isna(value)}
            values |= {name: int(value) for name, value in values.items() if kinds.get(name) is int}
            yield from_mapping(row_type, values)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. {_REMEDY}") from error
    except _DAMAGED as error:
        raise damaged(path, error) from error


def damaged(path: Path, what: object) -> InputError:
    """The one error for a file of a cohort that cannot be read, with the way out."""
    return InputError(f"{path}: cannot be read as a file of a cohort ({what}). Prepare the cohort again. {_REMEDY}")
