# SPDX-License-Identifier: Apache-2.0
"""Reading CT volumes as int16 HU with a RAS affine: NIfTI by nibabel, MetaImage and DICOM series by SimpleITK.

Arrays are (i, j, k) as the affine has them; `Orientationd` brings them into the bundle's frame.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813  (its own convention)
from monai.data import MetaTensor
from monai.transforms import Transform

__all__ = ["LoadImageVolume", "read_volume"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
UNEVEN_STEPS = 0.02  # of the distance between slices: more, and slices are missing
INT16 = np.iinfo(np.int16)
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LoadImageVolume(Transform):
    """Reads `image`, a path (of a DICOM series: its folder, and `series` its UID), into a MetaTensor (1, i, j, k)."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        hu, affine = read_volume(data["image"], series=data.get("series"))
        image = MetaTensor(hu[None], affine=affine, meta={"filename_or_obj": str(data["image"])})
        image.meta["original_affine"] = image.affine.clone()
        image.meta["spatial_shape"] = np.array(hu.shape)
        image.meta["original_channel_dim"] = 0
        return {**data, "image": image}


def read_volume(path: str | Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads one CT.

    Args:
        path: NIfTI or MetaImage file, or the folder of a DICOM series.
        series: UID of the series, for folders.

    Returns:
        int16 HU (i, j, k) and the affine (4, 4) to RAS mm.

    Raises:
        ValueError: when the file cannot be read, has not three axes or holds values that are no numbers, or when slices
            of a series are missing.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _from_itk(_read_series(path, series))
        if path.name.endswith(NIFTI_SUFFIXES):
            return _read_nifti(path)
        return _from_itk(sitk.ReadImage(str(path)))
    except (OSError, EOFError, RuntimeError, nibabel.filebasedimages.ImageFileError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path.name}: cannot be read ({reason[-1] if reason else type(error).__name__}).") from error


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    shape = image.shape
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise ValueError(f"{path.name}: expected a volume of 3 axes, got shape {shape}. Give one series a file.")
    stored = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape, order="A")
    slope, intercept = (float(image.dataobj.slope), float(image.dataobj.inter))
    return _to_int16(stored, slope, intercept, path.name), np.asarray(image.affine, dtype=np.float64)


def _to_int16(stored: np.ndarray, slope: float, intercept: float, name: str) -> np.ndarray:
    """Scaled, rounded and clipped, a slice at a time, so that no float volume is made."""
    if stored.dtype == np.int16 and (slope, intercept) == (1, 0):
        return stored
    hu = np.empty(stored.shape, dtype=np.int16, order="F")
    for index in range(stored.shape[2]):
        plane = stored[..., index].astype(np.float64) * slope + intercept
        if not np.isfinite(plane).all():
            raise ValueError(f"{name}: expected HU, got values that are no numbers in slice {index}. Mend the file.")
        hu[..., index] = np.clip(np.rint(plane), INT16.min, INT16.max)
    return hu


def _read_series(folder: Path, series: str | None) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    files = reader.GetGDCMSeriesFileNames(str(folder), series or "")
    if not files:
        raise ValueError(f"{folder.name}: no DICOM series in this folder.")
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    _check_steps(folder.name, reader, len(files), np.reshape(image.GetDirection(), (3, 3))[:, 2])
    return image


def _check_steps(name: str, reader: sitk.ImageSeriesReader, count: int, normal: np.ndarray) -> None:
    """Refuses a series whose slices do not lie evenly."""
    places = [np.array(reader.GetMetaData(index, "0020|0032").split("\\"), dtype=float) for index in range(count)]
    steps = np.diff(np.array(places) @ normal)
    if count > 2 and np.ptp(steps) > UNEVEN_STEPS * abs(np.median(steps)):
        raise ValueError(
            f"{name}: expected evenly spaced slices, got steps of {steps.min():.2f} to {steps.max():.2f} mm. "
            "Slices are missing or doubled: complete the series."
        )


def _from_itk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"Expected a volume of 3 axes and one value a voxel, got size {image.GetSize()}.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    stored = sitk.GetArrayFromImage(image).T
    return _to_int16(stored, 1.0, 0.0, "image"), RAS_FROM_LPS @ affine
