"""Tables and durations as text."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

__all__ = ["csv_text", "duration", "markdown_table"]


def csv_text(table: pd.DataFrame) -> str:
    """CSV, numbers with at most 4 decimals, missing ones empty."""
    text = io.StringIO()
    rounded = table.copy()
    for name in rounded.select_dtypes("float"):
        rounded[name] = rounded[name].round(4)
    rounded.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in cells]


def duration(seconds: float) -> str:
    """For a report: seconds, or minutes from two on."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
