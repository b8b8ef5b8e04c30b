"""The CycleGAN bundle as a whole: data, training and enhancing, on slices made by hand."""

import json
import logging
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import Evaluator
from monai.transforms import Compose, LoadImage, Orientation, SqueezeDim

ROOT = Path(__file__).resolve().parents[1] / "bundles" / "cyclegan_bundle"
sys.path.append(str(ROOT))

from cyclegan.common.best_weights import BestWeights
from cyclegan.common.hounsfield import NETWORK_WINDOW, ToUnitd, to_int16
from cyclegan.common.weights import WeightsMismatch, load_weights
from cyclegan.data import read_reals, unpaired_entries
from cyclegan.inferer import Enhancer, SaveEnhanced
from cyclegan.network import PatchDiscriminator, ResidualEnhancer
from cyclegan.pairs import UnpairedDataset
from cyclegan.slices import LoadSlice, NoduleCrop, read_slice, write_slice
from cyclegan.trainer import Networks
from cyclegan_toys import make_folders, make_trainer, run, trained_like, workflow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return make_folders(tmp_path_factory)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PLS", "AIL"])
def test_slice_is_read_as_monai_reads_it_and_written_back_bit_exact(tmp_path, codes) -> None:
    hu = np.arange(5 * 7, dtype=np.int16).reshape(5, 7, 1) - 1000
    ras = nibabel.Nifti1Image(hu, np.array([[1.4, 0, 0, 3], [0, 1.4, 0, -8], [0, 0, 3.0, 5], [0, 0, 0, 1]]))
    orientation = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(ras.as_reoriented(orientation), tmp_path / "a.nii.gz")
    monai_way = Compose(
        [LoadImage(ensure_channel_first=True), Orientation("PLS", labels=(("L", "R"), ("P", "A"), ("I", "S")))]
    )
    wanted = SqueezeDim(dim=-1)(monai_way(tmp_path / "a.nii.gz"))[0].numpy()
    np.testing.assert_array_equal(read_slice(tmp_path / "a.nii.gz"), wanted)
    write_slice(tmp_path / "b.nii.gz", read_slice(tmp_path / "a.nii.gz"), like=tmp_path / "a.nii.gz")
    a, b = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
    np.testing.assert_array_equal(a.affine, b.affine)
    assert b.get_data_dtype() == np.int16


def test_crops_lie_in_the_image_and_half_show_the_nodule() -> None:
    nodule = torch.zeros(1, 100, 60, dtype=torch.bool)
    nodule[0, 3, 50] = True
    image = torch.arange(6000).reshape(1, 100, 60)
    crop = NoduleCrop(32).set_random_state(0)
    crops = [crop({"image": image, "nodule": nodule}) for _ in range(400)]
    assert {tuple(part[key].shape) for part in crops for key in part} == {(1, 32, 32)}
    assert 0.5 <= np.mean([bool(part["nodule"].any()) for part in crops]) < 0.7
    centred = NoduleCrop(32, nodule_share=None)({"image": image, "nodule": nodule})
    assert centred["nodule"][0, 3, 50 - 28]


def test_reals_of_patients_in_the_composites_are_left_out(folders, tmp_path) -> None:
    out, cohort = folders
    entries = json.loads((out / "datalist.json").read_text(encoding="utf-8"))["training"]

    def reals(*patients: str) -> list[str]:
        mixed = [entry | {"patient_id": ["p1", *patients]} for entry in entries]
        (tmp_path / "datalist.json").write_text(json.dumps({"training": mixed}), encoding="utf-8")
        return [entry["patient_id"] for entry in unpaired_entries(tmp_path, cohort, split="training")["reals"]]

    assert reals() == ["training0", "training1"]
    assert reals("training1") == ["training0"]
    with pytest.raises(ValueError, match="must not share patients, but training0"):
        reals("training0", "training1")
    reals()
    assert len(unpaired_entries(tmp_path, cohort, split="validation")["composites"]) == 1


