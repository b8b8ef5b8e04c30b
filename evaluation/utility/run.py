"""The whole experiment: sub-cohorts, arms, seeds; each run is kept in `OUT/.parts`, so that a stop costs one at most.

Files of OUT: `utility.json`, `utility.md`, `utility.png`, and `.parts/`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.cohort_subsets import Subset, open_subset
from evaluation.composites import Composites
from evaluation.segmentation.crops import read_crops
from evaluation.utility import classification, segmentation
from evaluation.utility.arms import classifier_arms, segmentation_arms
from evaluation.utility.classification import MEAN_HU, NoduleSource, Pools, added_nodules, run_classification
from evaluation.utility.classifier import TrainingSettings
from evaluation.utility.notes import notes_of
from evaluation.utility.patches import held_out
from evaluation.utility.plot import save_plot
from evaluation.utility.report import ArmResult, utility_json, utility_markdown
from evaluation.utility.results import ArmRun, results_of
from evaluation.utility.segmentation import EvaluationImages, SegmentationTraining, run_segmentation
from evaluation.utility.settings import UtilitySettings
from evaluation.utility.subcohort import SubCohort, make_subcohort
from lungsynth.bundles import open_bundle, read_weights, resolved_config
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.generate_assets import LUNG_WEIGHTS
from lungsynth.io.atomic import write_json, write_text
from lungsynth.tracking import DEFAULT_URI, Run, open_tracker
from lungsynth.weights import read_weights_file

__all__ = ["UtilityEvaluation", "evaluate_utility"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UtilityEvaluation:
    """What came of it."""

    out: Path
    markdown: str
    content: dict[str, Any]
    tracking_uri: str


def evaluate_utility(settings: UtilitySettings, *, tracking_uri: str = DEFAULT_URI) -> UtilityEvaluation:
    """Trains everything that is not kept yet, judges it, and writes the report.

    Raises:
        InputError: when the cohort, a bundle or the tracking store cannot be used.
    """
    part = open_subset(settings.cohort, settings.part)
    tracker = open_tracker(tracking_uri)
    with tracker.run(f"utility-{part.part}", tags={"judge": "utility"}) as run:
        lines: list[ArmResult] = []
        cohorts: dict[str, SubCohort] = {}
        for name, experiment in (("classification", _classification), ("segmentation", _segmentation)):
            if name in settings.experiments:
                ran, made = experiment(settings, part, tracker.uri)
                lines += results_of(name, ran, seed=settings.seed)
                cohorts |= made
        facts = _facts(settings, part, cohorts, lines)
        content, markdown = utility_json(lines, facts), utility_markdown(lines, facts)
        write_json(settings.out / "utility.json", content)
        write_text(settings.out / "utility.md", markdown)
        save_plot(lines, settings.out / "utility.png")
        _track(run, settings, content, lines)
    return UtilityEvaluation(out=settings.out, markdown=markdown, content=content, tracking_uri=tracker.uri)


def _classification(
    settings: UtilitySettings, part: Subset, tracking_uri: str
) -> tuple[list[ArmRun], dict[str, SubCohort]]:
    validation, judged = held_out(open_subset(settings.cohort, "validation")), held_out(part)
    arms = [MEAN_HU, *classifier_arms(settings.doses, per_category=settings.per_category)]
    ran, training = [], TrainingSettings(steps=settings.steps)
    cohorts = _subcohorts(settings, settings.patients, settings.seeds)
    with tqdm(total=len(arms) * len(cohorts), desc="classifiers", unit="run") as progress:
        for cohort in cohorts:
            generator = _generator(settings, cohort)
            pools = Pools(cohort, generator, largest=max(added_nodules(arm, cohort) for arm in arms))
            for arm in arms:
                record = run_classification(
                    arm,
                    pools,
                    validation,
                    judged,
                    settings.out / ".parts",
                    identity=part.identity,
                    settings=training,
                )
                table = classification.classification_table(record, judged)
                own = generator.split_hash == cohort.split_hash if arm.added == "generated" else None
                ran.append(ArmRun(cohort, arm, table, record["added"], record["validation"], own))
                progress.update()
    return ran, {cohort.name: cohort for cohort in cohorts}


def _segmentation(
    settings: UtilitySettings, part: Subset, tracking_uri: str
) -> tuple[list[ArmRun], dict[str, SubCohort]]:
    arms = segmentation_arms(settings.doses)
    cohorts = _subcohorts(settings, settings.segmentation_patients, settings.segmentation_seeds)
    made_by = _made_by(settings)
    ran, parts = [], settings.out / ".parts"
    with _judged(settings, part) as judged, tqdm(total=len(arms) * len(cohorts), desc="segmentations") as progress:
        for cohort in cohorts:
            own = read_weights(settings.bundles, "wcapsgan").sidecar.get("split_hash") == cohort.split_hash
            for arm in arms:
                outcome, added, validation = run_segmentation(
                    arm,
                    cohort,
                    judged,
                    parts,
                    training=SegmentationTraining(steps=settings.segmentation_steps),
                    bundles=settings.bundles,
                    enhance=settings.enhance,
                    made_by=made_by,
                    largest=max(one.count(cohort.crops, categories=1) for one in arms),
                    tracking_uri=tracking_uri,
                )
                table = segmentation.segmentation_table(outcome)
                ran.append(ArmRun(cohort, arm, table, added, validation, own if arm.added == "generated" else None))
                progress.update()
    return ran, {cohort.name: cohort for cohort in cohorts}


def _made_by(settings: UtilitySettings) -> dict[str, Any]:
    """What a segmentation is trained by, and what makes the slices that are added."""
    return {
        "training": resolved_config(settings.bundles, "lung_seg", configs=("train.json",)),
        "nodules": read_weights(settings.bundles, "wcapsgan").sha256,
        "lungs": read_weights(settings.bundles, "wcapsgan", file=LUNG_WEIGHTS).sha256,
        **enhancement_identity(settings.bundles if settings.enhance else None, label_check=True),
    }


@contextmanager
def _judged(settings: UtilitySettings, part: Subset) -> Iterator[EvaluationImages]:
    problems: list[str] = []
    crops = read_crops(part, problems)
    with Composites(part, count=settings.composites, seed=settings.seed, problems=problems) as composites:
        for problem in problems:
            _logger.warning("%s", problem)
        identity = f"{part.identity}:{settings.composites}:{settings.seed}"
        yield EvaluationImages(crops=crops, composites=composites, identity=identity)


def _subcohorts(settings: UtilitySettings, patients: Sequence[int], seeds: int) -> list[SubCohort]:
    return [
        make_subcohort(
            settings.cohort,
            settings.out / ".parts" / "cohorts" / f"p{count}-s{seed}",
            patients=count,
            lung_patients=settings.lung_patients,
            seed=seed,
        )
        for count in sorted(set(patients))
        for seed in range(seeds)
    ]


def _generator(settings: UtilitySettings, cohort: SubCohort) -> NoduleSource:
    """That of these patients where --generators has one, else the bundle's."""
    own = settings.generators / f"{cohort.name}.pt" if settings.generators else None
    if own is not None and own.is_file():
        known = read_weights_file(own)
        return NoduleSource(
            open=lambda: open_bundle(settings.bundles, "wcapsgan", weights=own),
            sha256=known.sha256,
            split_hash=known.sidecar.get("split_hash"),
        )
    known = read_weights(settings.bundles, "wcapsgan")
    split_hash = known.sidecar.get("split_hash")
    return NoduleSource(
        open=lambda: open_bundle(settings.bundles, "wcapsgan"), sha256=known.sha256, split_hash=split_hash
    )


