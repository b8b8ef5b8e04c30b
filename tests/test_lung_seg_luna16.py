"""LUNA16 alone trains the lung_seg bundle: nodules known by centre and diameter, when they are asked for."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from separation_toys import draw
from trainings import open_training

BUNDLE = Path(__file__).parents[1] / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.baselines.cubes import CubeBank
from lung_seg.composites import NoduleBank
from lung_seg.datalist import nodule_files, nodule_weights, read_datalist
from lung_seg.losses import MaskedLoss
from lung_seg.stacks import read_window

from evaluation.cohort_subsets import open_subset
from lungsynth.cohort.phantom.files import write_luna16
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort

TINY = {
    "network_def#channels": [4, 8],
    "network_def#convolutions": 1,
    "network_def#growth_rate": 2,
    "network_def#dense_layers": 2,
}
SMALL = {
    "epoch_length": 2,
    "batch_size": 4,
    "size_px": 64,
    "train#frame#tiles_per_side": 1,
    "max_epochs": 1,
    "val_interval": 1,
}


@pytest.fixture(scope="module")
def patients():
    return {patient.volume.patient_id: patient for patient in map(draw, range(21, 27))}


@pytest.fixture(scope="module")
def luna(patients, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("luna")
    write_luna16(folder / "LUNA16", list(patients.values()))
    prepare_cohort([folder / "LUNA16"], folder / "cohort", settings=PrepareSettings(), workers=1)
    return folder / "cohort"


def entries(cohort: Path, name: str) -> list[dict]:
    return [
        entry for part in json.loads((cohort / f"{name}.json").read_text(encoding="utf-8")).values() for entry in part
    ]


def workflow(cohort: Path, output: Path, *overlays: str, **settings) -> ConfigWorkflow:
    return open_training(
        BUNDLE,
        cohort,
        output,
        *overlays,
        **{**SMALL, **settings},
    )


def test_spheres_are_a_kind_of_their_own_that_nobody_drew(luna):
    spheres = [entry for entry in entries(luna, "segmentation") if entry["kind"] == "sphere"]
    assert {Path(entry["image"]).stem for entry in spheres} == {
        Path(entry["nodule"]).stem for entry in entries(luna, "nodules")
    }
    assert len(spheres) == 12
    for part in ("training", "validation"):
        kinds = [sample["kind"] for sample in read_datalist(luna, part)]
        assert set(kinds) == {"slice"}, "unless they are asked for"
        assert not nodule_files(luna, part)
        with_spheres = read_datalist(luna, part, use_spheres=True, nodules_per_sample=1)
        assert [sample["kind"] for sample in with_spheres[: len(kinds)]] == kinds
        assert len(with_spheres) - len(kinds) == len(nodule_files(luna, part, use_spheres=True)) >= 2
        assert len(nodule_weights(luna, part, category_balance=0.5, use_spheres=True)) == len(with_spheres) - len(kinds)
    subset = open_subset(luna)
    assert subset.evaluated_nodules, "scans are evaluated by centres"
    drawn = [nodule for nodule in subset.nodules if nodule.votes or (nodule.has_patch and nodule.expert_mask)]
    assert not drawn, "there are no crops to evaluate"


def test_what_is_dense_in_a_sphere_is_nodule_the_rest_of_it_is_ignored(luna, patients):
    for entry in (entry for entry in entries(luna, "segmentation") if entry["kind"] == "sphere"):
        stack = read_window(luna / entry["image"])
        label, hu = stack.label[stack.main].numpy(), stack.hu[stack.main].numpy()
        assert (label[60:68, 60:68] == 2).any()
        assert hu[label == 2].mean() > -300
        rows, columns = np.nonzero(label == 255)
        reach_mm = 0.7 * np.hypot(rows - 63.5, columns - 63.5).max()
        largest_mm = max(nodule.diameter_mm for nodule in patients[entry["patient_id"]].nodules)
        assert reach_mm < largest_mm / 2 + 2 + 2, "a sphere, its margin, and what the mask's centroid is off its centre"
        around = 0.7 * np.hypot(*(np.indices((128, 128)) - 63.5)) > largest_mm / 2 + 4
        assert (label[around] == 0).all()


def test_spheres_fill_the_banks(luna):
    files = nodule_files(luna, "training", use_spheres=True)
    drawn = NoduleBank(files).draw(np.random.RandomState(0))
    assert drawn is not None
    assert drawn.mask.sum() > 50
    bank = CubeBank(luna, use_spheres=True)
    groups = bank.groups()
    assert len(groups["crops"]) == len(files)
    assert groups["scans"], "scans with spheres show nodules as they continue from slice to slice"
    assert set(map(id, groups["scans"])) <= set(map(id, groups["lungs"]))
    cubes, is_nodule = bank.draw(6, 6, np.random.default_rng(0))
    middle = cubes[:, 0, 2, 17:23, 17:23].mean(dim=(1, 2))
    assert middle[is_nodule == 1].mean() > middle[is_nodule == 0].mean()
    few = CubeBank(luna, use_spheres=True, max_slices=1).groups()
    assert len(few["lungs"]) == 1 < len(groups["lungs"])


def test_the_nodule_channel_has_a_gradient(luna, tmp_path):
    run = workflow(luna, tmp_path, use_spheres=True, **TINY)
    run.initialize()
    shown = 0
    for batch in run.parser.get_parsed_content("train#dataloader"):
        logits = run.network_def(torch.as_tensor(batch["image"])).detach().requires_grad_()
        _, terms = MaskedLoss()(logits, batch["label"], batch["labelled"])
        (terms.bce_nodule + terms.dice_nodule + terms.dice_small).backward()
        shown += int(((batch["label"] == 2) & (batch["labelled"][:, 1] > 0)[:, None, None, None]).sum())
        assert logits.grad[:, 1].abs().sum() > 0
    assert shown > 50


@pytest.mark.parametrize("overlays", [(), ("train_faster_rcnn_3d.json",)])
def test_a_training_on_luna16_starts_and_its_weights_say_on_what(luna, tmp_path, overlays, caplog):
    network = {"network_def#width": 8, "train#step#drawn_negatives": 8} if overlays else TINY
    with caplog.at_level(logging.INFO, logger="lung_seg.datalist"):
        run = workflow(luna, tmp_path, *overlays, use_spheres=True, val_slices=2, **network)
        run.initialize()
        run.run()
    assert "have centre and diameter alone and train with what is dense in their spheres" in caplog.text
    sidecar = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert sidecar["use_spheres"] is True
    assert np.isfinite(sidecar["validation"]["froc" if overlays else "dice_nodule"])


def test_a_cohort_without_nodules_to_learn_from_is_refused(luna, tmp_path):
    with pytest.raises(ValueError, match=r"segmentation\.json: .* has none, and \d+ nodules .* Give use_spheres True"):
        read_datalist(luna, "training", needs_nodules=True)
    refused = workflow(luna, tmp_path, **TINY)
    refused.initialize()
    with pytest.raises(RuntimeError) as caught:
        refused.run()
    assert "needs nodules that somebody drew" in repr(caught.value.__cause__)
    assert read_datalist(luna, "training", needs_nodules=True, use_spheres=True)
    with pytest.raises(ValueError, match="give use_spheres True"):
        CubeBank(luna).draw(1, 1, np.random.default_rng(0))
