"""Cross-validation: the evaluations of several folds as one, so that the few scans with lesions or lungs all count.

In the folds of `lungsynth prepare --fold` each patient is tested once. Each fold was evaluated with weights that did
not see its patients; the results of the methods of one name are pooled as if of one method. Probabilities of different
weights mean different things, so that each fold has an operating point of its own, from its own validation split.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from evaluation.metrics.bootstrap import Estimates
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule
from evaluation.runner import FORMAT, EvaluationResult, records_folder
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.figures import SegmentationFigures, measure_result
from evaluation.segmentation.records import SegmentationResult, result_from_json, result_store
from evaluation.segmentation.scans import ScanRecords
from evaluation.segmentation.windows import WindowRecords
from evaluation.tables import Column, TableRow, json_estimates, paper_table
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text

__all__ = ["FoldTable", "evaluate_folds", "pool", "read_fold"]

_COLUMNS = (
    Column(key="lung_dice", title="Dice of the lungs", unit="scans", digits=4),
    Column(key="lesions_found", title="Lesions found", unit="lesions"),
    Column(key="false_positives_per_scan", title="False positives per scan", unit="scans", digits=1),
    Column(key="sensitivity", title="Sensitivity, crops", unit="nodules"),
    Column(key="sensitivity_off_centre", title="Sensitivity, off centre", unit="nodules"),
    Column(key="dice", title="Dice, crops", unit="slices"),
    Column(key="composites", title="Sensitivity, composites", unit="nodules"),
    Column(key="false_positives_per_slice", title="False positives per slice", unit="slices", digits=2),
)
_POOLED_POINT = 0.5  # operating point of every fold after pooling; any value in (0, 1) gives the same figures
_BASELINES = ("nothing", "threshold")  # first in the table
_NAME = "cross_validation"
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class FoldTable:
    """What pooling needs of the `table_1.json` of one fold.

    Args:
        folder: of the evaluation.
        split_hash: of its cohort.
        held_out: methods whose weights saw none of the evaluated patients, baselines among them.
    """

    folder: Path
    split_hash: str
    held_out: frozenset[str]


def read_fold(folder: Path) -> FoldTable:
    """Reads the table of an evaluation; what is used of it has the same names in formats 1 and 2.

    Raises:
        InputError: when there is none, or it is damaged.
    """
    path = folder / "table_1.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        methods = {row["method"] for row in table["rows"] if row["training"] in (None, "held_out")}
        return FoldTable(folder=folder, split_hash=table["split_hash"], held_out=frozenset(methods))
    except _DAMAGED as error:
        raise InputError(
            f"{path}: expected the table of an evaluation of segmentation ({error}). Evaluate the fold again."
        ) from error


def pool(results: Sequence[SegmentationResult]) -> SegmentationResult:
    """The records of several folds as one.

    Probabilities are rescaled, in order, so that each fold's operating point becomes 0.5: figures at the operating
    point are exact, and figures over all probabilities are those of the rescaled ones.
    """
    rescaled = [_rescaled(result) for result in results]
    windows, crops = [result.windows for result in rescaled], [result.crops for result in rescaled]
    scans = [result.scans for result in rescaled]
    return SegmentationResult(
        operating_point=_POOLED_POINT,
        windows=WindowRecords(**{name: _joined(windows, name) for name in vars(WindowRecords())}),
        crops=CropRecords(**{name: _joined(crops, name) for name in vars(CropRecords())}),
        composites=_joined(rescaled, "composites"),
        scans=ScanRecords(**{name: _joined(scans, name) for name in vars(ScanRecords())}),
    )


def evaluate_folds(folds: Sequence[Path], out: Path, *, seed: int = 0) -> EvaluationResult:
    """Pools the methods that every fold has, with weights that saw none of its evaluated patients.

    Args:
        folds: folders of evaluations of segmentation, one for each fold.
        out: folder of `cross_validation.md` and `cross_validation.json`.
        seed: of the bootstrap.

    Raises:
        InputError: when the folds have no such method in common, one is given twice, or a file is damaged.
    """
    methods = _common_methods([read_fold(fold) for fold in folds])
    figures = {
        name: _row_figures(measure_result(pool([_read_result(fold, name) for fold in folds]), seed=seed))
        for name in methods
    }
    rows = [TableRow(name=name, title=name, figures=dict(own)) for name, own in figures.items()]
    markdown = (
        f"# Cross-validation over {len(folds)} folds\n\nEach patient was evaluated with weights that did not see it; "
        f"95 % intervals over patients.\n\n{paper_table('Method', _COLUMNS, rows)}"
    )
    table = {"format": FORMAT, "methods": {name: json_estimates(own) for name, own in figures.items()}}
    write_text(out / f"{_NAME}.md", markdown)
    write_json(out / f"{_NAME}.json", table)
    return EvaluationResult(out=out, name=_NAME, table=table, markdown=markdown)


def _common_methods(tables: Sequence[FoldTable]) -> list[str]:
    """Methods that are held out in each fold, baselines first."""
    splits = [table.split_hash for table in tables]
    if repeated := [str(table.folder) for table in tables if splits.count(table.split_hash) > 1]:
        raise InputError(f"{repeated}: these are one split, whose patients would count twice. Give one of each fold.")
    common = frozenset.intersection(*(table.held_out for table in tables))
    if not common:
        raise InputError(
            f"{[str(table.folder) for table in tables]}: these evaluations have no method in common whose weights were "
            "held out. Train a method on each fold's cohort, and evaluate it there with its `bundles` or `weights`."
        )
    return sorted(common, key=lambda name: (name not in _BASELINES, name))


def _read_result(fold: Path, name: str) -> SegmentationResult:
    """The records of a method from a finished evaluation; format 1 has them under `outcome`."""
    path = result_store(records_folder(fold)).path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return result_from_json(content["record" if "record" in content else "outcome"])
    except _DAMAGED as error:
        raise InputError(
            f"{path}: expected the records of a method ({error}). Give folders of evaluations of segmentation."
        ) from error


def _joined(records: Sequence[Any], name: str) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(getattr(record, name) for record in records))


def _rescaled(result: SegmentationResult) -> SegmentationResult:
    """With probabilities that are rescaled below and above the operating point, each part linearly."""
    point = result.operating_point

    def rescale(probability: float) -> float:
        if probability < point:
            return _POOLED_POINT * probability / point
        return _POOLED_POINT + (1 - _POOLED_POINT) * (probability - point) / (1 - point) if point < 1 else 1.0

    def nodule(item: ReferenceNodule) -> ReferenceNodule:
        return item if item.score is None else replace(item, score=rescale(item.score))

    def false_positive(item: FalsePositive) -> FalsePositive:
        return replace(item, probability=rescale(item.probability))

    def cases(items: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(
            replace(
                case,
                nodules=tuple(map(nodule, case.nodules)),
                false_positives=tuple(map(false_positive, case.false_positives)),
            )
            for case in items
        )

    crops, scans = result.crops, result.scans
    return replace(
        result,
        operating_point=_POOLED_POINT,
        windows=replace(result.windows, cases=cases(result.windows.cases)),
        crops=replace(crops, cases=cases(crops.cases), off_centre=cases(crops.off_centre)),
        composites=cases(result.composites),
        scans=replace(scans, cases=cases(scans.cases), unknown=cases(scans.unknown)),
    )


def _row_figures(figures: SegmentationFigures) -> Estimates:
    sources: Mapping[str, tuple[Estimates, str]] = {
        "lung_dice": (figures.scans, "lung_dice"),
        "lesions_found": (figures.scans, "sensitivity"),
        "false_positives_per_scan": (figures.scans, "false_positives"),
        "sensitivity": (figures.crops, "sensitivity"),
        "sensitivity_off_centre": (figures.crops, "sensitivity_off_centre"),
        "dice": (figures.crops, "dice"),
        "composites": (figures.composites, "sensitivity"),
        "false_positives_per_slice": (figures.composites, "false_positives"),
    }
    return {name: group[key] for name, (group, key) in sources.items() if key in group}
