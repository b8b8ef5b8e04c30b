"""Laws of generating: a seed gives its bytes however it is run, a stop costs nothing, bad input leaves nothing."""

import importlib.util
import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fake_bundles import linear_state, write_fake_bundles, write_weights
from fake_cohort import write_fake_cohort
from main_path import depth, executed, on_the_way
from stores import new_store

from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig
from lungsynth.ct.write import read_plane
from lungsynth.detectability import compare_with_label, marks_of
from lungsynth.errors import InputError
from lungsynth.export import formats
from lungsynth.export.split import PARTS
from lungsynth.generate import generate
from lungsynth.geometry import lps_to_voxel
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.rules import PlacementRules
from lungsynth.placement.spread import spread_pairs
from lungsynth.seeds import SeedStream, seeds
from lungsynth.tracking import open_tracker
from lungsynth.variety import VarietyFigures

COUNT = 12
MODULE = sys.modules["lungsynth.generate"]  # whose name is that of a function in the package


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "generating")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, bundles, store) -> tuple[GenerateConfig, set[str]]:
    """A run, and the modules that worked in it."""
    settings = GenerateConfig(
        out=tmp_path_factory.mktemp("finished") / "out", count=COUNT, seed=5, bundles=bundles, batch_size=1
    )
    return settings, executed(lambda: generate(settings, tracking_uri=store))


@pytest.fixture(scope="module")
def finished(first_run) -> GenerateConfig:
    return first_run[0]


def test_few_modules_work_in_a_run(first_run):
    """What a newcomer has to read. A number that does not hold any more: join what is one concept, or leave it out."""
    ran = first_run[1]
    assert len(ran) <= 44, sorted(ran)
    assert len(on_the_way(ran)) <= 20, sorted(on_the_way(ran))
    assert len(depth("lungsynth.generate")) <= 9, depth("lungsynth.generate")


