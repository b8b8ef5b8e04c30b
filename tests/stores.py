"""MLflow stores for tests: MLflow makes the tables of a new one in three seconds of processor time, a copy has them."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from lungsynth.tracking import open_tracker


@cache
def _empty_store() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lungsynth-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    open_tracker(f"sqlite:///{folder}/mlflow.db", experiment="unused")
    return folder / "mlflow.db"


def new_store(folder: Path) -> str:
    """The address of a store without runs, in a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_empty_store(), folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
