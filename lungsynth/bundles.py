"""Opens MONAI bundles and their weights: the one place where `lungsynth` meets their code, through `ConfigParser`.

A bundle is the folder `<bundles_dir>/<name>_bundle`. Its package is found through its absolute root on `sys.path`,
which `ConfigParser` needs for `_target_`. Python keeps one package a name for the whole process, so a second folder
that brings the same package is refused here; it would silently get the classes of the first. A loader may skip weights
that do not fit without a word, so they are held against their sidecar, the config and the network first.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lungsynth.errors import InputError, reason
from lungsynth.io.stored import SHA256, anything, lists, mappings, numbers, objects, read_json, texts

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from lungsynth.categories import CategoryRule

__all__ = [
    "DEVICE_VARIABLE",
    "LUNG_PX",
    "LungGenerator",
    "WeightsInfo",
    "bundle_root",
    "check_categories",
    "check_fit",
    "component_settings",
    "lung_generator",
    "nodule_rule",
    "open_bundle",
    "read_state",
    "read_weights",
    "read_weights_file",
    "resolved_config",
    "train_bundle",
]

DEVICE_VARIABLE = "LUNGSYNTH_DEVICE"  # of the environment, so that workers have it too: cpu, cuda, cuda:1, mps
_REMEDY = "Give `bundles` a folder that holds lung_seg_bundle, wcapsgan_bundle and cyclegan_bundle with their weights."
_NOT_BUILT = "Failed to instantiate component"  # MONAI says
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
_MEANING = ("categories", "category_key", "category_edges")  # what a sidecar and a config say of categories
_NO_SETTINGS = {"bundle_root", "device", "batch_size", "sw_batch_size", "_desc_", "_requires_"}  # they change no result


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


class LungGenerator(NamedTuple):
    """What opens one of the lung generators of wcapsgan_bundle.

    Attributes:
        configs: on top of each other.
        weights: their file.
    """

    configs: tuple[str, ...]
    weights: str


_LUNG_GENERATORS = {  # by the pixels of their lungs' side
    256: LungGenerator(("inference.json", "inference_lung.json"), "model_lung.pt"),
    512: LungGenerator(("inference.json", "inference_lung.json", "inference_cascade.json"), "model_cascade.pt"),
}
LUNG_PX = tuple(_LUNG_GENERATORS)


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


def lung_generator(lung_px: int) -> LungGenerator:
    """The generator of lungs with sides of so many pixels.

    Raises:
        InputError: for a size that no generator has.
    """
    if lung_px not in _LUNG_GENERATORS:
        raise InputError(f"`lung_px` must be one of {list(LUNG_PX)}, got {lung_px}.")
    return _LUNG_GENERATORS[lung_px]


def read_weights(bundles_dir: Path, name: str, *, file: str = "model.pt") -> WeightsInfo:
    """Hashes `models/<file>` and compares it with its sidecar, without opening the network.

    Raises:
        InputError: when the file is missing, or is not the one that its sidecar describes.
    """
    root = bundle_root(bundles_dir, name)
    path = root / "models" / file
    if not path.is_file():
        raise InputError(f"{path}: expected the weights of {root.name}, found no such file. {_REMEDY}")
    return read_weights_file(path)


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


def resolved_config(
    bundles_dir: Path,
    name: str,
    *,
    configs: Sequence[str] = ("inference.json",),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of the bundle's configs, later ones on top, with `overrides`; `bundle_root` stays as the file has it."""
    return dict(_parser(bundle_root(bundles_dir, name), configs, overrides or {}).get())


def component_settings(bundles_dir: Path, name: str, component: str) -> dict[str, Any]:
    """What decides over a component's results beside its weights: by id, its entry and those that it refers to.

    They are as `inference.json` has them, without what says only where and how fast it is computed. Two folders of
    bundles with equal settings and weights make the same pixels on one kind of machine.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser(resolved_config(bundles_dir, name))
    parser.resolve_macro_and_relative_ids()
    reached: dict[str, Any] = {}
    waiting = {component}
    while waiting:
        reference = waiting.pop()
        if reference.split("::")[-1] not in _NO_SETTINGS:
            reached[reference] = _stripped(parser.get(reference))
            waiting |= _references(reached[reference]) - reached.keys()
    return reached


def nodule_rule(bundles_dir: Path) -> "CategoryRule":
    """What the categories of wcapsgan_bundle's nodules mean for the real ones of a cohort."""
    from lungsynth.categories import CategoryRule

    return CategoryRule.of_config(resolved_config(bundles_dir, "wcapsgan"))


