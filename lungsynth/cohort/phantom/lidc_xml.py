"""The phantom's four readers, as an XML file of LIDC-IDRI.

A contour runs along the outermost pixels of the nodule, which `lungsynth.ct.lidc` takes for nodule: contour and what it
encloses are the mask. The first two readers draw the true mask, the third a larger one, the fourth a smaller one and
only where three slices show the nodule; two votes are the truth.
"""

from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from scipy import ndimage

from lungsynth.cohort.phantom.patient import PhantomNodule, PhantomPatient
from lungsynth.geometry import voxel_to_lps

__all__ = ["edge_contour", "lidc_xml"]

_READERS = 4
_TEXTURE_RATINGS = {"solid": (5, 5, 4, 5), "part_solid": (3, 3, 3, 2), "ground_glass": (1, 1, 2, 1)}
_FLAT_CROSS = ndimage.generate_binary_structure(2, 1)[None]
_CLOCKWISE = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (row, column)


def lidc_xml(patient: PhantomPatient, *, study_uid: str, series_uid: str, sop_uids: Sequence[str]) -> bytes:
    """Four readings of a patient's nodules; each reading also marks a nodule below 3 mm and a non-nodule.

    Args:
        patient: whose nodules are read.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        sop_uids: SOPInstanceUID of each slice of the volume, inferior to superior.
    """
    root = ElementTree.Element("LidcReadMessage", {"uid": f"{series_uid}.0", "xmlns": "http://www.nih.gov"})
    header = ElementTree.SubElement(root, "ResponseHeader")
    _text(header, Version="1.8.1", TaskDescription="Second unblinded read", SeriesInstanceUid=series_uid)
    _text(header, ResponseDescription="1 - Reading complete", StudyInstanceUID=study_uid)
    slice_z_mm = voxel_to_lps(patient.volume.affine, np.eye(3)[:1] * np.arange(len(sop_uids))[:, None])[:, 2]
    places = [(f"{z:.6f}", uid) for z, uid in zip(slice_z_mm, sop_uids, strict=True)]
    small, other = _marks(patient)
    for reader in range(_READERS):
        session = ElementTree.SubElement(root, "readingSession")
        _text(session, annotationVersion="3.12", servicingRadiologistID=f"phantom-{reader}")
        for number, nodule in enumerate(patient.nodules):
            _add_nodule(session, nodule, reader, name=f"Nodule {number + 1:03d}", places=places, seed=patient.seed)
        tiny = ElementTree.SubElement(session, "unblindedReadNodule")
        _text(tiny, noduleID=f"Small {reader}")
        _add_roi(tiny, places[small[0]], [(small[1], small[2])])
        non_nodule = ElementTree.SubElement(session, "nonNodule")
        _text(non_nodule, nonNoduleID="Non-nodule 001", imageZposition=places[other[0]][0])
        _text(non_nodule, imageSOP_UID=places[other[0]][1])
        _text(ElementTree.SubElement(non_nodule, "locus"), xCoord=str(other[2]), yCoord=str(other[1]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def edge_contour(mask: np.ndarray) -> list[tuple[int, int]]:
    """Traces the outermost pixels of a mask by Moore's neighbours, clockwise, the first one repeated at the end.

    Args:
        mask: bool (height, width), one 8-connected piece.

    Returns:
        (row, column) of the pixels.
    """
    padded = np.pad(mask, 1)
    row, column = (int(i) for i in np.argwhere(padded)[0])
    start, first_turn, turn, contour = (row, column), -1, 7, [(row - 1, column - 1)]
    if mask.sum() == 1:
        return 2 * contour
    while True:
        while not padded[row + _CLOCKWISE[turn][0], column + _CLOCKWISE[turn][1]]:
            turn = (turn + 1) % 8
        if (row, column) == start:
            if turn == first_turn:
                return contour
            first_turn = turn if first_turn < 0 else first_turn
        row, column = row + _CLOCKWISE[turn][0], column + _CLOCKWISE[turn][1]
        contour.append((row - 1, column - 1))
        turn = (turn + (6 if turn % 2 else 7)) % 8  # go on after the last pixel known to be outside


def _text(parent: ElementTree.Element, **values: str) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = value


def _marks(patient: PhantomPatient) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two places in the lung off the nodules, as (slice, row, column)."""
    free = np.argwhere((patient.lung_mask == 1) & (patient.nodule_mask == 0))
    chosen = free[np.random.default_rng([patient.seed, 3]).integers(0, len(free), 2)]
    (a, b, c), (d, e, f) = (tuple(int(i) for i in place) for place in chosen)
    return (a, b, c), (d, e, f)


def _add_nodule(
    session: ElementTree.Element, nodule: PhantomNodule, reader: int, *, name: str,
    places: list[tuple[str, str]], seed: int,
) -> None:  # fmt: skip
    drawn = _drawn_by(reader, nodule.mask.astype(bool))
    planes = np.flatnonzero(drawn.any(axis=(1, 2)))
    if not len(planes):
        return
    entry = ElementTree.SubElement(session, "unblindedReadNodule")
    _text(entry, noduleID=f"{name} of reader {reader}")
    _text(ElementTree.SubElement(entry, "characteristics"), **_ratings(nodule, reader, seed))
    for index in planes:
        _add_roi(entry, places[index], edge_contour(drawn[index]))


def _drawn_by(reader: int, mask: np.ndarray) -> np.ndarray:
    if reader == 2:
        return ndimage.binary_dilation(mask, _FLAT_CROSS)
    if reader == 3:
        return _solid_core(mask) if mask.any(axis=(1, 2)).sum() >= 3 else np.zeros_like(mask)
    return mask


def _solid_core(mask: np.ndarray) -> np.ndarray:
    """The largest piece in each slice of the mask less its outermost pixels."""
    core = ndimage.binary_erosion(mask, _FLAT_CROSS)
    for index in np.flatnonzero(core.any(axis=(1, 2))):
        pieces, count = ndimage.label(core[index])
        sizes = ndimage.sum_labels(core[index], pieces, range(1, count + 1))
        core[index] &= pieces == 1 + int(np.argmax(sizes))
    return core


def _ratings(nodule: PhantomNodule, reader: int, seed: int) -> dict[str, str]:
    """Ratings that go with size and texture, and that readers do not quite agree on."""
    rng = np.random.default_rng([seed, 4, reader, int(nodule.mask.sum())])
    size = int(np.clip(round(nodule.diameter_mm / 6), 1, 4))

    def near(value: int) -> str:
        return str(int(np.clip(value + rng.integers(-1, 2), 1, 5)))

    return {
        "subtlety": near(2 + size), "internalStructure": "1", "calcification": "6", "sphericity": near(4),
        "margin": near(4), "lobulation": near(2), "spiculation": near(size), "texture":
        str(_TEXTURE_RATINGS[nodule.texture_class][reader]), "malignancy": near(size + 1),
    }  # fmt: skip


def _add_roi(parent: ElementTree.Element, place: tuple[str, str], contour: Sequence[tuple[int, int]]) -> None:
    roi = ElementTree.SubElement(parent, "roi")
    _text(roi, imageZposition=place[0], imageSOP_UID=place[1], inclusion="TRUE")
    for row, column in contour:
        _text(ElementTree.SubElement(roi, "edgeMap"), xCoord=str(column), yCoord=str(row))
