"""Tables II and III: every method that has weights, against the held-out samples of a cohort.

Files of the folder: `table_2.md`, `table_2.json` (whole slices: `table_3`), `montage.png`, `mixed.png` with
`mixed_key.md`, `nearest.png`, `fid_by_n.png`, `distributions.png`, and `.parts/` with the samples and figures of each
method.
"""

import hashlib
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.composed_slices import ComposedSliceConfig, compose_slices
from evaluation.generation.figures import GenerationFigures, measure_generator, measure_real
from evaluation.generation.methods import OWN, GeneratedSamples, baselines, find_generators
from evaluation.generation.pictures import MeasuredGenerator, write_pictures
from evaluation.generation.pipeline_slices import CATALOGUE_SIZE, PIPELINE_ROWS, find_pipeline
from evaluation.generation.reference import (
    GenerationReference,
    MeasurementConfig,
    balanced_requests,
    matched_requests,
    read_reference,
)
from evaluation.generation.table import GenerationTable
from evaluation.generation.whole_slices import measure_whole_slices
from evaluation.methods import Method, check_relations, digest_of
from evaluation.runner import EvaluationResult, RecordStore, Report, Runner, records_folder
from lungsynth.bundles import nodule_rule
from lungsynth.categories import AS_LISTED
from lungsynth.cohort.files import read_cohort_json
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_arrays
from lungsynth.similarity.features import Features, open_features
from lungsynth.similarity.samples import SampleKind, Samples
from lungsynth.tracking import DEFAULT_URI

__all__ = ["GenerationConfig", "GenerationInputs", "evaluate_generation", "open_inputs"]

_VERSION = 4  # to be raised when a figure is measured in another way, so that kept ones are not reused
_PRODUCT_ROWS: Mapping[SampleKind, str] = {"nodules": OWN, "lungs": OWN, "slices": "two_stage"}
_SETS = ("matched", "balanced")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """An evaluation of methods of generation.

    Args:
        kind: `nodules`, `lungs` or `slices`.
        cohort: folder written by `lungsynth prepare`.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        weights: folder with the weights of the methods but the product's.
        methods: names; all that have weights when None.
        split: `test`, or `validation` to choose weights.
        count: generated samples of each category, beside those matched to the held-out ones.
        features: `domain`, `inception` or a TorchScript file.
        seed: of everything random.
        slices: for slices, a folder of composed ones; made in `out` when None.
        require_held_out: refuse methods that may have been trained on the evaluated patients.
        catalogue_size: for slices, samples that the product plans.
        measurement: effort.

    Raises:
        InputError: when a number is too small.
    """

    kind: SampleKind
    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    split: EvaluationSplit = "test"
    count: int = 200
    features: str = "domain"
    seed: int = 0
    slices: Path | None = None
    require_held_out: bool = False
    catalogue_size: int = CATALOGUE_SIZE
    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise InputError(f"`count` must be 1 or more and `seed` not negative, got {self.count} and {self.seed}.")


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationInputs:
    """What an evaluation compares; made by `open_inputs`.

    Args:
        methods: baselines first.
        reference: the real side.
        identity: changes with the real side and how it is measured.
        slices: folder of composed slices; None for other kinds.
    """

    methods: tuple[Method, ...]
    reference: GenerationReference
    identity: str
    slices: Path | None


