"""What the evaluation writes, and what it takes for a method (docs/reference/evaluation_files.md)."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import linear_state, write_fake_bundles, write_weights
from generation_toys import write_generator_bundle, write_toy_cohort
from interfaces import ROOT, documented
from monai.bundle import ConfigParser
from segmentation_toys import add_facts, write_method_bundle
from stores import new_store

from evaluation.composed_slices import ComposedSliceConfig, compose_slices
from evaluation.enhancement import EnhancementEvaluationConfig, evaluate_enhancement
from evaluation.generation.reference import MeasurementConfig
from evaluation.generation.run import GenerationConfig, evaluate_generation
from evaluation.segmentation.run import SegmentationConfig, evaluate_segmentation
from lungsynth.cohort.reader import Cohort

pytestmark = pytest.mark.usefixtures("few_resamples")

SPLITS = ("training", "validation", "test")
TEXTURES = ("ground_glass", "part_solid", "solid")
QUICK = MeasurementConfig(resamples=10, c2st_steps=4, pairs=40)


@pytest.fixture(scope="module")
def cohort(phantom_cohort) -> Path:
    return phantom_cohort


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory) -> Path:
    """Table I of toy methods."""
    folder = tmp_path_factory.mktemp("evaluated")
    bundles, weights = write_method_bundle(folder, "contract_segmentation")
    add_facts(weights / "unet.pt", train_minutes=20)
    paths = {"cohort": cohort, "out": folder / "out", "bundles": bundles, "weights": weights}
    settings = SegmentationConfig(**paths, methods=("unet", "dense_unet"), composites=2)
    evaluate_segmentation(settings, tracking_uri=new_store(folder))
    return folder / "out"


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Table II of toy generators."""
    folder = tmp_path_factory.mktemp("generated")
    bundles, weights = write_generator_bundle(folder, "contract_generators")
    add_facts(weights / "nodules_dcgan.pt", train_minutes=20)
    paths = {"cohort": write_toy_cohort(folder / "cohort"), "out": folder / "out", "bundles": bundles}
    config = GenerationConfig(**paths, weights=weights, kind="nodules", count=2, measurement=QUICK)
    evaluate_generation(config, tracking_uri=new_store(folder))
    return folder / "out"


@pytest.fixture(scope="module")
def rated(rated_cohort) -> Path:
    return rated_cohort


@pytest.fixture(scope="module")
def slices(rated, tmp_path_factory) -> Path:
    """Whole slices of the phantom."""
    folder = tmp_path_factory.mktemp("slices") / "out"
    compose_slices(ComposedSliceConfig(cohort=rated, out=folder, count=2, held_out=3))
    return folder


@pytest.fixture(scope="module")
def table_3(rated, slices, tmp_path_factory) -> Path:
    """Table III of toy generators; `dcgan` makes lungs, the others have no weights."""
    folder = tmp_path_factory.mktemp("table_3")
    bundles = write_fake_bundles(folder / "bundles", "contract_slices")
    configs, package = bundles / "wcapsgan_bundle" / "configs", "contract_slices_wcapsgan"
    making = {"_target_": f"{package}.slices.SliceSampler", "weights": "@ckpt_path", "size": 256}
    (configs / "inference_slice.json").write_text(json.dumps({"ckpt_path": None, "sampler": making}), encoding="utf-8")
    (configs / "inference_dcgan.json").write_text("{}", encoding="utf-8")
    sampler = '"""Slices."""\nfrom .sampling import CATEGORIES, LungSampler\n\n\nclass SliceSampler(LungSampler):\n'
    sampler += "    spacing_mm, categories = 1.4, CATEGORIES\n"
    (bundles / "wcapsgan_bundle" / package / "slices.py").write_text(sampler, encoding="utf-8")
    (folder / "weights").mkdir()
    write_weights(folder / "weights" / "slices_dcgan.pt", linear_state(4))
    paths = {"cohort": rated, "out": folder / "out", "bundles": bundles, "weights": folder / "weights"}
    small = {"count": 2, "catalogue_size": 60, "measurement": QUICK}
    config = GenerationConfig(**paths, kind="slices", slices=slices, **small)
    evaluate_generation(config, tracking_uri=new_store(folder))
    return folder / "out"


def datalist(cohort: Path, name: str) -> list[dict]:
    lists = json.loads((cohort / f"{name}.json").read_text(encoding="utf-8"))
    assert set(lists) == set(SPLITS)
    return [{**entry, "split": split} for split in SPLITS for entry in lists[split]]


def test_what_an_evaluation_of_segmentation_writes(evaluated):
    table, promised = (
        json.loads((evaluated / "table_1.json").read_text(encoding="utf-8")),
        documented("evaluation_files.md", "Table I"),
    )
    assert set(table) - {"lungs", "readers_of_the_masks"} <= promised
    assert set(table["rows"][0]) - {"title", "probability_at_one_false_positive_a_slice"} <= promised | {"lung_dice"}
    assert [row["method"] for row in table["rows"]] == ["nothing", "threshold", "middle", "unet", "dense_unet"]
    for name in ("table_1.md", "froc.png", "errors/errors.md", ".parts/dense_unet.json"):
        assert (evaluated / name).is_file()


def test_methods_are_configs_with_weights(evaluated):
    rows = {row["method"]: row for row in json.loads((evaluated / "table_1.json").read_text(encoding="utf-8"))["rows"]}
    assert (rows["unet"]["train_minutes"], rows["unet"]["training"]) == (20, "may_have_trained")
    assert rows["dense_unet"]["train_minutes"] is None


