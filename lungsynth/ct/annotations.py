"""What readers said about a series, in whatever form its files hold it, on the grid of its `Volume`.

LUNA16's `annotations.csv` gives nodules as spheres, in LPS mm. Such tables are recognised by their columns, not by
their names. `candidates.csv` has no diameter and is no annotation; `annotations_excluded.csv` holds findings that do
not count and is left alone.

Pascal-VOC boxes come as one XML a slice, named by the slice's SOPInstanceUID as in Lung-PET-CT-Dx. xmin, ymin, xmax and
ymax are taken as 0-based pixels of the stored slice that belong to the box.
"""

import codecs
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool

from lungsynth.ct.dicom import read_slice_frames
from lungsynth.ct.dicom_geometry import SliceFrame
from lungsynth.ct.lidc import LidcReading, read_lidc_xml
from lungsynth.ct.nodule import ReadNodule, nodules_from_mask
from lungsynth.ct.read import read_mask
from lungsynth.ct.series import MaskFile, NoduleSphere, SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import ANNOTATION_COLUMNS
from lungsynth.errors import InputError
from lungsynth.geometry import lps_to_voxel
from lungsynth.types import LabelVolume

__all__ = [
    "SliceBox",
    "TableHead",
    "read_boxes",
    "read_findings",
    "read_luna16_annotations",
    "read_lungs",
    "read_nodules",
    "read_readers",
    "read_table",
    "read_voc_boxes",
    "table_head",
]


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


_LARGEST_NODULE_ML = 1500  # a sphere of 142 mm: what is marked beyond is a lung
_HEAD_BYTES = 1 << 16  # of a table: what has a longer first line is none of ours
_SEPARATORS = (",", ";", "\t")
_MARK_COLUMNS = {
    "diameter", "diameter_mm", "radius", "xmin", "ymin", "x_min", "y_min", "x1", "y1", "bbox", "box", "coordx",
    "coordy", "coordz", "nodule",
}  # fmt: skip
_DETECTOR_COLUMNS = {"class", "probability", "score", "confidence"}

_Mask = Bool[np.ndarray, "depth height width"]
TableKind = Literal["annotations", "excluded", "candidates", "marks", "other"]


def read_nodules(files: SeriesFiles, like: Volume) -> tuple[ReadNodule, ...]:
    """Nodules whose outline is known: from LIDC's readers, else from nodule masks; empty where there is neither.

    Args:
        files: as `find_series` gives them.
        like: the same series, read.

    Raises:
        InputError: see `read_lidc_xml` and `read_mask`; and when a mask marks more than any nodule is large.
    """
    if files.annotations.lidc_xml is not None:
        return read_readers(files.annotations.lidc_xml, files, like).nodules
    masks = [mask for mask in files.masks if mask.nodule]
    if len(masks) != 1:  # by readers, or a file a nodule: where files overlap, they vote
        votes = np.zeros(like.hu.shape, np.uint8)
        for mask in masks:
            votes += _read_nodule_mask(mask, like) > 0
        return nodules_from_mask(votes, like.affine, values=range(1, len(masks) + 1), votes=True)
    numbers = _read_nodule_mask(masks[0], like)
    values = masks[0].nodule if len(masks[0].nodule) > 1 else (1,)
    return nodules_from_mask(numbers, like.affine, values=values, votes=masks[0].votes)


def read_readers(xml: Path, files: SeriesFiles, like: Volume) -> LidcReading:
    """All that LIDC's readers say of a series.

    Raises:
        InputError: see `read_lidc_xml`.
    """
    return read_lidc_xml(xml, like, read_slice_frames(files) if files.kind == "dicom" else None)


def _read_nodule_mask(mask: MaskFile, like: Volume) -> LabelVolume:
    """The nodules' numbers or votes, 0 elsewhere; of one value 1."""
    if len(mask.nodule) == 1:
        numbers = read_mask(mask.path, like, values=mask.nodule)
    else:
        numbers = read_mask(mask.path, like)
        numbers[~np.isin(numbers, mask.nodule)] = 0
    voxel_ml = float(np.prod(like.spacing_mm)) / 1000
    sizes = np.bincount(numbers.ravel())[1:] * voxel_ml
    if len(sizes) and sizes.max() > _LARGEST_NODULE_ML:
        value = mask.nodule[0] if len(mask.nodule) == 1 else int(sizes.argmax()) + 1
        raise InputError(
            f"{mask.path}: value {value} marks {sizes.max() / 1000:.1f} litres as nodule, as much as a lung. Say what "
            "the values mean: with a dataset.json beside it, or `--labels 1=lung,2=nodule`."
        )
    return numbers


def read_lungs(files: SeriesFiles, like: Volume) -> _Mask | None:
    """Lungs as the masks of a series have them, all together; None where it has none.

    Raises:
        InputError: as `read_mask`, and when the masks are empty.
    """
    masks = [mask for mask in files.masks if mask.lung]
    if not masks:
        return None
    lung = np.logical_or.reduce([read_mask(mask.path, like, values=mask.lung) > 0 for mask in masks])
    if not lung.any():
        raise InputError(f"{masks[0].path}: the lung mask is empty; remove it to have the lungs found by threshold.")
    return np.asarray(lung)


