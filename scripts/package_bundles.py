"""Exports the bundles as clean folders, and zips for a model zoo, with the committed weights or those of a training."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
LEFTOVERS = shutil.ignore_patterns("__pycache__", "runs", "eval", "mlruns", "*.part", ".DS_Store")


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
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


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


def _refuse(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
