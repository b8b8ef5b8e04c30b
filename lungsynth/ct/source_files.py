"""The files of the sources, be they folders, archives or single files, as one list.

Links are followed once, after everything else: what is met again under another name is not listed again, and a link to
a folder that holds its source leads nowhere. Archives (zip, tar) are unpacked. Hidden files and macOS' `._*` and
`__MACOSX` are left out. Compressed streams are read to their end and no further, so that length and checksum are those
they state.
"""

import atexit
import errno
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from lungsynth.ct.series import Problem
from lungsynth.errors import InputError

__all__ = [
    "SourceFiles",
    "as_text",
    "first_bytes",
    "inflate",
    "list_files",
]

_logger = logging.getLogger(__name__)
_MAC_FOLDER = "__MACOSX"
_ZIPS = (".zip",)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# Nothing that a CT reader opens: not worth the disk.
_LEFT_IN_ARCHIVES = {".npz", ".npy", ".png", ".jpg", ".jpeg", ".pdf", ".pt", ".mp4"}
_DEEPEST_ARCHIVE = 8  # archives in archives: deeper ones are made to fill disks
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
)


@dataclass
class SourceFiles:
    """Files of the sources; those of archives lie in temporary folders, which go when `close` is called or Python ends.

    Args:
        paths: regular files, each once, by source and name.
        problems: folders and archives that could not be opened, links that lead nowhere.
    """

    paths: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _roots: dict[Path, tuple[Path, str]] = field(default_factory=dict)  # folder: its source, and what it is called
    _extracted: list[TemporaryDirectory[str]] = field(default_factory=list)

    @property
    def roots(self) -> frozenset[Path]:
        """The folders of the sources, and those that archives were unpacked to: names above them say nothing."""
        return frozenset(root if root.is_dir() else root.parent for root in self._roots)

    def shown(self, path: Path) -> str:
        """A file as a user knows it: from its source's own name on, archives by theirs."""
        root = next((folder for folder in (path, *path.parents) if folder in self._roots), None)
        if root is None:
            return as_text(path.name)
        below = path.relative_to(root).as_posix()
        name = self._roots[root][1]
        return as_text(name if below == "." else f"{name}/{below}")

    def source_of(self, path: Path) -> Path:
        """The source, as it was given, that a file came from."""
        return next((self._roots[folder][0] for folder in (path, *path.parents) if folder in self._roots), path)

    def add_root(self, root: Path, *, source: Path, name: str) -> None:
        """Remembers where files come from."""
        self._roots[root] = (source, name)

    def extract(self, archive: Path) -> Path | None:
        """Unpacks an archive; None, and a problem noted, when it is damaged or does not fit."""
        folder = TemporaryDirectory(prefix="lungsynth_")
        # Holds the folder even when the caller keeps only the paths.
        atexit.register(folder.cleanup)
        self._extracted.append(folder)
        name = self.shown(archive)
        try:
            _logger.info("Unpacking %s", name)
            left = _unpack(archive, Path(folder.name))
        except _DAMAGED as error:
            why = "it has a password" if "is encrypted" in str(error) else str(error)
            told = f"{name}: could not be unpacked ({why}); copy it again, or unpack it yourself."
            self.problems.append(Problem(archive, told))
            return None
        if left:
            told = (
                f"{name}: {len(left)} of its entries are links, devices, or lie outside of it, and were left out, "
                f"first {as_text(left[0])}. Unpack it yourself if they are scans."
            )
            self.problems.append(Problem(archive, told))
        root = Path(folder.name)
        self.add_root(root, source=self.source_of(archive), name=name)
        return root

    def close(self) -> None:
        """Removes the temporary folders."""
        for folder in self._extracted:
            atexit.unregister(folder.cleanup)
            folder.cleanup()
        self._extracted.clear()


