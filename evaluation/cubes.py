"""`lungsynth-eval cubes`: generated nodules in three dimensions against the held-out ones of a cohort.

One nodule is generated for each held-out one, of its category and diameter. Distances and two-sample tests are those of
Table II, taken on the three middle planes of each nodule, and copies on the axial one; shape is measured in three
dimensions. The first row returns training patients' nodules instead: the floor, which no generator can be expected to
beat, and what copying alone would reach. Then they are inserted into scans, beside held-out ones (`cubes_in_place`).
Files of the folder: `cubes.md`, `cubes.json`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cohort_subsets import MIN_DIAMETER_MM, EvaluationSplit, Subset, open_subset
from evaluation.cube_sets import CubeSet, Nodule, describe_cubes, read_cubes
from evaluation.cubes_in_place import evaluate_in_place
from evaluation.generation.condition_fidelity import TOLERANCE_MM, texture_figures
from evaluation.generation.methods import SampleRequests, nearest_places
from evaluation.generation.reference import GenerationReference, MeasurementConfig, correct_classes
from evaluation.generation.reference_distances import measure_c2st, measure_distances, run_two_sample_tests
from evaluation.methods import Method, digest_of, relation_to, train_minutes
from evaluation.metrics.bootstrap import Estimate, Estimates, estimate_ratio
from evaluation.runner import EvaluationResult, Report, Runner
from evaluation.tables import Column, TableRow, json_rows, paper_table, relation_notes
from lungsynth.bundles import WeightsInfo, nodule_rule, read_weights
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.scans.generated_cubes import CUBE_WEIGHTS, generate_cubes
from lungsynth.similarity.copies import copy_threshold, find_copies
from lungsynth.similarity.features import open_features
from lungsynth.similarity.samples import on_uniform_lung, owner_folds
from lungsynth.tracking import DEFAULT_URI

__all__ = ["CubesConfig", "evaluate_cubes"]

_GENERATED, _FLOOR, _REAL = "generated", "training", "held_out"
_SIZES_MM = (MIN_DIAMETER_MM, 30.0)  # of nodules; above it LIDC's readers speak of a mass
_COLUMNS = (
    Column(key="fid", title="FID", unit="planes", digits=2),
    Column(key="kid", title="KID", unit="planes"),
    Column(key="precision", title="Precision", unit="planes", digits=2),
    Column(key="recall", title="Recall", unit="planes", digits=2),
    Column(key="c2st", title="Two-sample test", unit="planes", digits=2),
    Column(key="c2st_features", title="on features", unit="planes", digits=2),
    Column(key="c2st_patch", title="as generated", unit="planes", digits=2),
    Column(key="copies", title="Copies, share", unit="nodules", digits=3),
)
_SHAPE_COLUMNS = (
    Column(key="elongation", title="Elongation", unit="nodules", digits=2),
    Column(key="elongation_spread", title="spread", digits=2),
    Column(key="sphericity", title="Sphericity", unit="nodules", digits=2),
    Column(key="sphericity_spread", title="spread", digits=3),
    Column(key="diameter_within", title="Diameter within 1.5 mm", unit="nodules", digits=2),
    Column(key="diameter_error_mm", title="Error, mm", unit="nodules", digits=2),
    Column(key="texture_agreement", title="Texture as asked", unit="nodules", digits=2),
    Column(key="texture_ratio", title="over held-out ones'", unit="nodules", digits=2),
)
_PLACE_COLUMNS = (
    Column(key="c2st", title="Two-sample test", unit="nodules", digits=2),
    Column(key="boundary", title="Boundary score, median", unit="nodules", digits=2),
)
_PLACE_TITLES = {
    "training": "training patients' nodules where they grew (floor)",
    "inserted": "training patients' nodules, inserted",
    "generated": "generated, inserted",
    "even": "*control: the same as even discs*",
    "held_out": "*held-out nodules*",
}


@dataclass(frozen=True, kw_only=True)
class CubesConfig:
    """An evaluation of nodules in three dimensions.

    Args:
        cohort: folder written by `lungsynth prepare`.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        split: `test`, or `validation` to choose weights.
        seed: of everything random.
        measurement: effort.

    Raises:
        InputError: when the seed is negative.
    """

    cohort: Path
    out: Path
    bundles: Path
    split: EvaluationSplit = "test"
    seed: int = 0
    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"`seed` must not be negative, got {self.seed}.")


def evaluate_cubes(config: CubesConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Generates, measures, and writes the table.

    Raises:
        InputError: when the cohort, the weights or the tracking store cannot be used.
    """
    subset = open_subset(config.cohort, config.split)
    runner = Runner(command="cubes", subset=subset, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, subset))