def open_bundle(
    bundles_dir: Path,
    name: str,
    *,
    component: str = "sampler",
    configs: Sequence[str] = ("inference.json",),
    weights: str | Path = "model.pt",
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Builds one component of a bundle ("Calls" in docs/reference/bundle_interface.md).

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
            weights are of another network or, by their sidecar, of other categories than the configs name.
    """
    root = bundle_root(bundles_dir, name)
    own = {"bundle_root": str(root), **_device()}
    if isinstance(weights, Path):
        read = read_weights_file(weights.absolute())
        own["ckpt_path"] = str(read.path)
    else:
        read = read_weights(bundles_dir, name, file=weights)
    _expose_packages(root)
    parser = _parser(root, configs, {**own, **(overrides or {})})
    if component not in parser:
        raise InputError(
            f"{root / 'configs' / configs[-1]}: expected an entry `{component}`, got {sorted(parser.get())}."
        )
    try:
        check_categories(read, parser.get())
        state = read_state(read.path)
        if "network_def" in parser:
            check_fit(read.path, state, parser.get_parsed_content("network_def").state_dict())
        built = parser.get_parsed_content(component)
    except Exception as error:  # MONAI wraps whatever the bundle raised in a RuntimeError; the cause tells which
        raise _input_error(error, root) or InputError(
            f"{root / 'configs' / configs[-1]}: `{component}` cannot be built ({reason(error)}). Mend it, or copy the "
            "bundle again."
        ) from error
    if isinstance(built, dict):  # nothing was built: MONAI takes an entry without `_target_` for values
        raise InputError(f"{root / 'configs' / configs[-1]}: `{component}` should name a class in `_target_`.")
    return built


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
    from monai.bundle import ConfigWorkflow

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
        raise _input_error(error, root) or error from error


def _device() -> dict[str, str]:
    """The bundles' `device` where the environment names one; else theirs: the first GPU, or the CPU.

    Raises:
        InputError: when PyTorch has no such device.
    """
    if not (name := os.environ.get(DEVICE_VARIABLE)):
        return {}
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"`device` {name} cannot be used here ({reason}). Give cpu, cuda, cuda:1 or mps.") from error
    return {"device": f"$torch.device({name!r})"}


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    remedy = "Copy it again from its training."
    return dict(read_json(path, _SIDECAR, what="the sidecar of weights", remedy=remedy))


def _stripped(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _stripped(value) for key, value in content.items() if key not in _NO_SETTINGS}
    return [_stripped(value) for value in content] if isinstance(content, list) else content


def _references(content: Any) -> set[str]:
    from monai.bundle import ReferenceResolver

    if isinstance(content, str):
        return set(ReferenceResolver.match_refs_pattern(content))
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return set().union(*(_references(value) for value in values))


def _parser(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> "ConfigParser":
    from monai.bundle import ConfigParser

    files = [root / "configs" / config for config in configs]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"{missing[0]}: no such config; {root.name} has {sorted(p.name for p in files[0].parent.glob('*.json'))}."
        )
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{files[-1]}: expected JSON, got {error}.") from error
    metadata = root / "configs" / "metadata.json"
    try:
        if metadata.is_file():
            parser.read_meta(str(metadata))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{metadata}: expected JSON, got {error}.") from error
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


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _input_error(error: Exception, bundle: Path) -> InputError | None:
    """What a user can mend of what went wrong in a bundle; None where it is not the user's."""
    causes = list(_causes(error))
    if known := next((cause for cause in causes if isinstance(cause, InputError)), None):
        return known
    if misfit := next((cause for cause in causes if _is_weights_mismatch(cause)), None):
        return InputError(str(misfit))
    of_config = any(str(cause).startswith(_NOT_BUILT) for cause in causes)  # its keys and values do not fit the class
    refusal: BaseException | None
    refusal = next((cause for cause in causes if isinstance(cause, ValueError | FileNotFoundError)), None)
    refusal = refusal or (causes[-1] if of_config else None)
    return InputError(f"{bundle}: the bundle refuses: {refusal}") if refusal else None


def _is_weights_mismatch(error: BaseException) -> bool:
    """Whether a bundle refused weights. Each bundle has a copy of the class (bundles/common), so its name tells."""
    return any(cls.__name__ == "WeightsMismatch" for cls in type(error).__mro__)
