"""Weight files and their sidecars (contract C6.1): read, and held against what they are about to be used as."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungsynth.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["WeightsInfo", "check_categories", "check_fit", "read_weights_file"]

_MEANING = ("categories", "category_key", "category_edges")


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """A weights file and what its sidecar says of it.

    Args:
        path: `models/<file>` of the bundle, or a file elsewhere.
        sha256: hex digest of the file, equal to the sidecar's.
        sidecar: content of `<stem>.json` (contract C6.1); empty where there is none.
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


def check_fit(path: Path, needed: Mapping[str, "torch.Tensor"]) -> None:
    """Compares names and shapes with a network's, since a loader may skip what does not match without a word.

    Raises:
        InputError: naming the first that does not fit.
    """
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    found = {key: tuple(value.shape) for key, value in state.items()}
    shapes = {key: tuple(value.shape) for key, value in needed.items()}
    if odd := sorted(set(found.items()) ^ set(shapes.items())):
        key = odd[0][0]
        raise InputError(
            f"{path}: weights for another network: `{key}` has shape {shapes.get(key, 'none')} in network_def and "
            f"{found.get(key, 'none')} in the file. Use weights trained with this bundle's configs, or export those of "
            "a training with `lungsynth package --weights`."
        )


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON object, got {error}. Copy it again from its training.") from error
