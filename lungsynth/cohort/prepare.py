"""Sources in, cohort out: find series and folders of nodules, prepare each, split by patient, list, describe.

Each is prepared on its own: a bad one becomes a problem and the others go on, and a run that was stopped goes on from
those that are finished (`series_rows.FINISHED`). `cohort.json` is written last.
"""

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from lungsynth.cohort.datalists import build_datalists
from lungsynth.cohort.layout import (
    CohortLayout,
    FolderTask,
    calibration_rows,
    find_layout,
    origins,
    outlook,
    prepare_folder,
)
from lungsynth.cohort.not_normal import check_names
from lungsynth.cohort.report import cohort_page, markdown_report, summarise, write_rows
from lungsynth.cohort.series import SeriesTask, SliceExtraction, prepare_series
from lungsynth.cohort.series_rows import FINISHED, CohortRows, SeriesRows
from lungsynth.cohort.slices import LUNG_SIZES_PX
from lungsynth.cohort.split import FOLDS, assign_splits
from lungsynth.ct.discover import SortSettings
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError, naming_file
from lungsynth.io.atomic import remove_temporary, write_json, write_text
from lungsynth.io.running import FolderLock, end_workers, start_workers
from lungsynth.run_folder import RunFolder

__all__ = [
    "PrepareResult",
    "PrepareSettings",
    "claim_cohort_folder",
    "cohort_folder",
    "forget_others",
    "look_at_sources",
    "prepare_cohort",
]

_logger = logging.getLogger(__name__)

Task = TypeVar("Task", SeriesTask, FolderTask)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How a cohort is made.

    Args:
        split: `auto` (test 20 %, validation 10 % of the patients) or `test` (all of them).
        seed: of the split.
        fold: which fifth of the patients tests, for cross-validation.
        slices: see `SliceExtraction`.
        subset: sources are parts of their collections: annotations of scans that are not there are no problem.
        labels: what values of label files mean, by value, such as `{1: "lung", 2: "nodule"}`.
        synthetic: take slices that this project made for scans of patients.
        strict: any problem is an error, and nothing is written.
        not_normal: names of scans, patients and slices that show disease though no annotation says so
            (`not_normal.read_names`); their slices are no normal lungs.

    Raises:
        InputError: on an unknown split, fold or lung size.
    """

    split: str = "auto"
    seed: int = 0
    fold: int = 0
    slices: SliceExtraction = field(default_factory=SliceExtraction)
    subset: bool = False
    labels: Mapping[int, str] = field(default_factory=dict)
    synthetic: bool = False
    strict: bool = False
    not_normal: tuple[str, ...] = ()

    @property
    def files(self) -> SortSettings:
        """What the user says of the files."""
        return SortSettings(subset=self.subset, labels=self.labels, synthetic=self.synthetic)

    def __post_init__(self) -> None:
        if self.split not in ("auto", "test"):
            raise InputError(f"The split is auto or test, got {self.split!r}.")
        if not 0 <= self.fold < FOLDS:
            raise InputError(f"The fold lies in 0..{FOLDS - 1}, got {self.fold}.")
        if self.slices.lung_size_px not in LUNG_SIZES_PX:
            raise InputError(f"The lung size is one of {LUNG_SIZES_PX} pixels, got {self.slices.lung_size_px}.")


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """The content of `cohort.json`, and the problems met on the way."""

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
    listed = {"not_normal": list(settings.not_normal)} if settings.not_normal else {}
    facts = {**division, **asdict(settings.slices), **listed}
    folder = cohort_folder(out, sources, facts)
    folder.check()
    with FolderLock(out):
        return _prepare(folder, sources, settings, facts, workers)


def _prepare(
    folder: RunFolder, sources: Sequence[Path], settings: PrepareSettings, facts: dict[str, Any], workers: int
) -> PrepareResult:
    out, is_new = folder.path, not folder.check()
    with closing(find_layout(sources, settings.files)) as layout:
        if not (layout.series or layout.folders) or (settings.strict and layout.problems):
            raise InputError(_nothing(sources, layout.problems))
        layout = _with_list(layout, settings)
        claim_cohort_folder(folder)
        pieces = _Pieces(out)
        pieces.prepare(layout, settings.slices, workers)
    problems = (*layout.problems, *sorted(pieces.problems, key=lambda problem: str(problem.path)))
    if not pieces.rows or (settings.strict and problems):
        if is_new:
            shutil.rmtree(out)
        raise InputError(_nothing(sources, problems))
    forget_others(out, set(pieces.rows))
    facts |= {"sources": folder.identity["sources"]}
    cohort = _write_cohort(pieces.rows, problems, out, facts, origins(layout))
    return PrepareResult(cohort=cohort, problems=problems)


def _with_list(layout: CohortLayout, settings: PrepareSettings) -> CohortLayout:
    """The layout whose series know what of them is not normal."""
    names = settings.not_normal
    if names and not settings.subset:
        check_names(names, (task.files for task in layout.series))
    return replace(layout, series=tuple(replace(task, not_normal=names) for task in layout.series))


def look_at_sources(sources: Sequence[Path], settings: SortSettings) -> tuple[list[str], tuple[Problem, ...]]:
    """What a cohort would hold, what every file is taken for and why, and the problems; nothing is written.

    Raises:
        InputError: as `find_layout`.
    """
    with closing(find_layout(sources, settings)) as layout:
        return [*outlook(layout), *origins(layout)], layout.problems


def _nothing(sources: Sequence[Path], problems: Sequence[Problem]) -> str:
    """One sentence when nothing can be used, or nothing may be left out."""
    names = ", ".join(str(source) for source in sources)
    if not problems:
        return f"{names}: no CT found; give DICOM series, NIfTI or MetaImage volumes, or a folder of LIDC crops."
    more = f" ({len(problems) - 1} more; `dry_run` says what each file is taken for)" if len(problems) > 1 else ""
    return problems[0].message + more


class _Pieces:
    """The rows of what is finished, by task id, and the problems of what failed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: dict[str, SeriesRows] = {}
        self.problems: list[Problem] = []

    def prepare(self, layout: CohortLayout, settings: SliceExtraction, workers: int) -> None:
        """Prepares what is not finished yet: series in parallel, then folders, then what compares two folders."""
        run = partial(prepare_series, out=self.out, settings=settings)
        series = list(self._waiting(layout.series))
        with closing(_run_all(run, series, workers)) as calls:  # so that an interruption ends the workers, too
            for task, call in tqdm(calls, total=len(series), desc="series", unit="series"):
                self._take(task.task_id, task.files.files[0], call)
        for folder in self._waiting(layout.folders):
            self._take(folder.task_id, folder.path, partial(prepare_folder, folder, self.out))
        self._calibrate(layout.folders)

    def _waiting(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks that have no finished rows."""
        for task in tasks:
            rows = SeriesRows.load(self.out, task.task_id, fingerprint=task.fingerprint)
            if rows is None:
                yield task
            else:
                self.rows[task.task_id] = rows

    def _take(self, task_id: str, path: Path, call: Callable[[], SeriesRows]) -> None:
        """Rows, or a problem: one bad piece does not stop the others."""
        try:
            with naming_file(path, "could not be prepared", remedy="remove it or report it"):
                self.rows[task_id] = call()
        except InputError as error:
            _logger.debug("%s", path, exc_info=True)
            self.problems.append(Problem(path, str(error)))

    def _calibrate(self, folders: Iterable[FolderTask]) -> None:
        try:
            with naming_file(self.out, "the HU of the crops could not be compared with the cubes"):
                rows = calibration_rows([task for task in folders if task.task_id in self.rows], self.out)
        except InputError as error:
            self.problems.append(Problem(self.out, str(error)))
            return
        if rows is not None:
            self.rows[rows.task_id] = rows


def _run_all(
    run: Callable[[SeriesTask], SeriesRows], tasks: list[SeriesTask], workers: int
) -> Generator[tuple[SeriesTask, Callable[[], SeriesRows]], None, None]:
    """Yields each task with a call that gives its rows or raises what went wrong."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, partial(run, task)
        return
    lanes = _Lanes(run)
    threads = ThreadPoolExecutor(workers)
    try:
        futures: dict[Future[SeriesRows], SeriesTask] = {threads.submit(lanes.run, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        lanes.end()
        raise
    threads.shutdown()
    lanes.close()


class _Lanes:
    """A process for each thread: one that dies costs the file that it was at, and the thread starts another."""

    def __init__(self, run: Callable[[SeriesTask], SeriesRows], method: str = "spawn") -> None:
        self._run, self._method = run, method
        self._own = threading.local()
        self._all: set[ProcessPoolExecutor] = set()

    def run(self, task: SeriesTask) -> SeriesRows:
        """Prepares one series in the process of the calling thread.

        Raises:
            InputError: when the process died, naming the file; and what preparing it raised.
        """
        lane: ProcessPoolExecutor | None = getattr(self._own, "lane", None)
        if lane is None:
            lane = self._own.lane = start_workers(1, method=self._method)
            self._all.add(lane)
        try:
            return lane.submit(self._run, task).result()
        except BrokenProcessPool as error:
            self._own.lane = None
            raise InputError(
                f"{task.files.files[0]}: the process that read it died, for want of memory or in a decoder; the other "
                "files went on. Copy it again, or run with fewer `workers`."
            ) from error

    def close(self) -> None:
        """Ends the processes when they have done what they are at."""
        for lane in self._all:
            lane.shutdown(cancel_futures=True)

    def end(self) -> None:
        """Ends the processes at once."""
        for lane in self._all:
            end_workers(lane)


def _write_cohort(
    pieces: Mapping[str, SeriesRows],
    problems: Sequence[Problem],
    out: Path,
    settings: dict[str, Any],
    files: Sequence[str],
) -> dict[str, Any]:
    """Splits, tables, lists, pictures, report; `cohort.json` last."""
    ordered = tuple(pieces[key] for key in sorted(pieces))
    series = [row for piece in ordered for row in piece.series]
    splits = assign_splits(series, mode=settings["split"], seed=settings["seed"], fold=settings["fold"])
    rows = CohortRows(pieces=ordered, splits=splits)
    write_rows(rows, out, build_datalists(rows))
    cohort = summarise(rows, settings=settings, problems=problems)
    write_text(out / "report.md", markdown_report(cohort, rows, files))
    write_text(out / "report.html", cohort_page(cohort, rows, out))
    write_json(out / "cohort.json", cohort)
    return cohort


_FOLDERS = ("slices", "labels", "nodules", "windows", "cubes", "lungs")


def cohort_folder(out: Path, sources: Sequence[Path], settings: Mapping[str, Any]) -> RunFolder:
    """The folder of a cohort, not looked at yet.

    Args:
        out: the folder.
        sources: what it is made of. Their places count by their hash, so that no path of this machine is written.
        settings: how it is made.

    Raises:
        InputError: when the folder lies inside a source.
    """
    if any(out.resolve().is_relative_to(source.resolve()) for source in sources):
        raise InputError(f"{out}: a cohort must not lie inside its source. Give another folder as `out`.")
    places = "\n".join(sorted(str(source.resolve()) for source in sources))
    identity = {
        **settings,
        "sources": sorted(source.resolve().name for source in sources),
        "source_locations": hashlib.sha256(places.encode()).hexdigest()[:16],
    }
    return RunFolder(path=out, identity=identity)


def claim_cohort_folder(folder: RunFolder) -> None:
    """Makes the folders of a cohort; it is without `cohort.json` until it is whole."""
    folder.claim()
    remove_temporary(folder.path, recursive=True)
    for name in (*_FOLDERS, FINISHED):
        (folder.path / name).mkdir(exist_ok=True)
    (folder.path / "cohort.json").unlink(missing_ok=True)


def forget_others(out: Path, task_ids: Set[str]) -> None:
    """Removes what an earlier run wrote for series that are no longer there."""
    kept = {SeriesRows.path(out, task_id) for task_id in task_ids}
    for path in (out / FINISHED).glob("*.json"):
        if path in kept or path.stem == "identity":  # the second is of format 1
            continue
        for name in SeriesRows.read(path).files():
            (out / name).unlink(missing_ok=True)
        path.unlink()