def _evaluate(config: CubesConfig, subset: Subset) -> Report:
    weights = read_weights(config.bundles, "wcapsgan", file=CUBE_WEIGHTS)
    rule = nodule_rule(config.bundles)
    held_out, training = (read_cubes(config.cohort, split, rule=rule) for split in (config.split, "training"))
    sized = np.flatnonzero((held_out.diameter_mm >= _SIZES_MM[0]) & (held_out.diameter_mm <= _SIZES_MM[1]))
    left_out, held_out = len(held_out) - len(sized), held_out.take(sized)
    reference = _reference(held_out, training, config)
    requests = SampleRequests(
        seeds=tuple(range(len(held_out))),
        categories=held_out.categories,
        diameters_mm=tuple(held_out.diameter_mm.tolist()),
    )
    sets = {
        _FLOOR: training.take(nearest_places(requests, training.categories, training.diameter_mm)),
        _GENERATED: _generated(config, requests),
    }
    rows = {name: _figures(cubes, held_out, reference) for name, cubes in sets.items()}
    rows[_REAL] = _shape_figures(held_out, seed=config.seed)
    method = _method(weights, subset)
    facts = {
        **subset.facts(),
        "n": len(held_out),
        "n_patients": reference.n_patients,
        "n_per_category": dict(sorted(Counter(held_out.categories).items())),
        "n_training": len(training),
        "left_out": left_out,
        "weights": weights.sha256,
        "train_minutes": method.train_minutes,
        "training": method.relation,
        "features": reference.features.name,
    }
    in_place, n_hosts = _in_place(config, subset)
    facts["n_hosts"] = n_hosts
    by_category = {name: _density(cubes, seed=config.seed) for name, cubes in {**sets, _REAL: held_out}.items()}
    return _report(facts, rows, by_category, in_place, method)


def _method(weights: WeightsInfo, subset: Subset) -> Method:
    return Method(
        name=_GENERATED,
        title="generated",
        open=lambda: None,
        identity=digest_of([weights.sha256]),
        train_minutes=train_minutes(weights.sidecar),
        relation=relation_to(subset, weights.sidecar),
    )


def _in_place(config: CubesConfig, subset: Subset) -> tuple[Mapping[str, Estimates], int]:
    """See `evaluate_in_place`; nothing for a cohort without windows."""
    try:
        return evaluate_in_place(subset, config.bundles, seed=config.seed, steps=config.measurement.c2st_steps)
    except NoSamplesError:
        return {}, 0


def _reference(held_out: CubeSet, training: CubeSet, config: CubesConfig) -> GenerationReference:
    """The real side: the planes of held-out and of training patients."""
    features, planes = open_features("domain", "nodules"), held_out.all_planes
    shown, axial = on_uniform_lung(planes), held_out.planes[0]
    seen = on_uniform_lung(training.planes[0])
    nearest = find_copies(on_uniform_lung(axial), seen)
    threshold = copy_threshold(nearest, axial)
    return GenerationReference(
        kind="nodules",
        held_out=planes,
        shown=shown,
        training=training.all_planes,
        training_shown=seen,
        features=features,
        vectors=features(shown.hu),
        checks={},
        folds=owner_folds(planes.owners, seed=config.seed),
        threshold=threshold,
        held_out_copies=int(threshold.copied(nearest, axial).sum()),
        seed=config.seed,
        measurement=config.measurement,
    )


def _generated(config: CubesConfig, requests: SampleRequests) -> CubeSet:
    """One generated cube for each request."""
    diameters_mm = [mm for mm in requests.diameters_mm if mm is not None]
    cubes = generate_cubes(config.bundles, requests.categories, diameters_mm, seed=config.seed)
    who = [Nodule(name, name, category) for name, category in zip(requests.names, requests.categories, strict=True)]
    return describe_cubes(zip(who, cubes, strict=True))


def _figures(cubes: CubeSet, held_out: CubeSet, reference: GenerationReference) -> Estimates:
    """All figures of a set that matches the held-out cubes one by one."""
    planes, axial = cubes.all_planes, cubes.planes[0]
    shown = on_uniform_lung(planes)
    vectors = reference.features(shown.hu)
    copied = reference.threshold.copied(find_copies(on_uniform_lung(axial), reference.training_shown), axial)
    tests = run_two_sample_tests(planes, vectors, reference)
    return {
        **measure_distances(shown, vectors, reference),
        **measure_c2st(planes, tests, reference),
        "copies": _mean(axial.owners, copied, seed=reference.seed),
        **_shape_figures(cubes, seed=reference.seed),
        **_fidelity(cubes, held_out, reference),
    }


