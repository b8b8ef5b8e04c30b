"""The domain's feature network: a small CNN that learnt what radiologists say of a nodule, or where a lung slice lies.

Its features are the layer before the heads, scaled by their mean and spread over the training samples, so that a
distance has the unit of that spread, and saturating at two spreads. They are few (64), because FID with F features
needs many more than F samples.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lungsynth.bundles import read_weights_file
from lungsynth.ct.write import write_atomically
from lungsynth.errors import InputError

__all__ = ["FeatureNetwork", "load_feature_network", "save_feature_network"]


class FeatureNetwork(nn.Module):
    """Images (B, 1, S, S) in [-1, 1] -> features (B, F), class logits (B, K), targets (B, T) in units of their spread.

    Args:
        size: S, a multiple of 2 to the number of levels.
        channels: of each level; the first convolution of a level halves the image.
        features: F.
        classes: names of the K classes.
        targets: names of the T numbers that are regressed.
    """

    feature_mean: Tensor
    feature_spread: Tensor

    def __init__(
        self, *, size: int, channels: Sequence[int], features: int, classes: Sequence[str], targets: Sequence[str]
    ) -> None:
        super().__init__()
        self.settings = {
            "size": size,
            "channels": list(channels),
            "features": features,
            "classes": list(classes),
            "targets": list(targets),
        }
        self.size, self.classes, self.targets = size, tuple(classes), tuple(targets)
        levels, width = [], 1
        for count in channels:
            levels += [_block(width, count, stride=2), _block(count, count, stride=1)]
            width = count
        self.levels = nn.Sequential(*levels)
        self.to_features = nn.Linear(2 * width, features)
        self.heads = nn.Sequential(nn.SiLU(), nn.Linear(features, len(classes) + len(targets)))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_spread", torch.ones(features))

    def raw(self, x: Tensor) -> Tensor:
        """Features before scaling (B, F), from each channel's mean and spread over the image."""
        maps = self.levels(x).flatten(2).float()
        return self.to_features(torch.cat([maps.mean(-1), maps.std(-1)], dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, class logits and targets."""
        raw = self.raw(x)
        answers = self.heads(raw)
        count = len(self.classes)
        # Saturating: a few huge nodules would else decide every distance, and every interval.
        scaled = 2 * torch.tanh((raw - self.feature_mean) / self.feature_spread / 2)
        return scaled, answers[:, :count], answers[:, count:]


def save_feature_network(path: Path, network: FeatureNetwork, facts: Mapping[str, Any]) -> None:
    """Writes a state dict of half precision and its sidecar (contract C6.1, with `settings` beside).

    Args:
        path: `NAME.pt`; the sidecar is `NAME.json`.
        network: trained.
        facts: the rest of the sidecar.
    """
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    sidecar = {
        "network": f"{FeatureNetwork.__module__}.{FeatureNetwork.__name__}",
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        **facts,
        "settings": network.settings,
    }
    write_atomically(path, buffer.getvalue())
    write_atomically(path.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())


def load_feature_network(path: Path) -> tuple[FeatureNetwork, Mapping[str, Any]]:
    """Reads a network and its sidecar.

    Raises:
        InputError: when a file is missing or damaged, or is of another network.
    """
    weights = read_weights_file(path)
    try:
        network = FeatureNetwork(**weights.sidecar["settings"])
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
        network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
    except Exception as error:  # pickle, zip and torch raise what they like on a damaged file
        raise InputError(
            f"{path}: expected a feature network with its sidecar ({str(error).splitlines()[0]}). Copy both from "
            "lungsynth/likeness/weights, or train them with scripts/train_features.py."
        ) from error
    return network.eval(), weights.sidecar


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    # Batch norm, not group norm: a sample's own level and contrast are what is to be judged.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )
