"""Runs methods and reports: records that survive a stop, a row for each method, tables as files, MLflow.

An evaluation with the same folder goes on where it was stopped, because each finished record is kept in `.parts` of
that folder and taken from there as long as its identity is the same.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.methods import Method
from lungsynth.errors import InputError, StorageError, reason
from lungsynth.io.atomic import remove_temporary, write_json, write_text
from lungsynth.io.running import FolderLock
from lungsynth.tracking import DEFAULT_URI, Run, open_tracker

__all__ = ["FORMAT", "EvaluationResult", "RecordStore", "Report", "Runner", "records_folder"]

FORMAT = 2  # of tables and records: the keys that docs/reference/evaluation_files.md lists
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

_logger = logging.getLogger(__name__)
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class RecordStore(Generic[Record]):
    """Records on disk, one JSON file each, whole or absent.

    Args:
        folder: of the files.
        to_json: gives what JSON can hold.
        from_json: the inverse; raises a ValueError, KeyError or TypeError on anything else.
    """

    folder: Path
    to_json: Callable[[Record], Any]
    from_json: Callable[[Any], Record]

    def path(self, name: str) -> Path:
        """The file of a record."""
        return self.folder / f"{name}.json"

    def load(self, name: str, *, identity: str) -> Record | None:
        """A record that was kept; None where there is none, or it has another identity."""
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
            record = self.from_json(content["record"]) if content["identity"] == identity else None
        except _DAMAGED:
            return None
        if record is not None:
            _logger.info("%s: taken from %s", name, self.path(name))
        return record

    def save(self, name: str, record: Record, *, identity: str) -> None:
        """Keeps a record."""
        content = {"format": FORMAT, "identity": identity, "record": self.to_json(record)}
        write_json(self.path(name), content, indent=None)

    def get(self, name: str, make: Callable[[], Record], *, identity: str) -> Record:
        """A record that was kept, else one that is made and kept."""
        record = self.load(name, identity=identity)
        if record is None:
            record = make()
            self.save(name, record, identity=identity)
        return record


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation writes and tracks.

    Args:
        name: of the table's files.
        table: content of the JSON file; no id of a patient.
        markdown: content of the Markdown file.
        metrics: numbers for MLflow, by name; None is left out.
        params: settings for MLflow, beside split and seed.
        pictures: files that were written beside the table.
        problems: images that could not be read.
    """

    name: str
    table: Mapping[str, Any]
    markdown: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A finished evaluation.

    Args:
        out: folder of the files.
        name: of the table's files, without suffix.
        table: content of the JSON file.
        markdown: content of the Markdown file.
        pictures: files beside them.
        problems: images that could not be read.
        tracking_uri: MLflow store; None where nothing was tracked.
    """

    out: Path
    name: str
    table: Mapping[str, Any]
    markdown: str
    pictures: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()
    tracking_uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class Runner:
    """One evaluation of one subset.

    Args:
        command: its name in MLflow.
        subset: who is evaluated on.
        out: folder of the results.
        seed: of everything random.
        tracking_uri: MLflow store.
    """

    command: str
    subset: Subset
    out: Path
    seed: int
    tracking_uri: str = DEFAULT_URI

    def run_methods(
        self,
        methods: Sequence[Method],
        evaluate: Callable[[Method], Record],
        *,
        requested: Sequence[str] | None = None,
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Evaluates methods one after the other; one that fails does not take the others with it.

        Args:
            methods: in the table's order.
            evaluate: gives the record of a method.
            requested: methods whose failure is an error, as that of an untrained one is.

        Returns:
            Records by method, and why others have none.

        Raises:
            InputError: naming the method, when a requested or an untrained one fails.
        """
        records: dict[str, Record] = {}
        failures: dict[str, str] = {}
        for method in tqdm(methods, desc="methods", unit="method"):
            try:
                records[method.name] = evaluate(method)
            except StorageError:
                raise
            except Exception as error:  # whatever a bundle raises
                message = f"{method.name}: failed ({reason(error)})"
                if method.relation is None or method.name in (requested or ()):
                    raise InputError(message) from error
                failures[method.name] = message
                _logger.warning("%s is left out: %s", method.name, message)
        return records, failures

    def report(self, evaluate: Callable[[], Report]) -> EvaluationResult:
        """Evaluates within an MLflow run, writes the table's files and tracks them.

        Raises:
            InputError: when the tracking store cannot be used, or `evaluate` raises one.
        """
        tracker = open_tracker(self.tracking_uri)
        name = f"{self.command}-{self.subset.split}"
        with FolderLock(self.out), tracker.run(name, tags={"evaluation": self.command}) as run:
            remove_temporary(self.out, recursive=True)
            report = evaluate()
            table = {"format": FORMAT, **report.table}
            write_json(self.out / f"{report.name}.json", table)
            write_text(self.out / f"{report.name}.md", report.markdown)
            self._track(run, report)
        return EvaluationResult(
            out=self.out,
            name=report.name,
            table=table,
            markdown=report.markdown,
            pictures=report.pictures,
            problems=report.problems,
            tracking_uri=tracker.uri,
        )

    def _track(self, run: Run, report: Report) -> None:
        """Logs settings, figures, tables and pictures; no id of a patient or file."""
        split = {"split": self.subset.split, "split_hash": self.subset.split_hash, "seed": self.seed}
        run.log_params({**split, **report.params})
        run.log_metrics({name: value for name, value in report.metrics.items() if value is not None})
        run.log_json({key: value for key, value in report.table.items() if key != "problems"}, f"{report.name}.json")
        run.log_file(self.out / f"{report.name}.md")
        for picture in report.pictures:
            run.log_file(picture, "pictures")


def records_folder(out: Path) -> Path:
    """Where an evaluation keeps what it needs to go on after a stop."""
    return out / ".parts"
