"""Cross-validation: the evaluations of several folds as one, so that the few scans with lesions or lungs all count.

In the folds of `scripts/prepare.py --fold` each patient tests once. Each fold was judged by weights that did not see
its patients; what the methods of one name did there is pooled as if one method had done it. Probabilities of different
weights mean different things, so that each fold has an operating point of its own, from its own validation part.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evaluation.metrics.matching import Case
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.figures import Figures, measure
from evaluation.segmentation.records import SegmentationResult, read_result
from evaluation.segmentation.scans import ScanRecords
from evaluation.tables import Column, TableRow, paper_table
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text

__all__ = ["evaluate_folds", "pool"]

_COLUMNS = (
    Column(key="lung_dice", title="Dice of the lungs", unit="scans", digits=4),
    Column(key="lesions_found", title="Lesions found", unit="lesions"),
    Column(key="false_positives_per_scan", title="False positives a scan", unit="scans", digits=1),
    Column(key="sensitivity", title="Sensitivity, crops", unit="nodules"),
    Column(key="sensitivity_off_centre", title="Sensitivity, off the centre", unit="nodules"),
    Column(key="dice", title="Dice, crops", unit="slices"),
    Column(key="composites", title="Sensitivity, composites", unit="nodules"),
    Column(key="false_positives_per_slice", title="False positives a slice", unit="slices", digits=2),
)

_POINT = 0.5  # every fold's operating point after pooling


def pool(outcomes: Sequence[SegmentationResult]) -> SegmentationResult:
    """The records of several folds as one.

    Probabilities are bent, in order, so that each fold's operating point becomes 0.5: figures at the operating point
    are exact, and figures over all probabilities are those of the bent ones.
    """
    outcomes = [_bent(outcome) for outcome in outcomes]
    crops, scans = [outcome.crops for outcome in outcomes], [outcome.scans for outcome in outcomes]
    return SegmentationResult(
        operating_point=_POINT,
        crops=CropRecords(
            cases=tuple(case for part in crops for case in part.cases),
            off_centre=tuple(case for part in crops for case in part.off_centre),
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


def _bent(outcome: SegmentationResult) -> SegmentationResult:
    point = outcome.operating_point

    def bent(probability: float) -> float:
        if probability < point:
            return _POINT * probability / point
        return _POINT + (1 - _POINT) * (probability - point) / (1 - point) if point < 1 else 1.0

    def of(cases: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(
            replace(
                case,
                targets=tuple(
                    replace(target, score=None if target.score is None else bent(target.score))
                    for target in case.targets
                ),
                alarms=tuple(replace(alarm, probability=bent(alarm.probability)) for alarm in case.alarms),
            )
            for case in cases
        )

    crops, scans = outcome.crops, outcome.scans
    return replace(
        outcome,
        operating_point=_POINT,
        crops=replace(crops, cases=of(crops.cases), off_centre=of(crops.off_centre)),
        composites=of(outcome.composites),
        scans=replace(scans, cases=of(scans.cases), unknown=of(scans.unknown)),
    )


def evaluate_folds(folds: Sequence[Path], out: Path, *, seed: int = 0) -> str:
    """Pools the methods that every fold has, with weights that saw none of its judged patients; writes
    `cross_validation.md` and `cross_validation.json`.

    Args:
        folds: folders that `evaluate.py segmentation` wrote, one a fold.
        out: folder of the results.
        seed: of the bootstrap.

    Returns:
        The Markdown.

    Raises:
        InputError: when the folds have no such method in common, one is given twice, or a file is damaged.
    """
    tables = [_table(fold) for fold in folds]
    splits = [table["split_hash"] for table in tables]
    if twice := [str(fold) for fold, split in zip(folds, splits, strict=True) if splits.count(split) > 1]:
        raise InputError(f"{twice}: these are one split, whose patients would count twice. Give one of each fold.")
    named = [{row["method"] for row in table["rows"] if row["training"] in (None, "held_out")} for table in tables]
    common = sorted(set.intersection(*named), key=lambda name: (name not in ("nothing", "threshold"), name))
    if not common:
        raise InputError(
            f"{[str(fold) for fold in folds]}: these evaluations have no method in common whose weights were held out. "
            "Train a method on each fold's cohort, and judge it there with --bundles or --weights."
        )
    figures = {
        name: measure(pool([read_result(fold / ".parts" / f"{name}.json") for fold in folds]), seed=seed)
        for name in common
    }
    rows = [TableRow(name=name, title=name, figures=_row(found)) for name, found in figures.items()]
    text = (
        f"# Cross-validation over {len(folds)} folds\n\nEach patient was judged by weights that did not see it; 95 % "
        f"intervals over patients.\n\n{paper_table('Method', _COLUMNS, rows)}"
    )
    write_text(out / "cross_validation.md", text)
    write_json(out / "cross_validation.json", _json(figures))
    return text


def _table(fold: Path) -> dict[str, Any]:
    path = fold / "table_1.json"
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        _ = table["split_hash"], [(row["method"], row["training"]) for row in table["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected what `evaluate.py segmentation` writes ({error}). Judge again.") from error
    return table


def _row(figures: Figures) -> dict[str, Any]:
    return {
        "lung_dice": figures.scans.get("lung_dice"),
        "lesions_found": figures.scans.get("sensitivity"),
        "false_positives_per_scan": figures.scans.get("alarms"),
        "sensitivity": figures.crops.get("sensitivity"),
        "sensitivity_off_centre": figures.crops.get("sensitivity_off_centre"),
        "dice": figures.crops.get("dice"),
        "composites": figures.composites.get("sensitivity"),
        "false_positives_per_slice": figures.composites.get("alarms"),
    }


def _json(figures: dict[str, Figures]) -> dict[str, Any]:
    return {
        name: {key: asdict(figure) for key, figure in _row(found).items() if figure is not None}
        for name, found in figures.items()
    }
