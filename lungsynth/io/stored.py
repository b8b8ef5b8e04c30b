"""What is read back of files that we wrote: checked once, where it is read, against a schema.

A schema is a `Check`, built from the small ones below: `objects({"count": integers(1)})` wants an object with a count
of at least 1. Keys that a schema does not name are left alone, so that later versions may add some. JSON has no NaN:
where an older file has one, it is null. Every damage is one sentence: which file, which entry, what was needed, what
came, and the way out.
"""

import errno
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.errors import InputError

__all__ = [
    "HASH",
    "SHA256",
    "Check",
    "Unfit",
    "anything",
    "booleans",
    "file_names",
    "integers",
    "lists",
    "mappings",
    "numbers",
    "objects",
    "of_type",
    "one_of",
    "optional",
    "parse_json",
    "read_json",
    "read_parquet",
    "shortened",
    "texts",
]

Check = Callable[[Any], None]
"""Raises `Unfit` for a value that is not as the schema wants it."""

HASH = r"[0-9a-f]{16}"  # of an asset, a group or a sample
SHA256 = r"[0-9a-f]{64}"
_MAX_BYTES = 1 << 30  # of a JSON file; ours stay far below, and more would not fit into memory once it is parsed
_MAX_INTEGER = (1 << 63) - 1
_SHOWN = 60  # characters of a value in a message


class Unfit(Exception):  # noqa: N818 - no error of a user's until a file is named
    """A value that is not what a schema wants.

    Args:
        wanted: in words, behind "should be".
        value: what is there.
        place: where, such as `samples[3].shape`; empty for the whole.
    """

    def __init__(self, wanted: str, value: Any, place: str = "") -> None:
        super().__init__(wanted, value, place)
        self.wanted, self.value, self.place = wanted, value, place

    def inside(self, parent: str) -> "Unfit":
        """The same, seen from the value that holds it."""
        joint = "" if not self.place or self.place.startswith("[") else "."
        return Unfit(self.wanted, self.value, f"{parent}{joint}{self.place}")

    def __str__(self) -> str:
        return f"{self.place or 'its content'} should be {self.wanted}, it is {shortened(self.value)}"


def anything(value: Any) -> None:
    """Every value."""


