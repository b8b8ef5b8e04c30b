"""Pascal-VOC boxes, one XML a slice, named by the slice's SOPInstanceUID as in Lung-PET-CT-Dx.

xmin, ymin, xmax and ymax are taken as 0-based pixels of the stored slice that belong to the box.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungsynth.ct.dicom_geometry import SliceFrame
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import lps_to_voxel

__all__ = ["SliceBox", "read_voc_boxes"]


@dataclass(frozen=True, kw_only=True)
class SliceBox:
    """A box on an axial slice of a `Volume`; rows `row0 <= row < row1`, columns `column0 <= column < column1`."""

    slice_index: int
    row0: int
    column0: int
    row1: int
    column1: int
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.row0 < self.row1 and self.column0 < self.column1):
            raise InputError(
                f"A box needs row0 < row1 and column0 < column1, got rows {self.row0}..{self.row1}, "
                f"columns {self.column0}..{self.column1}."
            )


def read_voc_boxes(paths: Iterable[Path], like: Volume, frames: Mapping[str, SliceFrame]) -> tuple[SliceBox, ...]:
    """Reads the boxes of a series, in the order of its slices.

    Args:
        paths: XML files; the stem of each is the SOPInstanceUID of its slice.
        like: the series as `read_volume` gave it.
        frames: its slices, as `read_slice_frames` gave them.

    Raises:
        InputError: when a file is damaged, empty-boxed, or names a slice of another series.
    """
    boxes = [box for path in paths for box in _read_file(path, like, frames)]
    return tuple(sorted(boxes, key=lambda box: (box.slice_index, box.row0, box.column0)))


def _read_file(path: Path, like: Volume, frames: Mapping[str, SliceFrame]) -> list[SliceBox]:
    if path.stem not in frames:
        raise InputError(
            f"{path}: no slice of series {like.series_id} has this SOPInstanceUID; move it to its own series."
        )
    try:
        objects = ET.parse(path).getroot().findall("object")
        edges = [
            [float(_text(element, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for element in objects
        ]
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        raise InputError(f"{path}: not readable as Pascal-VOC XML ({error}); copy it again from its source.") from error
    return [
        _to_box(np.array(edge), like, frames[path.stem], path=path, name=(element.findtext("name") or "").strip())
        for edge, element in zip(edges, objects, strict=True)
    ]


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"no {tag}")
    return text


def _to_box(edges: np.ndarray, like: Volume, frame: SliceFrame, *, path: Path, name: str) -> SliceBox:
    rows, columns = frame.shape
    if not (np.isfinite(edges).all() and (edges >= 0).all() and (edges <= [columns, rows, columns, rows]).all()):
        raise InputError(
            f"{path}: a box {edges.tolist()} (xmin, ymin, xmax, ymax) lies outside its slice of {columns} x {rows} "
            "pixels; mend it, or put the file beside its own series."
        )
    corners = lps_to_voxel(like.affine, frame.to_lps(edges[[0, 2]], edges[[1, 3]]))
    low, high = np.rint(corners.min(axis=0)).astype(int).tolist(), np.rint(corners.max(axis=0)).astype(int).tolist()
    return SliceBox(slice_index=low[0], row0=low[1], column0=low[2], row1=high[1] + 1, column1=high[2] + 1, name=name)
