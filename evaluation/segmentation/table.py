"""Table I as JSON and as Markdown: the comparison of methods of segmentation.

What has to be said under Table I: whom the figures hold for, what is missing, and which lines to distrust.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.cohort_subsets import Subset
from evaluation.methods import OWN
from evaluation.metrics.bootstrap import Estimate
from evaluation.metrics.froc import CPM_RATES, Froc
from evaluation.paper import TABLE_1
from evaluation.segmentation.evaluate import EvaluatedMethod
from evaluation.segmentation.figures import FEWEST_LESIONS, Figures
from evaluation.segmentation.records import SegmentationResult
from evaluation.tables import Column, TableRow, json_rows, markdown_table, paper_table

__all__ = ["COLUMNS", "RELATIONS", "Entry", "notes", "table_1_json", "table_1_markdown"]

COLUMNS = (
    Column(key="sensitivity", title="Sensitivity", unit="nodules", in_paper=True),
    Column(key="nodules_per_scan", title="Segmented nodules a scan", unit="scans", digits=1, in_paper=True),
    Column(key="accuracy", title="Accuracy", unit="slices", in_paper=True),
    Column(key="balanced_accuracy", title="Balanced accuracy", unit="slices"),
    Column(key="dice", title="Dice", unit="slices"),
    Column(key="cpm", title="CPM", unit="lesions"),
    Column(key="false_positives_per_slice", title="False positives a slice", unit="slices", digits=2),
    Column(key="false_positives_per_scan", title="False positives a scan", unit="scans", digits=1),
    Column(key="parameters", title="Parameters", digits=0),
    Column(key="seconds_per_scan", title="Seconds a scan", unit="scans", digits=1),
    Column(key="train_minutes", title="Training, minutes", digits=0),
)
_CROPS = (
    Column(key="sensitivity", title="Sensitivity", unit="nodules"),
    Column(key="sensitivity_off_centre", title="Sensitivity, nodule off the centre", unit="nodules"),
    Column(key="balanced_accuracy", title="Balanced accuracy", unit="slices"),
    Column(key="dice", title="Dice, a slice", unit="slices"),
    Column(key="dice_per_nodule", title="Dice, a nodule", unit="nodules"),
    Column(key="dice_one_vote_ignored", title="Dice, one reader's pixels ignored", unit="slices"),
)
_WHOLE = (
    Column(key="sensitivity", title="Sensitivity", unit="nodules"),
    Column(key="alarms", title="False positives", unit="images", digits=2),
    Column(key="at_one", title="Sensitivity at 1 false positive", unit="nodules"),
    Column(key="cpm", title="CPM", unit="nodules"),
)
_LUNGS = (Column(key="lung_dice", title="Dice of the lungs", unit="scans", digits=4),)


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """A line of the table."""

    contestant: EvaluatedMethod
    outcome: SegmentationResult
    figures: Figures


def table_1_json(
    part: Subset, entries: Sequence[Entry], ceiling: Figures, *, left_out: Mapping[str, str], problems: Sequence[str]
) -> dict[str, Any]:
    """The content of `table_1.json` (contract C10.1).

    Args:
        part: who was judged on.
        entries: baselines first.
        ceiling: one reader's outline against two readers'.
        left_out: methods without figures, and why.
        problems: images that could not be read.
    """
    lungs = {entry.contestant.name: entry.figures.scans.get("lung_dice") for entry in entries}
    rows = [{**row, **_extras(entry)} for row, entry in zip(json_rows(COLUMNS, _rows(entries)), entries, strict=True)]
    return {
        "n_patients": len(_patients(entries)),
        "lung_dice": _value(lungs.get(OWN)),
        "lung_dice_threshold": _value(lungs.get("threshold")),
        "lungs": {name: asdict(figure) for name, figure in lungs.items() if figure is not None},
        "part": part.part,
        "split_hash": part.split_hash,
        "sources": sorted({nodule.source for nodule in part.nodules} | {series.source for series in part.series}),
        "readers_of_the_masks": part.min_votes,
        "rows": rows,
        "ceiling": {name: asdict(figure) for name, figure in ceiling.crops.items()},
        "left_out": dict(left_out),
        "problems": list(problems),
    }


def table_1_markdown(part: Subset, entries: Sequence[Entry], ceiling: Figures, *, left_out: Mapping[str, str]) -> str:
    """The content of `table_1.md`; the arguments are those of `table_1_json`."""
    last = TableRow(name="ceiling", title="*one reader's outline (ceiling)*", figures=dict(ceiling.crops))
    sections = [
        "# Table I: methods of segmentation\n",
        f"{len(_patients(entries))} patients of the {part.part} part. 95 % intervals over patients. `-`: no such "
        "figure. What each figure means stands in docs/evaluation.md.\n",
        paper_table("Method", COLUMNS, [*_rows(entries), last]),
        *notes(part, [entry.contestant for entry in entries], [entry.outcome for entry in entries], left_out),
        "## Crops\n",
        paper_table("Method", _CROPS, [*_group(entries, "crops"), last]),
        "By diameter and texture: sensitivity / Dice, n nodules.\n",
        _breakdown(entries),
        "## Composites: held-out nodules on held-out slices\n",
        paper_table("Method", _WHOLE, _group(entries, "composites")),
        "## Scans\n",
        paper_table("Method", _WHOLE, _group(entries, "scans")),
        _counts(entries),
        "## Lungs\n",
        paper_table("Method", _LUNGS, _group(entries, "scans")),
    ]
    return "\n".join(section for section in sections if section)


def _rows(entries: Sequence[Entry]) -> list[TableRow]:
    return [
        TableRow(
            name=entry.contestant.name,
            title=entry.contestant.title,
            figures={
                **entry.figures.headline,
                "parameters": entry.contestant.parameters,
                "train_minutes": entry.contestant.train_minutes,
            },
            paper=TABLE_1.get(entry.contestant.name, {}),
            marks={"cpm": " (c)"} if entry.figures.origin.get("cpm") == "composites" else {},
        )
        for entry in entries
    ]


def _group(entries: Sequence[Entry], name: str) -> list[TableRow]:
    return [
        TableRow(name=entry.contestant.name, title=entry.contestant.title, figures=getattr(entry.figures, name))
        for entry in entries
    ]


def _extras(entry: Entry) -> dict[str, Any]:
    """What stands in a row of the JSON beside the table's columns."""
    figures, scans = entry.figures, entry.outcome.scans.cases
    plain = {name: _asdict(getattr(figures, name)) for name in ("crops", "composites", "scans")}
    grouped = {
        name: {key: _asdict(group) for key, group in getattr(figures, name).items()}
        for name in ("by_size", "by_category")
    }
    froc = {
        kind: dict(zip(map(str, CPM_RATES), Froc(cases).at_rates(CPM_RATES).tolist(), strict=True))
        for kind, cases in (("composites", entry.outcome.composites), ("scans", scans))
        if any(case.targets for case in cases)
    }
    return {
        "title": entry.contestant.title,
        "operating_point": entry.outcome.operating_point,
        "probability_at_one_false_positive_a_slice": figures.probability_at_one,
        "training": entry.contestant.relation,
        "from": figures.origin,
        **plain,
        **grouped,
        "froc": froc,
    }


