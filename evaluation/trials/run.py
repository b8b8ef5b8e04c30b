"""Runs detectors on real nodules and on those that stand in for them, and compares what they find.

A method's threshold is that of so many false positives on the real windows. What is compared are sensitivities by
method, and by cell of size and texture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.cohort_subsets import Subset, open_subset
from evaluation.methods import Method, check_relations, digest_of
from evaluation.metrics.froc import Froc
from evaluation.runner import EvaluationResult, RecordStore, Report, Runner, records_folder
from evaluation.segmentation.detectors import baselines, find_detectors
from evaluation.segmentation.windows import NoduleView, evaluate_windows, rate_per_window, read_windows
from evaluation.trials.agreement import RATE_PER_100_CM2, TEXTURES, Agreement, cell_of
from evaluation.trials.arms import ARMS, REAL, Arms, kept_arms
from lungsynth.tracking import DEFAULT_URI

__all__ = ["TrialEvaluationConfig", "evaluate_trials"]


@dataclass(frozen=True, kw_only=True)
class TrialEvaluationConfig:
    """What is compared.

    Args:
        cohort: folder that `prepare` wrote, with windows.
        out: folder of the results.
        bundles: folder of the bundles.
        weights: folder of the methods' weights.
        methods: names; all with weights when None.
        patients: file with ids of patients, one a line, to whom it is limited; None for all who validate or test.
        per_cell: nodules of a cell of size and texture at most; those are most that are small and solid.
        require_held_out: refuse methods that may have been trained on the evaluated patients.
        seed: of everything random.
    """

    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    patients: Path | None = None
    per_cell: int = 30
    require_held_out: bool = False
    seed: int = 0


def evaluate_trials(config: TrialEvaluationConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Runs the methods on real nodules and on those of each arm, and writes `trials.json` and `trials.md`.

    Args:
        config: what is compared.
        tracking_uri: MLflow store.

    Raises:
        InputError: when the cohort has no windows of held-out patients, or a method cannot be used.
    """
    test = open_subset(config.cohort, "test")
    detectors, left_out = find_detectors(test, config.bundles, config.weights, requested=config.methods)
    check_relations(detectors, required=config.require_held_out)
    methods = [*(method for method in baselines() if method.name == "threshold"), *detectors]
    runner = Runner(command="trials", subset=test, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, test, methods, left_out, runner))


def _evaluate(
    config: TrialEvaluationConfig,
    test: Subset,
    methods: Sequence[Method],
    left_out: Mapping[str, str],
    runner: Runner,
) -> Report:
    problems: list[str] = []
    views, owners = _chosen_views(config, test, problems)
    folder = records_folder(config.out)
    arms = kept_arms(views, owners, folder, bundles=config.bundles, seed=config.seed, identity=test.identity)
    store: RecordStore[dict[str, Any]] = RecordStore(folder=folder, to_json=dict, from_json=dict)
    asked = digest_of([test.identity, config.seed, ARMS, [view.nodule.nodule_id for view in arms[REAL]]])

    def run(method: Method) -> dict[str, Any]:
        return store.get(method.name, lambda: _scores(method, arms), identity=f"{asked}:{method.identity}")

    records, failures = runner.run_methods(methods, run, requested=config.methods)
    usable = [method for method in methods if method.name in records]
    agreement = Agreement.of(arms[REAL], {method.name: records[method.name] for method in usable}, config.seed)
    return Report(
        name="trials",
        table={**agreement.to_json(), "left_out": {**left_out, **failures}, "problems": problems},
        markdown=agreement.markdown(usable),
        metrics={name: figure.value for name, figure in agreement.figures.items()},
        problems=tuple(problems),
    )


def _chosen_views(
    config: TrialEvaluationConfig, test: Subset, problems: list[str]
) -> tuple[list[NoduleView], dict[str, Subset]]:
    """Views of held-out nodules of known texture, up to so many of each cell, and the subset of each."""
    chosen = set(config.patients.read_text(encoding="utf-8").split()) if config.patients else None
    views, owners, taken = [], {}, Counter[tuple[str, str]]()
    for subset in (test, open_subset(config.cohort, "validation")):
        for view in read_windows(subset, problems):
            nodule = view.nodule
            if nodule.texture_class not in TEXTURES or (chosen is not None and nodule.patient_id not in chosen):
                continue
            taken[cell_of(view)] += 1
            if taken[cell_of(view)] <= config.per_cell:
                views.append(view)
                owners[nodule.nodule_id] = subset
    return views, owners


def _scores(method: Method, arms: Arms) -> dict[str, Any]:
    """For each arm the score of each nodule, -1 where nothing hits it; and the threshold."""
    detector = method.open()
    scores: dict[str, Any] = {}
    for name, views in arms.items():
        records = evaluate_windows(views, detector, name=f"{method.name}, {name}")
        scores[name] = [-1.0 if case.nodules[0].score is None else case.nodules[0].score for case in records.cases]
        if name == REAL:
            scores["threshold"] = Froc(records.cases).threshold_at(rate_per_window(RATE_PER_100_CM2))
    return scores