def test_composites_come_in_the_parts_that_their_list_has(folders, tmp_path) -> None:
    out, cohort = folders
    entries = json.loads((out / "datalist.json").read_text(encoding="utf-8"))["training"]
    named = [
        entry | {"patient_id": patient}
        for entry, patient in zip(entries, ("none", "p1;p2", "p1", "training1"), strict=True)
    ]
    lists = {"training": named[:1], "validation": named[1:3], "unused": named[3:]}
    (tmp_path / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")
    found = {split: unpaired_entries(tmp_path, cohort, split=split) for split in ("training", "validation")}
    assert [len(found[split]["composites"]) for split in found] == [1, 2]
    assert [entry["patient_id"] for entry in found["training"]["reals"]] == ["training0", "training1"]
    lists["validation"][0]["patient_id"] = "p1;training1"
    (tmp_path / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")
    reals = unpaired_entries(tmp_path, cohort, split="training")["reals"]
    assert [entry["patient_id"] for entry in reals] == ["training0"], "of several patients, each counts"


def test_the_log_says_how_many_composites_have_parts_of_no_known_patient(folders, tmp_path, caplog) -> None:
    out, cohort = folders
    entries = json.loads((out / "datalist.json").read_text(encoding="utf-8"))["training"]

    def told(*provenances: dict) -> list[str]:
        listed = [entry | provenance for entry, provenance in zip(entries, provenances, strict=False)]
        (tmp_path / "datalist.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="cyclegan"):
            for split in ("training", "validation"):
                unpaired_entries(tmp_path, cohort, split=split)
        return [message.split(",")[0] for message in caplog.messages]

    real, half, generated = (
        {"patient_id": named, "parts_without_patient": missing} for named, missing in ((["p"], 0), (["p"], 1), ([], 2))
    )
    assert told(real, half, generated, generated) == ["3 of 4 composites have parts without a known patient"]
    assert not told(real, real)
    older = [{"patient_id": named} for named in (["p"], [])]  # lists that do not count parts
    assert told(*older) == ["1 of 2 composites have parts without a known patient"]


def test_patches_stand_in_where_no_slices_show_nodules(tmp_path) -> None:
    (tmp_path / "nodules").mkdir()
    alpha = np.zeros((2, 64, 64), np.float16)
    alpha[1, 30:34, 30:34] = 1
    context = np.full((2, 64, 64), -800, np.int16)
    np.savez(tmp_path / "nodules" / "n.npz", context=context, alpha=alpha, largest=1)
    entries = [{"nodule": "nodules/n.npz", "patient_id": patient} for patient in ("a", "b")]
    (tmp_path / "nodules.json").write_text(
        json.dumps({"training": entries, "validation": [], "test": []}), encoding="utf-8"
    )
    training, validation = read_reals(tmp_path, split="training"), read_reals(tmp_path, split="validation")
    assert [entry["patient_id"] for entry in (*training, *validation)] == ["a", "b"]
    loaded = LoadSlice()(training[0])
    crops = [NoduleCrop(96)({**loaded, "target_mm": spacing_mm}) for spacing_mm in (0.7, 0.9, 1.4)]
    assert {tuple(crop[key].shape) for crop in crops for key in ("image", "nodule")} == {(1, 96, 96)}  # of one batch
    # At 1.4 mm the crop is 32 px, and its mirror images on all sides show the nodule again.
    assert [int(crop["nodule"].sum()) for crop in crops] == [16, 12, 9 * 4]


def test_a_small_image_is_continued_by_its_mirror_image() -> None:
    image = torch.arange(33 * 40).reshape(1, 33, 40)
    crop = NoduleCrop(64, nodule_share=None)({"image": image, "nodule": torch.zeros(1, 33, 40, dtype=torch.bool)})
    np.testing.assert_array_equal(crop["image"][0], np.pad(image[0], ((15, 16), (12, 12)), mode="symmetric"))


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("datalist.json", None, FileNotFoundError, "no composites"),
        ("datalist.json", "{", ValueError, "expected a datalist"),
        ("datalist.json", '{"training": [{"image": "a"}]}', ValueError, "lacks .*label"),
        ("datalist.json", '{"training": [{"image": "a", "label": "b"}]}', ValueError, "at least 2 composites"),
    ],
)
def test_bad_composites_get_a_sentence(folders, tmp_path, name, content, error, words) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=words):
        unpaired_entries(tmp_path, folders[1], split="training")


def test_a_slice_that_is_not_in_hu_gets_a_sentence(tmp_path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((8, 8, 1)).astype(np.float32), np.eye(4)),
        tmp_path / "a.nii.gz",
    )
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected CT in HU"):
        LoadSlice()({"image": tmp_path / "a.nii.gz"})