def as_text(name: str) -> str:
    """A file name as text that any file can hold: bytes that are no UTF-8 are shown as their codes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_files(sources: Path | Sequence[Path]) -> SourceFiles:
    """Lists all files of the sources.

    Raises:
        InputError: when a source does not exist, is neither file nor folder, or is an empty folder.
    """
    given = [sources] if isinstance(sources, Path) else list(sources)
    files = SourceFiles()
    walk = _Walk(files)
    for source in given:
        _check(source)
        files.add_root(source, source=source, name=source.resolve().name or str(source))
        walk.add(source)
    walk.follow_links()
    for source in given:
        if source.is_dir() and not walk.found.get(source) and len(given) == 1:
            raise InputError(f"{source}: the folder is empty; put CT series (DICOM, NIfTI or MetaImage) into it.")
    listed = [path for source in given for path in sorted(walk.found.get(source, ()))]
    files.paths = list(_unpacked(listed, files))
    return files


def _check(source: Path) -> None:
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the path.")
    if not (source.is_file() or source.is_dir()):
        raise InputError(f"{source}: neither a file nor a folder of scans, but a device or the like; give a folder.")


def _unpacked(paths: Iterable[Path], files: SourceFiles) -> Iterator[Path]:
    """The files, with those of archives in the place of the archive."""
    waiting = [(path, 0) for path in reversed(list(paths))]
    while waiting:
        path, depth = waiting.pop()
        if not _is_archive(path):
            yield path
        elif depth >= _DEEPEST_ARCHIVE:
            told = f"{files.shown(path)}: lies {depth} archives deep; unpack it yourself."
            files.problems.append(Problem(path, told))
        elif folder := files.extract(path):
            walk = _Walk(files)
            walk.add(folder)
            waiting += [(inner, depth + 1) for inner in sorted(walk.found.get(folder, ()), reverse=True)]


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((*_ZIPS, *_TARS))


def _unpack(archive: Path, folder: Path) -> list[str]:
    """Unpacks an archive, and gives the entries of a tar that nobody should follow."""
    if archive.name.lower().endswith(_ZIPS):
        with zipfile.ZipFile(archive) as packed:
            members = [info for info in packed.infolist() if _is_wanted(info.filename)]
            _check_room(sum(info.file_size for info in members))
            packed.extractall(folder, members)
        return []
    with tarfile.open(archive) as packed_tar:
        listed = [member for member in packed_tar if not member.isdir()]
        safe = {member for member in listed if member.isfile() and _is_inside(member, folder)}
        entries = [member for member in listed if member in safe and _is_wanted(member.name)]
        _check_room(sum(member.size for member in entries))
        packed_tar.extractall(str(folder), entries, filter="data")
    return [member.name for member in listed if member not in safe]


def _is_wanted(name: str) -> bool:
    return Path(name).suffix.lower() not in _LEFT_IN_ARCHIVES


def _is_inside(member: tarfile.TarInfo, folder: Path) -> bool:
    """Whether a member of a tar would lie inside the folder."""
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError:
        return False
    return True


def _check_room(size: int) -> None:
    free = shutil.disk_usage(gettempdir()).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB free in {gettempdir()}")


@dataclass
class _Walk:
    """Regular files below folders, each once; links wait until all else is known."""

    files: SourceFiles
    found: dict[Path, list[Path]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _links: list[tuple[Path, Path]] = field(default_factory=list)  # source, link

    def add(self, source: Path) -> None:
        """Lists a source, but for the links in it."""
        if source.is_dir():
            self._walk(source, source)
        elif self._is_new(os.path.realpath(source)):
            self.found.setdefault(source, []).append(source)

    def follow_links(self) -> None:
        """Lists what links lead to and is not known yet."""
        while self._links:
            source, link = self._links.pop(0)
            target = Path(os.path.realpath(link))
            if target.is_dir():
                if not Path(os.path.realpath(source)).is_relative_to(target):
                    self._walk(link, source)
            elif not target.exists():
                told = f"{self.files.shown(link)}: a link to a file that is not there; copy the file itself."
                self.files.problems.append(Problem(link, told))
            elif target.is_file() and self._is_new(str(target)):
                self.found.setdefault(source, []).append(link)

    def _is_new(self, real: str) -> bool:
        if real in self._seen:
            return False
        self._seen.add(real)
        return True

    def _walk(self, folder: Path, source: Path) -> None:
        waiting = [(str(folder), os.path.realpath(folder))]
        while waiting:
            here, real = waiting.pop()
            if self._is_new(real):
                waiting += self._list(here, real, source)

    def _list(self, folder: str, real: str, source: Path) -> list[tuple[str, str]]:
        """Takes the files of a folder and gives the folders in it, as they are called and without links."""
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            told = (
                f"{self.files.shown(Path(folder))}: could not be opened ({error.strerror}); copy it, or leave it out."
            )
            self.files.problems.append(Problem(Path(folder), told))
            return []
        folders = []
        for entry in ordered:
            if entry.name.startswith(".") or entry.name == _MAC_FOLDER:
                continue
            inside = f"{real}{os.sep}{entry.name}"
            if entry.is_symlink():
                self._links.append((source, Path(entry.path)))
            elif entry.is_dir():
                folders.append((entry.path, inside))
            elif not entry.is_file():
                path = Path(entry.path)
                told = f"{self.files.shown(path)}: a pipe, a device or the like, not a file; it is left out."
                self.files.problems.append(Problem(path, told))
            elif self._is_new(inside):
                self.found.setdefault(source, []).append(Path(entry.path))
        return folders


_ZLIB_OR_GZIP = 47  # of zlib's window bits: the header tells which
_STEP = 1 << 22


def first_bytes(packed: bytes, count: int) -> bytes:
    """At most the first bytes of what a stream holds; fewer when it is damaged or short."""
    try:
        return zlib.decompressobj(_ZLIB_OR_GZIP).decompress(packed, count)
    except zlib.error:
        return b""


def inflate(packed: bytes, expected: int | None = None, *, name: str, most: int = 1 << 32) -> bytearray:
    """Inflates a zlib or gzip stream to its end, where its checksum is compared.

    Args:
        packed: the stream, perhaps of several members; zeros after it are padding.
        expected: bytes that it must hold; any number when None.
        name: the file, for messages.
        most: more bytes than this are refused.

    Raises:
        InputError: when the stream is damaged, truncated, longer or shorter than expected, or something follows it.
    """
    content, limit = bytearray(), most if expected is None else expected
    rest = packed
    while rest.strip(b"\0") if content else rest:
        rest = _inflate_member(rest, content, limit, name=name)
    if expected is not None and len(content) != expected:
        raise InputError(
            f"{name}: truncated, expected {expected} bytes of pixels, got {len(content)}. Copy it again from its "
            "source."
        )
    return content


def _inflate_member(packed: bytes, content: bytearray, limit: int, *, name: str) -> bytes:
    """Adds what one member holds to `content`, and gives the bytes after it."""
    stream, position = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    while not stream.eof:
        waiting = stream.unconsumed_tail
        if not waiting:
            waiting = packed[position : position + _STEP]
            position += len(waiting)
        try:
            part = stream.decompress(waiting, min(_STEP, limit + 1 - len(content)))
        except zlib.error as error:
            raise InputError(f"{name}: damaged ({error}); copy it again from its source.") from error
        content += part
        if len(content) > limit:
            raise InputError(
                f"{name}: holds more than the {limit} bytes that its header says or that are read; copy it again from "
                "its source."
            )
        if not (stream.eof or waiting or part):
            raise InputError(f"{name}: truncated, the compressed data end early; copy it again from its source.")
    return stream.unused_data + packed[position:]
