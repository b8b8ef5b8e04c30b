"""Sources in, COHORT out (contract C5): find, prepare each piece, split by patient, list, describe.

Each series is a piece of its own: a bad one becomes a problem and the others go on, and a run that was stopped goes on
from the pieces that are finished (`.parts/`). `cohort.json` is written last.
"""

import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lungsynth.cohort.datalists import build_datalists
from lungsynth.cohort.folders import calibration_part, prepare_folder
from lungsynth.cohort.layout import CohortLayout, FolderTask, make_plan
from lungsynth.cohort.output import check_output, cohort_identity, forget_others, open_output
from lungsynth.cohort.records import SeriesRows
from lungsynth.cohort.report import Contents, markdown_report, summarise, write_contents
from lungsynth.cohort.series import SeriesTask, SliceExtraction, prepare_series
from lungsynth.cohort.slices import LUNG_SIZES_PX
from lungsynth.cohort.split import FOLDS, assign_splits
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text

__all__ = ["PrepareResult", "PrepareSettings", "prepare_cohort"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How a cohort is made.

    Args:
        split: `auto` (test 20 %, validation 10 % of the patients) or `test` (all of them).
        seed: of the split.
        fold: which fifth of the patients tests, for cross-validation.
        slices: see `SliceExtraction`.
        subset: sources are parts of their collections: annotation tables may name series that are not there.

    Raises:
        InputError: on an unknown split, fold or lung size.
    """

    split: str = "auto"
    seed: int = 0
    fold: int = 0
    slices: SliceExtraction = field(default_factory=SliceExtraction)
    subset: bool = False

    def __post_init__(self) -> None:
        if self.split not in ("auto", "test"):
            raise InputError(f"The split is auto or test, got {self.split!r}.")
        if not 0 <= self.fold < FOLDS:
            raise InputError(f"The fold lies in 0..{FOLDS - 1}, got {self.fold}.")
        if self.slices.lung_size_px not in LUNG_SIZES_PX:
            raise InputError(f"The lung size is one of {LUNG_SIZES_PX} pixels, got {self.slices.lung_size_px}.")


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What came of it: the content of `cohort.json`, and the problems."""

    cohort: dict[str, Any]
    problems: tuple[Problem, ...]


def prepare_cohort(sources: Sequence[Path], out: Path, *, settings: PrepareSettings, workers: int = 2) -> PrepareResult:
    """Prepares a cohort.

    Args:
        sources: folders, zips or files, in any mix of layouts.
        out: the cohort; a new folder, or one that the same call left unfinished.
        settings: see `PrepareSettings`.
        workers: processes; they change the time, not the files.

    Raises:
        InputError: when nothing can be used, or `out` holds something else.
    """
    division = {"split": settings.split, "seed": settings.seed, "fold": settings.fold}
    identity = cohort_identity(sources, {**division, **asdict(settings.slices)})
    is_new = check_output(out, sources, identity)
    with closing(make_plan(sources, subset=settings.subset)) as plan:
        if not plan.series and not plan.folders:
            raise InputError(_nothing(sources, plan.problems))
        open_output(out, identity)
        parts, failures = _prepare_parts(plan, out, settings.slices, workers)
    problems = (*plan.problems, *failures)
    if not parts:
        if is_new:
            shutil.rmtree(out)
        raise InputError(_nothing(sources, problems))
    forget_others(out, {part.part_id for part in parts})
    return PrepareResult(cohort=_finish(parts, problems, out, identity["settings"]), problems=problems)


def _nothing(sources: Sequence[Path], problems: Sequence[Problem]) -> str:
    """One sentence when nothing can be used."""
    names = ", ".join(str(source) for source in sources)
    if not problems:
        return f"{names}: no CT found; give DICOM series, NIfTI or MetaImage volumes, or a folder of LIDC crops."
    more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
    return problems[0].message + more


def _prepare_parts(
    plan: CohortLayout, out: Path, settings: SliceExtraction, workers: int
) -> tuple[list[SeriesRows], list[Problem]]:
    """Prepares what is not finished yet; parts in the order of their ids."""
    tasks: list[SeriesTask | FolderTask] = [*plan.series, *plan.folders]
    loaded = {
        task.part_id: SeriesRows.load(out / ".parts", task.part_id, fingerprint=task.fingerprint) for task in tasks
    }
    parts = {part_id: part for part_id, part in loaded.items() if part is not None}
    waiting = [task for task in tasks if task.part_id not in parts]
    series = [task for task in waiting if isinstance(task, SeriesTask)]
    problems: list[Problem] = []
    run = partial(prepare_series, out=out, settings=settings)
    for task, call in tqdm(_run_all(run, series, workers), total=len(series), desc="series", unit="series"):
        _collect(task, call, parts, problems)
    for folder in (task for task in waiting if isinstance(task, FolderTask)):
        _collect(folder, partial(prepare_folder, folder, out), parts, problems)
    try:
        check = calibration_part([task for task in plan.folders if task.part_id in parts], out)
        parts.update({} if check is None else {check.part_id: check})
    except (InputError, ValueError, KeyError, OSError) as error:
        problems.append(Problem(out, f"The HU of the crops could not be compared with the cubes ({error})."))
    return [parts[key] for key in sorted(parts)], sorted(problems, key=lambda problem: str(problem.path))


def _run_all(
    run: Callable[[SeriesTask], SeriesRows], tasks: list[SeriesTask], workers: int
) -> Iterator[tuple[SeriesTask, Callable[[], SeriesRows]]]:
    """Yields each task with a call that gives its part or raises what went wrong."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, partial(run, task)
        return
    # Spawned, not forked: progress bars and libraries of the parent hold threads.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures: dict[Future[SeriesRows], SeriesTask] = {pool.submit(run, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(
    task: SeriesTask | FolderTask, call: Callable[[], SeriesRows], parts: dict[str, SeriesRows], problems: list[Problem]
) -> None:
    """A part, or a problem: one bad piece does not stop the others."""
    path = task.path if isinstance(task, FolderTask) else task.files.files[0]
    try:
        parts[task.part_id] = call()
    except InputError as error:
        problems.append(Problem(path, str(error)))
    except BrokenProcessPool as error:
        raise InputError("A worker was ended, most likely for want of memory; run again with --workers 1.") from error
    except Exception as error:  # a defect met by one series must not cost the others
        _logger.debug("%s", path, exc_info=True)
        problems.append(
            Problem(path, f"{path}: could not be prepared ({type(error).__name__}: {error}); remove it or report it.")
        )


def _finish(
    parts: Sequence[SeriesRows], problems: Sequence[Problem], out: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Splits, tables, lists, pictures, report; `cohort.json` last."""
    series = [row for part in parts for row in part.series]
    splits = assign_splits(series, mode=settings["split"], seed=settings["seed"], fold=settings["fold"])
    contents = Contents(parts=tuple(parts), splits=splits)
    write_contents(contents, out, build_datalists(series, contents.slices, contents.nodules, splits))
    cohort = summarise(contents, settings=settings, problems=problems)
    write_text(out / "report.md", markdown_report(cohort, contents))
    write_json(out / "cohort.json", cohort)
    return cohort
