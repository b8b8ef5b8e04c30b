"""MetaImage files (`.mhd` with `.raw` or `.zraw`, `.mha`), CT or mask, in the orientation of `Volume`.

Header and pixels are read here and not by ITK, which takes what a header says on trust: it kills the process at
`NDims = 99`, and leaves memory as it was where data are missing. What a header does not say plainly is refused, and
pixels are exactly as many as it says. Data files lie beside their header or below it.

The header's world is LPS, like DICOM's; `TransformMatrix` holds the direction of each axis in turn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from einops import rearrange

from lungsynth.ct.source_files import inflate
from lungsynth.ct.volume import check_size, to_volume_axes
from lungsynth.errors import InputError, naming_file
from lungsynth.types import Affine

__all__ = ["read_metaimage"]

_HEADER_BYTES = 1 << 16  # the text of a header is shorter; a file without `ElementDataFile` in them is none
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
}
# Names that mean the same, the first that is given counts.
_SPACING, _ORIGIN = ("elementspacing", "elementsize"), ("offset", "position", "origin")
_DIRECTION = ("transformmatrix", "rotation", "orientation")
_BIG_ENDIAN = ("binarydatabyteordermsb", "elementbyteordermsb")
_NUMBERED = re.compile(r"([^%]*%0?\d*d[^%\s]*)((?:\s+-?\d{1,6}){2,3})")  # name%03d.raw FIRST LAST [STEP]
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
_MOST_FILES = 10_000
_MOST_PACKED = 1.01  # zlib makes what cannot be compressed a little larger


def read_metaimage(path: Path) -> tuple[np.ndarray, Affine]:
    """Reads a MetaImage.

    Args:
        path: the `.mhd` or `.mha` file.

    Returns:
        The values (depth, height, width) and the RAS affine.

    Raises:
        InputError: when the header is damaged or unclear, the data missing, short, too long or damaged, the image not
            of 3 dimensions and one channel, or the grid oblique.
    """
    with naming_file(path, "could not be read as MetaImage"):
        header, start = _read_header(path)
        values = rearrange(_pixels(path, header, start), "slice row column -> column row slice")
        return to_volume_axes(values, header.affine, name=str(path))


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a header says, checked; `shape` is (slice, row, column)."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: Affine
    compressed: bool
    packed_bytes: int
    skipped: int
    lines: tuple[str, ...]

    @property
    def pixel_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _read_header(path: Path) -> tuple[_Header, int]:
    """The header, and the byte of the file after its last line."""
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    position, lines = 0, head.splitlines(keepends=True)
    for index, line in enumerate(lines):
        position += len(line)
        key, separator, value = line.decode("latin-1").partition("=")
        key = key.strip().lower()
        if separator and fields.setdefault(key, value.strip()) != value.strip():
            raise _unclear(path, f"says {key} twice, {fields[key]} and {value.strip()}")
        if key == "elementdatafile" and separator:
            rest = [line.decode("latin-1").strip() for line in lines[index + 1 :]] if _is_list(value) else []
            return _parse(path, fields, [line for line in rest if line]), position
    raise InputError(
        f"{path}: no ElementDataFile in its header, so it is no MetaImage or a damaged one; copy it again."
    )


def _parse(path: Path, fields: Mapping[str, str], rest: Sequence[str]) -> _Header:
    """Checks the fields of a header; `rest` holds the lines after ElementDataFile = LIST."""
    sizes = _sizes(path, fields)
    kind = fields.get("elementtype", "")
    if kind.upper() not in _TYPES:
        raise _unclear(path, f"says ElementType {kind or 'nothing'}, which is none of {', '.join(_TYPES)}")
    if not _flag(path, fields, "binarydata", default=True):
        raise _unclear(path, "says BinaryData = False; pixels written as text are not read")
    slope, offset = (
        _numbers(path, fields, (f"elementtointensityfunction{name}",), 1, (default,))[0]
        for name, default in (("slope", 1.0), ("offset", 0.0))
    )
    if (slope, offset) != (1, 0):
        raise _unclear(path, f"scales its values (slope {slope:g}, offset {offset:g}); write it in HU")
    order = ">" if any(_flag(path, fields, name, default=False) for name in _BIG_ENDIAN) else "<"
    return _Header(
        shape=(sizes[2], sizes[1], sizes[0]),
        dtype=np.dtype(order + _TYPES[kind.upper()]),
        affine=_affine(path, fields),
        compressed=_flag(path, fields, "compresseddata", default=False),
        packed_bytes=_whole(path, fields.get("compresseddatasize", "0"), "CompressedDataSize"),
        skipped=_whole(path, fields.get("headersize", "0"), "HeaderSize"),
        lines=(fields["elementdatafile"], *rest),
    )


def _sizes(path: Path, fields: Mapping[str, str]) -> list[int]:
    """DimSize as (column, row, slice); trailing dimensions of one do not count."""
    dimensions = _whole(path, fields.get("ndims", ""), "NDims")
    if not 1 <= dimensions <= 10:
        raise _unclear(path, f"says NDims = {dimensions}; a CT has 3")
    sizes = [_whole(path, size, "DimSize") for size in fields.get("dimsize", "").split()]
    channels = _whole(path, fields.get("elementnumberofchannels", "1"), "ElementNumberOfChannels")
    if len(sizes) != dimensions or min(sizes) < 1:
        raise _unclear(path, f"says NDims = {dimensions} and DimSize = {fields.get('dimsize', 'nothing')}")
    kept = [*sizes[:3], *(size for size in sizes[3:] if size != 1)]
    if len(kept) != 3 or channels != 1:
        raise InputError(
            f"{path}: expected one CT of 3 dimensions and one channel, got {len(kept)} dimensions with {channels} "
            "channels. Split it into volumes and keep one."
        )
    check_size(kept, name=str(path))
    return kept


def _affine(path: Path, fields: Mapping[str, str]) -> Affine:
    """RAS, of (column, row, slice)."""
    count = len(fields["dimsize"].split())
    eye = tuple(np.eye(count).ravel())
    spacing = np.array(_numbers(path, fields, _SPACING, count, (1.0,) * count)[:3])
    origin = np.array(_numbers(path, fields, _ORIGIN, count, (0.0,) * count)[:3])
    direction = np.array(_numbers(path, fields, _DIRECTION, count * count, eye)).reshape(count, count)[:3, :3].T
    affine = np.eye(4)
    affine[:3, :3] = _RAS_FROM_LPS @ direction @ np.diag(spacing)
    affine[:3, 3] = _RAS_FROM_LPS @ origin
    return affine


def _numbers(
    path: Path, fields: Mapping[str, str], names: Sequence[str], count: int, default: tuple[float, ...]
) -> tuple[float, ...]:
    name = next((name for name in names if name in fields), None)
    if name is None:
        return default
    try:
        values = tuple(float(word) for word in fields[name].split())
    except ValueError:
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        raise _unclear(path, f"needs {count} numbers as {name}, got {fields[name][:60]!r}")
    return values


def _whole(path: Path, text: str, name: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,12}", text):
        raise _unclear(path, f"says {name} = {text[:40] or 'nothing'}, which is no whole number")
    return int(text)


def _flag(path: Path, fields: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = fields.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0"):
        raise _unclear(path, f"says {name} = {text[:40]}, which is neither True nor False")
    return text in ("true", "1")


def _unclear(path: Path, what: str) -> InputError:
    return InputError(f"{path}: its MetaImage header {what}. Write the file again.")


def _is_list(value: str) -> bool:
    return value.strip().upper().startswith("LIST")


def _pixels(path: Path, header: _Header, start: int) -> np.ndarray:
    """Values (slice, row, column) of the data files."""
    if header.lines[0].upper() == "LOCAL":
        content = _content(path, path, header, start, header.pixel_bytes)
        return np.frombuffer(content, header.dtype).reshape(header.shape)
    files = _data_files(path, header)
    share, odd = divmod(header.pixel_bytes, len(files))
    if odd or (len(files) > 1 and len(files) != header.shape[0]):
        raise InputError(
            f"{path}: ElementDataFile names {len(files)} files for {header.shape[0]} slices; give one a slice."
        )
    content = b"".join(_content(path, file, header, 0, share) for file in files)
    return np.frombuffer(content, header.dtype).reshape(header.shape)


def _data_files(path: Path, header: _Header) -> list[Path]:
    """The data files that ElementDataFile names: one, a list, or a numbered series."""
    target, *listed = header.lines
    if _is_list(target):
        names = listed
        if not names:
            raise InputError(f"{path}: ElementDataFile = LIST, and no data file is listed after it; copy it again.")
    elif "%" in target:
        names = _numbered(path, target)
    else:
        names = [target]
    if len(names) > _MOST_FILES:
        raise InputError(f"{path}: ElementDataFile names {len(names)} data files; give one file or one a slice.")
    return [_beside(path, name) for name in names]


def _numbered(path: Path, target: str) -> list[str]:
    match = _NUMBERED.fullmatch(target)
    first, last, step = ([int(word) for word in match[2].split()] + [1])[:3] if match else (0, 0, 0)
    if match is None or step < 1 or not 0 <= first <= last or (last - first) // step >= _MOST_FILES:
        raise InputError(
            f"{path}: ElementDataFile {target[:60]!r} is no name of a data file and no NAME%03d.raw FIRST LAST STEP; "
            "write the file again."
        )
    width = re.search(r"%(0?)(\d*)d", match[1])
    if width is None or len(width[2]) > 2:
        raise InputError(f"{path}: ElementDataFile {target[:60]!r} numbers its files too wide; write the file again.")
    fill = "0" if width[1] else " "
    numbers = (str(number).rjust(int(width[2] or 0), fill) for number in range(first, last + 1, step))
    return [match[1].replace(width[0], number) for number in numbers]


def _beside(path: Path, name: str) -> Path:
    """A data file that the header names; it lies in the header's folder or below."""
    parts = PureWindowsPath(name)  # knows / and \
    if "\0" in name or not parts.parts or parts.drive or parts.root or ".." in parts.parts:
        raise InputError(
            f"{path}: its data file {name[:100]!r} does not lie beside the header. Put it there and name it alone."
        )
    data = path.parent.joinpath(*parts.parts)
    if not data.is_file():
        raise InputError(f"{path}: its data file {name[:100]} is missing; put it beside the header.")
    return data