def _breakdown(entries: Sequence[Entry]) -> str:
    names = list(dict.fromkeys(key for entry in entries for key in _parts(entry.figures)))
    rows = []
    for entry in entries:
        groups = _parts(entry.figures)
        rows.append([entry.contestant.title, *(_pair(groups.get(name, {})) for name in names)])
    return markdown_table(["Method", *names], rows) if names else ""


def _parts(figures: Figures) -> dict[str, dict[str, Estimate]]:
    return {**figures.by_size, **figures.by_category}


def _pair(group: Mapping[str, Estimate]) -> str:
    found, outlined = group.get("sensitivity"), group.get("dice")
    if found is None or found.value is None:
        return "-"
    return f"{found.value:.2f} / {'-' if outlined is None else f'{outlined.value:.2f}'}, {found.n}"


def _counts(entries: Sequence[Entry]) -> str:
    """Lesions of scans as counts, since they are few."""
    rows = []
    for entry in entries:
        targets = [target for case in entry.outcome.scans.cases for target in case.targets]
        found = sum((target.score or 0.0) >= entry.outcome.operating_point for target in targets if target.score)
        if targets:
            scans = len(entry.outcome.scans.cases)
            rows.append([entry.contestant.title, f"{found} of {len(targets)} lesions in {scans} scans"])
    return markdown_table(["Method", "found"], rows) if rows else ""


