"""Packages the bundles as clean folders, and zips for a model zoo, with the repository's weights or a training's.

A training's weights may be of other categories or sizes than the configs in the repository say; their sidecars tell,
and the configs of the packaged bundle are written accordingly.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lungsynth.config import default_bundles
from lungsynth.errors import InputError

__all__ = ["package_bundles", "write_sidecar_settings", "zip_bundle"]

# Of wcapsgan_bundle: the weights of each sample type, and the configs that say what they are, the last one of its own.
_SAMPLE_TYPES = {
    "nodule": ("model.pt", ("inference.json",)),
    "cube": ("model_cube.pt", ("inference.json", "inference_cube.json")),
    "lung": ("model_lung.pt", ("inference.json", "inference_lung.json")),
    "slice": ("model_slice.pt", ("inference.json", "inference_lung.json", "inference_slice.json")),
}
_STATED = ("categories", "category_key", "category_edges", "spacing_mm")  # by a sidecar, beside its `settings`
# Ids in the configs of the settings of older sidecars, those that say `layer` for `sample_type`.
_FORMER_SETTINGS = {
    "size": "size",
    "latent_dim": "network_def#latent_dim",
    "channels": "network_def#channels",
    "widest": "network_def#max_width_multiplier",
    "zoomed": "frame#use_canvas",
    "flat_background": "frame#flat_background",
    "edge_px": "frame#edge_px",
}
_LEFTOVERS = shutil.ignore_patterns("__pycache__", "runs", "eval", "mlruns", "*.part", ".*.part_*", ".DS_Store")


def package_bundles(
    out: Path, *, weights: Sequence[str] = (), bundles: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Copies each bundle to `out` and puts the weights of trainings into its `models/`.

    Args:
        out: folder for the packaged bundles.
        weights: `NAME=RUN`: take the weights of bundle NAME from RUN, a training's output_dir.
        bundles: folder of the bundles; those of this installation when None.
        overwrite: replace bundles that are already in `out`.

    Raises:
        InputError: when a bundle stands there already, or a training's weights cannot be used.
    """
    bundles = bundles or default_bundles()
    runs = [_parse_weights(text, bundles) for text in weights]
    folders = []
    for source in sorted(bundles.glob("*_bundle")):
        target = out / source.name
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists; choose another `out` or add `overwrite`.")
        temporary = out / f"{source.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, ignore=_LEFTOVERS)
        for run in (run for name, run in runs if f"{name}_bundle" == source.name):
            _take_weights(run, temporary / "models")
        write_sidecar_settings(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


def write_sidecar_settings(bundle: Path) -> None:
    """Writes what the sidecars say of categories and sizes into the inference configs, where these say otherwise.

    The config of a sample type changes what later ones inherit; so those get what they had before, as entries of their
    own.

    Raises:
        InputError: when weights are not those that the configs of their sample type open.
    """
    configs, stated = bundle / "configs", _stated(bundle / "models")
    types = {name: files for name, (_, files) in _SAMPLE_TYPES.items() if (configs / files[-1]).is_file()}
    names = {*_STATED, *(name for facts in stated.values() for name in facts)}
    before = {sample_type: _stacked(configs, files) for sample_type, files in types.items()}
    for sample_type, files in types.items() if stated else ():
        own = {name: value for name, value in before[sample_type].items() if name in names}
        own |= stated.get(sample_type, {})
        inherited = _stacked(configs, files)
        changed = {name: value for name, value in own.items() if inherited.get(name) != value}
        _update(configs / files[-1], changed)
        if sample_type == "nodule" and changed:
            _update_format(configs / "metadata.json", {**inherited, **changed})


def zip_bundle(folder: Path) -> Path:
    """Zips a bundle as the model zoo names it."""
    version = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    name = folder.parent / f"{folder.name}_v{version}"
    return Path(shutil.make_archive(str(name), "zip", root_dir=folder.parent, base_dir=folder.name))


def _parse_weights(text: str, bundles: Path) -> tuple[str, Path]:
    name, _, run = text.partition("=")
    if not run or not (bundles / f"{name}_bundle").is_dir():
        known = sorted(folder.name.removesuffix("_bundle") for folder in bundles.glob("*_bundle"))
        raise InputError(f"`weights` needs NAME=RUN with NAME one of {known}, got {text!r}.")
    return name, Path(run)


def _take_weights(run: Path, models: Path) -> None:
    files = sorted(run.glob("model*.pt"))
    if not files:
        raise InputError(f"{run}: no model*.pt; give the output_dir of a training that has finished an epoch.")
    for weights in files:
        sidecar = weights.with_suffix(".json")
        if not sidecar.is_file():
            raise InputError(f"{weights}: its sidecar {sidecar.name} is missing; weights never travel without it.")
        models.mkdir(exist_ok=True)
        shutil.copy2(weights, models / weights.name)
        shutil.copy2(sidecar, models / sidecar.name)


def _stated(models: Path) -> dict[str, dict[str, Any]]:
    """By sample type, what the sidecar of its weights states, by the ids of the configs."""
    stated = {}
    for sidecar in sorted(models.glob("*.json")):
        facts = _read_sidecar(sidecar)
        if (sample_type := facts.get("sample_type")) not in _SAMPLE_TYPES:
            continue
        file, network = _SAMPLE_TYPES[sample_type][0], str(facts["network"])
        if ".baselines." in network:
            raise InputError(
                f"{sidecar}: weights of {network}, a method to compare with, which a bundle does not open by itself. "
                "Give it to `evaluate.py --weights` as nodules_NAME.pt or lungs_NAME.pt."
            )
        if sidecar.stem != Path(file).stem:
            raise InputError(
                f"{sidecar}: weights of sample_type {sample_type} are {file}, got {sidecar.stem}.pt. Rename both files."
            )
        stated[sample_type] = {name: facts[name] for name in _STATED if name in facts} | _entries(facts["settings"])
    return stated


def _read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar in the present names, whichever it has."""
    facts = {"settings": {}, **_read(path)}
    if "layer" in facts:
        former = facts["settings"].items()
        facts["settings"] = {_FORMER_SETTINGS[name]: value for name, value in former if name in _FORMER_SETTINGS}
        facts["sample_type"] = facts.pop("layer")
    return facts


def _stacked(configs: Path, files: Sequence[str]) -> dict[str, Any]:
    """Entries of configs by their ids, later ones on top."""
    return {name: value for file in files for name, value in _entries(_read(configs / file)).items()}


def _entries(content: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Entries of a config by their ids, such as `network_def#channels`."""
    entries: dict[str, Any] = {}
    for name, value in content.items():
        entries |= _entries(value, f"{parent}{name}#") if isinstance(value, dict) else {f"{parent}{name}": value}
    return entries


def _update(path: Path, entries: Mapping[str, Any]) -> None:
    if entries:
        content = _read(path)
        for name, value in entries.items():
            _set(content, name, value)
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    """Sets an entry in its group where the file has that, else by its id."""
    group, _, rest = name.partition("#")
    if rest and isinstance(content.get(group), dict):
        _set(content[group], rest, value)
    else:
        content[name] = value


def _update_format(metadata: Path, config: Mapping[str, Any]) -> None:
    """States the inputs and outputs of the nodules' network."""
    facts = _read(metadata)
    inputs, outputs = (facts["network_data_format"][side] for side in ("inputs", "outputs"))
    inputs["image"]["num_channels"] = config["network_def#latent_dim"]
    inputs["category"]["value_range"] = [0, max(len(config["categories"]), 1) - 1]
    outputs["pred"]["spatial_shape"] = [config["size"]] * 2
    metadata.write_text(json.dumps(facts, indent=4) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
