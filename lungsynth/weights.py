"""Weight files and their sidecars: read, and held against what they are about to be used as."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungsynth.errors import InputError
from lungsynth.io.stored import SHA256, anything, lists, mappings, numbers, objects, read_json, texts

if TYPE_CHECKING:
    import torch

__all__ = ["WeightsInfo", "check_categories", "check_fit", "read_state", "read_weights_file"]

_SIDECAR = objects(
    {},
    {
        "sha256": texts(SHA256),
        "network": texts(),
        "categories": lists(texts()),
        "category_key": texts(),
        "category_edges": lists(numbers()),
        "settings": mappings(anything),
        "data": lists(anything),
    },
)
_MEANING = ("categories", "category_key", "category_edges")


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """A weights file and what its sidecar says of it.

    Args:
        path: `models/<file>` of the bundle, or a file elsewhere.
        sha256: hex digest of the file, equal to the sidecar's.
        sidecar: content of `<stem>.json` ("Weights and sidecars" in docs/reference/bundle_interface.md); empty where
            there is none.
    """

    path: Path
    sha256: str
    sidecar: Mapping[str, Any]


def read_weights_file(path: Path) -> WeightsInfo:
    """Hashes a weights file, wherever it lies, and compares it with the sidecar beside it.

    Raises:
        InputError: when the file is missing, or is not the one that its sidecar describes.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a weights file, found none. Copy it here with its sidecar, or train it.")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar = _read_sidecar(path.with_suffix(".json"))
    if sidecar.get("sha256", sha256) != sha256:
        raise InputError(
            f"{path}: its SHA-256 is {sha256[:16]}, but its sidecar {path.with_suffix('.json').name} describes weights "
            f"with {str(sidecar['sha256'])[:16]}. Copy both files from the same training."
        )
    return WeightsInfo(path=path, sha256=sha256, sidecar=sidecar)


def check_categories(weights: WeightsInfo, config: Mapping[str, Any]) -> None:
    """Compares what the sidecar says of the categories with a bundle's config, where both say something.

    A network only counts its categories, so weights of others would fit, and what they make would be called by wrong
    names.

    Raises:
        InputError: naming both.
    """
    for name in _MEANING:
        trained, named = weights.sidecar.get(name), config.get(name)
        if trained is not None and named is not None and list(trained) != list(named):
            raise InputError(
                f"{weights.path}: trained with {name} {trained}, but the bundle's config says {named}. Export it with "
                "`lungsynth package --weights`, which writes the config of its weights, or use others."
            )


def read_state(path: Path) -> dict[str, "torch.Tensor"]:
    """Reads a plain state dict onto the CPU.

    Raises:
        InputError: when the file is damaged or holds something else.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: not a file of weights, or a damaged one ({reason}). Copy it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a plain state dict, got a {type(state).__name__}. Give a model.pt.")
    if odd := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise InputError(
            f"{path}: `{odd[0]}` holds values that are no numbers. The training failed; use other weights."
        )
    return state


def check_fit(path: Path, state: Mapping[str, "torch.Tensor"], network: Mapping[str, "torch.Tensor"]) -> None:
    """Compares names and shapes with a network's, since a loader may skip what does not match without a word.

    Args:
        path: of the weights, for the message.
        state: content of that file.
        network: state dict of the network that is to get them.

    Raises:
        InputError: naming the first that does not fit.
    """
    in_file = {key: tuple(value.shape) for key, value in state.items()}
    in_network = {key: tuple(value.shape) for key, value in network.items()}
    if odd := sorted(set(in_file.items()) ^ set(in_network.items())):
        key = odd[0][0]
        raise InputError(
            f"{path}: weights for another network: `{key}` has shape {in_network.get(key, 'none')} in network_def and "
            f"{in_file.get(key, 'none')} in the file. Use weights trained with this bundle's configs, or export those "
            "of a training with `lungsynth package --weights`."
        )


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    remedy = "Copy it again from its training."
    return dict(read_json(path, _SIDECAR, what="the sidecar of weights", remedy=remedy))
