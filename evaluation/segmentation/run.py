"""Table I: every method of lung_seg_bundle that has weights, on the evaluated patients of a cohort.

Files of the folder: `table_1.md`, `table_1.json`, `froc.png`, `errors/`, and `.parts/` with the records of each method.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.composites import Composites, evaluate_composites
from evaluation.methods import Method, check_relations
from evaluation.metrics.froc import Froc
from evaluation.metrics.matching import Case
from evaluation.plots import plot_file
from evaluation.runner import EvaluationResult, Report, Runner, records_folder
from evaluation.segmentation.crops import evaluate_crops, one_reader_ceiling, read_crops
from evaluation.segmentation.detectors import OWN, baselines, find_detectors, stated_operating_point
from evaluation.segmentation.errors import SegmentationImages, write_errors
from evaluation.segmentation.figures import measure_result
from evaluation.segmentation.records import SegmentationResult, result_store
from evaluation.segmentation.scans import evaluate_scans
from evaluation.segmentation.table import MeasuredDetector, table_1_json, table_1_markdown
from evaluation.segmentation.windows import evaluate_windows, read_windows, reader_sensitivity
from lungsynth.errors import InputError
from lungsynth.tracking import DEFAULT_URI

__all__ = ["SegmentationConfig", "evaluate_detector", "evaluate_segmentation", "open_images"]

_WARM_UP = (1, 64, 64)  # voxels; what a detector builds on its first call is not timed
_FROC_LIMITS = (1 / 16, 16)  # false positives per image, of the plot's axis


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """An evaluation of methods of segmentation.

    Args:
        cohort: folder written by `lungsynth prepare`.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        weights: folder with the weights of the methods but the product's.
        methods: names; all that have weights when None.
        split: `test`, or `validation` to choose an operating point.
        composites: whole slices to make.
        seed: of the composites and the bootstrap.
        require_held_out: refuse methods that may have been trained on the evaluated patients.

    Raises:
        InputError: on a negative number.
    """

    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    split: EvaluationSplit = "test"
    composites: int = 200
    seed: int = 0
    require_held_out: bool = False

    def __post_init__(self) -> None:
        if self.composites < 0 or self.seed < 0:
            raise InputError(f"`composites` and `seed` must not be negative, got {self.composites} and {self.seed}.")


def evaluate_segmentation(config: SegmentationConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Evaluates, and writes Table I.

    Raises:
        InputError: when the cohort, a requested method or the tracking store cannot be used.
    """
    subset = open_subset(config.cohort, config.split)
    trained, left_out = find_detectors(subset, config.bundles, config.weights, requested=config.methods)
    methods = [*baselines(), *trained]
    check_relations(methods, required=config.require_held_out)
    runner = Runner(command="segmentation", subset=subset, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, runner, methods, left_out))


@contextmanager
def open_images(subset: Subset, *, composites: int, seed: int) -> Iterator[SegmentationImages]:
    """The crops of a subset, and composites that live while the context is open.

    Args:
        subset: who is evaluated on.
        composites: how many to make.
        seed: of the composites.
    """
    problems: list[str] = []
    crops, windows = read_crops(subset, problems), read_windows(subset, problems)
    with Composites(subset, count=composites, seed=seed, problems=problems) as slices:
        yield SegmentationImages(
            subset=subset,
            windows=windows,
            crops=crops,
            composites=slices,
            problems=tuple(problems),
            identity=f"{subset.identity}:{composites}:{seed}",
        )


def evaluate_detector(method: Method, images: SegmentationImages, *, scans: bool = True) -> SegmentationResult:
    """Runs a method on all images.

    Args:
        method: opens the detector.
        images: windows, crops and composites, and the subset whose scans are read.
        scans: whether to run it on the scans.

    Raises:
        InputError: when the detector returns no detection.
    """
    detector, problems, name = method.open(), list[str](), method.name
    detector(np.full(_WARM_UP, -850, np.int16), (1.0, 0.7, 0.7))
    results: dict[str, Any] = {
        "windows": evaluate_windows(images.windows, detector, name=name),
        "crops": evaluate_crops(images.crops, detector, name=name),
        "composites": evaluate_composites(images.composites, detector, name=name),
    }
    if scans:
        results["scans"] = evaluate_scans(images.subset, detector, name=name, problems=problems)
    return SegmentationResult(operating_point=stated_operating_point(detector), problems=tuple(problems), **results)


