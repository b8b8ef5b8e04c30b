"""Laws of the other methods of Table I in the lung_seg bundle: their parts, their training, their detectors."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.baselines.any_size import AnySize
from lung_seg.baselines.cubes import CubeBank
from lung_seg.baselines.dcnn import DEPTH, SIDE_PX
from lung_seg.baselines.detector import SliceDetector
from lung_seg.baselines.faster_rcnn import FasterRcnn3d
from lung_seg.baselines.froc import ImageFroc, match_finds
from lung_seg.baselines.merging import merge_finds
from lung_seg.baselines.objects import ignored_share, objects_of
from lung_seg.baselines.patches import PatchStep, sample_patches
from lung_seg.baselines.peaks import find_peaks
from lung_seg.baselines.proposals import ProposalNetwork
from lung_seg.baselines.pyramid import Pyramid
from lung_seg.baselines.roi_align import level_of, roi_align
from lung_seg.baselines.vgg import PATCH_PX, PatchVgg
from monai.bundle import ConfigWorkflow
from trainings import open_training

METHODS = ("unet", "unet_plus_plus", "cnn_vgg", "faster_rcnn_3d", "dense_unet_equal")
SEGMENTERS = ("unet", "unet_plus_plus", "dense_unet_equal")
AXIAL = np.diag([-0.7, -0.7, 3.0, 1.0])
TINY_VGG = {"channels": (4, 4, 8), "hidden": 8}


def disc(side: int, *, radius: float, row: float, column: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def batch_with_a_disc(side: int = 96) -> dict[str, torch.Tensor]:
    """Four images of air with a bright disc, drawn on all but the last; the right quarter is unlabelled."""
    torch.manual_seed(0)
    label = torch.zeros(4, 1, side, side, dtype=torch.uint8)
    label[:, 0, torch.from_numpy(disc(side, radius=6, row=40, column=30))] = 2
    image = torch.where(label == 2, 0.5, -0.9) + 0.02 * torch.randn(4, 1, side, side)
    label[..., -side // 4 :] = 255
    return {"image": image, "label": label, "labelled": torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]])}


def engine_of(network: torch.nn.Module, *, rate: float = 1e-3) -> SimpleNamespace:
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    return SimpleNamespace(network=network, optimizer=optimizer, state=SimpleNamespace(device="cpu", iteration=1))


# ---------------------------------------------------------------- segmentation networks
def test_any_size_pads_crops_and_takes_the_first_output():
    class Twice(torch.nn.Module):
        def forward(self, x):
            assert x.shape[-2] % 8 == x.shape[-1] % 8 == 0
            return [2 * x, None]

    image = torch.randn(2, 1, 13, 16)
    assert torch.equal(AnySize(Twice(), multiple=8)(image), 2 * image)
    with pytest.raises(ValueError, match="multiple of at least 1, got 0"):
        AnySize(Twice(), multiple=0)


# ---------------------------------------------------------------- objects and the metric
def test_objects_have_edges_middles_and_diameters():
    label = torch.zeros(20, 30, dtype=torch.uint8)
    label[2:6, 5:9] = 2
    label[10, 20] = 2
    objects = objects_of(label)
    assert objects.boxes.tolist() == [[2, 5, 6, 9], [10, 20, 11, 21]]
    assert objects.centres.tolist() == [[3.5, 6.5], [10, 20]]
    assert objects.diameters[0] == pytest.approx(2 * (16 / np.pi) ** 0.5)
    assert len(objects_of(torch.ones(5, 5, dtype=torch.uint8)).boxes) == 0


def test_ignored_share_counts_what_nobody_saw():
    label = torch.zeros(10, 10, dtype=torch.uint8)
    label[:, 5:] = 255
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 3, 4, 7], [2, 6, 4, 9], [20, 20, 30, 30]])
    assert ignored_share(label, boxes).tolist() == [0, 0.5, 1, 1]


def test_froc_rewards_hits_and_counts_false_finds_where_somebody_looked():
    label = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    label[0, 0, 10:16, 10:16] = 2
    label[0, 0, :, 30:] = 255
    hit, false, unseen = [12.0, 13.0, 6.0, 0.9], [30.0, 5.0, 6.0, 0.95], [5.0, 35.0, 6.0, 0.99]
    found, wrong = match_finds(torch.tensor([hit, false, unseen]), objects_of(label[0, 0]), label[0, 0])
    assert found.tolist() == pytest.approx([0.9])
    assert wrong.tolist() == pytest.approx([0.95])
    scores = {}
    for name, finds in {"perfect": [hit, unseen], "doubtful": [hit, false], "blind": [false]}.items():
        metric = ImageFroc()
        metric.update(([torch.tensor(finds)], label, torch.tensor([[0.0, 1.0]])))
        metric.update(([torch.tensor([false] * 9)], label, torch.tensor([[1.0, 0.0]])))  # nobody drew: does not count
        scores[name] = metric.compute()
    assert scores["perfect"] == 1
    assert scores["doubtful"] == pytest.approx(4 / 7)  # one false find an image: missed at 1/8, 1/4 and 1/2
    assert scores["blind"] == 0


# ---------------------------------------------------------------- CNN+VGG
def test_sweeping_equals_patch_after_patch():
    torch.manual_seed(0)
    network = PatchVgg(**TINY_VGG).eval()
    image = torch.randn(1, 1, PATCH_PX + 8, PATCH_PX + 4)
    swept = network.sweep(image)
    assert swept.shape == (1, 2, 17, 16)
    for row, column in [(7, 7), (8, 7), (9, 8)]:  # the only blocks whose patches lie within the image
        top, left = 4 * row - 28, 4 * column - 28
        patch = image[:, :, top : top + PATCH_PX, left : left + PATCH_PX]
        torch.testing.assert_close(network(patch), swept[:, :, row, column])


def test_patches_come_from_drawn_images_and_seen_pixels_only():
    batch = batch_with_a_disc()
    # Each pixel knows its label and its image.
    image = batch["label"].float() + 1000 * torch.arange(4.0)[:, None, None, None]
    torch.manual_seed(0)
    with_nodule, without = sample_patches(image, batch["label"], batch["labelled"], positives=40, negatives=90)
    middle = PATCH_PX // 2 - 1
    assert len(with_nodule.images) == 40
    assert set((with_nodule.images[:, 0, middle, middle] % 1000).tolist()) == {2.0}
    assert set((without.images[:, 0, middle, middle] % 1000).tolist()) == {0.0}
    assert with_nodule.images[:, 0, middle, middle].max() < 2999
    assert without.images[:, 0, middle, middle].max() < 2999
    assert with_nodule.diameters.unique().item() == pytest.approx(objects_of(batch["label"][0, 0]).diameters.item())


def test_patch_step_learns_and_leaves_undrawn_batches_alone():
    torch.manual_seed(0)
    batch, step = batch_with_a_disc(), PatchStep(positives=12, negatives=12, drawn_negatives=24)
    engine = engine_of(PatchVgg(**TINY_VGG), rate=5e-3)
    losses = [step(engine, batch)["loss"] for _ in range(12)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    before = {name: value.clone() for name, value in engine.network.state_dict().items()}
    assert step(engine, {**batch, "labelled": torch.tensor([[1.0, 0.0]] * 4)})["loss"] == 0
    assert all(torch.equal(before[name], value) for name, value in engine.network.state_dict().items())


def test_the_maxima_of_one_plateau_are_one_find():
    heat = torch.zeros(30, 30)
    heat[5:15, 5:15] = 0.9
    heat[6, 6] = heat[12, 13] = 0.95
    (find,) = find_peaks(heat, torch.full((30, 30), 40.0), step_px=4).tolist()
    assert find[:2] == pytest.approx([4 * 10 - 0.5] * 2, abs=3)
    assert find[2:] == pytest.approx([40, 0.95])


# ---------------------------------------------------------------- Faster R-CNN
@pytest.mark.parametrize("stride", [1, 4])
def test_roi_align_reproduces_constant_and_linear_maps(stride):
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    maps = torch.stack([torch.full_like(rows, 3.0), stride * (rows + 0.5), stride * (columns + 0.5)])[None]
    boxes = stride * torch.tensor([[2.0, 3.0, 7.0, 9.0], [4.25, 5.5, 6.25, 6.0]])
    pooled = roi_align(maps, boxes, stride_px=stride, size=5)
    assert pooled.shape == (2, 3, 5, 5)
    torch.testing.assert_close(pooled[:, 0], torch.full((2, 5, 5), 3.0))
    middles = (torch.arange(5) + 0.5) / 5
    for box, values in zip(boxes, pooled, strict=True):
        want_rows, want_columns = (box[axis] + middles * (box[axis + 2] - box[axis]) for axis in (0, 1))
        torch.testing.assert_close(values[1], want_rows[:, None].expand(5, 5))
        torch.testing.assert_close(values[2], want_columns[None].expand(5, 5))


def test_larger_boxes_are_pooled_from_coarser_levels():
    boxes = torch.tensor([[0.0, 0, side, side] for side in (3, 15, 17, 33, 500)])
    assert level_of(boxes, levels=3, reference_px=16).tolist() == [0, 0, 1, 2, 2]


def test_anchors_over_unseen_pixels_and_undrawn_images_have_no_gradient():
    torch.manual_seed(0)
    batch = batch_with_a_disc()
    pyramid, network = Pyramid(channels=(4, 4, 4, 4, 4), width=8), ProposalNetwork(width=8)
    found = network(batch["image"], pyramid(batch["image"]))
    logits, codes = found.logits.detach().requires_grad_(), found.codes.detach().requires_grad_()
    found = found._replace(logits=logits, codes=codes)
    objects = [objects_of(label[0]) for label in batch["label"]]
    sum(network.terms(found, objects, batch["label"], batch["labelled"])).backward()
    unseen = ignored_share(batch["label"][0, 0], found.anchors) > 0
    assert unseen.any()
    assert not logits.grad[:, unseen].any()
    assert not logits.grad[3].any()
    assert not codes.grad[3].any()
    assert all(logits.grad[index].any() and codes.grad[index].any() for index in range(3))


def test_the_three_networks_learn_and_images_without_drawn_nodules_teach_the_slices_nothing():
    torch.manual_seed(0)
    network, batch = FasterRcnn3d(width=16), batch_with_a_disc()
    cubes, is_nodule = torch.randn(4, 1, DEPTH, SIDE_PX, SIDE_PX), torch.tensor([1.0, 1.0, 0.0, 0.0])
    cubes[:2, :, :, 15:25, 15:25] += 3
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    totals = []
    for _ in range(10):
        optimizer.zero_grad()
        terms = network(batch["image"], batch["label"], batch["labelled"], cubes, is_nodule)
        terms.total().backward()
        optimizer.step()
        totals.append(terms.total().item())
    assert np.isfinite(totals).all()
    assert totals[-1] < 0.8 * totals[0]
    optimizer.zero_grad()
    undrawn = torch.tensor([[1.0, 0.0]] * 4)
    network(batch["image"], batch["label"], undrawn, cubes, is_nodule).total().backward()
    assert not any(p.grad is not None and p.grad.any() for p in network.second.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in network.first.parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.cubes.parameters())


# ---------------------------------------------------------------- volumes
def test_finds_of_one_nodule_become_one_candidate_and_a_vessel_stays_short():
    spacing = (1.0, 0.7, 0.7)
    nodule = [[z, 50, 60, 8.0, 0.9 - 0.1 * abs(z - 10)] for z in range(7, 14)]
    other = [[10, 50, 100, 4.0, 0.4]]
    (first, second) = merge_finds(np.array(nodule + other), spacing_mm=spacing)
    assert first.tolist() == pytest.approx([10, 50, 60, 8, 0.9], abs=1e-4)
    assert second.tolist() == pytest.approx(other[0])
    vessel = np.array([[z, 20, 20, 4.0, 0.5] for z in range(60)])
    assert 6 < len(merge_finds(vessel, spacing_mm=spacing)) < 20
    assert merge_finds(np.zeros((0, 5)), spacing_mm=spacing).shape == (0, 5)


class Bright(torch.nn.Module):
    """Finds what is bright, on blocks of 2 x 2 pixels; the diameter is always 10 pixels."""

    def find(self, image):
        heat = torch.nn.functional.avg_pool2d((image[:, 0] > 0).float(), 2, ceil_mode=True)
        finds = [find_peaks(plane, torch.full_like(plane, 10.0), step_px=2) for plane in heat]
        return finds, (image[:, 0] > 0).float()


class Doubting(Bright):
    """Judges by whether the middle of the cube is bright in all of its slices."""

    def judge(self, cubes):
        return (cubes[:, 0, :, 18:22, 18:22] > 0).float().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("spacing_mm", [(2.0, 0.7, 0.7), (1.0, 0.9, 0.5)])
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_a_nodule_in_air_is_found_at_its_place(depth, spacing_mm):
    middle = depth // 2
    z, y, x = np.mgrid[:depth, :96, :80]
    offsets = ((z - middle) * spacing_mm[0], (y - 40) * spacing_mm[1], (x - 30) * spacing_mm[2])
    hu = np.where(sum(offset**2 for offset in offsets) < 3.5**2, 100, -900).astype(np.int16)
    found = SliceDetector(Bright(), operating_point=0.3, spacing_mm=0.7, amp=False)(hu, spacing_mm)
    (candidate,) = found["candidates"]
    assert found["candidates"].dtype == np.float32
    assert candidate[:3] == pytest.approx([middle, 40, 30], abs=1.0)
    assert candidate[3] == pytest.approx(7.0)
    assert found["nodule"].dtype == np.float16
    assert found["nodule"].shape == hu.shape
    assert ((found["nodule"] > 0.5) == (hu > 0)).mean() > 0.99


def test_the_cube_network_has_its_say_and_volumes_end_by_repeating():
    hu = np.full((9, 64, 64), -900, dtype=np.int16)
    hu[:, 18:26, 18:26] = 100  # in all slices
    hu[4, 40:48, 40:48] = 100  # in one slice
    detector = SliceDetector(Doubting(), operating_point=0.3, spacing_mm=0.7, amp=False)
    candidates = detector(hu, (5.0, 0.7, 0.7))["candidates"]
    assert candidates[0, 4] == pytest.approx(1)
    one_slice = candidates[np.hypot(candidates[:, 1] - 43.5, candidates[:, 2] - 43.5) < 2]
    assert one_slice[:, 4].tolist() == pytest.approx([0.2**0.5], abs=0.01)
    assert (np.diff(candidates[:, 4]) <= 0).all()
    assert detector(hu[4:5], (5.0, 0.7, 0.7))["candidates"][:, 4].tolist() == pytest.approx([1, 1])


def test_detector_refuses_what_is_no_volume():
    detector = SliceDetector(Bright(), operating_point=0.3)
    with pytest.raises(ValueError, match=r"one slice as \(1, H, W\)"):
        detector(np.zeros((4, 4), np.int16), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="positive spacing"):
        detector(np.zeros((1, 4, 4), np.int16), (float("nan"), 1.0, 1.0))
    assert detector(np.full((2, 8, 8), -900, np.int16), (1.0, 1.0, 1.0))["candidates"].shape == (0, 5)


# ---------------------------------------------------------------- a cohort
def write_slice(root: Path, name: str, *, nodule: bool, rng: np.random.Generator) -> dict[str, object]:
    lung = disc(72, radius=24, row=36, column=36)
    spot = disc(72, radius=5, row=30, column=40)
    vessel = disc(72, radius=2, row=45, column=30)
    hu = np.where(lung, -850, 40) + rng.integers(-20, 20, lung.shape)
    hu[vessel | (spot & nodule)] = 50
    label = np.where(spot & nodule, 2, 0 if nodule else lung)
    for folder, plane, dtype in [("slices", hu, np.int16), ("labels", label, np.uint8)]:
        (root / folder).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(plane.T[..., None].astype(dtype), AXIAL), root / folder / f"{name}.nii.gz")
    labelled = ["nodule"] if nodule else ["lung"]
    return {"image": f"slices/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "kind": "slice", "labelled": labelled}


def write_nodule(root: Path, name: str, rng: np.random.Generator) -> dict[str, object]:
    votes = 3 * disc(64, radius=7, row=31.5, column=31.5).astype(np.uint8)
    context = np.where(votes > 1, 30, -850) + rng.integers(-20, 20, votes.shape)
    context[disc(64, radius=2, row=10, column=12)] = 20
    for folder in ("nodules", "windows"):
        (root / folder).mkdir(exist_ok=True)
    isolated = np.stack([np.where(votes, context, -850)] * 2).astype(np.int16)
    alpha = np.stack([votes > 1] * 2).astype(np.float16)
    np.savez(root / "nodules" / f"{name}.npz", hu=isolated, alpha=alpha, votes=np.stack([votes] * 2))
    hu, label = np.stack([context] * 2).astype(np.int16), np.stack([np.where(votes > 1, 2, 0)] * 2).astype(np.uint8)
    np.savez(root / "windows" / f"{name}.npz", hu=hu, label=label, z_mm=np.array([0.0, 2.5]), largest=0)
    return {"image": f"windows/{name}.npz", "kind": "nodule", "labelled": ["nodule"]}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    parts = {
        part: [write_slice(root, f"{part}-a_{index:04d}", nodule=False, rng=rng) for index in (3, 4, 5, 9)]
        + [write_slice(root, f"{part}-b_{index:04d}", nodule=True, rng=rng) for index in (0, 1)]
        + [write_nodule(root, f"{part}_{index}", rng) for index in range(4)]
        for part in ("training", "validation")
    }
    (root / "segmentation.json").write_text(json.dumps({**parts, "test": []}), encoding="utf-8")
    patches = {
        part: [{"nodule": f"nodules/{Path(str(entry['image'])).name}"} for entry in listed if entry["kind"] == "nodule"]
        for part, listed in parts.items()
    }
    (root / "nodules.json").write_text(json.dumps(patches), encoding="utf-8")
    return root


def test_cubes_hold_what_they_say_and_repeat_with_their_seed(cohort):
    bank = CubeBank(cohort)
    groups = bank.groups()
    assert [len(source.stack.hu) for source in groups["lungs"]] == [3, 1]  # the series has a gap
    assert {name: len(sources) for name, sources in groups.items()} == {"crops": 4, "scans": 1, "lungs": 2}
    draws = [bank.draw(12, 12, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])
    cubes, is_nodule = draws[0]
    assert cubes.shape == (24, 1, DEPTH, SIDE_PX, SIDE_PX)
    assert is_nodule.tolist() == [1] * 12 + [0] * 12
    assert cubes.abs().max() <= 1
    middle = cubes[:, 0, DEPTH // 2, 14:26, 14:26].mean(dim=(1, 2))
    assert middle[:12].mean() > middle[12:].mean() + 0.5  # nodules are larger than vessels


def test_a_cohort_without_nodules_gives_no_cubes(cohort, tmp_path):
    entries = json.loads((cohort / "segmentation.json").read_text(encoding="utf-8"))["training"]
    lungs = [entry for entry in entries if entry["labelled"] == ["lung"]]
    (tmp_path / "segmentation.json").write_text(json.dumps({"training": lungs}), encoding="utf-8")
    for folder in ("slices", "labels"):
        (tmp_path / folder).symlink_to(cohort / folder)
    with pytest.raises(ValueError, match="has no lung or nodules to cut cubes around"):
        CubeBank(tmp_path).draw(1, 1, np.random.default_rng(0))


# ---------------------------------------------------------------- the bundle as a whole
def run_training(name: str, cohort: Path, output: Path, **settings) -> ConfigWorkflow:
    workflow = open_training(
        BUNDLE,
        cohort,
        output,
        f"train_{name}.json",
        epoch_length=2,
        batch_size=2,
        size_px=96,
        val_interval=1,
        **settings,
    )
    workflow.initialize()
    workflow.run()
    return workflow


def open_detector(name: str, weights: Path):
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / file) for file in ("inference.json", f"inference_{name}.json")],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        ckpt_path=str(weights),
        device="cpu",
    )
    workflow.initialize()
    return workflow.parser.get_parsed_content("detector")


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_and_its_weights_detect(name, cohort, tmp_path):
    run_training(name, cohort, tmp_path, max_epochs=1)
    sidecar = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert 0 <= sidecar["train_minutes"] < 10
    dices = ("dice_mean", "dice_lung", "dice_nodule", "dice_nodule_pooled")
    metrics = dices if name in SEGMENTERS else ("froc",)
    assert set(sidecar["validation"]) == set(metrics)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    bytes_each = 2 if name == "dense_unet_equal" else 4  # that one is kept in half precision
    assert sum(value.numel() for value in weights.values()) * bytes_each < 2.8e6
    detector = open_detector(name, tmp_path / "model.pt")
    assert 0 <= detector.operating_point <= 1
    rng = np.random.default_rng(0)
    for shape in ((1, 64, 64), (3, 70, 81)):
        found = detector(rng.integers(-1000, 100, shape).astype(np.int16), (2.0, 0.7, 0.8))
        candidates = found["candidates"]
        assert candidates.dtype == np.float32
        assert candidates.shape[1] == 5
        assert (np.diff(candidates[:, 4]) <= 0).all()
        assert ((candidates[:, :3] >= -1) & (candidates[:, :3] <= shape)).all()
        for channel in {"lung", "nodule"} & set(found):
            assert found[channel].shape == shape
            assert found[channel].dtype == np.float16
        assert set(found) - {"candidates"} == {
            "cnn_vgg": {"nodule"},
            "faster_rcnn_3d": set(),
        }.get(name, {"lung", "nodule"})


@pytest.mark.parametrize("name", ["cnn_vgg", "faster_rcnn_3d"])
def test_a_resumed_detector_equals_one_without_a_stop(name, cohort, tmp_path):
    step = {"train#step#positives": 4, "train#step#negatives": 4, "train#step#drawn_negatives": 6}
    whole = run_training(name, cohort, tmp_path / "whole", max_epochs=2, **step)
    run_training(name, cohort, tmp_path / "first", max_epochs=1, **{"lr_scheduler#T_max": 2}, **step)
    resumed = run_training(
        name, cohort, tmp_path / "second", max_epochs=2, resume_from=str(tmp_path / "first" / "resume_1.pt"), **step
    )
    want, got = (run.network_def.state_dict() for run in (whole, resumed))
    assert all(torch.equal(want[key], got[key]) for key in want)


@pytest.mark.parametrize("name", METHODS)
def test_shipped_weights_are_small_and_agree_with_their_overlay(name):
    folder = ROOT / "benchmarks" / "weights"
    if not (folder / f"{name}.pt").is_file():
        pytest.skip(
            f"benchmarks/weights/{name}.pt is not there: bash scripts/train_tables.sh COHORT benchmarks/weights"
        )
    assert (folder / f"{name}.pt").stat().st_size < 3e6
    sidecar = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    detector = open_detector(name, folder / f"{name}.pt")
    assert sidecar["operating_point"] == detector.operating_point
    assert sidecar["train_minutes"] > 0