def _facts(
    settings: UtilitySettings, part: Subset, cohorts: dict[str, SubCohort], lines: Sequence[ArmResult]
) -> dict[str, Any]:
    known = read_weights(settings.bundles, "wcapsgan")
    return {
        "part": part.part,
        "split_hash": part.split_hash,
        "sources": list(part.sources),
        "generator": {"sha256": known.sha256, "split_hash": known.sidecar.get("split_hash")},
        "settings": {
            name: value
            for name, value in asdict(settings).items()
            if name not in ("cohort", "out", "bundles", "generators")
        },
        "cohorts": [
            {key: value for key, value in asdict(cohort).items() if key != "folder"} for cohort in cohorts.values()
        ],
        "notes": notes_of(settings.steps, settings.segmentation_steps, lines, cohorts.values()),
    }


def _track(run: Run, settings: UtilitySettings, content: dict[str, Any], lines: Sequence[ArmResult]) -> None:
    run.log_params({"part": settings.part, "split_hash": content["split_hash"], "seed": settings.seed})
    run.log_metrics(
        {
            f"{line.experiment}/{line.patients}/{line.arm.name}/{name.replace(',', '')}": found.value
            for line in lines
            for name, found in list(line.figures.items())[:1]
            if found.value is not None
        }
    )
    for name in ("utility.json", "utility.md", "utility.png"):
        run.log_file(settings.out / name)