def evaluate_generation(config: GenerationConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Generates, measures, and writes the table.

    Raises:
        InputError: when the cohort, the feature network, a requested method or the tracking store cannot be used.
    """
    subset = open_subset(config.cohort, config.split)
    features = open_features(config.features, config.kind)
    trained, left_out = _find_methods(config, subset)
    check_relations(trained, required=config.require_held_out)
    runner = Runner(command=config.kind, subset=subset, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, runner, open_inputs(config, subset, features, trained), left_out))


def open_inputs(
    config: GenerationConfig, subset: Subset, features: Features, trained: Sequence[Method]
) -> GenerationInputs:
    """Reads and measures the real side, and adds the baselines to the methods.

    Args:
        config: of the evaluation.
        subset: who is evaluated on.
        features: the feature network.
        trained: the other methods.

    Raises:
        InputError: when the cohort or the composed slices cannot be used.
    """
    rule = nodule_rule(config.bundles) if config.kind == "nodules" else AS_LISTED
    slices, slices_identity = _slices(config, subset)
    reference = read_reference(
        subset,
        config.kind,
        features,
        seed=config.seed,
        slices=slices,
        rule=rule,
        measurement=config.measurement,
    )
    data = f"{subset.identity}{slices_identity}{rule.identity}"
    effort = astuple(config.measurement)
    return GenerationInputs(
        methods=(*baselines(reference.training, data), *trained),
        reference=reference,
        identity=digest_of([_VERSION, data, config.kind, features.identity, config.seed, config.count, effort]),
        slices=slices,
    )


def _find_methods(config: GenerationConfig, subset: Subset) -> tuple[list[Method], dict[str, str]]:
    """The trained methods, and why others are left out; of whole slices, the product's two rows last."""
    requested, bundles = config.methods, config.bundles
    if config.kind != "slices":
        return find_generators(config.kind, subset, bundles, config.weights, requested=requested)
    direct = None if requested is None else [name for name in requested if name not in PIPELINE_ROWS]
    generators, missing = find_generators("slices", subset, bundles, config.weights, requested=direct)
    rows, absent = find_pipeline(
        subset,
        bundles,
        records_folder(config.out),
        seed=config.seed,
        requested=requested,
        size=config.catalogue_size,
    )
    return [*generators, *rows], {**missing, **absent}


def _slices(config: GenerationConfig, subset: Subset) -> tuple[Path | None, str]:
    """The folder of composed slices, made where none is given, and its identity; nothing for other kinds."""
    if config.kind != "slices":
        return None, ""
    folder = config.slices or records_folder(config.out) / "slices"
    if config.slices is None:
        compose_slices(ComposedSliceConfig(cohort=config.cohort, out=folder))
    try:
        content = (folder / "slices.json").read_bytes() + (folder / "cohort.json").read_bytes()
        split_hash = read_cohort_json(folder / "cohort.json").get("split_hash")
    except OSError as error:
        raise InputError(f"{folder}: expected composed slices for `slices`, got {error}.") from error
    if split_hash != subset.split_hash:
        raise InputError(f"{folder}: these slices are of another cohort or split than `cohort`. Make them from it.")
    return folder, f":{hashlib.sha256(content).hexdigest()}"


def _evaluate(
    config: GenerationConfig, runner: Runner, inputs: GenerationInputs, left_out: Mapping[str, str]
) -> Report:
    reference, subset = inputs.reference, runner.subset
    rows_by_name, failures = runner.run_methods(
        inputs.methods, lambda method: _measure(method, config, inputs), requested=config.methods
    )
    rows = list(rows_by_name.values())
    matched = {row.method.name: row.matched.samples for row in rows}
    slices = inputs.slices
    table = GenerationTable(
        subset,
        reference,
        rows,
        real=measure_real(reference),
        count=config.count,
        left_out={**left_out, **failures},
        whole=measure_whole_slices(matched, reference, slices, subset.split) if slices else None,
    )
    content = table.to_json()
    product = next((row for row in rows if row.method.name == _PRODUCT_ROWS[config.kind]), rows[-1])
    return Report(
        name=table.name,
        table=content,
        markdown=table.to_markdown(),
        metrics={
            f"{row.method.name}/{name}": figure.value for row in rows for name, figure in row.figures.headline.items()
        },
        params={name: content[name] for name in ("kind", "n", "count", "features")},
        pictures=write_pictures(rows, product, reference, config.out),
    )


def _measure(method: Method, config: GenerationConfig, inputs: GenerationInputs) -> MeasuredGenerator:
    """Samples of a method and their figures, or what was kept of them."""
    identity, reference = digest_of([inputs.identity, method.identity]), inputs.reference
    folder = records_folder(config.out)
    path = folder / f"{method.name}.npz"
    sets = _load_samples(path, identity)
    if sets is None:
        generate = method.open()
        sets = generate(matched_requests(reference)), generate(balanced_requests(reference, count=config.count))
        _save_samples(path, sets, identity)
    matched, balanced = sets
    store: RecordStore[GenerationFigures] = RecordStore(
        folder=folder, to_json=GenerationFigures.to_json, from_json=GenerationFigures.from_json
    )
    figures = store.get(method.name, lambda: measure_generator(matched, balanced, reference), identity=identity)
    return MeasuredGenerator(method=method, matched=matched, balanced=balanced, figures=figures)


def _save_samples(path: Path, sets: Sequence[GeneratedSamples], identity: str) -> None:
    arrays: dict[str, Any] = {"identity": identity, "spacing_mm": sets[0].samples.spacing_mm}
    for name, generated in zip(_SETS, sets, strict=True):
        samples = generated.samples
        arrays |= {f"{name}_hu": samples.hu, f"{name}_mask": samples.mask}
        arrays |= {f"{name}_{key}": np.array(getattr(samples, key)) for key in ("categories", "owners", "names")}
        if generated.requested_mm is not None:
            arrays[f"{name}_requested_mm"] = generated.requested_mm
    write_arrays(path, **arrays)


def _load_samples(path: Path, identity: str) -> tuple[GeneratedSamples, GeneratedSamples] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["identity"]) != identity:
                return None
            matched, balanced = (_samples_of(arrays, name) for name in _SETS)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError):
        return None
    _logger.info("%s: samples taken from %s", path.stem, path)
    return matched, balanced


def _samples_of(arrays: Mapping[str, np.ndarray], name: str) -> GeneratedSamples:
    texts = {key: tuple(arrays[f"{name}_{key}"].tolist()) for key in ("categories", "owners", "names")}
    samples = Samples(
        hu=arrays[f"{name}_hu"], mask=arrays[f"{name}_mask"], spacing_mm=float(arrays["spacing_mm"]), **texts
    )
    return GeneratedSamples(samples=samples, requested_mm=arrays.get(f"{name}_requested_mm"))
