"""`series.csv` and `nodules.csv` (contract C5.1), in the order of their ids."""

import io
from collections.abc import Iterable, Mapping

import pandas as pd

from lungsynth.cohort.records import RATINGS, NoduleRow, SeriesRow

__all__ = ["NODULE_COLUMNS", "SERIES_COLUMNS", "nodule_table", "series_table", "to_csv"]

SERIES_COLUMNS = (
    "series_id",
    "patient_id",
    "patient_known",
    "source",
    "split",
    "slices",
    "spacing_slice_mm",
    "spacing_row_mm",
    "spacing_column_mm",
    "lung_mask",
    "nodule_mask",
)
NODULE_COLUMNS = (
    "nodule_id",
    "patient_id",
    "series_id",
    "source",
    "split",
    "texture_class",
    "diameter_mm",
    "votes",
    "mean_hu",
    "solid_fraction",
    "reader_diameter_mm",
    *RATINGS,
    "x_mm",
    "y_mm",
    "z_mm",
)


def series_table(series: Iterable[SeriesRow], splits: Mapping[str, str]) -> pd.DataFrame:
    """One line a series; `splits` by series id."""
    rows = [
        {name: splits[row.series_id] if name == "split" else getattr(row, name) for name in SERIES_COLUMNS}
        for row in sorted(series, key=lambda row: row.series_id)
    ]
    return pd.DataFrame(rows, columns=list(SERIES_COLUMNS))


def nodule_table(nodules: Iterable[NoduleRow], splits: Mapping[str, str]) -> pd.DataFrame:
    """One line a nodule, also for those too large for a patch; `splits` by series id."""
    rows = []
    for row in sorted(nodules, key=lambda row: row.nodule_id):
        centre = dict(zip(("x_mm", "y_mm", "z_mm"), row.centre_lps_mm or (), strict=False))
        values = {**vars(row), **row.attributes, **centre, "split": splits[row.series_id]}
        rows.append({name: values.get(name) for name in NODULE_COLUMNS})
    return pd.DataFrame(rows, columns=list(NODULE_COLUMNS))


def to_csv(table: pd.DataFrame) -> str:
    """CSV text, numbers with at most 4 decimals, missing ones empty."""
    text = io.StringIO()
    rounded = table.copy()
    for name in rounded.select_dtypes("float"):
        rounded[name] = rounded[name].round(4)
    rounded.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()
