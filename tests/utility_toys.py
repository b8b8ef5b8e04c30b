"""A phantom cohort whose parts have nodules of several textures, and bundles that generate by arithmetic."""

import shutil
from pathlib import Path

from fake_bundles import write_fake_bundles

from evaluation.utility.run import UtilityConfig
from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort

ROOT = Path(__file__).resolve().parent.parent


def write_cohort(folder: Path) -> Path:
    """Ten patients: seven train, two of them with nodules of all three textures; one validates, two test."""
    make_phantom_cohort(folder / "source", patients=10, seed=5, size_px=96, slices=16, slice_spacing_mm=12.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(), workers=1)
    return folder / "cohort"


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
