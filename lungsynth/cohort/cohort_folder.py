"""The folder that `prepare` fills: whose it is, and what earlier runs left in it."""

import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from lungsynth.cohort.series_rows import FINISHED, SeriesRows
from lungsynth.errors import InputError
from lungsynth.io.atomic import remove_temporary
from lungsynth.run_folder import RunFolder

__all__ = ["claim_cohort_folder", "cohort_folder", "forget_others"]

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
