"""What is known about the nodules of a scan, from whatever its source holds.

| source | nodule | unlabelled (255) |
|---|---|---|
| mask volume | the mask, or two readers' votes | findings of another kind, one reader's vote |
| LIDC XML | two readers or more agree | one reader alone |
| `annotations.csv` (centre, diameter) | what is dense inside the sphere | the rest of the sphere, and 2 mm around it |
| Pascal-VOC box | | the box |

The masks of the last two are nobody's: their slices do not count as labelled.

Nodules of a scan as patches and rows: each is cut out of the slices on the scan's own grid.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.patches import (
    IGNORED,
    NODULE,
    WINDOW_PX,
    NoduleCube,
    NodulePatches,
    NodulePlanes,
    cut_cube,
    cut_patches,
    cut_window,
    sphere_diameter_mm,
    texture_class,
)
from lungsynth.cohort.resampling import CentredGrid
from lungsynth.cohort.schema import RATINGS, NoduleRow
from lungsynth.ct.annotations import SliceBox, read_boxes, read_findings, read_nodules, read_readers
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.ct.series import NoduleSphere, SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM, lps_to_voxel
from lungsynth.hounsfield import SOLID_HU

__all__ = [
    "ScanNodules",
    "cut_nodule",
    "nodule_row",
    "read_scan_nodules",
    "sphere_nodule",
    "with_cube",
    "with_sphere",
    "with_window",
]

_DENSE_ABOVE_HU = -600  # half-way from lung to a faint ground-glass nodule's core
_SMALLEST_SHARE = 0.2  # of the sphere: with less, the centre or the threshold is wrong and nothing is nodule
_SPHERE_MARGIN_MM = 2.0
_MOST_SPHERES = 1000

_Mask = Bool[np.ndarray, "depth height width"]


@dataclass(frozen=True, kw_only=True)
class ScanNodules:
    """Nodules of a scan and where nobody can tell.

    Args:
        nodules: with the readers' votes.
        nodule: their consensus, on the scan's grid.
        unlabelled: neither nodule nor free of it.
        expert: whether an expert drew the masks of all nodules.
        notes: what was not understood.
        known: False when there are more marks, which could not be used: then any slice may show a nodule.
    """

    nodules: tuple[ReadNodule, ...]
    nodule: _Mask
    unlabelled: _Mask
    expert: bool
    notes: tuple[str, ...] = ()
    known: bool = True

    @property
    def diseased(self) -> Bool[np.ndarray, " depth"]:
        """Slices that show a nodule, or may."""
        marked = (self.nodule | self.unlabelled).any(axis=(1, 2))
        return np.asarray(marked) if self.known else np.ones_like(marked)


def read_scan_nodules(files: SeriesFiles, volume: Volume) -> ScanNodules:
    """Reads the nodule annotations of a series, the most exact that it has.

    Raises:
        InputError: when a mask's grid differs from the scan's, or an annotation file is damaged.
    """
    found = _most_exact(files, volume)
    doubtful = read_findings(files, volume)
    if doubtful is not None:
        found = replace(found, unlabelled=(found.unlabelled | doubtful) & ~found.nodule)
    if found.expert:
        found = _with_others(found, files, volume)
    if files.unread:
        names = ", ".join(path.name for path in files.unread)
        told = f"{volume.series_id}: marks in {names} could not be used, so no slice counts as normal"
        found = replace(found, known=False, notes=(*found.notes, told))
    return found


def _with_others(found: ScanNodules, files: SeriesFiles, volume: Volume) -> ScanNodules:
    """Where tables or boxes mark what nobody drew, nobody knows: unlabelled, with a note."""
    unlabelled, notes = found.unlabelled.copy(), list(found.notes)
    known = found.nodule | found.unlabelled
    for sphere in files.annotations.spheres:
        _, box, around = _look_into(volume, sphere)
        if not (known[box] & around).any():
            unlabelled[box] |= around
            notes.append(f"{volume.series_id}: nobody drew the nodule at {sphere.centre_lps_mm}, left unlabelled")
    for marked in read_boxes(files, volume):
        rows, columns = slice(marked.row0, marked.row1), slice(marked.column0, marked.column1)
        if not known[marked.slice_index, rows, columns].any():
            unlabelled[marked.slice_index, rows, columns] = True
            notes.append(
                f"{volume.series_id}: nobody drew what is boxed in slice {marked.slice_index}, left unlabelled"
            )
    return replace(found, unlabelled=unlabelled & ~found.nodule, notes=tuple(notes))


def _most_exact(files: SeriesFiles, volume: Volume) -> ScanNodules:
    xml = files.annotations.lidc_xml
    if xml is not None:
        reading = read_readers(xml, files, volume)
        return replace(_findings(volume, reading.nodules, min_votes=2, expert=True), notes=reading.notes)
    if files.nodule_mask is not None:
        min_votes = 2 if any(mask.votes for mask in files.masks) else 1
        return _findings(volume, read_nodules(files, volume), min_votes=min_votes, expert=True)
    if files.annotations.spheres:
        return _from_spheres(volume, files.annotations.spheres)
    return _from_boxes(volume, read_boxes(files, volume))


def _findings(volume: Volume, nodules: tuple[ReadNodule, ...], *, min_votes: int, expert: bool) -> ScanNodules:
    """Voxels with `min_votes` are nodule, those with fewer are unlabelled."""
    votes = np.zeros(volume.hu.shape, np.uint8)
    for nodule in nodules:
        box = _box(nodule)
        votes[box] = np.maximum(votes[box], nodule.votes)
    nodule_mask = votes >= min_votes
    return ScanNodules(nodules=nodules, nodule=nodule_mask, unlabelled=(votes > 0) & ~nodule_mask, expert=expert)


def _from_spheres(volume: Volume, spheres: tuple[NoduleSphere, ...]) -> ScanNodules:
    nodule, unlabelled = np.zeros(volume.hu.shape, bool), np.zeros(volume.hu.shape, bool)
    nodules, notes = [], []
    if len(spheres) > _MOST_SPHERES:
        raise InputError(
            f"{volume.series_id}: {len(spheres)} nodules in its annotations table, more than the {_MOST_SPHERES} that "
            "a scan can have; keep the rows of nodules."
        )
    for sphere in spheres:
        found, box, around = _look_into(volume, sphere)
        unlabelled[box] |= around
        if found is None:
            notes.append(f"{volume.series_id}: nothing dense at {sphere.centre_lps_mm}, left unlabelled")
            continue
        nodules.append(found)
        box = _box(found)
        nodule[box] |= found.votes > 0
    return ScanNodules(
        nodules=tuple(nodules), nodule=nodule, unlabelled=unlabelled & ~nodule, expert=False, notes=tuple(notes)
    )


def _from_boxes(volume: Volume, boxes: tuple[SliceBox, ...]) -> ScanNodules:
    unlabelled = np.zeros(volume.hu.shape, bool)
    for box in boxes:
        unlabelled[box.slice_index, box.row0 : box.row1, box.column0 : box.column1] = True
    return ScanNodules(nodules=(), nodule=np.zeros_like(unlabelled), unlabelled=unlabelled, expert=False)


def sphere_nodule(volume: Volume, sphere: NoduleSphere) -> tuple[ReadNodule | None, _Mask]:
    """Guesses the mask of a nodule that is given by centre and diameter: what is dense inside the sphere.

    Returns:
        The nodule, or None when less than a fifth of the sphere is dense; and the sphere with a margin.
    """
    nodule, box, around = _look_into(volume, sphere)
    full = np.zeros(volume.hu.shape, bool)
    full[box] = around
    return nodule, full


def _look_into(volume: Volume, sphere: NoduleSphere) -> tuple[ReadNodule | None, tuple[slice, ...], _Mask]:
    """The nodule, the box of the sphere with its margin, and where in the box that is.

    Raises:
        InputError: when all of the sphere lies outside the scan.
    """
    centre = lps_to_voxel(volume.affine, np.asarray(sphere.centre_lps_mm))
    # Thick slices can lie on both sides of a small nodule: half a slice is added along the axis' worst case.
    radius_mm = max(sphere.diameter_mm / 2, volume.spacing_mm[0] / 2)
    reach = np.ceil((radius_mm + _SPHERE_MARGIN_MM) / np.asarray(volume.spacing_mm)) + 1
    low = np.clip(np.floor(centre - reach), 0, volume.hu.shape).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, 0, volume.hu.shape).astype(int)
    box = tuple(slice(start, stop) for start, stop in zip(low.tolist(), high.tolist(), strict=True))
    if (low >= high).any() or not (distance_mm := _distance_mm(volume, box, centre)).min() <= radius_mm:
        raise InputError(
            f"{volume.series_id}: the nodule at {sphere.centre_lps_mm} mm (LPS) of its annotations table lies outside "
            "the scan; mend the row, or give the table of this scan."
        )
    inside, around = distance_mm <= radius_mm, distance_mm <= sphere.diameter_mm / 2 + _SPHERE_MARGIN_MM
    dense = inside & (volume.hu[box] > _DENSE_ABOVE_HU)
    if not dense.any() or dense.sum() < _SMALLEST_SHARE * inside.sum():
        return None, box, around
    found = np.argwhere(dense)
    first, last = found.min(axis=0), found.max(axis=0) + 1
    votes = dense[first[0] : last[0], first[1] : last[1], first[2] : last[2]].astype(np.uint8)
    z, y, x = (first + low).tolist()
    nodule = ReadNodule(
        votes=votes,
        offset=(z, y, x),
        readers=1,
        centre_lps_mm=mask_centre_lps(votes > 0, (z, y, x), volume.affine),
        reader_diameter_mm=sphere.diameter_mm,
    )
    return nodule, box, around


def _distance_mm(volume: Volume, box: tuple[slice, ...], centre: np.ndarray) -> np.ndarray:
    steps = [
        (np.arange(part.start, part.stop) - c) * mm for part, c, mm in zip(box, centre, volume.spacing_mm, strict=True)
    ]
    z, y, x = np.meshgrid(*steps, indexing="ij", sparse=True)
    return np.asarray(np.sqrt(z**2 + y**2 + x**2))


def _box(nodule: ReadNodule) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(nodule.offset, nodule.votes.shape, strict=True))


_MARGIN_MM = 40.0  # more than a patch or a cube reaches beyond its nodule
_WINDOW_MARGIN_MM = WINDOW_PX / 2 * PATCH_SPACING_MM + 2  # likewise
_WINDOW_STEP_MM = 3.75  # the farthest neighbour that lung_seg_bundle shows with a slice
_REACH_MM = (PATCH_PX / 2 - 1) * PATCH_SPACING_MM  # the patch's border stays free


def cut_nodule(volume: Volume, nodule: ReadNodule) -> NodulePatches | None:
    """Cuts the patches of a nodule.

    Returns:
        The patches; None when the nodule reaches beyond its patch in some slice.
    """
    mask = nodule.votes >= nodule.consensus_votes
    if not _fits(mask, volume.spacing_mm[1:]):
        return None
    z, y, x = nodule.offset
    depth, height, width = nodule.votes.shape
    margins = [math.ceil(_MARGIN_MM / mm) for mm in volume.spacing_mm[1:]]
    rows = slice(max(y - margins[0], 0), y + height + margins[0])
    columns = slice(max(x - margins[1], 0), x + width + margins[1])
    hu = volume.hu[z : z + depth, rows, columns]
    votes = np.zeros(hu.shape, np.uint8)
    top, left = y - rows.start, x - columns.start
    votes[:, top : top + height, left : left + width] = nodule.votes
    return cut_patches(NodulePlanes(hu=hu, votes=votes, spacing_mm=volume.spacing_mm[1:]))


def with_cube(patches: NodulePatches, volume: Volume, nodule: ReadNodule) -> NodulePatches:
    """The patches of a nodule with its cube, where it has one."""
    return replace(patches, cube=_cut_cube(volume, nodule))


def with_window(patches: NodulePatches, volume: Volume, nodule: ReadNodule, findings: ScanNodules) -> NodulePatches:
    """The patches of a nodule with its window, which shows the scan's other nodules, too.

    Args:
        patches: cut from `nodule`.
        volume: likewise.
        nodule: in the middle of the window.
        findings: of the whole scan.
    """
    z, y, x = nodule.offset
    depth, height, width = nodule.votes.shape
    reach = math.ceil(_WINDOW_STEP_MM / volume.spacing_mm[0])
    slices = slice(max(z - reach, 0), z + depth + reach)
    rows, columns = (
        slice(max(start - math.ceil(_WINDOW_MARGIN_MM / mm), 0), start + size + math.ceil(_WINDOW_MARGIN_MM / mm))
        for start, size, mm in zip((y, x), (height, width), volume.spacing_mm[1:], strict=True)
    )
    region = (slices, rows, columns)
    label = np.where(findings.nodule[region], NODULE, np.where(findings.unlabelled[region], IGNORED, 0))
    own, votes = _votes_in(region, label.shape, [nodule]), _votes_in(region, label.shape, findings.nodules)
    z_mm = np.arange(*slices.indices(len(volume.hu))) * volume.spacing_mm[0]
    window = cut_window(
        volume.hu[region],
        label.astype(np.uint8),
        spacing_mm=volume.spacing_mm[1:],
        z_mm=z_mm,
        nodule=own >= nodule.consensus_votes,
        votes=votes,
    )
    return replace(patches, window=window)


def _votes_in(region: tuple[slice, ...], shape: tuple[int, ...], nodules: Iterable[ReadNodule]) -> np.ndarray:
    """Votes of nodules in a part of their scan."""
    votes = np.zeros(shape, np.uint8)
    for nodule in nodules:
        here, there = [], []
        for start, size, part, length in zip(nodule.offset, nodule.votes.shape, region, shape, strict=True):
            low, high = max(start, part.start), min(start + size, part.start + length)
            here.append(slice(low - part.start, max(low, high) - part.start))
            there.append(slice(low - start, max(low, high) - start))
        votes[tuple(here)] = np.maximum(votes[tuple(here)], nodule.votes[tuple(there)])
    return votes


def with_sphere(
    patches: NodulePatches, volume: Volume, nodule: ReadNodule, around: Bool[np.ndarray, "depth height width"]
) -> NodulePatches:
    """The patches of a nodule of which only centre and diameter are known, with where nobody can tell its outline.

    Args:
        patches: cut from `nodule`.
        volume: likewise.
        nodule: what is dense in its sphere.
        around: on the volume's grid, the spheres with their margin.
    """
    z, y, x = nodule.offset
    depth, height, width = nodule.votes.shape
    mask = np.zeros((depth, *volume.hu.shape[1:]), bool)
    mask[:, y : y + height, x : x + width] = nodule.votes >= nodule.consensus_votes
    spheres = [
        CentredGrid(plane, volume.spacing_mm[1:]).share(there) >= 0.5
        for plane, there in zip(mask, around[z : z + depth], strict=True)
        if plane.any()
    ]
    return replace(patches, sphere=np.stack(spheres))


def nodule_row(volume: Volume, nodule: ReadNodule, *, nodule_id: str, source: str, expert: bool) -> NoduleRow:
    """The row of a nodule, measured on the scan's own grid."""
    mask = nodule.votes >= nodule.consensus_votes
    z, y, x = nodule.offset
    depth, height, width = mask.shape
    inside = volume.hu[z : z + depth, y : y + height, x : x + width][mask]
    x_mm, y_mm, z_mm = nodule.centre_lps_mm
    ratings: dict[str, Any] = {name: nodule.attributes.get(name) for name in RATINGS}
    return NoduleRow(
        nodule_id=nodule_id,
        patient_id=volume.patient_id,
        series_id=volume.series_id,
        source=source,
        texture_class=texture_class(nodule.attributes.get("texture")),
        diameter_mm=_diameter_mm(mask, volume),
        votes=nodule.consensus_votes if expert else 0,
        mean_hu=float(inside.mean()),
        solid_fraction=float((inside > SOLID_HU).mean()),
        reader_diameter_mm=nodule.reader_diameter_mm,
        **ratings,
        x_mm=x_mm,
        y_mm=y_mm,
        z_mm=z_mm,
        expert_mask=expert,
    )


def _cut_cube(volume: Volume, nodule: ReadNodule) -> NoduleCube | None:
    margins = [math.ceil(_MARGIN_MM / mm) for mm in volume.spacing_mm]
    ends = zip(nodule.offset, nodule.votes.shape, margins, strict=True)
    region = tuple(slice(max(start - margin, 0), start + length + margin) for start, length, margin in ends)
    hu = volume.hu[region]
    mask = np.zeros(hu.shape, bool)
    places = zip(nodule.offset, nodule.votes.shape, region, strict=True)
    inside = tuple(slice(start - part.start, start - part.start + length) for start, length, part in places)
    mask[inside] = nodule.votes >= nodule.consensus_votes
    return cut_cube(hu, mask, spacing_mm=volume.spacing_mm)


def _fits(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> bool:
    """Whether each slice's mask stays within the patch that is centred on it."""
    for plane in mask[mask.any(axis=(1, 2))]:
        points = np.argwhere(plane)
        if (np.abs(points - points.mean(axis=0)) * spacing_mm).max() > _REACH_MM:
            return False
    return True


def _diameter_mm(mask: np.ndarray, volume: Volume) -> float:
    return sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=math.prod(volume.spacing_mm))
