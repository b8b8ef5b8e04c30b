"""Opens MONAI bundles: the one place where `lungsynth` meets their code, through MONAI's `ConfigParser` alone.

A bundle is the folder `<bundles_dir>/<name>_bundle`. Its package is found through its absolute root on `sys.path`,
which `ConfigParser` needs for `_target_`. Python keeps one package a name for the whole process, so a second folder
that brings the same package is refused here; it would silently get the classes of the first.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from lungsynth.errors import InputError

__all__ = [
    "Weights",
    "bundle_root",
    "open_bundle",
    "read_weights",
    "read_weights_file",
    "resolved_config",
    "train_bundle",
]

_REMEDY = "Give --bundles a folder that holds lung_seg_bundle, wcapsgan_bundle and cyclegan_bundle with their weights."


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A weights file and what its sidecar says of it.

    Args:
        path: `models/<file>` of the bundle, or a file elsewhere.
        sha256: hex digest of the file, equal to the sidecar's.
        sidecar: content of `<stem>.json` (contract C6.1); empty where there is none.
    """

    path: Path
    sha256: str
    sidecar: Mapping[str, Any]


def bundle_root(bundles_dir: Path, name: str) -> Path:
    """Absolute root of the bundle `name` (without `_bundle`).

    Raises:
        InputError: when the folder or its `configs/inference.json` is absent.
    """
    root = Path(bundles_dir).absolute() / f"{name}_bundle"
    if not (root / "configs" / "inference.json").is_file():
        raise InputError(
            f"{bundles_dir}: expected the bundle {root.name} with configs/inference.json, found none. {_REMEDY}"
        )
    return root


def read_weights(bundles_dir: Path, name: str, *, file: str = "model.pt") -> Weights:
    """Hashes `models/<file>` and compares it with its sidecar, without opening the network.

    Raises:
        InputError: when the file is missing, or is not the one that its sidecar describes.
    """
    root = bundle_root(bundles_dir, name)
    path = root / "models" / file
    if not path.is_file():
        raise InputError(f"{path}: expected the weights of {root.name}, found no such file. {_REMEDY}")
    return read_weights_file(path)


def read_weights_file(path: Path) -> Weights:
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
    return Weights(path=path, sha256=sha256, sidecar=sidecar)


