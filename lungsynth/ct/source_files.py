"""The files of a source, be it a folder, a zip, a folder with zips, or one file."""

import atexit
import logging
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from lungsynth.ct.series import Problem
from lungsynth.errors import InputError

__all__ = ["SourceFiles", "list_files"]

_logger = logging.getLogger(__name__)
_MAC_FOLDER = "__MACOSX"
# Nothing that a CT reader opens: not worth the disk.
_LEFT_IN_ZIP = {".npz", ".npy", ".png", ".jpg", ".jpeg", ".pdf", ".pt", ".mp4"}


@dataclass
class SourceFiles:
    """Files of a source; those of zips lie in temporary folders, which go when `close` is called or Python ends."""

    root: Path
    paths: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _extracted: list[TemporaryDirectory[str]] = field(default_factory=list)

    @property
    def roots(self) -> tuple[Path, ...]:
        """The source, and the folders that its zips were unpacked to."""
        return (self.root, *(Path(folder.name) for folder in self._extracted))

    def extract(self, archive: Path) -> Path | None:
        """Unpacks a zip; None, and a problem noted, when it is damaged."""
        folder = TemporaryDirectory(prefix="lungsynth_")
        # Holds the folder even when the caller keeps only the paths.
        atexit.register(folder.cleanup)
        self._extracted.append(folder)
        try:
            with zipfile.ZipFile(archive) as packed:
                members = [name for name in packed.namelist() if Path(name).suffix.lower() not in _LEFT_IN_ZIP]
                packed.extractall(folder.name, members)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            self.problems.append(
                Problem(archive, f"{archive}: could not be unpacked ({error}); copy it again, or unpack it yourself.")
            )
            return None
        return Path(folder.name)

    def close(self) -> None:
        """Removes the temporary folders."""
        for folder in self._extracted:
            atexit.unregister(folder.cleanup)
            folder.cleanup()
        self._extracted.clear()


def list_files(source: Path) -> SourceFiles:
    """Lists all files of a source, sorted, zips unpacked; hidden files and macOS' `._*` and `__MACOSX` are left out.

    Raises:
        InputError: when the source does not exist, or is an empty folder.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the path.")
    files = SourceFiles(root=source)
    waiting = [source] if source.is_file() else list(_walk(source))
    if not waiting:
        raise InputError(f"{source}: the folder is empty; put CT series (DICOM, NIfTI or MetaImage) into it.")
    while waiting:
        path = waiting.pop(0)
        if path.suffix.lower() != ".zip":
            files.paths.append(path)
            continue
        _logger.info("Unpacking %s", path)
        if folder := files.extract(path):
            waiting.extend(_walk(folder))
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == _MAC_FOLDER:
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path
