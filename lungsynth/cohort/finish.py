"""The last step of a cohort: its tables, lists and montages, and what `cohort.json` says of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lungsynth.cohort.datalists import Datalist
from lungsynth.cohort.output import COHORT_FORMAT
from lungsynth.cohort.records import write_text
from lungsynth.cohort.report import Contents, count_splits, describe_sources, write_json, write_montages
from lungsynth.cohort.split import split_hash
from lungsynth.cohort.tables import nodule_table, series_table, to_csv
from lungsynth.ct.series import Problem

__all__ = ["summarise", "write_contents"]


def write_contents(contents: Contents, out: Path, datalists: Mapping[str, Datalist]) -> None:
    """Writes `series.csv`, `nodules.csv`, the datalists by name, and the montages."""
    write_text(out / "series.csv", to_csv(series_table(contents.series, contents.splits)))
    write_text(out / "nodules.csv", to_csv(nodule_table(contents.nodules, contents.splits)))
    for name, datalist in datalists.items():
        write_json(out / f"{name}.json", datalist)
    write_montages(contents, out)


def summarise(contents: Contents, *, settings: Mapping[str, Any], problems: Iterable[Problem]) -> dict[str, Any]:
    """The content of `cohort.json` (contract C5.1)."""
    return {
        "format": COHORT_FORMAT,
        "settings": dict(settings),
        "sources": describe_sources(contents),
        "split_hash": split_hash(contents.series, contents.splits),
        "counts": count_splits(contents),
        "problems": [{"file": problem.path.name, "message": problem.message} for problem in problems],
    }
