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
from judge_toys import Oracle, tell, write_method_bundle

from evaluation.cohort_subsets import open_subset
from evaluation.composites import Composites, evaluate_composites
from evaluation.methods import find_methods, known_methods, open_detector, relation_to
from evaluation.segmentation import evaluate as contestants
from evaluation.segmentation.baselines import MiddleGuess, NothingFound, ThresholdDetector
from evaluation.segmentation.crops import evaluate_crops, one_reader_ceiling, read_crops
from evaluation.segmentation.detection import detect
from evaluation.segmentation.failures import largest_failures
from evaluation.segmentation.figures import measure
from evaluation.segmentation.records import SegmentationResult, load_result, save_result
from evaluation.segmentation.run import SegmentationSettings, evaluate_segmentation
from evaluation.segmentation.scans import evaluate_scans, read_scan
from lungsynth.bundles import open_bundle
from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.errors import InputError
from lungsynth.placement.assets import PATCH_SPACING_MM

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
    folder = tmp_path_factory.mktemp("judge")
    make_phantom_cohort(folder / "source", patients=4, seed=3, size_px=128, slices=24, slice_spacing_mm=8.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(split="test"), workers=1)
    return folder / "cohort"


@pytest.fixture(scope="module")
def part(cohort):
    return open_subset(cohort)


@pytest.fixture(scope="module")
def composites(part):
    with Composites(part, count=6, seed=0, problems=[]) as made:
        yield made


def outcome_of(detector, part, composites) -> SegmentationResult:
    return SegmentationResult(
        operating_point=detector.operating_point,
        crops=evaluate_crops(read_crops(part, []), detector, name="toy"),
        composites=evaluate_composites(composites, detector, name="toy"),
        scans=evaluate_scans(part, detector, name="toy", problems=[]),
    )


@pytest.fixture(scope="module")
def perfect(part, composites) -> SegmentationResult:
    return outcome_of(Oracle(part, composites), part, composites)


# What is looked at


def test_the_part_holds_what_the_cohort_says(part, cohort):
    series, nodules = pd.read_csv(cohort / "series.csv"), pd.read_csv(cohort / "nodules.csv")
    assert {s.id for s in part.series} == set(series[series["slices"] > 0]["series_id"])
    assert [len(s.indices) for s in part.series] == series.sort_values("series_id")["slices"].tolist()
    assert len(part.nodules) == len(nodules)
    assert part.min_votes == 2
    assert part.judged_nodules
    assert all(nodule.votes >= 2 and nodule.diameter_mm >= 3 for nodule in part.judged_nodules)


def test_lesions_of_a_scan_lie_on_their_labels(part):
    counted = [(scan, lesion) for s in part.series for scan in [read_scan(part.folder, s)] for lesion in scan.lesions]
    assert any(lesion.counts for _, lesion in counted)
    for scan, lesion in counted:
        if lesion.counts:
            assert scan.label[tuple(round(place) for place in lesion.centre)] == 2


def test_a_slice_that_was_not_written_is_unlabelled(part, tmp_path):
    series = part.series[0]
    thinned = type(series)(**{**vars(series), "indices": (*series.indices[:3], *series.indices[4:])})
    whole, scan = read_scan(part.folder, series), read_scan(part.folder, thinned)
    assert scan.hu.shape == whole.hu.shape
    assert (scan.label[3] == 255).all()
    assert np.array_equal(np.delete(scan.hu, 3, axis=0), np.delete(whole.hu, 3, axis=0))


def test_composites_follow_from_the_seed_and_show_their_nodule(part, composites):
    assert len(composites) == 6
    with Composites(part, count=6, seed=0, problems=[]) as again:
        assert all(np.array_equal(one.hu, other.hu) for one, other in zip(composites, again, strict=True))
    for image in composites:
        _, row, column = (round(place) for place in image.lesion.centre)
        assert image.label[row, column] == 2
    assert len({image.lesion.id for image in composites}) == min(6, len(part.judged_nodules))


# Figures


