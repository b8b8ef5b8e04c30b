"""Laws of the lung_seg bundle: its network, its loss on partly labelled data, its grid, its training."""

import hashlib
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy import ndimage

BUNDLE = Path(__file__).parents[1] / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.common.weights import load_weights
from lung_seg.datalist import nodule_weights, read_datalist
from lung_seg.grid import Frame, cut
from lung_seg.losses import MaskedLoss, channel_targets, segmentation_terms
from lung_seg.metrics import BlockDice, PooledDice, mean_of
from lung_seg.neighbours import neighbour_indices, with_neighbours
from lung_seg.network import DenseBlock, DenseUNet
from lung_seg.sampler import EpochSampler
from lung_seg.stacks import LoadStacks, Stack
from lung_seg.transforms import FixedFrame, RandFrame
from trainings import open_training

TINY = {"channels": [4, 8], "convolutions": 1, "growth_rate": 2, "dense_layers": 2}
TINY_CONFIG = {f"network_def#{name}": value for name, value in TINY.items()}
AXIAL = np.diag([-1.0, -1.0, 1.0, 1.0])


def tiny_network(**settings) -> DenseUNet:
    torch.manual_seed(0)
    return DenseUNet(**{"in_channels": 1, **TINY, **settings}).eval()


# ---------------------------------------------------------------- network
@pytest.mark.parametrize(("dims", "shape"), [(2, (37, 51)), (2, (5, 3)), (3, (7, 9, 11))])
def test_script_equals_eager_at_any_size(dims, shape):
    network = tiny_network(
        spatial_dims=dims, channels=[4, 6, 8], convolutions=[1, 2, 1], growth_rate=[2, 3], dense_layers=[1, 2]
    )
    image = torch.randn(2, 1, *shape)
    out = network(image)
    assert out.shape == (2, 2, *shape)
    torch.testing.assert_close(torch.jit.script(network)(image), out)


def test_dense_block_layers_see_all_earlier_outputs():
    block = DenseBlock(2, 5, growth_rate=3, layers=4)
    assert [layer.conv.in_channels for layer in block.layers] == [5, 8, 11, 14]  # formula 1
    image = torch.randn(1, 5, 8, 8)
    out = block(image)
    assert out.shape[1] == block.out_channels == 5 + 4 * 3
    assert torch.equal(out[:, :5], image)


def test_network_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="spatial_dims 2 or 3, got 4"):
        DenseUNet(spatial_dims=4)
    with pytest.raises(ValueError, match=r"at least two levels, got \[8\]"):
        DenseUNet(channels=[8])
    with pytest.raises(ValueError, match=r"one for each of 2 levels, got \[4, 4, 4\]"):
        DenseUNet(channels=[4, 6, 8], convolutions=1, growth_rate=[4, 4, 4])


# ---------------------------------------------------------------- loss and metric
def masked_case():
    torch.manual_seed(1)
    logits = torch.randn(2, 2, 6, 6, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 6, 6))
    label[:, :, :2] = 255
    labelled = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # lung drawn on the first, nodule on the second
    return logits, label, labelled


def test_only_labelled_channels_and_pixels_have_gradient():
    logits, label, labelled = masked_case()
    total, _ = MaskedLoss()(logits, label, labelled)
    total.backward()
    assert not logits.grad[0, 1].any()
    assert not logits.grad[1, 0].any()
    assert not logits.grad[:, :, :2].any()
    assert logits.grad[0, 0, 2:].all()
    assert logits.grad[1, 1, 2:].all()


def test_lung_target_holds_the_nodule_and_perfect_logits_cost_nothing():
    label = torch.tensor([[[[0, 1], [2, 255]]]])
    targets, weights = channel_targets(label, torch.ones(1, 2))
    assert targets[0, 0].tolist() == [[0, 1], [1, 0]]
    assert targets[0, 1].tolist() == [[0, 0], [1, 0]]
    assert weights[0, 0].tolist() == [[1, 1], [1, 0]]
    terms = segmentation_terms(60 * (targets - 0.5), label, torch.ones(1, 2))
    torch.testing.assert_close(torch.stack(terms), torch.zeros(5), atol=1e-5, rtol=0)


