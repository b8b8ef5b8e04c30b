"""The lines of Table II, and of Table III but for its two stages: the methods of wcapsgan_bundle that have weights.

`w_capsulegan` is the bundle as it is (whole slices: with weights of that name, since the product makes none in one
piece); each `configs/inference_NAME.json` laid over it is another method, with weights `nodules_NAME.pt`,
`lungs_NAME.pt` or `slices_NAME.pt` and sidecar in a folder of their own, which reach the configs as `ckpt_path`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation.cohort_subsets import Subset
from evaluation.methods import Relation, count_parameters, relation_to
from evaluation.paper import GENERATOR_NAMES
from lungsynth.bundles import bundle_root, open_bundle, read_weights, resolved_config
from lungsynth.errors import InputError
from lungsynth.similarity.samples import SampleKind, Samples
from lungsynth.weights import read_weights_file

__all__ = ["OWN", "GeneratedSamples", "GenerationMethod", "Requests", "find_generators", "known_generators"]

OWN = "w_capsulegan"
_BUNDLE = "wcapsgan"
_OVERLAY = "inference_"
_LAYERS: Mapping[SampleKind, tuple[str, ...]] = {
    "nodules": ("inference.json",),
    "lungs": ("inference.json", "inference_lung.json"),
    "slices": ("inference.json", "inference_lung.json", "inference_slice.json"),
}
_NO_METHODS = {"cube", "lung", "slice"}  # overlays that say what is made, not by which method
_OWN_WEIGHTS: Mapping[SampleKind, str] = {"nodules": "model.pt", "lungs": "model_lung.pt"}
_NOT_MISSED: Mapping[SampleKind, set[str]] = {  # no line there
    "nodules": set(),
    "lungs": set(),
    "slices": {"capsulenets", "w_capsulegan_equal"},
}


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What is asked for: a seed, a category and a diameter each; without diameters, as in training."""

    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    diameters_mm: tuple[float | None, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class GeneratedSamples:
    """Samples, and the diameters that were asked for or drawn (N,); None where nobody asks."""

    samples: Samples
    asked_mm: Float[np.ndarray, " n"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationMethod:
    """A line of the table.

    Args:
        name: in files and JSON.
        title: in Markdown.
        open: builds what answers requests.
        identity: changes with whatever the samples depend on.
        parameters: trained numbers; None for what is not trained.
        train_minutes: None where not known.
        relation: of its training to the judged patients; None for what is not trained.
    """

    name: str
    title: str
    open: Callable[[], Callable[[Requests], GeneratedSamples]]
    identity: str
    parameters: int | None = None
    train_minutes: float | None = None
    relation: Relation | None = None


def known_generators(bundles: Path) -> list[str]:
    """Names of all methods that the bundle has configs for, in the paper's order, the product's last."""
    root = bundle_root(bundles, _BUNDLE)
    names = {path.stem.removeprefix(_OVERLAY) for path in (root / "configs").glob(f"{_OVERLAY}*.json")}
    names = (names - _NO_METHODS) | {OWN}
    paper = list(GENERATOR_NAMES)
    return sorted(names, key=lambda name: (name == OWN, paper.index(name) if name in paper else len(paper), name))


def find_generators(
    kind: SampleKind, part: Subset, bundles: Path, weights: Path, *, wanted: Sequence[str] | None = None
) -> tuple[list[GenerationMethod], dict[str, str]]:
    """The methods that have weights.

    Args:
        kind: what they generate.
        part: on whose patients they are judged.
        bundles: folder of the bundles.
        weights: folder with `<kind>_NAME.pt` and `.json` of the methods but the product's.
        wanted: names; all when None.

    Returns:
        The methods in the table's order, and why each other one is left out.

    Raises:
        InputError: when a wanted method is unknown or has no usable weights.
    """
    known = known_generators(bundles)
    if unknown := sorted(set(wanted or ()) - set(known)):
        raise InputError(f"--methods: {unknown} are unknown; {bundles} has configs for {known}.")
    missing = {name: "no config of this name in the bundle" for name in GENERATOR_NAMES if name not in known}
    found = []
    for name in (name for name in known if wanted is None or name in wanted):
        try:
            found.append(_generator(name, kind, part, bundles, weights))
        except InputError as error:
            if wanted is not None:
                raise
            missing[name] = str(error).replace(f"{weights}/", "").replace(f"{bundles}/", "")
    left_out = {name: why for name, why in missing.items() if name not in _NOT_MISSED[kind]}
    return found, {} if wanted is not None else left_out


def _generator(name: str, kind: SampleKind, part: Subset, bundles: Path, folder: Path) -> GenerationMethod:
    own = name == OWN and kind in _OWN_WEIGHTS
    path = folder / f"{kind}_{name}.pt"
    read = read_weights(bundles, _BUNDLE, file=_OWN_WEIGHTS[kind]) if own else read_weights_file(path)
    configs = _LAYERS[kind] if name == OWN else (*_LAYERS[kind], f"{_OVERLAY}{name}.json")
    config = resolved_config(bundles, _BUNDLE, configs=configs)
    known = json.dumps([config, read.sha256], sort_keys=True, default=str)

    def opened() -> Callable[[Requests], GeneratedSamples]:
        weights: str | Path = _OWN_WEIGHTS[kind] if own else path
        return _answering(open_bundle(bundles, _BUNDLE, configs=configs, weights=weights), kind)

    minutes = read.sidecar.get("train_minutes")
    return GenerationMethod(
        name=name,
        title=_title(name, kind),
        open=opened,
        identity=hashlib.sha256(known.encode()).hexdigest(),
        parameters=count_parameters(read.path),
        train_minutes=float(minutes) if isinstance(minutes, int | float) else None,
        relation=relation_to(part, read.sidecar),
    )


def _title(name: str, kind: SampleKind) -> str:
    title = GENERATOR_NAMES.get(name, name)
    return f"{title.removesuffix(' (this method)')}, in one piece" if kind == "slices" else title


def _answering(sampler: Any, kind: SampleKind) -> Callable[[Requests], GeneratedSamples]:
    """Wraps a bundle's sampler (contract C6.5)."""

    def answer(requests: Requests) -> GeneratedSamples:
        if unknown := sorted(set(requests.categories) - set(sampler.categories)):
            raise InputError(
                f"It was not trained on the categories {unknown}, only on {list(sampler.categories)}. Nodules are "
                "judged by the categories of wcapsgan_bundle's configs/inference.json, whole slices by texture class: "
                "give weights that were trained with those, or --bundles with the configs of these "
                "(`package_bundles.py --weights`)."
            )
        made = sampler(list(requests.seeds), list(requests.categories), list(requests.diameters_mm))
        names = tuple(f"seed {seed}" for seed in requests.seeds)
        samples = Samples(
            hu=np.asarray(made["hu"], np.int16),
            mask=np.asarray(made["alpha" if kind == "nodules" else "mask"]).astype(np.float16),
            categories=requests.categories,
            owners=names,
            names=names,
            spacing_mm=float(sampler.spacing_mm),
        )
        asked = np.asarray(made["diameter_mm"], np.float64) if kind == "nodules" else None
        return GeneratedSamples(samples=samples, asked_mm=asked)

    return answer