def test_an_oracle_is_perfect(perfect):
    figures = measure(perfect, seed=0)
    values = {name: figure.value for name, figure in figures.headline.items()}
    for name in ("sensitivity", "accuracy", "balanced_accuracy", "dice", "cpm", "lung_dice"):
        assert values[name] == 1.0, name
    assert values["false_positives_per_slice"] == values["false_positives_per_scan"] == 0.0
    assert figures.scans["sensitivity"].value == figures.crops["sensitivity_off_centre"].value == 1.0
    assert sum(group["sensitivity"].n for group in figures.by_size.values() if "sensitivity" in group) == len(
        perfect.crops.cases
    )
    assert not [f for f in largest_failures(perfect) if f.image != "lung"]


def test_baselines_and_ceiling_are_in_between(part, composites):
    nothing = measure(outcome_of(NothingFound(), part, composites), seed=0)
    assert nothing.headline["accuracy"].value > 0.9
    assert nothing.headline["balanced_accuracy"].value == 0.5
    assert nothing.headline["sensitivity"].value == nothing.headline["cpm"].value == 0.0
    assert "lung_dice" not in nothing.headline
    ceiling = measure(SegmentationResult(crops=one_reader_ceiling(read_crops(part, []))), seed=0)
    assert 0.5 < ceiling.crops["dice"].value <= 1
    assert "sensitivity" not in ceiling.headline


def test_a_guess_at_the_middle_passes_on_crops_and_fails_off_the_centre(part, composites):
    figures = measure(
        SegmentationResult(crops=evaluate_crops(read_crops(part, []), MiddleGuess(), name="middle")), seed=0
    )
    assert figures.headline["sensitivity"].value == 1.0
    small = [nodule.diameter_mm / 2 < 7 for nodule in part.judged_nodules if nodule.drawn]
    assert figures.crops["sensitivity_off_centre"].value == pytest.approx(1 - np.mean(small))


def test_the_threshold_finds_a_ball_in_a_crop_and_gives_no_lung_there():
    hu = np.full((5, 64, 64), -850, np.int16)
    rows, columns = np.ogrid[:64, :64]
    hu[1:4, (rows - 32) ** 2 + (columns - 32) ** 2 <= 25] = 30
    hu[:, :, 60:] = 40  # the chest wall
    found = ThresholdDetector()(hu, (2.0, PATCH_SPACING_MM, PATCH_SPACING_MM))
    assert found["candidates"][:, :3].tolist() == [[2, 32, 32]]
    assert "lung" not in found


def test_the_largest_errors_say_what_happened(part, composites):
    failures = largest_failures(outcome_of(NothingFound(), part, composites))
    crops = [failure for failure in failures if failure.image == "crop"]
    assert crops == sorted(crops, key=lambda failure: -failure.diameter_mm)
    assert "there is no candidate at all" in crops[0].sentence
    assert not any(nodule.patient in failure.sentence for failure in failures for nodule in part.nodules)


def test_records_are_kept_and_only_for_the_same_evaluation(perfect, tmp_path):
    save_result(tmp_path / "a.json", perfect, identity="one")
    assert load_result(tmp_path / "a.json", identity="one") == perfect
    assert load_result(tmp_path / "a.json", identity="two") is None
    (tmp_path / "a.json").write_text('{"identity": "one"}')
    assert load_result(tmp_path / "a.json", identity="one") is None


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


def test_methods_are_those_with_configs_and_weights(tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "finding")
    assert known_methods(bundles) == ["cnn_vgg", "unet", "unet_plus_plus", "dense_unet"]
    found, missing = find_methods(bundles, weights)
    assert [method.name for method in found] == ["cnn_vgg", "unet", "dense_unet"]
    assert missing["unet_plus_plus"].startswith("unet_plus_plus.pt: expected a weights file")
    assert found[0].parameters == 6
    with pytest.raises(InputError, match=r"\['yolo'\] are unknown"):
        find_methods(bundles, weights, wanted=["yolo"])
    with pytest.raises(InputError, match=r"unet_plus_plus\.pt: expected a weights file"):
        find_methods(bundles, weights, wanted=["unet_plus_plus"])
    own, other = (open_detector(method) for method in (found[2], found[1]))
    assert (own.fill, other.fill) == (0.0, 0.5), "each has its own weights"


