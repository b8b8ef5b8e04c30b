# SPDX-License-Identifier: Apache-2.0
"""Weights into networks, with an error that helps when they do not fit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["load_network", "start_from"]


def start_from(networks: Sequence[nn.Module], weights: str | Path) -> None:
    """Gives generators the weights of an earlier training to begin with; errors as in `load_network`.

    The earlier training may have had a smaller size, with the same widths at its resolutions: the generator then grows.
    What its new resolutions add to the output is nothing at first (growing resolution, after Karras et al., 2018).
    """
    for network in networks:
        load_network(network, weights, next(network.parameters()).device, grow=True)


def load_network(
    network: nn.Module,
    weights: str | Path,
    device: torch.device | str = "cpu",
    *,
    grow: bool = False,
    categories: Sequence[str] | None = None,
) -> nn.Module:
    """Loads a plain state dict into a network, for inference.

    Args:
        network: of the same settings as in training.
        weights: the file.
        device: where the network goes.
        grow: see `start_from`.
        categories: that samples will be named by; those of the sidecar, where there is one that states them.

    Returns:
        The network itself, in evaluation mode.

    Raises:
        FileNotFoundError: when there are no weights.
        ValueError: when they belong to another network, or were trained with other categories.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the weights of {type(network).__name__}, found no file. Train them, or pass --weights."
        )
    if categories is not None:
        _check_categories(path, categories)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({**_grown(network, state), **state} if grow else state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected weights of a {type(network).__name__} with the settings of this config, got others "
            "(size, channels, latent_dim and categories must be those of the training)."
        ) from error
    return network.to(device).eval()


def _check_categories(weights: Path, categories: Sequence[str]) -> None:
    """Networks count categories; only the sidecar says what they are."""
    sidecar = weights.with_suffix(".json")
    trained = json.loads(sidecar.read_text()).get("categories") if sidecar.is_file() else None
    if trained is not None and list(trained) != list(categories):
        raise ValueError(
            f"{weights}: trained with the categories {list(trained)}, but the config names {list(categories)}. "
            f'Pass --categories "{list(trained)}".'
        )


def _grown(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own values of those resolutions that `state` does not reach; their heads give 0."""
    known = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    return {
        key: torch.zeros_like(value) if key.startswith("heads.") else value
        for key, value in network.state_dict().items()
        if key.startswith(("blocks.", "heads.")) and key.split(".")[1] not in known
    }
