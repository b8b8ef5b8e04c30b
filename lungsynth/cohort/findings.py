"""What is known about the nodules of a scan, from whatever its source holds.

| source | nodule | unlabelled (255) |
|---|---|---|
| mask volume | the mask | |
| LIDC XML | two readers or more agree | one reader alone |
| `annotations.csv` (centre, diameter) | what is dense inside the sphere | the rest of the sphere, and 2 mm around it |
| Pascal-VOC box | | the box |

The masks of the last two are nobody's: their slices do not count as labelled.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from lungsynth.ct.annotations import read_boxes, read_nodules
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.ct.series import NoduleSphere, SeriesFiles
from lungsynth.ct.voc import SliceBox
from lungsynth.ct.volume import Volume, lps_to_voxel

__all__ = ["Findings", "read_findings", "sphere_nodule"]

_DENSE_ABOVE_HU = -600  # half-way from lung to a faint ground-glass nodule's core
_SMALLEST_SHARE = 0.2  # of the sphere: with less, the centre or the threshold is wrong and nothing is nodule
_SPHERE_MARGIN_MM = 2.0

_Mask = Bool[np.ndarray, "depth height width"]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Nodules of a scan and where nobody can tell.

    Args:
        nodules: with the readers' votes.
        nodule: their consensus, on the scan's grid.
        unlabelled: neither nodule nor free of it.
        expert: whether an expert drew the masks of all nodules.
        notes: what was not understood.
    """

    nodules: tuple[ReadNodule, ...]
    nodule: _Mask
    unlabelled: _Mask
    expert: bool
    notes: tuple[str, ...] = ()

    @property
    def diseased(self) -> Bool[np.ndarray, " depth"]:
        """Slices that show a nodule, or may."""
        return (self.nodule | self.unlabelled).any(axis=(1, 2))


def read_findings(files: SeriesFiles, volume: Volume) -> Findings:
    """Reads the nodule annotations of a series, the most exact that it has.

    Raises:
        InputError: when a mask's grid differs from the scan's, or an annotation file is damaged.
    """
    if files.annotations.lidc_xml is not None:
        return _findings(volume, read_nodules(files, volume), min_votes=2, expert=True)
    if files.nodule_mask is not None:
        return _findings(volume, read_nodules(files, volume), min_votes=1, expert=True)
    if files.annotations.spheres:
        return _from_spheres(volume, files.annotations.spheres)
    return _from_boxes(volume, read_boxes(files, volume))


def _findings(volume: Volume, nodules: tuple[ReadNodule, ...], *, min_votes: int, expert: bool) -> Findings:
    """Voxels with `min_votes` are nodule, those with fewer are unlabelled."""
    votes = np.zeros(volume.hu.shape, np.uint8)
    for nodule in nodules:
        box = _box(nodule)
        votes[box] = np.maximum(votes[box], nodule.votes)
    nodule_mask = votes >= min_votes
    return Findings(nodules=nodules, nodule=nodule_mask, unlabelled=(votes > 0) & ~nodule_mask, expert=expert)


def _from_spheres(volume: Volume, spheres: tuple[NoduleSphere, ...]) -> Findings:
    nodule, unlabelled = np.zeros(volume.hu.shape, bool), np.zeros(volume.hu.shape, bool)
    nodules, notes = [], []
    for sphere in spheres:
        found, around = sphere_nodule(volume, sphere)
        unlabelled |= around
        if found is None:
            notes.append(f"{volume.series_id}: nothing dense at {sphere.centre_lps_mm}, left unlabelled")
            continue
        nodules.append(found)
        box = _box(found)
        nodule[box] |= found.votes > 0
    return Findings(
        nodules=tuple(nodules), nodule=nodule, unlabelled=unlabelled & ~nodule, expert=False, notes=tuple(notes)
    )


def _from_boxes(volume: Volume, boxes: tuple[SliceBox, ...]) -> Findings:
    unlabelled = np.zeros(volume.hu.shape, bool)
    for box in boxes:
        unlabelled[box.slice_index, box.row0 : box.row1, box.column0 : box.column1] = True
    return Findings(nodules=(), nodule=np.zeros_like(unlabelled), unlabelled=unlabelled, expert=False)


def sphere_nodule(volume: Volume, sphere: NoduleSphere) -> tuple[ReadNodule | None, _Mask]:
    """Guesses the mask of a nodule that is given by centre and diameter: what is dense inside the sphere.

    Returns:
        The nodule, or None when less than a fifth of the sphere is dense; and the sphere with a margin.
    """
    centre = lps_to_voxel(volume.affine, np.asarray(sphere.centre_lps_mm))
    steps = [(np.arange(size) - c) * mm for size, c, mm in zip(volume.hu.shape, centre, volume.spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*steps, indexing="ij", sparse=True)
    distance_mm = np.sqrt(z**2 + y**2 + x**2)
    # Thick slices can lie on both sides of a small nodule: half a slice is added along the axis' worst case.
    inside = distance_mm <= max(sphere.diameter_mm / 2, volume.spacing_mm[0] / 2)
    around = distance_mm <= sphere.diameter_mm / 2 + _SPHERE_MARGIN_MM
    dense = inside & (volume.hu > _DENSE_ABOVE_HU)
    if not dense.any() or dense.sum() < _SMALLEST_SHARE * inside.sum():
        return None, around
    found = np.argwhere(dense)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    votes = dense[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.uint8)
    offset = (int(low[0]), int(low[1]), int(low[2]))
    centre_mm = mask_centre_lps(votes > 0, offset, volume.affine)
    nodule = ReadNodule(
        votes=votes,
        offset=offset,
        readers=1,
        centre_lps_mm=centre_mm,
        reader_diameter_mm=sphere.diameter_mm,
    )
    return nodule, around


def _box(nodule: ReadNodule) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(nodule.offset, nodule.votes.shape, strict=True))