def _shape_figures(cubes: CubeSet, *, seed: int) -> Estimates:
    """Mean and standard deviation of each measure but density."""
    figures: Estimates = {}
    for name in ("elongation", "sphericity"):
        values = cubes.shapes[name]
        figures[name] = _mean(cubes.owners, values, seed=seed)
        figures[f"{name}_spread"] = Estimate(value=float(values.std()), n=len(values))
    return figures


def _fidelity(cubes: CubeSet, held_out: CubeSet, reference: GenerationReference) -> Estimates:
    """Diameters against those asked, and texture, which is read on the axial plane."""
    error = cubes.diameter_mm - held_out.diameter_mm
    sides = []
    for side in (held_out, cubes):
        axial = side.planes[0]
        vectors = reference.features(on_uniform_lung(axial).hu)
        sides.append((axial, correct_classes(reference.features, vectors, axial)))
    (real, of_real), (made, of_made) = sides
    texture: Estimates = {}
    if of_real is not None and of_made is not None:
        texture = texture_figures((real, of_real), (made, of_made), seed=reference.seed)
    return {
        "diameter_within": _mean(cubes.owners, np.abs(error) <= TOLERANCE_MM, seed=reference.seed),
        "diameter_error_mm": _mean(cubes.owners, np.abs(error), seed=reference.seed),
        **texture,
    }


def _density(cubes: CubeSet, *, seed: int) -> Estimates:
    """Mean HU of the nodules of each category."""
    means = {}
    for category in sorted(set(cubes.categories)):
        own = cubes.take(cubes.of(category))
        means[category] = _mean(own.owners, own.shapes["mean_hu"], seed=seed)
    return means


def _mean(owners: tuple[str, ...], values: np.ndarray, *, seed: int) -> Estimate:
    mean = estimate_ratio(owners, values.astype(np.float64).tolist(), [1.0] * len(values), seed=seed)
    return replace(mean, patients=0) if owners[0].startswith("seed ") else mean


def _report(
    facts: Mapping[str, Any],
    rows: Mapping[str, Estimates],
    density: Mapping[str, Estimates],
    in_place: Mapping[str, Estimates],
    method: Method,
) -> Report:
    titles = {_FLOOR: "training patients' nodules (floor)", _GENERATED: "generated", _REAL: "*held-out nodules*"}
    table_rows = [TableRow(name=name, title=titles[name], figures=figures) for name, figures in rows.items()]
    categories = [Column(key=name, title=name, unit="nodules", digits=0) for name in density[_REAL]]
    density_rows = [TableRow(name=name, title=titles[name], figures=figures) for name, figures in density.items()]
    place_rows = [TableRow(name=name, title=_PLACE_TITLES[name], figures=figures) for name, figures in in_place.items()]
    columns = (*_COLUMNS, *_SHAPE_COLUMNS)
    minutes = "an unknown time" if method.train_minutes is None else f"{method.train_minutes:.0f} minutes of one core"
    sections = [
        "# Nodules in three dimensions\n",
        f"{facts['n']} nodules of {facts['n_patients']} patients of the {facts['split']} split, and as many of the "
        f"same categories and diameters generated (training: {minutes}) or taken from the {facts['n_training']} "
        f"nodules of training patients. {facts['left_out']} outside {_SIZES_MM[0]:.0f} to {_SIZES_MM[1]:.0f} mm are "
        "left out. 95 % intervals; docs/evaluation.md defines the figures.\n",
        *(f"{note}\n" for note in relation_notes([method])),
        paper_table("On three middle planes", _COLUMNS, table_rows),
        "## Shape, diameter, texture\n",
        paper_table("In three dimensions", _SHAPE_COLUMNS, table_rows),
        "## Mean HU\n",
        paper_table("By texture", categories, density_rows),
    ]
    if place_rows:
        sections += [
            "## In place\n",
            f"On HU alone, 33.6 x 33.6 mm of {facts['n_hosts']} windows of the {facts['split']} split.\n",
            paper_table("In scans", _PLACE_COLUMNS, place_rows),
        ]
    content = {
        **facts,
        "rows": json_rows(columns, table_rows),
        "mean_hu": json_rows(categories, density_rows),
        "in_place": json_rows(_PLACE_COLUMNS, place_rows),
    }
    metrics = {f"{name}/{key}": figure.value for name, figures in rows.items() for key, figure in figures.items()}
    return Report(
        name="cubes",
        table=content,
        markdown="\n".join(sections),
        metrics=metrics,
        params={name: facts[name] for name in ("n", "weights", "features")},
    )
