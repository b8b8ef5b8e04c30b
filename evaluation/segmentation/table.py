"""Table I as JSON and as Markdown: methods of segmentation, with notes on whom the figures hold for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.cohort_subsets import Subset
from evaluation.methods import Method
from evaluation.metrics.bootstrap import Estimate, Estimates
from evaluation.metrics.froc import CPM_RATES, Froc
from evaluation.paper import TABLE_1
from evaluation.segmentation.detectors import OWN
from evaluation.segmentation.figures import MIN_LESIONS, SegmentationFigures
from evaluation.segmentation.records import SegmentationResult
from evaluation.tables import (
    Column,
    TableRow,
    json_estimates,
    json_rows,
    markdown_table,
    paper_table,
    relation_notes,
)

__all__ = ["MeasuredDetector", "table_1_json", "table_1_markdown"]

_COLUMNS = (
    Column(key="sensitivity_at_0.5", title="Sensitivity at 0.5 false positives per 100 cm2", unit="nodules"),
    Column(key="sensitivity", title="Sensitivity", unit="nodules", in_paper=True),
    Column(key="nodules_per_scan", title="Segmented nodules per scan", unit="scans", digits=1, in_paper=True),
    Column(key="accuracy", title="Accuracy", unit="slices", in_paper=True),
    Column(key="balanced_accuracy", title="Balanced accuracy", unit="slices"),
    Column(key="dice", title="Dice", unit="slices"),
    Column(key="cpm", title="CPM", unit="lesions"),
    Column(key="false_positives_per_slice", title="False positives per slice", unit="slices", digits=2),
    Column(key="false_positives_per_scan", title="False positives per scan", unit="scans", digits=1),
    Column(key="parameters", title="Parameters", digits=0),
    Column(key="seconds_per_scan", title="Seconds per scan", unit="scans", digits=1),
    Column(key="train_minutes", title="Training, minutes", digits=0),
)
_WINDOW_COLUMNS = (
    Column(key="sensitivity_at_0.25", title="Sensitivity at 0.25 false positives per 100 cm2", unit="nodules"),
    Column(key="sensitivity_at_0.5", title="at 0.5", unit="nodules"),
    Column(key="sensitivity_at_1", title="at 1", unit="nodules"),
    Column(key="dice", title="Dice", unit="nodules"),
)
_CROP_COLUMNS = (
    Column(key="sensitivity", title="Sensitivity", unit="nodules"),
    Column(key="sensitivity_off_centre", title="Sensitivity, nodule off centre", unit="nodules"),
    Column(key="balanced_accuracy", title="Balanced accuracy", unit="slices"),
    Column(key="dice", title="Dice per slice", unit="slices"),
    Column(key="dice_per_nodule", title="Dice per nodule", unit="nodules"),
    Column(key="dice_one_vote_ignored", title="Dice, one reader's pixels ignored", unit="slices"),
)
_FROC_COLUMNS = (
    Column(key="sensitivity", title="Sensitivity", unit="nodules"),
    Column(key="false_positives", title="False positives", unit="images", digits=2),
    Column(key="sensitivity_at_1", title="Sensitivity at 1 false positive", unit="nodules"),
    Column(key="cpm", title="CPM", unit="nodules"),
)
_LUNG_COLUMNS = (Column(key="lung_dice", title="Dice of the lungs", unit="scans", digits=4),)


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredDetector:
    """A row of the table."""

    method: Method
    result: SegmentationResult
    figures: SegmentationFigures


def table_1_json(
    subset: Subset,
    rows: Sequence[MeasuredDetector],
    ceiling: SegmentationFigures,
    *,
    reader: Estimate | None,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `table_1.json`, but for `problems`.

    Args:
        subset: who was evaluated on.
        rows: baselines first.
        ceiling: one reader's outline against two readers'.
        reader: share of what two of three readers drew that the fourth drew, too; None where it is not known.
        left_out: methods without figures, and why.
    """
    lungs = {row.method.name: row.figures.scans["lung_dice"] for row in rows if "lung_dice" in row.figures.scans}
    columns = json_rows(_COLUMNS, _table_rows(rows))
    return {
        **subset.facts(),
        "n_patients": len(_patients(rows)),
        "lung_dice": lungs[OWN].value if OWN in lungs else None,
        "lung_dice_threshold": lungs["threshold"].value if "threshold" in lungs else None,
        "lungs": json_estimates(lungs),
        "readers_of_the_masks": subset.min_votes,
        "rows": [{**column, **_details(row)} for column, row in zip(columns, rows, strict=True)],
        "ceiling": json_estimates(ceiling.crops),
        "reader_sensitivity": json_estimates({"reader": reader})["reader"] if reader else None,
        "left_out": dict(left_out),
    }