def _patients(entries: Sequence[Entry]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        outcome = entry.outcome
        for case in (*outcome.crops.cases, *outcome.composites, *outcome.scans.cases, *outcome.scans.unknown):
            found |= {case.patient, *(target.patient for target in case.targets)}
    return found


def _value(figure: Estimate | None) -> float | None:
    return None if figure is None else figure.value


def _asdict(group: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in group.items()}


RELATIONS = {
    "held_out": "The judged patients were held out from the training (same split) of: ",
    "other_collections": "Trained on other collections than the judged ones: ",
    "may_have_trained": "**May have been trained on judged patients** (another split of the same collections, "
    "or nothing known): ",
}


def notes(
    part: Subset,
    contestants: Sequence[EvaluatedMethod],
    outcomes: Sequence[SegmentationResult],
    left_out: Mapping[str, str],
) -> list[str]:
    """Markdown paragraphs."""
    return [text + "\n" for text in _all(part, contestants, outcomes, left_out)]


def _all(
    part: Subset,
    contestants: Sequence[EvaluatedMethod],
    outcomes: Sequence[SegmentationResult],
    left_out: Mapping[str, str],
) -> Iterator[str]:
    for relation, text in RELATIONS.items():
        if named := [contestant.title for contestant in contestants if contestant.relation == relation]:
            yield text + ", ".join(named) + "."
    unchosen = [
        contestant.title
        for contestant, outcome in zip(contestants, outcomes, strict=True)
        if contestant.relation and contestant.chosen_point != outcome.operating_point
    ]
    if unchosen and part.part == "test":
        yield (
            f"**Operating points of other weights**: {', '.join(unchosen)}. Their sidecars state none, or another one. "
            "Judge them with `--part validation`, write its `probability_at_one_false_positive_a_slice` into their "
            "`inference*.json` and sidecars as `operating_point`, and judge again. FROC and CPM do not depend on it."
        )
    if part.part == "validation":
        yield "**The validation part chose weights and operating points: these are no figures of unseen patients.**"
    for name, reason in left_out.items():
        yield f"Left out: {name}: {reason}"
    yield from _about_images(part, outcomes[0] if outcomes else SegmentationResult())
    if outcomes and sum(len(case.targets) for case in outcomes[0].scans.cases) < FEWEST_LESIONS:
        yield f"(c) of the composites, a slice instead of a scan: the scans have fewer than {FEWEST_LESIONS} lesions."
    yield (
        "The paper measured on LUNA16 and does not say how; its accuracy may count pixels or candidates. "
        "Methods without a nodule map have no accuracy and no Dice."
    )


def _about_images(part: Subset, outcome: SegmentationResult) -> Iterator[str]:
    if not outcome.crops.cases:
        yield "The cohort has no nodule of 3 mm or more that experts drew: there are no figures of crops."
    elif part.min_votes < 2:
        yield "No nodule of the cohort was drawn by two readers: masks are those of one."
    if outcome.crops.cases:
        yield (
            "Nodules are centred in their crops: a guess at the middle hits them all. The sensitivity with the nodule "
            "off the centre, and that on composites, cannot be had by such a guess."
        )
    if not outcome.composites:
        yield "The cohort lacks nodules or normal slices: there are no composites."
    else:
        yield (
            "Composites show one nodule each on a slice without a labelled nodule. Nobody looked for nodules there: "
            "tumours that were never labelled (LCTSC are radiotherapy cases) count as false positives."
        )
    if not any(case.targets for case in outcome.scans.cases):
        yield "No scan of the cohort has a labelled lesion: there are no false positives a scan."
    elif len({case.patient for case in outcome.scans.cases}) < 2:
        yield "One patient's scans have labelled lesions: their figures have no interval."
