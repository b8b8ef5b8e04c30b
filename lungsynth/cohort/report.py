"""`cohort.json`, `report.md` and the montages: what is in a cohort, what was left out and why.

The last step of a cohort: its tables, lists and montages, and what `cohort.json` says of it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungsynth.cohort.collections import recognise
from lungsynth.cohort.datalists import Datalist
from lungsynth.cohort.montage import lung_montage, nodule_montage
from lungsynth.cohort.output import COHORT_FORMAT
from lungsynth.cohort.records import NoduleRow, SeriesRow, SeriesRows, SliceRow
from lungsynth.cohort.split import EXCLUDED, SPLITS, split_hash
from lungsynth.cohort.tables import nodule_table, series_table, to_csv
from lungsynth.ct.series import Problem
from lungsynth.io.atomic import write_json, write_picture, write_text

__all__ = [
    "CLASSES",
    "Contents",
    "count_splits",
    "describe_sources",
    "markdown_report",
    "markdown_table",
    "summarise",
    "write_contents",
    "write_montages",
]

CLASSES = ("solid", "part_solid", "ground_glass", "unknown")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All rows of a cohort and the split of each series id."""

    parts: tuple[SeriesRows, ...]
    splits: dict[str, str]

    @property
    def series(self) -> list[SeriesRow]:
        return [row for part in self.parts for row in part.series]

    @property
    def slices(self) -> list[SliceRow]:
        return [row for part in self.parts for row in part.slices]

    @property
    def nodules(self) -> list[NoduleRow]:
        return [row for part in self.parts for row in part.nodules]


def describe_sources(contents: Contents) -> list[dict[str, Any]]:
    """Name, licence, citation and counts of each source."""
    described = []
    for name in sorted({row.source for row in contents.series}):
        series = [row for row in contents.series if row.source == name]
        ids = {row.series_id for row in series}
        collection = recognise([name], folder=name)
        counts = {
            "patients": len({row.patient_id for row in series}),
            "series": len(series),
            "slices": sum(row.slices for row in series),
            "nodules": sum(row.series_id in ids for row in contents.nodules),
        }
        described.append(
            {"name": name, "licence": collection.licence, "citation": collection.citation, "counts": counts}
        )
    return described


def count_splits(contents: Contents) -> dict[str, dict[str, Any]]:
    """Patients, series, slices, normal slices and nodules by category in each split."""
    counts = {}
    for split in (*SPLITS, EXCLUDED):
        series = [row for row in contents.series if contents.splits[row.series_id] == split]
        ids = {row.series_id for row in series}
        slices = [row for row in contents.slices if row.series_id in ids]
        classes = Counter(row.texture_class for row in contents.nodules if row.series_id in ids)
        counts[split] = {
            "patients": len({row.patient_id for row in series}),
            "series": len(series),
            "slices": len(slices),
            "normal_slices": sum(row.normal for row in slices),
            "nodules": {name: classes[name] for name in CLASSES if classes[name]},
        }
    return counts


def markdown_report(cohort: dict[str, Any], contents: Contents) -> str:
    """The text of `report.md`; `cohort` is what `cohort.json` holds."""
    lines = ["# Cohort", "", "## Split", ""]
    names = ("patients", "series", "slices", "normal_slices")
    rows = [
        (split, *(n[name] for name in names), *(n["nodules"].get(name, 0) for name in CLASSES))
        for split, n in cohort["counts"].items()
    ]
    lines += markdown_table(("split", *names, *CLASSES), rows)
    lines += ["", f"Hash of the split: `{cohort['split_hash']}`", "", "## Sources", ""]
    lines += markdown_table(
        ("source", "licence", "citation", "patients", "series", "slices", "nodules"),
        ((s["name"], s["licence"], s["citation"], *s["counts"].values()) for s in cohort["sources"]),
    )
    masks = Counter((row.lung_mask, row.nodule_mask) for row in contents.series)
    lines += ["", "## Masks", ""]
    lines += markdown_table(("lung mask", "nodule mask", "series"), ((*key, n) for key, n in sorted(masks.items())))
    figures = [part.figures for part in contents.parts if part.figures]
    if figures:
        lines += ["", "## HU of the 8-bit crops against the HU cubes of the same nodules", "", *figures]
    notes = [note for part in contents.parts for note in part.notes]
    lines += ["", "## Left out", "", *(f"- {note}" for note in notes or ["nothing"])]
    problems = [problem["message"] for problem in cohort["problems"]]
    lines += ["", "## Problems", "", *(f"- {message}" for message in problems or ["none"])]
    return "\n".join(lines) + "\n"


def write_montages(contents: Contents, out: Path) -> None:
    """Writes `montage_nodules.png` and `montage_lungs.png`."""
    by_class: dict[str, list[Path]] = {name: [] for name in CLASSES}
    for nodule in sorted(contents.nodules, key=lambda row: row.nodule_id):
        if nodule.has_patch:
            by_class[nodule.texture_class].append(out / "nodules" / f"{nodule.nodule_id}.npz")
    lungs = sorted(out / "lungs" / f"{row.slice_id}.npz" for row in contents.slices if row.normal)
    write_picture(out / "montage_nodules.png", nodule_montage(by_class))
    write_picture(out / "montage_lungs.png", lung_montage(lungs))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in cells]


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
