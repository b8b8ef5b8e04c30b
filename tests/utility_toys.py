"""The utility experiment, small: bundles that generate by arithmetic, and settings."""

import shutil
from pathlib import Path

from fake_bundles import write_fake_bundles

from evaluation.utility.run import UtilityConfig

ROOT = Path(__file__).resolve().parent.parent


def write_bundles(folder: Path, prefix: str) -> Path:
    """Fakes, but for the segmentation, which trains."""
    bundles = write_fake_bundles(folder, prefix)
    shutil.rmtree(bundles / "lung_seg_bundle")
    (bundles / "lung_seg_bundle").symlink_to(ROOT / "bundles" / "lung_seg_bundle", target_is_directory=True)
    return bundles


def small_settings(cohort: Path, out: Path, bundles: Path, **changes: object) -> UtilityConfig:
    """The whole experiment in a few seconds."""
    small = {"patients": (2,), "segmentation_patients": (2,), "doses": (0, 1), "per_category": 2}
    small |= {"seeds": 2, "segmentation_seeds": 1, "steps": 2, "segmentation_steps": 1, "composites": 2}
    return UtilityConfig(**{"cohort": cohort, "out": out, "bundles": bundles, "enhance": False, **small, **changes})
