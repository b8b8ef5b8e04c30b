"""One door to all formats: the files of a series become a `Volume`, a mask file labels on that volume's grid."""

from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from lungsynth.ct.dicom import read_dicom
from lungsynth.ct.metaimage import read_metaimage
from lungsynth.ct.nifti import read_nifti
from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.values import LABEL_ROUNDING, is_nifti
from lungsynth.ct.volume import Volume, same_grid
from lungsynth.errors import InputError, naming_file
from lungsynth.hounsfield import CT_RANGE_HU, check_hu, to_int16
from lungsynth.types import LabelVolume

__all__ = ["count_slices", "read_mask", "read_volume"]


def read_volume(files: SeriesFiles) -> Volume:
    """Reads a series as int16 HU within `CT_RANGE_HU`, in the orientation of `Volume`.

    Args:
        files: as `find_series` gives them.

    Raises:
        InputError: one sentence with the file or series, what is wrong and the remedy.
    """
    info: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if files.kind == "dicom":
        with naming_file(files.files[0].parent, "could not be read as a DICOM series"):
            values, affine, info, notes = read_dicom(files)
    else:
        values, affine = _read_file(files.files[0])
    name = f"Series {files.series_id} in {files.files[0].parent}" if files.kind == "dicom" else str(files.files[0])
    check_hu(values, name=name)
    return Volume(
        hu=values.clip(*CT_RANGE_HU) if values.dtype == np.int16 else to_int16(values),
        affine=affine,
        series_id=files.series_id,
        patient_id=files.patient_id,
        patient_known=files.patient_known,
        modality_info=info,
        notes=notes,
    )


def count_slices(files: SeriesFiles) -> int:
    """Axial slices of a series, as its files' number (DICOM) or header says; 1 where that cannot be read."""
    if files.kind == "dicom":
        return len(files.files)
    path = files.files[0]
    try:
        shape, affine = _nifti_grid(path) if is_nifti(path) else _metaimage_grid(path)
        return max(1, int(shape[int(np.abs(affine[2, :3]).argmax())]))
    except Exception:  # whatever it is, reading the file will say so
        return 1


def _nifti_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    image = nib.Nifti1Image.from_filename(path)
    return image.shape, np.asarray(image.affine)


def _metaimage_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize(), np.array(reader.GetDirection()).reshape(3, 3)


def read_mask(path: Path, like: Volume, *, values: Collection[int] | None = None) -> LabelVolume:
    """Reads a mask volume that lies on the grid of its image.

    Args:
        path: NIfTI or MetaImage, integers 0..255.
        like: the image.
        values: which labels become 1, all others 0; without it the labels stay as they are.

    Raises:
        InputError: when the grids differ, or the values are no labels.
    """
    labels, affine = _read_file(path)
    shape, wanted = labels.shape, like.hu.shape
    if shape != wanted or not same_grid(affine, like.affine, (wanted[2], wanted[1], wanted[0])):
        raise InputError(
            f"{path}: the mask's grid differs from its image {like.series_id}: (depth, height, width) {shape} at "
            f"{_grid(affine)} and {wanted} at {_grid(like.affine)}. Resample the mask to the image, nearest neighbour."
        )
    if values is not None:
        return np.isin(np.rint(labels) if labels.dtype.kind == "f" else labels, list(values)).astype(np.uint8)
    return _whole_labels(path, labels)


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_nifti(path) if is_nifti(path) else read_metaimage(path)


def _whole_labels(path: Path, values: np.ndarray) -> LabelVolume:
    """uint8 of whole numbers 0..255, or of what is all but whole."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path}: a mask holds whole numbers 0..255, got NaN or infinity; write 0 there.")
    whole = np.rint(values)
    if whole.min() < 0 or whole.max() > 255 or np.abs(values - whole).max() > LABEL_ROUNDING:
        raise InputError(f"{path}: a mask holds whole numbers 0..255, got others; is it an image? Threshold it first.")
    return whole.astype(np.uint8)


def _grid(affine: np.ndarray) -> str:
    spacing, origin = np.abs(np.diag(affine)[:3]).round(4).tolist(), affine[:3, 3].round(3).tolist()
    return f"spacing {spacing} mm and RAS origin {origin}"
