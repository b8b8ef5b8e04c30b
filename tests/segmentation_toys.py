"""A bundle of methods of segmentation that are arithmetic, and an oracle that knows the answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_bundles import linear_state, write_bundle, write_weights

from evaluation.cohort_subsets import Subset
from evaluation.composites import Composites
from evaluation.segmentation.crops import read_crops
from evaluation.segmentation.scans import read_labelled_scan
from lungsynth.hounsfield import Label

_DETECTING = '''
"""Detectors that are thresholds."""

import numpy as np
import torch
from scipy import ndimage


class Bright:
    """Voxels above `level` HU; one candidate a piece, half as probable when it is small."""

    def __init__(self, ckpt_path, level=-100, operating_point=0.5, maps=True):
        self.fill = float(torch.load(ckpt_path, weights_only=True)["layer.weight"].mean())
        self.level, self.operating_point, self.maps = level, operating_point, maps

    def __call__(self, hu, spacing_mm):
        nodule = hu > self.level
        pieces, count = ndimage.label(nodule, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        centres = np.array(ndimage.center_of_mass(nodule, pieces, np.arange(1, count + 1))).reshape(-1, 3)
        probability = np.where(sizes >= 20, 0.9, 0.45)
        found = np.column_stack([centres, np.full(count, 8.0), probability]).astype(np.float32)
        found = {"candidates": found[np.argsort(-found[:, 4], kind="stable")]}
        if not self.maps:
            return found
        return {**found, "nodule": nodule.astype(np.float16), "lung": (hu < -500).astype(np.float16)}


class Broken:
    operating_point = 0.5

    def __init__(self, ckpt_path):
        torch.load(ckpt_path, weights_only=True)

    def __call__(self, hu, spacing_mm):
        raise RuntimeError("no memory left")
'''


def write_method_bundle(folder: Path, prefix: str) -> tuple[Path, Path]:
    """Bundles and weights with `dense_unet`, `unet` (no maps), `cnn_vgg` (fails) and `unet_plus_plus` (no weights)."""
    package, bundles, weights = f"{prefix}_lung_seg", folder / "bundles", folder / "weights"
    own = {
        "bundle_root": ".",
        "ckpt_path": "$'/'.join([str(@bundle_root), 'models', 'model.pt'])",
        "detector": {"_target_": f"{package}.detecting.Bright", "ckpt_path": "@ckpt_path"},
    }
    overlays = {
        "unet": {"detector": {"_target_": f"{package}.detecting.Bright", "ckpt_path": "@ckpt_path", "maps": False}},
        "cnn_vgg": {"detector": {"_target_": f"{package}.detecting.Broken", "ckpt_path": "@ckpt_path"}},
        "unet_plus_plus": {"detector::level": 0},
    }
    configs = {"inference.json": own} | {f"inference_{name}.json": overlay for name, overlay in overlays.items()}
    root = write_bundle(bundles, "lung_seg", package, configs, {"model.pt": linear_state(2)})
    (root / package / "detecting.py").write_text(_DETECTING, encoding="utf-8")
    weights.mkdir(parents=True)
    for name in ("unet", "cnn_vgg"):
        write_weights(weights / f"{name}.pt", linear_state(2, fill=0.5))
    return bundles, weights


def add_facts(path: Path, **facts: object) -> None:
    """Adds facts to the sidecar of a weights file."""
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text(encoding="utf-8")), **facts}), encoding="utf-8")


class Oracle:
    """Knows every image of a subset, and answers as the readers did, with probability 0.8."""

    operating_point = 0.5

    def __init__(self, subset: Subset, composites: Composites) -> None:
        self.answers = []
        for crop in read_crops(subset, []):
            self._learn(crop.hu, [crop.lesion], crop.mask, crop.mask)
            for top, left in ((0, 0), (0, 16), (16, 0), (16, 16)):
                place = crop.lesion.centre
                moved = replace(crop.lesion, centre=(place[0], place[1] - top, place[2] - left))
                view = (slice(None), slice(top, top + 48), slice(left, left + 48))
                self._learn(crop.hu[view], [moved], crop.mask[view], crop.mask[view])
        for image in composites:
            mask = image.label[None] == Label.NODULE
            self._learn(image.hu[None], [image.lesion], mask, mask | (image.label[None] == Label.LUNG))
        for series in subset.series:
            scan = read_labelled_scan(subset, series)
            lesions = [lesion for lesion in scan.lesions if lesion.counts]
            mask = scan.label == Label.NODULE
            self._learn(scan.hu, lesions, mask, mask | (scan.label == Label.LUNG))

    def _learn(self, hu, lesions, nodule, lung) -> None:
        rows = [(*lesion.centre, lesion.diameter_mm, 0.8) for lesion in lesions]
        candidates = np.array(rows, np.float32).reshape(-1, 5)
        self.answers.append((hu, {"candidates": candidates, "nodule": nodule.astype(np.float16), "lung": lung * 1.0}))

    def __call__(self, hu, spacing_mm):
        return next(answer for known, answer in self.answers if np.array_equal(known, hu))