def test_resumed_training_equals_one_that_never_stopped(folders, tmp_path) -> None:
    whole = run(workflow(folders, tmp_path / "whole", max_epochs=3, seed=5))
    assert not whole.check_properties()
    run(workflow(folders, tmp_path / "part", max_epochs=3, seed=5, **{"train#trainer#max_epochs": 2}))
    run(workflow(folders, tmp_path / "part", max_epochs=3, seed=5, resume_from=str(tmp_path / "part" / "resume_2.pt")))
    whole, part = (torch.load(tmp_path / name / "resume_3.pt", weights_only=True) for name in ("whole", "part"))
    for state in (whole, part):
        state["trainer"].pop("max_epochs", None)
        assert state.pop("clock")["minutes"] > 0
    assert_same(whole, part)
    assert len(whole["x_history"]["images"]) == 3
    assert not torch.equal(whole["average"]["last.weight"], whole["G"]["last.weight"])  # what is kept trails behind
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "part")]
    assert_same(*weights)
    load_weights(ResidualEnhancer(channels=4, dilations=[1]), tmp_path / "part" / "model.pt")
    facts = json.loads((tmp_path / "part" / "model.json").read_text(encoding="utf-8"))
    assert {"distance", "distance_before", "nodule_hu_change", "other_hu_change"} <= set(facts["validation"])


