"""LIDC-IDRI's XML: what four radiologists drew, as nodules with votes.

A contour (`roi` with an `edgeMap`) is a closed chain of pixels; the chain of an inclusion belongs to the nodule here.
LIDC's readers were asked to draw the first pixel outside, but the masks derived from LIDC that our sources bring hold
the chain: on LIDC-IDRI-0001 the 2-vote masks are then equal (24.57 mm); without the chain they are not (23.40 mm, Dice
0.93). One convention for all sources matters more than half a pixel. An exclusion carves what its chain encloses; the
chain itself stays nodule.

Nodules of 3 mm and more are drawn and rated. Smaller ones are one point without ratings, non-nodules one locus.
Armato et al., Medical Physics 38 (2011) 915.

Readers' marks are one nodule when they share a voxel or their centres lie within half of the larger one's diameter;
nearest pairs join first, and no nodule holds two marks of one reader, unless they are pieces: each mostly inside the
one mark of another reader.
"""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist, pdist

from lungsynth.ct.dicom_geometry import SliceFrame
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import lps_to_voxel, voxel_to_lps
from lungsynth.types import Affine

__all__ = ["LidcReading", "XmlHead", "read_lidc_xml", "read_xml_head"]

_logger = logging.getLogger(__name__)
_Z_TOLERANCE = 0.25  # of a slice
_DAMAGED = (ET.ParseError, ValueError, LookupError, OSError)  # unknown encodings are LookupErrors
_MOST_MARKS = 500  # of all readers: scans of LIDC have up to about a hundred
_PIECE_SHARE = 0.5  # of a mark that lies inside another reader's: then it is a piece of what that reader drew
_HIGHEST_RATINGS = {"calcification": 6, "internal_structure": 4}  # the others end at 5, all begin at 1


@dataclass(frozen=True, kw_only=True)
class LidcReading:
    """All that the readers marked in one series.

    Args:
        nodules: 3 mm and more; most voted first.
        small_nodules_lps_mm: (n, 3) points, one a mark and reader.
        non_nodules_lps_mm: (n, 3) points, one a mark and reader.
        readers: reading sessions.
        notes: ratings that were left out, and why.
    """

    nodules: tuple[ReadNodule, ...]
    small_nodules_lps_mm: np.ndarray
    non_nodules_lps_mm: np.ndarray
    readers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class XmlHead:
    """What an XML file is.

    Args:
        root: name of its outermost element.
        series_id: SeriesInstanceUID of the CT that it reads; None when it is no LIDC CT reading (another XML, or of a
            radiograph).
    """

    root: str
    series_id: str | None = None


def read_xml_head(path: Path) -> XmlHead:
    """Looks what an XML file is.

    Raises:
        InputError: when the file is not well-formed before that.
    """
    root = ""
    try:
        for event, element in ET.iterparse(path, events=("start", "end")):
            tag = _bare(element.tag)
            root = root or tag
            if root != "LidcReadMessage" or (event == "start" and tag == "readingSession"):
                break
            if event == "end" and tag == "SeriesInstanceUid":
                return XmlHead(root, (element.text or "").strip())
    except _DAMAGED as error:
        raise InputError(f"{path}: not well-formed XML ({error}); copy it again from its source.") from error
    return XmlHead(root)


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
    notes: list[str] = []
    small: list[np.ndarray] = []
    non_nodules: list[np.ndarray] = []
    try:
        sessions = ET.parse(path).getroot().findall("{*}readingSession")
        drawn = [_once(session.findall("{*}unblindedReadNodule")) for session in sessions]
        _check_count(sum(map(len, drawn)), path)
        for reader, session in enumerate(sessions):
            for nodule in drawn[reader]:
                rings = [_read_ring(roi, place) for roi in nodule.findall("{*}roi")]
                if max((len(points) for points, _ in rings), default=0) > 1:
                    ratings, doubts = _ratings(nodule)
                    notes += [f"{path.name}: reader {reader + 1} {doubt}" for doubt in doubts]
                    marks.append(draw_mark(rings, reader=reader, ratings=ratings, spacing_mm=like.spacing_mm))
                else:
                    small.extend(points[0] for points, _ in rings if len(points))
            non_nodules.extend(_read_locus(element, place) for element in session.findall("{*}nonNodule"))
    except _DAMAGED as error:
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
        notes=tuple(notes),
    )


