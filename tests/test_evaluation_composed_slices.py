"""Laws of whole diseased slices: each is of one part, is its lung outside its nodules, and follows from the seed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import edit_config, write_fake_bundles
from fake_cohort import write_fake_cohort
from monai.bundle import ConfigWorkflow
from scipy import ndimage

from evaluation.cohort_subsets import Subset
from evaluation.composed_slices import COHORT_SPLITS, ComposedSliceConfig, compose_slices
from evaluation.generation.methods import SampleRequests
from evaluation.generation.pipeline_slices import find_pipeline
from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.slices import lung_on_grid, slice_on_grid
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.similarity.samples import read_slices

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "wcapsgan_bundle"
CATEGORIES = ("ground_glass", "part_solid", "solid")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "sliced")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, bundles) -> Path:
    return write_fake_cohort(tmp_path_factory.mktemp("cohort"), open_bundle(bundles, "wcapsgan"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory, cohort) -> ComposedSliceConfig:
    found = ComposedSliceConfig(
        cohort=cohort, out=tmp_path_factory.mktemp("slices") / "out", count=3, held_out=2, seed=4
    )
    compose_slices(found)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(settings: ComposedSliceConfig, name: str = "slices") -> dict[str, list[dict]]:
    return json.loads((settings.out / f"{name}.json").read_text(encoding="utf-8"))


def ids(settings):
    """Ids of the cohort's nodules and slices by their pseudonyms."""
    names = Cohort.open(settings.cohort).pseudonyms
    return {name: known for own in (names.nodules, names.slices) for known, name in own.items()}


def test_slices_of_a_part_show_its_own_lungs_and_nodules_in_turn(settings):
    composed = entries(settings)
    for part, sign in (("training", "t"), ("test", "x")):  # as the fake cohort names them
        used = {name for entry in composed[part] for name in (entry["lung"], *entry["nodules"])}
        assert {known[0] for known in map(ids(settings).get, used)} == {sign}
        counts = [sum(entry["category"] == name for entry in composed[part]) for name in CATEGORIES]
        assert counts == [3 if part == "training" else 2] * 3
    lungs = [entry["patient_id"] for entry in composed["training"]]
    names = Cohort.open(settings.cohort).pseudonyms.patients
    assert abs(lungs.count(names["p0"]) - lungs.count(names["p1"])) <= 1
    assert composed["validation"] == []
    assert [len(found) for found in entries(settings, "diseased").values()] == [1, 0, 0]


def test_a_slice_is_its_lung_but_for_its_nodules(settings):
    for entry in entries(settings)["training"]:
        lung = ids(settings)[entry["lung"]]
        hu, affine = read_plane(settings.cohort / "slices" / f"{lung}.nii.gz")
        label, _ = read_plane(settings.cohort / "labels" / f"{lung}.nii.gz")
        before, mask = lung_on_grid(hu, label == 1, spacing_mm=(abs(affine[1, 1]), abs(affine[0, 0])), size_px=256)
        with np.load(settings.out / entry["slice"]) as arrays:
            changed, nodule = arrays["hu"] != before, arrays["label"] == 2
            assert np.array_equal(arrays["mask"], mask)
            assert np.array_equal(arrays["mask"] > 0, arrays["label"] > 0)
        assert ndimage.label(nodule)[1] >= 1
        assert changed[nodule].mean() > 0.9
        assert not changed[~ndimage.binary_dilation(nodule, iterations=8)].any()


def test_a_stop_costs_nothing_and_another_seed_is_refused(settings, tmp_path):
    again = replace(settings, out=tmp_path / "again")
    counts = compose_slices(again)
    whole = content(settings.out)
    assert content(again.out) == whole
    for path in [*sorted((again.out / "slices").iterdir())[:5], again.out / "cohort.json", again.out / "slices.json"]:
        path.unlink()
    assert compose_slices(again) == counts == compose_slices(again)
    assert content(again.out) == whole
    with pytest.raises(InputError, match="seed is 4 there and 5 here"):
        compose_slices(replace(again, seed=5))
    compose_slices(replace(again, out=tmp_path / "other", seed=5))
    assert content(tmp_path / "other") != whole


def test_a_cohort_without_lungs_gives_no_slices(settings, tmp_path):
    for name in ("nodules", "lungs", "enhancement", "cohort"):
        (tmp_path / f"{name}.json").write_bytes((settings.cohort / f"{name}.json").read_bytes())
    (tmp_path / "nodules").symlink_to(settings.cohort / "nodules")
    (tmp_path / "lungs.json").write_text(json.dumps({part: [] for part in COHORT_SPLITS}), encoding="utf-8")
    with pytest.raises(InputError, match="gives no slice"):
        compose_slices(replace(settings, cohort=tmp_path, out=tmp_path / "out"))
    with pytest.raises(InputError, match="`held_out`"):
        replace(settings, held_out=0)


