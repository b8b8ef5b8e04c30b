"""What packages and files promise one another (docs/reference/); the details are tested beside their modules."""

import argparse
import ast
import hashlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from fake_bundles import linear_state, write_fake_bundles, write_weights
from fake_cohort import write_fake_cohort
from generation_toys import write_generator_bundle, write_toy_cohort
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, SqueezeDim
from packaging.requirements import Requirement
from segmentation_toys import add_facts, write_method_bundle
from separation_toys import MIN_DIAMETER_MM, write_rigged_bundles, write_sources
from utility_toys import small_settings, write_bundles, write_cohort

from evaluation.composed_slices import ComposedSliceConfig, compose_slices
from evaluation.enhancement import EnhancementEvaluationConfig, evaluate_enhancement
from evaluation.generation.reference import MeasurementConfig
from evaluation.generation.run import GenerationConfig, evaluate_generation
from evaluation.segmentation.detectors import MiddleGuess, NothingFound, ThresholdDetector, detect
from evaluation.segmentation.run import SegmentationConfig, evaluate_segmentation
from evaluation.utility.run import evaluate_utility
from lungsynth.bundles import open_bundle, resolved_config
from lungsynth.cli import COMMANDS
from lungsynth.cohort.patches import sphere_diameter_mm, texture_class
from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.cohort.schema import RATINGS
from lungsynth.cohort.split import assign_splits
from lungsynth.compositing.render import render
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig
from lungsynth.ct.volume import Volume, axial_affine, voxel_to_lps
from lungsynth.ct.write import read_plane, write_plane
from lungsynth.ct.write_dicom import SyntheticScan, dicom_bytes, synthetic_ct
from lungsynth.export.writer import ExportJob, export_catalogue
from lungsynth.generate import generate, plan
from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import CT_RANGE_HU, NETWORK_WINDOW, Label, to_int16
from lungsynth.placement.assets import ALPHA_SCALE, AssetLibrary, content_hash
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.explain import PlanExplainer
from lungsynth.placement.plan_catalogue import PlanRecord, groups_path
from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort
from lungsynth.pseudo_labels.triage import CandidateStatus
from lungsynth.similarity.features import WEIGHTS, load_feature_network