def content(folder: Path) -> dict[str, bytes]:
    """All files but the notes of what is done, which depend on the batch size."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".parts"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def placed(config: GenerateConfig, **changes: object) -> GenerateConfig:
    """The same with other placement."""
    return replace(config, placement=replace(config.placement, **changes))


def runs(store: str, out: Path) -> dict[str, str]:
    tracker = open_tracker(store)
    found = tracker.client.search_runs([tracker.experiment_id])
    return {run.info.run_name: run.info.status for run in found if out.name in run.info.run_name}


def test_a_run_ends_with_the_files_of_contract_c8(finished):
    out = finished.out
    recipes = read_catalogue(out / "catalogue.parquet")
    ids = {recipe.id for recipe in recipes}
    names = {"images", "masks", "assets", "annotations.csv", "catalogue.parquet", "datalist.json", "assets.parquet"}
    names |= {"catalogue.groups.parquet", "coco.json", "detection.json", "checksums.sha256", "enhanced.json", ".parts"}
    assert {path.name for path in out.iterdir()} == names | {
        "contact_sheet.png",
        "run.json",
        "selection.json",
        "variety.json",
        "report.html",
        "README.md",
    }
    for folder in ("images", "masks"):
        assert {path.name.removesuffix(".nii.gz") for path in (out / folder).iterdir()} == ids
    lists = json.loads((out / "datalist.json").read_text(encoding="utf-8"))
    entries = [entry for part in PARTS for entry in lists[part]]
    assert all((out / entry[key]).is_file() for entry in entries for key in ("image", "label"))
    assert len(ids) == len(entries) == COUNT


def test_each_sample_says_that_it_is_synthetic_and_is_centred_on_the_origin(finished):
    recipe = read_catalogue(finished.out / "catalogue.parquet")[0]
    image = nib.load(finished.out / "images" / f"{recipe.id}.nii.gz")
    assert image.header["descrip"].item().decode() == f"synthetic: lungsynth {recipe.id}"
    assert image.get_data_dtype() == np.int16
    middle = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
    assert np.allclose(middle[:2], 0, atol=1e-4)


def test_annotations_lie_on_their_nodules(finished):
    table = pd.read_csv(finished.out / "annotations.csv")
    assert list(table.columns) == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm", "texture"]
    for row in table.itertuples():
        mask, affine = read_plane(finished.out / "masks" / f"{row.seriesuid}.nii.gz")
        index = np.rint(lps_to_voxel(affine, np.array([row.coordX, row.coordY, row.coordZ]))).astype(int)
        assert mask[index[1], index[2]] == 2


def test_categories_get_equal_numbers(finished):
    recipes = read_catalogue(finished.out / "catalogue.parquet")
    categories = [recipe.nodules[0].category for recipe in recipes]
    assert [categories.count(name) for name in ("ground_glass", "part_solid", "solid")] == [4, 4, 4]
    assert len(set(categories[:3])) == 3


def test_pairs_are_spread_over_lungs_and_groups_as_long_as_there_are_others():
    farthest_first = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 2)]
    assert spread_pairs(farthest_first, 4, lungs=4, groups=4, max_reuse=2.0) == [0, 1, 4, 5]
    assert spread_pairs(farthest_first[:3], 3, lungs=4, groups=4, max_reuse=2.0) == [0, 1, 2]


def test_the_enhancer_comes_last(finished, tmp_path):
    plain = replace(finished, out=tmp_path / "plain", enhancement=EnhancementConfig(enabled=False))
    generate(plain, tracking_uri=None)
    recipe, other = (read_catalogue(run.out / "catalogue.parquet")[0] for run in (finished, plain))
    assert recipe.id == other.id
    enhanced, _ = read_plane(finished.out / "images" / f"{recipe.id}.nii.gz")
    before, _ = read_plane(plain.out / "images" / f"{recipe.id}.nii.gz")
    mask, _ = read_plane(plain.out / "masks" / f"{recipe.id}.nii.gz")
    assert np.array_equal(enhanced.astype(int) - before, (mask != 2).astype(int))
    assert (recipe.weights_enhancer is None, other.weights_enhancer is None) == (False, True)


def test_same_seed_same_bytes_at_any_batch_size_tracked_or_not(finished, tmp_path):
    again = replace(finished, out=tmp_path / "again", batch_size=7)
    generate(again, tracking_uri=None)
    assert content(again.out) == content(finished.out)


def test_another_seed_gives_other_samples(finished, tmp_path):
    other = replace(finished, out=tmp_path / "other", seed=6, count=3)
    generate(other, tracking_uri=None)
    assert not {path.name for path in (other.out / "images").iterdir()} & {
        path.name for path in (finished.out / "images").iterdir()
    }


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        (AssetLibrary, "add_nodule", 5),
        (MODULE, "plan_catalogue", 1),
        (formats, "write_plane", 7),
        (MODULE, "write_picture", 1),
        (MODULE, "check_detectability", 1),
    ],
)
def test_stopped_anywhere_and_started_again_it_ends_with_the_same_bytes(
    finished, store, tmp_path, monkeypatch, module, name, calls
):
    settings = replace(finished, out=tmp_path / f"stopped_{name}", batch_size=5)
    work, left = getattr(module, name), [calls]

    def breaks(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("the plug was pulled")
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, breaks)
        with pytest.raises(RuntimeError, match="the plug was pulled"):
            generate(settings, tracking_uri=store)
    assert "FAILED" in runs(store, settings.out).values()
    # What a killed process leaves behind, beside its run that never ended.
    (settings.out / ".run.json.1.tmp").write_text("half", encoding="utf-8")
    (settings.out / "assets").mkdir(exist_ok=True)
    (settings.out / "assets" / ".a.npy.1.part").write_text("half", encoding="utf-8")
    generate(settings, tracking_uri=None)
    assert content(settings.out) == content(finished.out)


def test_a_failed_stage_ends_its_run_and_the_parent_as_failed(finished, store, tmp_path, monkeypatch):
    settings = replace(finished, out=tmp_path / "failing")
    monkeypatch.setattr(MODULE, "plan_catalogue", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(settings, tracking_uri=store)
    assert runs(store, settings.out) == {
        "generate failing": "FAILED",
        "failing/assets": "FINISHED",
        "failing/plan": "FAILED",
    }


def test_who_continues_a_folder_continues_its_run(finished, store, tmp_path):
    settings = replace(finished, out=tmp_path / "killed", count=3)
    tracker = open_tracker(store)
    abandoned = tracker.client.create_run(tracker.experiment_id, run_name="killed before").info.run_id
    (settings.out / ".parts").mkdir(parents=True)
    (settings.out / ".parts" / "mlflow_run").write_text(abandoned, encoding="utf-8")
    for _ in range(2):
        result = generate(settings, tracking_uri=store)
        assert f"/runs/{abandoned}?" in result.tracking_page
    children = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{abandoned}'")
    assert sorted(run.data.tags["stage"] for run in children) == ["assets", "check", "export", "plan"]
    assert tracker.client.get_run(abandoned).info.status == "FINISHED"


def test_the_parent_run_has_a_child_a_stage_and_holds_no_path(finished, store):
    tracker = open_tracker(store)
    found = tracker.client.search_runs([tracker.experiment_id])
    parent = next(run for run in found if run.info.run_name == "generate out")
    children = {
        run.data.tags["stage"]: run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == {"assets", "plan", "export", "check"}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert children["plan"].data.metrics["distinct_nodules"] >= COUNT
    planned = [item.path for item in tracker.client.list_artifacts(children["plan"].info.run_id)]
    assert planned == ["figures.json", "variety.json"]
    assert 0 <= parent.data.metrics["nodules_found"] == children["check"].data.metrics["nodules_found"] <= 1
    assert parent.data.metrics["distinct_nodules"] >= COUNT
    assert parent.data.tags["mlflow.note.content"].startswith(f"{COUNT} synthetic slices")
    inputs = [entry.dataset.name for entry in parent.inputs.dataset_inputs]
    assert inputs == [f"training data of {name}" for name in ("lung_seg", "wcapsgan", "wcapsgan_lung", "cyclegan")]
    artifacts = [item.path for item in tracker.client.list_artifacts(children["export"].info.run_id)]
    assert artifacts == ["figures.json", "images", "samples"]
    assert [item.path for item in tracker.client.list_artifacts(parent.info.run_id)] == [
        "configs",
        "images",
        "report.html",
        "run.json",
        "weights",
    ]
    logged = str([[run.data.params, run.data.tags] for run in [parent, *children.values()]])
    assert str(finished.out.parent) not in logged
    assert str(finished.bundles) not in logged


def test_the_report_stands_alone_and_says_what_came_and_what_may_be_done(finished):
    text = (finished.out / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{COUNT} synthetic lung CT slices</h1>" in text
    for heading in ("Asked and made", "A slice as it is", "Distributions", "Variety", "Checks", "Data set card"):
        assert f"<h2>{heading}</h2>" in text
    assert "CC BY 4.0" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "nothing is loaded from elsewhere"
    assert len(text) < 3_000_000
    assert str(finished.out.parent) not in text
    assert "CC BY 4.0" in (finished.out / "README.md").read_text(encoding="utf-8")


def test_with_a_cohort_the_report_compares_and_names_no_patient(bundles, cohort, tmp_path):
    out = tmp_path / "out"
    generate(GenerateConfig(out=out, count=4, seed=1, bundles=bundles, cohort=cohort), tracking_uri=None, command="go")
    text = re.sub('base64,[^"]+', "", (out / "report.html").read_text(encoding="utf-8"))
    assert "real: patient" in text
    assert "<pre>go</pre>" in text
    assert ">real</text>" in text
    patients = {entry.patient_id for entry in Cohort.open(cohort).split("training").nodules()}
    assert not [patient for patient in patients if patient and re.search(rf"\b{patient}\b", text)]


def test_a_mark_finds_its_nodule_or_is_another_finding():
    label = np.ones((40, 40), np.uint8)
    marked = np.zeros((40, 40), bool)
    label[5:9, 5:9] = label[20:24, 20:24] = 2
    marked[8:10, 8:10] = True  # on the first nodule's corner
    marked[33:35, 33:35] = True
    assert compare_with_label(marked, label) == ([True, False], 1)
    probability = np.where(marked, np.float32(0.6), np.float32(0.1))
    probability[33, 33] = 0.95
    assert marks_of(probability, 0.9).sum() == 4
    assert compare_with_label(marks_of(probability, 0.9), label) == ([False, False], 1)
    assert not marks_of(np.zeros((4, 4), np.float32), 0.9).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "seed is 5 there and 6 here"),
        ({"enhancement": EnhancementConfig(enabled=False)}, "enhance is true there and false here"),
        (
            {"count": 13, "placement": PlacementConfig(lungs=3)},
            "lungs is null there and 3 here",
        ),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(finished, store, change, message):
    before = content(finished.out)
    with pytest.raises(InputError, match=message):
        generate(replace(finished, **change), tracking_uri=store)
    assert content(finished.out) == before


def test_a_folder_with_other_files_is_refused(finished, store, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds other files and no run\.json"):
        generate(replace(finished, out=tmp_path), tracking_uri=store)


def test_an_unreachable_store_is_told_before_any_work(finished, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no MLflow store answers"):
        generate(replace(finished, out=out), tracking_uri="http://127.0.0.1:9")
    assert not out.exists()


def test_too_few_fitting_groups_are_told(finished, store, tmp_path):
    with pytest.raises(InputError, match=r"1 lungs and 1 groups of a category give \d usable samples"):
        generate(placed(replace(finished, out=tmp_path / "out"), lungs=1, groups=1), tracking_uri=store)


@pytest.mark.parametrize(
    ("option", "message"), [({"count": 0}, "`count` must be at least 1"), ({"seed": -1}, "`seed`")]
)
def test_numbers_out_of_range_are_refused(finished, option, message):
    with pytest.raises(InputError, match=message):
        replace(finished, **option)


def test_the_papers_numbers_come_out_at_a_million():
    config = GenerateConfig(
        out=Path("out"), count=1_000_000, bundles=Path("bundles"), placement=PlacementConfig.paper()
    )
    sizes = config.sizes(3)
    assert (sizes.lungs, sizes.groups, sizes.nodules) == (500, 5000, 1200)


@pytest.mark.parametrize(("count", "lungs", "nodules"), [(10, 5, 14), (64, 32, 87), (1000, 500, 1200)])
def test_what_is_made_follows_from_how_many_samples_are_asked_for(count, lungs, nodules):
    sizes = GenerateConfig(out=Path("out"), count=count, bundles=Path("bundles")).sizes(3)
    assert (sizes.lungs, sizes.nodules) == (lungs, nodules)


def test_a_finished_run_grows_and_keeps_its_samples(finished, tmp_path):
    out = tmp_path / "grown"
    shutil.copytree(finished.out, out)
    before = content(out)
    grown = replace(finished, out=out, count=COUNT + 6)
    result = generate(grown, tracking_uri=None)
    recipes, earlier = (read_catalogue(run.out / "catalogue.parquet") for run in (grown, finished))
    assert [recipe.id for recipe in recipes][:COUNT] == [recipe.id for recipe in earlier]
    assert len(recipes) == COUNT + 6
    after = content(out)
    assert all(
        after[name] == value for name, value in before.items() if name.startswith(("images/", "masks/", "assets/"))
    )
    assert result.variety.distinct_nodules >= COUNT + 6
    generate(grown, tracking_uri=None)
    assert content(out) == after
    with pytest.raises(InputError, match="count is 18 there and 12 here"):
        generate(replace(grown, count=COUNT), tracking_uri=None)


def test_each_sample_has_nodules_and_places_of_its_own(finished):
    variety = VarietyFigures.read(finished.out)
    assert variety.distinct_nodules == variety.nodules >= variety.samples == COUNT
    assert variety.distinct_places == variety.nodules
    assert (variety.most_often_nodule, variety.most_often_lung) == (1, 2)
    lung = next(asset for asset in AssetLibrary(finished.out) if asset.kind == "lung")
    assert variety.smallest_mm >= PlacementRules().smallest_mm(lung.spacing_mm)
    assert not variety.warnings
    assert f"{COUNT} samples with {variety.nodules} different nodules" in variety.lines()[0]
    assert variety.metrics()["distinct_lungs"] == 6


def test_a_set_that_repeats_itself_is_told(finished):
    poor = replace(
        VarietyFigures.read(finished.out), samples=64, asked=70, nodules=64, within_10_mm=0.1, target_gap=0.7
    )
    said = " ".join(poor.warnings)
    assert "64 samples have" in said
    assert "64 of 70 samples fit" in said
    assert "10% of the nodules lie within 10 mm" in said
    assert "the target is missed: 70%" in said


def test_the_papers_crossing_is_a_preset(finished, tmp_path):
    settings = replace(finished, out=tmp_path / "paper", placement=PlacementConfig.paper())
    variety = generate(settings, tracking_uri=None).variety
    assert variety.distinct_nodules < COUNT
    assert any("repeats itself" in text for text in variety.warnings)


def test_categories_and_sizes_come_as_asked(finished, tmp_path):
    asked = {"categories": {"solid": 2.0, "part_solid": 1.0}, "diameters_mm": (8.0, 12.0)}
    settings = placed(replace(finished, out=tmp_path / "asked", count=9), **asked)
    variety = generate(settings, tracking_uri=None).variety
    recipes = read_catalogue(settings.out / "catalogue.parquet")
    assert Counter(recipe.category for recipe in recipes) == {"solid": 6, "part_solid": 3}
    assert variety.smallest_mm > 6.5
    with pytest.raises(InputError, match=r"`categories` names \['cubic'\]"):
        generate(placed(replace(finished, out=tmp_path / "b"), categories={"cubic": 1.0}), tracking_uri=None)


def test_more_seeds_begin_with_the_fewer():
    assert seeds(7, SeedStream.GROUPS, 1, n=9)[:4] == seeds(7, SeedStream.GROUPS, 1, n=4)
    assert not set(seeds(7, SeedStream.GROUPS, n=4)) & set(seeds(7, SeedStream.SAMPLES, n=4))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, bundles) -> Path:
    return write_fake_cohort(tmp_path_factory.mktemp("cohort"), open_bundle(bundles, "wcapsgan"))


def test_real_ones_are_mixed_in_the_papers_proportion_from_the_training_part(finished, tmp_path, cohort):
    settings = placed(replace(finished, out=tmp_path / "mixed", cohort=cohort), lungs=20, groups=36, nodules=72)
    generate(settings, tracking_uri=None)
    assets = list(AssetLibrary(settings.out))
    real = [asset for asset in assets if asset.source == "real"]
    assert len([asset for asset in assets if asset.kind == "nodule"]) == 72
    assert len([asset for asset in real if asset.kind == "nodule"]) == 12  # 200 : 1000
    names = Cohort.open(cohort).pseudonyms
    assert {asset.origin for asset in real if asset.kind == "lung"} == {names.slices[name] for name in ("t0", "t1")}
    known = {name: known for own in (names.nodules, names.slices) for known, name in own.items()}
    assert {known[asset.origin][0] for asset in real} == {"t"}  # 50 : 450
    assert len({asset.spacing_mm for asset in assets if asset.kind == "lung"}) == 1  # real ones on the generator's grid
    assert json.loads((settings.out / "run.json").read_text(encoding="utf-8"))["cohort_split_hash"] == "ab" * 32


def test_a_damaged_nodule_is_left_out_and_a_generated_one_takes_its_place(finished, tmp_path, cohort, caplog):
    settings = replace(finished, out=tmp_path / "mixed", cohort=tmp_path / "cohort")
    settings.cohort.mkdir()
    for path in cohort.glob("*.json"):
        (settings.cohort / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    generate(settings, tracking_uri=None)  # none of the files stands there
    assert {asset.source for asset in AssetLibrary(settings.out)} == {"generated"}
    assert "left out: " in caplog.text


def test_a_folder_that_is_no_cohort_is_refused(finished, store, tmp_path):
    with pytest.raises(InputError, match=r"cohort\.json: expected this file of a cohort"):
        generate(replace(finished, out=tmp_path / "out", cohort=tmp_path), tracking_uri=store)


def script():
    path = Path(__file__).parents[1] / "scripts" / "synthesize.py"
    spec = importlib.util.spec_from_file_location("synthesize", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_says_where_everything_is(finished, store, capsys):
    options = ["--out", str(finished.out), "--count", str(COUNT), "--seed", "5", "--bundles", str(finished.bundles)]
    before = content(finished.out)
    assert script().main([*options, "--tracking-uri", store]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("contact_sheet.png", "masks", "annotations.csv", "catalogue.parquet", store))
    command, address = told.rstrip().splitlines()[-2:]
    assert command.endswith(f"ui --backend-store-uri {store}")
    assert "then open http" in address
    assert "/runs/" in address
    now = content(finished.out)
    assert b"lungsynth generate --out OUT --count 12 --seed 5" in now.pop("report.html")  # a call from Python has none
    assert now == {name: data for name, data in before.items() if name != "report.html"}


def test_the_script_ends_with_2_and_one_sentence_on_weights_of_another_network(tmp_path, capsys):
    bundles = write_fake_bundles(tmp_path / "bundles", "strange")
    write_weights(bundles / "wcapsgan_bundle" / "models" / "model_cascade.pt", linear_state(9))
    out = tmp_path / "out"
    assert script().main(["--out", str(out), "--count", "4", "--seed", "1", "--bundles", str(bundles)]) == 2
    told = capsys.readouterr().err
    assert "model_cascade.pt: weights for another network" in told
    assert not out.exists()
