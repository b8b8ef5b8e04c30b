# SPDX-License-Identifier: Apache-2.0
"""Weights into generators: for inference, or to begin a training with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .common.weights import load_state, load_weights, read_state

__all__ = ["load_generator", "load_pretrained"]

_HINT = "Set size, channels, latent_dim and categories as in their training (model.json beside them)."


def load_generator(
    network: nn.Module,
    ckpt_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    categories: Sequence[str] | None = None,
) -> nn.Module:
    """Loads weights into a generator for inference.

    Args:
        network: with the settings of its training; changed in place.
        ckpt_path: a plain state dict.
        device: where the network goes.
        categories: names that samples will get, compared with those of the sidecar where it states any.

    Returns:
        The network itself, in evaluation mode.

    Raises:
        FileNotFoundError: when there are no weights.
        WeightsMismatch: when they belong to another network.
        ValueError: when they were trained with other categories.
    """
    if categories is not None:
        _check_categories(Path(ckpt_path), categories)
    return load_weights(network, ckpt_path, hint=_HINT).to(device)


def load_pretrained(networks: Sequence[nn.Module], pretrained: str | Path) -> None:
    """Gives generators the weights of an earlier training to begin with; errors as in `load_generator`.

    The earlier training may have had another size, with the same widths at the resolutions that both have. A generator
    that grows begins with new resolutions that add nothing to the output (after Karras et al., 2018); of a larger one,
    the resolutions beyond its size are left out.
    """
    state = read_state(pretrained)
    for network in networks:
        own = network.state_dict()
        shared = {key: value for key, value in state.items() if not _is_resolution(key) or key in own}
        load_state(network, {**_new_resolutions(network, shared), **shared}, source=pretrained, hint=_HINT)


def _check_categories(weights: Path, categories: Sequence[str]) -> None:
    """Networks count categories; only the sidecar says what they are."""
    sidecar = weights.with_suffix(".json")
    trained = json.loads(sidecar.read_text(encoding="utf-8")).get("categories") if sidecar.is_file() else None
    if trained is not None and list(trained) != list(categories):
        raise ValueError(
            f"{weights}: trained with the categories {list(trained)}, but the config names {list(categories)}. "
            f"Set categories to {list(trained)}."
        )


def _is_resolution(key: str) -> bool:
    return key.startswith(("blocks.", "heads."))


def _new_resolutions(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own values of those resolutions that `state` does not reach; their heads give 0."""
    reached = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    return {
        key: torch.zeros_like(value) if key.startswith("heads.") else value
        for key, value in network.state_dict().items()
        if _is_resolution(key) and key.split(".")[1] not in reached
    }