def table_1_markdown(
    subset: Subset,
    rows: Sequence[MeasuredDetector],
    ceiling: SegmentationFigures,
    *,
    reader: Estimate | None,
    left_out: Mapping[str, str],
) -> str:
    """The content of `table_1.md`; the arguments are those of `table_1_json`."""
    ceiling_row = TableRow(name="ceiling", title="*one reader's outline (ceiling)*", figures=dict(ceiling.crops))
    sections = [
        "# Table I: methods of segmentation\n",
        f"{len(_patients(rows))} patients of the {subset.split} split. 95 % intervals over patients. `-`: no such "
        "figure. docs/evaluation.md defines the figures.\n",
        paper_table("Method", _COLUMNS, [*_table_rows(rows), ceiling_row]),
        *(f"{note}\n" for note in _notes(subset, rows, left_out)),
        "## Windows: real nodules among what surrounds them\n",
        paper_table("Method", _WINDOW_COLUMNS, _section_rows(rows, "windows")),
        _about_reader(reader),
        "Sensitivity at one false positive per 100 cm2, n nodules:\n",
        _window_breakdown(rows),
        "## Crops\n",
        paper_table("Method", _CROP_COLUMNS, [*_section_rows(rows, "crops"), ceiling_row]),
        "By diameter and texture: sensitivity / Dice, n nodules.\n",
        _breakdown(rows),
        "## Composites: held-out nodules on held-out slices\n",
        paper_table("Method", _FROC_COLUMNS, _section_rows(rows, "composites")),
        "## Scans\n",
        paper_table("Method", _FROC_COLUMNS, _section_rows(rows, "scans")),
        _lesion_counts(rows),
        "## Lungs\n",
        paper_table("Method", _LUNG_COLUMNS, _section_rows(rows, "scans")),
    ]
    return "\n".join(section for section in sections if section)


def _table_rows(rows: Sequence[MeasuredDetector]) -> list[TableRow]:
    return [
        TableRow(
            name=row.method.name,
            title=row.method.title,
            figures={
                **row.figures.headline,
                "parameters": row.method.parameters,
                "train_minutes": row.method.train_minutes,
            },
            paper=TABLE_1.get(row.method.name, {}),
            marks={"cpm": " (c)"} if row.figures.origin.get("cpm") == "composites" else {},
        )
        for row in rows
    ]


def _section_rows(rows: Sequence[MeasuredDetector], section: str) -> list[TableRow]:
    return [
        TableRow(name=row.method.name, title=row.method.title, figures=getattr(row.figures, section)) for row in rows
    ]


def _details(row: MeasuredDetector) -> dict[str, Any]:
    """What a row of the JSON has beside the table's columns."""
    figures, images = row.figures, {"composites": row.result.composites, "scans": row.result.scans.cases}
    return {
        "title": row.method.title,
        "operating_point": row.result.operating_point,
        "probability_at_one_false_positive_a_slice": figures.probability_at_one,
        "training": row.method.relation,
        "from": figures.origin,
        **{name: json_estimates(getattr(figures, name)) for name in ("windows", "crops", "composites", "scans")},
        "windows_by_group": json_estimates(figures.windows_by_group),
        **{
            name: {group: json_estimates(own) for group, own in getattr(figures, name).items()}
            for name in ("by_size", "by_category")
        },
        "froc": {
            name: dict(zip(map(str, CPM_RATES), Froc(cases).sensitivity_at(CPM_RATES).tolist(), strict=True))
            for name, cases in images.items()
            if any(case.nodules for case in cases)
        },
    }


def _about_reader(reader: Estimate | None) -> str:
    if reader is None or reader.value is None:
        return ""
    return f"Of what two of three readers drew, the fourth drew {reader.value:.2f} ({reader.n} comparisons).\n"


def _window_breakdown(rows: Sequence[MeasuredDetector]) -> str:
    groups = list(dict.fromkeys(name for row in rows for name in row.figures.windows_by_group))
    cells = []
    for row in rows:
        own = (row.figures.windows_by_group.get(name) for name in groups)
        shown = ("-" if one is None or one.value is None else f"{one.value:.2f}, {one.n}" for one in own)
        cells.append([row.method.title, *shown])
    return markdown_table(["Method", *groups], cells) if groups else ""


