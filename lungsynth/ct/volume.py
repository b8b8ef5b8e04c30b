"""`Volume`: a CT in HU with the geometry that places it in the patient.

Arrays are (depth, height, width): slices run inferior to superior, rows anterior to posterior, columns from the
patient's right to left. The affine is nibabel's: it maps voxel indices (column, row, slice) to RAS millimetres, so the
file that nibabel would write holds the transposed array. LUNA16's world is LPS: x and y have the other sign.

Any axis-aligned grid comes to this orientation by flips and permutations: no value is interpolated. Two grids are the
same when no voxel of one lies a quarter of a voxel or more from its fellow: to resample one to the other would move
nothing. Writers round affines, and this is the one tolerance for all of them.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from einops import rearrange
from nibabel import orientations

from lungsynth.errors import InputError
from lungsynth.types import Affine, HuPlane, HuVolume

__all__ = [
    "SAME_GRID_VOXELS",
    "VOLUME_AXES",
    "Volume",
    "check_size",
    "same_grid",
    "to_volume_axes",
]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A CT series in HU.

    Args:
        hu: int16 (depth, height, width), within `CT_RANGE_HU`.
        affine: (4, 4), (column, row, slice) -> RAS mm; axial in this module's orientation.
        series_id: SeriesInstanceUID, or the file's stem where there is none.
        patient_id: PatientID; the series itself where none is known (see `patient_known`).
        patient_known: False when `patient_id` is only the series.
        modality_info: kernel, manufacturer and the like, where the files tell.
        notes: what was left out or taken on trust while reading.

    Raises:
        InputError: when the affine is not axial in the stated orientation.
    """

    hu: HuVolume
    affine: Affine
    series_id: str
    patient_id: str
    patient_known: bool = True
    modality_info: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        linear = self.affine[:3, :3]
        tilt = np.abs(linear - np.diag(np.diag(linear))).max()
        if tilt > 1e-3 or not (np.sign(np.diag(linear)) == [-1, -1, 1]).all():
            raise InputError(
                f"{self.series_id}: a Volume's affine must be axial (columns to the patient's left, rows to posterior, "
                f"slices to superior), got {linear.round(4).tolist()}. Read files with lungsynth.ct.read_volume."
            )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(slice, row, column) in mm."""
        column, row, depth = np.abs(np.diag(self.affine)[:3])
        return float(depth), float(row), float(column)

    def plane(self, index: int) -> HuPlane:
        """Axial slice `index`, (height, width)."""
        return self.hu[index]

    def plane_affine(self, index: int) -> Affine:
        """Affine of axial slice `index` as a volume of depth one."""
        shifted = self.affine.copy()
        shifted[:3, 3] = (self.affine @ [0.0, 0.0, float(index), 1.0])[:3]
        return shifted


_logger = logging.getLogger(__name__)
VOLUME_AXES = orientations.axcodes2ornt(("L", "P", "S"))
# Sine of the angle between a voxel axis and the patient's. 1e-3 moves the border of a 350 mm field by half a pixel.
_ROUNDING, _OBLIQUE = 1e-4, 1e-3
SAME_GRID_VOXELS = 0.25
_MOST_VOXELS = 1 << 29  # 1,024 x 1,024 x 512 or 512 x 512 x 2,048; more do not fit into the memory that a scan takes
_SPACING_MM = (0.02, 50.0)  # of a scan of a patient, from micro-CT of a specimen to slices far apart


def check_size(shape: Sequence[int], *, name: str) -> None:
    """Refuses volumes of more voxels than can be worked on, before memory is asked for.

    Raises:
        InputError: naming the file or series.
    """
    voxels = 1
    for size in shape:
        voxels *= int(size)
    if voxels > _MOST_VOXELS:
        sizes = " x ".join(str(int(size)) for size in shape)
        raise InputError(
            f"{name}: says {sizes} voxels, more than the {_MOST_VOXELS} of a CT that can be prepared. Crop it to the "
            "chest, or copy it again if its header is damaged."
        )


def same_grid(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether two affines place the voxels of a grid within `SAME_GRID_VOXELS` of each other.

    Args:
        one: (4, 4), (i, j, k) -> mm.
        other: likewise.
        shape: of the grid, (i, j, k).
    """
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return False
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    apart = np.abs((corners @ (one - other).T)[:, :3])
    voxel = np.abs(one[:3, :3]).max(axis=1)
    return bool((apart < SAME_GRID_VOXELS * voxel).all())


def to_volume_axes(array: np.ndarray, affine: np.ndarray, *, name: str) -> tuple[np.ndarray, Affine]:
    """Turns (i, j, k) voxels into (depth, height, width) of `Volume`.

    Args:
        array: (i, j, k), any dtype.
        affine: (4, 4), (i, j, k) -> RAS mm.
        name: the file or series, for the message.

    Returns:
        The array (depth, height, width) and its affine, exactly axial.

    Raises:
        InputError: when the grid is oblique, sheared or degenerate.
    """
    affine = np.asarray(affine, dtype=np.float64)
    _check_axis_aligned(affine, name=name)
    turn = orientations.ornt_transform(nib.io_orientation(affine), VOLUME_AXES)
    turned = orientations.apply_orientation(array, turn)
    turned_affine = affine @ orientations.inv_ornt_aff(turn, array.shape)
    turned_affine[:3, :3] = np.diag(np.diag(turned_affine[:3, :3]))
    return np.ascontiguousarray(rearrange(turned, "column row slice -> slice row column")), turned_affine


def _check_axis_aligned(affine: np.ndarray, *, name: str) -> None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        raise InputError(
            f"{name}: its affine has no voxel size ({affine.round(3).tolist()}); write the file again with one."
        )
    if lengths.min() < _SPACING_MM[0] or lengths.max() > _SPACING_MM[1]:
        raise InputError(
            f"{name}: a voxel spacing of {' x '.join(f'{mm:g}' for mm in lengths)} mm is that of no CT of a patient "
            f"({_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm); mend the spacing or its unit."
        )
    directions = np.abs(affine[:3, :3] / lengths)
    off_axis = float(np.sort(directions, axis=0)[:2].max())
    aligned = len(set(directions.argmax(axis=0))) == 3
    if not aligned and off_axis <= _OBLIQUE:
        raise InputError(
            f"{name}: two axes of its affine have one direction ({affine.round(3).tolist()}); write the file again."
        )
    if off_axis > _OBLIQUE:
        raise InputError(
            f"{name}: the grid is oblique (gantry tilt or a rotated reconstruction), its axes are up to "
            f"{np.degrees(np.arcsin(min(off_axis, 1.0))):.2f} degrees from the patient's. Resample it to an axial grid "
            "first."
        )
    if off_axis > _ROUNDING:
        _logger.warning("%s: axes are %.4f degrees off the patient's; taken as axial.", name, np.degrees(off_axis))
