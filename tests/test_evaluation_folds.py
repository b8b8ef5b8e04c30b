"""Laws of cross-validation: pooled folds are one evaluation, and what cannot be pooled is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_evaluation_metrics import case

from evaluation.segmentation.figures import measure_result as measure
from evaluation.segmentation.folds import evaluate_folds, pool
from evaluation.segmentation.records import SegmentationResult, result_store
from evaluation.segmentation.scans import LungScore, ScanRecords
from lungsynth.errors import InputError

pytestmark = pytest.mark.usefixtures("few_resamples")


def fold(patient: str, *, dice: float, scores=(0.9,), false=()) -> SegmentationResult:
    lung = LungScore(series=patient, patient=patient, slices=9, dice=dice, worst_slice=0, worst_dice=dice)
    scan = case(scores, false, patient=patient)
    return SegmentationResult(scans=ScanRecords(cases=(scan,), unknown=(), lungs=(lung,)))


NOTHING = {"method": "nothing", "training": None}
FOLDS = [fold("a", dice=0.96), fold("b", dice=1.0, scores=(0.1,), false=(0.8, 0.7))]


def test_pooled_folds_have_the_figures_of_all_their_patients():
    figures = measure(pool(FOLDS), seed=0).scans
    assert figures["lung_dice"].value == pytest.approx(0.98)
    assert (figures["sensitivity"].value, figures["sensitivity"].n) == (0.5, 2)
    assert figures["false_positives"].value == 1.0
    assert figures["lung_dice"].patients == 2


def test_each_fold_is_pooled_at_its_own_operating_point():
    scores, false = (0.95, 0.9, 0.4, None), (0.97, 0.6)
    folds = [
        replace(fold("a", dice=1.0, scores=scores, false=false), operating_point=0.93),
        replace(fold("b", dice=1.0, scores=scores, false=false), operating_point=0.5),
    ]
    pooled = measure(pool(folds), seed=0).scans
    alone = [measure(one, seed=0).scans for one in folds]
    for name in ("sensitivity", "false_positives"):
        assert pooled[name].value == pytest.approx(sum(one[name].value for one in alone) / 2)
    order = [item.probability for case in pool(folds[:1]).scans.cases for item in case.false_positives]
    assert order == sorted(order, reverse=True)
    assert 0.5 < order[0] < 1
    assert 0 < order[1] < 0.5


def test_methods_that_every_fold_has_are_written(tmp_path):
    folds = [tmp_path / "0", tmp_path / "1"]
    for folder, outcome in zip(folds, FOLDS, strict=True):
        for name in ("nothing", "dense_unet"):
            result_store(folder / ".parts").save(name, outcome, identity="x")
    result_store(folds[0] / ".parts").save("unet", FOLDS[0], identity="x")
    said = {"nothing": None, "dense_unet": "held_out", "seen": "may_have_trained"}

    def write_table(folder: Path, split: str, said: dict[str, str | None]) -> None:
        rows = [{"method": name, "training": relation} for name, relation in said.items()]
        (folder / "table_1.json").write_text(json.dumps({"split_hash": split, "rows": rows}), encoding="utf-8")

    write_table(folds[0], "0", {**said, "unet": "held_out"})
    write_table(folds[1], "1", said)
    text = evaluate_folds(folds, tmp_path / "out").markdown
    assert "| dense_unet | 0.9800" in text
    assert "unet |" not in text.replace("dense_unet |", "")
    assert "seen" not in text
    assert text == (tmp_path / "out" / "cross_validation.md").read_text(encoding="utf-8")
    (folds[1] / ".parts" / "dense_unet.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"dense_unet\.json: expected the records of a method"):
        evaluate_folds(folds, tmp_path / "out")
    write_table(folds[1], "1", {"dense_unet": "may_have_trained"})
    with pytest.raises(InputError, match="no method in common whose weights were held out"):
        evaluate_folds(folds, tmp_path / "out")
    write_table(folds[1], "0", said)
    with pytest.raises(InputError, match="whose patients would count twice"):
        evaluate_folds(folds, tmp_path / "out")
    with pytest.raises(InputError, match=r"none/table_1\.json: expected the table"):
        evaluate_folds([folds[0], tmp_path / "none"], tmp_path / "out")


def test_records_of_format_1_are_pooled_like_those_of_today(tmp_path):
    """Format 1 has other names: `outcome`, `targets`, `alarms`."""
    (tmp_path / "table_1.json").write_text(json.dumps({"split_hash": "0", "rows": [NOTHING]}), encoding="utf-8")
    store = result_store(tmp_path / ".parts")
    store.save("nothing", FOLDS[1], identity="x")
    today = evaluate_folds([tmp_path], tmp_path / "today").table
    content = json.loads(store.path("nothing").read_text(encoding="utf-8"))["record"]
    for scan in content["scans"]["cases"]:
        scan["targets"], scan["alarms"] = scan.pop("nodules"), scan.pop("false_positives")
    store.path("nothing").write_text(json.dumps({"identity": "x", "outcome": content}), encoding="utf-8")
    assert evaluate_folds([tmp_path], tmp_path / "old").table == today
