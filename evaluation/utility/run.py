"""The whole experiment: sub-cohorts, arms, seeds; each run is kept in `.parts`, so that a stop costs one at most.

Files of the folder: `utility.json`, `utility.md`, `utility.png`, and `.parts/`.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.runner import EvaluationResult, Report, Runner, records_folder
from evaluation.segmentation.run import open_images
from evaluation.utility.arms import Arm, classifier_arms, segmentation_arms
from evaluation.utility.classification import (
    MEAN_HU,
    ClassifierTraining,
    ExamplePools,
    NoduleSource,
    added_nodules,
    classification_store,
    classification_table,
    run_classification,
)
from evaluation.utility.patches import read_held_out
from evaluation.utility.report import (
    ArmResult,
    ArmRun,
    arm_results,
    notes,
    save_plot,
    utility_json,
    utility_markdown,
)
from evaluation.utility.segmentation import (
    SegmentationExperiment,
    SegmentationTraining,
    run_segmentation,
    segmentation_table,
)
from evaluation.utility.subcohort import SubCohort, make_subcohort
from lungsynth.bundles import lung_generator, open_bundle, read_weights, read_weights_file, resolved_config
from lungsynth.enhancement.stage import enhancement_identity
from lungsynth.errors import InputError
from lungsynth.tracking import DEFAULT_URI

__all__ = ["EXPERIMENTS", "UtilityConfig", "evaluate_utility"]

EXPERIMENTS = ("classification", "segmentation")
_PATHS = ("cohort", "out", "bundles", "generators")  # of the configuration, left out of the report

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    """The experiment.

    Args:
        cohort: folder written by `lungsynth prepare`.
        out: folder of the results; made when absent.
        bundles: folder of the bundles.
        experiments: which of `EXPERIMENTS`.
        patients: training patients of the classifier's sub-cohorts.
        segmentation_patients: of the segmentation's.
        doses: added samples for each real one.
        per_category: added samples of each category, the paper's dose; 0 for none. Of the classifier only.
        seeds: sub-cohorts of each size for the classifier.
        segmentation_seeds: for the segmentation.
        steps: of the optimiser, for each classifier.
        segmentation_steps: for each segmentation.
        lung_patients: whose slices with outlined lungs train.
        composites: whole slices that the segmentation is evaluated on.
        generators: folder with `<sub-cohort>.pt` and `.json`: generators trained on these patients alone. Of the
            classifier only.
        enhance: send synthetic slices through the CycleGAN.
        split: `test`, or `validation` while choosing.
        seed: of the bootstrap and the composites.

    Raises:
        InputError: when a number is out of its range.
    """

    cohort: Path
    out: Path
    bundles: Path
    experiments: tuple[str, ...] = EXPERIMENTS
    patients: tuple[int, ...] = (10, 25, 50)
    segmentation_patients: tuple[int, ...] = (25,)
    doses: tuple[float, ...] = (0, 1, 3, 10)
    per_category: int = 200
    seeds: int = 5
    segmentation_seeds: int = 2
    steps: int = 300
    segmentation_steps: int = 300
    lung_patients: int = 2
    composites: int = 150
    generators: Path | None = None
    enhance: bool = True
    split: EvaluationSplit = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds", "segmentation_seeds", "steps", "segmentation_steps", "lung_patients"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}.")
        for name in ("patients", "segmentation_patients"):
            if min(getattr(self, name), default=0) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, values in {name: (getattr(self, name),) for name in ("per_category", "composites", "seed")}.items():
            if min(values) < 0:
                raise InputError(f"`{name}` must not be negative, got {values[0]}.")
        if min(self.doses, default=0) < 0:
            raise InputError(f"`doses` must not be negative, got {self.doses}.")
        if unknown := sorted(set(self.experiments) - set(EXPERIMENTS)):
            raise InputError(f"`experiments`: {unknown} are unknown; there are {list(EXPERIMENTS)}.")


def evaluate_utility(config: UtilityConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Trains everything that is not kept yet, evaluates it, and writes the report.

    Raises:
        InputError: when the cohort, a bundle or the tracking store cannot be used.
    """
    subset = open_subset(config.cohort, config.split)
    runner = Runner(command="utility", subset=subset, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, runner))


def _evaluate(config: UtilityConfig, runner: Runner) -> Report:
    results: list[ArmResult] = []
    cohorts: dict[str, SubCohort] = {}
    for name, experiment in {"classification": _classification, "segmentation": _segmentation}.items():
        if name in config.experiments:
            runs = experiment(config, runner)
            results += arm_results(name, runs, seed=config.seed)
            cohorts |= {run.cohort.name: run.cohort for run in runs}
    facts = _facts(config, runner.subset, cohorts, results)
    return Report(
        name="utility",
        table=utility_json(results, facts),
        markdown=utility_markdown(results, facts),
        metrics={
            f"{result.experiment}/{result.patients}/{result.arm.name}/{name.replace(',', '')}": figure.value
            for result in results
            for name, figure in list(result.figures.items())[:1]
        },
        pictures=(save_plot(results, config.out / "utility.png"),),
    )


