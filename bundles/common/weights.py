# SPDX-License-Identifier: Apache-2.0
"""Reading weights into networks, with one error for those that do not fit."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightsMismatch", "load_pretrained", "load_state", "load_weights", "read_state"]

_NAMED = 3  # differences that a message lists
_HINT = "Give the network the settings of their training (model.json beside them)."


class WeightsMismatch(ValueError):  # noqa: N818 what lungsynth knows it by, since each bundle has a copy of the class
    """A file holds something else than the weights of the network that is to get them."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads a plain state dict onto the CPU.

    Raises:
        FileNotFoundError: when there is no such file.
        WeightsMismatch: when the file holds something else, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected weights, found no file. Train the bundle, or give another ckpt_path."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsMismatch(f"{path}: not a file of weights, or a damaged one ({error}). Copy it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsMismatch(f"{path}: expected a plain state dict, got {_content(state)}. Give a model.pt.")
    return state


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, source: str | Path, hint: str = "") -> nn.Module:
    """Gives a network the values of a state dict.

    Args:
        network: changed in place, put into evaluation mode and returned.
        state: all parameters and buffers, by name.
        source: where the state comes from, for the message.
        hint: a sentence for the message: which settings decide over names and shapes.

    Raises:
        WeightsMismatch: naming what the network needs and what is there.
    """
    if odd := list(_differences(network.state_dict(), state)):
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise WeightsMismatch(
            f"{source}: expected the weights of this {type(network).__name__}, got those of another network: "
            f"{'; '.join(odd[:_NAMED])}{more}. {hint or _HINT}"
        )
    network.load_state_dict(state)
    return network.eval()


def load_weights(network: nn.Module, ckpt_path: str | Path, *, hint: str = "") -> nn.Module:
    """Reads a plain state dict into a network, which is put into evaluation mode and returned.

    Args:
        network: changed in place.
        ckpt_path: the file.
        hint: see `load_state`.

    Raises:
        FileNotFoundError: when there is no such file.
        WeightsMismatch: when it does not hold the weights of this network.
    """
    return load_state(network, read_state(ckpt_path), source=ckpt_path, hint=hint)


def load_pretrained(network: nn.Module, pretrained: str | Path | None, *, hint: str = "") -> nn.Module:
    """A network to be trained, in training mode: from the weights of an earlier training, or as it is without a file.

    Raises:
        FileNotFoundError: see `load_weights`.
        WeightsMismatch: see `load_weights`.
    """
    return (network if pretrained is None else load_weights(network, pretrained, hint=hint)).train()


def _differences(needed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[str]:
    for name in dict.fromkeys([*needed, *state]):
        if name not in state:
            yield f"{name!r} {tuple(needed[name].shape)} is missing"
        elif name not in needed:
            yield f"{name!r} {tuple(state[name].shape)} is not part of the network"
        elif state[name].shape != needed[name].shape:
            yield f"{name!r} is {tuple(needed[name].shape)} in the network and {tuple(state[name].shape)} in the file"


def _content(state: Any) -> str:
    return f"a dict with {sorted(map(str, state))[:_NAMED]}" if isinstance(state, dict) else f"a {type(state).__name__}"
