"""Slices made by hand and small settings for the tests of the CycleGAN bundle."""

import json
import sys
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1] / "bundles" / "cyclegan_bundle"
sys.path.append(str(ROOT))

from cyclegan.common.hounsfield import NETWORK_WINDOW
from cyclegan.history import ImageHistory
from cyclegan.losses import GeneratorLoss
from cyclegan.network import ResidualEnhancer
from cyclegan.trainer import CycleGANTrainer, Histories, Networks, Optimizers
from monai.inferers import SimpleInferer

SIZE = 48
HU_PER_UNIT = NETWORK_WINDOW.hu_per_unit
LOSS_WEIGHTS = {
    "cycle_weight": 2.0,
    "identity_weight": 3.0,
    "nodule_weight": 5.0,
    "volume_weight": 7.0,
    "outline_weight": 11.0,
}
TINY = {
    "network_def#channels": 4,
    "network_def#dilations": [1],
    "D_X_def#channels": 4,
    "crop_px": 32,
    "batch_size": 2,
    "epoch_length": 2,
    "histories#x#capacity": 3,
    "amp": False,
    "device": "$torch.device('cpu')",
}


def trained_like(*, seed: int = 0, **settings) -> ResidualEnhancer:
    """A generator whose last layer is not zero, as after training."""
    torch.manual_seed(seed)
    network = ResidualEnhancer(channels=4, **settings)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


def write_pair(
    folder: Path, name: str, generator: np.random.Generator, *, affine: np.ndarray | None = None
) -> dict[str, str]:
    """A slice (W, H, 1) of noisy lung with a disc of tissue, and its label map."""
    columns, rows = np.mgrid[:SIZE, : SIZE - 8]
    disc = (columns - 20) ** 2 + (rows - 18) ** 2 < 25
    hu = np.where(disc, 40, -850) + generator.normal(0, 30, disc.shape)
    affine = np.diag([-1.4, -1.4, 3.0, 1.0]) if affine is None else affine
    for kind, values in (("images", hu.round().astype(np.int16)), ("masks", np.where(disc, 2, 1).astype(np.uint8))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values[:, :, np.newaxis], affine), folder / kind / f"{name}.nii.gz")
    return {"image": f"images/{name}.nii.gz", "label": f"masks/{name}.nii.gz"}


def workflow(folders: tuple[Path, Path], output_dir: Path, *, files=("train.json",), **overrides) -> ConfigWorkflow:
    out, cohort = folders
    places = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(cohort),
        "composite_dir": str(out),
        "output_dir": str(output_dir),
    }
    return ConfigWorkflow(
        config_file=[str(ROOT / "configs" / file) for file in files],
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **TINY,
        **places,
        **overrides,
    )


def run(flow: ConfigWorkflow) -> ConfigWorkflow:
    flow.initialize()
    flow.run()
    return flow


def make_folders(tmp_path_factory) -> tuple[Path, Path]:
    """An OUT folder of composites and a COHORT of real slices."""
    out, cohort = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cohort")
    generator = np.random.default_rng(0)
    (out / "datalist.json").write_text(
        json.dumps({"training": [write_pair(out, f"c{i}", generator) for i in range(4)]}), encoding="utf-8"
    )
    reals = {
        split: [write_pair(cohort, f"{split}{i}", generator) | {"patient_id": f"{split}{i}"} for i in range(2)]
        for split in ("training", "validation", "test")
    }
    (cohort / "enhancement.json").write_text(json.dumps(reals), encoding="utf-8")
    return out, cohort


def make_trainer(networks: Networks) -> CycleGANTrainer:
    return CycleGANTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        networks=networks,
        optimizers=Optimizers(
            generators=torch.optim.Adam(chain(networks.G.parameters(), networks.F.parameters()), lr=1e-3),
            discriminators=torch.optim.Adam(chain(networks.D_X.parameters(), networks.D_Y.parameters()), lr=1e-3),
        ),
        histories=Histories(x=ImageHistory(0), y=ImageHistory(0)),
        loss=GeneratorLoss(tolerance_hu=0.0),
        inferer=SimpleInferer(),
        amp=False,
    )
