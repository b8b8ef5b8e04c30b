"""A cohort of discs with training and test patients (contract C5), and a bundle of generators that are arithmetic."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from fake_bundles import linear_state, write_bundle, write_weights

CATEGORIES = ("ground_glass", "part_solid", "solid")
LEVELS = {"ground_glass": -550, "part_solid": -250, "solid": 30}
RATINGS = ("malignancy", "spiculation", "lobulation", "margin", "sphericity", "calcification", "subtlety")

_FAILING = '''
"""A sampler that fails."""


class Broken:
    categories, spacing_mm = ("ground_glass", "part_solid", "solid"), 0.7

    def __init__(self, weights):
        pass

    def __call__(self, seeds, categories, diameters_mm):
        raise RuntimeError("no memory left")
'''


def disc(size: int, radius_px: float) -> np.ndarray:
    """A centred disc."""
    axis = np.arange(size) - (size - 1) / 2
    return np.hypot(axis[:, None], axis[None]) <= radius_px


def nodule(rng: np.random.Generator, category: str, diameter_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """HU and alpha of a noisy disc."""
    mask = disc(64, diameter_mm / 2 / 0.7)
    hu = np.where(mask, LEVELS[category] + rng.normal(0, 40, (64, 64)), -850 + rng.normal(0, 10, (64, 64)))
    return hu.astype(np.int16), mask.astype(np.float16)


def lung(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU and mask of two noisy lungs."""
    mask = np.roll(disc(256, 42), 55, axis=1) | np.roll(disc(256, 42), -55, axis=1)
    hu = np.where(
        mask, rng.normal(-850, 30, (256, 256)), np.where(disc(256, 115), rng.normal(30, 20, (256, 256)), -1000)
    )
    return hu.astype(np.int16), mask.astype(np.uint8)


def write_toy_cohort(folder: Path, *, patients: int = 12) -> Path:
    """Half of the patients train, half are tested; each has a nodule a category and two normal slices."""
    for name in ("nodules", "lungs", "slices"):
        (folder / name).mkdir(parents=True)
    rng, rows, series = np.random.default_rng(5), [], []
    lists = {name: {"training": [], "test": []} for name in ("nodules", "lungs", "segmentation")}
    for number in range(patients):
        who, split = f"P{number:02d}", ("training", "test")[number % 2]
        facts = {"patient_id": who, "series_id": who, "source": "TOY"}
        series.append({**facts, "split": split, "spacing_slice_mm": 2.0, "lung_mask": "none", "nodule_mask": "data"})
        for category in CATEGORIES:
            name, diameter = f"{who}_{category}", float(rng.uniform(6, 20))
            hu, alpha = nodule(rng, category, diameter)
            np.savez(folder / "nodules" / f"{name}.npz", hu=hu[None], alpha=alpha[None], largest=0)
            entry = {"nodule": f"nodules/{name}.npz", "nodule_id": name, "category": category, "diameter_mm": diameter}
            lists["nodules"][split].append({**facts, **entry})
            rated = dict(zip(RATINGS, rng.uniform(1, 5, len(RATINGS)), strict=True))
            place = {"x_mm": np.nan, "y_mm": np.nan, "z_mm": np.nan}
            row = {"nodule_id": name, "texture_class": category, "diameter_mm": diameter, "votes": 2}
            rows.append({**facts, "split": split, **row, **rated, **place})
        for index in range(2):
            hu, mask = lung(rng)
            np.savez(folder / "lungs" / f"{who}_{index:04d}.npz", hu=hu, mask=mask)
            name = f"{who}_{index:04d}"
            files = {"lung": f"lungs/{name}.npz", "image": f"slices/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
            lists["lungs"][split].append({**facts, **files, "category": "normal"})
    pd.DataFrame(rows).to_csv(folder / "nodules.csv", index=False)
    pd.DataFrame(series).to_csv(folder / "series.csv", index=False)
    source = {"name": "TOY", "licence": "none", "citation": "none"}
    (folder / "cohort.json").write_text(
        json.dumps({"split_hash": "ab" * 32, "sources": [source], "settings": {}}), encoding="utf-8"
    )
    for name, entries in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def write_generator_bundle(folder: Path, prefix: str) -> tuple[Path, Path]:
    """Bundles and weights with `w_capsulegan`, `gan` (fails), `dcgan` and `wgan` (no weights)."""
    package, bundles, weights = f"{prefix}_wcapsgan", folder / "bundles", folder / "weights"
    at = "$'/'.join([str(@bundle_root), 'models', 'model.pt'])"
    own = {
        "bundle_root": ".",
        "ckpt_path": at,
        "sampler": {"_target_": f"{package}.sampling.NoduleSampler", "weights": "@ckpt_path"},
    }
    lungs = {"sampler": {"_target_": f"{package}.sampling.LungSampler", "weights": "@ckpt_path", "size": 256}}
    configs = {
        "inference.json": own,
        "inference_lung.json": lungs,
        "inference_gan.json": {"sampler": {"_target_": f"{package}.failing.Broken", "weights": "@ckpt_path"}},
        "inference_dcgan.json": {},
        "inference_wgan.json": {},
    }
    root = write_bundle(
        bundles, "wcapsgan", package, configs, {"model.pt": linear_state(3), "model_lung.pt": linear_state(3)}
    )
    (root / package / "failing.py").write_text(_FAILING, encoding="utf-8")
    weights.mkdir(parents=True)
    for name in ("nodules_gan", "nodules_dcgan", "lungs_dcgan"):
        write_weights(weights / f"{name}.pt", linear_state(3))
    return bundles, weights