def test_a_detector_without_operating_point_is_refused(tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "pointless")
    config = bundles / "lung_seg_bundle" / "configs" / "inference.json"
    config.write_text(
        config.read_text().replace('"ckpt_path": "@ckpt_path"}', '"ckpt_path": "@ckpt_path", "operating_point": 3}')
    )
    with pytest.raises(InputError, match=r"dense_unet: its detector needs an `operating_point` in \[0, 1\]"):
        open_detector(find_methods(bundles, weights)[0][-1])


def test_weights_may_lie_outside_the_bundle(tmp_path):
    bundles, weights = write_method_bundle(tmp_path, "outside")
    detector = open_bundle(bundles, "lung_seg", component="detector", weights=weights / "unet.pt")
    assert detector.fill == 0.5
    with pytest.raises(InputError, match=r"none\.pt: expected a weights file, found none"):
        open_bundle(bundles, "lung_seg", component="detector", weights=weights / "none.pt")


def test_relation_of_training_and_judged_patients(part):
    source = part.nodules[0].source
    assert relation_to(part, {"split_hash": part.split_hash, "data": [{"name": source}]}) == "held_out"
    assert relation_to(part, {"split_hash": "other", "data": [{"name": source}]}) == "may_have_trained"
    assert relation_to(part, {"split_hash": "other", "data": [{"name": "elsewhere"}]}) == "other_collections"
    assert relation_to(part, {}) == "may_have_trained"


# The whole table


@pytest.fixture(scope="module")
def judged(cohort, tmp_path_factory) -> tuple[SegmentationSettings, str]:
    folder = tmp_path_factory.mktemp("table")
    bundles, weights = write_method_bundle(folder, "judged")
    split_hash = json.loads((cohort / "cohort.json").read_text())["split_hash"]
    tell(weights / "unet.pt", split_hash=split_hash, train_minutes=20)
    settings = SegmentationSettings(cohort=cohort, out=folder / "out", bundles=bundles, weights=weights, composites=4)
    uri = f"sqlite:///{folder}/mlflow.db"
    evaluate_segmentation(settings, tracking_uri=uri)
    return settings, uri


def test_table_1_has_the_promised_form(judged, cohort):
    table = json.loads((judged[0].out / "table_1.json").read_text())
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


def test_table_1_is_written_to_be_read(judged):
    text = (judged[0].out / "table_1.md").read_text()
    assert "| Method | Sensitivity | paper | Segmented nodules a scan | paper | Accuracy | paper |" in text
    assert "May have been trained on judged patients" in text
    assert "**Operating points of other weights**" in text  # sidecars of the toys state none
    assert "Left out: unet_plus_plus: unet_plus_plus.pt" in text
    assert (judged[0].out / "froc.png").stat().st_size > 5000
    listed = (judged[0].out / "errors" / "errors.md").read_text()
    assert all(f"[{path.name}]" in listed for path in (judged[0].out / "errors").glob("*.png"))


def test_a_second_run_takes_up_what_is_there_and_writes_the_same(judged, monkeypatch):
    settings, uri = judged
    files = ["table_1.json", "table_1.md", "errors/errors.md"]
    before = [(settings.out / name).read_bytes() for name in files]
    run = contestants._judge

    def only_broken(contestant, images):
        assert contestant.name == "cnn_vgg", f"{contestant.name} was judged already"
        return run(contestant, images)

    monkeypatch.setattr(contestants, "_judge", only_broken)
    evaluate_segmentation(settings, tracking_uri=uri)
    assert [(settings.out / name).read_bytes() for name in files] == before


