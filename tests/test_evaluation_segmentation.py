"""Laws of Table I: an oracle is perfect, baselines are not, and what cannot be measured is null, not wrong."""

import json
import logging
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from segmentation_toys import Oracle, add_facts, write_method_bundle
from stores import new_store

from evaluation.cohort_subsets import open_subset
from evaluation.composites import Composites, evaluate_composites
from evaluation.methods import relation_to
from evaluation.segmentation.crops import evaluate_crops, one_reader_ceiling, read_crops
from evaluation.segmentation.detectors import (
    MiddleGuess,
    NothingFound,
    ThresholdDetector,
    detect,
    detector_names,
    find_detectors,
)
from evaluation.segmentation.errors import largest_errors
from evaluation.segmentation.figures import measure_result
from evaluation.segmentation.records import SegmentationResult, result_store
from evaluation.segmentation.run import SegmentationConfig, evaluate_segmentation
from evaluation.segmentation.scans import evaluate_scans, read_labelled_scan
from lungsynth.bundles import open_bundle
from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.errors import InputError
from lungsynth.placement.assets import PATCH_SPACING_MM

pytestmark = pytest.mark.usefixtures("few_resamples")

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "method",
    "sensitivity",
    "accuracy",
    "balanced_accuracy",
    "nodules_per_scan",
    "dice",
    "cpm",
    "false_positives_per_slice",
    "parameters",
    "seconds_per_scan",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    make_phantom_cohort(folder / "source", patients=4, seed=3, size_px=96, slices=16, slice_spacing_mm=12.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(split="test"), workers=1)
    return folder / "cohort"


@pytest.fixture(scope="module")
def subset(cohort):
    return open_subset(cohort)


@pytest.fixture(scope="module")
def composites(subset):
    with Composites(subset, count=6, seed=0, problems=[]) as made:
        yield made


def result_of(detector, subset, composites) -> SegmentationResult:
    return SegmentationResult(
        operating_point=detector.operating_point,
        crops=evaluate_crops(read_crops(subset, []), detector, name="toy"),
        composites=evaluate_composites(composites, detector, name="toy"),
        scans=evaluate_scans(subset, detector, name="toy", problems=[]),
    )


@pytest.fixture(scope="module")
def perfect(subset, composites) -> SegmentationResult:
    return result_of(Oracle(subset, composites), subset, composites)


# What is looked at


def test_a_subset_has_what_the_cohort_says(subset, cohort):
    series, nodules = pd.read_csv(cohort / "series.csv"), pd.read_csv(cohort / "nodules.csv")
    assert {s.series_id for s in subset.series} == set(series[series["slices"] > 0]["series_id"])
    assert [len(subset.cohort.slice_indices[s.series_id]) for s in subset.series] == series.sort_values("series_id")[
        "slices"
    ].tolist()
    assert len(subset.nodules) == len(nodules)
    assert subset.min_votes == 2
    assert subset.evaluated_nodules
    assert all(nodule.votes >= 2 and nodule.diameter_mm >= 3 for nodule in subset.evaluated_nodules)


def test_lesions_of_a_scan_lie_on_their_labels(subset):
    counted = [
        (scan, lesion) for s in subset.series for scan in [read_labelled_scan(subset, s)] for lesion in scan.lesions
    ]
    assert any(lesion.counts for _, lesion in counted)
    for scan, lesion in counted:
        if lesion.counts:
            assert scan.label[tuple(round(place) for place in lesion.centre)] == 2


def test_a_slice_that_was_not_written_is_unlabelled(subset, tmp_path):
    shutil.copytree(subset.folder, tmp_path / "cohort")
    series = subset.series[0]
    index = subset.cohort.slice_indices[series.series_id][3]
    for name in ("slices", "labels"):
        (tmp_path / "cohort" / name / f"{series.series_id}_{index:04d}.nii.gz").unlink()
    whole, scan = (read_labelled_scan(one, series) for one in (subset, open_subset(tmp_path / "cohort")))
    assert scan.hu.shape == whole.hu.shape
    assert (scan.label[3] == 255).all()
    assert np.array_equal(np.delete(scan.hu, 3, axis=0), np.delete(whole.hu, 3, axis=0))


def test_composites_follow_from_the_seed_and_show_their_nodule(subset, composites):
    assert len(composites) == 6
    with Composites(subset, count=6, seed=0, problems=[]) as again:
        assert all(np.array_equal(one.hu, other.hu) for one, other in zip(composites, again, strict=True))
    for image in composites:
        _, row, column = (round(place) for place in image.lesion.centre)
        assert image.label[row, column] == 2
    assert len({image.lesion.id for image in composites}) == min(6, len(subset.evaluated_nodules))


