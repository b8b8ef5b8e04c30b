"""LUNA16's `annotations.csv`: nodules as spheres, in LPS mm.

Tables are recognised by their columns, not by their names. `candidates.csv` has no diameter and is no annotation;
`annotations_excluded.csv` holds findings that do not count and is left alone.
"""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from lungsynth.ct.series import NoduleSphere
from lungsynth.ct.write import ANNOTATION_COLUMNS
from lungsynth.errors import InputError

__all__ = ["is_annotations", "read_luna16_annotations"]


def is_annotations(path: Path) -> bool:
    """Whether a CSV holds annotations, by its columns or by being called `annotations.csv`."""
    name = path.name.lower()
    return "excluded" not in name and (name == "annotations.csv" or set(ANNOTATION_COLUMNS) <= set(_columns(path)))


def read_luna16_annotations(path: Path, known_series: Collection[str] | None = None) -> tuple[NoduleSphere, ...]:
    """Reads an `annotations.csv`.

    Args:
        path: CSV with the columns seriesuid, coordX, coordY, coordZ, diameter_mm.
        known_series: the series at hand; None accepts any.

    Raises:
        InputError: on missing columns, values that are no numbers, and series that are not at hand.
    """
    table = _read_table(path)
    if missing := [name for name in ANNOTATION_COLUMNS if name not in table]:
        raise InputError(
            f"{path}: missing columns {', '.join(missing)}; an annotations file needs {','.join(ANNOTATION_COLUMNS)}, "
            f"got {','.join(map(str, table.columns))}. Rename or add them."
        )
    unknown = [] if known_series is None else sorted(set(table["seriesuid"]) - set(known_series))
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} unknown series, first {unknown[0]}: no image of that name is in the source. "
            "Add its image, delete its rows, or say that the source is a part of its collection (`subset`)."
        )
    numbers = table[list(ANNOTATION_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    if (bad := numbers.isna().any(axis=1)).any():
        raise InputError(
            f"{path}: row {int(bad.idxmax()) + 2} has a coordinate or diameter that is no number; mend it."
        )
    return tuple(
        NoduleSphere(series_id=series, centre_lps_mm=(x, y, z), diameter_mm=diameter)
        for series, (x, y, z, diameter) in zip(table["seriesuid"], numbers.to_numpy(float).tolist(), strict=True)
    )


def _columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return [name.strip().strip('"') for name in stream.readline().split(",")]


def _read_table(path: Path) -> pd.DataFrame:
    """All cells as text, so that ids stay as they are written."""
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            f"{path}: could not be read as CSV ({error}); write it again as comma-separated UTF-8."
        ) from error
    return table.rename(columns=lambda name: str(name).strip())
