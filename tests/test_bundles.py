"""Laws of opening bundles: each gets its own code, and what does not fit is named."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_bundles import linear_state, write_fake_bundles, write_weights

from lungsynth.bundles import open_bundle, read_weights, resolved_config
from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "opening")


def test_each_component_comes_from_its_own_bundle(bundles):
    sampler = open_bundle(bundles, "wcapsgan")
    enhancer = open_bundle(bundles, "cyclegan", component="enhancer")
    assert type(sampler).__module__ == "opening_wcapsgan.sampling"
    assert type(enhancer).__module__ == "opening_cyclegan.sampling"
    assert sampler([1], ["solid"], [None])["hu"].shape == (1, 64, 64)


def test_a_config_on_top_turns_the_sampler_into_one_of_lungs(bundles):
    configs = ("inference.json", "inference_lung.json")
    sampler = open_bundle(
        bundles, "wcapsgan", configs=configs, weights="model_lung.pt", overrides={"sampler::size": 32}
    )
    assert sampler([1, 2], ["normal"] * 2, [None] * 2)["mask"].shape == (2, 32, 32)


def test_a_bundle_opens_from_a_relative_folder_after_a_chdir(bundles, monkeypatch):
    monkeypatch.chdir(bundles)
    assert open_bundle(Path(), "wcapsgan")([3], ["solid"], [8.0])["category"] == ["solid"]


def test_resolved_config_holds_no_path_of_this_machine(bundles):
    assert str(bundles) not in str(resolved_config(bundles, "cyclegan"))


def test_a_second_folder_with_the_same_package_is_refused(bundles, tmp_path):
    open_bundle(bundles, "wcapsgan")
    shutil.copytree(bundles, tmp_path / "copy")
    with pytest.raises(InputError, match="the package `opening_wcapsgan` is already taken"):
        open_bundle(tmp_path / "copy", "wcapsgan")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("judge", "model.pt", "expected the bundle judge_bundle"),
        ("wcapsgan", "other.pt", r"other\.pt: expected the weights of wcapsgan_bundle"),
    ],
)
def test_what_is_missing_is_named(bundles, name, file, message):
    with pytest.raises(InputError, match=message):
        open_bundle(bundles, name, weights=file)


def test_an_absent_component_is_named(bundles):
    with pytest.raises(InputError, match=re.escape("inference.json: expected an entry `segmenter`")):
        open_bundle(bundles, "cyclegan", component="segmenter")


def test_a_component_that_names_no_class_is_said(bundles):
    nothing = {"enhancer": {"size": 3}}
    with pytest.raises(InputError, match=r"inference\.json: `enhancer` should name a class in `_target_`"):
        open_bundle(bundles, "cyclegan", component="enhancer", overrides=nothing)


@pytest.mark.parametrize("config", [{"network_def": 3}, {"enhancer": {"_target_": "\u00e9" * 40}}])
def test_a_config_that_cannot_be_built_is_named(bundles, config):
    with pytest.raises(InputError, match=r"inference\.json: `enhancer` cannot be built \(.+\)\. Mend it"):
        open_bundle(bundles, "cyclegan", component="enhancer", overrides=config)


def test_the_environment_names_the_device(bundles, monkeypatch):
    monkeypatch.setenv("LUNGSYNTH_DEVICE", "cpu")
    assert open_bundle(bundles, "wcapsgan").categories
    monkeypatch.setenv("LUNGSYNTH_DEVICE", "toaster")
    with pytest.raises(InputError, match="`device` toaster cannot be used here"):
        open_bundle(bundles, "wcapsgan")


def test_weights_of_another_network_are_refused(tmp_path):
    bundles = write_fake_bundles(tmp_path, "misfit")
    write_weights(tmp_path / "wcapsgan_bundle" / "models" / "model.pt", linear_state(5))
    with pytest.raises(InputError, match=r"model\.pt: weights for another network: `layer\.weight` has shape \(2, 3\)"):
        open_bundle(bundles, "wcapsgan")


def test_a_bundles_refusal_of_weights_is_passed_on() -> None:
    other = {"_target_": "cyclegan.network.ResidualEnhancer", "channels": 8}
    overrides = {"network#network": other}
    with pytest.raises(
        InputError, match=r"model\.pt: expected the weights of this ResidualEnhancer.*in the network and"
    ):
        open_bundle(BUNDLES, "cyclegan", component="enhancer", overrides=overrides)


def test_damaged_weights_are_refused(tmp_path):
    bundles = write_fake_bundles(tmp_path, "damaged")
    path = tmp_path / "cyclegan_bundle" / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:200])
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"model\.pt: not a file of weights, or a damaged one"):
        open_bundle(bundles, "cyclegan", component="enhancer")


def test_weights_that_are_not_the_sidecars_are_refused(tmp_path):
    bundles = write_fake_bundles(tmp_path, "swapped")
    torch.save(linear_state(3, fill=1.0), tmp_path / "wcapsgan_bundle" / "models" / "model.pt")
    with pytest.raises(InputError, match=r"its sidecar model\.json describes weights with"):
        read_weights(bundles, "wcapsgan")


def test_the_fake_sampler_makes_one_sample_of_one_seed(bundles):
    sampler = open_bundle(bundles, "wcapsgan")
    both = sampler([1, 2], ["solid", "solid"], [None, None])
    assert np.array_equal(sampler([2], ["solid"], [None])["hu"][0], both["hu"][1])
