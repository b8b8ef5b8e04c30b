"""MLflow stores for tests: MLflow makes the tables of a new one in seven seconds of processor time, a copy has them."""

import atexit
import fcntl
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from lungsynth.tracking import open_tracker


@cache
def _empty_store() -> Path:
    """One without runs, which the first process of a test run makes for all of them."""
    folder = Path(tempfile.mkdtemp(prefix="lungsynth-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shared = _of_this_run(folder)
    with (shared / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "mlflow.db").exists():
            open_tracker(f"sqlite:///{shared}/making.db", experiment="unused")
            (shared / "making.db").rename(shared / "mlflow.db")
    if shared != folder:  # the other process may end, and remove what they share
        shutil.copyfile(shared / "mlflow.db", folder / "mlflow.db")
    return folder / "mlflow.db"


def _of_this_run(own: Path) -> Path:
    """A folder that the processes of a test run share; a process alone has its own."""
    if (run := os.environ.get("PYTEST_XDIST_TESTRUNUID")) is None:
        return own
    folder = Path(tempfile.gettempdir()) / f"lungsynth-stores-{run}"
    folder.mkdir(exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_store(folder: Path) -> str:
    """The address of a store without runs, in a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_empty_store(), folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
