"""Methods of generation: what they are asked for, the two baselines, and those of wcapsgan_bundle that have weights.

`w_capsulegan` is the bundle as it is (whole slices: with weights of that name, since the product makes none in one
piece); each `configs/inference_NAME.json` laid over it is another method, with weights `nodules_NAME.pt`,
`lungs_NAME.pt` or `slices_NAME.pt`, which reach the configs as `ckpt_path`. `pipeline_slices` adds the product itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from evaluation.cohort_subsets import Subset
from evaluation.methods import (
    OVERLAY,
    Method,
    configured_methods,
    count_parameters,
    digest_of,
    relation_to,
    train_minutes,
    usable_methods,
)
from evaluation.paper import GENERATOR_NAMES
from lungsynth.bundles import lung_generator, open_bundle, read_weights, read_weights_file, resolved_config
from lungsynth.errors import InputError
from lungsynth.similarity.samples import SampleKind, Samples

__all__ = [
    "AVERAGE",
    "MEMORISER",
    "OWN",
    "TABLE_LUNG_PX",
    "GeneratedSamples",
    "SampleGenerator",
    "SampleRequests",
    "baselines",
    "find_generators",
    "generator_names",
    "nearest_places",
]

OWN = "w_capsulegan"
TABLE_LUNG_PX = 256  # of the lungs that tables compare, 1.4 mm; docs/results/anatomy.md has those of 512
MEMORISER, AVERAGE = "memoriser", "average"
_MEAN_OF = 8  # training samples that the average baseline blends: enough to lose all detail
_BUNDLE = "wcapsgan"
_CONFIGS: Mapping[SampleKind, tuple[str, ...]] = {
    "nodules": ("inference.json",),
    "lungs": lung_generator(TABLE_LUNG_PX).configs,
    "slices": ("inference.json", "inference_lung.json", "inference_slice.json"),
}
_KIND_OVERLAYS = {"cascade", "cube", "lung", "slice"}  # say what is generated, not by which method
_OWN_WEIGHTS: Mapping[SampleKind, str] = {"nodules": "model.pt", "lungs": lung_generator(TABLE_LUNG_PX).weights}
_NOT_IN_TABLE: Mapping[SampleKind, set[str]] = {  # no row there, so that nobody misses them
    "nodules": set(),
    "lungs": set(),
    "slices": {"capsulenets", "w_capsulegan_equal"},
}


@dataclass(frozen=True, kw_only=True)
class SampleRequests:
    """Requested samples: a seed, a category and a diameter each; without diameters, as in training."""

    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    diameters_mm: tuple[float | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the samples are called; nobody owns them."""
        return tuple(f"seed {seed}" for seed in self.seeds)


@dataclass(frozen=True, eq=False, kw_only=True)
class GeneratedSamples:
    """Samples, and the diameters that were requested or drawn (N,); None where there are none."""

    samples: Samples
    requested_mm: Float[np.ndarray, " n"] | None = None


SampleGenerator = Callable[[SampleRequests], GeneratedSamples]


def generator_names(bundles: Path) -> list[str]:
    """All methods that the bundle has configs for, in the table's order."""
    return configured_methods(bundles, _BUNDLE, own=OWN, titles=GENERATOR_NAMES, excluded=_KIND_OVERLAYS)


def find_generators(
    kind: SampleKind, subset: Subset, bundles: Path, weights: Path, *, requested: Sequence[str] | None = None
) -> tuple[list[Method], dict[str, str]]:
    """The methods of Tables II and III that have weights; each opens a `SampleGenerator`.

    Args:
        kind: what they generate.
        subset: on whom they are evaluated.
        bundles: folder of the bundles.
        weights: folder with `<kind>_NAME.pt` and `.json` of the methods but the product's.
        requested: names; all when None.

    Returns:
        The methods in the table's order, and why each other one is left out.

    Raises:
        InputError: when a requested method is unknown or has no usable weights.
    """
    names = generator_names(bundles)
    methods, reasons = usable_methods(
        names,
        lambda name: _generator_method(name, kind, subset, bundles, weights),
        requested=requested,
        folders=(weights, bundles),
    )
    if requested is not None:
        return methods, {}
    unknown = {name: "no config of this name in the bundle" for name in GENERATOR_NAMES if name not in names}
    left_out = {name: why for name, why in {**unknown, **reasons}.items() if name not in _NOT_IN_TABLE[kind]}
    return methods, left_out


