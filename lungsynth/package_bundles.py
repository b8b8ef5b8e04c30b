"""Packages the bundles as clean folders, and zips for a model zoo, with the repository's weights or a training's.

A training's weights may be of other categories or sizes than the configs in the repository say; their sidecars tell,
and the configs of the packaged bundle are written accordingly.

`plan_publishing` is a dry run of sharing them: what the MONAI model zoo would refuse is found without a network, and
what the zoo and a hub would get is written beside the packaged bundles. Nothing is sent anywhere.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungsynth.config import default_bundles
from lungsynth.errors import InputError
from lungsynth.io.atomic import remove_temporary, replacing, write_json, write_text
from lungsynth.io.running import FolderLock
from lungsynth.io.stored import anything, mappings, objects, read_json, texts

__all__ = [
    "PublishPlan",
    "bundle_problems",
    "network_problems",
    "package_bundles",
    "plan_publishing",
    "write_sidecar_settings",
    "zip_bundle",
]

# Of wcapsgan_bundle: the weights of each sample type, and the configs that say what they are, the last one of its own.
_SAMPLE_TYPES = {
    "nodule": ("model.pt", ("inference.json",)),
    "cube": ("model_cube.pt", ("inference.json", "inference_cube.json")),
    "lung": ("model_lung.pt", ("inference.json", "inference_lung.json")),
    "cascade": ("model_cascade.pt", ("inference.json", "inference_lung.json", "inference_cascade.json")),
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
_REMEDY = "Copy it again."
_LEFTOVERS = shutil.ignore_patterns(
    "__pycache__", "runs", "eval", "mlruns", "*.part", ".*.part_*", ".*.tmp", ".DS_Store", "resume_*.pt"
)
MAX_FILE_MB = 25  # of the zoo's repository; what is larger goes into large_files.yml
_NEEDED_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "models/model.pt",
    "docs/README.md",
    "docs/data_license.txt",
)
_LEFT_BEHIND = ("__pycache__", ".DS_Store", ".ipynb_checkpoints", "mlruns", "runs", "eval", ".git")
# Of the schema meta_schema_20240725, and what the zoo asks for beyond it.
_METADATA: Mapping[str, type] = {
    **dict.fromkeys(("schema", "version", "monai_version", "pytorch_version", "numpy_version"), str),
    **dict.fromkeys(("task", "description", "authors", "copyright", "name"), str),
    **dict.fromkeys(("required_packages_version", "changelog", "network_data_format"), dict),
}
_TENSOR: Mapping[str, type] = {
    **dict.fromkeys(("type", "format", "dtype"), str),
    **dict.fromkeys(("spatial_shape", "value_range"), list),
    "num_channels": int,
}
_CARD_SECTIONS = ("Model Description", "Data", "Performance", "System Configuration", "Limitations")
_PERSONAL = re.compile(r"/home/\w+|/Users/\w+|/root/\w+|[A-Z]:\\\\\w+")
_ANY_PX = 64  # of a side that the metadata leave open
_HUB_SOURCE = "https://huggingface.co/MONAI/{name}/tree/{version}"
_MB = 1e6


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
    with FolderLock(out):
        remove_temporary(out)
        return [_package(source, out, runs, overwrite=overwrite) for source in sorted(bundles.glob("*_bundle"))]


def _package(source: Path, out: Path, runs: Sequence[tuple[str, Path]], *, overwrite: bool) -> Path:
    """One bundle, which is there whole or not at all."""
    target, temporary = out / source.name, out / f".{source.name}.tmp"
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another `out` or add `overwrite`.")
    try:
        shutil.copytree(source, temporary, ignore=_LEFTOVERS)
        for run in (run for name, run in runs if f"{name}_bundle" == source.name):
            _take_weights(run, temporary / "models")
        write_sidecar_settings(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


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
    schema = objects({"version": texts(r"[\w.+-]+")})
    metadata = read_json(folder / "configs" / "metadata.json", schema, what="the metadata of a bundle", remedy=_REMEDY)
    name = folder.parent / f"{folder.name}_v{metadata['version']}"
    with replacing(Path(f"{name}.zip")) as temporary:
        made = shutil.make_archive(str(temporary), "zip", root_dir=folder.parent, base_dir=folder.name)
        Path(made).rename(temporary)
    return Path(f"{name}.zip")


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
    return dict(read_json(path, mappings(anything), what="a file of a bundle", remedy=_REMEDY))


@dataclass(frozen=True, kw_only=True)
class PublishPlan:
    """What would be shared of one bundle.

    Args:
        name: of the bundle.
        version: of its metadata.
        archive: its zip.
        hub_folder: what a hub would get.
        files: how many files.
        megabytes: of all of them.
        largest: name and megabytes of the largest.
    """

    name: str
    version: str
    archive: Path
    hub_folder: Path
    files: int
    megabytes: float
    largest: tuple[str, float]

    @property
    def push_command(self) -> str:
        """Python that uploads the hub's folder; the command line of MONAI has no such verb."""
        return (
            f"monai.bundle.push_to_hf_hub(repo='ORGANISATION/{self.name}', name='{self.name}', "
            f"bundle_dir='{self.hub_folder.parent}', version='{self.version}')"
        )


