"""The detectors' part of the report: rows of `utility.json`, a page, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.metrics.bootstrap import Estimate
from evaluation.plots import plot_file
from evaluation.tables import markdown_table
from evaluation.utility.arms import REAL_WINDOWS
from evaluation.utility.worth import FIGURES, MAIN_FIGURE, MIDDLE_FIGURE, WorthRow, power

__all__ = ["save_worth_plot", "worth_json", "worth_markdown"]

_TITLE = "How many patients are synthetic nodules worth?"
_HEAD = (
    "training",
    "sensitivity at 0.5",
    "worth, patients",
    "gap closed",
    "against real only",
    "against copy-paste",
    "in the middle",
    "against real only, in the middle",
    "Dice",
    "chosen",
)


def worth_json(row: WorthRow, network: str) -> dict[str, Any]:
    """A row of `utility.json`."""
    return {
        "task": "detection",
        "model": network,
        "patients": row.patients,
        "arm": row.arm.family,
        "title": row.arm.title,
        "dose": row.arm.dose,
        "chosen": row.chosen,
        "figure": row.figure,
        "value": row.value.value,
        "interval": [row.value.low, row.value.high],
        "worth_patients": _triple(row.worth_patients),
        "gap_closed": _triple(row.gap_closed),
        "vs_real_only": _triple(row.vs_real_only),
        "vs_copy_paste": _triple(row.vs_copy_paste),
        "own_generator": row.own_generator,
        "n": row.n,
        "seeds": row.seeds,
    }


def worth_markdown(rows: Sequence[WorthRow], facts: Mapping[str, Any]) -> str:
    """A section for each number of patients."""
    split = facts.get("split", "test")
    text = (
        f"# {_TITLE}\n\nNodules of {split} patients in real windows of 67 x 67 mm, and windows without a nodule; "
        "figures with 95 % intervals over seeds and patients. Sensitivity is that at 0.5 false positives per 100 cm2; "
        "*in the middle* counts false positives only where the nodules of these windows can lie. A dose is the share "
        "of windows with an inserted nodule; *chosen* is the one with the best figure on validation patients.\n"
    )
    for patients in sorted({row.patients for row in rows}):
        own = [row for row in rows if row.patients == patients]
        n, seeds = max(row.n for row in own), sorted({row.seeds for row in own})
        text += f"\n## {patients} patients (n {n}, seeds {', '.join(map(str, seeds))})\n\n"
        text += markdown_table(_HEAD, [_cells(own, arm) for arm in dict.fromkeys(row.arm for row in own)])
        text += "\n" + _groups_table(own)
        if widths := power(own):
            seen = "; ".join(f"{name} {width:.3f}" for name, width in widths.items())
            text += f"\nHalf of the widest interval of a difference to real only, what this test can see: {seen}.\n"
    return text


def _cells(rows: Sequence[WorthRow], arm: Any) -> list[str]:
    by_figure = {row.figure: row for row in rows if row.arm == arm}
    main = by_figure[MAIN_FIGURE]
    return [
        arm.title,
        _text(main.value),
        _text(main.worth_patients, "{:.0f}"),
        _text(main.gap_closed, "{:.2f}"),
        _text(main.vs_real_only, "{:+.3f}"),
        _text(main.vs_copy_paste, "{:+.3f}"),
        _text(by_figure[MIDDLE_FIGURE].value),
        _text(by_figure[MIDDLE_FIGURE].vs_real_only, "{:+.3f}"),
        _text(by_figure["dice"].value),
        "yes" if main.chosen and arm.dose else "",
    ]


def _groups_table(rows: Sequence[WorthRow]) -> str:
    """Sensitivity by texture and size."""
    names = [name for name in FIGURES if name.startswith(f"{MAIN_FIGURE}, ") and name != MIDDLE_FIGURE]
    counts = {row.figure: row.n for row in rows}
    head = [
        "sensitivity at 0.5",
        *(f"{name.partition(', ')[2].replace('_', ' ')} (n {counts[name]})" for name in names),
    ]
    lines = [
        [arm.title, *(_text(row.value) for name in names for row in rows if row.arm == arm and row.figure == name)]
        for arm in dict.fromkeys(row.arm for row in rows)
    ]
    return markdown_table(head, lines)


def _triple(figure: Estimate | None) -> list[float | None] | None:
    return None if figure is None else [figure.value, figure.low, figure.high]


def _text(figure: Estimate | None, form: str = "{:.3f}") -> str:
    if figure is None or figure.value is None:
        return "-"
    value = form.format(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({form.format(figure.low)} to {form.format(figure.high)})"


def save_worth_plot(rows: Sequence[WorthRow], path: Path) -> Path:
    """Writes a PNG: sensitivity over the number of patients, real only as the curve, chosen arms beside it."""
    main = [row for row in rows if row.figure == MAIN_FIGURE and row.chosen and row.value.value is not None]
    with plot_file(path, columns=1, panel_inches=(7, 5)) as (axes,):
        for index, family in enumerate(dict.fromkeys(row.arm.family for row in main)):
            own = [row for row in main if row.arm.family == family]
            values = [float(row.value.value or 0) for row in own]
            bars = [
                [max(0.0, value - (row.value.low or value)) for row, value in zip(own, values, strict=True)],
                [max(0.0, (row.value.high or value) - value) for row, value in zip(own, values, strict=True)],
            ]
            shift = 1 + 0.03 * index  # beside one another
            style = {"fmt": "o-" if family == REAL_WINDOWS.family else "s", "capsize": 2, "color": f"C{index}"}
            axes.errorbar([row.patients * shift for row in own], values, yerr=bars, label=family, **style)
        axes.set_xscale("log")
        axes.set(title=_TITLE, xlabel="patients", ylabel="sensitivity at 0.5 false positives per 100 cm2")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return path