def _evaluate(
    config: SegmentationConfig, runner: Runner, methods: Sequence[Method], left_out: Mapping[str, str]
) -> Report:
    store = result_store(records_folder(config.out))
    with open_images(runner.subset, composites=config.composites, seed=config.seed) as images:

        def evaluate(method: Method) -> SegmentationResult:
            identity = f"{images.identity}:{method.identity}"
            return store.get(method.name, lambda: evaluate_detector(method, images), identity=identity)

        results, failures = runner.run_methods(methods, evaluate, requested=config.methods)
        rows = [
            MeasuredDetector(
                method=method,
                result=results[method.name],
                figures=measure_result(results[method.name], seed=config.seed),
            )
            for method in methods
            if method.name in results
        ]
        ceiling = measure_result(SegmentationResult(crops=one_reader_ceiling(images.crops)), seed=config.seed)
        reader = reader_sensitivity(images.windows, seed=config.seed)
        absent, problems = {**left_out, **failures}, _problems(images, rows)
        pictures = [_save_froc(rows, config.out / "froc.png"), *_write_errors(rows, images, config.out / "errors")]
        table = table_1_json(runner.subset, rows, ceiling, reader=reader, left_out=absent)
        return Report(
            name="table_1",
            table={**table, "problems": list(problems)},
            markdown=table_1_markdown(runner.subset, rows, ceiling, reader=reader, left_out=absent),
            metrics={
                f"{row.method.name}/{name}": figure.value
                for row in rows
                for name, figure in row.figures.headline.items()
            },
            pictures=tuple(pictures),
            problems=problems,
        )


def _problems(images: SegmentationImages, rows: Sequence[MeasuredDetector]) -> tuple[str, ...]:
    """What could not be read, once each, with paths from the cohort on."""
    problems = [*images.problems, *(problem for row in rows for problem in row.result.problems)]
    return tuple(dict.fromkeys(problem.replace(f"{images.subset.folder}/", "") for problem in problems))


def _write_errors(rows: Sequence[MeasuredDetector], images: SegmentationImages, folder: Path) -> tuple[Path, ...]:
    """The errors of the product's method, else of the last trained one."""
    trained = [row for row in rows if row.method.relation]
    row = next((row for row in trained if row.method.name == OWN), trained[-1] if trained else None)
    if row is None:
        return write_errors(folder, "", None, None, images)
    return write_errors(folder, row.method.title, row.result, row.method.open(), images)


def _save_froc(rows: Sequence[MeasuredDetector], path: Path) -> Path:
    """A panel of FROC curves for composites, and one for scans, where they have lesions."""
    panels: dict[str, dict[str, tuple[Case, ...]]] = {}
    for kind in ("composites", "scans"):
        cases = {
            row.method.title: row.result.composites if kind == "composites" else row.result.scans.cases for row in rows
        }
        first = next(iter(cases.values()), ())
        if lesions := sum(len(case.nodules) for case in first):
            panels[f"{lesions} lesions on {len(first)} {kind}"] = cases
    with plot_file(path, columns=max(1, len(panels))) as axes:
        for panel, (title, cases) in zip(axes, panels.items(), strict=False):
            _draw_froc(panel, title, cases)
    return path


def _draw_froc(axes: Any, title: str, cases: Mapping[str, tuple[Case, ...]]) -> None:
    for index, (name, own) in enumerate(cases.items()):
        rates, sensitivities = Froc(own).curve()
        axes.step(np.maximum(rates, _FROC_LIMITS[0]), sensitivities, where="post", label=name, color=f"C{index % 10}")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**power for power in range(-3, 4)], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(
        xlim=_FROC_LIMITS,
        ylim=(-0.02, 1.02),
        title=title,
        xlabel="false positives per image",
        ylabel="sensitivity",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