def assert_same(a, b, path: str = "") -> None:
    """Equality to the bit of nested states."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


class Validations:
    """A trainer whose epochs each end with a validation of the next value of a metric."""

    def __init__(self, values: list[float], **metrics: float) -> None:
        self.values, self.metrics = iter(values), metrics
        self.evaluator = Evaluator("cpu", [0], iteration_update=lambda engine, batch: None, decollate=False)
        self.trainer = Engine(lambda engine, batch: None)
        self.evaluator.add_event_handler(Events.STARTED, self._measure)

    def _measure(self, evaluator: Engine) -> None:
        evaluator.state.metrics = {"distance": next(self.values), **self.metrics}

    def run(self, best: BestWeights, *, epochs: int, every: int = 1) -> None:
        validate = Events.EPOCH_COMPLETED(every=every)
        self.trainer.add_event_handler(validate, lambda trainer: self.evaluator.run(trainer.state.epoch))
        best.attach(self.trainer, self.evaluator)
        self.trainer.run([0], max_epochs=epochs)


def test_best_weights_survive_a_resume_and_patience_ends_the_training(tmp_path) -> None:
    settings = {"network": ResidualEnhancer(channels=4), "metric": "distance", "better": "lower", "patience": 2}
    first, second, elsewhere = (
        BestWeights(tmp_path / name, **settings) for name in ("a/model.pt", "a/model.pt", "b/model.pt")
    )
    Validations([1.0]).run(first, epochs=1)
    written = first.ckpt_path.stat().st_mtime_ns
    second.load_state_dict(first.state_dict())
    run = Validations([2.0, 1.5, 0.5])
    run.run(second, epochs=3)
    assert run.trainer.state.epoch == 2
    assert first.ckpt_path.stat().st_mtime_ns == written
    elsewhere.load_state_dict(first.state_dict())
    Validations([2.0]).run(elsewhere, epochs=1)
    assert elsewhere.ckpt_path.is_file(), "a training that is resumed into another folder leaves weights there"
    assert elsewhere.best == 1.0


@pytest.mark.parametrize(
    ("settings", "values", "best", "saved"),
    [
        ({"better": "higher"}, [1.0, 3.0, 2.0], 3.0, 2),
        ({"better": "lower"}, [1.0, 3.0, 2.0], 1.0, 1),
        ({"better": "higher", "keep": "last"}, [1.0, 3.0, 2.0], 3.0, 3),
        ({"better": "higher", "least": {"labels_kept": 0.9}}, [1.0, 3.0, 2.0], None, 0),
        ({"better": "higher", "least": {"labels_kept": 0.5}}, [1.0, 3.0, 2.0], 3.0, 2),
    ],
)
def test_which_validations_leave_their_weights(monkeypatch, tmp_path, settings, values, best, saved) -> None:
    files = []
    monkeypatch.setattr("cyclegan.common.best_weights.save_weights", lambda path, network: files.append(path))
    weights = BestWeights(tmp_path / "model.pt", network=torch.nn.Linear(1, 1), metric="distance", **settings)
    monkeypatch.setattr(type(weights.ckpt_path), "is_file", lambda path: True)
    Validations(values, labels_kept=0.8).run(weights, epochs=3)
    assert (weights.best, len(files)) == (best, saved)


@pytest.mark.parametrize(
    ("keep", "epochs", "every", "validated"), [("best", 1, 2, 1), ("best", 3, 2, 1), ("last", 3, 2, 2)]
)
def test_a_training_leaves_weights_even_when_its_end_is_not_validated(tmp_path, keep, epochs, every, validated) -> None:
    network = torch.nn.Linear(1, 1)
    weights = BestWeights(tmp_path / "model.pt", network=network, metric="distance", better="lower", keep=keep)
    run = Validations([3.0, 2.0, 1.0])
    run.run(weights, epochs=epochs, every=every)
    assert len(list(run.values)) == 3 - validated
    assert weights.ckpt_path.is_file()


@pytest.mark.parametrize(
    ("values", "least", "reason"),
    [
        ([1.0], {"labels_kept": 0.99}, r"labels_kept 0\.8 of 0\.99 needed"),
        ([float("nan")], {}, "the last one had distance nan"),
    ],
)
def test_a_training_without_weights_says_why(tmp_path, caplog, values, least, reason) -> None:
    network = torch.nn.Linear(1, 1)
    best = BestWeights(tmp_path / "model.pt", network=network, metric="distance", better="lower", least=least)
    with caplog.at_level(logging.WARNING, logger="cyclegan"):
        Validations(values, labels_kept=0.8).run(best, epochs=1)
    assert re.search(rf"model\.pt was not written: no validation was good enough; .*{reason}", caplog.text)


@pytest.mark.parametrize("settings", [{"better": "lowest"}, {"better": "lower", "keep": "all"}])
def test_best_weights_refuse_an_unknown_choice(tmp_path, settings) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        BestWeights(tmp_path / "model.pt", network=torch.nn.Linear(1, 1), metric="distance", **settings)


def test_mixed_precision_trains_to_nearly_the_same_losses() -> None:
    def losses(amp: bool) -> dict[str, float]:
        torch.manual_seed(0)
        nets = Networks(
            G=trained_like(seed=1),
            F=trained_like(seed=2),
            D_X=PatchDiscriminator(channels=4),
            D_Y=PatchDiscriminator(channels=4),
        )
        trainer = make_trainer(nets)
        trainer.autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp)
        batch = {key: torch.rand(1, 1, 32, 32) for key in ("x", "y")}
        return trainer._iteration(trainer, batch | {f"{key}_nodule": batch[key] > 0.8 for key in ("x", "y")})

    exact, mixed = losses(False), losses(True)
    assert mixed == pytest.approx(exact, rel=0.05, abs=0.02)
    assert mixed != exact


def test_hu_outside_the_window_survive() -> None:
    hu = torch.tensor([-1024, -1000, -300, 400, 900, 3071], dtype=torch.int16)
    unit = NETWORK_WINDOW.to_unit(hu, clip=False)
    np.testing.assert_array_equal(to_int16(NETWORK_WINDOW.to_hu(unit).numpy()), hu.numpy())
    image = np.full((40, 41), 900, np.int16)
    network = trained_like(max_residual_hu=50)
    enhanced = Enhancer(network)(image, np.zeros(image.shape, bool))
    assert 850 <= enhanced.min() <= enhanced.max() <= 950


def test_enhancer_takes_and_gives_int16_hu_within_its_bounds() -> None:
    generator = np.random.default_rng(0)
    hu = generator.integers(-3000, 3000, (45, 38), dtype=np.int16)
    nodule = generator.random(hu.shape) > 0.5
    enhancer = Enhancer(trained_like(max_residual_hu=120), nodule_max_residual_hu=15)
    enhanced = enhancer(hu, nodule)
    assert enhanced.dtype == np.int16
    assert enhanced.shape == hu.shape
    np.testing.assert_array_equal(enhanced, enhancer(hu, nodule))
    change = np.abs(enhanced.astype(int) - hu.clip(-1024, 3071))
    assert 15 < change[~nodule].max() <= 120
    assert 0 < change[nodule].max() <= 15
    identity = Enhancer(ResidualEnhancer(channels=4))(hu, nodule)
    np.testing.assert_array_equal(identity, hu.clip(-1024, 3071))
    with pytest.raises(ValueError, match="needs int16 HU"):
        enhancer(hu.astype(np.float32), nodule)


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    torch.save(ResidualEnhancer(channels=8).state_dict(), tmp_path / "model.pt")
    wanted = (
        r"model\.pt: expected the weights of this ResidualEnhancer.*'first.weight' is \(4, .* in the network and \(8,"
    )
    with pytest.raises(WeightsMismatch, match=wanted):
        load_weights(ResidualEnhancer(channels=4), tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of weights, or a damaged one"):
        load_weights(ResidualEnhancer(channels=4), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="expected weights, found no file"):
        load_weights(ResidualEnhancer(channels=4), tmp_path / "none.pt")


def test_inference_config_enhances_a_folder_as_its_enhancer_does(folders, tmp_path) -> None:
    out, _ = folders
    torch.save(trained_like(dilations=[1]).state_dict(), tmp_path / "model.pt")
    flow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.json"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(ROOT),
        ckpt_path=str(tmp_path / "model.pt"),
        dataset_dir=str(out / "images"),
        label_dir=str(out / "masks"),
        output_dir=str(tmp_path / "enhanced"),
        **{"network_def#channels": 4, "network_def#dilations": [1]},
        device="$torch.device('cpu')",
    )
    flow.initialize()
    assert not flow.check_properties()
    flow.run()
    enhancer = flow.parser.get_parsed_content("enhancer")
    for path in sorted((out / "images").iterdir()):
        written = tmp_path / "enhanced" / path.name
        wanted = enhancer(read_slice(path), read_slice(out / "masks" / path.name) == 2)
        np.testing.assert_array_equal(read_slice(written), wanted)
        np.testing.assert_array_equal(nibabel.load(written).affine, nibabel.load(path).affine)
    with pytest.raises(ValueError, match="holds the slices that are read"):
        SaveEnhanced(tmp_path)({"path": tmp_path / "a.nii.gz"})


def test_a_pair_has_the_coarser_of_its_spacings(tmp_path) -> None:
    def entry(name: str, spacing_mm: float) -> dict:
        hu = np.full((160, 160, 1), -850, np.int16)
        hu[round(40 / spacing_mm) :] = 40  # an edge 40 mm from the border
        hu[0, 0] = -1000
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(hu, np.diag([-spacing_mm, -spacing_mm, 2, 1])), path)
        return {"image": str(path), "kind": "slice"}

    load = LoadSlice()
    assert load(entry("fine", 0.7))["spacing_mm"] == pytest.approx(0.7)
    data = {"composites": [entry("fine", 0.7)], "reals": [entry("coarse", 1.4)]}
    crop = NoduleCrop(64, nodule_share=None)
    pair = UnpairedDataset(data, load=load, transform=Compose([crop]), progress=False)[0]
    assert pair["x"].shape == pair["y"].shape == (1, 64, 64)
    # In 1.4 mm, the edge lies 28.6 px from the border; crops are around the middle, 56 and 112 mm from it.
    edges = [int((image[0, 32] > -400).float().argmax()) for image in (pair["x"], pair["y"])]
    assert edges == [int((pair["x"].shape[1] / 2) - round(16 / 1.4)), 0] or edges[0] == pytest.approx(20, abs=1)


def test_bfloat16_changes_an_enhanced_slice_by_little() -> None:
    network = trained_like(max_residual_hu=100)
    with torch.no_grad():
        network.last.weight.mul_(0.02)  # so that tanh is not always at its ends
    hu = np.random.default_rng(0).integers(-1000, 100, (50, 61), dtype=np.int16)
    mask = np.zeros(hu.shape, bool)
    exact, rounded = (Enhancer(network, amp=amp)(hu, mask).astype(int) for amp in (False, True))
    assert 0 < np.abs(exact - rounded).max() <= 15
    assert next(network.parameters()).dtype == torch.float32, "the network itself stays as it is"


def test_unpaired_draws_follow_the_seed(folders) -> None:
    transform = Compose([NoduleCrop(32), ToUnitd("image", clip=False)])
    data = unpaired_entries(*folders, split="training")
    settings = {"load": LoadSlice(), "transform": transform, "length": 4, "progress": False}
    first, second = (UnpairedDataset(data, **settings) for _ in range(2))
    drawn = [[set_.set_random_state(3)[0]["x"] for _ in range(2)] for set_ in (first, second)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(first[0]["x"], drawn[0][0])


logging.getLogger("cyclegan").setLevel(logging.ERROR)
