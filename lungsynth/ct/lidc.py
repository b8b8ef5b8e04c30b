"""LIDC-IDRI's XML: what four radiologists drew, as nodules with votes.

A contour (`roi` with an `edgeMap`) is a closed chain of pixels; the chain of an inclusion belongs to the nodule here.
LIDC's readers were asked to draw the first pixel outside, but the masks derived from LIDC that our sources bring hold
the chain: on LIDC-IDRI-0001 the 2-vote masks are then equal (24.57 mm); without the chain they are not (23.40 mm, Dice
0.93). One convention for all sources matters more than half a pixel. An exclusion carves what its chain encloses; the
chain itself stays nodule.

Nodules of 3 mm and more are drawn and rated. Smaller ones are one point without ratings, non-nodules one locus.
Armato et al., Medical Physics 38 (2011) 915.

Readers' marks are one nodule when they share a voxel or their centres lie within half of the larger one's diameter;
nearest pairs join first, and no nodule holds two marks of one reader.
"""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungsynth.ct.dicom_geometry import SliceFrame
from lungsynth.ct.lidc_marks import ReaderMark, draw_mark, group_marks, merge_votes
from lungsynth.ct.nodule import ReadNodule
from lungsynth.ct.volume import Volume, lps_to_voxel, voxel_to_lps
from lungsynth.errors import InputError

__all__ = ["LidcReading", "lidc_series_id", "read_lidc_xml"]

_logger = logging.getLogger(__name__)
_Z_TOLERANCE = 0.25  # of a slice


@dataclass(frozen=True, kw_only=True)
class LidcReading:
    """All that the readers marked in one series.

    Args:
        nodules: 3 mm and more; most voted first.
        small_nodules_lps_mm: (n, 3) points, one a mark and reader.
        non_nodules_lps_mm: (n, 3) points, one a mark and reader.
        readers: reading sessions.
    """

    nodules: tuple[ReadNodule, ...]
    small_nodules_lps_mm: np.ndarray
    non_nodules_lps_mm: np.ndarray
    readers: int


def lidc_series_id(path: Path) -> str | None:
    """SeriesInstanceUID that an XML file reads; None when it is no LIDC CT reading (another XML, or of a radiograph).

    Raises:
        InputError: when the file is not well-formed before that.
    """
    try:
        for event, element in ET.iterparse(path, events=("start", "end")):
            tag = _bare(element.tag)
            if event == "start" and tag == "LidcReadMessage":
                continue
            if event == "end" and tag == "SeriesInstanceUid":
                return (element.text or "").strip()
            if (event == "start" and tag == "readingSession") or (
                event == "start" and tag in ("annotation", "IdriReadMessage")
            ):
                return None
    except (ET.ParseError, OSError) as error:
        raise InputError(f"{path}: not well-formed XML ({error}); copy it again from its source.") from error
    return None


