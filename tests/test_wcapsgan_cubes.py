"""Laws of layer I of wcapsgan_bundle in three dimensions: the cubes of a cohort, their training and their samples."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from wcapsgan_toys import BUNDLE, CATEGORIES, disc, make_generator, read_samples, sphere, write_cubes

sys.path.insert(0, str(BUNDLE))

from wcapsgan.augment import AugmentationRange, augment
from wcapsgan.categories import CategoryRule
from wcapsgan.channels_last import on_device
from wcapsgan.critic import MultiScaleCritic
from wcapsgan.data import load_datalist
from wcapsgan.diameters import mask_diameter_mm
from wcapsgan.fitted import FittedFrame, second_moments
from wcapsgan.latents import seeded_generator
from wcapsgan.metrics import pyramid_distance
from wcapsgan.montage import montage
from wcapsgan.sample_types import sample_type_of
from wcapsgan.sampler import Sampler
from wcapsgan.weights import load_generator

FITTED = FittedFrame(size=16, span_diameters=2.0, edge_px=0.5, cube_size=32, cube_spacing_mm=0.7)
TINY = {"size": 16, "frame#edge_px": FITTED.edge_px, "fitted#cube_size": FITTED.cube_size}
TINY_NETWORK = {"network_def#channels": 4, "network_def#latent_dim": 4}
tiny_generator = partial(
    make_generator, channels=4, flat_background=True, spacing_mm=None, edge_px=FITTED.edge_px, spatial_dims=3
)
read_cubes = partial(read_samples, rule=CategoryRule([]), sample_type="cube")
rod = np.pad(np.ones((4, 4, 30)), ((14, 14), (14, 14), (1, 1)))  # longer than a frame of its diameters


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cubes(tmp_path_factory.mktemp("cubes"), ["ground_glass", "solid", "solid", "unknown"])


def run(configs: list[str], *, network: dict = TINY_NETWORK, **overrides) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in configs],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if configs[0] == "train" else "infer",
        bundle_root=str(BUNDLE),
        categories=CATEGORIES,
        device="cpu",
        **{**TINY, **network, **overrides},
    )
    workflow.initialize()
    workflow.run()


def test_a_sphere_comes_back_with_its_diameter(cohort) -> None:
    samples = read_cubes(cohort, fitted=FITTED)
    expected = torch.tensor([0.3 + 0.05 * i for i in range(4)]) * 32 * 0.7
    torch.testing.assert_close(samples.diameter_mm, expected, atol=0.3, rtol=0)
    batch = samples.take(torch.arange(4))
    assert batch.samples.shape == (4, 2, 16, 16, 16)
    inside = mask_diameter_mm(batch.samples[:, 1], samples.pixel_mm(samples.diameter_mm))
    torch.testing.assert_close(inside, expected, rtol=0.06, atol=0)  # whatever its size, it fills its frame
    torch.testing.assert_close(samples.hu[0, 8, 8, 8], torch.tensor(-500, dtype=torch.int16))


@pytest.mark.parametrize("diameter_mm", [3.0, 6.0, 9.0, 14.0])
def test_what_fills_its_frame_comes_back_with_the_diameter_asked(diameter_mm) -> None:
    alpha = sphere(13, 32).astype(np.float32) + np.roll(sphere(9, 32), 7, axis=2)
    mask = (alpha > 0).astype(np.float16)
    hu, soft = FITTED.fit(np.where(mask > 0, 20, -850), mask)
    placed = FITTED.place(hu, soft, diameter_mm, edge_px=0.8)
    inside = placed.alpha >= 0.5
    assert (6 * inside.sum() / np.pi) ** (1 / 3) * 0.7 == pytest.approx(diameter_mm, abs=0.15)
    np.testing.assert_allclose(np.argwhere(inside).mean(axis=0), 15.5, atol=0.5)
    assert np.unique(placed.hu[placed.alpha == 0]).tolist() == [-850]
    if diameter_mm > 4:  # else it is a few voxels
        long, short = (np.ptp(np.argwhere(inside)[:, axis]) for axis in (2, 0))
        assert long > 1.15 * short
        assert np.median(placed.hu[placed.alpha > 0.99]) == pytest.approx(20, abs=10)


def test_a_nodule_gets_the_proportions_of_another_one() -> None:
    axes = np.array([[1.0, 0.4, 0.0], [0.4, 1.6, 0.2], [0.0, 0.2, 0.7]])
    moments = axes / np.linalg.det(axes) ** (1 / 3)
    hu, mask = FITTED.fit(np.where(sphere(13, 32) > 0, 20, -850), sphere(13, 32))
    image, outline = FITTED.stretched(hu, mask, moments)
    inside = outline >= 0.5
    np.testing.assert_allclose(second_moments(inside), moments, atol=0.06)
    assert inside.sum() == pytest.approx((mask >= 0.5).sum(), rel=0.1)
    assert np.median(image[outline > 0.99]) == pytest.approx(20, abs=10)
    same, unchanged = FITTED.stretched(hu, mask, second_moments(mask >= 0.5))
    np.testing.assert_allclose(same[8:24, 8:24, 8:24], hu, atol=1)  # in a frame of twice the side
    np.testing.assert_allclose(unchanged[8:24, 8:24, 8:24], mask, atol=1e-3)


def test_what_is_longer_than_its_frame_or_cube_is_left_out(cohort) -> None:
    assert FITTED.fit(np.zeros(rod.shape), rod) is None
    assert not FITTED.holds(rod[8:24, 8:24, 8:24], 18.0)
    assert FITTED.holds(rod[8:24, 8:24, 8:24], 6.0)
    assert not FITTED.holds(np.zeros((16, 16, 16)), 6.0)
    with pytest.raises(ValueError, match=r"Cubes are scaled by `fitted`.*'cube' without it"):
        read_cubes(cohort)


def test_the_diameter_of_a_soft_mask_is_that_of_its_axes() -> None:
    cubes = torch.from_numpy(np.stack([sphere(20, 32), sphere(0, 32)])).float()
    diameter = mask_diameter_mm(cubes, 1.4)
    assert float(diameter[0]) == pytest.approx(28, abs=0.5)
    assert float(diameter[1]) < 0.4
    slices = torch.from_numpy(disc(20, 32)).float()[None]
    assert float(mask_diameter_mm(slices, 1.4)) == pytest.approx(28, abs=0.5)


def test_cubes_of_another_grid_and_unknown_sample_types_are_named(cohort) -> None:
    with pytest.raises(ValueError, match=r"expected a cube of 64 voxels a side, got \(32, 32, 32\)"):
        read_cubes(cohort, fitted=replace(FITTED, cube_size=64))
    with pytest.raises(ValueError, match=r"'test', got none.*cover 44\.8 mm"):
        load_datalist(cohort, sample_type="cube", split="test")
    with pytest.raises(
        ValueError, match=r"sample_type must be one of \['nodule', 'cube', 'lung', 'slice'\], got 'ball'"
    ):
        sample_type_of("ball")


def test_the_mask_moves_with_its_image_in_all_axes() -> None:
    mask = torch.from_numpy(sphere(6, 16)).float().roll((3, 2, 1), dims=(0, 1, 2)).expand(8, 16, 16, 16)
    x = torch.stack([mask * 2 - 1, mask], dim=1)
    moves = AugmentationRange(brightness=0, contrast=0, translation=0.125, rotation_deg=10, zoom=0.1)
    moved = augment(x, moves.draw(seeded_generator(0), x.shape))
    torch.testing.assert_close(moved[:, 0], moved[:, 1] * 2 - 1, atol=1e-4, rtol=0)
    middles = [(torch.stack(torch.where(sample[1] > 0.5)).float().mean(dim=1) - 7.5) for sample in moved]
    assert len({tuple(torch.sign(middle).tolist()) for middle in middles}) > 4  # flipped along each axis


def test_distance_of_cubes_tells_a_stretch_along_the_slices() -> None:
    real = torch.randn(6, 2, 16, 16, 16, generator=seeded_generator(1))
    assert pyramid_distance(real, real)["swd"] == 0
    stretched = real[:, :, torch.arange(16) // 2 + 4]
    alike = torch.randn(6, 2, 16, 16, 16, generator=seeded_generator(2))
    assert pyramid_distance(real, stretched)["swd"] > 1.2 * pyramid_distance(real, alike)["swd"] > 0


def test_a_picture_of_a_cube_shows_its_three_middle_planes_with_the_head_up() -> None:
    cube = torch.zeros(1, 2, 16, 16, 16)
    cube[:, 1, 12:, 8, 8] = 1  # towards the head
    cube[:, 1, 8, :4, 8] = 0.5  # towards the front
    picture = montage([cube], columns=1)[:, 3 * 16 + 6 :]
    axial, coronal, sagittal = (picture[:, 16 * i : 16 * (i + 1)] for i in range(3))
    assert axial[:4, 8].all()
    assert coronal[:4, 8].all()
    assert sagittal[:4, 8].all()
    assert sagittal[7, :4].all()
    assert (picture > 0).sum() == 4 + 4 + 8


def test_networks_of_either_kind_are_the_same_after_moving() -> None:
    sizes = {"n_categories": 2, "size": 16, "channels": 4, "spacing_mm": 1.4}
    sizes["scales"] = [{"downsampling": 1, "extra_convolutions": 0}]
    for dims in (2, 3):
        torch.manual_seed(0)
        critic = MultiScaleCritic(**sizes, spatial_dims=dims).eval()
        x, category, diameter = torch.randn(2, 2, *[16] * dims), torch.arange(2), torch.tensor([6.0, 9.0])
        before = critic(x, category, diameter)
        moved = on_device(critic, "cpu")
        last = torch.channels_last if dims == 2 else torch.channels_last_3d
        assert moved.critics[0].first.weight.is_contiguous(memory_format=last)
        torch.testing.assert_close(moved(x, category, diameter), before)


def test_one_seed_makes_one_cube_in_any_company(monkeypatch) -> None:
    torch.manual_seed(0)
    network = tiny_generator()
    network.diameter_quantiles.copy_(torch.linspace(6, 10, 101).expand(2, 101))
    sampler = Sampler(
        network,
        sample_type="cube",
        categories=CATEGORIES,
        spacing_mm=0.7,
        edge_px=0.8,
        network_batch_size=2,
        fitted=FITTED,
    )
    together = sampler([1, 2, 3], ["solid"] * 3, [None, 8.0, None])
    alone = sampler([2], ["solid"], [8.0])
    assert together["hu"].shape == together["alpha"].shape == (3, 32, 32, 32)
    for key in ("hu", "alpha", "diameter_mm"):
        assert alone[key].tobytes() == together[key][1:2].tobytes()
    faces = np.ones((32,) * 3, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    assert not together["alpha"][:, faces].any()
    assert len(np.unique(together["hu"][0][together["alpha"][0] == 0])) == 1
    assert sampler([], [], [])["hu"].shape == (0, 32, 32, 32)
    network.shape_moments.copy_(torch.diag(torch.tensor([4.0, 0.5, 0.5])))
    ball = torch.from_numpy(sphere(8)).float()
    monkeypatch.setattr(
        sampler, "_generate", lambda latent, *_: torch.stack([ball * 2 - 1, ball]).expand(2, 2, 16, 16, 16)
    )
    long = sampler([1, 2], ["solid"] * 2, [6.0, 6.0])["alpha"] >= 0.5
    for mask in long:
        np.testing.assert_allclose(second_moments(mask), np.diag([4.0, 0.5, 0.5]), atol=0.8)
    with pytest.raises(ValueError, match=r"above 2\.1 and up to 15\.7 mm, which a cube of 32 voxels"):
        sampler([1], ["solid"], [17.0])


def test_resumed_training_of_cubes_equals_uninterrupted_training(cohort, tmp_path) -> None:
    settings = {
        "dataset_dir": str(cohort),
        "critic_def#channels": 4,
        "critic_def#scales": [{"downsampling": 1, "extra_convolutions": 1}],
        "epoch_length": 2,
        "batch_size": 2,
        "val_interval": 1,
    }
    overlay, state = ["train", "train_cube"], "resume_{}.pt"
    run(overlay, output_dir=str(tmp_path / "whole"), max_epochs=2, **settings)
    run(overlay, output_dir=str(tmp_path / "parts"), max_epochs=1, **settings)
    torch.rand(7)  # noise between the two
    first = str(tmp_path / "parts" / state.format(1))
    run(overlay, output_dir=str(tmp_path / "parts"), max_epochs=2, resume_from=first, **settings)
    whole, resumed = (torch.load(tmp_path / name / state.format(2), weights_only=True) for name in ("whole", "parts"))
    for part in ("generator", "critic", "ema"):
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), (part, key)
    sidecar = json.loads((tmp_path / "parts" / "model_cube.json").read_text(encoding="utf-8"))
    assert sidecar["sample_type"] == "cube"
    assert "swd" in sidecar["validation"]
    assert (tmp_path / "parts" / "samples" / "epoch_0002.png").is_file()
    trained = load_generator(tiny_generator(), tmp_path / "parts" / "model_cube.pt")
    assert float(trained.diameter_quantiles.min()) > 5
    torch.testing.assert_close(trained.shape_moments, torch.eye(3).repeat(256, 1, 1), atol=0.05, rtol=0)  # of spheres


def test_methods_without_cubes_say_so(cohort, tmp_path) -> None:
    settings = {"dataset_dir": str(cohort), "output_dir": str(tmp_path), "max_epochs": 1}
    with pytest.raises(RuntimeError) as refused:
        run(["train", "train_cube", "train_gan"], network={"network_def#widths": [8]}, **settings)
    causes = [refused.value]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    assert "PlainGenerator makes samples of 2 dimensions, those of sample_type 'cube' have 3" in str(causes[-1])
    assert not list(tmp_path.iterdir())


def test_inference_writes_cubes(tmp_path) -> None:
    torch.save(tiny_generator().state_dict(), tmp_path / "model_cube.pt")
    weights = str(tmp_path / "model_cube.pt")
    run(["inference", "inference_cube"], output_dir=str(tmp_path), ckpt_path=weights, count=3, first_seed=5)
    with np.load(tmp_path / "samples.npz") as samples:
        assert sorted(samples) == ["alpha", "category", "diameter_mm", "hu", "seed"]
        assert samples["hu"].shape == samples["alpha"].shape == (3, 32, 32, 32)
        assert (samples["hu"].dtype, samples["alpha"].dtype) == (np.int16, np.float16)
        assert samples["seed"].tolist() == [5, 6, 7]
    with Image.open(tmp_path / "montage.png") as picture:
        assert picture.size == (2 * 4 * 3 * 32 + 6, 32)