def _generator_method(name: str, kind: SampleKind, subset: Subset, bundles: Path, folder: Path) -> Method:
    own = name == OWN and kind in _OWN_WEIGHTS
    path = folder / f"{kind}_{name}.pt"
    info = read_weights(bundles, _BUNDLE, file=_OWN_WEIGHTS[kind]) if own else read_weights_file(path)
    configs = _CONFIGS[kind] if name == OWN else (*_CONFIGS[kind], f"{OVERLAY}{name}.json")

    def open_generator() -> SampleGenerator:
        weights: str | Path = _OWN_WEIGHTS[kind] if own else path
        return _bundle_generator(open_bundle(bundles, _BUNDLE, configs=configs, weights=weights), kind)

    title = GENERATOR_NAMES.get(name, name)
    return Method(
        name=name,
        title=f"{title.removesuffix(' (this method)')}, in one piece" if kind == "slices" else title,
        open=open_generator,
        identity=digest_of([resolved_config(bundles, _BUNDLE, configs=configs), info.sha256]),
        parameters=count_parameters(info),
        train_minutes=train_minutes(info.sidecar),
        relation=relation_to(subset, info.sidecar),
    )


def _bundle_generator(sampler: Any, kind: SampleKind) -> SampleGenerator:
    """Wraps a bundle's sampler."""

    def generate(requests: SampleRequests) -> GeneratedSamples:
        if unknown := sorted(set(requests.categories) - set(sampler.categories)):
            raise InputError(
                f"It was not trained on the categories {unknown}, only on {list(sampler.categories)}. Nodules are "
                "evaluated by the categories of wcapsgan_bundle's configs/inference.json, whole slices by texture "
                "class: give weights that were trained with those, or `bundles` with the configs of these "
                "(`package_bundles.py --weights`)."
            )
        output = sampler(list(requests.seeds), list(requests.categories), list(requests.diameters_mm))
        samples = Samples(
            hu=np.asarray(output["hu"], np.int16),
            mask=np.asarray(output["alpha" if kind == "nodules" else "mask"]).astype(np.float16),
            categories=requests.categories,
            owners=requests.names,
            names=requests.names,
            spacing_mm=float(sampler.spacing_mm),
        )
        requested_mm = np.asarray(output["diameter_mm"], np.float64) if kind == "nodules" else None
        return GeneratedSamples(samples=samples, requested_mm=requested_mm)

    return generate


def baselines(training: Samples, identity: str) -> list[Method]:
    """Two that generate nothing: a figure that they reach says nothing about a method that reaches it.

    The memoriser returns training samples. Its distances are those of training patients against held-out ones at the
    same n: the floor, below which no generator can be expected to come. All that it returns are copies.
    The average returns the mean of eight training samples: the right densities and sizes, and no detail.

    Args:
        training: one slice for each nodule; or lungs.
        identity: of the cohort.
    """
    identity = f"{identity}:2"
    return [
        Method(
            name=MEMORISER,
            title="training samples (floor)",
            open=lambda: lambda requests: _memorise(requests, training),
            identity=identity,
        ),
        Method(
            name=AVERAGE,
            title="mean of 8 training samples",
            open=lambda: lambda requests: _average(requests, training),
            identity=identity,
        ),
    ]


def _memorise(requests: SampleRequests, training: Samples) -> GeneratedSamples:
    places = nearest_places(requests, training.categories, training.diameter_mm)
    return GeneratedSamples(samples=training.take(places))


def nearest_places(
    requests: SampleRequests, categories: Sequence[str], diameter_mm: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " requests"]:
    """For each request the unused training sample of its category nearest in diameter; all again once none is left.

    Args:
        requests: what is asked for.
        categories: of the training samples.
        diameter_mm: likewise.
    """
    of = {name: np.flatnonzero(np.array(categories, dtype=object) == name) for name in set(requests.categories)}
    rng = np.random.default_rng(requests.seeds[0] if requests.seeds else 0)
    unused = {name: list(rng.permutation(of[name])) for name in sorted(of)}
    places = np.zeros(len(requests.categories), np.int64)
    for index in rng.permutation(len(places)):
        name, wanted_mm = requests.categories[index], requests.diameters_mm[index]
        if not unused[name]:
            unused[name] = list(rng.permutation(of[name]))
        gaps = np.abs(diameter_mm[unused[name]] - wanted_mm) if wanted_mm is not None else [0.0]
        places[index] = unused[name].pop(int(np.argmin(gaps)))
    return places


def _average(requests: SampleRequests, training: Samples) -> GeneratedSamples:
    """The mean of 8 of the category: of the 16 nearest in diameter, where one is requested."""
    hu, mask = [], []
    for seed, name, diameter_mm in zip(requests.seeds, requests.categories, requests.diameters_mm, strict=True):
        places = training.of(name)
        if diameter_mm is not None:
            nearest = np.argsort(np.abs(training.diameter_mm[places] - diameter_mm), kind="stable")
            places = places[nearest][: 2 * _MEAN_OF]
        blended = np.random.default_rng(seed).permutation(places)[:_MEAN_OF]
        hu.append(np.rint(training.hu[blended].mean(axis=0)).astype(np.int16))
        mask.append(training.mask[blended].astype(np.float32).mean(axis=0).astype(np.float16))
    return GeneratedSamples(
        samples=Samples(
            hu=np.stack(hu),
            mask=np.stack(mask),
            categories=requests.categories,
            owners=requests.names,
            names=requests.names,
            spacing_mm=training.spacing_mm,
        )
    )
