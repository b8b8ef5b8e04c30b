"""Names made of ids: the one place where text from an input comes into a file name.

Ids (SeriesInstanceUID, PatientID, names of files, cells of tables) say what their writer likes: paths, line ends,
bytes that are no text, 300 letters. An id becomes a name only through `file_stem`, and a line of a report only through
`readable`.
"""

import hashlib
import re
import unicodedata

__all__ = ["file_stem", "readable"]

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_LONGEST = 96  # with a suffix and the mark of a temporary name it stays below the 255 bytes of all file systems
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows
_HASH_DIGITS = 10


def file_stem(text: str) -> str:
    """A name for the files of what has this id.

    An id of letters, digits, `_`, `-` and `.` is its own name. Others keep what is plain of them and get a hash of the
    whole id, so that two ids have two names.

    Args:
        text: any id.

    Returns:
        1 to 96 letters, digits, `_`, `-` and `.`; no path, not hidden, no name that a system reserves.
    """
    if _PLAIN.fullmatch(text) and len(text) <= _LONGEST and not _RESERVED.fullmatch(text) and text[-1] != ".":
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    words = re.sub(r"[^A-Za-z0-9]+", "_", ascii_text).strip("_")[: _LONGEST - _HASH_DIGITS - 1].rstrip("_")
    return f"{words}_{digest}" if words else f"id_{digest}"


def readable(text: object) -> str:
    """An id or message as one line of text that any file can hold: what cannot be printed is shown as its code."""
    line = " ".join(str(text).split())
    shown = (letter if letter.isprintable() else _code(letter) for letter in line)
    return "".join(shown)


def _code(letter: str) -> str:
    number = ord(letter)
    byte = number - 0xDC00 if 0xDC80 <= number <= 0xDCFF else number  # bytes that are no UTF-8 in a file name
    return f"\\x{byte:02x}"
