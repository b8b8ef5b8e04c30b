"""Rigged networks and scans made by hand for the tests of lung_seg on whole scans."""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.network import DenseUNet

TINY = {
    "stem_channels": 4,
    "channels": [4, 8],
    "convolutions": 1,
    "growth_rate": 2,
    "dense_layers": 2,
}
TINY_CONFIG = {f"network_def#{name}": value for name, value in TINY.items()}


SPACING = (2.0, 1.0, 1.0)


def tiny_network() -> DenseUNet:
    torch.manual_seed(0)
    return DenseUNet(**TINY).eval()


class Density(torch.nn.Module):
    """Lung where it is darker than soft tissue and not empty, nodule where it is bright."""

    def forward(self, image):
        own = image[:, image.shape[1] // 2, None]
        return torch.cat([40 * (own.abs() < 0.9) - 20.0, 20 * own - 14], dim=1)


def sphere(shape, centre, diameter_mm, spacing_mm) -> np.ndarray:
    """Distance-based sphere with an edge of one voxel: 1 inside, 0 outside."""
    places = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    distance = np.sqrt(np.sum((places * np.reshape(spacing_mm, (3, 1, 1, 1))) ** 2, axis=0))
    return np.clip(0.5 + (diameter_mm / 2 - distance) / spacing_mm[1], 0, 1).astype(np.float32)


def chest(depth=24, size=120, spacing_mm=(5.0, 2.5, 2.5)) -> np.ndarray:
    """Body, two lungs and a table in air; int16 HU."""
    _, row, column = np.indices((depth, size, size)) * np.reshape(spacing_mm, (3, 1, 1, 1))
    middle = size * spacing_mm[1] / 2
    hu = np.full((depth, size, size), -1000, dtype=np.int16)
    hu[((row - middle) / 90) ** 2 + ((column - middle) / 125) ** 2 < 1] = 40
    for side in (-60, 60):
        hu[4:20][(((row - middle) / 60) ** 2 + ((column - middle - side) / 45) ** 2 < 1)[4:20]] = -850
    hu[:, round((middle + 110) / spacing_mm[1])] = 100
    return hu