def _once(nodules: Iterable[ET.Element]) -> list[ET.Element]:
    """What a reader drew, each once: the same outlines again are a copy, not another nodule."""
    return list({tuple(map(ET.tostring, nodule.findall("{*}roi"))): nodule for nodule in nodules}.values())


def _check_count(marks: int, path: Path) -> None:
    if marks > _MOST_MARKS:
        raise InputError(
            f"{path}: holds {marks} readings of nodules, more than {_MOST_MARKS}, which no scan has; copy it again "
            "from its source."
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


def _ratings(nodule: ET.Element) -> tuple[dict[str, float], list[str]]:
    """Ratings by name in snake case, and what is no rating; a reader may leave some out."""
    characteristics = nodule.find("{*}characteristics")
    names = {"internalStructure": "internal_structure"}
    ratings, doubts = {}, []
    for item in characteristics if characteristics is not None else ():
        name, text = names.get(_bare(item.tag), _bare(item.tag)), (item.text or "").strip()
        if not text:
            continue
        highest = _HIGHEST_RATINGS.get(name, 5)
        value = float(text)
        if 1 <= value <= highest:  # not NaN either
            ratings[name] = value
        else:
            doubts.append(f"rates {name} {text}, which lies outside 1..{highest}: this rating is left out")
    return ratings, doubts


def _points_lps(voxels: list[np.ndarray], like: Volume) -> np.ndarray:
    return voxel_to_lps(like.affine, np.array(voxels, dtype=float).reshape(-1, 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderMark:
    """One nodule as one reader drew it.

    Args:
        reader: number of the reading session.
        mask: bool (depth, height, width), cut to its box.
        offset: (slice, row, column) of the box.
        ratings: by name; empty where the reader gave none.
        diameter_mm: the longest in-plane distance between points of one inclusion contour.
    """

    reader: int
    mask: Bool[np.ndarray, "depth height width"]
    offset: np.ndarray
    ratings: dict[str, float]
    diameter_mm: float

    def centre_mm(self, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Centre of mass (3,) along (slice, row, column), from voxel 0."""
        return (np.argwhere(self.mask).mean(axis=0) + self.offset) * spacing_mm


def fill_ring(points: np.ndarray, *, with_chain: bool) -> tuple[Bool[np.ndarray, "height width"], np.ndarray]:
    """What a closed chain of pixels encloses.

    Args:
        points: int (n, 2) as (row, column), in drawing order; gaps are bridged by straight lines.
        with_chain: whether the chain is part of it.

    Returns:
        The mask of the chain's box, and the (row, column) of the box.
    """
    corner = points.min(axis=0)
    chain = np.zeros(points.max(axis=0) - corner + 1, bool)
    for start, stop in zip(points, np.roll(points, -1, axis=0), strict=True):
        steps = int(np.abs(stop - start).max()) + 1
        rows, columns = np.rint(np.linspace(start, stop, steps)).astype(int).T - corner[:, None]
        chain[rows, columns] = True
    filled = ndimage.binary_fill_holes(chain)
    return filled if with_chain else filled & ~chain, corner


def draw_mark(
    rings: Sequence[tuple[np.ndarray, bool]],
    *,
    reader: int,
    ratings: dict[str, float],
    spacing_mm: tuple[float, float, float],
) -> ReaderMark:
    """Fills a reader's contours of one nodule.

    Args:
        rings: voxels (n, 3) as (slice, row, column), all of one slice, and whether the ring includes.
        reader: number of the reading session.
        ratings: by name.
        spacing_mm: (slice, row, column).
    """
    corner = np.min([points.min(axis=0) for points, _ in rings if len(points)], axis=0)
    far = np.max([points.max(axis=0) for points, _ in rings if len(points)], axis=0)
    mask = np.zeros(far - corner + 1, bool)
    for include in (True, False):  # holes are carved when all is drawn
        for points, includes in rings:
            if includes is include and len(points):
                _paint(mask, points - corner, include=include)
    longest = max((_longest_mm(points, spacing_mm) for points, includes in rings if includes), default=0.0)
    return ReaderMark(reader=reader, mask=mask, offset=corner, ratings=ratings, diameter_mm=longest)


def _paint(mask: np.ndarray, points: np.ndarray, *, include: bool) -> None:
    filled, (row, column) = fill_ring(points[:, 1:], with_chain=include)
    window = (points[0, 0], slice(row, row + filled.shape[0]), slice(column, column + filled.shape[1]))
    mask[window] = mask[window] | filled if include else mask[window] & ~filled


def _longest_mm(points: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    in_plane = points[:, 1:] * np.array(spacing_mm[1:])
    if len(in_plane) > 3:
        with suppress(QhullError):  # points on one line have no hull
            in_plane = in_plane[ConvexHull(in_plane).vertices]
    return float(pdist(in_plane).max(initial=0.0))


def group_marks(marks: Sequence[ReaderMark], *, spacing_mm: tuple[float, float, float]) -> list[list[ReaderMark]]:
    """Parts the marks of all readers into nodules, in the order of their first mark."""
    centres = np.array([mark.centre_mm(spacing_mm) for mark in marks]).reshape(-1, 3)
    distance = cdist(centres, centres)
    pairs = [(i, j) for j in range(len(marks)) for i in range(j) if marks[i].reader != marks[j].reader]
    group = list(range(len(marks)))
    for i, j in sorted(pairs, key=lambda pair: distance[pair]):
        if group[i] == group[j]:
            continue
        shared = _shared_voxels(marks[i], marks[j])
        if not shared and distance[i, j] > max(marks[i].diameter_mm, marks[j].diameter_mm) / 2:
            continue
        one, other = ({mark.reader for k, mark in enumerate(marks) if group[k] == group[end]} for end in (i, j))
        smaller = min(int(marks[i].mask.sum()), int(marks[j].mask.sum()))
        if not one & other or shared >= _PIECE_SHARE * smaller:
            low, high = sorted((group[i], group[j]))
            group = [low if number == high else number for number in group]
    return [[marks[k] for k in range(len(marks)) if group[k] == number] for number in sorted(set(group))]


def _shared_voxels(one: ReaderMark, other: ReaderMark) -> int:
    start = np.maximum(one.offset, other.offset)
    stop = np.minimum(one.offset + one.mask.shape, other.offset + other.mask.shape)
    if (start >= stop).any():
        return 0
    views = [
        mark.mask[tuple(slice(low, high) for low, high in zip(start - mark.offset, stop - mark.offset, strict=True))]
        for mark in (one, other)
    ]
    return int((views[0] & views[1]).sum())


def merge_votes(marks: Sequence[ReaderMark], affine: Affine) -> ReadNodule:
    """One nodule of its readers' marks: votes a voxel, mean ratings over those who rated, mean diameter.

    A reader votes once, in however many pieces.
    """
    start = np.min([mark.offset for mark in marks], axis=0)
    stop = np.max([mark.offset + mark.mask.shape for mark in marks], axis=0)
    votes = np.zeros(stop - start, np.uint8)
    readers = sorted({mark.reader for mark in marks})
    for reader in readers:
        drawn = np.zeros(votes.shape, bool)
        for mark in (mark for mark in marks if mark.reader == reader):
            low = mark.offset - start
            drawn[tuple(slice(a, a + size) for a, size in zip(low, mark.mask.shape, strict=True))] |= mark.mask
        votes += drawn
    offset = (int(start[0]), int(start[1]), int(start[2]))
    consensus = votes >= min(2, int(votes.max()))
    return ReadNodule(
        votes=votes,
        offset=offset,
        readers=len(readers),
        centre_lps_mm=mask_centre_lps(consensus, offset, affine),
        attributes=_mean_ratings(mark.ratings for mark in marks),
        reader_diameter_mm=float(np.mean([mark.diameter_mm for mark in marks])),
    )


def _mean_ratings(ratings: Iterable[dict[str, float]]) -> dict[str, float]:
    given: dict[str, list[float]] = {}
    for rating in ratings:
        for name, value in rating.items():
            given.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in given.items()}