def test_small_nodules_count_like_large_ones():
    label = torch.zeros(1, 1, 8, 16)
    label[..., :6, :6] = 2
    label[..., 2, 12] = 2  # a nodule of one pixel in the second block
    logits = torch.where(label == 2, 20.0, -20.0).repeat(1, 2, 1, 1)
    missed = logits.clone()
    missed[..., 2, 12] = -20.0
    terms = [segmentation_terms(x, label, torch.ones(1, 2), block_px=8) for x in (logits, missed)]
    assert terms[0].dice_small < 1e-4
    assert terms[1].dice_small == pytest.approx(0.25, abs=0.01)  # one of two blocks, eased by the 1 in Dice
    assert terms[1].dice_nodule < 0.02


def test_nothing_labelled_is_nothing_lost():
    logits, label, _ = masked_case()
    total, terms = MaskedLoss()(logits, label, torch.zeros(2, 2))
    assert total == 0
    assert all(term == 0 for term in terms)


def test_pooled_dice_counts_false_findings_on_empty_images():
    label = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    label[0, 0, 0, 0] = 2
    logits = torch.full((2, 2, 4, 4), -1.0)
    logits[:, 1, 0, 0] = 1.0  # found on both, true on the first
    metric = PooledDice(["nodule"])
    metric.update((logits, label, torch.ones(2, 2)))
    assert metric.compute() == pytest.approx(2 / 3)
    metric.reset()
    metric.update((logits, label, torch.zeros(2, 2)))
    assert np.isnan(metric.compute())


def test_block_dice_counts_nodules_alike_and_the_mean_leaves_out_what_nobody_drew():
    label = torch.zeros(1, 1, 8, 24)
    label[..., :6, :6] = 2  # found
    label[..., 2, 12] = 2  # missed, in the second block; the third shows none
    logits = torch.where(label == 2, 1.0, -1.0).repeat(1, 2, 1, 1)
    logits[..., 2, 12] = -1.0
    nodule, lung = BlockDice(block_px=8), PooledDice(["lung"])
    engine = Engine(lambda _, batch: batch)
    for name, metric in (("lung", lung), ("nodule", nodule), ("mean", mean_of([lung, nodule]))):
        metric.attach(engine, name)
    found = engine.run([{"pred": logits, "label": label, "labelled": torch.tensor([[0.0, 1.0]])}]).metrics
    assert found["nodule"] == pytest.approx(0.5)
    assert np.isnan(found["lung"])
    assert found["mean"] == pytest.approx(0.5)


# ---------------------------------------------------------------- grid
def test_cut_in_place_is_identity_and_255_outside():
    hu = torch.arange(25, dtype=torch.int16).reshape(5, 5)
    label = torch.arange(25, dtype=torch.uint8).reshape(5, 5)
    image, ids = cut(hu, label, Frame(row_px=2, column_px=2, step_px=(1, 1)), size_px=7)
    torch.testing.assert_close(image[1:6, 1:6], hu.float())
    assert torch.equal(ids[1:6, 1:6], label)
    assert (ids[0] == 255).all()
    assert (ids[:, -1] == 255).all()


