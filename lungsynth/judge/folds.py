"""Cross-validation: the evaluations of several folds as one, so that the few scans with lesions or lungs all count.

In the folds of `scripts/prepare.py --fold` each patient tests once. Each fold was judged by weights that did not see
its patients; what the methods of one name did there is pooled as if one method had done it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lungsynth.ct.write import write_atomically
from lungsynth.errors import InputError
from lungsynth.judge.crops import CropRecords
from lungsynth.judge.figures import Figures, measure
from lungsynth.judge.records import Outcome, read_outcome
from lungsynth.judge.scans import ScanRecords
from lungsynth.judge.tables import Column, TableRow, paper_table

__all__ = ["judge_folds", "pool"]

_COLUMNS = (
    Column(key="lung_dice", title="Dice of the lungs", unit="scans", digits=4),
    Column(key="lesions_found", title="Lesions found", unit="lesions"),
    Column(key="false_positives_per_scan", title="False positives a scan", unit="scans", digits=1),
    Column(key="sensitivity", title="Sensitivity, crops", unit="nodules"),
    Column(key="dice", title="Dice, crops", unit="slices"),
    Column(key="composites", title="Sensitivity, composites", unit="nodules"),
    Column(key="false_positives_per_slice", title="False positives a slice", unit="slices", digits=2),
)


def pool(outcomes: Sequence[Outcome]) -> Outcome:
    """The records of several folds as one.

    Raises:
        InputError: when there are none, or their operating points differ.
    """
    points = sorted({outcome.operating_point for outcome in outcomes})
    if len(points) != 1:
        raise InputError(f"Folds can be pooled at one operating point, got {points}. Judge them with the same one.")
    crops, scans = [outcome.crops for outcome in outcomes], [outcome.scans for outcome in outcomes]
    return Outcome(
        operating_point=points[0],
        crops=CropRecords(
            cases=tuple(case for part in crops for case in part.cases),
            pixels=tuple(count for part in crops for count in part.pixels),
            pixels_ignored=tuple(count for part in crops for count in part.pixels_ignored),
        ),
        composites=tuple(case for outcome in outcomes for case in outcome.composites),
        scans=ScanRecords(
            cases=tuple(case for part in scans for case in part.cases),
            unknown=tuple(case for part in scans for case in part.unknown),
            lungs=tuple(score for part in scans for score in part.lungs),
        ),
    )


def judge_folds(folds: Sequence[Path], out: Path, *, seed: int = 0) -> str:
    """Pools the methods that every fold has; writes `cross_validation.md` and `cross_validation.json`.

    Args:
        folds: folders that `evaluate.py segmentation` wrote, one a fold.
        out: folder of the results.
        seed: of the bootstrap.

    Returns:
        The Markdown.

    Raises:
        InputError: when the folds have no method in common, or a file is damaged.
    """
    named = [{path.stem for path in (fold / ".parts").glob("*.json")} for fold in folds]
    common = sorted(set.intersection(*named), key=lambda name: (name not in ("nothing", "threshold"), name))
    if not common:
        raise InputError(f"{[str(fold) for fold in folds]}: these evaluations have no method in common.")
    figures = {
        name: measure(pool([read_outcome(fold / ".parts" / f"{name}.json") for fold in folds]), seed=seed)
        for name in common
    }
    rows = [TableRow(name=name, title=name, figures=_row(found)) for name, found in figures.items()]
    text = (
        f"# Cross-validation over {len(folds)} folds\n\nEach patient was judged by weights that did not see it; 95 % "
        f"intervals over patients.\n\n{paper_table('Method', _COLUMNS, rows)}"
    )
    write_atomically(out / "cross_validation.md", text.encode())
    write_atomically(out / "cross_validation.json", (json.dumps(_json(figures), indent=1) + "\n").encode())
    return text


def _row(figures: Figures) -> dict[str, Any]:
    return {
        "lung_dice": figures.scans.get("lung_dice"),
        "lesions_found": figures.scans.get("sensitivity"),
        "false_positives_per_scan": figures.scans.get("alarms"),
        "sensitivity": figures.crops.get("sensitivity"),
        "dice": figures.crops.get("dice"),
        "composites": figures.composites.get("sensitivity"),
        "false_positives_per_slice": figures.composites.get("alarms"),
    }


def _json(figures: dict[str, Figures]) -> dict[str, Any]:
    return {
        name: {key: asdict(figure) for key, figure in _row(found).items() if figure is not None}
        for name, found in figures.items()
    }