def _breakdown(rows: Sequence[MeasuredDetector]) -> str:
    groups = list(dict.fromkeys(name for row in rows for name in row.figures.by_group))
    cells = [
        [row.method.title, *(_sensitivity_and_dice(row.figures.by_group.get(name, {})) for name in groups)]
        for row in rows
    ]
    return markdown_table(["Method", *groups], cells) if groups else ""


def _sensitivity_and_dice(figures: Estimates) -> str:
    sensitivity, dice = figures.get("sensitivity"), figures.get("dice")
    if sensitivity is None or sensitivity.value is None:
        return "-"
    return f"{sensitivity.value:.2f} / {'-' if dice is None else f'{dice.value:.2f}'}, {sensitivity.n}"


def _lesion_counts(rows: Sequence[MeasuredDetector]) -> str:
    """Lesions of scans as counts, since they are few."""
    cells = []
    for row in rows:
        scans = row.result.scans.cases
        if nodules := [nodule for case in scans for nodule in case.nodules]:
            hits = sum(nodule.is_found(row.result.operating_point) for nodule in nodules)
            cells.append([row.method.title, f"{hits} of {len(nodules)} lesions in {len(scans)} scans"])
    return markdown_table(["Method", "found"], cells) if cells else ""


def _patients(rows: Sequence[MeasuredDetector]) -> set[str]:
    patients: set[str] = set()
    for row in rows:
        result = row.result
        images = (result.windows, result.crops, result.scans)
        for case in (*(case for one in images for case in one.cases), *result.composites, *result.scans.unknown):
            patients |= {case.patient, *(nodule.patient for nodule in case.nodules)}
    return patients


# Notes


def _notes(subset: Subset, rows: Sequence[MeasuredDetector], left_out: Mapping[str, str]) -> Iterator[str]:
    yield from relation_notes(row.method for row in rows)
    yield from _about_operating_points(subset, rows)
    yield from (f"Left out: {name}: {reason}" for name, reason in left_out.items())
    first = rows[0].result if rows else SegmentationResult()
    yield from _about_crops(subset, first)
    yield from _about_composites(first)
    yield from _about_scans(first)
    if rows and sum(len(case.nodules) for case in first.scans.cases) < MIN_LESIONS:
        yield f"(c) of the composites, per slice instead of per scan: the scans have fewer than {MIN_LESIONS} lesions."
    yield (
        "The paper measured on LUNA16 and does not say how; its accuracy may count pixels or candidates. "
        "Methods without a nodule map have no accuracy and no Dice."
    )


def _about_operating_points(subset: Subset, rows: Sequence[MeasuredDetector]) -> Iterator[str]:
    if subset.split == "validation":
        yield "**Weights and operating points were chosen on the validation split: no figures of unseen patients.**"
        return
    others = [
        row.method.title
        for row in rows
        if row.method.relation and row.method.stated_operating_point != row.result.operating_point
    ]
    if others:
        yield (
            f"**Operating points of other weights**: {', '.join(others)}. Their sidecars state none, or another one. "
            "Evaluate them with `--split validation`, write its `probability_at_one_false_positive_a_slice` into their "
            "`inference*.json` and sidecars as `operating_point`, and evaluate again. FROC and CPM do not depend on it."
        )


def _about_crops(subset: Subset, result: SegmentationResult) -> Iterator[str]:
    if not result.crops.cases:
        yield "The cohort has no nodule of 3 mm or more that experts drew: there are no figures of crops."
        return
    if subset.min_votes < 2:
        yield "No nodule of the cohort was drawn by two readers: masks are those of one."
    yield (
        "Nodules are centred in their crops: a guess at the middle hits them all. It does not hit nodules off centre, "
        "or on composites."
    )


def _about_composites(result: SegmentationResult) -> Iterator[str]:
    if not result.composites:
        yield "The cohort lacks nodules or normal slices: there are no composites."
    else:
        yield (
            "Composites show one nodule each on a slice without a labelled nodule. Nobody looked for nodules there: "
            "tumours that were never labelled (LCTSC are radiotherapy cases) count as false positives."
        )


def _about_scans(result: SegmentationResult) -> Iterator[str]:
    if not any(case.nodules for case in result.scans.cases):
        yield "No scan of the cohort has a labelled lesion: there are no false positives per scan."
    elif len({case.patient for case in result.scans.cases}) < 2:
        yield "The scans with labelled lesions are of one patient: their figures have no interval."