def test_what_an_evaluation_of_the_enhancer_writes(cohort, tmp_path):
    bundles = write_fake_bundles(tmp_path / "bundles", "judging")
    settings = EnhancementEvaluationConfig(cohort=cohort, out=tmp_path / "out", bundles=bundles, composites=3)
    result = evaluate_enhancement(settings).table
    assert result == json.loads((tmp_path / "out" / "enhancement.json").read_text(encoding="utf-8"))
    promised = documented("evaluation_files.md", "Enhancement")
    assert set(result) | set(result["checked"]) | set(result["checked"]["labels_kept"]) <= promised
    assert (result["composites"], result["nodules_found"]) == (3, 0)
    assert result["checked"]["slices_with_invented"]["value"] == 0
    assert evaluate_enhancement(settings).table == result, "a finished evaluation is read again"


def test_what_slices_are(rated, slices):
    files = {"slices.json", "slices", "diseased.json", "diseased", "cohort.json", "run.json", "montage.png"}
    assert {path.name for path in slices.iterdir()} == files
    names = Cohort.open(rated).pseudonyms
    parts = {names.nodules[nodule["nodule_id"]]: nodule for nodule in datalist(rated, "nodules")}
    lungs = {names.slices[Path(e["image"]).name.removesuffix(".nii.gz")]: e for e in datalist(rated, "lungs")}
    listed = datalist(slices, "slices")
    assert {entry["split"] for entry in listed} >= {"training", "test"}
    for entry in listed:
        used = [lungs[entry["lung"]], *(parts[name] for name in entry["nodules"])]
        assert {one["split"] for one in used} == {entry["split"]}
        assert list(dict.fromkeys(names.patients[one["patient_id"]] for one in used)) == entry["patients"]
        assert entry["patient_id"] == entry["patients"][0]
        assert {parts[name]["category"] for name in entry["nodules"]} == {entry["category"]}
    for entry in [*listed, *datalist(slices, "diseased")]:
        with np.load(slices / entry["slice"]) as arrays:
            assert [arrays[key].dtype.name for key in ("hu", "mask", "label")] == ["int16", "uint8", "uint8"]
            assert arrays["hu"].shape == arrays["mask"].shape == arrays["label"].shape == (256, 256)
            assert 2 in arrays["label"]
    told, whole = (json.loads((folder / "cohort.json").read_text(encoding="utf-8")) for folder in (slices, rated))
    assert (told["split_hash"], told["sources"]) == (whole["split_hash"], whole["sources"])


def test_the_same_seed_gives_the_same_slices_and_the_bundle_reads_them(rated, slices, tmp_path):
    compose_slices(ComposedSliceConfig(cohort=rated, out=tmp_path / "again", count=2, held_out=3))
    for path in (path for path in slices.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(slices)).read_bytes()
    root = ROOT / "bundles" / "wcapsgan_bundle"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    listing = {"_target_": "wcapsgan.data.load_datalist", "dataset_dir": str(slices), "sample_type": "slice"}
    reading = {"_target_": "wcapsgan.data.CohortSamples", "data": "@listed", "sample_type": "slice", "size": 256}
    reading |= {"spacing_mm": 1.4, "categories": {"_target_": "wcapsgan.categories.CategoryRule", "names": []}}
    config = ConfigParser({"listed": {**listing, "split": "training"}, "samples": reading})
    entries = json.loads((slices / "slices.json").read_text(encoding="utf-8"))["training"]
    assert len(config.get_parsed_content("samples")) == len(entries) > 0


def test_what_table_3_adds(table_3):
    table = json.loads((table_3 / "table_3.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in table["rows"]] == ["memoriser", "average", "dcgan", "first_stage", "two_stage"]
    keys = documented("evaluation_files.md", "Table II") | documented("evaluation_files.md", "Table III")
    assert set(table) <= keys
    assert set(table["rows"][0]) <= keys
    assert set(table["rows"][0]["over_floor"]) == {"fid", "kid"}
    assert set(table["diseased"]) == {"n", "n_patients", "held_out"}
    assert table["rows"][-1]["paper"]["fid"] == 2.6
    assert {"gan", "wgan", "biggan", "w_capsulegan"} <= set(table["left_out"])
    assert "capsulenets" not in table["left_out"]
    for name in ("table_3.md", "montage.png", "mixed.png", "mixed_key.md", "nearest.png", "fid_by_n.png"):
        assert (table_3 / name).is_file()
    assert not (table_3 / "table_2.json").exists()


def test_what_an_evaluation_of_generation_writes(generated):
    table = json.loads((generated / "table_2.json").read_text(encoding="utf-8"))
    keys = documented("evaluation_files.md", "Table II")
    assert all((generated / name).is_file() for name in keys if re.fullmatch(r"[\w]+\.\w+", name))
    assert set(table) <= keys
    assert set(table["rows"][0]) <= keys
    assert set(table["floor"]) == {"fid", "kid", "c2st", "c2st_features", "c2st_patch"}
    assert [row["method"] for row in table["rows"]] == ["memoriser", "average", "dcgan", "w_capsulegan"]


def test_generators_are_configs_with_weights(generated):
    rows = {row["method"]: row for row in json.loads((generated / "table_2.json").read_text(encoding="utf-8"))["rows"]}
    assert (rows["dcgan"]["train_minutes"], rows["dcgan"]["training"]) == (20, "may_have_trained")
    assert rows["w_capsulegan"]["parameters"] == 8