def plan_publishing(folders: Sequence[Path], out: Path) -> list[PublishPlan]:
    """Checks packaged bundles and writes what sharing them needs.

    Args:
        folders: packaged bundles, as `package_bundles` gives them.
        out: gets `model_info.json` and `hub/`.

    Raises:
        InputError: naming all that the zoo would refuse, before anything is written.
    """
    problems = [
        f"{folder.name}: {problem}"
        for folder in folders
        for problem in [*bundle_problems(folder), *network_problems(folder)]
    ]
    if problems:
        raise InputError("The model zoo would refuse:\n" + "\n".join(f"  {problem}" for problem in problems))
    plans = [_plan(folder, out) for folder in folders]
    write_json(out / "model_info.json", {f"{plan.name}_v{plan.version}": _table_row(plan) for plan in plans}, indent=4)
    return plans


def bundle_problems(folder: Path) -> list[str]:
    """What the zoo would refuse of a bundle's files; empty where it takes them.

    Args:
        folder: the bundle.
    """
    if missing := [name for name in _NEEDED_FILES if not (folder / name).is_file()]:
        return [f"{name} is missing" for name in missing]
    metadata = _read(folder / "configs" / "metadata.json")
    return [*_file_problems(folder), *_metadata_problems(metadata), *_weight_problems(folder), *_card_problems(folder)]


def network_problems(folder: Path) -> list[str]:
    """What goes wrong when MONAI alone opens a copy of the bundle: its weights, input and output, TorchScript.

    Args:
        folder: the bundle.
    """
    if not all((folder / name).is_file() for name in _NEEDED_FILES):
        return []
    from monai.bundle import ckpt_export, verify_net_in_out

    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / folder.name))
        meta, config = str(copy / "configs/metadata.json"), str(copy / "configs/inference.json")
        exported, weights = str(copy / "model.ts"), str(copy / "models/model.pt")
        steps: dict[str, Callable[[], None]] = {
            "monai.bundle.load": lambda: _load_network(copy),
            "verify_net_in_out": lambda: verify_net_in_out("network_def", meta, config, device="cpu", any=_ANY_PX),
            "ckpt_export": lambda: ckpt_export("network_def", exported, weights, meta, config),
        }
        for name, step in steps.items():
            try:
                step()
            except Exception as error:  # whatever a bundle raises, the first step that fails tells
                return [f"{name}: {_innermost(error)}"]
    return []


def _load_network(bundle: Path) -> None:
    """MONAI gives the weights alone, with a warning, where it finds no network."""
    from monai.bundle import load
    from torch import nn

    if not isinstance(load(bundle.name, bundle_dir=str(bundle.parent)), nn.Module):
        raise InputError("configs/inference.json gave no network under the id network_def")


