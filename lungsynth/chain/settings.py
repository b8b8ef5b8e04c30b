"""The folder that belongs to a run alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungsynth.ct.write import write_atomically
from lungsynth.errors import InputError

__all__ = ["check_folder", "write_run_file"]


def check_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that `out` is free, or holds a run with these settings.

    Raises:
        InputError: naming what is different there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder for `out`, found a file. Name another one.")
    run_file = out / "run.json"
    if not run_file.is_file():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(
                f"{out}: the folder holds other files and no run.json. Give a new or empty folder to `out`."
            )
        return
    try:
        found = json.loads(run_file.read_text())
    except ValueError as error:
        raise InputError(f"{run_file}: expected the settings of a run, got {error}. Give another `out`.") from error
    if differences := _differences(found, settings):
        raise InputError(
            f"{out}: holds another run ({'; '.join(differences)}). Repeat its settings to go on with it, or give "
            "another `out`."
        )


def write_run_file(out: Path, settings: Mapping[str, Any]) -> Path:
    """Writes `run.json`."""
    path = out / "run.json"
    write_atomically(path, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    return path


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    keys = sorted({*found, *wanted}, key=str)
    return [
        f"{key} is {_short(found.get(key))} there and {_short(wanted.get(key))} here"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:16]}...{text[-1]}"