def resolved_config(
    bundles_dir: Path,
    name: str,
    *,
    configs: Sequence[str] = ("inference.json",),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of the bundle's configs, later ones on top, with `overrides`; `bundle_root` stays as the file has it."""
    return dict(_parser(bundle_root(bundles_dir, name), configs, overrides or {}).get())


def open_bundle(
    bundles_dir: Path,
    name: str,
    *,
    component: str = "sampler",
    configs: Sequence[str] = ("inference.json",),
    weights: str | Path = "model.pt",
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Builds one component of a bundle (contract C6.5).

    Args:
        bundles_dir: folder of the bundles.
        name: `lung_seg`, `wcapsgan` or `cyclegan`.
        component: id in the configs, e.g. `segmenter`, `sampler`, `enhancer`.
        configs: files of `configs/`, later ones on top.
        weights: a name is a file of `models/`, which the configs themselves refer to; a `Path` is a file anywhere,
            handed to the configs as `ckpt_path`. Either is checked against its sidecar and `network_def`.
        overrides: ids to replace, e.g. `{"network_batch_size": 8}`.

    Raises:
        InputError: naming the file, when the bundle, its weights, the component or a unique package is missing, or the
            weights are of another network.
    """
    root = bundle_root(bundles_dir, name)
    own = {"bundle_root": str(root)}
    if isinstance(weights, Path):
        weights_path = read_weights_file(weights.absolute()).path
        own["ckpt_path"] = str(weights_path)
    else:
        weights_path = read_weights(bundles_dir, name, file=weights).path
    _expose_packages(root)
    parser = _parser(root, configs, {**own, **(overrides or {})})
    if component not in parser:
        raise InputError(
            f"{root / 'configs' / configs[-1]}: expected an entry `{component}`, got {sorted(parser.get())}."
        )
    try:
        _check_fit(parser, weights_path)
        return parser.get_parsed_content(component)
    except Exception as error:  # MONAI wraps whatever the bundle raised in a RuntimeError; the cause tells which
        raise _mendable(error, weights_path) or error from error


def train_bundle(
    bundles_dir: Path, name: str, *, configs: Sequence[str] = ("train.json",), overrides: Mapping[str, Any]
) -> None:
    """Runs a bundle's training here, as `monai.bundle run` would; results go to its `output_dir`.

    Args:
        bundles_dir: folder of the bundles.
        name: `lung_seg`, `wcapsgan` or `cyclegan`.
        configs: files of `configs/`, later ones on top.
        overrides: ids to replace.

    Raises:
        InputError: naming the bundle, when its package is not unique, or it refuses its data or settings.
    """
    root = bundle_root(bundles_dir, name)
    _expose_packages(root)
    workflow = ConfigWorkflow(
        config_file=[str(root / "configs" / config) for config in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **{"bundle_root": str(root), **overrides},
    )
    try:
        for step in (workflow.initialize, workflow.run, workflow.finalize):
            step()
    except Exception as error:  # as above
        raise _mendable(error, root / "configs" / configs[-1]) or error from error


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON object, got {error}. Copy it again from its training.") from error


def _parser(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    files = [root / "configs" / config for config in configs]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"{missing[0]}: no such config; {root.name} has {sorted(p.name for p in files[0].parent.glob('*.json'))}."
        )
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except ValueError as error:
        raise InputError(f"{files[-1]}: expected JSON, got {error}.") from error
    if (metadata := root / "configs" / "metadata.json").is_file():
        parser.read_meta(str(metadata))
    parser.update(dict(overrides))
    return parser


def _expose_packages(root: Path) -> None:
    """Puts `root` on `sys.path` and makes sure that each of its packages will come from there."""
    if str(root) not in sys.path:
        # At the end, so that no folder of a bundle can hide an installed package.
        sys.path.append(str(root))
        importlib.invalidate_caches()
    for package in sorted({file.parent.name for file in root.glob("*/*.py")}):
        spec = importlib.util.find_spec(package)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places != [(root / package).resolve()]:
            raise InputError(
                f"{root / package}: the package `{package}` is already taken by {[str(place) for place in places]} in "
                "this process. Open the two bundles in processes of their own, or rename one package."
            )


def _check_fit(parser: ConfigParser, path: Path) -> None:
    """Compares names and shapes with `network_def`, since a loader may skip what does not match without a word."""
    if "network_def" not in parser:
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    found = {key: tuple(value.shape) for key, value in state.items()}
    needed = {key: tuple(value.shape) for key, value in parser.get_parsed_content("network_def").state_dict().items()}
    if odd := sorted(set(found.items()) ^ set(needed.items())):
        key = odd[0][0]
        raise InputError(
            f"{path}: weights for another network: `{key}` has shape {needed.get(key, 'none')} in network_def and "
            f"{found.get(key, 'none')} in the file. Use weights trained with this bundle's configs."
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _mendable(error: Exception, weights: Path) -> InputError | None:
    causes = list(_causes(error))
    if found := next((cause for cause in causes if isinstance(cause, InputError)), None):
        return found
    text = " ".join(str(cause) for cause in causes)
    if any(
        sign in text
        for sign in ("state_dict", "size mismatch", "Missing key(s)", "UnpicklingError", "PytorchStreamReader")
    ):
        return InputError(
            f"{weights}: weights for another network, or a damaged file ({str(causes[-1]).splitlines()[0]}). "
            "Use weights trained with this bundle's configs."
        )
    told = next((cause for cause in causes if isinstance(cause, ValueError | FileNotFoundError)), None)
    return InputError(f"{weights.parents[1]}: the bundle refuses: {told}") if told else None