# Figures


def test_an_oracle_is_perfect(perfect):
    figures = measure_result(perfect, seed=0)
    values = {name: figure.value for name, figure in figures.headline.items()}
    for name in ("sensitivity", "accuracy", "balanced_accuracy", "dice", "cpm", "lung_dice"):
        assert values[name] == 1.0, name
    assert values["false_positives_per_slice"] == values["false_positives_per_scan"] == 0.0
    assert figures.scans["sensitivity"].value == figures.crops["sensitivity_off_centre"].value == 1.0
    assert sum(group["sensitivity"].n for group in figures.by_size.values() if "sensitivity" in group) == len(
        perfect.crops.cases
    )
    assert not [f for f in largest_errors(perfect) if f.image != "lung"]


def test_baselines_and_ceiling_are_in_between(subset, composites):
    nothing = measure_result(result_of(NothingFound(), subset, composites), seed=0)
    assert nothing.headline["accuracy"].value > 0.9
    assert nothing.headline["balanced_accuracy"].value == 0.5
    assert nothing.headline["sensitivity"].value == nothing.headline["cpm"].value == 0.0
    assert "lung_dice" not in nothing.headline
    ceiling = measure_result(SegmentationResult(crops=one_reader_ceiling(read_crops(subset, []))), seed=0)
    assert 0.5 < ceiling.crops["dice"].value <= 1
    assert "sensitivity" not in ceiling.headline


def test_a_guess_at_the_middle_passes_on_crops_and_fails_off_the_centre(subset, composites):
    figures = measure_result(
        SegmentationResult(crops=evaluate_crops(read_crops(subset, []), MiddleGuess(), name="middle")), seed=0
    )
    assert figures.headline["sensitivity"].value == 1.0
    small = [nodule.diameter_mm / 2 < 7 for nodule in subset.evaluated_nodules if nodule.expert_mask]
    assert figures.crops["sensitivity_off_centre"].value == pytest.approx(1 - np.mean(small))


def test_the_threshold_finds_a_ball_in_a_crop_and_gives_no_lung_there():
    hu = np.full((5, 64, 64), -850, np.int16)
    rows, columns = np.ogrid[:64, :64]
    hu[1:4, (rows - 32) ** 2 + (columns - 32) ** 2 <= 25] = 30
    hu[:, :, 60:] = 40  # the chest wall
    found = ThresholdDetector()(hu, (2.0, PATCH_SPACING_MM, PATCH_SPACING_MM))
    assert found["candidates"][:, :3].tolist() == [[2, 32, 32]]
    assert "lung" not in found


def test_the_largest_errors_say_what_happened(subset, composites):
    errors = largest_errors(result_of(NothingFound(), subset, composites))
    crops = [error for error in errors if error.image == "crop"]
    assert crops == sorted(crops, key=lambda error: -error.diameter_mm)
    assert "there is no candidate at all" in crops[0].sentence
    assert not any(nodule.patient_id in error.sentence for error in errors for nodule in subset.nodules)


def test_records_are_kept_and_only_for_the_same_evaluation(perfect, tmp_path):
    store = result_store(tmp_path)
    store.save("a", perfect, identity="one")
    assert store.load("a", identity="one") == perfect
    assert store.load("a", identity="two") is None
    store.path("a").write_text('{"identity": "one"}', encoding="utf-8")
    assert store.load("a", identity="one") is None


# Detectors


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, r"toy: a detector returns `candidates` \(n, 5\)"),
        ({"candidates": np.full((1, 5), np.nan)}, "of finite slice, row"),
        ({"candidates": np.full((1, 5), 2.0)}, r"lie in \[0, 1\], got 2 to 2"),
        ({"candidates": np.zeros((0, 5)), "nodule": np.zeros((1, 2))}, r"`nodule` must have the image's shape"),
    ],
)
def test_what_is_no_detection_is_refused(result, message):
    with pytest.raises(InputError, match=message):
        detect(lambda hu, spacing_mm: result, np.zeros((2, 4, 4), np.int16), (1.0, 1.0, 1.0), name="toy")


def test_methods_are_those_with_configs_and_weights(subset, tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "finding")
    assert detector_names(bundles) == ["cnn_vgg", "unet", "unet_plus_plus", "dense_unet"]
    methods, missing = find_detectors(subset, bundles, weights)
    assert [method.name for method in methods] == ["cnn_vgg", "unet", "dense_unet"]
    assert missing["unet_plus_plus"].startswith("unet_plus_plus.pt: expected a weights file")
    assert methods[0].parameters == 6
    with pytest.raises(InputError, match=r"\['yolo'\] are unknown"):
        find_detectors(subset, bundles, weights, requested=["yolo"])
    with pytest.raises(InputError, match=r"unet_plus_plus\.pt: expected a weights file"):
        find_detectors(subset, bundles, weights, requested=["unet_plus_plus"])
    own, other = (method.open() for method in (methods[2], methods[1]))
    assert (own.fill, other.fill) == (0.0, 0.5), "each has its own weights"


