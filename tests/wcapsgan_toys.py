"""Nodules, networks and trainings for the tests of wcapsgan_bundle."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BUNDLE = Path(__file__).parents[1] / "bundles" / "wcapsgan_bundle"
sys.path.insert(0, str(BUNDLE))

from wcapsgan.data import CohortSamples, load_datalist
from wcapsgan.network import FrameSettings, Generator

__all__ = ["BUNDLE", "CATEGORIES", "ONE_CRITIC", "disc", "make_generator", "read_samples", "sphere", "write_cubes"]

CATEGORIES = ["ground_glass", "solid"]
ONE_CRITIC = {"critic_def#scales": [{"downsampling": 1, "extra_convolutions": 0}]}
_FRAME = {"spacing_mm": 0.7, "use_canvas": False, "flat_background": False, "edge_px": 0.0}


def make_generator(**settings: Any) -> Generator:
    """A tiny generator of nodules; `settings` are its own or those of its frame."""
    frame = FrameSettings(**{name: settings.pop(name, value) for name, value in _FRAME.items()})
    tiny = {"latent_dim": 4, "n_categories": 2, "size": 16, "channels": 8, "max_width_multiplier": 4}
    return Generator(frame=frame, **{**tiny, **settings})


def read_samples(folder: Path, rule: Any, *, sample_type: str = "nodule", **settings: Any) -> CohortSamples:
    """Training samples of a cohort, by a `CategoryRule`."""
    data = load_datalist(folder, sample_type=sample_type, split="training")
    return CohortSamples(data, sample_type=sample_type, categories=rule, **{"size": 16, "spacing_mm": 0.7, **settings})


def disc(diameter: float, size: int = 16) -> np.ndarray:
    """A mask (size, size), float16, 1 within a disc of that diameter in pixels about the middle."""
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    return (np.hypot(rows, columns) <= diameter / 2).astype(np.float16)


def sphere(diameter: float, size: int = 16) -> np.ndarray:
    """A mask (size, size, size), float16, 1 within a sphere of that diameter in pixels about the middle."""
    places = np.indices((size,) * 3) - (size - 1) / 2
    return (np.linalg.norm(places, axis=0) <= diameter / 2).astype(np.float16)


def write_cubes(folder: Path, categories: list[str], *, size: int = 32) -> Path:
    """A COHORT with the spheres of 6 px and more that `categories` name, in `cubes.json`."""
    (folder / "cubes").mkdir(parents=True)
    entries = []
    for i, category in enumerate(categories):
        alpha = sphere(size * (0.3 + 0.05 * i), size)
        hu = np.where(alpha > 0, -500 if category == "ground_glass" else 0, -850).astype(np.int16)
        np.savez(folder / "cubes" / f"{i}.npz", hu=hu, alpha=alpha)
        entries.append({"cube": f"cubes/{i}.npz", "category": category})
    (folder / "cubes.json").write_text(
        json.dumps({"training": entries, "validation": entries, "test": []}), encoding="utf-8"
    )
    return folder
