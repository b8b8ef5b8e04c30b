"""What values a volume holds: those of an image, or the few whole numbers of labels. It is read only as far as needed.

A CT is known by its first block, which holds air. A file of labels is read to its end, so that no value stays unknown.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lungsynth.ct.metaimage import read_metaimage
from lungsynth.ct.nifti import read_nifti
from lungsynth.errors import InputError, reason

__all__ = ["LABEL_ROUNDING", "Values", "is_metaimage", "is_nifti", "look_at"]

LABEL_ROUNDING = 1e-3  # labels that went through floating point are this near to whole numbers
_MOST_LABELS = 64  # more distinct values are grey levels
_HU_BELOW = -200.0  # fat is above: labels, grey levels and probabilities never are below, a chest CT always is
_LARGEST_LABEL = 1 << 31  # of labels stored as fractions
_BLOCK_VOXELS = 1 << 22
_LARGEST_PLANE = 1 << 26  # voxels: more in a slice are no scan


@dataclass(frozen=True, kw_only=True)
class Values:
    """What was seen of a volume.

    Args:
        low: the lowest value, as far as it was read; NaN where values are no numbers.
        high: the highest value, likewise.
        labels: distinct values but 0, ascending, where all are few whole numbers; None where it is an image.
        fingerprint: of the grid and the first block: copies have the same, other scans another.
        description: the NIfTI header's field of this name.
    """

    low: float
    high: float
    labels: tuple[int, ...] | None
    fingerprint: str
    description: str = ""

    @property
    def in_hu(self) -> bool:
        """Whether values are as low as only air and lung are, so that it can be a CT in HU."""
        return self.low < _HU_BELOW


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_metaimage(path: Path) -> bool:
    """Whether the name is that of a MetaImage header (its `.raw` or `.zraw` is not one)."""
    return path.suffix.lower() in (".mhd", ".mha")


def look_at(path: Path) -> Values:
    """Looks at the values of a NIfTI or MetaImage file.

    Raises:
        InputError: when it cannot be read.
    """
    tally = _Tally()
    try:
        for block in _nifti_blocks(path) if is_nifti(path) else _metaimage_blocks(path):
            tally.add(block)
            if tally.is_ct:
                break
        description = _description(path) if is_nifti(path) else ""
    except InputError:
        raise
    except Exception as error:  # a damaged file makes a library raise anything
        raise InputError(
            f"{path}: its values could not be read ({reason(error)}); copy it again from its source."
        ) from error
    return tally.result(description)


def _description(path: Path) -> str:
    try:
        header: Any = nib.load(path).header
    except nib.filebasedimages.ImageFileError:  # compressed in spite of its name, or the other way round
        return ""
    return bytes(header["descrip"]).rstrip(b"\0").decode("latin-1") if "descrip" in header else ""


def _nifti_blocks(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as stream:
        is_packed = stream.read(2) == b"\x1f\x8b"
    if is_packed != path.name.lower().endswith(".gz"):  # nibabel believes the name
        values, affine = read_nifti(path)
        yield np.frombuffer(affine.tobytes() + repr(values.shape).encode(), np.uint8)
        yield values
        return
    image: Any = nib.load(path, keep_file_open=True)  # one pass over the compressed stream
    shape = image.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or image.dataobj.dtype.fields is not None:
        yield read_nifti(path)[0]  # says what is wrong with it
        return
    yield np.frombuffer(np.array(image.affine, np.float64).tobytes() + repr(shape).encode(), np.uint8)
    plane = int(np.prod(shape[:2], dtype=np.int64))
    if plane > _LARGEST_PLANE:
        raise InputError(f"{path}: slices of {shape[0]} x {shape[1]} voxels are no scan; write the file again.")
    step = max(1, _BLOCK_VOXELS // max(plane, 1))
    for start in range(0, shape[2], step):
        yield np.asanyarray(image.dataobj[:, :, start : start + step])


def _metaimage_blocks(path: Path) -> Iterator[np.ndarray]:
    values, affine = read_metaimage(path)
    yield np.frombuffer(affine.tobytes() + repr(values.shape).encode(), np.uint8)
    step = max(1, _BLOCK_VOXELS // max(int(np.prod(values.shape[1:])), 1))
    for start in range(0, len(values), step):
        yield values[start : start + step]


class _Tally:
    """Sums blocks up; the first one is the grid."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.labels: set[int] | None = set()
        self.blocks = 0
        self.hash = hashlib.sha256()

    @property
    def is_ct(self) -> bool:
        return self.low < _HU_BELOW

    def add(self, block: np.ndarray) -> None:
        self.blocks += 1
        if self.blocks <= 2:
            self.hash.update(np.ascontiguousarray(block).tobytes())
        if self.blocks == 1 or block.size == 0:
            return
        low, high = float(block.min()), float(block.max())
        if not np.isfinite([low, high]).all():
            finite = block[np.isfinite(block)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
            self.labels = None
        self.low, self.high = float(np.fmin(self.low, low)), float(np.fmax(self.high, high))
        if self.labels is not None and not (low == high == 0):
            self._take(block)

    def _take(self, block: np.ndarray) -> None:
        nonzero = block[block != 0]
        whole = np.rint(nonzero) if nonzero.dtype.kind == "f" else nonzero
        if nonzero.dtype.kind == "f" and (
            np.abs(nonzero - whole).max() > LABEL_ROUNDING or np.abs(whole).max() > _LARGEST_LABEL
        ):
            self.labels = None
            return
        self.labels = (self.labels or set()) | set(_distinct(whole.astype(np.int64))) - {0}
        if len(self.labels) > _MOST_LABELS:
            self.labels = None

    def result(self, description: str) -> Values:
        labels = None if self.labels is None or self.is_ct else tuple(sorted(self.labels))
        return Values(
            low=float(self.low),
            high=float(self.high),
            labels=labels,
            fingerprint=self.hash.hexdigest(),
            description=description,
        )


def _distinct(values: np.ndarray) -> list[int]:
    if values.min() >= 0 and values.max() < 1 << 16:
        return np.flatnonzero(np.bincount(values)).tolist()
    return np.unique(values).tolist()