def booleans(value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Unfit("true or false", value)


def integers(low: int = -_MAX_INTEGER - 1, high: int = _MAX_INTEGER) -> Check:
    """Whole numbers from `low` to `high`."""

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            limits = "" if low < -_MAX_INTEGER and high == _MAX_INTEGER else f" from {low} to {high}"
            raise Unfit(f"a whole number{limits}", value)

    return check


def numbers(low: float = -math.inf, high: float = math.inf) -> Check:
    """Finite numbers from `low` to `high`."""

    def check(value: Any) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not low <= value <= high:
            limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
            raise Unfit(f"a finite number{limits}", value)

    return check


def texts(pattern: str | None = None) -> Check:
    """Texts, of which all of `pattern` is when there is one."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or (pattern is not None and not re.fullmatch(pattern, value)):
            raise Unfit("a text" if pattern is None else f"a text like {pattern}", value)

    return check


def one_of(*values: Any) -> Check:
    """One of some values."""

    def check(value: Any) -> None:
        if not any(type(value) is type(other) and value == other for other in values):
            raise Unfit(f"one of {', '.join(map(str, values))}", value)

    return check


def file_names(value: Any) -> None:
    """Paths that stay inside the folder they are relative to."""
    if not isinstance(value, str) or not _is_inside(value):
        raise Unfit("the name of a file inside its folder", value)


def optional(check: Check) -> Check:
    """Null, or what `check` wants."""

    def check_optional(value: Any) -> None:
        if value is not None:
            check(value)

    return check_optional


def lists(check: Check, *, length: int | None = None, least: int = 0) -> Check:
    """Lists whose entries are all what `check` wants, of a `length` or at `least` so long."""

    def check_list(value: Any) -> None:
        fits = isinstance(value, list | tuple) and len(value) >= least
        if not fits or (length is not None and len(value) != length):
            size = f" of {length} entries" if length is not None else f" of {least} entries or more" if least else ""
            raise Unfit(f"a list{size}", value)
        for place, entry in enumerate(value):
            _check_inside(check, entry, f"[{place}]")

    return check_list


def mappings(check: Check, *, keys: str | None = None) -> Check:
    """Objects of any keys, or of those like a pattern, whose values are all what `check` wants."""

    def check_mapping(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise Unfit("an object", value)
        for key, entry in value.items():
            if keys is not None and not re.fullmatch(keys, key):
                raise Unfit(f"an object with keys like {keys}", key)
            _check_inside(check, entry, key)

    return check_mapping


def objects(needed: Mapping[str, Check], possible: Mapping[str, Check] | None = None) -> Check:
    """Objects with all keys of `needed`; those of `possible` may be missing, and null is as good as missing."""

    def check_object(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise Unfit("an object", value)
        for key, check in needed.items():
            if key not in value:
                raise Unfit(f"an object with {key!r}", sorted(map(str, value)))
            _check_inside(check, value[key], key)
        for key, check in (possible or {}).items():
            if value.get(key) is not None:
                _check_inside(check, value[key], key)

    return check_object


def of_type(annotation: Any) -> Check:
    """What a field of a dataclass says that it holds: str, bool, int, float, tuples of one of them, or None, too.

    A float may be NaN, which stands for unknown.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (UnionType, Union) and NoneType in arguments:
        (rest,) = (argument for argument in arguments if argument is not NoneType)
        return optional(of_type(rest))
    if origin is tuple:
        return lists(of_type(arguments[0]))
    plain: Mapping[Any, Check] = {str: texts(), bool: booleans, int: integers(), float: _measurements}
    return plain.get(annotation, anything)


def read_json(path: Path, check: Check, *, what: str, remedy: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        check: its schema.
        what: the file is, in words: "the settings of a run".
        remedy: what a user can do about a damaged one, a sentence.

    Raises:
        InputError: naming the file, when it is missing, unreadable, or not what the schema wants.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {what}, found no such file. {remedy}") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error, remedy) from error
    return parse_json(content, check, source=path, what=what, remedy=remedy)


def parse_json(content: bytes | str, check: Check, *, source: object, what: str, remedy: str) -> Any:
    """JSON that was read already; as `read_json`, with `source` where that names its file."""
    try:
        value = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise _unreadable(source, what, error, remedy) from error
    try:
        check(value)
    except Unfit as error:
        raise InputError(f"{source}: expected {what}, but {error}. {remedy}") from error
    return value


def read_parquet(path: Path, schema: pa.Schema, *, what: str, remedy: str, later: Collection[str] = ()) -> pa.Table:
    """The columns of a schema in a Parquet file, cast to its types, with the metadata of the file.

    Args:
        path: the file.
        schema: of the columns that are wanted; others are left alone.
        what: as of `read_json`.
        remedy: likewise.
        later: columns that files of earlier versions lack; they are null there.

    Raises:
        InputError: naming the file, when it is missing, unreadable, lacks a column, or has one of another type.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        table = pq.read_table(path, partitioning=None)
        for name in sorted(set(later) - set(table.column_names)):
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
        if missing := [name for name in schema.names if table.column_names.count(name) != 1]:
            raise InputError(f"{path}: expected {what}, but the columns {missing} are missing. {remedy}")
        metadata = table.schema.metadata
        return table.select(schema.names).cast(schema).replace_schema_metadata(metadata)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {what}, found no such file. {remedy}") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, what, error, remedy) from error


def shortened(value: Any) -> str:
    """A value in a message: on one line, its middle left out where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 15]}...{text[-12:]}"


def _check_inside(check: Check, value: Any, place: str) -> None:
    try:
        check(value)
    except Unfit as error:
        raise error.inside(place) from None


def _measurements(value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        return
    numbers()(value)


def _is_inside(name: str) -> bool:
    plain = name and not any(mark in name for mark in ("\\", "\0", "\n", "\r")) and not re.match(r"[A-Za-z]:", name)
    path = PurePosixPath(name)
    return bool(plain) and not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _unreadable(source: object, what: str, error: BaseException, remedy: str) -> InputError:
    lines: Sequence[str] = str(error).splitlines()
    # Words of the file's content and way, without the names of classes and the path that the sentence begins with.
    said = re.sub(
        r"\b\w+(?:Exception|Error): |(?:source )?'?" + re.escape(str(source)) + "'?:? ?", "", lines[0] if lines else ""
    )
    reason = said[:200].rstrip(". ") or "its content makes no sense"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return InputError(f"{source}: cannot be read as {what} ({reason}). {remedy}")
