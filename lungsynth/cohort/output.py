"""The folder of a cohort: whose it is, and what earlier runs left in it."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json

__all__ = ["COHORT_FORMAT", "check_output", "cohort_identity", "forget_others", "open_output"]

COHORT_FORMAT = 1
_FOLDERS = ("slices", "labels", "nodules", "cubes", "lungs")


def cohort_identity(sources: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes this cohort another one. Places count by their hash, so that no path of this machine is written."""
    places = "\n".join(sorted(str(source.resolve()) for source in sources))
    names = sorted(source.resolve().name for source in sources)
    return {
        "format": COHORT_FORMAT,
        "settings": {**settings, "sources": names},
        "places": hashlib.sha256(places.encode()).hexdigest()[:16],
    }


def check_output(out: Path, sources: Sequence[Path], identity: dict[str, Any]) -> bool:
    """Refuses an output folder with another content.

    Returns:
        True when the folder is new.

    Raises:
        InputError: when it holds something else, or lies inside a source.
    """
    if any(out.resolve().is_relative_to(source.resolve()) for source in sources):
        raise InputError(f"{out}: the cohort must not lie inside a source; choose another --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    stored = out / ".parts" / "identity.json"
    if not stored.is_file():
        raise InputError(f"{out}: exists and is not a cohort of this command; choose a new folder for --out.")
    before = json.loads(stored.read_text())
    if before != identity:
        differing = [
            name for name, value in identity["settings"].items() if before.get("settings", {}).get(name) != value
        ] or ["the place of the sources"]
        raise InputError(
            f"{out}: holds a cohort made otherwise ({', '.join(differing)} differ); choose a new folder for --out."
        )
    return False


def open_output(out: Path, identity: dict[str, Any]) -> None:
    """Makes the folders; without `cohort.json` until the cohort is whole."""
    (out / ".parts").mkdir(parents=True, exist_ok=True)
    write_json(out / ".parts" / "identity.json", identity)
    for name in _FOLDERS:
        (out / name).mkdir(exist_ok=True)
    (out / "cohort.json").unlink(missing_ok=True)


def forget_others(out: Path, part_ids: Set[str]) -> None:
    """Removes what an earlier run wrote for series that are no longer there."""
    for path in (out / ".parts").glob("*.json"):
        if path.stem in part_ids or path.stem == "identity":
            continue
        stored = json.loads(path.read_text())
        for row in stored["slices"]:
            for name in (f"slices/{row['slice_id']}.nii.gz", f"labels/{row['slice_id']}.nii.gz"):
                (out / name).unlink(missing_ok=True)
            (out / "lungs" / f"{row['slice_id']}.npz").unlink(missing_ok=True)
        for row in stored["nodules"]:
            for folder in ("nodules", "cubes"):
                (out / folder / f"{row['nodule_id']}.npz").unlink(missing_ok=True)
        path.unlink()
