"""The last step of a cohort: its tables, lists and montages, and what `cohort.json` and its reports say of it.

In `report.html` patients are numbers (`patient 3 of 12`), and messages that name files stand in `report.md` alone, so
that the page can be shown to a colleague.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from lungsynth import html
from lungsynth.cohort.collections import recognise
from lungsynth.cohort.datalists import Datalist, Pseudonyms
from lungsynth.cohort.lidc_nodules import ASSUMED_SPACING_MM, SPACING_ASSUMED
from lungsynth.cohort.montage import lung_montage, lung_tile, nodule_montage, nodule_tile, spread
from lungsynth.cohort.schema import CLASSES, COHORT_FORMAT, EXCLUDED, SPLITS, NoduleRow, SeriesRow, SliceRow, columns
from lungsynth.cohort.series_rows import CohortRows
from lungsynth.cohort.split import split_hash
from lungsynth.ct.series import Problem
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import write_json, write_picture, write_text
from lungsynth.io.tables import csv_text, markdown_table

__all__ = [
    "cohort_page",
    "count_splits",
    "describe_sources",
    "lacks",
    "markdown_report",
    "rows_text",
    "summarise",
    "write_rows",
]

_COUNTS = ("patients", "series", "slices", "normal_slices")
_OF_SOURCES = ("patients", "series", "slices", "nodules")
_NODULES, _LUNGS = 32, 8  # pictures
_NAMES = 5  # of ids that share a note
_SIZE_EDGES_MM = (4, 6, 8, 10, 15, 20, 30)  # thresholds of nodule management, and of masses
_TABLES = (
    ("series.csv, nodules.csv", "scans and nodules, with their patients and splits"),
    ("slices/, labels/", "axial slices in HU, and their label maps"),
    ("nodules/, lungs/", "patches of nodules with soft masks, normal lungs on the generator's grid"),
    ("segmentation.json, nodules.json, lungs.json, enhancement.json", "data lists of the trainings"),
    ("report.md", "the same in text, with the names of files that were left out"),
)

Row = TypeVar("Row")


def write_rows(rows: CohortRows, out: Path, datalists: Mapping[str, Datalist]) -> None:
    """Writes `series.csv`, `nodules.csv`, the data lists by name, `pseudonyms.csv`, and the montages."""
    write_text(out / "series.csv", rows_text(rows.series, SeriesRow))
    write_text(out / "nodules.csv", rows_text(rows.nodules, NoduleRow))
    for name, datalist in datalists.items():
        write_json(out / f"{name}.json", datalist)
    write_text(out / "pseudonyms.csv", Pseudonyms.of_lists(datalists).csv())
    _write_montages(rows, out)


def rows_text(rows: Sequence[Row], row_type: type[Row]) -> str:
    """Rows of a table (`lungsynth.cohort.schema`) as CSV."""
    names = [column.name for column in columns(row_type)]
    return csv_text(pd.DataFrame([{name: getattr(row, name) for name in names} for row in rows], columns=names))


def summarise(rows: CohortRows, *, settings: Mapping[str, Any], problems: Iterable[Problem]) -> dict[str, Any]:
    """The content of `cohort.json`."""
    return {
        "format": COHORT_FORMAT,
        "settings": dict(settings),
        "sources": describe_sources(rows),
        "split_hash": split_hash((row.patient_id, row.split) for row in rows.series),
        "counts": count_splits(rows),
        "lacks": lacks(rows),
        "problems": [{"file": problem.path.name, "message": _without_folders(problem)} for problem in problems],
    }


def _without_folders(problem: Problem) -> str:
    """The message of a problem without the folders of this machine, which may name people and places, too."""
    path, message = problem.path, problem.message
    real = Path(os.path.realpath(path))  # links may lead in a circle
    for parent in (*path.parents, *path.absolute().parents, *real.parents):
        if parent.name:
            message = message.replace(f"{parent}{os.sep}", "")
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,()]+/)+", "", message)


def describe_sources(rows: CohortRows) -> list[dict[str, Any]]:
    """Name, licence, citation and counts of each source."""
    described = []
    for name in sorted({row.source for row in rows.series}):
        series = [row for row in rows.series if row.source == name]
        ids = {row.series_id for row in series}
        collection = recognise([name], folder=name)
        licences = sorted({row.licence or collection.licence for row in series})
        counts = {
            "patients": len({row.patient_id for row in series}),
            "series": len(series),
            "slices": sum(row.slices for row in series),
            "nodules": sum(row.series_id in ids for row in rows.nodules),
        }
        described.append(
            {
                "name": name,
                "licence": "; ".join(licences),
                "citation": collection.citation,
                "counts": counts,
            }
        )
    return described


def count_splits(rows: CohortRows) -> dict[str, dict[str, Any]]:
    """Patients, series, slices, normal slices and nodules by category in each split."""
    return {split: _count_split(rows, split) for split in (*SPLITS, EXCLUDED)}


def _count_split(rows: CohortRows, split: str) -> dict[str, Any]:
    series = [row for row in rows.series if row.split == split]
    slices = [row for row in rows.slices if rows.splits[row.series_id] == split]
    classes = Counter(row.texture_class for row in rows.nodules if row.split == split)
    return {
        "patients": len({row.patient_id for row in series}),
        "series": len(series),
        "slices": len(slices),
        "normal_slices": sum(row.normal for row in slices),
        "nodules": {name: classes[name] for name in CLASSES if classes[name]},
    }


def lacks(rows: CohortRows) -> list[str]:
    """What trainings and generation will miss in a cohort, a sentence each, with what to do."""
    lines = [line for split in SPLITS for line in _lacks_of_split(rows, split)]
    for name in sorted({row.source for row in rows.series}):
        ids = {row.series_id for row in rows.series if row.source == name}
        nodules = sum(row.series_id in ids for row in rows.nodules)
        normal = sum(row.normal for row in rows.slices if row.series_id in ids)
        if not nodules and not normal:
            lines.append(
                f"{name}: {len(ids)} series gave neither a nodule nor a normal slice; `report.md` says under Left out "
                "and Problems what became of them. Slices need 120 cm2 of lung (less in children), nodules a mask, "
                "boxes or annotations."
            )
    return [*lines, *_unknown(rows)]


def _unknown(rows: CohortRows) -> Iterator[str]:
    """What nobody told of nodules and normal slices."""
    nodules, normal = len(rows.nodules), sum(row.normal for row in rows.slices)
    if assumed := sum(SPACING_ASSUMED in note for piece in rows.pieces for note in piece.notes):
        yield (
            f"the pixel size of {assumed:,} of {nodules:,} nodules: {ASSUMED_SPACING_MM} mm are assumed, and sizes may "
            "be off by a third. Give the folder of their index.csv as another SOURCE."
        )
    if unknown := sum(row.texture_class == "unknown" for row in rows.nodules):
        yield (
            f"the texture of {unknown:,} of {nodules:,} nodules: they cannot be balanced by it. Give a nodules.csv "
            "with patient, nodule and texture (1 to 5), or LIDC's XML, as another SOURCE."
        )
    unread = {row.series_id for row in rows.series if row.nodule_mask == "none"}
    if unproven := sum(row.normal and row.series_id in unread for row in rows.slices):
        yield (
            f"proof that {unproven:,} of {normal:,} normal slices are normal: nobody searched their scans for nodules. "
            "Name those with disease by --not-normal, or run `lungsynth pseudo-label --cohort COHORT --out LABELLED`."
        )


def _lacks_of_split(rows: CohortRows, split: str) -> Iterator[str]:
    series = {row.series_id for row in rows.series if row.split == split}
    if not series:
        yield f"{split}: no patient. Add patients; the split is by patient, 4 to 1, and a tenth of the rest validates."
        return
    nodules = [row for row in rows.nodules if row.split == split]
    large = [row for row in nodules if not row.has_patch]
    if large:
        widest = max(row.diameter_mm for row in large)
        yield (
            f"{split}: {len(large)} of {len(nodules)} nodules do not fit a patch of {PATCH_PX * PATCH_SPACING_MM:.1f} "
            f"mm (the largest is {widest:.1f} mm): they are in whole slices, and in no training of nodules."
        )
    if len(nodules) == len(large):
        yield (
            f"{split}: no nodule{' that fits a patch' if large else ''}, so nothing of nodules can be "
            f"{'trained' if split == 'training' else 'measured'} here. Add patients with nodules, or another `seed`."
        )
    if not any(row.normal for row in rows.slices if row.series_id in series):
        yield f"{split}: no normal slice, so no real lungs. Add scans with lung around the nodules, or without nodules."


def markdown_report(cohort: Mapping[str, Any], rows: CohortRows, files: Sequence[str] = ()) -> str:
    """The text of `report.md`; `cohort` is what `cohort.json` holds, `files` are the lines of `layout.origins`."""
    return "\n".join(
        [
            "# Cohort",
            "",
            "## Split",
            "",
            *_split_lines(cohort),
            "",
            "## Sources",
            "",
            *_source_lines(cohort),
            "",
            "## What is missing",
            "",
            *_bullets(cohort.get("lacks", []), otherwise="nothing"),
            "",
            "## Masks",
            "",
            *_mask_lines(rows),
            *_figure_lines(rows),
            "",
            *(["## Files", "", *files, ""] if files else []),
            "## Left out",
            "",
            *_bullets(_joined(note for piece in rows.pieces for note in piece.notes), otherwise="nothing"),
            "",
            "## Problems",
            "",
            *_bullets([problem["message"] for problem in cohort["problems"]], otherwise="none"),
            "",
        ]
    )


def _split_lines(cohort: Mapping[str, Any]) -> Iterator[str]:
    table = [
        (split, *(counts[name] for name in _COUNTS), *(counts["nodules"].get(name, 0) for name in CLASSES))
        for split, counts in cohort["counts"].items()
    ]
    yield from markdown_table(("split", *_COUNTS, *CLASSES), table)
    yield from ("", f"Hash of the split: `{cohort['split_hash']}`")


def _source_lines(cohort: Mapping[str, Any]) -> list[str]:
    head = ("source", "licence", "citation", "patients", "series", "slices", "nodules")
    sources = cohort["sources"]
    return markdown_table(head, ((s["name"], s["licence"], s["citation"], *s["counts"].values()) for s in sources))


def _mask_lines(rows: CohortRows) -> list[str]:
    masks = Counter((row.lung_mask, row.nodule_mask) for row in rows.series)
    return markdown_table(("lung mask", "nodule mask", "series"), ((*key, n) for key, n in sorted(masks.items())))


def _figure_lines(rows: CohortRows) -> list[str]:
    figures = [piece.figures for piece in rows.pieces if piece.figures]
    head = ["", "## HU of the 8-bit crops against the HU cubes of the same nodules", ""]
    return [*head, *figures] if figures else []


def _joined(notes: Iterable[str]) -> list[str]:
    """One line for all that the same is said of, behind the first of their ids."""
    ids: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        name, _, text = note.partition(": ")
        ids[text].append(name)
    return [f"{_names(names)}: {text}" if text else ", ".join(names) for text, names in ids.items()]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES:,} more" if len(names) > _NAMES else shown


def _bullets(lines: Sequence[str], *, otherwise: str) -> list[str]:
    return [f"- {line}" for line in lines or [otherwise]]


def _write_montages(rows: CohortRows, out: Path) -> None:
    """Writes `montage_nodules.png` and `montage_lungs.png`."""
    by_class: dict[str, list[Path]] = {name: [] for name in CLASSES}
    for nodule in rows.nodules:
        if nodule.has_patch:
            by_class[nodule.texture_class].append(out / nodule.patch)
    write_picture(out / "montage_nodules.png", nodule_montage(by_class))
    lungs = sorted(out / row.lung for row in rows.slices if row.normal)
    write_picture(out / "montage_lungs.png", lung_montage(lungs))


def cohort_page(cohort: Mapping[str, Any], rows: CohortRows, out: Path) -> str:
    """The text of `report.html`.

    Args:
        cohort: what `cohort.json` holds.
        rows: of the cohort.
        out: its folder, with the files that the rows name.
    """
    counts = cohort["counts"]
    total = {name: sum(counts[split][name] for split in counts) for name in ("patients", "slices", "normal_slices")}
    return html.page(
        f"A cohort of {total['patients']:,} patients",
        "Real CT, pseudonymised here: patients are numbered. Not for diagnosis.",
        _sections(cohort, rows, out, total),
    )


def _sections(cohort: Mapping[str, Any], rows: CohortRows, out: Path, total: Mapping[str, int]) -> Iterator[str]:
    patients = sorted({row.patient_id for row in rows.series})
    problems = len(cohort["problems"])
    yield html.facts(
        {
            "patients": f"{total['patients']:,}",
            "series": f"{len(rows.series):,}",
            "slices": f"{total['slices']:,}",
            "normal slices": f"{total['normal_slices']:,}",
            "nodules": f"{len(rows.nodules):,}",
            "files that could not be used": f"{problems:,}",
        }
    )
    yield html.warnings(list(_warnings(cohort, rows)))
    yield html.section("Asked", html.table(("", ""), _asked(cohort["settings"])))
    yield html.section("Split by patient", html.table(("split", *_COUNTS, "nodules by texture"), _page_split(cohort)))
    yield html.section("Sources", html.table(("source", "licence", "citation", *_OF_SOURCES), _page_sources(cohort)))
    yield html.section("A slice as it is", *_full_size(rows, out, patients))
    nodules = [row for row in rows.nodules if row.has_patch]
    shown = [(_picture(nodule_tile(out / row.patch)), _caption(row, patients)) for row in spread(nodules, _NODULES)]
    yield html.section("Nodules", html.paragraph("Their largest slices, the mask outlined."), html.pictures(shown))
    normal = spread([row for row in rows.slices if row.normal], _LUNGS)
    lungs = [(_picture(lung_tile(out / row.lung)), "no labelled nodule near it") for row in normal]
    yield html.section("Normal lungs", html.pictures(lungs, photo=True))
    yield html.section(
        "Distributions", html.paragraph("Percent of the nodules."), f'<div class="charts">{_charts(rows)}</div>'
    )
    yield html.section("Data set card", html.table(("", ""), _card(cohort)))
    yield html.section("Repeat it", html.code(_command(cohort["settings"])))


def _warnings(cohort: Mapping[str, Any], rows: CohortRows) -> Iterator[str]:
    yield from (f"{text[0].upper()}{text[1:]}" for text in cohort.get("lacks", ()))
    if unknown := len({row.patient_id for row in rows.series if not row.patient_known}):
        yield f"Of {unknown:,} series nobody tells the patient: each counts as a patient of its own."
    if problems := len(cohort["problems"]):
        yield f"{problems:,} files could not be used. report.md says which, and why."


def _asked(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if name != "sources":
            yield name.replace("_", " "), str(value)


def _page_split(cohort: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for split, counts in cohort["counts"].items():
        nodules = ", ".join(f"{number} {name}" for name, number in counts["nodules"].items())
        yield split, *(counts[name] for name in _COUNTS), nodules or "none"


def _page_sources(cohort: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for source in cohort["sources"]:
        yield (
            source["name"],
            source["licence"],
            source["citation"],
            *(source["counts"][key] for key in _OF_SOURCES),
        )


def _full_size(rows: CohortRows, out: Path, patients: Sequence[str]) -> Iterator[str]:
    """A slice that shows a nodule, if one does."""
    owners = {row.series_id: row.patient_id for row in rows.series}
    slices: Sequence[SliceRow] = [row for row in rows.slices if row.shows_nodule] or list(rows.slices)
    if not slices:
        yield html.paragraph("The sources hold no whole slices.")
        return
    row = slices[len(slices) // 2]
    try:
        hu, _ = read_plane(out / row.image)
    except InputError:
        return
    number = _number(patients, owners.get(row.series_id, ""))
    yield html.paragraph("Lung window, -600/1500 HU, one screen pixel for each of the image.")
    yield html.pictures([(Image.fromarray(DISPLAY_WINDOW.to_grey(hu)), f"patient {number}")])


def _picture(tile: np.ndarray) -> Image.Image:
    return Image.fromarray(tile)


def _caption(row: NoduleRow, patients: Sequence[str]) -> str:
    size = "" if np.isnan(row.diameter_mm) else f", {row.diameter_mm:.0f} mm"
    return f"{row.texture_class}{size}, patient {_number(patients, row.patient_id)}"


def _number(patients: Sequence[str], patient: str) -> str:
    return f"{patients.index(patient) + 1} of {len(patients)}" if patient in patients else "unknown"


def _charts(rows: CohortRows) -> str:
    parts = {split: [row for row in rows.nodules if row.split == split] for split in SPLITS}
    names = [f"<{_SIZE_EDGES_MM[0]}", *(f"-{edge}" for edge in _SIZE_EDGES_MM[1:]), f">{_SIZE_EDGES_MM[-1]}"]
    sizes = {
        split: np.bincount(
            np.searchsorted(_SIZE_EDGES_MM, [r.diameter_mm for r in own if not np.isnan(r.diameter_mm)], side="right"),
            minlength=len(names),
        ).tolist()
        for split, own in parts.items()
    }
    textures = sorted({row.texture_class for row in rows.nodules})
    kinds = {
        split: [sum(row.texture_class == name for row in own) for name in textures] for split, own in parts.items()
    }
    per_patient = Counter(Counter(row.patient_id for row in rows.nodules).values())
    many = [str(number) for number in sorted(per_patient)]
    charts = [html.bars("diameter, mm", names, sizes)] if rows.nodules else []
    charts += [html.bars("texture", textures, kinds)] if textures else []
    if many:
        numbers = [per_patient[int(number)] for number in many]
        charts.append(html.bars("nodules of a patient who has any", many, {"patients": numbers}))
    return "".join(charts)


def _card(cohort: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    terms = "; ".join(f"{source['name']}: {source['licence']}" for source in cohort["sources"])
    yield "licence", f"{terms}. The cohort is a changed copy of these; each keeps its terms."
    yield "what it is", "Real CT of patients. The files carry the ids of their sources; look before you pass them on."
    yield (
        "limits",
        (
            "Masks are as good as their source; lungs without drawn masks are outlined by threshold. A slice counts as "
            "normal where no nodule is labelled near it, which is no proof that it shows no disease."
        ),
    )
    yield from _TABLES


def _command(settings: Mapping[str, Any]) -> str:
    words = ["lungsynth prepare SOURCE ... --out COHORT"]
    words += [
        f"--{name} {settings[name]}" for name in ("split", "seed", "fold") if settings.get(name) not in ("auto", 0)
    ]
    if settings.get("lung_size_px", 256) != 256:
        words.append(f"--lung-size {settings['lung_size_px']}")
    return " ".join(words)