ROOT = Path(__file__).resolve().parent.parent
BUNDLES = {"lung_seg": "segmenter", "wcapsgan": "sampler", "cyclegan": "enhancer"}
CORE_PACKAGES = {"pytorch": "torch", "monai": "monai", "numpy": "numpy"}
SPLITS = ("training", "validation", "test")
TEXTURES = ("ground_glass", "part_solid", "solid")
QUICK = MeasurementConfig(resamples=10, c2st_steps=4, pairs=40)
COMPOSITES_ALONE = EnhancementConfig(enabled=False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contracts")
    make_phantom_cohort(folder / "source", patients=6, seed=3, size_px=96, slices=16, slice_spacing_mm=12.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(), workers=1)
    return folder / "cohort"


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> list[Path]:
    """The same run at two batch sizes, not enhanced, from fake bundles."""
    folder = tmp_path_factory.mktemp("chains")
    bundles = write_fake_bundles(folder / "bundles", "contract")
    outs = [folder / name / "out" for name in ("one", "five")]
    for out, batch_size in zip(outs, (1, 5), strict=True):
        config = GenerateConfig(
            out=out, count=6, seed=5, bundles=bundles, enhancement=COMPOSITES_ALONE, batch_size=batch_size
        )
        generate(config, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return outs


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory) -> Path:
    """Table I of toy methods."""
    folder = tmp_path_factory.mktemp("evaluated")
    bundles, weights = write_method_bundle(folder, "contract_segmentation")
    add_facts(weights / "unet.pt", train_minutes=20)
    paths = {"cohort": cohort, "out": folder / "out", "bundles": bundles, "weights": weights}
    settings = SegmentationConfig(**paths, methods=("unet", "dense_unet"), composites=2)
    evaluate_segmentation(settings, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "out"


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Table II of toy generators."""
    folder = tmp_path_factory.mktemp("generated")
    bundles, weights = write_generator_bundle(folder, "contract_generators")
    add_facts(weights / "nodules_dcgan.pt", train_minutes=20)
    paths = {"cohort": write_toy_cohort(folder / "cohort"), "out": folder / "out", "bundles": bundles}
    config = GenerationConfig(**paths, weights=weights, kind="nodules", count=2, measurement=QUICK)
    evaluate_generation(config, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "out"


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> Path:
    """A phantom whose parts have nodules of several textures."""
    return write_cohort(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="module")
def utility(rated, tmp_path_factory) -> Path:
    """The utility experiment on a phantom, from fake bundles."""
    folder = tmp_path_factory.mktemp("utility")
    bundles = write_bundles(folder / "bundles", "contract_utility")
    settings = small_settings(rated, folder / "out", bundles, experiments=("classification",))
    evaluate_utility(settings, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "out"


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
    (configs / "inference_slice.json").write_text(json.dumps({"ckpt_path": None, "sampler": making}))
    (configs / "inference_dcgan.json").write_text("{}")
    sampler = '"""Slices."""\nfrom .sampling import CATEGORIES, LungSampler\n\n\nclass SliceSampler(LungSampler):\n'
    sampler += "    spacing_mm, categories = 1.4, CATEGORIES\n"
    (bundles / "wcapsgan_bundle" / package / "slices.py").write_text(sampler)
    (folder / "weights").mkdir()
    write_weights(folder / "weights" / "slices_dcgan.pt", linear_state(4))
    paths = {"cohort": rated, "out": folder / "out", "bundles": bundles, "weights": folder / "weights"}
    small = {"count": 2, "catalogue_size": 60, "measurement": QUICK}
    config = GenerationConfig(**paths, kind="slices", slices=slices, **small)
    evaluate_generation(config, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "out"


def datalist(cohort: Path, name: str) -> list[dict]:
    lists = json.loads((cohort / f"{name}.json").read_text())
    assert set(lists) == set(SPLITS)
    return [{**entry, "split": split} for split in SPLITS for entry in lists[split]]


def documented(page: str, heading: str) -> set[str]:
    """The names in backticks that a section of `docs/reference/` has, sub-sections included."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    begin = re.search(rf"^(#+) {re.escape(heading)}$", text, flags=re.M)
    rest = text[begin.end() :]
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", rest, flags=re.M)
    return set(re.findall(r"`([^`]+)`", rest[: end.start()] if end else rest))


def metadata(name: str) -> dict:
    return json.loads((ROOT / "bundles" / f"{name}_bundle" / "configs" / "metadata.json").read_text())


# C1 frame


def test_c1_1_volume_affine_maps_column_row_slice_to_ras():
    affine = axial_affine(spacing_mm=(2.5, 0.8, 0.7), origin_lps_mm=(-100, -90, -300))
    volume = Volume(hu=np.zeros((3, 4, 5), np.int16), affine=affine, series_id="s", patient_id="p")
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    x, y, z, _ = affine @ [4, 0, 0, 1]
    assert (x, y, z) == pytest.approx((100 - 4 * 0.7, 90, -300)), "columns run to the patient's left: RAS x falls"
    assert nib.aff2axcodes(affine) == ("L", "P", "S")


def test_c1_2_annotations_are_lps():
    affine = axial_affine(spacing_mm=(2.5, 0.8, 0.7), origin_lps_mm=(-100, -90, -300))
    assert voxel_to_lps(affine, np.array([2, 3, 4])) == pytest.approx([-100 + 4 * 0.7, -90 + 3 * 0.8, -300 + 2 * 2.5])


def test_c1_3_slice_file_is_exact_and_monai_sees_the_same_frame(tmp_path):
    plane = np.random.default_rng(0).integers(*CT_RANGE_HU, (6, 9)).astype(np.int16)
    affine = axial_affine(spacing_mm=(2, 0.8, 0.7), origin_lps_mm=(1, 2, 3))
    write_plane(tmp_path / "a.nii.gz", plane, affine)
    assert nib.load(tmp_path / "a.nii.gz").shape == (9, 6, 1)
    again, same = read_plane(tmp_path / "a.nii.gz")
    assert again.dtype == np.int16
    assert np.array_equal(again, plane)
    assert np.allclose(same, affine)
    load = Compose([LoadImage(), EnsureChannelFirst(), Orientation(axcodes="PLS", labels=None), SqueezeDim(dim=-1)])
    assert np.array_equal(load(tmp_path / "a.nii.gz").numpy(), plane[None])


def test_c1_4_samples_keep_their_lungs_affine_and_generated_lungs_are_centred(chains):
    out = chains[0]
    library = AssetLibrary(out)
    for recipe in read_catalogue(out / "catalogue.parquet"):
        image, affine = read_plane(out / "images" / f"{recipe.id}.nii.gz")
        assert np.allclose(affine, library[recipe.lung].affine_matrix, atol=1e-4)
        middle = affine @ [(image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2, 0, 1]
        assert np.allclose(middle[:2], 0, atol=1e-4)


def test_c1_5_hu_range_and_one_window_for_all_bundles():
    assert to_int16(np.array([-3024.0, -2048, 5000])).tolist() == [-1024, -1024, 3071]
    assert (NETWORK_WINDOW.low_hu, NETWORK_WINDOW.high_hu) == (-1000, 400)
    for name in BUNDLES:
        text = json.dumps(metadata(name))
        assert "[-1000, 400]" in text, f"{name}: metadata.json does not state the window"


# C2 nodules


def test_c2_1_diameter_is_of_equal_size(cohort):
    nodules = pd.read_csv(cohort / "nodules.csv").dropna(subset="x_mm")
    assert (nodules["diameter_mm"] > 0).all()
    assert {"diameter_mm", "reader_diameter_mm", "votes"} <= set(nodules.columns)


def test_c2_2_texture_classes(cohort):
    classes = [texture_class(t) for t in (1.0, 2.0, 2.5, 3.9, 4.0, 5.0, None)]
    assert classes == ["ground_glass", "ground_glass", "part_solid", "part_solid", "solid", "solid", "unknown"]
    nodules = pd.read_csv(cohort / "nodules.csv")
    assert (nodules["texture_class"] == [texture_class(t) for t in nodules["texture"]]).all()


def test_c2_3_patch(cohort):
    assert (PATCH_PX, PATCH_SPACING_MM) == (64, 0.7)
    for entry in datalist(cohort, "nodules"):
        with np.load(cohort / entry["nodule"]) as patch:
            assert patch["hu"].dtype == patch["context"].dtype == np.int16
            assert patch["alpha"].dtype == np.float16
            assert patch["valid"].dtype == bool
            assert patch["hu"].shape[1:] == (64, 64)
            alpha = patch["alpha"]
            assert 0 <= alpha.min() <= alpha.max() <= 1
            assert not alpha[~patch["valid"]].any()
            assert not alpha[:, [0, -1], :].any()
            assert not alpha[:, :, [0, -1]].any()


def test_c2_4_solid_fraction_follows_texture(cohort):
    nodules = pd.read_csv(cohort / "nodules.csv").dropna(subset="solid_fraction")
    assert nodules["solid_fraction"].between(0, 1).all()
    means = nodules.groupby("texture_class")["mean_hu"].mean()
    assert means.get("solid", 0) > means.get("ground_glass", -600)


def test_c2_5_cube(cohort, tmp_path):
    assert not datalist(cohort, "cubes"), "the phantom's slices lie 12 mm apart: fewer than three show a nodule"
    places = np.indices((51, 51, 51)) - 25
    mask = np.stack([np.linalg.norm(places, axis=0) <= radius for radius in (8, 4, 6)]).astype(np.uint8)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "cubes.npz", hu=np.where(mask, 20, -850).astype(np.int16), mask=mask)
    (tmp_path / "source" / "index.csv").write_text(
        "row,name,lidc_patient\n0,a,LIDC-IDRI-0001\n1,b,LIDC-IDRI-0002\n2,c,\n"
    )
    prepare_cohort([tmp_path / "source"], tmp_path / "out", settings=PrepareSettings(split="test"), workers=1)
    cubes, nodules = (datalist(tmp_path / "out", name) for name in ("cubes", "nodules"))
    assert [entry["nodule_id"] for entry in cubes] == [entry["nodule_id"] for entry in nodules]
    assert [entry["patient_id"] for entry in cubes] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]  # the third may be a twin
    for entry in cubes:
        with np.load(tmp_path / "out" / entry["cube"]) as cube:
            hu, alpha = cube["hu"], cube["alpha"]
        assert (hu.dtype, alpha.dtype) == (np.int16, np.float16)
        assert hu.shape == alpha.shape == (64, 64, 64)
        assert 0 <= alpha.min() <= alpha.max() <= 1
        assert not any(alpha.take([0, -1], axis=axis).any() for axis in range(3))
        diameter_mm = sphere_diameter_mm(int((alpha >= 0.5).sum()), voxel_volume_mm3=PATCH_SPACING_MM**3)
        assert diameter_mm == pytest.approx(entry["diameter_mm"], abs=0.4)


# C3 lungs


def test_c3_1_generated_lungs_are_256_at_1_4_mm():
    config = ConfigParser.load_config_file(ROOT / "bundles/wcapsgan_bundle/configs/inference_lung.json")
    assert (config["size"], config["spacing_mm"]) == (256, 1.4)


def test_c3_2_normal_slices_on_the_generators_grid(cohort):
    lungs = datalist(cohort, "lungs")
    assert lungs
    for entry in lungs:
        with np.load(cohort / entry["lung"]) as lung:
            assert lung["hu"].shape == lung["mask"].shape == (256, 256)
            assert (lung["hu"].dtype, lung["mask"].dtype) == (np.int16, np.uint8)
            assert set(np.unique(lung["mask"])) == {0, 1}
            rows, columns = np.nonzero(lung["mask"])
            middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
            assert middle == pytest.approx((127.5, 127.5), abs=3)


# C4 labels


def test_c4_1_label_ids(cohort):
    assert [int(label) for label in Label] == [0, 1, 2, 255]
    found = {int(v) for path in (cohort / "labels").iterdir() for v in np.unique(read_plane(path)[0])}
    assert {0, 1, 2} <= found <= {0, 1, 2, 255}


def test_c4_2_entries_say_what_an_expert_drew(cohort):
    drawn = [entry["labelled"] for entry in datalist(cohort, "segmentation")]
    assert all(set(labels) <= {"lung", "nodule"} for labels in drawn)
    assert any("nodule" in labels for labels in drawn)


# C5 cohort


def test_c5_1_files(cohort):
    series, nodules = pd.read_csv(cohort / "series.csv"), pd.read_csv(cohort / "nodules.csv")
    for table, path in ((series, "series.csv"), (nodules, "nodules.csv")):
        assert set(table.columns) <= documented("formats.md", path)
    described = json.loads((cohort / "cohort.json").read_text())
    assert described["format"] == 2
    assert {"settings", "sources", "split_hash", "counts", "problems"} <= set(described)
    for name in ("montage_nodules.png", "montage_lungs.png", "report.md"):
        assert (cohort / name).is_file()


def test_c5_2_datalists(cohort):
    measured = {"diameter_mm", "votes", "mean_hu", "solid_fraction", "reader_diameter_mm", *RATINGS}
    of_nodules = {"nodule_id", "category", *measured}
    keys = {
        "segmentation": {"image", "label", "labelled", "kind"},
        "nodules": {"nodule", *of_nodules},
        "cubes": {"cube", *of_nodules},
        "lungs": {"lung", "image", "label", "category"},
        "enhancement": {"image", "label"},
    }
    for name, wanted in keys.items():
        for entry in datalist(cohort, name):
            needed = wanted - {"label"} if entry.get("kind") == "nodule" else wanted
            assert needed | {"patient_id", "series_id", "source"} <= set(entry)
            files = [entry[key] for key in ("image", "label", "nodule", "cube", "lung") if key in entry]
            assert all((cohort / path).is_file() for path in files)
    nodules = pd.read_csv(cohort / "nodules.csv", index_col="nodule_id")
    spheres = [entry for entry in datalist(cohort, "segmentation") if entry["kind"] == "sphere"]
    assert spheres
    for entry in datalist(cohort, "segmentation"):
        if entry["kind"] != "slice":
            is_sphere = entry in spheres
            with np.load(cohort / entry["image"]) as patch:
                assert ("sphere" in patch.files, entry["labelled"]) == (is_sphere, [] if is_sphere else ["nodule"])
                assert not is_sphere or patch["sphere"].shape == patch["votes"].shape
            assert (nodules["votes"][Path(entry["image"]).stem] == 0) == is_sphere
    assert measured <= set(nodules.columns)
    for entry in datalist(cohort, "nodules"):
        found = [np.nan if entry[name] is None else entry[name] for name in sorted(measured)]
        assert np.allclose(
            found, nodules.loc[entry["nodule_id"], sorted(measured)].astype(float), atol=1e-4, equal_nan=True
        )
    for entry in datalist(cohort, "lungs"):
        assert Label.NODULE not in read_plane(cohort / entry["label"])[0]


def test_c5_3_no_patient_on_two_sides_and_the_hash_tells(cohort):
    for name in ("segmentation", "nodules", "lungs", "enhancement"):
        sides = pd.DataFrame(datalist(cohort, name)).groupby("patient_id")["split"].nunique()
        assert (sides == 1).all()
    series = pd.read_csv(cohort / "series.csv")
    lines = sorted({f"{row.patient_id},{row.split}" for row in series.itertuples()})
    described = json.loads((cohort / "cohort.json").read_text())
    digests = {hashlib.sha256(text.encode()).hexdigest() for text in ("\n".join(lines), "\n".join(lines) + "\n")}
    assert described["split_hash"] in digests
    assert inspect.getdoc(assign_splits)


def test_c5_4_luna16_series_find_their_patients(cohort):
    series = pd.read_csv(cohort / "series.csv")
    assert series["patient_known"].all(), "the phantom's patients.csv maps LUNA16 series to patients"
    assert series["patient_id"].str.lower().str.startswith("phantom").all()


# C6 weights


@pytest.mark.parametrize("name", BUNDLES)
def test_c6_1_weights_have_their_sidecar(name):
    models = ROOT / "bundles" / f"{name}_bundle" / "models"
    assert (models / "model.pt").is_file()
    assert name != "wcapsgan" or (models / "model_lung.pt").is_file()
    for weights in models.glob("*.pt"):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        sidecar = json.loads(weights.with_suffix(".json").read_text())
        assert sidecar["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert {"network", "split_hash", "data", "seed", "versions", "validation"} <= set(sidecar)
        assert all({"name", "licence", "citation"} <= set(source) for source in sidecar["data"])
        assert sidecar["validation"], f"{weights.name}: no figures of its own"


@pytest.mark.parametrize("name", BUNDLES)
def test_c6_2_training_writes_under_runs(name):
    config = ConfigParser.load_config_file(ROOT / f"bundles/{name}_bundle/configs/train.json")
    assert config["output_dir"].startswith("runs/")


@pytest.mark.parametrize("command", ["generate", "plan", "export", "pseudo-label", "package"])
def test_c6_3_commands_take_bundles(command):
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    assert "--bundles" in parser.format_help()
    assert '"--bundles"' in (ROOT / "scripts" / "evaluate.py").read_text()


def test_c6_4_bundles_stand_alone():
    for name in BUNDLES:
        root = ROOT / "bundles" / f"{name}_bundle"
        facts = metadata(name)
        packages = {"torch", "monai", "numpy", *facts["required_packages_version"], name}
        packages = {package.replace("pytorch-ignite", "ignite").replace("pillow", "PIL") for package in packages}
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                for module in modules:
                    top = module.split(".")[0]
                    assert top in packages or top in sys.stdlib_module_names, f"{path}: {module} is not declared"
        stated = {package: facts[f"{key}_version"] for key, package in CORE_PACKAGES.items()}
        for package, pin in (stated | facts["required_packages_version"]).items():
            assert version(package).split("+")[0] == pin
    for path in (ROOT / "lungsynth").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (lung_seg|wcapsgan|cyclegan)\b", path.read_text(), flags=re.M)


def test_c6_4_what_bundles_share_has_one_source():
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts/vendor_common.py"), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_c6_5_what_the_chain_asks_of_the_bundles():
    bundles = ROOT / "bundles"
    sampler = open_bundle(bundles, "wcapsgan", component="sampler")
    first = sampler([3, 4, 5], [sampler.categories[0]] * 3, [8.0, None, 12.0])
    alone = sampler([4], [sampler.categories[0]], [None])
    assert first["hu"].dtype == np.int16
    assert first["alpha"].dtype == np.float16
    assert first["hu"].shape == first["alpha"].shape == (3, 64, 64)
    assert np.array_equal(first["hu"][1], alone["hu"][0]), "one seed makes one sample, whatever else is asked for"
    assert first["diameter_mm"].shape == first["seed"].shape == (3,)
    lungs = open_bundle(
        bundles,
        "wcapsgan",
        component="sampler",
        configs=("inference.json", "inference_lung.json"),
        weights="model_lung.pt",
    )
    lung = lungs([1], [lungs.categories[0]], [None])
    assert lung["hu"].shape == lung["mask"].shape == (1, 256, 256)
    hu, mask = lung["hu"][0], lung["mask"][0].astype(bool)
    enhanced = open_bundle(bundles, "cyclegan", component="enhancer")(hu, np.zeros_like(mask))
    assert (enhanced.dtype, enhanced.shape) == (np.int16, hu.shape)
    maps = open_bundle(bundles, "lung_seg", component="segmenter")(hu, (1.4, 1.4))
    assert maps["lung"].shape == maps["nodule"].shape == hu.shape
    assert 0 <= min(m.min() for m in maps.values()) <= max(m.max() for m in maps.values()) <= 1


def test_c6_5_what_the_evaluation_asks_of_a_detector():
    hu = np.full((3, 64, 64), -850, np.int16)
    hu[1, 28:36, 28:36] = 30
    detectors = [NothingFound(), MiddleGuess(), ThresholdDetector()]
    if "detector" in resolved_config(ROOT / "bundles", "lung_seg"):
        detectors.append(open_bundle(ROOT / "bundles", "lung_seg", component="detector"))
    for detector in detectors:
        assert 0 <= detector.operating_point <= 1
        for image in (hu, hu[1:2]):
            found = detector(image, (2.0, 0.7, 0.7))
            candidates = found["candidates"]
            assert (candidates.dtype, candidates.shape[1]) == (np.float32, 5)
            assert (np.diff(candidates[:, 4]) <= 0).all(), "most probable first"
            assert all(found[name].dtype == np.float16 for name in ("nodule", "lung") if name in found)
            detect(detector, image, (2.0, 0.7, 0.7), name="contract")


# C7 assets and recipes


def test_c7_1_assets_are_named_by_their_content():
    array = np.arange(2 * 64 * 64, dtype=np.int16).reshape(2, 64, 64)
    assert re.fullmatch(r"[0-9a-f]{16}", content_hash(array))
    assert content_hash(array) == content_hash(array.copy()) != content_hash(array[::-1])
    assert ALPHA_SCALE == 16384


def test_c7_2_recipes_rebuild_their_samples(chains):
    out = chains[0]
    library = AssetLibrary(out)
    for recipe in read_catalogue(out / "catalogue.parquet"):
        rebuilt = render(recipe, library)
        assert np.array_equal(rebuilt.image, read_plane(out / "images" / f"{recipe.id}.nii.gz")[0])
        assert np.array_equal(rebuilt.label, read_plane(out / "masks" / f"{recipe.id}.nii.gz")[0])


def test_c7_3_same_seed_same_bytes_whatever_the_batch_size(chains):
    # `.parts` notes what is done, by batches.
    files = [[p for p in o.rglob("*") if p.is_file() and p.parent.name != ".parts"] for o in chains]
    first, second = ({p.relative_to(o): p.read_bytes() for p in f} for o, f in zip(chains, files, strict=True))
    assert first == second


# C8 what the chain writes


def test_c8_1_the_selection_accounts_for_every_candidate(chains, enhanced):
    promised = documented("formats.md", "Selection report")
    for out, strategy, candidates in ((chains[0], "none", 1), (enhanced / "out", "coverage", 3)):
        told = json.loads((out / "selection.json").read_text())
        assert set(told) == {"format", "strategy", "candidates", "nodules", "lungs"}
        assert (told["format"], told["strategy"], told["candidates"]) == (2, strategy, candidates)
        kept = dict.fromkeys(("nodules", "lungs"), 0)
        for kind in kept:
            for counts in told[kind].values():
                assert (
                    set(counts)
                    == {*("generated", "kept", "copies", "unlike", "surplus", "unusable", "kept_unlike", "real")}
                    <= promised
                )
                parts = ("kept", "copies", "unlike", "surplus", "unusable")
                assert counts["generated"] == sum(counts[name] for name in parts)
                assert counts["generated"] >= candidates * counts["kept"]
                kept[kind] += counts["kept"]
        stored = [asset.kind for asset in AssetLibrary(out) if asset.source == "generated"]
        assert kept == {"nodules": stored.count("nodule"), "lungs": stored.count("lung")}
        assert len(list((out / "assets").iterdir())) == len(AssetLibrary(out))


# C9 separated cohorts


@pytest.fixture(scope="module")
def separated(tmp_path_factory) -> tuple[Path, Path]:
    """A cohort, and what separating it gave."""
    folder = tmp_path_factory.mktemp("separated")
    write_sources(folder / "sources")
    prepare_cohort([folder / "sources"], folder / "cohort", settings=PrepareSettings(), workers=1)
    bundles = write_rigged_bundles(folder / "bundles", "contract")
    settings = PseudoLabelConfig(
        cohort=folder / "cohort", out=folder / "out", bundles=bundles, min_diameter_mm=MIN_DIAMETER_MM
    )
    pseudo_label_cohort(settings, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "cohort", folder / "out"


def test_c9_1_a_separated_cohort_is_a_cohort_of_the_same_split(separated):
    before, after = separated
    for check in (test_c2_2_texture_classes, test_c2_3_patch, test_c3_2_normal_slices_on_the_generators_grid):
        check(after)
    test_c5_1_files(after)
    test_c5_2_datalists(after)
    test_c5_3_no_patient_on_two_sides_and_the_hash_tells(after)
    described = [json.loads((cohort / "cohort.json").read_text()) for cohort in separated]
    assert described[0]["split_hash"] == described[1]["split_hash"]
    promised = {"threshold", "min_diameter_mm", "weights_lung_seg", "series", "candidates", "before", "after"}
    assert set(described[1]["pseudo_labels"]) == promised
    assert all(path.samefile(before / "slices" / path.name) for path in (after / "slices").iterdir())


def test_c9_2_normal_slices_keep_their_distance_from_candidates_that_count(separated):
    before, after = separated
    masks = [pd.read_csv(cohort / "series.csv")["nodule_mask"].tolist() for cohort in separated]
    assert masks[1] == [{"none": "network", "data": "data"}[mask] for mask in masks[0]]
    table = pd.read_csv(after / "candidates.csv")
    counted = table[table["outcome"].isin(["known", "too_large", "nodule"])]
    assert len(counted)
    normal = {(e["series_id"], int(Path(e["image"]).name[-11:-7])) for e in datalist(after, "lungs")}
    for row in counted.itertuples():
        near = range(row.slice_index - 1, row.slice_index + 2)  # 6 mm each
        assert not normal & {(row.series_id, index) for index in near}
    assert len(normal) < len(datalist(before, "lungs"))


def test_c9_3_what_the_network_found_is_nobodys(separated):
    _, after = separated
    table = pd.read_csv(after / "candidates.csv")
    new = set(table.loc[table["outcome"].isin(["too_large", "nodule"]), "candidate_id"])
    nodules = pd.read_csv(after / "nodules.csv").set_index("nodule_id")
    assert (nodules.loc[sorted(new), "votes"] == 0).all()
    assert (nodules.loc[sorted(new), "texture_class"] == "unknown").all()
    assert new & {entry["nodule_id"] for entry in datalist(after, "nodules")}
    assert not [e for e in datalist(after, "segmentation") if Path(e["image"]).stem in new]
    drawn = [e["label"] for e in datalist(after, "enhancement") if e["label"].startswith("network/")]
    assert sorted(drawn) == sorted(f"network/{path.name}" for path in (after / "network").iterdir())
    assert all(Label.NODULE in read_plane(after / label)[0] for label in drawn)


def test_c9_4_a_row_for_each_candidate(separated):
    _, after = separated
    promised = documented("formats.md", "Pseudo-labelled cohort")
    table = pd.read_csv(after / "candidates.csv")
    assert set(table["outcome"]) == {outcome.value for outcome in CandidateStatus}
    assert {*table.columns, *table["outcome"]} <= promised


# C10 evaluated


def test_c10_1_what_an_evaluation_of_segmentation_writes(evaluated):
    table, promised = json.loads((evaluated / "table_1.json").read_text()), documented("evaluation_files.md", "Table I")
    assert set(table) - {"lungs", "readers_of_the_masks"} <= promised
    assert set(table["rows"][0]) - {"title", "probability_at_one_false_positive_a_slice"} <= promised | {"lung_dice"}
    assert [row["method"] for row in table["rows"]] == ["nothing", "threshold", "middle", "unet", "dense_unet"]
    for name in ("table_1.md", "froc.png", "errors/errors.md", ".parts/dense_unet.json"):
        assert (evaluated / name).is_file()


def test_c10_2_methods_are_configs_with_weights(evaluated):
    rows = {row["method"]: row for row in json.loads((evaluated / "table_1.json").read_text())["rows"]}
    assert (rows["unet"]["train_minutes"], rows["unet"]["training"]) == (20, "may_have_trained")
    assert rows["dense_unet"]["train_minutes"] is None


# C11 exports


def exported(chain: Path, out: Path, kind: str, **how: object) -> dict[str, bytes]:
    export_catalogue(ExportJob(catalogue=chain / "catalogue.parquet", out=out, format=kind), **how)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_c11_1_a_sample_is_its_lung_outside_the_nodules_and_noise_follows_the_seed(chains):
    library = AssetLibrary(chains[0])
    for recipe in read_catalogue(chains[0] / "catalogue.parquet"):
        sample, (lung, _) = render(recipe, library), library.load(recipe.lung)
        changed = sample.image != lung
        for row_from, column_from, row_to, column_to in sample.boxes:
            changed[max(0, row_from - 8) : row_to + 8, max(0, column_from - 8) : column_to + 8] = False
        assert not changed.any()
        assert np.array_equal(sample.image, render(recipe, AssetLibrary(chains[0])).image)


def test_c11_2_files_of_an_export(chains, tmp_path):
    ids = [recipe.id for recipe in read_catalogue(chains[0] / "catalogue.parquet")]
    beside = {"annotations.csv", "detection.json", "coco.json", "checksums.sha256", "export.json"}
    found = exported(chains[0], tmp_path / "nifti", "nifti")
    images = {f"{folder}/{name}.nii.gz" for name in ids for folder in ("images", "masks")}
    assert {name for name in found if not name.startswith(".parts/")} == beside | images
    for name in images:
        assert found[name] == (chains[0] / name).read_bytes()
    shards = exported(chains[0], tmp_path / "webdataset", "webdataset")
    assert [name for name in shards if name.startswith("shards/")] == ["shards/000000000-000000006.tar"]


def test_c11_3_same_bytes_in_pieces(chains, tmp_path):
    whole, out = exported(chains[0], tmp_path / "whole", "png"), tmp_path / "pieces"
    exported(chains[0], out, "png", begin=4)
    pieces = exported(chains[0], out, "png", begin=0, end=5)
    assert {k: v for k, v in whole.items() if ".parts" not in k} == {
        k: v for k, v in pieces.items() if ".parts" not in k
    }


def test_c11_4_dicom_is_marked_and_names_nobody():
    first, again, other = (
        synthetic_ct(
            np.full((4, 5), -800, dtype=np.int16),
            axial_affine(spacing_mm=(1.0, 0.7, 0.7), origin_lps_mm=(0.0, 0.0, 0.0)),
            SyntheticScan(subject="synth-a", name=name, derivation="recipe synth-a"),
        )
        for name in ("synth-a", "synth-a", "synth-a-without")
    )
    assert dicom_bytes(first) == dicom_bytes(again)
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert (first.SyntheticData, first.ImageType[0], first.PatientBirthDate) == ("YES", "DERIVED", "")
    assert first.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"


def test_c7_4_a_plan_has_the_chains_columns_and_answers_for_its_pairs(chains, tmp_path):
    placement = PlacementConfig.at_scale(lungs=3, groups=5)
    config = GenerateConfig(out=tmp_path, library=chains[0], count=6, seed=1, placement=placement)
    plan(config)
    planned, chained = (read_catalogue(path) for path in (config.catalogue_path, chains[0] / "catalogue.parquet"))
    assert planned.table.schema.equals(chained.table.schema)
    record = PlanRecord.read(planned)
    assert {sum(part.verdicts.values()) for part in record.parts.values()} == {3 * 5}
    assert groups_path(config.catalogue_path).is_file()
    explainer = PlanExplainer(config.catalogue_path, library=chains[0])
    assert all(explainer.explain(recipe.id)[1].kept for recipe in planned)
    assert (render(planned[0], AssetLibrary(chains[0])).label == Label.NODULE).any()


# C13 enhancement


def test_c13_1_a_region_is_enhanced_as_in_its_slice():
    enhancer = open_bundle(ROOT / "bundles", "cyclegan", component="enhancer")
    reach, rng = enhancer.receptive_field_px // 2, np.random.default_rng(0)
    rows, columns = np.mgrid[:200, :180]
    lung = np.where(np.hypot(rows - 100, columns - 90) < 60, -850, 40) + rng.normal(0, 30, (200, 180))
    hu, nodule = to_int16(lung), np.zeros((200, 180), np.bool_)
    nodule[90:100, 80:90] = True
    top, left = ((start - reach) // enhancer.alignment_px * enhancer.alignment_px for start in (80, 70))
    seen = slice(top, 110 + reach), slice(left, 100 + reach)
    alone = enhancer(np.ascontiguousarray(hu[seen]), nodule[seen])[80 - top : 110 - top, 70 - left : 100 - left]
    whole = enhancer(hu, nodule)
    assert np.abs(alone.astype(int) - whole[80:110, 70:100]).max() <= 1
    assert np.abs(whole.astype(int) - hu).max() <= enhancer.max_residual_hu


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory) -> Path:
    """Composites for the enhancer's training, and an export of them with the enhancer."""
    folder = tmp_path_factory.mktemp("enhanced")
    bundles = write_fake_bundles(folder / "bundles", "enhancing")
    (folder / "cohort").mkdir()
    write_fake_cohort(folder / "cohort", open_bundle(bundles, "wcapsgan"))
    config = GenerateConfig(
        out=folder / "out",
        count=6,
        seed=5,
        bundles=bundles,
        cohort=folder / "cohort",
        exclude_enhancer_patients=True,
        placement=PlacementConfig(real_share=0.5),
        enhancement=COMPOSITES_ALONE,
    )
    generate(config, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    for kind, gate in (("gated", True), ("ungated", False)):
        catalogue = folder / "out" / "catalogue.parquet"
        settings = {"format": "nifti", "bundles": bundles, "label_check": gate}
        export_catalogue(ExportJob(catalogue=catalogue, out=folder / kind, **settings))
    return folder


def test_c13_2_composites_name_their_patients_and_spare_those_of_the_reals(enhanced):
    entries = json.loads((enhanced / "out" / "datalist.json").read_text())["training"]
    cohort = {e["patient_id"] for e in datalist(enhanced / "cohort", "enhancement") if e["split"] == "training"}
    named = {patient for entry in entries for patient in entry["patient_id"]}
    assert cohort == {"p0"}
    assert named
    assert named <= {f"p{index}" for index in range(1, 6)}
    library = AssetLibrary(enhanced / "out")
    for entry, recipe in zip(entries, read_catalogue(enhanced / "out" / "catalogue.parquet"), strict=True):
        assert entry["image"] == f"images/{recipe.id}.nii.gz"
        real = {asset for asset in (recipe.lung, *(n.asset for n in recipe.nodules)) if library[asset].source == "real"}
        assert bool(entry["patient_id"]) == bool(real)
        assets = [recipe.lung, *(nodule.asset for nodule in recipe.nodules)]
        assert entry["parts_without_patient"] == sum(library[asset].source == "generated" for asset in assets)


def test_c13_3_an_enhanced_export_says_what_became_of_labels_and_hu(enhanced):
    promised = documented("formats.md", "enhanced.json")
    for kind, verdict in (("gated", "kept"), ("ungated", "unchecked")):
        told = json.loads((enhanced / kind / "enhanced.json").read_text())
        assert {key for key in told if not key.endswith("_hu")} <= promised
        assert (told["samples"], told[verdict]) == (6, 6)
        assert (told["lung_mean_hu"], told["nodule_p95_hu"]) == (1, 0)
        assert not (enhanced / kind / ".enhanced").exists()
    weights = [
        json.loads((enhanced / kind / "export.json").read_text())["label_check"] for kind in ("gated", "ungated")
    ]
    assert (bool(weights[0]), weights[1]) == (True, None)
    before = {path.name: path.read_bytes() for path in (enhanced / "out" / "masks").iterdir()}
    assert before == {path.name: path.read_bytes() for path in (enhanced / "gated" / "masks").iterdir()}


def test_c13_4_what_an_evaluation_of_the_enhancer_writes(cohort, tmp_path):
    bundles = write_fake_bundles(tmp_path / "bundles", "judging")
    settings = EnhancementEvaluationConfig(cohort=cohort, out=tmp_path / "out", bundles=bundles, composites=3)
    result = evaluate_enhancement(settings).table
    assert result == json.loads((tmp_path / "out" / "enhancement.json").read_text())
    promised = documented("evaluation_files.md", "Enhancement")
    assert set(result) | set(result["checked"]) | set(result["checked"]["labels_kept"]) <= promised
    assert (result["composites"], result["nodules_found"]) == (3, 0)
    assert result["checked"]["slices_with_invented"]["value"] == 0
    assert evaluate_enhancement(settings).table == result, "a finished evaluation is read again"


# Dependencies are pinned once


# C15 whole slices


def test_c15_1_what_slices_are(rated, slices):
    files = {"slices.json", "slices", "diseased.json", "diseased", "cohort.json", "run.json", "montage.png"}
    assert {path.name for path in slices.iterdir()} == files
    parts = {nodule["nodule_id"]: nodule for nodule in datalist(rated, "nodules")}
    lungs = {Path(lung["image"]).name.removesuffix(".nii.gz"): lung for lung in datalist(rated, "lungs")}
    listed = datalist(slices, "slices")
    assert {entry["split"] for entry in listed} >= {"training", "test"}
    for entry in listed:
        used = [lungs[entry["lung"]], *(parts[name] for name in entry["nodules"])]
        assert {one["split"] for one in used} == {entry["split"]}
        assert list(dict.fromkeys(str(one["patient_id"]) for one in used)) == entry["patients"]
        assert entry["patient_id"] == entry["patients"][0]
        assert {parts[name]["category"] for name in entry["nodules"]} == {entry["category"]}
    for entry in [*listed, *datalist(slices, "diseased")]:
        with np.load(slices / entry["slice"]) as arrays:
            assert [arrays[key].dtype.name for key in ("hu", "mask", "label")] == ["int16", "uint8", "uint8"]
            assert arrays["hu"].shape == arrays["mask"].shape == arrays["label"].shape == (256, 256)
            assert 2 in arrays["label"]
    told, whole = (json.loads((folder / "cohort.json").read_text()) for folder in (slices, rated))
    assert (told["split_hash"], told["sources"]) == (whole["split_hash"], whole["sources"])


def test_c15_2_the_same_seed_gives_the_same_slices_and_the_bundle_reads_them(rated, slices, tmp_path):
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
    entries = json.loads((slices / "slices.json").read_text())["training"]
    assert len(config.get_parsed_content("samples")) == len(entries) > 0


def test_c15_3_what_table_3_adds(table_3):
    table = json.loads((table_3 / "table_3.json").read_text())
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


# C14 utility


def test_c14_1_training_takes_what_a_run_of_the_chain_lists(chains):
    read_extra = open_lung_seg("read_extra", path=str(chains[0] / "datalist.json"))
    assert len(read_extra) == len(json.loads((chains[0] / "datalist.json").read_text())["training"])
    for sample in read_extra:
        assert sample["labelled"] == [1.0, 1.0]
        assert {1, 2} <= set(np.unique(read_plane(sample["label"])[0]))
    config = ConfigParser.load_config_file(ROOT / "bundles/lung_seg_bundle/configs/train.json")
    assert (config["extra_datalist"], config["train"]["dataset"]["data"]["extra"]) == (None, "@extra_datalist")


def open_lung_seg(function: str, **arguments: object) -> list[dict]:
    """Calls a function of the bundle's data lists by the bundle's own way, a config."""
    root = ROOT / "bundles" / "lung_seg_bundle"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return ConfigParser({"it": {"_target_": f"lung_seg.datalist.{function}", **arguments}}).get_parsed_content("it")


def test_c14_2_a_subcohort_is_a_cohort_of_few_training_patients(utility):
    told = json.loads((utility / "utility.json").read_text())
    for about in told["cohorts"]:
        folder = utility / ".parts" / "cohorts" / about["name"]
        described = json.loads((folder / "cohort.json").read_text())
        assert described["split_hash"] == about["split_hash"] != described["subcohort"]["split_hash_of_all"]
        assert described["subcohort"]["split_hash_of_all"] == told["split_hash"]
        series = pd.read_csv(folder / "series.csv")
        lines = sorted({f"{patient},{split}\n" for patient, split in series[["patient_id", "split"]].to_numpy()})
        assert about["split_hash"] == hashlib.sha256("".join(lines).encode()).hexdigest()
        nodules = datalist(folder, "nodules")
        assert len({n["patient_id"] for n in nodules if n["split"] == "training"}) == about["patients"]
        assert all((folder / entry["nodule"]).is_file() for entry in nodules)


def test_c14_3_what_the_experiment_writes(utility):
    told = json.loads((utility / "utility.json").read_text())
    promised = documented("evaluation_files.md", "Utility")
    assert set(told) <= promised
    assert all(set(about) <= promised for about in told["cohorts"])
    for row in told["classification"]:
        assert set(row) - set(row["intervals"]) <= promised
        assert set(row["intervals"]) == set(row["n"]) == {"balanced_accuracy", *(f"recall, {c}" for c in TEXTURES)}
        assert (row["added"] > 0) == (row["added_kind"] != "nothing")
        assert (row["difference_to_real"] == {}) == (row["arm"] == "real")
    for name in ("utility.md", "utility.png", ".parts/classification/p2-s0-real.json"):
        assert (utility / name).is_file()


def test_c14_4_generators_are_weights_of_wcapsgan():
    config = ConfigParser.load_config_file(ROOT / "bundles/wcapsgan_bundle/configs/inference.json")
    assert config["network"]["ckpt_path"] == "@ckpt_path"
    assert isinstance(config["ckpt_path"], str)


def test_pins_of_the_bundles_lie_in_the_ranges_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    ranges = {needed.name.lower(): needed.specifier for needed in map(Requirement, texts) if needed.name != "lungsynth"}
    for name in BUNDLES:
        facts = metadata(name)
        pins = {package: facts[f"{key}_version"] for key, package in CORE_PACKAGES.items()}
        for package, pin in (pins | facts["required_packages_version"]).items():
            assert pin in ranges[package.lower()], f"{package}: {pin} of {name} is not in {ranges[package.lower()]}"


# C12 evaluated generation


def test_c12_1_what_an_evaluation_of_generation_writes(generated):
    table = json.loads((generated / "table_2.json").read_text())
    keys = documented("evaluation_files.md", "Table II")
    assert all((generated / name).is_file() for name in keys if re.fullmatch(r"[\w]+\.\w+", name))
    assert set(table) <= keys
    assert set(table["rows"][0]) <= keys
    assert set(table["floor"]) == {"fid", "kid", "c2st", "c2st_features", "c2st_patch"}
    assert [row["method"] for row in table["rows"]] == ["memoriser", "average", "dcgan", "w_capsulegan"]


def test_c12_2_generators_are_configs_with_weights(generated):
    rows = {row["method"]: row for row in json.loads((generated / "table_2.json").read_text())["rows"]}
    assert (rows["dcgan"]["train_minutes"], rows["dcgan"]["training"]) == (20, "may_have_trained")
    assert rows["w_capsulegan"]["parameters"] == 8


@pytest.mark.parametrize("kind", ["nodules", "lungs"])
def test_c12_3_feature_networks_are_small_and_say_what_they_know(kind):
    network, sidecar = load_feature_network(WEIGHTS / f"{kind}_features.pt")
    assert (WEIGHTS / f"{kind}_features.pt").stat().st_size < 1_500_000
    assert sidecar["network"].endswith(type(network).__name__)
    keys = {"sha256", "split_hash", "data", "seed", "versions", "validation"}
    assert keys | {"settings", "epochs", "train_minutes", "samples", "patients"} <= set(sidecar)
    assert all(source["licence"] and source["citation"] for source in sidecar["data"])
