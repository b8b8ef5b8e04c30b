"""Trainings of bundles as `monai.bundle run` opens them, for tests."""

from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow


def open_training(bundle: Path, cohort: Path, output: Path, *overlays: str, **settings: Any) -> ConfigWorkflow:
    """The training of a bundle on the CPU; `overlays` are files of `configs/` on top of `train.json`."""
    return ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in ("train.json", *overlays)],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(bundle),
        dataset_dir=str(cohort),
        output_dir=str(output),
        device="cpu",
        **settings,
    )