def test_a_detector_without_operating_point_is_refused(subset, tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "pointless")
    config = bundles / "lung_seg_bundle" / "configs" / "inference.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace(
            '"ckpt_path": "@ckpt_path"}', '"ckpt_path": "@ckpt_path", "operating_point": 3}'
        ),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=r"dense_unet: its detector needs an `operating_point` in \[0, 1\]"):
        find_detectors(subset, bundles, weights)[0][-1].open()


def test_weights_may_lie_outside_the_bundle(tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "outside")
    detector = open_bundle(bundles, "lung_seg", component="detector", weights=weights / "unet.pt")
    assert detector.fill == 0.5
    with pytest.raises(InputError, match=r"none\.pt: expected a weights file, found none"):
        open_bundle(bundles, "lung_seg", component="detector", weights=weights / "none.pt")


def test_relation_of_training_and_evaluated_patients(subset):
    source = subset.nodules[0].source
    assert relation_to(subset, {"split_hash": subset.split_hash, "data": [{"name": source}]}) == "held_out"
    assert relation_to(subset, {"split_hash": "other", "data": [{"name": source}]}) == "may_have_trained"
    assert relation_to(subset, {"split_hash": "other", "data": [{"name": "elsewhere"}]}) == "other_collections"
    assert relation_to(subset, {}) == "may_have_trained"


# The whole table


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory) -> tuple[SegmentationConfig, str]:
    folder = tmp_path_factory.mktemp("table")
    bundles, weights = write_method_bundle(folder, "evaluated")
    split_hash = json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))["split_hash"]
    add_facts(weights / "unet.pt", split_hash=split_hash, train_minutes=20)
    settings = SegmentationConfig(cohort=cohort, out=folder / "out", bundles=bundles, weights=weights, composites=4)
    uri = new_store(folder)
    evaluate_segmentation(settings, tracking_uri=uri)
    return settings, uri


def test_table_1_has_the_promised_form(evaluated, cohort):
    table = json.loads((evaluated[0].out / "table_1.json").read_text(encoding="utf-8"))
    assert {"n_patients", "lung_dice", "lung_dice_threshold", "rows"} <= set(table)
    assert table["n_patients"] == pd.read_csv(cohort / "series.csv")["patient_id"].nunique()
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["nothing", "threshold", "middle", "unet", "dense_unet"]
    assert all(set(row) >= KEYS for row in table["rows"])
    assert rows["unet"]["accuracy"] is rows["unet"]["dice"] is None, "it has no map"
    assert rows["unet"]["sensitivity"] == rows["dense_unet"]["sensitivity"]
    assert (rows["unet"]["train_minutes"], rows["unet"]["training"]) == (20, "held_out")
    assert (rows["dense_unet"]["parameters"], rows["dense_unet"]["training"]) == (6, "may_have_trained")
    assert set(table["left_out"]) == {"cnn_vgg", "unet_plus_plus"}
    assert "no memory left" in table["left_out"]["cnn_vgg"]
    assert 0.5 < table["lung_dice_threshold"] <= 1


def test_table_1_is_written_to_be_read(evaluated):
    text = (evaluated[0].out / "table_1.md").read_text(encoding="utf-8")
    assert "| Method | Sensitivity at 0.5 false positives per 100 cm2 | Sensitivity | paper |" in text
    assert "May have been trained on evaluated patients" in text
    assert "**Operating points of other weights**" in text  # sidecars of the toys state none
    assert "Left out: unet_plus_plus: unet_plus_plus.pt" in text
    assert (evaluated[0].out / "froc.png").stat().st_size > 5000
    listed = (evaluated[0].out / "errors" / "errors.md").read_text(encoding="utf-8")
    assert all(f"[{path.name}]" in listed for path in (evaluated[0].out / "errors").glob("*.png"))


def test_a_second_run_takes_up_what_is_there_and_writes_the_same(evaluated, caplog):
    config, uri = evaluated
    files = ["table_1.json", "table_1.md", "errors/errors.md"]
    before = [(config.out / name).read_bytes() for name in files]
    with caplog.at_level(logging.INFO, logger="evaluation"):
        evaluate_segmentation(config, tracking_uri=uri)
    kept = [record.message.partition(":")[0] for record in caplog.records if "taken from" in record.message]
    assert kept == ["nothing", "threshold", "middle", "unet", "dense_unet"]
    assert [(config.out / name).read_bytes() for name in files] == before