def _classification(config: UtilityConfig, runner: Runner) -> list[ArmRun]:
    validation = read_held_out(open_subset(config.cohort, "validation"))
    evaluated = read_held_out(runner.subset)
    arms = [MEAN_HU, *classifier_arms(config.doses, per_category=config.per_category)]
    training, store = ClassifierTraining(steps=config.steps), classification_store(records_folder(config.out))
    cohorts = _subcohorts(config, config.patients, config.seeds)
    runs = []
    with tqdm(total=len(arms) * len(cohorts), desc="classifiers", unit="run") as progress:
        for cohort in cohorts:
            generator = _nodule_source(config, cohort)
            own = generator.split_hash == cohort.split_hash
            pools = ExamplePools(cohort, generator, largest=max(added_nodules(arm, cohort) for arm in arms))
            for arm in arms:
                record = run_classification(
                    arm, pools, validation, evaluated, store, identity=runner.subset.identity, training=training
                )
                table = classification_table(record, evaluated)
                runs.append(_arm_run(cohort, arm, table, record["added"], record["validation"], own))
                progress.update()
    return runs


def _segmentation(config: UtilityConfig, runner: Runner) -> list[ArmRun]:
    arms = segmentation_arms(config.doses)
    cohorts = _subcohorts(config, config.segmentation_patients, config.segmentation_seeds)
    weights = read_weights(config.bundles, "wcapsgan")
    runs = []
    with (
        open_images(runner.subset, composites=config.composites, seed=config.seed) as images,
        tqdm(total=len(arms) * len(cohorts), desc="segmentations", unit="run") as progress,
    ):
        for problem in images.problems:
            _logger.warning("%s", problem)
        experiment = SegmentationExperiment(
            images=images,
            folder=records_folder(config.out),
            bundles=config.bundles,
            training=SegmentationTraining(steps=config.segmentation_steps),
            enhance=config.enhance,
            dependencies=_segmentation_dependencies(config),
            tracking_uri=runner.tracking_uri,
        )
        for cohort in cohorts:
            own = weights.sidecar.get("split_hash") == cohort.split_hash
            largest = max(arm.count(cohort.crops, categories=1) for arm in arms)
            for arm in arms:
                run = run_segmentation(arm, cohort, experiment, largest=largest)
                table = segmentation_table(run.result)
                runs.append(_arm_run(cohort, arm, table, run.added, run.validation, own))
                progress.update()
    return runs


def _arm_run(
    cohort: SubCohort, arm: Arm, table: Any, added: int, validation: float | None, own_generator: bool
) -> ArmRun:
    return ArmRun(
        cohort=cohort,
        arm=arm,
        table=table,
        added=added,
        validation=validation,
        own_generator=own_generator if arm.added == "generated" else None,
    )


def _segmentation_dependencies(config: UtilityConfig) -> dict[str, Any]:
    """What a segmentation is trained by, and what makes the slices that are added."""
    return {
        "training": resolved_config(config.bundles, "lung_seg", configs=("train.json",)),
        "nodules": read_weights(config.bundles, "wcapsgan").sha256,
        "lungs": read_weights(config.bundles, "wcapsgan", file=lung_generator().weights).sha256,
        **enhancement_identity(config.bundles if config.enhance else None, label_check=True),
    }


def _subcohorts(config: UtilityConfig, patients: Sequence[int], seeds: int) -> list[SubCohort]:
    return [
        make_subcohort(
            config.cohort,
            records_folder(config.out) / "cohorts" / f"p{count}-s{seed}",
            patients=count,
            lung_patients=config.lung_patients,
            seed=seed,
        )
        for count in sorted(set(patients))
        for seed in range(seeds)
    ]


def _nodule_source(config: UtilityConfig, cohort: SubCohort) -> NoduleSource:
    """The generator of these patients where `generators` has one, else the bundle's."""
    own = config.generators / f"{cohort.name}.pt" if config.generators else None
    if own is None or not own.is_file():
        weights = read_weights(config.bundles, "wcapsgan")
        return NoduleSource(
            open=lambda: open_bundle(config.bundles, "wcapsgan"),
            sha256=weights.sha256,
            split_hash=weights.sidecar.get("split_hash"),
        )
    weights = read_weights_file(own)
    return NoduleSource(
        open=lambda: open_bundle(config.bundles, "wcapsgan", weights=own),
        sha256=weights.sha256,
        split_hash=weights.sidecar.get("split_hash"),
    )


def _facts(
    config: UtilityConfig, subset: Subset, cohorts: dict[str, SubCohort], results: Sequence[ArmResult]
) -> dict[str, Any]:
    weights = read_weights(config.bundles, "wcapsgan")
    return {
        "split": subset.split,
        "split_hash": subset.split_hash,
        "sources": list(subset.collections),
        "generator": {"sha256": weights.sha256, "split_hash": weights.sidecar.get("split_hash")},
        "settings": {name: value for name, value in asdict(config).items() if name not in _PATHS},
        "cohorts": [
            {name: value for name, value in asdict(cohort).items() if name != "folder"} for cohort in cohorts.values()
        ],
        "notes": notes(config.steps, config.segmentation_steps, results, cohorts.values()),
    }
