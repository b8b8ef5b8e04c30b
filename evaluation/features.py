"""Training of the feature networks that samples are compared with, on the training patients of a cohort.

They learn radiologists' ratings and measurements of nodules, places and tissue of lung slices. A target is NaN where it
is not known. Nodules: texture class (the classes), ratings, size and density. Lungs have few patients and no ratings:
the classes are thirds of the scanned range, the targets what the image and its lung mask say.

Images are moved, flipped (nodules), noised and blurred, so that the features are of shape and density and not of the
noise alone. No other patients are seen: the validation patients only say how well it went, and choose nothing.
"""

import importlib.metadata
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError
from lungsynth.hounsfield import NETWORK_WINDOW, SOLID_HU
from lungsynth.similarity.features import FeatureNetwork, save_feature_network, unit_images
from lungsynth.similarity.samples import SampleKind, Samples, read_lungs, read_nodules

__all__ = [
    "EPOCHS",
    "LUNG_CLASSES",
    "NODULE_CLASSES",
    "FeatureData",
    "make_features",
    "read_feature_data",
    "train_features",
    "validate_features",
]

_logger = logging.getLogger(__name__)

EPOCHS: Mapping[SampleKind, int] = {"nodules": 16, "lungs": 60}  # passes over the data, of the weights that are shipped
NODULE_CLASSES = ("ground_glass", "part_solid", "solid")
LUNG_CLASSES = ("lower", "middle", "upper")

# The networks. All numbers are chosen by hand; other ones give other features, and distances are comparable only for
# the same network.
_CHANNELS: Mapping[SampleKind, tuple[int, ...]] = {"nodules": (24, 48, 96, 96), "lungs": (12, 24, 48, 64, 64)}
_FEATURES = 64  # few, because FID needs many more samples than features
_BATCH: Mapping[SampleKind, int] = {"nodules": 64, "lungs": 16}
_LEARNING_RATE = 3e-3  # of AdamW, reached after a quarter of the steps
_TARGET_WEIGHT = 2  # of the regressed targets' loss beside the classes'
_SHIFT_PX = {"nodules": 4, "lungs": 12}  # augmentation: at most
_NOISE_HU, _LEVEL_HU = 30.0, 15.0  # augmentation: standard deviation and offset at most, about what scanners differ by
_UNIT_PER_HU = 2 / (NETWORK_WINDOW.high_hu - NETWORK_WINDOW.low_hu)

# The targets.
_RATINGS = ("malignancy", "spiculation", "lobulation", "margin", "sphericity", "calcification", "subtlety")
_TISSUES_HU = {"air": (-1025, -950), "lung": (-950, -700), "dense_lung": (-700, -300), "soft": (-300, 150)}
_FIELDS = 4  # rows and columns of fields whose share of lung is a target
_BAND_SIGMAS_PX = (0.7, 1.5, 3.0)  # between them lie the bands of structure: noise, fine and coarse vessels
_LUNG_MARGIN_PX = 3  # from the lung's border, whose edge is no structure