def test_a_requested_method_that_fails_is_an_error(evaluated):
    settings = SegmentationConfig(**{**vars(evaluated[0]), "methods": ("cnn_vgg",)})
    with pytest.raises(InputError, match=r"cnn_vgg: failed \(no memory left\)"):
        evaluate_segmentation(settings, tracking_uri=evaluated[1])


def test_held_out_patients_can_be_required(evaluated, tmp_path):
    settings = SegmentationConfig(**{**vars(evaluated[0]), "out": tmp_path, "require_held_out": True})
    with pytest.raises(InputError, match="they may have been trained on the evaluated patients"):
        evaluate_segmentation(settings, tracking_uri=evaluated[1])


def _without_crops(cohort: Path) -> None:
    for name in ("segmentation", "nodules"):
        lists = json.loads((cohort / f"{name}.json").read_text(encoding="utf-8"))
        kept = [entry for entry in lists["test"] if entry.get("kind") == "slice"]
        (cohort / f"{name}.json").write_text(json.dumps({**lists, "test": kept}), encoding="utf-8")
    table = pd.read_csv(cohort / "nodules.csv")
    table[table["votes"] < 0].to_csv(cohort / "nodules.csv", index=False)


def _without_slices(cohort: Path) -> None:
    for name in ("slices", "labels"):
        shutil.rmtree(cohort / name)
    (cohort / "lungs.json").write_text(json.dumps({"training": [], "validation": [], "test": []}), encoding="utf-8")


@pytest.mark.parametrize(
    ("remove", "known"), [(_without_crops, {"lung_dice_threshold"}), (_without_slices, {"sensitivity", "dice"})]
)
def test_a_cohort_of_one_kind_gives_the_figures_it_can(evaluated, tmp_path, remove: Callable[[Path], None], known):
    shutil.copytree(evaluated[0].cohort, tmp_path / "cohort")
    remove(tmp_path / "cohort")
    changed = {"cohort": tmp_path / "cohort", "out": tmp_path / "out", "methods": ("dense_unet",)}
    table = evaluate_segmentation(
        SegmentationConfig(**{**vars(evaluated[0]), **changed}), tracking_uri=evaluated[1]
    ).table
    row = table["rows"][-1]
    figures = {**row, "lung_dice_threshold": table["lung_dice_threshold"]}
    names = ("sensitivity", "dice", "cpm", "false_positives_per_slice", "lung_dice_threshold")
    assert {name for name in names if figures[name] is not None} == known
    assert table["n_patients"] > 0


def test_one_bad_file_does_not_stop_it(evaluated, tmp_path, caplog):
    cohort = tmp_path / "cohort"
    shutil.copytree(evaluated[0].cohort, cohort)
    subset = open_subset(cohort)
    subset.patch_path(subset.evaluated_nodules[0]).write_bytes(b"nothing")
    series = subset.series[0]
    index = subset.cohort.slice_indices[series.series_id][2]
    (cohort / "slices" / f"{series.series_id}_{index:04d}.nii.gz").write_bytes(b"nothing")
    changed = {"cohort": cohort, "out": tmp_path / "out", "methods": ("dense_unet",)}
    with caplog.at_level(logging.WARNING):
        result = evaluate_segmentation(
            SegmentationConfig(**{**vars(evaluated[0]), **changed}), tracking_uri=evaluated[1]
        )
    text = " ".join(result.problems)
    assert f"nodules/{subset.evaluated_nodules[0].nodule_id}.npz" in text
    assert f"slices/{series.series_id}_{index:04d}.nii.gz" in text
    assert str(tmp_path) not in text


def test_a_cohort_without_test_patients_is_refused(cohort):
    with pytest.raises(InputError, match="its validation split has no patient"):
        open_subset(cohort, "validation")


def test_the_script_evaluates_and_refuses(evaluated, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["main"]
    settings, uri = evaluated
    places = ["--out", str(settings.out), "--bundles", str(settings.bundles), "--weights", str(settings.weights)]
    options = [*places, "--tracking-uri", uri, "--methods", "dense_unet", "--composites", "4"]
    assert main(["segmentation", "--cohort", str(settings.cohort), *options]) == 0
    assert "Dense U-Net (this method)" in capsys.readouterr().out
    assert main(["segmentation", "--cohort", str(tmp_path / "none"), *options]) == 2
    assert "Give --cohort a folder" in capsys.readouterr().err
