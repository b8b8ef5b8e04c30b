# SPDX-License-Identifier: Apache-2.0
"""Weights into networks, with an error that helps when they do not fit."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

__all__ = ["load_network", "start_from"]


def start_from(networks: Sequence[nn.Module], weights: str | Path) -> None:
    """Gives networks the weights of an earlier training to begin with; errors as in `load_network`."""
    for network in networks:
        load_network(network, weights, next(network.parameters()).device)


def load_network(network: nn.Module, weights: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Loads a plain state dict into a network, for inference.

    Args:
        network: of the same settings as in training.
        weights: the file.
        device: where the network goes.

    Returns:
        The network itself, in evaluation mode.

    Raises:
        FileNotFoundError: when there are no weights.
        ValueError: when they belong to another network.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the weights of {type(network).__name__}, found no file. Train them, or pass --weights."
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected weights of a {type(network).__name__} with the settings of this config, got others "
            "(size, channels, latent_dim and categories must be those of the training)."
        ) from error
    return network.to(device).eval()
