"""NIfTI files, CT or mask, in the orientation of `Volume`."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from lungsynth.ct.orientation import to_volume_axes
from lungsynth.errors import InputError
from lungsynth.types import Affine

__all__ = ["read_nifti"]


def read_nifti(path: Path) -> tuple[np.ndarray, Affine]:
    """Reads a NIfTI image.

    Args:
        path: `.nii` or `.nii.gz`.

    Returns:
        The values (depth, height, width), scl_slope and scl_inter applied, and the RAS affine.

    Raises:
        InputError: when it is missing, damaged, not of 3 dimensions, without an affine, or oblique.
    """
    try:
        image = nib.load(path)
        array = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: could not be read as NIfTI ({error}); copy it again from its source.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{path}: not a NIfTI file in spite of its name; convert it to NIfTI.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.fields is not None:
        raise InputError(
            f"{path}: expected one CT of 3 dimensions, got {array.ndim} dimensions {array.shape}. "
            "Split it into volumes and keep one."
        )
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise InputError(f"{path}: neither sform nor qform is set, so left and right are unknown; set one of them.")
    return to_volume_axes(array, image.affine, name=str(path))