# ---------------------------------------------------------------- weights
def test_weights_of_another_network_are_named(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(tiny_network(growth_rate=3).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"model.pt: expected the weights of this DenseUNet, got those of another network"
    ):
        load_weights(tiny_network(), path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.pt: not a file of weights"):
        load_weights(tiny_network(), path)
    with pytest.raises(FileNotFoundError, match="expected weights, found no file"):
        load_weights(tiny_network(), tmp_path / "none.pt")


# ---------------------------------------------------------------- data
def write_slice(root: Path, name: str, rng: np.random.Generator) -> dict[str, str]:
    """A disc of lung in soft tissue, as files of the contract's C1.3: arrays (W, H, 1), RAS affine."""
    rows, columns = np.mgrid[:48, :40]
    lung = (rows - 20) ** 2 + (columns - 15) ** 2 < 100
    hu = np.where(lung, -850, 40) + rng.integers(-20, 20, lung.shape)
    for folder, plane, dtype in [("slices", hu, np.int16), ("labels", lung, np.uint8)]:
        (root / folder).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(plane.T[..., None].astype(dtype), AXIAL), root / folder / f"{name}.nii.gz")
    return {"image": f"slices/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "kind": "slice", "labelled": ["lung"]}


def write_nodule(root: Path, name: str, rng: np.random.Generator) -> dict[str, str]:
    """A disc on two slices, as files of a cohort: its window, and its patches for composites."""
    rows, columns = np.mgrid[:64, :64]
    disc = np.hypot(rows - 31.5, columns - 31.5) < 8
    hu = np.stack([np.where(disc, 30, -850) + rng.integers(-20, 20, disc.shape)] * 2).astype(np.int16)
    for folder in ("nodules", "windows"):
        (root / folder).mkdir(exist_ok=True)
    np.savez(
        root / "nodules" / f"{name}.npz", hu=hu, alpha=np.stack([disc] * 2).astype(np.float16), votes=4 * disc[None]
    )
    label = np.where(disc, 2, 0).astype(np.uint8)
    np.savez(root / "windows" / f"{name}.npz", hu=hu, label=np.stack([label] * 2), z_mm=np.array([0.0, 2.5]), largest=0)
    return {"image": f"windows/{name}.npz", "kind": "nodule", "labelled": ["nodule"]}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    parts = {
        part: [write_slice(root, f"{part}_{i}", rng) for i in range(3)]
        + [write_nodule(root, f"{part}_{i}", rng) for i in range(3)]
        for part in ("training", "validation")
    }
    (root / "segmentation.json").write_text(json.dumps({**parts, "test": []}), encoding="utf-8")
    patches = {
        part: [{"nodule": f"nodules/{Path(str(entry['image'])).name}"} for entry in listed if entry["kind"] == "nodule"]
        for part, listed in parts.items()
    }
    (root / "nodules.json").write_text(json.dumps(patches), encoding="utf-8")
    return root


def test_missing_cohort_or_part_is_one_sentence(cohort, tmp_path):
    with pytest.raises(ValueError, match=r"dataset_dir=None\. Give dataset_dir, a folder"):
        read_datalist(None, "training")
    with pytest.raises(ValueError, match=r"needs a COHORT with segmentation\.json"):
        read_datalist(tmp_path, "training")
    with pytest.raises(ValueError, match="the split 'test' is empty"):
        read_datalist(cohort, "test")


@pytest.mark.parametrize(
    ("z_mm", "expected"),
    [
        ([0, 2.5, 5], [[0, 0, 1], [0, 1, 2], [1, 2, 2]]),
        ([0, 1, 2, 3, 4], [[0, 0, 2], [1, 1, 3], [0, 2, 4], [1, 3, 3], [2, 4, 4]]),
        ([0, 6, 12], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),  # too far apart
        ([7], [[0, 0, 0]]),
    ],
)
def test_neighbours_lie_about_a_step_away_or_are_the_slice_itself(z_mm, expected):
    assert neighbour_indices(np.array(z_mm, float), 3).tolist() == expected
    assert neighbour_indices(np.array(z_mm, float), 1).tolist() == [[index] for index in range(len(z_mm))]


def test_neighbours_are_on_both_sides():
    with pytest.raises(ValueError, match="slices is odd, got 2"):
        neighbour_indices(np.zeros(3), 2)
    plane = torch.randn(1, 4, 5)
    assert torch.equal(with_neighbours(plane, 3), plane.repeat(3, 1, 1))
    assert with_neighbours(plane.repeat(3, 1, 1), 3).shape == (3, 4, 5)


def test_a_nodule_is_shown_with_its_neighbours_unless_it_is_shown_alone(cohort):
    load = LoadStacks()
    sample = load(read_datalist(cohort, "training", nodules_per_sample=1)[-1])
    for alone, channels in ((0.0, 3), (1.0, 1)):
        rand = RandFrame(spacing_mm=0.7, size_px=32, tiles_per_side=1, alone_prob=alone).set_random_state(0)
        shown = rand(sample)
        assert shown["image"].shape == (channels, 32, 32)
        assert shown["label"].shape == (1, 32, 32)


def test_slices_lie_as_the_contract_says_and_nodules_side_by_side(cohort):
    slices = read_datalist(cohort, "training", nodules_per_sample=4)
    assert [sample["kind"] for sample in slices] == ["slice"] * 3 + ["nodule"]
    load, frame = LoadStacks(), FixedFrame(spacing_mm=1.0, size_px=96, tiles_per_side=2)
    one = frame(load(slices[0]))
    assert one["image"].shape == (1, 48, 40)
    assert one["image"][0, 20, 15] < -800  # row 20 to posterior, column 15 to the patient's left
    assert one["labelled"].tolist() == [1, 0]
    four = frame(load(slices[3]))
    assert [four["label"][0, row, column].item() for row, column in [(24, 24), (24, 72), (72, 24), (72, 72)]] == [
        2,
        2,
        2,
        255,
    ]


def test_random_frames_repeat_with_their_seed(cohort):
    load = LoadStacks()
    samples = [load(sample) for sample in read_datalist(cohort, "training", nodules_per_sample=4)]
    rand = RandFrame(spacing_mm=1.0, size_px=32, tiles_per_side=2)
    runs = [[rand.set_random_state(seed)(sample)["image"] for sample in samples] for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def shown_nodules(*, scatter_prob: float) -> list[tuple[int, int]]:
    """Middles of the nodules in squares of one tile of 96 pixels, or of four of 48."""
    label = torch.zeros(1, 96, 96, dtype=torch.uint8)
    label[0, 46:50, 46:50] = 2
    hu = torch.full((1, 96, 96), -900, dtype=torch.int16)
    stack = Stack(hu=hu, label=label, z_mm=np.zeros(1), spacing_mm=(1.0, 1.0))
    rand = RandFrame(spacing_mm=1.0, size_px=96, tiles_per_side=1, scatter_prob=scatter_prob).set_random_state(0)
    sample = {"kind": "nodule", "labelled": torch.tensor([0, 1]), "stacks": [stack]}
    middles = []
    for _ in range(40):
        pieces, count = ndimage.label(rand(sample)["label"][0].numpy() == 2)
        middles += ndimage.center_of_mass(pieces > 0, pieces, range(1, count + 1))
    return middles


def test_scattered_nodules_lie_anywhere_in_their_tiles():
    off = np.array(shown_nodules(scatter_prob=0.0)) - 47.5
    assert len(off) == 40
    assert 12 < np.abs(off).max() <= 22
    off = np.array(shown_nodules(scatter_prob=1.0)) % 48 - 23.5
    assert 4 * 35 < len(off) <= 4 * 40
    assert 20 < np.abs(off).max() <= 24, "some are cut by the border"
    assert np.abs(np.histogram(off, bins=4, range=(-20, 20))[0] / off.size - 0.21).max() < 0.08


def test_nodules_are_shown_in_proportion_to_their_size(tmp_path):
    rng = np.random.default_rng(0)
    entries = [write_nodule(tmp_path, f"n{i}", rng) for i in range(4)]
    sizes = [
        {"nodule": entry["image"], "diameter_mm": size} for entry, size in zip(entries, (30, 4, 6, 20), strict=True)
    ]
    (tmp_path / "segmentation.json").write_text(
        json.dumps({"training": [*entries, write_slice(tmp_path, "s", rng)]}), encoding="utf-8"
    )
    (tmp_path / "nodules.json").write_text(json.dumps({"training": sizes}), encoding="utf-8")
    samples = read_datalist(tmp_path, "training", nodules_per_sample=2)
    assert [[path.stem for path in sample["nodules"]] for sample in samples[1:]] == [["n1", "n2"], ["n3", "n0"]]
    weights = EpochSampler(samples, samples=8, nodule_crop_share=0.6).weights
    torch.testing.assert_close(weights.tolist(), [0.4, 0.6 * 5 / 30, 0.6 * 25 / 30])


def test_rare_categories_are_shown_more_often_and_stand_together(tmp_path):
    rng = np.random.default_rng(0)
    entries = [write_nodule(tmp_path, f"n{i}", rng) for i in range(5)]
    facts = [
        {"nodule": entry["image"], "diameter_mm": 6.0, "category": category}
        for entry, category in zip(entries, ("solid", "solid", "rare", "solid", "solid"), strict=True)
    ]
    (tmp_path / "segmentation.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    (tmp_path / "nodules.json").write_text(json.dumps({"training": facts}), encoding="utf-8")
    assert nodule_weights(tmp_path, "training", category_balance=0.0) == [1.0] * 5
    even = nodule_weights(tmp_path, "training", category_balance=1.0)
    assert even[2] == pytest.approx(sum(even) / 2)
    samples = read_datalist(tmp_path, "training", nodules_per_sample=1, category_balance=0.5)
    assert [sample["nodules"][0].stem for sample in samples] == ["n2", "n0", "n1", "n3", "n4"]
    assert samples[0]["weight"] == pytest.approx(2 * samples[1]["weight"])


def write_extra(folder: Path, count: int) -> Path:
    """A synthetic set as `scripts/synthesize.py` leaves it: slices with everything labelled, and their list."""
    rng = np.random.default_rng(7)
    (folder / "extra").mkdir()
    entries = [write_slice(folder / "extra", f"synthetic_{index}", rng) for index in range(count)]
    pairs = [{key: entry[key] for key in ("image", "label")} for entry in entries]
    (folder / "extra" / "datalist.json").write_text(json.dumps({"training": pairs}), encoding="utf-8")
    return folder / "extra" / "datalist.json"


def test_extra_slices_stand_behind_the_cohort_and_keep_their_share(cohort, tmp_path):
    plain = read_datalist(cohort, "training", nodules_per_sample=4)
    extra = write_extra(tmp_path, 3)
    samples = read_datalist(cohort, "training", nodules_per_sample=4, limit=2, extra=extra)
    assert [sample["extra"] for sample in samples] == [False] * 2 + [True] * 3
    assert [sample["labelled"] for sample in samples[2:]] == [[1.0, 1.0]] * 3
    assert samples[2]["image"].is_file()
    for share in (0.0, 0.3, 1.0):
        weights = EpochSampler([*plain, *samples[2:]], samples=8, nodule_crop_share=0.4, extra_share=share).weights
        torch.testing.assert_close(weights[len(plain) :].tolist(), [share / 3] * 3)
        of_all = torch.tensor(
            EpochSampler(plain, samples=8, nodule_crop_share=0.4).weights.tolist(), dtype=torch.float64
        )
        torch.testing.assert_close(weights[: len(plain)], of_all * (1 - share))
    with pytest.raises(ValueError, match="Shares lie in"):
        EpochSampler(plain, samples=8, extra_share=1.5)


def test_a_training_on_extra_slices_says_so(cohort, tmp_path):
    extra = write_extra(tmp_path, 2)
    train(cohort, tmp_path / "run", max_epochs=1, extra_datalist=str(extra), extra_share=1.0)
    sidecar = json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))
    assert sidecar["extra_data"] == {"samples": 2, "sha256": hashlib.sha256(extra.read_bytes()).hexdigest()}
    assert str(tmp_path) not in json.dumps(sidecar)


def test_an_extra_list_that_cannot_be_used_is_refused(cohort, tmp_path):
    with pytest.raises(ValueError, match="expected a data list whose `training`"):
        read_datalist(cohort, "training", extra=tmp_path / "absent.json")
    path = write_extra(tmp_path, 1)
    next((path.parent / "slices").glob("*.nii.gz")).unlink()
    with pytest.raises(ValueError, match=r"datalist\.json names 1 files that are not there"):
        read_datalist(cohort, "training", extra=path)
    path.write_text(json.dumps({"training": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        read_datalist(cohort, "training", extra=path)


# ---------------------------------------------------------------- the bundle as a whole
def train(cohort: Path, output: Path, **settings) -> dict[str, torch.Tensor]:
    workflow = open_training(
        BUNDLE,
        cohort,
        output,
        epoch_length=2,
        batch_size=2,
        size_px=32,
        val_interval=1,
        **{**TINY_CONFIG, **settings},
    )
    workflow.initialize()
    workflow.run()
    return workflow.network_def.state_dict()


def test_a_resumed_training_equals_one_without_a_stop(cohort, tmp_path):
    whole = train(cohort, tmp_path / "whole", max_epochs=4)
    train(cohort, tmp_path / "first", max_epochs=2, **{"lr_scheduler#T_max": 4})
    resumed = train(cohort, tmp_path / "second", max_epochs=4, resume_from=str(tmp_path / "first" / "resume_2.pt"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    sidecar = json.loads((tmp_path / "whole" / "model.json").read_text(encoding="utf-8"))
    assert sidecar["network"] == "lung_seg.network.DenseUNet"
    assert sidecar["validation"]["dice_mean"] >= 0
    assert 0 <= sidecar["train_minutes"] < 10
    states = [torch.load(tmp_path / run / "resume_4.pt", weights_only=True) for run in ("whole", "second")]
    assert states[0]["best_weights"]["waited"] == states[1]["best_weights"]["waited"]
    assert states[0]["best_weights"]["best"] == states[1]["best_weights"]["best"]


def test_an_evaluation_writes_the_figures_of_a_split(cohort, tmp_path):
    torch.save(tiny_network(in_channels=3).state_dict(), tmp_path / "model.pt")
    run = open_training(
        BUNDLE,
        cohort,
        tmp_path / "figures",
        "evaluate.json",
        split="validation",
        ckpt_path=str(tmp_path / "model.pt"),
        size_px=32,
        **TINY_CONFIG,
    )
    run.initialize()
    run.run()
    lines = (tmp_path / "figures" / "metrics.csv").read_text(encoding="utf-8").split()
    figures = {name: float(value) for name, value in (line.split(",") for line in lines)}
    assert set(figures) == {"dice_mean", "dice_lung", "dice_nodule", "dice_nodule_pooled"}
    assert all(0 <= value <= 1 for value in figures.values())