def _content(path: Path, data: Path, header: _Header, start: int, expected: int) -> bytes | bytearray:
    """Exactly as many bytes of pixels as the header says."""
    held = data.stat().st_size - start
    if header.compressed:
        if header.packed_bytes not in (0, held) or held > expected * _MOST_PACKED + _HEADER_BYTES:
            raise InputError(
                f"{data}: holds {held} bytes for {expected} of pixels, {path.name} says CompressedDataSize = "
                f"{header.packed_bytes}; one of them is truncated or damaged. Copy both again from their source."
            )
        return inflate(_read(data, start), expected, name=str(data))
    skipped = held - expected if header.skipped == -1 else header.skipped
    present = held - max(skipped, 0)
    if header.skipped < -1 or skipped < 0 or present < expected:
        raise InputError(
            f"{data}: truncated, expected {expected} bytes of pixels for {header.shape[::-1]} of {header.dtype.name}, "
            f"got {present}. Copy it again from its source."
        )
    if present > expected:
        raise InputError(
            f"{data}: holds {present - expected} bytes more than {path.name} says ({expected}); one of them is damaged "
            "or belongs to another image. Copy both again from their source."
        )
    return _read(data, start + skipped)


def _read(data: Path, start: int) -> bytes:
    with naming_file(data), data.open("rb") as stream:
        stream.seek(start)
        return stream.read()
