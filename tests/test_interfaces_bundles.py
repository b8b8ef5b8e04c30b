"""What bundles promise one another and the pipeline: windows, weights, standing alone, versions."""

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import numpy as np
import pytest
import torch
from interfaces import ROOT
from monai.bundle import ConfigParser
from packaging.requirements import Requirement

from evaluation.cli import COMMANDS as EVALUATIONS
from evaluation.segmentation.detectors import MiddleGuess, NothingFound, ThresholdDetector, detect
from lungsynth.bundles import open_bundle, resolved_config
from lungsynth.cli import COMMANDS
from lungsynth.hounsfield import NETWORK_WINDOW, to_int16
from lungsynth.similarity.features import WEIGHTS, load_feature_network

BUNDLES = {"lung_seg": "segmenter", "wcapsgan": "sampler", "cyclegan": "enhancer"}
CORE_PACKAGES = {"pytorch": "torch", "monai": "monai", "numpy": "numpy"}


def metadata(name: str) -> dict:
    return json.loads((ROOT / "bundles" / f"{name}_bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))


def test_hu_range_and_one_window_for_all_bundles():
    assert to_int16(np.array([-3024.0, -2048, 5000])).tolist() == [-1024, -1024, 3071]
    assert (NETWORK_WINDOW.low_hu, NETWORK_WINDOW.high_hu) == (-1000, 400)
    for name in BUNDLES:
        text = json.dumps(metadata(name))
        assert "[-1000, 400]" in text, f"{name}: metadata.json does not state the window"


def test_generated_lungs_are_512_at_0_7_mm_or_256_at_1_4():
    config = ConfigParser.load_config_file(ROOT / "bundles/wcapsgan_bundle/configs/inference_lung.json")
    assert (config["size"], config["spacing_mm"]) == (256, 1.4)
    config = ConfigParser.load_config_file(ROOT / "bundles/wcapsgan_bundle/configs/inference_cascade.json")
    assert (config["size"], config["spacing_mm"]) == (512, 0.7)


@pytest.mark.parametrize("name", BUNDLES)
def test_weights_have_their_sidecar(name):
    models = ROOT / "bundles" / f"{name}_bundle" / "models"
    assert (models / "model.pt").is_file()
    assert name != "wcapsgan" or (models / "model_lung.pt").is_file()
    for weights in models.glob("*.pt"):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        sidecar = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        assert sidecar["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert {"network", "split_hash", "data", "seed", "versions", "validation"} <= set(sidecar)
        assert all({"name", "licence", "citation"} <= set(source) for source in sidecar["data"])
        assert sidecar["validation"], f"{weights.name}: no figures of its own"


@pytest.mark.parametrize("name", BUNDLES)
def test_training_writes_under_runs(name):
    config = ConfigParser.load_config_file(ROOT / f"bundles/{name}_bundle/configs/train.json")
    assert config["output_dir"].startswith("runs/")


PRODUCT_COMMANDS = ("generate", "plan", "export", "pseudo-label", "package")
EVALUATION_COMMANDS = ("segmentation", "nodules", "lungs", "slices", "enhancement", "utility")


@pytest.mark.parametrize(
    "command",
    [COMMANDS[name] for name in PRODUCT_COMMANDS] + [EVALUATIONS[name] for name in EVALUATION_COMMANDS],
    ids=[*PRODUCT_COMMANDS, *EVALUATION_COMMANDS],
)
def test_commands_take_bundles(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert "--bundles" in parser.format_help()


def test_bundles_stand_alone():
    for name in BUNDLES:
        root = ROOT / "bundles" / f"{name}_bundle"
        facts = metadata(name)
        packages = {"torch", "monai", "numpy", *facts["required_packages_version"], name}
        packages = {package.replace("pytorch-ignite", "ignite").replace("pillow", "PIL") for package in packages}
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                for module in modules:
                    top = module.split(".")[0]
                    assert top in packages or top in sys.stdlib_module_names, f"{path}: {module} is not declared"
        stated = {package: facts[f"{key}_version"] for key, package in CORE_PACKAGES.items()}
        for package, pin in (stated | facts["required_packages_version"]).items():
            assert version(package).split("+")[0] == pin
    for path in (ROOT / "lungsynth").rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) (lung_seg|wcapsgan|cyclegan)\b", path.read_text(encoding="utf-8"), flags=re.M
        )


def test_what_bundles_share_has_one_source():
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts/vendor_common.py"), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_what_the_chain_asks_of_the_bundles():
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


def test_what_the_evaluation_asks_of_a_detector():
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


def test_generators_are_weights_of_wcapsgan():
    config = ConfigParser.load_config_file(ROOT / "bundles/wcapsgan_bundle/configs/inference.json")
    assert config["network"]["ckpt_path"] == "@ckpt_path"
    assert isinstance(config["ckpt_path"], str)


def test_pins_of_the_bundles_lie_in_the_ranges_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    ranges = {needed.name.lower(): needed.specifier for needed in map(Requirement, texts) if needed.name != "lungsynth"}
    for name in BUNDLES:
        facts = metadata(name)
        pins = {package: facts[f"{key}_version"] for key, package in CORE_PACKAGES.items()}
        for package, pin in (pins | facts["required_packages_version"]).items():
            assert pin in ranges[package.lower()], f"{package}: {pin} of {name} is not in {ranges[package.lower()]}"


@pytest.mark.parametrize("kind", ["nodules", "lungs"])
def test_feature_networks_are_small_and_say_what_they_know(kind):
    network, sidecar = load_feature_network(WEIGHTS / f"{kind}_features.pt")
    assert (WEIGHTS / f"{kind}_features.pt").stat().st_size < 1_500_000
    assert sidecar["network"].endswith(type(network).__name__)
    keys = {"sha256", "split_hash", "data", "seed", "versions", "validation"}
    assert keys | {"settings", "epochs", "train_minutes", "samples", "patients"} <= set(sidecar)
    assert all(source["licence"] and source["citation"] for source in sidecar["data"])
