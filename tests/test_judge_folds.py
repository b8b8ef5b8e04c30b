"""Laws of cross-validation: pooled folds are one evaluation, and what cannot be pooled is refused."""

from dataclasses import replace

import pytest
from test_judge_measures import case

from lungsynth.errors import InputError
from lungsynth.judge.figures import measure
from lungsynth.judge.folds import judge_folds, pool
from lungsynth.judge.records import Outcome, save_outcome
from lungsynth.judge.scans import LungScore, ScanRecords


def fold(patient: str, *, dice: float, scores=(0.9,), alarms=()) -> Outcome:
    lung = LungScore(series=patient, patient=patient, slices=9, dice=dice, worst_slice=0, worst_dice=dice)
    scan = case(scores, alarms, patient=patient)
    return Outcome(scans=ScanRecords(cases=(scan,), unknown=(), lungs=(lung,)))


FOLDS = [fold("a", dice=0.96), fold("b", dice=1.0, scores=(0.1,), alarms=(0.8, 0.7))]


def test_pooled_folds_have_the_figures_of_all_their_patients():
    figures = measure(pool(FOLDS), seed=0).scans
    assert figures["lung_dice"].value == pytest.approx(0.98)
    assert (figures["sensitivity"].value, figures["sensitivity"].n) == (0.5, 2)
    assert figures["alarms"].value == 1.0
    assert figures["lung_dice"].patients == 2


def test_folds_at_different_operating_points_are_refused():
    with pytest.raises(InputError, match=r"one operating point, got \[0\.3, 0\.5\]"):
        pool([FOLDS[0], replace(FOLDS[1], operating_point=0.3)])


def test_methods_that_every_fold_has_are_written(tmp_path):
    folds = [tmp_path / "0", tmp_path / "1"]
    for folder, outcome in zip(folds, FOLDS, strict=True):
        for name in ("nothing", "dense_unet"):
            save_outcome(folder / ".parts" / f"{name}.json", outcome, identity="x")
    save_outcome(folds[0] / ".parts" / "unet.json", FOLDS[0], identity="x")
    text = judge_folds(folds, tmp_path / "out")
    assert "| dense_unet | 0.9800" in text
    assert "unet |" not in text.replace("dense_unet |", "")
    assert text == (tmp_path / "out" / "cross_validation.md").read_text()
    (folds[1] / ".parts" / "dense_unet.json").write_text("{}")
    with pytest.raises(InputError, match=r"dense_unet\.json: expected the records of a method"):
        judge_folds(folds, tmp_path / "out")
    with pytest.raises(InputError, match="no method in common"):
        judge_folds([folds[0], tmp_path / "none"], tmp_path / "out")
