"""Laws of what the bundles share (bundles/common), tested on the copy of one of them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "bundles" / "cyclegan_bundle"))

from cyclegan.common.atomic import replacing, save_weights, write_json
from cyclegan.common.command_line import unknown_options
from cyclegan.common.hounsfield import NETWORK_WINDOW, Window, check_hu
from cyclegan.common.precision import use_bfloat16
from cyclegan.common.resume import process_seed
from cyclegan.common.sliced_wasserstein import laplacian_pyramid, sliced_wasserstein
from cyclegan.common.weights import WeightsMismatch, load_pretrained, load_weights, read_state


def test_a_file_is_whole_or_as_it_was(tmp_path) -> None:
    path = tmp_path / "new" / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    with replacing(path.with_name("picture.png")) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("whole", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    assert sorted(file.name for file in path.parent.iterdir()) == ["facts.json", "picture.png"]


def test_the_bytes_of_weights_depend_on_their_values_alone(tmp_path) -> None:
    network = torch.nn.Conv2d(2, 3, 3)
    save_weights(tmp_path / "a.pt", network)
    save_weights(tmp_path / "other.pt", network.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    assert torch.equal(load_weights(torch.nn.Conv2d(2, 3, 3), tmp_path / "a.pt").weight, network.weight)


def test_weights_that_do_not_fit_are_refused_with_both_shapes(tmp_path) -> None:
    save_weights(tmp_path / "model.pt", torch.nn.Linear(2, 3))
    with pytest.raises(
        WeightsMismatch, match=r"'weight' is \(3, 4\) in the network and \(3, 2\) in the file. Widen it"
    ):
        load_weights(torch.nn.Linear(4, 3), tmp_path / "model.pt", hint="Widen it.")
    with pytest.raises(WeightsMismatch, match=r"'bias' \(3,\) is not part of the network"):
        load_weights(torch.nn.Linear(2, 3, bias=False), tmp_path / "model.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(WeightsMismatch, match=r"expected a plain state dict, got a dict with \['epoch'\]"):
        read_state(tmp_path / "other.pt")
    network = torch.nn.Linear(2, 3)
    assert load_pretrained(network.eval(), None).training
    assert load_pretrained(network, tmp_path / "model.pt").training


def test_a_window_maps_its_ends_to_one_and_clips_only_on_request() -> None:
    hu = torch.tensor([-1024, -1000, -300, 400, 900], dtype=torch.int16)
    unit = NETWORK_WINDOW.to_unit(hu, clip=False)
    assert unit[[1, 2, 3]].tolist() == [-1, 0, 1]
    assert torch.equal(NETWORK_WINDOW.to_hu(unit).round().to(torch.int16), hu)
    assert torch.equal(NETWORK_WINDOW.to_unit(hu, clip=True), unit.clamp(-1, 1))
    assert NETWORK_WINDOW.unit(400.0) == 1
    with pytest.raises(ValueError, match="low_hu < high_hu"):
        Window(400.0, -1000.0)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (-100, 400), (-1000, -1), (-1000, np.nan)])
def test_images_that_are_not_in_hu_are_refused(values) -> None:
    check_hu(np.array([-1000.0, 40.0]), name="scan.nii")
    with pytest.raises(ValueError, match=r"scan\.nii: expected CT in HU"):
        check_hu(np.array(values, dtype=np.float32), name="scan.nii")


def test_amp_decides_before_the_device() -> None:
    assert use_bfloat16("cpu", True)
    assert not use_bfloat16("cpu", False)
    assert use_bfloat16("cpu") == use_bfloat16(torch.device("cpu"), None)
    assert not use_bfloat16("meta")


def test_seeds_of_processes_and_epochs_do_not_meet() -> None:
    assert process_seed(7, 0) == 7
    seeds = {
        process_seed(0, rank) + 1000 * epoch + transform
        for rank in range(8)
        for epoch in range(90)
        for transform in range(3)
    }
    assert len(seeds) == 8 * 90 * 3


@pytest.mark.parametrize(("shape", "upsampling"), [((2, 1, 21, 30), "bilinear"), ((2, 2, 8, 8, 8), "nearest")])
def test_a_pyramid_adds_up_to_the_images(shape, upsampling) -> None:
    images = torch.rand(shape)
    finest, rest = laplacian_pyramid(images, 2, upsampling=upsampling)
    corners = {"align_corners": False} if upsampling == "bilinear" else {}
    coarse = torch.nn.functional.interpolate(rest, size=images.shape[2:], mode=upsampling, **corners)
    torch.testing.assert_close(finest + coarse, images)


def test_the_distance_of_two_sets_is_that_of_their_shift_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 4, generator=generator)

    def distance(b: torch.Tensor) -> float:
        return float(sliced_wasserstein(a, b, n_projections=64, generator=torch.Generator().manual_seed(1)))

    assert distance(a) == 0
    assert 0 < distance(a + torch.tensor([0.5, 0, 0, 0])) < distance(a + torch.tensor([1.0, 0, 0, 0])) < 1


def test_an_option_that_no_config_has_is_named_with_what_was_meant() -> None:
    config = {"max_epochs": 3, "train": {"sampler": {"_target_": "x.Sampler", "nodule_share": 0.5}}}
    known = {"max_epochs", "train#sampler#nodule_share", "train::sampler::nodule_share", "train#sampler#an_argument"}
    assert list(unknown_options(known, config)) == []
    meant = {"max_epoch": "max_epochs", "nodule_share": "train#sampler#nodule_share", "trian#sampler": "train"}
    for option, name in meant.items():
        (sentence,) = unknown_options({option}, config)
        assert sentence.endswith(f"so that --{option} would do nothing. Did you mean {name}?")
    (sentence,) = unknown_options({"nothing_like_it"}, config)
    assert sentence.endswith("would do nothing.")
