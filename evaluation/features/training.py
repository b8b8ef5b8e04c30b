"""Trains the judge's feature networks on the training patients of a cohort.

Images are moved, flipped (nodules), noised and blurred, so that the features are of shape and density and not of the
noise alone. No other patients are seen: the validation patients only tell how well it went, and choose nothing.
"""

import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from evaluation.features.data import FeatureData, read_feature_data
from evaluation.features.targets import LUNG_CLASSES, NODULE_CLASSES
from lungsynth.errors import InputError
from lungsynth.hounsfield import NETWORK_WINDOW
from lungsynth.similarity.features import FeatureNetwork, save_feature_network
from lungsynth.similarity.samples import SampleKind

__all__ = ["make_features", "train_features", "validate_features"]

_logger = logging.getLogger(__name__)
_CHANNELS: Mapping[SampleKind, tuple[int, ...]] = {"nodules": (24, 48, 96, 96), "lungs": (12, 24, 48, 64, 64)}
_FEATURES = 64
_BATCH: Mapping[SampleKind, int] = {"nodules": 64, "lungs": 16}
_SHIFT_PX = {"nodules": 4, "lungs": 12}
_NOISE_HU, _LEVEL_HU = 30.0, 15.0
_UNIT_A_HU = 2 / (NETWORK_WINDOW.high_hu - NETWORK_WINDOW.low_hu)


def make_features(cohort: Path, kind: SampleKind, out: Path, *, epochs: int, seed: int) -> tuple[Path, dict[str, Any]]:
    """Trains on a cohort and writes `<kind>_features.pt` with its sidecar.

    Returns:
        The file, and how well it does on the validation patients.

    Raises:
        InputError: when the cohort has no such training samples.
    """
    data, started = read_feature_data(cohort, kind, "training"), time.process_time()
    network = train_features(data, kind, epochs=epochs, seed=seed)
    minutes = round((time.process_time() - started) / 60, 1)
    try:
        validation = validate_features(network, read_feature_data(cohort, kind, "validation"))
    except InputError as error:
        _logger.warning("Not validated: %s", error)
        validation = {}
    described = json.loads((cohort / "cohort.json").read_text())
    names = {"torch", "monai", "numpy"}
    facts = {
        "split_hash": described.get("split_hash"),
        "data": [
            {key: source.get(key) for key in ("name", "licence", "citation")}
            for source in described.get("sources", [])
            if source.get("name") in data.sources
        ],
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in sorted(names)},
        "validation": validation,
        "epochs": epochs,
        "train_minutes": minutes,
        "samples": len(data.images),
        "patients": len(set(data.owners)),
    }
    path = out / f"{kind}_features.pt"
    save_feature_network(path, network, facts)
    return path, validation


