"""The files of a cohort: JSON, tables and arrays, read in the words of today, with one error for what is damaged."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
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
from lungsynth.geometry import PATCH_PX
from lungsynth.io.stored import anything, integers, lists, mappings, objects, read_json, texts

__all__ = ["damaged", "read_arrays", "read_cohort_json", "read_table"]

_REMEDY = "Give `cohort` a folder that `lungsynth prepare` wrote."
_DAMAGED = (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
_GRIDS = ("hu", "alpha", "mask", "context", "valid")  # arrays of one file that lie on one grid
_ENTRIES = mappings(lists(mappings(anything)))
_LISTS = ("nodules", "cubes", "lungs", "segmentation", "enhancement")
_SCHEMAS = {f"{name}.json": _ENTRIES for name in _LISTS}
_SCHEMAS["cohort.json"] = objects(
    {},
    {
        "format": integers(1),
        "settings": mappings(anything),
        "sources": lists(mappings(anything)),
        "split_hash": texts(),
        "counts": mappings(mappings(anything)),
        "problems": lists(objects({"message": texts()})),
        "pseudo_labels": mappings(anything),
    },
)
_OLD_NAMES = {new: old for old, new in FORMAT_1_NAMES.items()}

Row = TypeVar("Row")


def read_arrays(path: Path, *names: str) -> tuple[np.ndarray, ...]:
    """Arrays of an npz of a cohort.

    Args:
        path: the file.
        names: of its arrays.

    Raises:
        InputError: naming the file, when it is missing or damaged, lacks an array, or has one that does not go with
            the others.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            old = {name: _OLD_NAMES[name] for name in names if name not in arrays and name in _OLD_NAMES}
            found = {name: arrays[old.get(name, name)] for name in names}
        _check_arrays(found)
        return tuple(found.values())
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. Prepare the cohort again.") from error
    except _DAMAGED as error:
        raise damaged(path, error) from error


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where arrays of one file are no numbers or not on one grid."""
    grids = {name: array for name, array in arrays.items() if name in _GRIDS}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise ValueError(f"`{name}` holds values that are no numbers")
    shapes = {name: array.shape for name, array in grids.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"its arrays differ in shape: {shapes}")
    if "alpha" in shapes and (len(shapes["alpha"]) != 3 or shapes["alpha"][1:] != (PATCH_PX, PATCH_PX)):
        raise ValueError(f"`alpha` should have the shape (n, {PATCH_PX}, {PATCH_PX}), it has {shapes['alpha']}")
    if (largest := arrays.get("largest")) is not None and grids:
        slices = len(next(iter(grids.values())))
        if largest.shape or largest.dtype.kind not in "iu" or not 0 <= int(largest) < slices:
            raise ValueError(f"`largest` should be the number of one of {slices} slices")


def read_cohort_json(path: Path) -> dict[str, Any]:
    """A JSON file of a cohort, in the words of today.

    Raises:
        InputError: naming the file, when it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected this file of a cohort, found none. {_REMEDY}")
    schema = _SCHEMAS.get(path.name, mappings(anything))
    content = read_json(path, schema, what="a file of a cohort", remedy=f"Prepare the cohort again. {_REMEDY}")
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
            yield from_mapping(row_type, {name: _plain(value, kinds.get(name)) for name, value in values.items()})
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. {_REMEDY}") from error
    except _DAMAGED as error:
        raise damaged(path, error) from error


def _plain(value: Any, kind: Any) -> Any:
    """A cell as JSON would have it: pandas makes floats of whole numbers in a column with empty cells."""
    number = value.item() if isinstance(value, np.generic) else value
    return int(number) if kind is int and isinstance(number, float) and number.is_integer() else number


def damaged(path: Path, what: object) -> InputError:
    """The one error for a file of a cohort that cannot be read, with the way out."""
    return InputError(f"{path}: cannot be read as a file of a cohort ({what}). Prepare the cohort again. {_REMEDY}")