def read_lidc_xml(path: Path, like: Volume, frames: Mapping[str, SliceFrame] | None = None) -> LidcReading:
    """Reads the sessions of all readers onto the grid of a series.

    Args:
        path: the XML.
        like: the series, of DICOM or another format with the same grid.
        frames: the DICOM slices by SOPInstanceUID (`read_slice_frames`). Without them contours are placed by
            imageZposition, and their pixels are taken for those of `like`.

    Raises:
        InputError: when the XML is damaged, or marks a slice that the series lacks.
    """
    place = _Placement(path, like, frames)
    marks: list[ReaderMark] = []
    small: list[np.ndarray] = []
    non_nodules: list[np.ndarray] = []
    try:
        sessions = ET.parse(path).getroot().findall("{*}readingSession")
        for reader, session in enumerate(sessions):
            for nodule in session.findall("{*}unblindedReadNodule"):
                rings = [_read_ring(roi, place) for roi in nodule.findall("{*}roi")]
                if max((len(points) for points, _ in rings), default=0) > 1:
                    marks.append(draw_mark(rings, reader=reader, ratings=_ratings(nodule), spacing_mm=like.spacing_mm))
                else:
                    small.extend(points[0] for points, _ in rings if len(points))
            non_nodules.extend(_read_locus(element, place) for element in session.findall("{*}nonNodule"))
    except (ET.ParseError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as LIDC XML ({error}); copy it again from its source.") from error
    nodules = [merge_votes(group, like.affine) for group in group_marks(marks, spacing_mm=like.spacing_mm)]
    nodules.sort(key=lambda nodule: (-nodule.readers, nodule.offset))
    _logger.info("%s: %d readers, %d nodules", path.name, len(sessions), len(nodules))
    return LidcReading(
        nodules=tuple(nodules),
        small_nodules_lps_mm=_points_lps(small, like),
        non_nodules_lps_mm=_points_lps(non_nodules, like),
        readers=len(sessions),
    )


@dataclass(frozen=True)
class _Placement:
    """From the XML's slices and pixels to voxels of the volume."""

    path: Path
    like: Volume
    frames: Mapping[str, SliceFrame] | None

    def to_voxels(self, sop_uid: str, z_mm: float, xy: np.ndarray) -> np.ndarray:
        """(n, 3) int voxels (slice, row, column) of contour points (n, 2) as (column, row)."""
        if self.frames and sop_uid in self.frames:
            voxels = lps_to_voxel(self.like.affine, self.frames[sop_uid].to_lps(xy[:, 0], xy[:, 1]))
        else:
            index = (z_mm - self.like.affine[2, 3]) / self.like.affine[2, 2]
            voxels = np.column_stack([np.full(len(xy), index), xy[:, 1], xy[:, 0]])
        rounded = np.rint(voxels).astype(int)
        off_grid = np.abs(voxels - rounded).max(initial=0) > _Z_TOLERANCE
        if off_grid or (rounded < 0).any() or (rounded >= self.like.hu.shape).any():
            raise InputError(
                f"{self.path}: marks slice {sop_uid or '(no SOPInstanceUID)'} at z = {z_mm:g} mm, which series "
                f"{self.like.series_id} does not hold. Put the XML beside its own series, with all slices."
            )
        return rounded


def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(f"{{*}}{tag}")
    if text is None:
        raise ValueError(f"no {tag} in {_bare(element.tag)}")
    return text.strip()


def _read_ring(roi: ET.Element, place: _Placement) -> tuple[np.ndarray, bool]:
    """A contour as voxels (n, 3), and whether it includes."""
    xy = np.array([(int(_text(edge, "xCoord")), int(_text(edge, "yCoord"))) for edge in roi.findall("{*}edgeMap")])
    sop_uid = (roi.findtext("{*}imageSOP_UID") or "").strip()
    voxels = place.to_voxels(sop_uid, float(_text(roi, "imageZposition")), xy.reshape(-1, 2))
    return voxels, _text(roi, "inclusion").upper() == "TRUE"


def _read_locus(element: ET.Element, place: _Placement) -> np.ndarray:
    locus = element.find("{*}locus")
    if locus is None:
        raise ValueError("a nonNodule without locus")
    xy = np.array([[int(_text(locus, "xCoord")), int(_text(locus, "yCoord"))]])
    sop_uid = (element.findtext("{*}imageSOP_UID") or "").strip()
    return place.to_voxels(sop_uid, float(_text(element, "imageZposition")), xy)[0]


def _ratings(nodule: ET.Element) -> dict[str, float]:
    """Ratings by name in snake case; a reader may leave some out."""
    characteristics = nodule.find("{*}characteristics")
    if characteristics is None:
        return {}
    names = {"internalStructure": "internal_structure"}
    values = {names.get(_bare(item.tag), _bare(item.tag)): (item.text or "").strip() for item in characteristics}
    return {name: float(value) for name, value in values.items() if value}


def _points_lps(voxels: list[np.ndarray], like: Volume) -> np.ndarray:
    return voxel_to_lps(like.affine, np.array(voxels, dtype=float).reshape(-1, 3))
