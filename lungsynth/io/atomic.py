"""Files that are whole or absent: written under a temporary name in the same folder, then renamed.

A temporary name is `.NAME.<random>.tmp`; `remove_temporary` deletes what a killed process left of them.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from lungsynth.errors import StorageError

__all__ = [
    "link_or_copy",
    "remove_temporary",
    "replacing",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_picture",
    "write_text",
]

_TEMPORARY = (".*.tmp", ".*.part")  # the second is what format 1 left


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an error.

    Args:
        path: the file to make; its folder is made when it is missing.

    Raises:
        StorageError: when the system does not let it be written, naming it.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, StorageError) or error.filename not in _own_names(path, temporary):
            raise
        code = error.errno or _code_in(str(error))
        raise StorageError(code, os.strerror(code), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _own_names(path: Path, temporary: Path) -> set[object]:
    """What an error of writing `path` may name; libraries often name nothing."""
    folders = {place for parent in path.parents for place in (parent, str(parent))}
    return {None, path, temporary, str(path), str(temporary), bytes(path), bytes(temporary), *folders}


def _code_in(message: str) -> int:
    """The number of an error that a library has put into words: "[errno 28] No space left on device"."""
    match = re.search(r"errno (\d+)", message, re.IGNORECASE)
    return int(match[1]) if match else errno.EIO


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that is whole or absent; its folder is made when it is missing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file that is whole or absent; line ends are kept as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Writes JSON with a final line end; compact when `indent` is None. JSON has no NaN: what is no number is null."""
    layout: dict[str, Any] = {"indent": indent, "sort_keys": sort_keys, "allow_nan": False}
    layout["separators"] = (",", ":") if indent is None else None
    try:
        text = json.dumps(content, **layout)
    except ValueError:  # a NaN somewhere; looking for it costs as much as writing, so only then
        text = json.dumps(_without_nan(content), **layout)
    write_text(path, text + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    return [_without_nan(value) for value in content] if isinstance(content, list | tuple) else content


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes NumPy arrays as a compressed `.npz`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Writes a PNG."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source` by a hard link, or a copy where the file systems allow none.

    Only for files that are replaced and never written into, so that neither can change the other.
    """
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with replacing(target) as temporary:
            shutil.copy2(source, temporary)


def remove_temporary(folder: Path, *, recursive: bool = False) -> None:
    """Removes the temporary files of processes that were killed while they wrote.

    Args:
        folder: where they wrote; nothing happens when it is missing.
        recursive: also look into the folders below.
    """
    for pattern in _TEMPORARY:
        for path in folder.glob(f"**/{pattern}" if recursive else pattern):
            if path.is_file() or path.is_symlink():
                path.unlink(missing_ok=True)
            elif path.is_dir():  # a Zarr store is a folder
                shutil.rmtree(path, ignore_errors=True)
