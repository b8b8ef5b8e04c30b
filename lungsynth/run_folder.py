"""Whose folder is this, and may a run go on in it?

A run writes its identity (everything that decides its bytes) into a JSON file of its folder before anything else. A
folder is free when it is absent or empty, is continued when it holds the same identity, and is refused otherwise.
Identities of `format: 1` are compared in the words of today.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError
from lungsynth.io.atomic import remove_temporary, write_json
from lungsynth.io.running import FolderLock, check_place
from lungsynth.io.stored import anything, integers, mappings, objects, read_json

__all__ = ["FORMAT", "RunFolder"]

FORMAT = 2
_SHORT = 24  # characters of a value that an error shows whole
# Format 1: where identities stood that are in run.json today, and what keys and values are called today.
_OLD_FILES = {"run.json": (".parts/identity.json", ".parts/settings.json")}
_OLD_KEYS: Mapping[str, str] = {
    "gate": "label_check",
    "gate_settings": "label_check_settings",
    "places": "source_locations",
    "ranking": "selection",
    "separation_min_diameter_mm": "min_diameter_mm",
    "separation_threshold": "threshold",
    "spare_diseased": "exclude_enhancer_patients",
}
_OLD_VALUES: Mapping[str, Mapping[str, str]] = {"selection": {"similar": "nearest", "spread": "coverage"}}


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder that belongs to one run.

    Args:
        path: the folder.
        identity: what decides the bytes of the run, without `format`; anything that JSON can hold.
        file: name of the file that holds the identity, where several kinds of runs may share a folder.
        may_grow: names of numbers that may be larger than those of the run that is there: it is continued all the same.
    """

    path: Path
    identity: Mapping[str, Any]
    file: str = "run.json"
    may_grow: tuple[str, ...] = ()

    def check(self) -> bool:
        """Looks whether the run may use the folder, without writing.

        Returns:
            True when a run of this identity is continued, False when the folder is free.

        Raises:
            InputError: when the path is a file, or the folder holds another run or other files.
        """
        check_place(self.path)
        if not self.path.exists():
            return False
        stored = next((path for path in self._identity_paths if path.is_file()), None)
        if stored is None:
            if any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(
                    f"{self.path}: the folder holds other files and no {self.file}. Give an empty folder as `out`."
                )
            return False
        if differences := self._differences(_read_identity(stored, self._content)):
            raise InputError(
                f"{self.path}: holds another run ({'; '.join(differences)}). Repeat its settings to go on with it, or "
                "give another `out`."
            )
        return True

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Claims the folder and keeps other runs out of it while the block runs.

        Yields:
            True when a run of this identity is continued.

        Raises:
            InputError: as `check`, or when another run is at work in it.
        """
        with FolderLock(self.path):
            yield self.claim()

    def claim(self) -> bool:
        """Checks the folder, removes what a killed run left half-written, and writes the identity.

        Returns:
            True when a run of this identity is continued.

        Raises:
            InputError: as `check`; nothing is written then.
        """
        continued = self.check()
        remove_temporary(self.path)
        write_json(self.path / self.file, self._content, indent=2, sort_keys=True)
        return continued

    @property
    def _identity_paths(self) -> list[Path]:
        return [self.path / name for name in (self.file, *_OLD_FILES.get(self.file, ()))]

    @property
    def _content(self) -> dict[str, Any]:
        return {**self.identity, "format": FORMAT}

    def _differences(self, stored: Mapping[str, Any]) -> list[str]:
        wanted = json.loads(json.dumps(self._content))
        return [
            f"{key} is {_short(stored.get(key))} there and {_short(wanted.get(key))} here"
            for key in sorted({*stored, *wanted})
            if stored.get(key) != wanted.get(key) and not self._grows(key, stored, wanted)
        ]

    def _grows(self, key: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        before, now = stored.get(key), wanted.get(key)
        return key in self.may_grow and isinstance(before, int) and isinstance(now, int) and before < now


def _read_identity(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    schema = objects({}, {"format": integers(1), "settings": mappings(anything)})
    stored: dict[str, Any] = read_json(path, schema, what="the settings of a run", remedy="Give another `out`.")
    return _translated(stored, wanted) if stored.get("format", 1) == 1 else stored


def _translated(identity: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """An identity of format 1 in the words of today, as far as the wanted one uses them."""
    flat = dict(identity)
    if "places" in flat:  # a cohort's settings stood one level deeper
        flat |= flat.pop("settings", None) or {}
    renamed = {key if key in wanted else _OLD_KEYS.get(key, key): value for key, value in flat.items()}
    for key, values in _OLD_VALUES.items():
        if isinstance(value := renamed.get(key), str):
            renamed[key] = values.get(value, value)
    return {**renamed, "format": FORMAT}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHORT else f"{text[:16]}...{text[-1]}"
