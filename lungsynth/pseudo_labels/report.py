"""What a separation did: `separation.csv`, counts before and after, and its part of `report.md`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from lungsynth.cohort.datalists import Datalist
from lungsynth.cohort.records import SeriesRow
from lungsynth.cohort.report import CLASSES, Contents, markdown_table
from lungsynth.cohort.tables import to_csv
from lungsynth.pseudo_labels.series import NETWORK
from lungsynth.pseudo_labels.triage import CandidateRow, CandidateStatus

__all__ = ["CANDIDATE_COLUMNS", "candidate_table", "pseudo_label_facts", "pseudo_label_section", "relabel"]

CANDIDATE_COLUMNS = (
    "candidate_id",
    "patient_id",
    "series_id",
    "source",
    "split",
    "slice_index",
    "row_px",
    "column_px",
    "x_mm",
    "y_mm",
    "z_mm",
    "diameter_mm",
    "probability",
    "outcome",
    "normal_slices_removed",
)


def candidate_table(rows: Sequence[CandidateRow], contents: Contents) -> str:
    """The text of `separation.csv`: a line a candidate, in the order of their ids."""
    by_id: dict[str, SeriesRow] = {row.series_id: row for row in contents.series}
    lines = [
        {
            **asdict(row),
            "outcome": row.outcome.value,
            "patient_id": by_id[row.series_id].patient_id,
            "source": by_id[row.series_id].source,
            "split": contents.splits[row.series_id],
        }
        for row in sorted(rows, key=lambda row: row.candidate_id)
    ]
    return to_csv(pd.DataFrame(lines, columns=list(CANDIDATE_COLUMNS)))


def relabel(enhancement: Datalist, drawn: set[str]) -> Datalist:
    """Lets slices on which the network drew nodules (`drawn`, their ids) point to its label maps."""
    return {
        split: [
            {**entry, "label": entry["label"].replace("labels/", f"{NETWORK}/")}
            if entry["image"].removeprefix("slices/").removesuffix(".nii.gz") in drawn
            else entry
            for entry in entries
        ]
        for split, entries in enhancement.items()
    }


def pseudo_label_facts(
    settings: Mapping[str, Any],
    rows: Sequence[CandidateRow],
    *,
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `cohort.json` says of a separation.

    Args:
        settings: threshold, smallest diameter, hash of the weights, number of series looked at.
        rows: all candidates.
        before: `counts` of the COHORT.
        after: of the separated one.
    """
    outcomes = Counter(row.outcome.value for row in rows)
    names = ("normal_slices", "nodules")
    return {
        **settings,
        "candidates": {outcome.value: outcomes[outcome.value] for outcome in CandidateStatus},
        "before": {split: {name: counts[name] for name in names} for split, counts in before.items()},
        "after": {split: {name: counts[name] for name in names} for split, counts in after.items()},
    }


def pseudo_label_section(facts: Mapping[str, Any]) -> str:
    """The section of `report.md` on a separation; `facts` are those of `pseudo_label_facts`."""
    rows = []
    for split, after in facts["after"].items():
        before = facts["before"][split]
        counts = [f"{before['nodules'].get(name, 0)} -> {after['nodules'].get(name, 0)}" for name in CLASSES]
        rows.append((split, f"{before['normal_slices']} -> {after['normal_slices']}", *counts))
    lines = [
        "",
        "## Separation by the network",
        "",
        f"{facts['series']} series that no expert had looked at; candidates count from a probability of "
        f"{facts['threshold']:g} and a diameter of {facts['min_diameter_mm']:g} mm on. "
        f"Weights of lung_seg_bundle: `{facts['weights_lung_seg'][:16]}`.",
        "",
        *markdown_table(("split", "normal slices", *CLASSES), rows),
        "",
        *markdown_table(("candidates", "n"), facts["candidates"].items()),
    ]
    return "\n".join(lines) + "\n"
