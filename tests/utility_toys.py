"""The utility experiment, tiny: settings for bundles that generate by arithmetic."""

from pathlib import Path

from evaluation.utility.run import UtilityConfig

CLASSIFIERS = {"patients": (2,), "doses": (0, 1), "per_category": 2, "seeds": 1, "steps": 1, "resamples": 20}
DETECTORS = {"curve_patients": (2, 0), "detection_patients": (2,), "window_doses": (0.5,), "detection_seeds": 1}
DETECTORS |= {"families": ("copied", "generated"), "detection_steps": 1, "detection_size_px": 32, "windows": 2}


def small_settings(cohort: Path, out: Path, bundles: Path, **changes: object) -> UtilityConfig:
    """The whole experiment in a few seconds."""
    return UtilityConfig(**{"cohort": cohort, "out": out, "bundles": bundles, **CLASSIFIERS, **DETECTORS, **changes})
