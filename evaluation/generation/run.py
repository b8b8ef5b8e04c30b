"""Tables II and III: every method that has weights, against the held-out samples of a cohort.

Files of OUT: `table_2.md`, `table_2.json` (whole slices: `table_3`), `montage.png`, `mixed.png` with `mixed_key.md`,
`nearest.png`, `fid_by_n.png`, `distributions.png`, and `.parts/` with the samples and figures of each method.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.cohort_subsets import Split, Subset, open_subset
from evaluation.composed_slices.compose import ComposedSliceConfig, compose_slices
from evaluation.generation.baselines import baselines
from evaluation.generation.ct_checks import measure_checks
from evaluation.generation.figures import measure_real
from evaluation.generation.methods import OWN, GenerationMethod, find_generators
from evaluation.generation.pictures import (
    method_montage,
    nearest_montage,
    save_distributions,
    save_fid_by_n,
    save_picture,
    write_mixed,
)
from evaluation.generation.reference import Reference, read_reference
from evaluation.generation.results import GenerationResult, run_generator
from evaluation.generation.stages import STAGES, find_stages
from evaluation.generation.table_2 import table_2_json, table_2_markdown
from evaluation.generation.table_3 import measure_whole, table_3_json, table_3_markdown
from evaluation.methods import check_relations
from lungsynth.bundles import nodule_rule
from lungsynth.categories import AS_LISTED
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text
from lungsynth.similarity.features import open_features
from lungsynth.similarity.samples import SampleKind
from lungsynth.tracking import DEFAULT_URI, Run, open_tracker

__all__ = ["GenerationEvaluation", "GenerationSettings", "evaluate_generation"]

_logger = logging.getLogger(__name__)
_PRODUCTS: Mapping[SampleKind, str] = {"nodules": OWN, "lungs": OWN, "slices": "two_stage"}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What is judged, and where.

    Args:
        kind: `nodules`, `lungs` or `slices`.
        cohort: folder written by scripts/prepare.py.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        weights: folder with the weights of the methods but the product's.
        methods: names; all that have weights when None.
        part: `test`, or `validation` to choose weights.
        count: generated samples a category, beside those matched to the held-out ones.
        features: `domain`, `inception` or a TorchScript file.
        seed: of everything random.
        slices: for slices, a folder of `scripts/make_slices.py`; made in `out` when None.
        require_held_out: refuse methods that may have been trained on the judged patients.

    Raises:
        InputError: when a number is too small.
    """

    kind: SampleKind
    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    part: Split = "test"
    count: int = 200
    features: str = "domain"
    seed: int = 0
    slices: Path | None = None
    require_held_out: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise InputError(f"--count must be 1 or more and --seed not negative, got {self.count} and {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation:
    """What came of it: the table's name, as Markdown and as JSON, the pictures, and where it was tracked."""

    out: Path
    name: str
    markdown: str
    table: Mapping[str, Any]
    pictures: tuple[Path, ...]
    tracking_uri: str


def evaluate_generation(settings: GenerationSettings, *, tracking_uri: str = DEFAULT_URI) -> GenerationEvaluation:
    """Generates, measures, and writes Table II.

    Raises:
        InputError: when the cohort, the feature network, a wanted method or the tracking store cannot be used.
    """
    part = open_subset(settings.cohort, settings.part)
    features = open_features(settings.features, settings.kind)
    rule = nodule_rule(settings.bundles) if settings.kind == "nodules" else AS_LISTED
    methods, left_out = _methods(settings, part)
    check_relations({each.name: each.relation for each in methods}, required=settings.require_held_out)
    tracker = open_tracker(tracking_uri)
    with tracker.run(f"{settings.kind}-{part.part}", tags={"judge": settings.kind}) as run:
        slices, known = _slices(settings, part)
        known += rule.identity
        reference = read_reference(part, settings.kind, features, seed=settings.seed, slices=slices, rule=rule)
        identity = f"{part.identity}{known}:{settings.kind}:{features.identity}:{settings.seed}"
        trivial = baselines(reference.training, f"{part.identity}{known}")
        lines, failed = _run_all([*trivial, *methods], reference, settings, identity)
        name, table, markdown = _tables(settings, part, lines, reference, {**left_out, **failed}, slices)
        write_json(settings.out / f"{name}.json", table)
        write_text(settings.out / f"{name}.md", markdown)
        pictures = _draw(lines, reference, settings.out)
        _track(run, settings, table, lines, [settings.out / f"{name}.md", *pictures])
    return GenerationEvaluation(
        out=settings.out, name=name, markdown=markdown, table=table, pictures=pictures, tracking_uri=tracker.uri
    )


def _methods(settings: GenerationSettings, part: Subset) -> tuple[list[GenerationMethod], dict[str, str]]:
    """The generators, and why others are left out; of whole slices, the two stages last."""
    wanted = settings.methods
    if settings.kind != "slices":
        return find_generators(settings.kind, part, settings.bundles, settings.weights, wanted=wanted)
    direct = None if wanted is None else [name for name in wanted if name not in STAGES]
    found, missing = find_generators("slices", part, settings.bundles, settings.weights, wanted=direct)
    stages, absent = find_stages(part, settings.bundles, settings.out / ".parts", seed=settings.seed, wanted=wanted)
    return [*found, *stages], {**missing, **absent}


def _slices(settings: GenerationSettings, part: Subset) -> tuple[Path | None, str]:
    """The folder of whole slices, made where none is given, and what tells it from others; nothing for other kinds."""
    if settings.kind != "slices":
        return None, ""
    folder = settings.slices or settings.out / ".parts" / "slices"
    if settings.slices is None:
        compose_slices(ComposedSliceConfig(cohort=settings.cohort, out=folder))
    try:
        content = (folder / "slices.json").read_bytes() + (folder / "cohort.json").read_bytes()
        split_hash = json.loads((folder / "cohort.json").read_text()).get("split_hash")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: expected slices of scripts/make_slices.py, got {error}.") from error
    if split_hash != part.split_hash:
        raise InputError(f"{folder}: these slices are of another cohort or split than --cohort. Make them from it.")
    return folder, f":{hashlib.sha256(content).hexdigest()}"


def _tables(
    settings: GenerationSettings,
    part: Subset,
    lines: Sequence[GenerationResult],
    reference: Reference,
    left_out: Mapping[str, str],
    slices: Path | None,
) -> tuple[str, dict[str, Any], str]:
    """Name, JSON and Markdown of the table."""
    real, count = measure_real(reference), settings.count
    table = table_2_json(part, reference, lines, real, count=count, left_out=left_out)
    markdown = table_2_markdown(part, reference, lines, real, count=count, left_out=left_out)
    if slices is None:
        return "table_2", table, markdown
    whole = measure_whole(lines, reference, slices, part.part)
    return "table_3", table_3_json(table, lines, whole), table_3_markdown(markdown, lines, whole)


def _run_all(
    generators: Sequence[GenerationMethod], reference: Reference, settings: GenerationSettings, identity: str
) -> tuple[list[GenerationResult], dict[str, str]]:
    """The lines, and why others are missing."""
    lines, failed, folder = [], dict[str, str](), settings.out / ".parts"
    for generator in tqdm(generators, desc="methods", unit="method"):
        try:
            lines.append(run_generator(generator, reference, count=settings.count, identity=identity, folder=folder))
        except InputError as error:
            if generator.name in (settings.methods or ()) or generator.parameters is None:
                raise
            failed[generator.name] = str(error)
            _logger.warning("%s is left out: %s", generator.name, error)
    return lines, failed


def _draw(lines: Sequence[GenerationResult], reference: Reference, out: Path) -> tuple[Path, ...]:
    """All pictures; those of one method show the product's, else the last one."""
    shown = next((line for line in lines if line.generator.name == _PRODUCTS[reference.kind]), lines[-1])
    checks = {line.generator.title: measure_checks(line.matched.samples, reference.kind) for line in lines}
    return (
        save_picture(method_montage(lines, reference), out / "montage.png"),
        *write_mixed(shown, reference, out),
        save_picture(nearest_montage(shown, reference), out / "nearest.png"),
        save_fid_by_n(lines, out / "fid_by_n.png"),
        save_distributions(reference.checks, checks, out / "distributions.png"),
    )


def _track(
    run: Run,
    settings: GenerationSettings,
    table: Mapping[str, Any],
    lines: Sequence[GenerationResult],
    files: Sequence[Path],
) -> None:
    """Logs settings, figures, the table and pictures; no id of a patient or file."""
    run.log_params({key: table[key] for key in ("kind", "part", "split_hash", "n", "count", "features")})
    run.log_params({"seed": settings.seed})
    run.log_metrics(
        {
            f"{line.generator.name}/{name}": figure.value
            for line in lines
            for name, figure in line.figures.headline.items()
            if figure.value is not None
        }
    )
    run.log_json(table, files[0].with_suffix(".json").name)
    run.log_file(files[0])
    for picture in files[1:]:
        run.log_file(picture, "pictures")