def read_findings(files: SeriesFiles, like: Volume) -> _Mask | None:
    """Where masks say that there is something else than lung and nodule; None where none does.

    Raises:
        InputError: as `read_mask`.
    """
    masks = [mask for mask in files.masks if mask.finding]
    if not masks:
        return None
    return np.logical_or.reduce([read_mask(mask.path, like, values=mask.finding) > 0 for mask in masks])


def read_boxes(files: SeriesFiles, like: Volume) -> tuple[SliceBox, ...]:
    """Pascal-VOC boxes of a DICOM series, in the order of its slices; empty where there are none.

    Raises:
        InputError: see `read_voc_boxes`.
    """
    if not files.annotations.voc_xml:
        return ()
    return read_voc_boxes(files.annotations.voc_xml, like, read_slice_frames(files))


@dataclass(frozen=True, kw_only=True)
class TableHead:
    """The first line of a table: its columns and what separates them."""

    columns: tuple[str, ...]
    separator: str

    @property
    def kind(self) -> TableKind:
        """What its columns say, without looking at its name or at upper and lower case."""
        lower = {name.lower() for name in self.columns}
        if {name.lower() for name in ANNOTATION_COLUMNS} <= lower:
            return "annotations"
        if lower & _DETECTOR_COLUMNS and "coordx" in lower:
            return "candidates"
        return "marks" if lower & _MARK_COLUMNS else "other"


def table_head(path: Path) -> TableHead | None:
    """The columns of a CSV or TSV; None when its first line is too long for one."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    line, end, _ = _decoded(head).partition("\n")
    if not end and len(head) == _HEAD_BYTES:
        return None
    text = line.rstrip("\r")
    separator = max(_SEPARATORS, key=text.count)
    return TableHead(columns=tuple(name.strip().strip('"') for name in text.split(separator)), separator=separator)


def read_table(path: Path, separator: str) -> pd.DataFrame:
    """A table whose cells are all text, so that ids stay as they are written; rows without any cell are left out.

    Raises:
        InputError: when it cannot be read as one.
    """
    try:
        text = io.StringIO(_decoded(path.read_bytes()))
        table = pd.read_csv(text, dtype=str, skipinitialspace=True, sep=separator)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            f"{path}: could not be read as CSV ({error}); write it again as comma-separated UTF-8."
        ) from error
    return table.rename(columns=lambda name: str(name).strip()).dropna(how="all")


def _decoded(content: bytes) -> str:
    """The text of a table: UTF-8, UTF-16 where it begins so, else what spreadsheets on Windows write."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end == len(content) and error.reason == "unexpected end of data":  # only the head was read
            return content[: error.start].decode("utf-8-sig")
        return content.decode("cp1252", "replace")


def read_luna16_annotations(path: Path) -> tuple[NoduleSphere, ...]:
    """Reads an `annotations.csv`.

    Args:
        path: CSV with the columns seriesuid, coordX, coordY, coordZ, diameter_mm.

    Raises:
        InputError: on missing columns, values that are no numbers, and nodules that are none.
    """
    head = table_head(path)
    separator = head.separator if head is not None else ","
    known = {name.lower(): name for name in ANNOTATION_COLUMNS}
    table = read_table(path, separator).rename(columns=lambda name: known.get(name.lower(), name))
    if missing := [name for name in ANNOTATION_COLUMNS if name not in table]:
        raise InputError(
            f"{path}: missing columns {', '.join(missing)}; an annotations file needs {','.join(ANNOTATION_COLUMNS)}, "
            f"got {','.join(map(str, table.columns))}. Rename or add them."
        )
    table["seriesuid"] = table["seriesuid"].fillna("").str.strip()
    decimal = "," if separator == ";" else "."
    numbers = table[list(ANNOTATION_COLUMNS[1:])].apply(
        lambda column: pd.to_numeric(column.str.replace(decimal, ".", regex=False), errors="coerce")
    )
    if (bad := ~np.isfinite(numbers).all(axis=1)).any():
        raise InputError(
            f"{path}: row {int(bad.idxmax()) + 2} has a coordinate or diameter that is no number; mend it."
        )
    rows = zip(numbers.index, table["seriesuid"], numbers.to_numpy(float).tolist(), strict=True)
    return tuple(_sphere(path, int(row) + 2, series, values) for row, series, values in rows)


def _sphere(path: Path, row: int, series: str, values: list[float]) -> NoduleSphere:
    x, y, z, diameter_mm = values
    try:
        return NoduleSphere(series_id=series, centre_lps_mm=(x, y, z), diameter_mm=diameter_mm)
    except InputError as error:
        raise InputError(f"{path}: row {row}: {error} Mend or delete the row.") from error