def test_unlabelled_pixels_are_background_on_the_grid():
    label = np.zeros((200, 200), np.uint8)
    label[60:140, 60:140] = 1
    label[90:110, 90:110] = 255
    found = slice_on_grid(np.zeros((200, 200), np.int16), label, spacing_mm=(1.4, 1.4), size_px=256)[1]
    assert set(np.unique(found)) == {0, 1}
    assert (found == 1).sum() == 80 * 80 - 20 * 20


def test_the_bundle_learns_and_makes_slices_in_one_piece(settings, tmp_path):
    folder = tmp_path / "slices"
    compose_slices(replace(settings, out=folder))
    listed = json.loads((folder / "slices.json").read_text(encoding="utf-8"))
    listed["validation"] = listed["test"]
    (folder / "slices.json").write_text(json.dumps(listed), encoding="utf-8")
    files = ("train.json", "train_lung.json", "train_slice.json", "train_gan.json")
    small = {"size": 16, "network_def#latent_dim": 8, "network_def#widths": [8, 8]}
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / file) for file in files],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "run"),
        weights_name="model.pt",
        device="cpu",
        max_epochs=1,
        epoch_length=2,
        val_interval=1,
        **{"critic_def#widths": [8, 8], **small},
    )
    sys.path.insert(0, str(BUNDLE))
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    assert len(dataset) == 9
    assert dataset.diameter_mm.abs().sum() == 0
    assert 0 < dataset.mask.float().mean() < 1
    workflow.run()
    sidecar = json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))
    assert (
        sidecar["split_hash"] == json.loads((settings.cohort / "cohort.json").read_text(encoding="utf-8"))["split_hash"]
    )
    sampler = open_bundle(
        ROOT / "bundles",
        "wcapsgan",
        configs=("inference.json", "inference_lung.json", "inference_slice.json", "inference_gan.json"),
        weights=tmp_path / "run" / "model.pt",
        overrides=small,
    )
    made = sampler([1, 2, 3], list(CATEGORIES), [None] * 3)
    assert sampler.categories == CATEGORIES
    assert made["hu"].shape == made["mask"].shape == (3, 16, 16)
    assert not made["diameter_mm"].any()


def test_the_two_stages_show_the_same_composites_before_and_after(bundles, cohort, tmp_path):
    subset = Subset(patients=Cohort.open(cohort).split("test"))
    found, missing = find_pipeline(subset, bundles, tmp_path, seed=3, size=30)
    assert ([each.name for each in found], missing) == (["first_stage", "two_stage"], {})
    assert found[0].identity != found[1].identity
    requests = SampleRequests(seeds=tuple(range(6)), categories=CATEGORIES * 2, diameters_mm=(None,) * 6)
    before, after = (each.open() for each in found)
    first, second = before(requests).samples, after(requests).samples
    assert first.hu.shape == (6, 256, 256)
    assert np.array_equal(first.mask, second.mask)
    change = second.hu.astype(int) - first.hu  # the fake enhancer adds 1 HU but to nodules; the grid rounds
    assert set(np.unique(change)) <= {0, 1, 2}
    assert 0.8 < change[first.mask > 0].mean() < 1
    others = before(requests).samples
    assert all(not np.array_equal(hu, seen) for hu in others.hu for seen in first.hu), "each is shown once"
    with pytest.raises(InputError, match="more are requested"):
        before(replace(requests, seeds=tuple(range(30)), categories=CATEGORIES * 10, diameters_mm=(None,) * 30))
    edit_config(bundles, "lung_seg", "detector", operating_point=0.4)
    edited, _ = find_pipeline(subset, bundles, tmp_path, seed=3, size=30)
    assert [each.identity == was.identity for each, was in zip(edited, found, strict=True)] == [True, False]
    (bundles / "cyclegan_bundle" / "models" / "model.pt").rename(tmp_path / "away.pt")
    found, missing = find_pipeline(subset, bundles, tmp_path, seed=3, size=30)
    (tmp_path / "away.pt").rename(bundles / "cyclegan_bundle" / "models" / "model.pt")
    assert [each.name for each in found] == ["first_stage"]
    assert "cyclegan" in missing["two_stage"]


def test_real_whole_slices_are_read_apart(settings):
    whole = read_slices(settings.out, "training", whole=True)
    owner = Cohort.open(settings.cohort).pseudonyms.named("patients", "p0")
    assert (len(whole), whole.owners, whole.spacing_mm) == (1, (owner,), 1.4)
    assert len(read_slices(settings.out, "test")) == 6
    with pytest.raises(InputError, match=r"diseased\.json"):
        read_slices(settings.out, "test", whole=True)
