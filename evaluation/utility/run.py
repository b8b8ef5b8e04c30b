"""The whole experiment: few patients, arms, seeds; each run is kept in `.parts`, so that a stop costs one at most.

Files of the folder: `utility.json`, `utility.md`, `utility.png` (classifier), `worth.png` (detectors), and `.parts/`.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.methods import digest_of
from evaluation.metrics.bootstrap import RESAMPLES
from evaluation.runner import EvaluationResult, Report, Runner, records_folder
from evaluation.segmentation.windows import read_windows
from evaluation.utility.arms import REAL_WINDOWS, Arm, classifier_arms, window_arms
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
from evaluation.utility.detection import DetectionTraining, NetworkName
from evaluation.utility.detection_runs import DetectionExperiment, DetectionRun, FewPatients, run_detection
from evaluation.utility.patches import read_held_out
from evaluation.utility.report import (
    ArmResult,
    ArmRun,
    arm_results,
    main_figure,
    notes,
    save_plot,
    utility_json,
    utility_markdown,
)
from evaluation.utility.subcohort import SubCohort, make_subcohort
from evaluation.utility.windows import generated_windows, read_free_windows
from evaluation.utility.worth import MAIN_FIGURE, WorthRow, power, worth_rows
from evaluation.utility.worth_report import save_worth_plot, worth_json, worth_markdown
from lungsynth.bundles import lung_generator, open_bundle, read_weights, read_weights_file
from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError
from lungsynth.tracking import DEFAULT_URI

__all__ = ["EXPERIMENTS", "UtilityConfig", "evaluate_utility"]

EXPERIMENTS = ("classification", "detection")
_PATHS = ("cohort", "out", "bundles", "generators")  # of the configuration, left out of the report

_FREE_SHARE = 0.2  # windows without a nodule of those that judge
_WINDOW_LUNG_PX = 512  # generated lungs whose pixels are those of the windows, 0.7 mm
_LUNG_PATIENTS = 2  # of a sub-cohort: slices with outlined lungs for who trains a generator on it

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
        doses: added samples for each real one.
        per_category: added samples of each category, the paper's dose; 0 for none in the classifier.
        seeds: sub-cohorts of each size for the classifier.
        steps: of the optimiser, for each classifier.
        network: of the detectors, one of `NETWORKS`.
        curve_patients: training patients of the detectors with real samples alone; 0 for all.
        detection_patients: those of them that try every arm.
        window_doses: shares of windows with an inserted nodule.
        families: of the detectors' arms, see `window_arms`; all when empty.
        detection_seeds: choices of patients for the detectors.
        detection_steps: of the optimiser, for each detector.
        detection_batch_size: of a step.
        detection_size_px: side of what the detectors are trained on, cut out of the windows of 128 pixels.
        windows: with inserted nodules, of each kind of an arm.
        generators: folder with `p<patients>-s<seed>.pt` and `.json`: generators trained on these patients alone.
        train: make the detectors' runs that are not kept; else the report is on those that are.
        split: `test`, or `validation` while choosing.
        seed: of the bootstrap, of generated lungs and of windows without a nodule.
        resamples: of the bootstrap.

    Raises:
        InputError: when a number is out of its range.
    """

    cohort: Path
    out: Path
    bundles: Path
    experiments: tuple[str, ...] = EXPERIMENTS
    patients: tuple[int, ...] = (10, 25, 50)
    doses: tuple[float, ...] = (0, 1, 3, 10)
    per_category: int = 200
    seeds: int = 5
    steps: int = 300
    network: NetworkName = "plain"
    curve_patients: tuple[int, ...] = (10, 25, 50, 100, 200, 0)
    detection_patients: tuple[int, ...] = (10, 25, 50, 100)
    window_doses: tuple[float, ...] = (0.15, 0.3, 0.6)
    families: tuple[str, ...] = ()
    detection_seeds: int = 3
    detection_steps: int = 1500
    detection_batch_size: int = 16
    detection_size_px: int = 96
    windows: int = 1500
    generators: Path | None = None
    train: bool = True
    split: EvaluationSplit = "test"
    seed: int = 0
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "detection_seeds", "detection_steps", "windows", "resamples"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}.")
        if min(self.patients, default=0) < 1:
            raise InputError(f"`patients` must be at least 1, got {self.patients}.")
        for name in ("curve_patients", "detection_patients", "per_category", "seed", "doses"):
            values = getattr(self, name)
            if min(values if isinstance(values, tuple) else (values,), default=0) < 0:
                raise InputError(f"`{name}` must not be negative, got {values}.")
        if not all(0 < dose <= 1 for dose in self.window_doses):
            raise InputError(f"`window_doses` must be above 0 and at most 1, got {self.window_doses}.")
        known = {arm.family for arm in window_arms((1.0,))}
        for name, wanted, there in (
            ("experiments", self.experiments, set(EXPERIMENTS)),
            ("families", self.families, known),
            ("detection_patients", self.detection_patients, set(self.curve_patients)),
        ):
            if unknown := set(wanted) - set(there):
                raise InputError(f"`{name}`: {list(unknown)} are unknown; there are {list(there)}.")


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
    rows: list[WorthRow] = []
    if "classification" in config.experiments:
        runs = _classification(config, runner)
        results = arm_results(runs, seed=config.seed, resamples=config.resamples)
        cohorts = {run.cohort.name: run.cohort for run in runs}
    if "detection" in config.experiments:
        rows = worth_rows(_detection(config, runner), seed=config.seed, resamples=config.resamples)
    facts = _facts(config, runner.subset, cohorts, results)
    text = [*([worth_markdown(rows, facts)] if rows else []), *([utility_markdown(results, facts)] if results else [])]
    pictures = [save_worth_plot(rows, config.out / "worth.png")] if rows else []
    pictures += [save_plot(results, config.out / "utility.png")] if results else []
    return Report(
        name="utility",
        table={
            **utility_json(results, facts),
            "rows": [worth_json(row, config.network) for row in rows],
            "power": power(rows),
        },
        markdown="\n".join(text),
        metrics={
            **{f"classification/{result.patients}/{result.arm.name}": main_figure(result) for result in results},
            **{
                f"detection/{row.patients}/{row.arm.name.replace('@', '_')}/{row.figure}": row.value.value
                for row in rows
                if row.figure == MAIN_FIGURE
            },
        },
        pictures=tuple(pictures),
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
            generator = _nodule_source(config, cohort.name)
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


def _detection(config: UtilityConfig, runner: Runner) -> list[DetectionRun]:
    experiment, identity = _detection_experiment(config, runner)
    arms = window_arms(config.window_doses, config.families or None)
    plan = [
        (count, seed, arm)
        for count in config.curve_patients
        for seed in range(config.detection_seeds)
        for arm in (arms if count in config.detection_patients else [REAL_WINDOWS])
    ]
    runs = []
    few: FewPatients | None = None
    for count, seed, arm in tqdm(plan, desc="detectors", unit="run"):
        if few is None or (few.count, few.seed) != (count, seed):
            name = f"p{count}-s{seed}"
            few = FewPatients(experiment=experiment, count=count, seed=seed, generator=_nodule_source(config, name))
        if (run := run_detection(arm, few, identity=identity, train=config.train)) is not None:
            runs.append(run)
    if not runs:
        raise InputError(f"{config.out}: no run of these detectors is kept. Train them first, without --no-train.")
    return runs


def _detection_experiment(config: UtilityConfig, runner: Runner) -> tuple[DetectionExperiment, str]:
    """What all runs share, and what changes with the windows that judge."""
    problems: list[str] = []
    subsets = (runner.subset, open_subset(config.cohort, "validation"))
    evaluated, validation = (read_windows(subset, problems) for subset in subsets)
    for problem in problems:
        _logger.warning("%s", problem)
    if not evaluated or not validation:
        raise InputError(
            f"{config.cohort}: its {config.split} and validation splits need nodules outlined by two readers, with "
            f"windows; they have {len(evaluated)} and {len(validation)}."
        )
    sizes = (round(_FREE_SHARE * len(views) / (1 - _FREE_SHARE)) for views in (evaluated, validation))
    free = [read_free_windows(subset, size, seed=config.seed) for subset, size in zip(subsets, sizes, strict=True)]
    experiment = DetectionExperiment(
        patients=Cohort.open(config.cohort).split("training").nonempty(),
        evaluated=evaluated,
        validation=validation,
        free=(free[0], free[1]),
        folder=records_folder(config.out),
        bundles=config.bundles,
        training=DetectionTraining(
            network=config.network,
            steps=config.detection_steps,
            batch_size=config.detection_batch_size,
            size_px=config.detection_size_px,
        ),
        windows=config.windows,
        per_category=config.per_category,
        generated_hosts=lru_cache(lambda: generated_windows(_lung_sampler(config), config.windows, seed=config.seed)),
    )
    shown = [[view.id for view in views] for views in free]
    return experiment, digest_of([*(subset.identity for subset in subsets), shown])


def _lung_sampler(config: UtilityConfig) -> Any:
    lungs = lung_generator(_WINDOW_LUNG_PX)
    return open_bundle(config.bundles, "wcapsgan", configs=lungs.configs, weights=lungs.weights)


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


def _subcohorts(config: UtilityConfig, patients: Sequence[int], seeds: int) -> list[SubCohort]:
    return [
        make_subcohort(
            config.cohort,
            records_folder(config.out) / "cohorts" / f"p{count}-s{seed}",
            patients=count,
            lung_patients=_LUNG_PATIENTS,
            seed=seed,
        )
        for count in sorted(set(patients))
        for seed in range(seeds)
    ]


def _nodule_source(config: UtilityConfig, name: str) -> NoduleSource:
    """The generator of these patients where `generators` has one, else the bundle's."""
    own = config.generators / f"{name}.pt" if config.generators else None
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
        own=True,
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
        "notes": notes(config.steps, results, cohorts.values()),
    }
