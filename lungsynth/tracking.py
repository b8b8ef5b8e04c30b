"""MLflow: one parent run for a command, a child run a stage. The only file that imports mlflow.

mlflow is imported on first use: it takes seconds, and its telemetry has to be switched off before. Runs are made
through `MlflowClient`, so there is no global active run, no host or user name in the tags, and a run ends when its
block ends: FINISHED, FAILED after an exception, KILLED after Ctrl-C. Who continues a folder of results continues its
run. What is logged are settings, counts, hashes and pictures, never patient ids or absolute paths. A tracker without a
store takes the same calls and keeps nothing.
"""

import json
import logging
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from PIL import Image

from lungsynth.errors import InputError, StorageError
from lungsynth.io.atomic import write_text
from lungsynth.io.running import explained

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["DEFAULT_URI", "EXPERIMENT", "Run", "Tracker", "open_tracker", "ui_address", "ui_command"]

DEFAULT_URI = "sqlite:///runs/mlflow.db"
EXPERIMENT = "lungsynth"
_PARENT_TAG = "mlflow.parentRunId"
_PROBE_SECONDS = 5
_SQLITE = "sqlite:///"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_logger = logging.getLogger(__name__)
_RUN_MARK = ".parts/mlflow_run"  # in a folder of results: the id of its run
_RUN_ID = re.compile(r"[0-9a-f]{1,64}")
_DIGEST = 36  # characters, of which a digest of MLflow has no more
_AS_TRAINING = "workflowType=machine_learning"  # else the UI opens its pages of language models around a run
_UI_ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` serves by default


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run in progress; made by `Tracker.run`. Without a client it keeps nothing.

    Args:
        client: of the store; None keeps nothing.
        run_id: in the store.
        uri: of the store, for messages.
        continued: whether it goes on with a run that had ended.
        previous: the metrics that a continued run has had.
    """

    client: Any
    run_id: str
    uri: str = "none"
    continued: bool = False
    previous: Mapping[str, float] = field(default_factory=dict)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs settings; values as text. A continued run keeps those that it has."""
        if self.client is None:
            return
        from mlflow.entities import Param

        with _telling(self.uri):
            there = self.client.get_run(self.run_id).data.params if self.continued else {}
            new = [Param(key, str(value)) for key, value in params.items() if key not in there]
            self.client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Logs numbers of step 0 in one write."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        with _telling(self.uri):
            self.client.log_batch(self.run_id, metrics=values)

    def log_dataset(self, name: str, *, digest: str, context: str, about: Mapping[str, Any]) -> None:
        """Logs a data set that the run reads; the UI shows it beside the run.

        Args:
            name: of the data set.
            digest: a hash of its content; of a longer one the first 36 characters are kept.
            context: what it is for.
            about: JSON values: collections, licences, counts; no patients and no paths.
        """
        if self.client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        told = json.dumps(about)
        entity = Dataset(name, digest[:_DIGEST], "lungsynth", told, profile=told)
        tags = [InputTag("mlflow.data.context", context)]
        with _telling(self.uri):
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags)])

    def describe(self, text: str) -> None:
        """Sets the description (Markdown) that the UI shows above all else."""
        if self.client is not None:
            with _telling(self.uri):
                self.client.set_tag(self.run_id, "mlflow.note.content", text)

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Logs a JSON artifact at `name`, e.g. `configs/wcapsgan.json`."""
        if self.client is not None:
            with _telling(self.uri):
                self.client.log_dict(self.run_id, dict(content), name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copies a file to the run's artifacts."""
        if self.client is not None:
            with _telling(self.uri):
                self.client.log_artifact(self.run_id, str(path), folder)

    def log_image(self, image: Image.Image, name: str) -> None:
        """Logs a picture at `name`, e.g. `samples/000001.png`."""
        if self.client is not None:
            with _telling(self.uri):
                self.client.log_image(self.run_id, image, name)

    def show_image(self, image: Image.Image, key: str) -> None:
        """Logs a picture that the UI shows among the charts of a run, under a name of letters and underscores."""
        if self.client is not None:
            with _telling(self.uri):
                self.client.log_image(self.run_id, image, key=key, step=0)


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A reachable tracking store with its experiment, or nothing; made by `open_tracker`."""

    client: Any
    uri: str
    experiment_id: str
    fresh: list[str] = field(default_factory=list)  # ids of the runs that this tracker has started

    @contextmanager
    def run(self, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """Starts a run, nested below `parent`, and ends it with the status of the block.

        Below a parent that is continued, the run of the same name goes on.
        """
        if self.client is None:
            yield Run(client=None, run_id="")
            return
        with _telling(self.uri):
            if parent is not None and parent.continued and (found := self._child(parent, name)):
                run = self._reopened(found)
            else:
                nesting = {_PARENT_TAG: parent.run_id} if parent else {}
                created = self.client.create_run(self.experiment_id, run_name=name, tags={**(tags or {}), **nesting})
                run = Run(client=self.client, run_id=created.info.run_id, uri=self.uri)
                self.fresh.append(run.run_id)
        with self._ending(run):
            yield run

    @contextmanager
    def resumable_run(self, folder: Path, name: str, *, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """The run of a folder of results: a later process that continues the folder continues this run.

        Its id stands in the folder, so that a run that was killed is closed and goes on, too.

        Args:
            folder: of the results.
            name: of the run.
            tags: of the run.
        """
        mark = folder / _RUN_MARK
        if self.client is not None and (run_id := _marked(mark)):
            self.close_stale(run_id)
            with _telling(self.uri):
                run = self._reopened(run_id) if self._is_there(run_id) else None
            if run is not None:
                with self._ending(run):
                    yield run
                return
        with self.run(name, tags=tags) as run:
            if self.client is not None:
                write_text(mark, run.run_id)
            yield run

    def close_stale(self, run_id: str) -> None:
        """Marks a run that a killed process left as RUNNING, and its children, as KILLED; unknown ids are ignored."""
        if self.client is None or not _RUN_ID.fullmatch(run_id):
            return
        with _telling(self.uri):
            self._close_stale(run_id)

    def _close_stale(self, run_id: str) -> None:
        query = f"attributes.status = 'RUNNING' and tags.`{_PARENT_TAG}` = '{run_id}'"
        stale = [run.info.run_id for run in self.client.search_runs([self.experiment_id], query)]
        own = self.client.search_runs(
            [self.experiment_id], f"attributes.status = 'RUNNING' and attributes.run_id = '{run_id}'"
        )
        for identifier in stale + [run.info.run_id for run in own]:
            self.client.set_terminated(identifier, "KILLED")

    def page(self, run: Run) -> str:
        """The address of a run in the UI, behind that of its server; empty without a store."""
        if self.client is None:
            return ""
        return f"#/experiments/{self.experiment_id}/runs/{run.run_id}?{_AS_TRAINING}"

    @contextmanager
    def _ending(self, run: Run) -> Iterator[None]:
        """Ends a run as its block ends."""
        status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self._terminate(run.run_id, status)

    def _terminate(self, run_id: str, status: str) -> None:
        """Ends a run; where its block ended by an error, that one is told, and not what the store says now."""
        try:
            with _telling(self.uri), _short_patience():
                self.client.set_terminated(run_id, status)
        except InputError as error:
            if status == "FINISHED":
                raise
            _logger.warning("%s", error)

    def _is_there(self, run_id: str) -> bool:
        """Whether the store has this run, and it was not deleted."""
        return bool(self.client.search_runs([self.experiment_id], f"attributes.run_id = '{run_id}'"))

    def _child(self, parent: Run, name: str) -> str | None:
        query = f"tags.`{_PARENT_TAG}` = '{parent.run_id}' and attributes.run_name = '{name}'"
        found = self.client.search_runs([self.experiment_id], query, max_results=1)
        return found[0].info.run_id if found else None

    def _reopened(self, run_id: str) -> Run:
        self.client.update_run(run_id, status="RUNNING")
        previous = self.client.get_run(run_id).data.metrics
        self.fresh.append(run_id)
        return Run(client=self.client, run_id=run_id, uri=self.uri, continued=True, previous=previous)


def _marked(mark: Path) -> str | None:
    """The id that a mark holds; None where there is none, or something else."""
    text = mark.read_text(encoding="utf-8", errors="replace").strip() if mark.is_file() else ""
    return text if _RUN_ID.fullmatch(text) else None


def open_tracker(uri: str | None = DEFAULT_URI, *, experiment: str = EXPERIMENT) -> Tracker:
    """Connects to a tracking store, creating a SQLite file and the experiment where they do not exist.

    Args:
        uri: `sqlite:///FILE`, `http(s)://HOST`, or a database URI that MLflow knows; None or `none` track nothing.
        experiment: its name; a new one in SQLite keeps its artifacts in `mlartifacts` beside the file.

    Raises:
        InputError: when the store cannot be used, within a few seconds and before anything is written.
    """
    if uri is None or uri == "none":
        return Tracker(client=None, uri="none", experiment_id="")
    _check_uri(uri)
    absolute = _absolute(uri)
    had_mlruns = Path("mlruns").exists()
    with _telling(uri), _short_patience(), _alone_in(absolute):
        client = _mlflow_client(absolute)
        experiment_id = _experiment_id(client, absolute, experiment)
    if not had_mlruns:
        _remove_empty(Path("mlruns"))  # MLflow makes it for an experiment that we do not use
    return Tracker(client=client, uri=absolute, experiment_id=experiment_id)


def ui_command(uri: str) -> str:
    """The command that opens the UI on `uri`: `mlflow ui`, or a browser where a server runs already."""
    if uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(uri)}"
    program = "mlflow"
    beside = Path(sys.executable).parent / program
    found = shutil.which(program)
    if beside.is_file() and (found is None or not Path(found).samefile(beside)):
        # The environment is not activated, as after `make demo`.
        program = str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
    return f"{shlex.quote(program)} ui --backend-store-uri {shlex.quote(_absolute(uri))}"


def ui_address(uri: str, page: str) -> str:
    """The address of a page of the UI: on the server of `uri`, else where `mlflow ui` serves.

    Args:
        uri: of the store.
        page: as `Tracker.page` gives it.
    """
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else _UI_ADDRESS
    return f"{server}/{page}"


def _mlflow_client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while mlflow is imported
    try:
        import mlflow
    except ImportError as error:
        raise InputError(
            "Tracking needs MLflow. Install it with: pip install 'lungsynth[tracking]', or give `tracking_uri` none."
        ) from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the tables of a new store are no news
    address = _for_sqlalchemy(uri) if uri.startswith(_SQLITE) else uri
    return mlflow.MlflowClient(tracking_uri=address, registry_uri=address)


def _for_sqlalchemy(uri: str) -> str:
    """The address of a SQLite file for SQLAlchemy, which since 2.1 takes `%41` for A; a `?` begins options in all."""
    from sqlalchemy.engine import make_url

    file = uri.removeprefix(_SQLITE)
    if make_url("sqlite:////%41").database == "/A":
        return _SQLITE + quote(file, safe="/ :")
    if "?" in file:
        raise InputError(f"`tracking_uri` {uri}: the name of a SQLite file must hold no question mark. Name another.")
    return uri


# The UI opens such an experiment with its runs; others it shows as one of language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = _sqlite_file(uri).parent / "mlartifacts" if uri.startswith(_SQLITE) else None
        location = str(folder) if folder else None
        return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
    if found.lifecycle_stage != "active":
        raise InputError(
            f"The MLflow experiment `{name}` of {uri} is deleted. Restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or use another `tracking_uri`."
        )
    return str(found.experiment_id)


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        raise InputError(
            f"`tracking_uri` {uri}: MLflow 3.13 and later keep no runs in plain folders. Use a SQLite file, for "
            f"example {_SQLITE}{Path(parts.path or 'runs') / 'mlflow.db'}."
        )
    if parts.scheme == "sqlite":
        _check_sqlite(uri)
    elif port := _DATABASE_PORTS.get(parts.scheme.split("+")[0]):
        _check_port(uri, parts.hostname or "localhost", parts.port or port)


def _check_sqlite(uri: str) -> None:
    if not uri.startswith(_SQLITE) or uri == _SQLITE:
        raise InputError(
            f"`tracking_uri` {uri}: a SQLite address needs three slashes and a file, for example {DEFAULT_URI}."
        )
    file = _sqlite_file(uri)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        head = file.open("rb").read(16) if file.exists() else b""
    except OSError as error:
        raise InputError(
            f"`tracking_uri` {uri}: {error.filename} cannot be used ({error.strerror}). Name another file."
        ) from error
    if head and not head.startswith(b"SQLite format 3"):
        raise InputError(f"`tracking_uri` {uri}: {file} is no SQLite database. Name another file.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"`tracking_uri` {uri}: {file} cannot be written. Name another file.")


def _check_port(uri: str, host: str, port: int) -> None:
    """MLflow tries a database ten times, for minutes; a refused port is known at once."""
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"`tracking_uri` {uri}: {host}:{port} does not answer ({error}). Start it, or use {DEFAULT_URI}."
        ) from error


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE)).absolute()


def _absolute(uri: str) -> str:
    return f"{_SQLITE}{_sqlite_file(uri)}" if uri.startswith(_SQLITE) else uri


@contextmanager
def _telling(uri: str) -> Iterator[None]:
    """Whatever a store's driver raises, the user needs the address and the way out.

    Raises:
        InputError: for every error of the block that is none of a disk or folder.
    """
    try:
        yield
    except (InputError, StorageError):
        raise
    except Exception as error:
        if (sentence := explained(error)) is not None:
            raise InputError(f"`tracking_uri` {uri}: {sentence}") from error
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"`tracking_uri` {uri}: no MLflow store answers there ({lines[0][:200].rstrip('. ')}). Start its server, "
            f"or use a file such as {DEFAULT_URI}; the same command goes on afterwards."
        ) from error


@contextmanager
def _alone_in(uri: str) -> Iterator[None]:
    """One process at a time makes the tables of a new SQLite file; others wait for it."""
    if fcntl is None or not uri.startswith(_SQLITE):
        yield
        return
    path = _sqlite_file(uri).with_name(f".{_sqlite_file(uri).name}.lock")
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _short_patience() -> Iterator[None]:
    """Lets the first contact with a server fail within seconds; later calls keep MLflow's own patience."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PROBE_SECONDS)}
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
