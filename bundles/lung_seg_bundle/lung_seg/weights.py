# SPDX-License-Identifier: Apache-2.0
"""Reading weights, with a clear word when they are those of another network."""

import pickle
from pathlib import Path

import torch
from torch import nn

__all__ = ["load_weights", "start_from"]


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Loads a plain state dict into a network.

    Args:
        network: changed in place.
        path: file of the state dict.

    Returns:
        The same network, in evaluation mode.

    Raises:
        FileNotFoundError: when the file is not there.
        ValueError: when it holds something else, or the weights of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no weights there. Train the bundle and copy its model.pt to this place, or name a file with "
            "--ckpt_path."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: not a weight file ({error}). Give a model.pt written by this bundle's training."
        ) from error
    problem = _mismatch(network, state)
    if problem:
        raise ValueError(
            f"{path}: these are the weights of another network than {type(network).__name__} as configured: {problem}. "
            "Give weights of this bundle, with the --channels and --growth_rate of their training (see model.json)."
        )
    network.load_state_dict(state)
    return network.eval()


def start_from(network: nn.Module, path: str | Path | None) -> nn.Module:
    """A network for training: with the weights of an earlier one, or as it is when `path` is None.

    Raises:
        FileNotFoundError: see `load_weights`.
        ValueError: see `load_weights`.
    """
    return (network if path is None else load_weights(network, path)).train()


def _mismatch(network: nn.Module, state: object) -> str | None:
    """What differs first between the network's state and a file's content; None when nothing does."""
    if not isinstance(state, dict):
        return f"the file holds a {type(state).__name__}, not a state dict"
    own = network.state_dict()
    for name in [*own, *state]:
        if name not in state:
            return f"'{name}' is missing"
        if name not in own:
            return f"'{name}' is not part of the network"
        if getattr(state[name], "shape", None) != own[name].shape:
            got = getattr(state[name], "shape", type(state[name]).__name__)
            return f"'{name}' is {tuple(own[name].shape)} in the network and {got} in the file"
    return None
