"""Exports the bundles as clean folders, and zips for a model zoo, with the committed weights or those of a training."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
# Of wcapsgan_bundle: the weights of each layer, and the configs that say what they are, the last one of their own.
LAYERS = {
    "nodule": ("model.pt", ("inference.json",)),
    "cube": ("model_cube.pt", ("inference.json", "inference_cube.json")),
    "lung": ("model_lung.pt", ("inference.json", "inference_lung.json")),
    "slice": ("model_slice.pt", ("inference.json", "inference_lung.json", "inference_slice.json")),
}
TOLD = ("categories", "category_key", "category_edges", "spacing_mm")  # by a sidecar, beside the network's `settings`
LEFTOVERS = shutil.ignore_patterns("__pycache__", "runs", "eval", "mlruns", "*.part", ".*.part_*", ".DS_Store")


def main() -> None:
    """Exports, and says where to."""
    args = parse_args()
    try:
        for folder in export(args.out, weights=args.weights, overwrite=args.overwrite):
            print(archive(folder) if args.zip else folder)
    except InputError as error:
        sys.exit(_refuse(error))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported bundles")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="take the weights of bundle NAME (lung_seg, wcapsgan, cyclegan) from RUN, a training's output_dir",
    )
    parser.add_argument("--zip", action="store_true", help="also write <bundle>_v<version>.zip")
    parser.add_argument("--overwrite", action="store_true", help="replace bundles that are already in --out")
    return parser.parse_args()


def export(out: Path, *, weights: list[str], overwrite: bool) -> list[Path]:
    """Copies each bundle to `out` and puts the weights of the named trainings into its `models/`."""
    runs = [_parse_weights(text) for text in weights]
    folders = []
    for source in sorted(BUNDLES.glob("*_bundle")):
        target = out / source.name
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists; choose another --out or add --overwrite.")
        temporary = out / f"{source.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, ignore=LEFTOVERS)
        for run in (run for name, run in runs if f"{name}_bundle" == source.name):
            _take_weights(run, temporary / "models")
        tell_configs(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


def tell_configs(bundle: Path) -> None:
    """Writes what the sidecars say of categories and sizes into the inference configs, where these say otherwise.

    A layer's config changes what later ones inherit; so those get what they had before, as entries of their own.

    Raises:
        InputError: when weights are not those that the configs of their layer open.
    """
    configs, told = bundle / "configs", _told(bundle / "models")
    layers = {layer: files for layer, (_, files) in LAYERS.items() if (configs / files[-1]).is_file()}
    names = {*TOLD, *(name for facts in told.values() for name in facts)}
    before = {layer: _stacked(configs, files) for layer, files in layers.items()}
    for layer, files in layers.items() if told else ():
        kept = {name: value for name, value in before[layer].items() if name in names}
        found = _stacked(configs, files)
        changed = {name: value for name, value in (kept | told.get(layer, {})).items() if found.get(name) != value}
        _update(configs / files[-1], changed)
        if layer == "nodule" and changed:
            _update_format(configs / "metadata.json", {**found, **changed})


def archive(folder: Path) -> Path:
    """Zips a bundle as the model zoo names it."""
    version = json.loads((folder / "configs" / "metadata.json").read_text())["version"]
    name = folder.parent / f"{folder.name}_v{version}"
    return Path(shutil.make_archive(str(name), "zip", root_dir=folder.parent, base_dir=folder.name))


def _parse_weights(text: str) -> tuple[str, Path]:
    name, _, run = text.partition("=")
    if not run or not (BUNDLES / f"{name}_bundle").is_dir():
        known = sorted(folder.name.removesuffix("_bundle") for folder in BUNDLES.glob("*_bundle"))
        raise InputError(f"--weights needs NAME=RUN with NAME one of {known}, got {text!r}.")
    return name, Path(run)


def _take_weights(run: Path, models: Path) -> None:
    found = sorted(run.glob("model*.pt"))
    if not found:
        raise InputError(f"{run}: no model*.pt; give the output_dir of a training that has finished an epoch.")
    for weights in found:
        sidecar = weights.with_suffix(".json")
        if not sidecar.is_file():
            raise InputError(f"{weights}: its sidecar {sidecar.name} is missing; weights never travel without it.")
        models.mkdir(exist_ok=True)
        shutil.copy2(weights, models / weights.name)
        shutil.copy2(sidecar, models / sidecar.name)


def _told(models: Path) -> dict[str, dict[str, Any]]:
    """By layer, what the sidecar of its weights states."""
    told = {}
    for sidecar in sorted(models.glob("*.json")):
        facts = _read(sidecar)
        if (layer := facts.get("layer")) not in LAYERS:
            continue
        file, network = LAYERS[layer][0], str(facts["network"])
        if ".baselines." in network:
            raise InputError(
                f"{sidecar}: weights of {network}, a method to compare with, which a bundle does not open by itself. "
                "Give it to `evaluate.py --weights` as nodules_NAME.pt or lungs_NAME.pt."
            )
        if sidecar.stem != Path(file).stem:
            raise InputError(
                f"{sidecar}: weights of layer {layer} are {file}, got {sidecar.stem}.pt. Rename both files."
            )
        told[layer] = {name: facts[name] for name in TOLD if name in facts} | facts.get("settings", {})
    return told


def _stacked(configs: Path, files: Sequence[str]) -> dict[str, Any]:
    """Entries of configs, later ones on top."""
    return {name: value for file in files for name, value in _read(configs / file).items()}


def _update(path: Path, entries: Mapping[str, Any]) -> None:
    if entries:
        path.write_text(json.dumps({**_read(path), **entries}, indent=4) + "\n")


def _update_format(metadata: Path, config: Mapping[str, Any]) -> None:
    """States the inputs and outputs of the nodules' network."""
    facts = _read(metadata)
    inputs, outputs = (facts["network_data_format"][side] for side in ("inputs", "outputs"))
    inputs["latent"]["num_channels"] = config["latent_dim"]
    inputs["category"]["value_range"] = [0, max(len(config["categories"]), 1) - 1]
    outputs["pred"]["spatial_shape"] = [config["size"]] * config["spatial_dims"]
    _update(metadata, facts)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _refuse(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
