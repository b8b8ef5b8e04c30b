"""Training detectors on windows of few patients, with and without inserted nodules, and judging them on others.

The networks look at one slice. `plain` is MONAI's U-Net, which knows nothing of this project, `small` is the same with
half of its channels; `dense_unet` is the network of lung_seg_bundle. All arms take the same number of steps, batches
and augmentation; what an arm adds takes the place of as many real windows, whatever their number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from evaluation.utility.windows import TrainingWindows
from lungsynth.cohort.patches import IGNORED, WINDOW_PX
from lungsynth.errors import InputError
from lungsynth.hounsfield import NETWORK_WINDOW, Label
from lungsynth.types import HuVolume

__all__ = ["NETWORKS", "DetectionTraining", "NetworkName", "WindowDetector", "train_detector"]

NetworkName = Literal["plain", "small", "dense_unet"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

# Augmentation: what differs between scans.
_GAIN = 0.04
_OFFSET_HU = 20.0  # standard deviation
_NOISE_HU = 30.0  # standard deviation at most
_NOISE_SIGMA_PX = 0.6
_NODULE_WEIGHT = 4.0  # of its pixels in the cross-entropy, beside 1 for all
_CHANNELS = {"plain": (16, 32, 64, 96, 128), "small": (8, 16, 32, 48, 64)}
_STRIDES = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class DetectionTraining:
    """The budget of a training, the same for all arms.

    Args:
        network: one of `NETWORKS`.
        steps: of the optimiser.
        batch_size: of a step.
        size_px: side of what is cut out of the windows at random.
        learning_rate: at the top of one cycle.
        augment: turn, mirror, and change level and noise.
    """

    network: NetworkName = "plain"
    steps: int = 1500
    batch_size: int = 16
    size_px: int = 96
    learning_rate: float = 2e-3
    augment: bool = True

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise InputError(f"`network` must be one of {', '.join(NETWORKS)}, got {self.network}.")
        if self.steps < 1 or self.batch_size < 1 or not 16 <= self.size_px <= WINDOW_PX or self.size_px % 16:
            raise InputError(
                f"`steps` and `batch_size` must be at least 1, `size_px` a multiple of 16 up to {WINDOW_PX}, "
                f"got {asdict(self)}."
            )


class WindowDetector:
    """A trained network as a detector (`lungsynth.types.CandidateDetector`) that gives a map and no candidates."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    def __call__(self, hu: HuVolume, spacing_mm: tuple[float, float, float], /) -> Mapping[str, np.ndarray]:
        """`nodule`, the probability of each pixel, slice by slice; and an empty table."""
        with torch.inference_mode():
            logits = self.network(_unit(np.asarray(hu)[:, None]))
        probability = torch.sigmoid(logits)[:, 0].numpy()
        return {"candidates": np.empty((0, 5)), "nodule": probability}


def train_detector(
    real: TrainingWindows,
    training: DetectionTraining,
    *,
    seed: int,
    added: TrainingWindows | None = None,
    share: float = 0.0,
    network: nn.Module | None = None,
) -> WindowDetector:
    """Trains from scratch; the same arguments give the same detector on one machine.

    Args:
        real: windows of the patients.
        training: the budget.
        seed: of start, draws and augmentation.
        added: other windows.
        share: of them in a batch, on average.
        network: (B, 1, H, W) to logits (B, 1, H, W), untrained; MONAI's U-Net of the budget's kind when None.
    """
    if share > 0 and added is None:
        raise InputError(f"`share` is {share:g}, but no windows are added.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network or UNet(2, 1, 1, _CHANNELS[training.network], _STRIDES, num_res_units=1, norm="batch")
        net = net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(net.parameters(), training.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.steps)
        draw = _Draws(real, added, share, training, np.random.default_rng(seed))
        for _ in trange(training.steps, desc="training", unit="step", leave=False):
            image, label = draw.batch()
            loss = _loss(net(image), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return WindowDetector(net)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Batches of pieces of windows, augmented."""

    real: TrainingWindows
    added: TrainingWindows | None
    share: float
    training: DetectionTraining
    rng: np.random.Generator

    def batch(self) -> tuple[Tensor, Tensor]:
        pieces = [self._piece() for _ in range(self.training.batch_size)]
        image, label = (np.stack([piece[part] for piece in pieces])[:, None] for part in (0, 1))
        return _unit(image), torch.from_numpy(label)

    def _piece(self) -> tuple[np.ndarray, np.ndarray]:
        rng, size = self.rng, self.training.size_px
        windows = self.added if self.added is not None and rng.random() < self.share else self.real
        index = rng.integers(len(windows))
        row, column = (int(value) for value in rng.integers(0, WINDOW_PX - size + 1, 2))
        at = (index, slice(row, row + size), slice(column, column + size))
        hu, label = windows.hu[at].astype(np.float32), windows.label[at]
        return _augmented(hu, label, rng) if self.training.augment else (hu, label)


def _augmented(hu: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    turns = int(rng.integers(4))
    hu, label = np.rot90(hu, turns), np.rot90(label, turns)
    if rng.random() < 0.5:
        hu, label = hu[:, ::-1], label[:, ::-1]
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(white, _NOISE_SIGMA_PX) * rng.uniform(0, _NOISE_HU)
    return hu * rng.uniform(1 - _GAIN, 1 + _GAIN) + rng.normal(0, _OFFSET_HU) + noise, label


def _unit(hu: np.ndarray) -> Tensor:
    """HU (B, 1, H, W) to [-1, 1]."""
    image = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))
    return NETWORK_WINDOW.to_unit(image).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy and Dice of the nodule, where somebody can tell."""
    known, target = (label != IGNORED).float(), (label == Label.NODULE).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weighted = (entropy * known * (1 + _NODULE_WEIGHT * target)).sum() / known.sum().clamp(min=1)
    probability = torch.sigmoid(logits) * known
    overlap = (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return weighted + 1 - overlap