FeatureTargets = dict[str, Float[np.ndarray, " n"]]
LungPlaces = Int[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureData:
    """Samples with what is to be learnt of them.

    Args:
        images: float32 (N, 1, S, S) in [-1, 1].
        classes: int64 (N,).
        targets: float32 (N, T), NaN where unknown.
        names: of the targets.
        owners: patients.
        sources: names of the collections that they come from.
    """

    images: Tensor
    classes: Tensor
    targets: Tensor
    names: tuple[str, ...]
    owners: tuple[str, ...]
    sources: frozenset[str]


def read_feature_data(cohort: Path, kind: SampleKind, split: str) -> FeatureData:
    """Reads a split of a cohort.

    Raises:
        InputError: when it has no such samples.
    """
    if kind == "nodules":
        samples = read_nodules(cohort, split, largest_only=split != "training")
        samples = samples.take([i for i, name in enumerate(samples.categories) if name in NODULE_CLASSES])
        classes = np.array([NODULE_CLASSES.index(name) for name in samples.categories])
        targets = _nodule_targets(samples, cohort)
    else:
        samples = read_lungs(cohort, split)
        classes, targets = _lung_classes(samples), _lung_targets(samples)
    if not len(samples):
        raise InputError(f"{cohort}: its {split} split has no {kind} to learn features from.")
    return FeatureData(
        images=unit_images(samples.hu),
        classes=torch.from_numpy(classes),
        targets=torch.from_numpy(np.stack(list(targets.values()), axis=1).astype(np.float32)),
        names=tuple(targets),
        owners=samples.owners,
        sources=_sources(cohort, kind, split),
    )


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
    opened = Cohort.open(cohort)
    facts = {
        "split_hash": opened.described.get("split_hash"),
        "data": [
            {key: source.get(key) for key in ("name", "licence", "citation")}
            for source in opened.sources
            if source.get("name") in data.sources
        ],
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in ("monai", "numpy", "torch")},
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
    data: FeatureData, kind: SampleKind, *, epochs: int, seed: int, learning_rate: float = _LEARNING_RATE
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
    size, draw = _BATCH[kind], torch.Generator().manual_seed(seed)
    steps = max(len(data.images) // size, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps * epochs, pct_start=0.25)
    started = time.process_time()
    for _ in tqdm(range(epochs), desc=f"features of {kind}", unit="epoch"):
        for batch in torch.randperm(len(data.images), generator=draw)[: steps * size].split(size):
            loss = _loss(network, _augmented(data.images[batch], kind, draw), data, batch, spread, weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    _logger.info("%s: loss %.3f after %.1f minutes", kind, float(loss.detach()), (time.process_time() - started) / 60)
    _scale_features(network.eval(), data.images)
    return network


def validate_features(network: FeatureNetwork, data: FeatureData) -> dict[str, Any]:
    """Shares of correct classes (and their mean) and rank correlations of targets, on patients that trained nothing."""
    with torch.inference_mode():
        outputs = [network(images) for images in data.images.split(64)]
    correct = (torch.cat([logits for _, logits, _ in outputs]).argmax(1) == data.classes).float()
    shares = {
        name: float(correct[data.classes == i].mean())
        for i, name in enumerate(network.classes)
        if (data.classes == i).any()
    }
    predicted = torch.cat([numbers for _, _, numbers in outputs]).numpy()
    ranks = {}
    for i, name in enumerate(network.targets):
        defined = np.isfinite(data.targets[:, i].numpy())
        if defined.sum() > 2 and np.ptp(data.targets[defined, i].numpy()) > 0:
            ranks[name] = round(float(stats.spearmanr(predicted[defined, i], data.targets[defined, i]).statistic), 3)
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
    batch: Tensor,
    spread: tuple[Tensor, Tensor],
    weights: Tensor,
) -> Tensor:
    """Cross entropy with classes weighted evenly, plus the mean Huber loss of the known targets."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, logits, numbers = network(images)
    scaled = (data.targets[batch] - spread[0]) / spread[1]
    known = torch.isfinite(scaled)
    numeric = functional.smooth_l1_loss(numbers.float()[known], scaled[known])
    return functional.cross_entropy(logits.float(), data.classes[batch], weight=weights) + _TARGET_WEIGHT * numeric


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
    shifted = [image[:, r : r + size, c : c + size] for image, (r, c) in zip(padded, starts, strict=True)]
    images = torch.stack(shifted)
    blurred = functional.avg_pool2d(functional.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
    images = torch.where(torch.rand(count, 1, 1, 1, generator=draw) < 0.25, blurred, images)
    noise, level = torch.rand(2, count, 1, 1, 1, generator=draw)
    images = images + torch.randn(images.shape, generator=draw) * noise * _NOISE_HU * _UNIT_PER_HU
    images = images + (level * 2 - 1) * _LEVEL_HU * _UNIT_PER_HU
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _scale_features(network: FeatureNetwork, images: Tensor) -> None:
    with torch.inference_mode():
        raw = torch.cat([network.raw(batch) for batch in images.split(64)])
    network.feature_mean.copy_(raw.mean(0))
    network.feature_spread.copy_(raw.std(0).clamp(min=1e-3))


def _nodule_targets(samples: Samples, cohort: Path) -> FeatureTargets:
    """Ratings of each nodule from `nodules.csv`, log2 of its diameter, and its HU.

    Raises:
        InputError: when the table lacks a rating's column.
    """
    table = pd.read_csv(cohort / "nodules.csv", dtype={"nodule_id": str}).set_index("nodule_id")
    if missing := sorted(set(_RATINGS) - set(table.columns)):
        raise InputError(f"{cohort / 'nodules.csv'}: expected columns {missing}. Prepare the cohort again.")
    targets: FeatureTargets = {name: table.loc[list(samples.names), name].to_numpy(np.float64) for name in _RATINGS}
    inside = samples.mask >= 0.5
    area = np.maximum(inside.sum(axis=(1, 2)), 1)
    hu = samples.hu.astype(np.float32)
    mean = (hu * inside).sum(axis=(1, 2)) / area
    square = (hu**2 * inside).sum(axis=(1, 2)) / area
    return targets | {
        "log2_diameter": np.log2(np.maximum(samples.diameter_mm, 1.0)),
        "mean_hu": mean.astype(np.float64),
        "spread_hu": np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float64),
        "solid_fraction": ((samples.hu > SOLID_HU) & inside).sum(axis=(1, 2)) / area,
    }


def _lung_targets(samples: Samples) -> FeatureTargets:
    """The lung mask's share of each of 4 x 4 fields, tissues' shares, and structure in the lungs at three scales."""
    side = samples.hu.shape[-1] // _FIELDS
    # Named axes: rows and columns of fields, and of pixels within a field.
    fields = reduce(
        samples.mask[:, : side * _FIELDS, : side * _FIELDS].astype(np.float32),
        "n (row h) (column w) -> n (row column)",
        "mean",
        row=_FIELDS,
        column=_FIELDS,
    )
    targets: FeatureTargets = {
        f"lung_{i}": column.astype(np.float64) for i, column in enumerate(rearrange(fields, "n f -> f n"))
    }
    for name, (low, high) in _TISSUES_HU.items():
        targets[name] = ((samples.hu >= low) & (samples.hu < high)).mean(axis=(1, 2))
    rows = [_structure(hu, mask >= 0.5) for hu, mask in zip(samples.hu, samples.mask, strict=True)]
    names = ("mean_hu", "fine", "middle", "coarse")
    return targets | {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _lung_classes(samples: Samples) -> LungPlaces:
    """Which third of the cohort's slices of its series each slice lies in: 0 lower, 1 middle, 2 upper."""
    places = [name.rpartition("_") for name in samples.names]
    series = np.array([head for head, _, _ in places], dtype=object)
    index = np.array([int(tail) for _, _, tail in places])
    thirds = np.zeros(len(index), np.int64)
    for name in set(series):
        own = series == name
        low, high = index[own].min(), index[own].max()
        thirds[own] = np.minimum((index[own] - low) * 3 // max(high - low + 1, 1), 2)
    return thirds


def _structure(hu: np.ndarray, lung: np.ndarray) -> tuple[float, float, float, float]:
    """Mean HU in the lung, and log of the spread of three bands in it, fine (noise) to coarse (vessels)."""
    inside = ndimage.binary_erosion(lung, iterations=_LUNG_MARGIN_PX)
    if not inside.any():
        return float("nan"), float("nan"), float("nan"), float("nan")
    plane = hu.astype(np.float32)
    blurred = [plane, *(ndimage.gaussian_filter(plane, sigma) for sigma in _BAND_SIGMAS_PX)]
    bands = [np.log(max(float((a - b)[inside].std()), 1.0)) for a, b in pairwise(blurred)]
    return float(plane[inside].mean()), bands[0], bands[1], bands[2]


def _sources(cohort: Path, kind: SampleKind, split: str) -> frozenset[str]:
    return frozenset(str(entry.get("source")) for entry in Cohort.open(cohort).entries(kind, split))
