"""Tables as Markdown and JSON: figures with their intervals, and the paper's figures in a column beside ours.

All tables of the evaluation use it. A figure that a method does not have is `-` in Markdown and null in JSON.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.methods import Method, Relation
from evaluation.metrics.bootstrap import Estimate, Estimates

__all__ = [
    "Column",
    "TableRow",
    "format_estimate",
    "json_estimates",
    "json_rows",
    "markdown_rows",
    "markdown_table",
    "paper_table",
    "relation_notes",
    "used_columns",
]

_NONE = "-"  # in Markdown
_RELATIONS: Mapping[Relation, str] = {
    "held_out": "The evaluated patients were held out from the training (same split) of: ",
    "other_collections": "Trained on other collections than the evaluated ones: ",
    "may_have_trained": "**May have been trained on evaluated patients** (another split of the same collections, "
    "or nothing known): ",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        key: of the figure in a row.
        title: over the column.
        unit: what is counted, in the plural (`nodules`, `slices`).
        digits: after the point.
        in_paper: whether a column with the paper's figures stands beside it.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 3
    in_paper: bool = False


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table.

    Args:
        name: in JSON.
        title: in Markdown.
        figures: estimates, plain numbers or None, by key.
        paper: the paper's figures by key.
        marks: a sign after a figure, by key, for a footnote.
    """

    name: str
    title: str
    figures: Mapping[str, Estimate | float | None]
    paper: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)


def format_estimate(figure: Estimate | float | None, *, digits: int = 3) -> str:
    """`0.943 (0.921-0.962)`; without an interval where there is none."""
    if not isinstance(figure, Estimate):
        return _NONE if figure is None else f"{figure:,.{digits}f}"
    if figure.value is None:
        return _NONE
    text = f"{figure.value:,.{digits}f}"
    return text if figure.low is None else f"{text} ({figure.low:,.{digits}f}-{figure.high:,.{digits}f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; ends with a line break."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def paper_table(first: str, columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """A table of methods; its first row says what was counted, and the paper's column stands beside ours.

    Args:
        first: title of the first column.
        columns: what is shown; one that no row has a figure for stays, as `-`.
        rows: the methods.
    """
    head, counts = [first], ["*n*"]
    for column in columns:
        head += [column.title] + ["paper"] * column.in_paper
        counts += [_count_text(column, rows)] + [""] * column.in_paper
    return markdown_table(head, [counts, *markdown_rows(columns, rows)])


def markdown_rows(columns: Sequence[Column], rows: Sequence[TableRow]) -> list[list[str]]:
    """The cells of each row."""
    lines = []
    for row in rows:
        cells = [row.title]
        for column in columns:
            text = format_estimate(row.figures.get(column.key), digits=column.digits)
            cells.append(text + (row.marks.get(column.key, "") if text != _NONE else ""))
            if column.in_paper:
                cells.append(format_estimate(row.paper.get(column.key), digits=min(column.digits, 3)))
        lines.append(cells)
    return lines


def json_rows(columns: Sequence[Column], rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """A dictionary a row: plain numbers by key, with `intervals`, `n`, `patients` and `paper` beside them."""
    objects = []
    for row in rows:
        estimates = {column.key: row.figures.get(column.key) for column in columns}
        full = {key: figure for key, figure in estimates.items() if isinstance(figure, Estimate)}
        objects.append(
            {
                "method": row.name,
                **{key: _plain(figure) for key, figure in estimates.items()},
                "intervals": {key: [figure.low, figure.high] for key, figure in full.items()},
                "n": {key: figure.n for key, figure in full.items()},
                "patients": {key: figure.patients for key, figure in full.items()},
                "paper": {column.key: row.paper.get(column.key) for column in columns if column.in_paper},
            }
        )
    return objects


def json_estimates(figures: Estimates) -> dict[str, dict[str, Any]]:
    """Figures with their intervals, as JSON has them."""
    return {name: asdict(figure) for name, figure in figures.items()}


def used_columns(columns: Iterable[Column], rows: Sequence[TableRow]) -> list[Column]:
    """The columns that a row has a figure for."""
    return [column for column in columns if any(row.figures.get(column.key) is not None for row in rows)]


def relation_notes(methods: Iterable[Method]) -> Iterator[str]:
    """Which methods may have been trained on the evaluated patients."""
    rows = list(methods)
    for relation, text in _RELATIONS.items():
        if titles := [method.title for method in rows if method.relation == relation]:
            yield text + ", ".join(titles) + "."


def _plain(figure: Estimate | float | None) -> float | int | None:
    return figure.value if isinstance(figure, Estimate) else figure


def _count_text(column: Column, rows: Sequence[TableRow]) -> str:
    figures = [figure for row in rows if isinstance(figure := row.figures.get(column.key), Estimate)]
    largest = max(figures, key=lambda figure: figure.n, default=None)
    if largest is None or not column.unit:
        return ""
    text = _with_unit(largest.n, column.unit)
    return f"{text}, {_with_unit(largest.patients, 'patients')}" if largest.patients else text


def _with_unit(count: int, unit: str) -> str:
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"
