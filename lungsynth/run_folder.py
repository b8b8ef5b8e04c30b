"""Whose folder is this, and may a run go on in it?

A run writes its identity (everything that decides its bytes) into a JSON file of its folder before anything else. A
folder is free when it is absent or empty, is continued when it holds the same identity, and is refused otherwise.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError
from lungsynth.io.atomic import remove_temporary, write_json

__all__ = ["FORMAT", "RunFolder"]

FORMAT = 2
_SHORT = 24  # characters of a value that an error shows whole


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder that belongs to one run.

    Args:
        path: the folder.
        identity: what decides the bytes of the run; anything that JSON can hold.
        file: name of the file that holds the identity, where several kinds of runs may share a folder.
    """

    path: Path
    identity: Mapping[str, Any]
    file: str = "run.json"

    def check(self) -> bool:
        """Looks whether the run may use the folder, without writing.

        Returns:
            True when a run of this identity is continued, False when the folder is free.

        Raises:
            InputError: when the path is a file, or the folder holds another run or other files.
        """
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise InputError(f"{self.path}: expected a folder for `out`, got a file. Name another one.")
        if not self._identity_path.is_file():
            if any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(
                    f"{self.path}: the folder holds other files and no {self.file}. Give an empty folder as `out`."
                )
            return False
        if differences := self._differences(_read_identity(self._identity_path)):
            raise InputError(
                f"{self.path}: holds another run ({'; '.join(differences)}). Repeat its settings to go on with it, or "
                "give another `out`."
            )
        return True

    def claim(self) -> bool:
        """Checks the folder, removes what a killed run left half-written, and writes the identity.

        Returns:
            True when a run of this identity is continued.

        Raises:
            InputError: as `check`; nothing is written then.
        """
        continued = self.check()
        remove_temporary(self.path)
        write_json(self._identity_path, self.identity, indent=2, sort_keys=True)
        return continued

    @property
    def _identity_path(self) -> Path:
        return self.path / self.file

    def _differences(self, stored: Mapping[str, Any]) -> list[str]:
        wanted = json.loads(json.dumps(self.identity))
        return [
            f"{key} is {_short(stored.get(key))} there and {_short(wanted.get(key))} here"
            for key in sorted({*stored, *wanted})
            if stored.get(key) != wanted.get(key)
        ]


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the settings of a run, got {error}. Give another `out`.") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(stored).__name__}. Give another `out`.")
    return stored


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHORT else f"{text[:16]}...{text[-1]}"
