"""Tiny bundles with the calls of contract C6.5, written where a test asks for them."""

import hashlib
import json
from pathlib import Path

import torch

_SAMPLING = '''
"""Samples that are made by arithmetic on the seed alone."""

import numpy as np
import torch
from scipy import ndimage

CATEGORIES = ("ground_glass", "part_solid", "solid")
LEVELS = {"ground_glass": -500, "part_solid": -250, "solid": 30}


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, 2)


def _disc(size, spacing, radius_mm, centre=(0.0, 0.0)):
    axis = (np.arange(size) - (size - 1) / 2) * spacing
    return np.hypot(axis[:, None] - centre[0], axis[None, :] - centre[1]) <= radius_mm


class NoduleSampler:
    spacing_mm = 0.7
    categories = CATEGORIES

    def __init__(self, weights, network=None):
        (network or Net(3)).load_state_dict(torch.load(weights, weights_only=True))

    def __call__(self, seeds, categories, diameters_mm):
        hu, alpha, diameters = [], [], []
        for seed, category, wanted in zip(seeds, categories, diameters_mm):
            rng = np.random.default_rng(seed)
            diameter = wanted or 6 + 8 * rng.random()
            mask = _disc(64, self.spacing_mm, diameter / 2)
            hu.append(np.where(mask, LEVELS[category] + rng.integers(-40, 40, (64, 64)), -850).astype(np.int16))
            alpha.append(mask.astype(np.float16))
            diameters.append(2 * np.sqrt(mask.sum() / np.pi) * self.spacing_mm)
        return {
            "hu": np.stack(hu), "alpha": np.stack(alpha), "category": list(categories),
            "diameter_mm": np.float32(diameters), "seed": np.int64(seeds),
        }


class LungSampler:
    spacing_mm = 2.8
    categories = ("normal",)

    def __init__(self, weights, size=128):
        torch.load(weights, weights_only=True)
        self.size = size

    def __call__(self, seeds, categories, diameters_mm):
        hu, masks = [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            body = _disc(self.size, self.spacing_mm, 150)
            lungs = _disc(self.size, self.spacing_mm, 55, (0, -70)) | _disc(self.size, self.spacing_mm, 55, (0, 70))
            plane = np.where(lungs, -850, np.where(body, 40, -1000)) + rng.integers(-30, 30, lungs.shape)
            hu.append(plane.astype(np.int16))
            masks.append(lungs.astype(np.uint8))
        return {
            "hu": np.stack(hu), "mask": np.stack(masks), "category": list(categories),
            "diameter_mm": np.full(len(seeds), np.nan, np.float32), "seed": np.int64(seeds),
        }


class Enhancer:
    """Makes all but nodules brighter by 1 HU and, if asked, a square of each lung as bright as `spot_hu`."""

    def __init__(self, weights, spot_hu=None):
        torch.load(weights, weights_only=True)
        self.spot_hu = spot_hu

    def __call__(self, hu, nodule_mask):
        enhanced = np.where(nodule_mask, hu, hu + 1).astype(np.int16)
        if self.spot_hu is not None:
            enhanced[60:66, 55:61] = self.spot_hu
        return enhanced


class Segmenter:
    def __init__(self, weights):
        torch.load(weights, weights_only=True)

    def __call__(self, hu, spacing_mm):
        return {"lung": (hu < -500).astype(np.float32), "nodule": (hu > 0).astype(np.float32)}


class Detector:
    """Finds nothing, or each connected piece that is brighter than `above_hu`."""

    def __init__(self, weights, operating_point=0.5, above_hu=None):
        torch.load(weights, weights_only=True)
        self.operating_point = operating_point
        self.above_hu = above_hu

    def __call__(self, hu, spacing_mm):
        if self.above_hu is None:
            return {"candidates": np.zeros((0, 5), np.float32)}
        marked, count = ndimage.label(hu[0] > self.above_hu)
        centres = ndimage.center_of_mass(marked, marked, range(1, count + 1))
        return {"candidates": np.array([[0, *centre, 4.0, 0.9] for centre in centres]).reshape(-1, 5)}
'''


def write_bundle(bundles: Path, name: str, package: str, configs: dict[str, dict], weights: dict[str, dict]) -> Path:
    """Writes `<name>_bundle` with a package that holds the samplers, configs and weights with their sidecars."""
    root = bundles / f"{name}_bundle"
    for folder in ("configs", "models", package):
        (root / folder).mkdir(parents=True)
    (root / package / "__init__.py").write_text('"""A fake."""\n', encoding="utf-8")
    (root / package / "sampling.py").write_text(_SAMPLING, encoding="utf-8")
    for file, config in configs.items():
        (root / "configs" / file).write_text(json.dumps(config), encoding="utf-8")
    for file, state in weights.items():
        write_weights(root / "models" / file, state)
    return root


def write_weights(path: Path, state: dict) -> None:
    """Writes weights and the sidecar that names their hash."""
    torch.save(state, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(
        json.dumps({"network": "fake", "sha256": sha256, "data": []}), encoding="utf-8"
    )


def linear_state(width: int, fill: float = 0.0) -> dict:
    """A state dict of the fakes' network."""
    return {"layer.weight": torch.full((2, width), fill), "layer.bias": torch.zeros(2)}


def edit_config(bundles: Path, name: str, component: str, **settings: object) -> None:
    """Sets arguments of a component in a bundle's `inference.json`."""
    path = bundles / f"{name}_bundle" / "configs" / "inference.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[component] |= settings
    path.write_text(json.dumps(config), encoding="utf-8")


def write_fake_bundles(bundles: Path, prefix: str) -> Path:
    """The three bundles that the chain opens; `prefix` keeps the packages of two folders apart."""
    sampler, enhancer, segmenter = (f"{prefix}_{name}" for name in ("wcapsgan", "cyclegan", "lung_seg"))
    at = "$'/'.join([str(@bundle_root), 'models', '{}'])"
    write_bundle(
        bundles,
        "wcapsgan",
        sampler,
        {
            "inference.json": {
                "bundle_root": ".",
                "network_def": {"_target_": f"{sampler}.sampling.Net", "width": 3},
                "sampler": {
                    "_target_": f"{sampler}.sampling.NoduleSampler",
                    "weights": at.format("model.pt"),
                    "network": "@network_def",
                },
            },
            "inference_lung.json": {
                "network_def": {"_target_": f"{sampler}.sampling.Net", "width": 4},
                "sampler": {
                    "_target_": f"{sampler}.sampling.LungSampler",
                    "weights": at.format("model_lung.pt"),
                },
            },
            "inference_cascade.json": {"sampler#weights": at.format("model_cascade.pt")},
        },
        {"model.pt": linear_state(3), "model_lung.pt": linear_state(4), "model_cascade.pt": linear_state(4)},
    )
    write_bundle(
        bundles,
        "cyclegan",
        enhancer,
        {
            "inference.json": {
                "bundle_root": ".",
                "enhancer": {"_target_": f"{enhancer}.sampling.Enhancer", "weights": at.format("model.pt")},
            }
        },
        {"model.pt": linear_state(2)},
    )
    write_bundle(
        bundles,
        "lung_seg",
        segmenter,
        {
            "inference.json": {
                "bundle_root": ".",
                "segmenter": {"_target_": f"{segmenter}.sampling.Segmenter", "weights": at.format("model.pt")},
                "detector": {"_target_": f"{segmenter}.sampling.Detector", "weights": at.format("model.pt")},
            }
        },
        {"model.pt": linear_state(2)},
    )
    return bundles
