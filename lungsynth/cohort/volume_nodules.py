"""Nodules of a scan as patches and rows: each is cut out of the slices on the scan's own grid."""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.cubes import NoduleCube, cut_cube
from lungsynth.cohort.grid import CentredGrid
from lungsynth.cohort.patches import (
    PATCH_PX,
    PATCH_SPACING_MM,
    SOLID_HU,
    NodulePatches,
    patches_from_planes,
    sphere_diameter_mm,
    texture_class,
)
from lungsynth.cohort.records import NoduleRow
from lungsynth.ct.nodule import ReadNodule
from lungsynth.ct.volume import Volume

__all__ = ["cut_nodule", "nodule_row", "with_ball", "with_cube"]

_MARGIN_MM = 40.0  # more than a patch or a cube reaches beyond its nodule
_REACH_MM = (PATCH_PX / 2 - 1) * PATCH_SPACING_MM  # the patch's border stays free


def cut_nodule(volume: Volume, nodule: ReadNodule, *, nodule_id: str, source: str) -> NodulePatches | None:
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
    planes = volume.hu[z : z + depth, rows, columns]
    votes = np.zeros(planes.shape, np.uint8)
    top, left = y - rows.start, x - columns.start
    votes[:, top : top + height, left : left + width] = nodule.votes
    return patches_from_planes(
        planes,
        votes,
        spacing_mm=volume.spacing_mm[1:],
        nodule_id=nodule_id,
        patient_id=volume.patient_id,
        patient_known=volume.patient_known,
        series_id=volume.series_id,
        source=source,
        diameter_mm=_diameter_mm(mask, volume),
        attributes=_attributes(nodule),
        centre_lps_mm=nodule.centre_lps_mm,
    )


def with_cube(patches: NodulePatches, volume: Volume, nodule: ReadNodule) -> NodulePatches:
    """The patches of a nodule with its cube, where it has one."""
    return replace(patches, cube=_cut_cube(volume, nodule))


def with_ball(
    patches: NodulePatches, volume: Volume, nodule: ReadNodule, around: Bool[np.ndarray, "depth height width"]
) -> NodulePatches:
    """The patches of a nodule of which only centre and diameter are known, with where nobody can tell its outline.

    Args:
        patches: cut from `nodule`.
        volume: likewise.
        nodule: what is dense in its ball.
        around: on the volume's grid, the balls with their margin.
    """
    z, y, x = nodule.offset
    depth, height, width = nodule.votes.shape
    mask = np.zeros((depth, *volume.hu.shape[1:]), bool)
    mask[:, y : y + height, x : x + width] = nodule.votes >= nodule.consensus_votes
    balls = [
        CentredGrid(plane, volume.spacing_mm[1:]).share(there) >= 0.5
        for plane, there in zip(mask, around[z : z + depth], strict=True)
        if plane.any()
    ]
    return replace(patches, ball=np.stack(balls))


def nodule_row(volume: Volume, nodule: ReadNodule, *, nodule_id: str, source: str, expert: bool) -> NoduleRow:
    """The row of a nodule, measured on the scan's own grid."""
    mask = nodule.votes >= nodule.consensus_votes
    z, y, x = nodule.offset
    depth, height, width = mask.shape
    inside = volume.hu[z : z + depth, y : y + height, x : x + width][mask]
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
        attributes=_attributes(nodule),
        centre_lps_mm=nodule.centre_lps_mm,
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


def _attributes(nodule: ReadNodule) -> dict[str, float]:
    known = {} if nodule.reader_diameter_mm is None else {"reader_diameter_mm": nodule.reader_diameter_mm}
    return {**nodule.attributes, **known}
