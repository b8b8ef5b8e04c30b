"""What pseudo-labelling did: the facts of `cohort.json`, counts before and after, and its section of `report.md`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lungsynth.cohort.datalists import Datalist
from lungsynth.cohort.report import CLASSES
from lungsynth.io.tables import markdown_table
from lungsynth.pseudo_labels.series import NETWORK
from lungsynth.pseudo_labels.triage import CandidateRow, CandidateStatus

__all__ = ["pseudo_label_facts", "pseudo_label_section", "relabel"]


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
    """What `cohort.json` says of pseudo-labelling.

    Args:
        settings: threshold, smallest diameter, hash of the weights, number of series that the detector ran on.
        rows: all candidates.
        before: `counts` of the source.
        after: of the pseudo-labelled cohort.
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
    """The section of `report.md` on pseudo-labels; `facts` are those of `pseudo_label_facts`."""
    rows = []
    for split, after in facts["after"].items():
        before = facts["before"][split]
        counts = [f"{before['nodules'].get(name, 0)} -> {after['nodules'].get(name, 0)}" for name in CLASSES]
        rows.append((split, f"{before['normal_slices']} -> {after['normal_slices']}", *counts))
    lines = [
        "",
        "## Pseudo-labels",
        "",
        f"{facts['series']} series without expert marks; candidates count from a probability of "
        f"{facts['threshold']:g} and a diameter of {facts['min_diameter_mm']:g} mm on. "
        f"Weights of lung_seg_bundle: `{facts['weights_lung_seg'][:16]}`.",
        "",
        *markdown_table(("split", "normal slices", *CLASSES), rows),
        "",
        *markdown_table(("candidates", "n"), facts["candidates"].items()),
    ]
    return "\n".join(lines) + "\n"