def _file_problems(folder: Path) -> Iterator[str]:
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    if not ("Apache License" in licence and "Version 2.0" in licence) and "MIT License" not in licence:
        yield "LICENSE is neither Apache-2.0 nor MIT; a hub would show its licence as unknown"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{name} is a symbolic link"
        elif path.name in _LEFT_BEHIND:
            yield f"{name} is left from a run"
        elif path.is_file() and path.stat().st_size > MAX_FILE_MB * _MB:
            yield f"{name} has {path.stat().st_size / _MB:.0f} MB, above {MAX_FILE_MB}; list it in large_files.yml"
    for path in sorted((folder / "configs").glob("*.json")):
        if found := _PERSONAL.search(path.read_text(encoding="utf-8")):
            yield f"configs/{path.name} names a path of one machine: {found[0]}"


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key, kind in _METADATA.items():
        if not isinstance(metadata.get(key), kind) or metadata[key] == "":
            yield f"metadata.json needs `{key}`, a {kind.__name__}, got {metadata.get(key)!r}"
    if not re.fullmatch(r"\d+\.\d+\.\d+", version := str(metadata.get("version"))):
        yield f"metadata.json: the version is x.y.z, got {version}"
    if version not in metadata.get("changelog", {}):
        yield f"metadata.json: its changelog lacks the version {version}"
    pins = {key: metadata.get(key) for key in ("monai_version", "pytorch_version", "numpy_version")}
    for package, pin in {**pins, **metadata.get("required_packages_version", {})}.items():
        if not re.fullmatch(r"\d+(\.\d+)*", str(pin)):
            yield f"metadata.json: {package} needs an exact version, because the zoo installs it, got {pin}"
    formats = metadata.get("network_data_format", {})
    for side, wanted in (("inputs", "image"), ("outputs", "pred")):
        if wanted not in formats.get(side, {}):
            yield f"metadata.json: verify_net_in_out needs network_data_format#{side}#{wanted}"
        for name, tensor in formats.get(side, {}).items():
            if lacking := [key for key, kind in _TENSOR.items() if not isinstance(tensor.get(key), kind)]:
                yield f"metadata.json: network_data_format#{side}#{name} lacks {', '.join(lacking)}"


def _weight_problems(folder: Path) -> Iterator[str]:
    for weights in sorted((folder / "models").glob("*.pt")):
        sidecar = weights.with_suffix(".json")
        if not sidecar.is_file():
            yield f"models/{weights.name} has no sidecar {sidecar.name}, which says what it was trained on"
        elif _read(sidecar).get("sha256") != _digest(weights, "sha256"):
            yield f"models/{weights.name} is not the file of its sidecar {sidecar.name}"


def _card_problems(folder: Path) -> Iterator[str]:
    card = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    headings = {heading.strip(" *") for heading in re.findall(r"^#+ +(.+)$", card, flags=re.MULTILINE)}
    if lacking := [section for section in _CARD_SECTIONS if section not in headings]:
        yield f"docs/README.md lacks the sections {', '.join(lacking)}"


def _plan(folder: Path, out: Path) -> PublishPlan:
    version = _read(folder / "configs" / "metadata.json")["version"]
    archive = zip_bundle(folder)
    hub = out / "hub" / folder.name
    shutil.rmtree(hub, ignore_errors=True)
    shutil.copytree(folder, hub)
    write_text(hub / "README.md", _card(folder))
    sizes = {path.relative_to(hub).as_posix(): path.stat().st_size / _MB for path in hub.rglob("*") if path.is_file()}
    largest = max(sizes, key=lambda name: sizes[name])
    return PublishPlan(
        name=folder.name,
        version=version,
        archive=archive,
        hub_folder=hub,
        files=len(sizes),
        megabytes=sum(sizes.values()),
        largest=(largest, sizes[largest]),
    )


def _card(folder: Path) -> str:
    """The model card with the head that a hub reads; links to files of `docs/` follow its place in the root."""
    text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    licence = "apache-2.0" if "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8") else "mit"
    moved = re.sub(r"\]\((?!https?://|#|\.\./)([^)]+)\)", r"](docs/\1)", text).replace("](../", "](")
    tags = "\n".join(f"- {tag}" for tag in ("monai", "medical", "ct", "lung", "synthetic"))
    return f"---\ntags:\n{tags}\nlibrary_name: monai\nlicense: {licence}\n---\n{moved}"


def _table_row(plan: PublishPlan) -> dict[str, str]:
    """A row of the zoo's models/model_info.json."""
    return {
        "checksum": _digest(plan.archive, "sha1"),
        "source": _HUB_SOURCE.format(name=plan.name, version=plan.version),
    }


def _digest(path: Path, algorithm: str) -> str:
    return hashlib.new(algorithm, path.read_bytes()).hexdigest()


def _innermost(error: BaseException) -> str:
    """MONAI wraps the useful error two or three times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