def train_features(
    data: FeatureData, kind: SampleKind, *, epochs: int, seed: int, learning_rate: float = 3e-3
) -> FeatureNetwork:
    """Trains a network; the same data and seed give the same one on the same machine.

    Args:
        data: of the training patients.
        kind: of the samples.
        epochs: passes over the data.
        seed: of the initial weights, the order and the augmentation.
        learning_rate: the highest, reached after a quarter of the steps.
    """
    torch.manual_seed(seed)
    classes = NODULE_CLASSES if kind == "nodules" else LUNG_CLASSES
    network = FeatureNetwork(
        size=data.images.shape[-1],
        channels=_CHANNELS[kind],
        features=_FEATURES,
        classes=classes,
        targets=data.names,
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spread = _spread(data.targets)
    weights = 1 / torch.bincount(data.classes, minlength=len(classes)).clamp(min=1).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    batch, draw = _BATCH[kind], torch.Generator().manual_seed(seed)
    steps = max(len(data.images) // batch, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps * epochs, pct_start=0.25)
    started = time.process_time()
    for _ in tqdm(range(epochs), desc=f"features of {kind}", unit="epoch"):
        for chosen in torch.randperm(len(data.images), generator=draw)[: steps * batch].split(batch):
            loss = _loss(network, _augmented(data.images[chosen], kind, draw), data, chosen, spread, weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    _logger.info("%s: loss %.3f after %.1f minutes", kind, float(loss.detach()), (time.process_time() - started) / 60)
    _scale_features(network.eval(), data.images)
    return network


def validate_features(network: FeatureNetwork, data: FeatureData) -> dict[str, Any]:
    """Shares of right classes (and their mean) and rank correlations of targets, on patients that trained nothing."""
    with torch.inference_mode():
        parts = [network(images) for images in data.images.split(64)]
    right = (torch.cat([logits for _, logits, _ in parts]).argmax(1) == data.classes).float()
    shares = {
        name: float(right[data.classes == i].mean())
        for i, name in enumerate(network.classes)
        if (data.classes == i).any()
    }
    answers = torch.cat([numbers for _, _, numbers in parts]).numpy()
    ranks = {}
    for i, name in enumerate(network.targets):
        known = np.isfinite(data.targets[:, i].numpy())
        if known.sum() > 2 and np.ptp(data.targets[known, i].numpy()) > 0:
            ranks[name] = round(float(stats.spearmanr(answers[known, i], data.targets[known, i]).statistic), 3)
    return {
        "n": len(data.images),
        "patients": len(set(data.owners)),
        "balanced_accuracy": round(float(np.mean(list(shares.values()))), 3),
        "accuracy_by_class": {name: round(share, 3) for name, share in shares.items()},
        "rank_correlation": ranks,
    }


def _spread(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each target over where it is known."""
    values = targets.numpy()
    mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return torch.from_numpy(mean), torch.from_numpy(np.maximum(spread, 1e-6))


def _loss(
    network: FeatureNetwork,
    images: Tensor,
    data: FeatureData,
    chosen: Tensor,
    spread: tuple[Tensor, Tensor],
    weights: Tensor,
) -> Tensor:
    """Cross entropy with classes weighted evenly, plus the mean Huber loss of the known targets."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, logits, numbers = network(images)
    wanted = (data.targets[chosen] - spread[0]) / spread[1]
    known = torch.isfinite(wanted)
    numeric = functional.smooth_l1_loss(numbers.float()[known], wanted[known])
    return functional.cross_entropy(logits.float(), data.classes[chosen], weight=weights) + 2 * numeric


def _augmented(images: Tensor, kind: SampleKind, draw: torch.Generator) -> Tensor:
    """Moves, flips (nodules), noise of 0 to 30 HU, a level within 15 HU; a quarter of the images is blurred."""
    count, reach = len(images), _SHIFT_PX[kind]
    if kind == "nodules":
        flips = torch.rand(3, count, generator=draw) < 0.5
        images = torch.where(flips[0, :, None, None, None], images.flip(-1), images)
        images = torch.where(flips[1, :, None, None, None], images.flip(-2), images)
        images = torch.where(flips[2, :, None, None, None], images.mT, images)
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    size, starts = images.shape[-1], torch.randint(2 * reach + 1, (count, 2), generator=draw).tolist()
    moved = [image[:, r : r + size, c : c + size] for image, (r, c) in zip(padded, starts, strict=True)]
    images = torch.stack(moved)
    blurred = functional.avg_pool2d(functional.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
    images = torch.where(torch.rand(count, 1, 1, 1, generator=draw) < 0.25, blurred, images)
    noise, level = torch.rand(2, count, 1, 1, 1, generator=draw)
    images = images + torch.randn(images.shape, generator=draw) * noise * _NOISE_HU * _UNIT_A_HU
    images = images + (level * 2 - 1) * _LEVEL_HU * _UNIT_A_HU
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _scale_features(network: FeatureNetwork, images: Tensor) -> None:
    with torch.inference_mode():
        raw = torch.cat([network.raw(part) for part in images.split(64)])
    network.feature_mean.copy_(raw.mean(0))
    network.feature_spread.copy_(raw.std(0).clamp(min=1e-3))
