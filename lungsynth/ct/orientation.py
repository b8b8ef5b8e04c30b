"""From any axis-aligned grid to the orientation of `Volume`, by flips and permutations: no value is interpolated."""

import logging

import nibabel as nib
import numpy as np
from einops import rearrange
from nibabel import orientations

from lungsynth.errors import InputError
from lungsynth.types import Affine

__all__ = ["to_volume_axes"]

_logger = logging.getLogger(__name__)
_VOLUME_AXES = orientations.axcodes2ornt(("L", "P", "S"))
# Sine of the angle between a voxel axis and the patient's. 1e-3 moves the border of a 350 mm field by half a pixel.
_ROUNDING, _OBLIQUE = 1e-4, 1e-3


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
    turn = orientations.ornt_transform(nib.io_orientation(affine), _VOLUME_AXES)
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
    directions = np.abs(affine[:3, :3] / lengths)
    off_axis = float(np.sort(directions, axis=0)[:2].max())
    aligned = len(set(directions.argmax(axis=0))) == 3
    if off_axis > _OBLIQUE or not aligned:
        raise InputError(
            f"{name}: the grid is oblique (gantry tilt or a rotated reconstruction), its axes are up to "
            f"{np.degrees(np.arcsin(min(off_axis, 1.0))):.2f} degrees from the patient's. Resample it to an axial grid "
            "first."
        )
    if off_axis > _ROUNDING:
        _logger.warning("%s: axes are %.4f degrees off the patient's; taken as axial.", name, np.degrees(off_axis))
