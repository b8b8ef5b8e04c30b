"""Nodules for the tests of wcapsgan_bundle."""

import json
from pathlib import Path

import numpy as np

__all__ = ["ball", "disc", "write_cubes"]


def disc(diameter: float, size: int = 16) -> np.ndarray:
    """A mask (size, size), float16, 1 within a disc of that diameter in pixels about the middle."""
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    return (np.hypot(rows, columns) <= diameter / 2).astype(np.float16)


def ball(diameter: float, size: int = 16) -> np.ndarray:
    """A mask (size, size, size), float16, 1 within a ball of that diameter in pixels about the middle."""
    places = np.indices((size,) * 3) - (size - 1) / 2
    return (np.linalg.norm(places, axis=0) <= diameter / 2).astype(np.float16)


def write_cubes(folder: Path, categories: list[str], *, size: int = 32) -> Path:
    """A COHORT with the balls of 6 px and more that `categories` name, in `cubes.json`."""
    (folder / "cubes").mkdir(parents=True)
    entries = []
    for i, category in enumerate(categories):
        alpha = ball(size * (0.3 + 0.05 * i), size)
        hu = np.where(alpha > 0, -500 if category == "ground_glass" else 0, -850).astype(np.int16)
        np.savez(folder / "cubes" / f"{i}.npz", hu=hu, alpha=alpha)
        entries.append({"cube": f"cubes/{i}.npz", "category": category})
    (folder / "cubes.json").write_text(json.dumps({"training": entries, "validation": entries, "test": []}))
    return folder
