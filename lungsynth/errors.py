"""Errors that a user can mend: one sentence with what was needed, what came, the file, and the way out.

`naming_file` is the boundary around each file of an input: whatever its content makes a reader raise becomes such a
sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["InputError", "NoSamplesError", "StorageError", "naming_file", "reason"]

_LONGEST_REASON = 240


class InputError(ValueError):
    """Bad input from the user; the scripts print its sentence and exit with status 2."""


class StorageError(OSError):
    """A result cannot be written: no input is to blame, and other inputs would fare no better.

    `lungsynth.io.running.explained` says what is wrong with the disk or the folder.
    """


class NoSamplesError(InputError):
    """A list has no sample of the kind that was asked for."""


@contextmanager
def naming_file(
    path: Path, what: str = "could not be read", *, remedy: str = "copy it again from its source"
) -> Iterator[None]:
    """Turns whatever a file makes its reader raise into one sentence that names the file; an `InputError` stays.

    Args:
        path: the file.
        what: what went wrong, in words that follow its name.
        remedy: the way out.

    Raises:
        InputError: for every error of the block but a `StorageError`, which is not the file's.
    """
    try:
        yield
    except (InputError, StorageError):
        raise
    except Exception as error:  # files hold anything, and decoders raise anything
        raise InputError(f"{path}: {what} ({reason(error)}); {remedy}.") from error


def reason(error: BaseException) -> str:
    """An error in words, without the name of its class: one line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it holds bytes that are no text of its encoding"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    words = " ".join(str(error).split())
    return words[:_LONGEST_REASON] if words else "its content makes no sense"