def test_a_wanted_method_that_fails_is_an_error(judged):
    settings = SegmentationSettings(**{**vars(judged[0]), "methods": ("cnn_vgg",)})
    with pytest.raises(InputError, match=r"cnn_vgg: failed \(RuntimeError: no memory left\)"):
        evaluate_segmentation(settings, tracking_uri=judged[1])


def test_held_out_patients_can_be_required(judged, tmp_path):
    settings = SegmentationSettings(**{**vars(judged[0]), "out": tmp_path, "require_held_out": True})
    with pytest.raises(InputError, match="they may know the judged patients"):
        evaluate_segmentation(settings, tracking_uri=judged[1])


def _without_crops(cohort: Path) -> None:
    for name in ("segmentation", "nodules"):
        lists = json.loads((cohort / f"{name}.json").read_text())
        kept = [entry for entry in lists["test"] if entry.get("kind") == "slice"]
        (cohort / f"{name}.json").write_text(json.dumps({**lists, "test": kept}))
    table = pd.read_csv(cohort / "nodules.csv")
    table[table["votes"] < 0].to_csv(cohort / "nodules.csv", index=False)


def _without_slices(cohort: Path) -> None:
    for name in ("slices", "labels"):
        shutil.rmtree(cohort / name)
    (cohort / "lungs.json").write_text(json.dumps({"training": [], "validation": [], "test": []}))


@pytest.mark.parametrize(
    ("remove", "known"), [(_without_crops, {"lung_dice_threshold"}), (_without_slices, {"sensitivity", "dice"})]
)
def test_a_cohort_of_one_kind_gives_the_figures_it_can(judged, tmp_path, remove: Callable[[Path], None], known):
    shutil.copytree(judged[0].cohort, tmp_path / "cohort")
    remove(tmp_path / "cohort")
    changed = {"cohort": tmp_path / "cohort", "out": tmp_path / "out", "methods": ("dense_unet",)}
    table = evaluate_segmentation(SegmentationSettings(**{**vars(judged[0]), **changed}), tracking_uri=judged[1]).table
    row = table["rows"][-1]
    figures = {**row, "lung_dice_threshold": table["lung_dice_threshold"]}
    names = ("sensitivity", "dice", "cpm", "false_positives_per_slice", "lung_dice_threshold")
    assert {name for name in names if figures[name] is not None} == known
    assert table["n_patients"] > 0


def test_one_bad_file_does_not_stop_it(judged, tmp_path, caplog):
    cohort = tmp_path / "cohort"
    shutil.copytree(judged[0].cohort, cohort)
    part = open_subset(cohort)
    (part.judged_nodules[0].patch).write_bytes(b"nothing")
    series = part.series[0]
    (cohort / "slices" / f"{series.id}_{series.indices[2]:04d}.nii.gz").write_bytes(b"nothing")
    changed = {"cohort": cohort, "out": tmp_path / "out", "methods": ("dense_unet",)}
    with caplog.at_level(logging.WARNING):
        result = evaluate_segmentation(SegmentationSettings(**{**vars(judged[0]), **changed}), tracking_uri=judged[1])
    text = " ".join(result.problems)
    assert f"nodules/{part.judged_nodules[0].id}.npz" in text
    assert f"slices/{series.id}_{series.indices[2]:04d}.nii.gz" in text
    assert str(tmp_path) not in text


def test_a_cohort_without_test_patients_is_refused(cohort):
    with pytest.raises(InputError, match="its validation part has no patient"):
        open_subset(cohort, "validation")


def test_the_script_judges_and_refuses(judged, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["main"]
    settings, uri = judged
    places = ["--out", str(settings.out), "--bundles", str(settings.bundles), "--weights", str(settings.weights)]
    options = [*places, "--tracking-uri", uri, "--methods", "dense_unet", "--composites", "4"]
    assert main(["segmentation", "--cohort", str(settings.cohort), *options]) == 0
    assert "Dense U-Net (this method)" in capsys.readouterr().out
    assert main(["segmentation", "--cohort", str(tmp_path / "none"), *options]) == 2
    assert "Give --cohort a folder" in capsys.readouterr().err
