"""Laws of the detectors' experiment: windows, what is inserted, and how many patients an arm is worth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule
from evaluation.segmentation.windows import WindowRecords
from evaluation.utility.arms import REAL_WINDOWS, window_arms
from evaluation.utility.detection import DetectionTraining, train_detector
from evaluation.utility.detection_runs import DetectionRun
from evaluation.utility.insertion import insert_nodules
from evaluation.utility.windows import TrainingWindows, cut_windows, join_windows, lung_of
from evaluation.utility.worth import FIGURES, MAIN_FIGURE, MIDDLE_FIGURE, chosen_arms, power, worth_rows
from evaluation.utility.worth_report import save_worth_plot, worth_json, worth_markdown
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary

PX = 128
COPIED, GENERATED = (window_arms((0.3,), (family,))[-1] for family in ("copied", "generated"))


# Windows


def lung_window() -> np.ndarray:
    """Lung with a vessel on the left, the chest wall, and air outside of it on the right."""
    hu = np.full((PX, PX), -850, np.int16)
    hu[60:64] = 30
    hu[:, 80:100] = 40
    hu[:, 100:] = -1000
    return hu


def windows(count: int = 6) -> TrainingWindows:
    rng = np.random.default_rng(0)
    hu = np.stack([lung_window()] * count) + rng.normal(0, 15, (count, PX, PX)).astype(np.int16)
    label = np.zeros((count, PX, PX), np.uint8)
    hu[:, 20:30, 20:30], label[:, 20:30, 20:30] = 20, Label.NODULE
    return TrainingWindows(hu=hu, label=label)


def test_lung_holds_its_vessels_and_no_air_outside():
    lung = lung_of(lung_window())
    assert lung[:, :78].all()
    assert not lung[:, 82:].any()


def test_windows_of_generated_lungs_show_lung_and_no_nodule():
    hu, mask = np.full((300, 300), -850, np.int16), np.zeros((300, 300), bool)
    mask[150:, 150:] = True
    made = cut_windows([(hu, mask)], 5, seed=1)
    assert len(made) == 5
    assert all(plane.mean() >= 0.3 for plane in made.lung)
    assert not made.label.any()
    with pytest.raises(InputError, match="show enough lung"):
        cut_windows([(hu, np.zeros_like(mask))], 2, seed=1)


# What is inserted


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> AssetLibrary:
    library = AssetLibrary(tmp_path_factory.mktemp("library"))
    rows, columns = np.mgrid[:64, :64] - 31.5
    for number, radius in enumerate((6.0, 8.0)):
        alpha = np.clip(radius - np.hypot(rows, columns), 0, 1)
        hu = np.where(alpha > 0, 30, -850).astype(np.int16)
        library.add_nodule(hu, alpha, category="solid", source="generated", origin=str(number))
    library.save_table()
    return library


def test_an_inserted_nodule_is_labelled_and_nothing_else_changes(library):
    hosts = windows()
    made = insert_nodules(hosts, library, 4, seed=3)
    assert len(made) == 4
    for hu, label in zip(made.hu, made.label, strict=True):
        assert label[20:30, 20:30].all(), "the patient's own nodule stays"
        assert (label == Label.NODULE).sum() > 100 + 40
        own = [index for index in range(len(hosts)) if (hosts.hu[index] == hu).mean() > 0.9]
        assert len(own) == 1
        assert (hu != hosts.hu[own[0]])[label == 0].mean() < 0.05
    again = insert_nodules(hosts, library, 4, seed=3)
    assert (again.hu == made.hu).all()


def test_where_nothing_fits_it_is_said(library):
    hosts = windows(2)
    with pytest.raises(InputError, match="Nodules fit into 0 windows"):
        insert_nodules(replace(hosts, lung=np.zeros(hosts.hu.shape, bool)), library, 2, seed=0)


# Trainings


def test_a_training_repeats_itself_and_takes_what_is_added():
    training, real = DetectionTraining(steps=2, batch_size=2, size_px=32), windows(2)
    nothing = replace(real, label=np.zeros_like(real.label))
    hu = real.hu[:1]
    maps = [
        train_detector(real, training, seed=1)(hu, (1.0, 0.7, 0.7))["nodule"],
        train_detector(real, training, seed=1)(hu, (1.0, 0.7, 0.7))["nodule"],
        train_detector(real, training, seed=1, added=nothing, share=1.0)(hu, (1.0, 0.7, 0.7))["nodule"],
    ]
    assert maps[0].shape == (1, PX, PX)
    assert (maps[0] == maps[1]).all()
    assert (maps[0] != maps[2]).any()
    with pytest.raises(InputError, match="no windows are added"):
        train_detector(real, training, seed=1, share=0.5)
    with pytest.raises(InputError, match="multiple of 16"):
        DetectionTraining(size_px=50)
    assert len(join_windows([real, nothing])) == 4


# What an arm is worth


def records(found: int, patients: int = 40) -> WindowRecords:
    """Of as many nodules the first are found, above one false positive in each window."""
    cases, pixels = [], []
    for index in range(patients):
        nodule = ReferenceNodule(
            id=f"n{index}",
            patient=f"t{index}",
            centre=(0.0, 0.0, 0.0),
            diameter_mm=4.0 + index % 20,
            category="solid" if index % 2 else "ground_glass",
            score=0.9 if index < found else None,
            nearest_mm=None,
            nearest_probability=None,
        )
        false = FalsePositive(centre=(0.0, 0.0, 0.0), diameter_mm=0.0, probability=0.5, nearest_mm=None)
        cases.append(
            Case(
                id=f"n{index}",
                patient=f"t{index}",
                slices=1,
                seconds=0.0,
                marked=0,
                nodules=(nodule,),
                false_positives=(false,),
            )
        )
        pixels.append(
            PixelCounts(
                patient=f"t{index}",
                nodule=f"n{index}",
                true_positive=5,
                false_positive=5,
                false_negative=5,
                true_negative=50,
            )
        )
    return WindowRecords(cases=tuple(cases), pixels=tuple(pixels))


def run(patients: int, arm, found: int, *, seed: int = 0, validation: float = 0.5) -> DetectionRun:
    return DetectionRun(patients=patients, seed=seed, arm=arm, records=records(found), validation=validation)


@pytest.fixture(scope="module")
def rows():
    runs = [run(10, REAL_WINDOWS, 16), run(40, REAL_WINDOWS, 24), run(160, REAL_WINDOWS, 32)]
    runs += [run(10, GENERATED, 24, validation=0.6), run(10, COPIED, 20)]
    return worth_rows(runs, seed=0, resamples=60)


def row(rows, patients: int, arm, figure: str = MAIN_FIGURE):
    return next(row for row in rows if (row.patients, row.arm, row.figure) == (patients, arm, figure))


def test_an_arm_is_worth_the_patients_with_the_same_sensitivity(rows):
    generated = row(rows, 10, GENERATED)
    assert generated.value.value == pytest.approx(0.6)
    assert generated.worth_patients.value == pytest.approx(40)
    assert generated.gap_closed.value == pytest.approx(0.5)
    assert generated.vs_real_only.value == pytest.approx(0.2)
    assert generated.vs_copy_paste.value == pytest.approx(0.1)
    assert row(rows, 10, COPIED).worth_patients.value == pytest.approx(20)
    assert row(rows, 10, REAL_WINDOWS).worth_patients.value == pytest.approx(10)
    assert row(rows, 160, REAL_WINDOWS).vs_real_only is None
    assert row(rows, 10, GENERATED, "dice").value.value == pytest.approx(0.5)
    assert row(rows, 10, GENERATED, "dice").worth_patients is None
    assert {one.figure for one in rows} == set(FIGURES)


def test_differences_are_paired(rows):
    """An arm that finds what real only finds and no more differs by nothing in any draw."""
    same = worth_rows([run(10, REAL_WINDOWS, 16), run(10, GENERATED, 16)], seed=0, resamples=20)
    difference = row(same, 10, GENERATED).vs_real_only
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    low, high = row(rows, 10, GENERATED).vs_real_only.low, row(rows, 10, GENERATED).vs_real_only.high
    assert 0 < low < 0.2 < high


def test_differences_are_of_the_draws_that_both_have():
    runs = [run(10, REAL_WINDOWS, 16), run(10, REAL_WINDOWS, 30, seed=1), run(10, GENERATED, 20)]
    rows = worth_rows(runs, seed=0, resamples=20)
    assert row(rows, 10, GENERATED).vs_real_only.value == pytest.approx(0.1)
    assert power(rows)[f"{MAIN_FIGURE}, 10 patients"] > 0


def test_false_positives_where_no_nodule_lies_do_not_count_in_the_middle():
    one = run(10, REAL_WINDOWS, 16)
    border = FalsePositive(centre=(0.0, 5.0, 50.0), diameter_mm=0.0, probability=0.95, nearest_mm=None)
    cases = tuple(replace(case, false_positives=(border,)) for case in one.records.cases)
    rows = worth_rows([replace(one, records=replace(one.records, cases=cases))], seed=0, resamples=5)
    assert row(rows, 10, REAL_WINDOWS).value.value == 0
    assert row(rows, 10, REAL_WINDOWS, MIDDLE_FIGURE).value.value == pytest.approx(0.4)


def test_validation_patients_choose_the_dose():
    weak, strong = window_arms((0.15, 0.6), ("generated",))[1:]
    runs = [run(10, REAL_WINDOWS, 16), run(10, weak, 30, validation=0.4), run(10, strong, 10, validation=0.7)]
    assert chosen_arms(runs) == {(10, REAL_WINDOWS), (10, strong)}
    runs[1] = replace(runs[1], validation=0.7)
    assert (10, weak) in chosen_arms(runs), "the smaller of equal doses"


def test_the_report(rows, tmp_path):
    text = worth_markdown(rows, {"split": "test"})
    assert "10 patients (n 40, seeds 1)" in text
    assert "generated in their own lungs, 30% of windows" in text
    written = [json.loads(json.dumps(worth_json(one, "plain"))) for one in rows]
    chosen = [one for one in written if one["arm"] == "generated" and one["figure"] == MAIN_FIGURE]
    assert [(one["dose"], one["chosen"], one["patients"]) for one in chosen] == [(0.3, True, 10)]
    assert save_worth_plot(rows, tmp_path / "worth.png").stat().st_size > 1000
