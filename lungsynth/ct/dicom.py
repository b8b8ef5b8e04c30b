"""DICOM CT series: which files are CT slices, and a series as an HU array.

A file is recognised as DICOM by its contents. Only CT images count: radiographs, PET, segmentations, structure sets,
dose reports and localizers are passed over. Values are HU: RescaleSlope and RescaleIntercept are applied, and pixels
of PixelPaddingValue become the lower end of `CT_RANGE_HU`, which is air.
"""

import logging
from pathlib import Path

import numpy as np
import pydicom
from einops import rearrange
from pydicom import uid
from pydicom.errors import InvalidDicomError

from lungsynth.ct.dicom_geometry import SliceFrame, stack_slices
from lungsynth.ct.orientation import to_volume_axes
from lungsynth.ct.series import SeriesFiles
from lungsynth.errors import InputError
from lungsynth.hounsfield import CT_RANGE_HU
from lungsynth.types import Affine

__all__ = ["is_ct", "looks_like_dicom", "read_dicom", "read_header", "read_slice_frames"]

_logger = logging.getLogger(__name__)
_CT_CLASSES = {uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage}
_HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
]
_INFO_TAGS = (
    "Manufacturer",
    "ManufacturerModelName",
    "ConvolutionKernel",
    "SliceThickness",
    "KVP",
    "ContrastBolusAgent",
)
_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
# What pydicom raises on a damaged file or value.
_DAMAGED = (InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError)


def looks_like_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: the letters DICM after the preamble, or a name that says so."""
    with path.open("rb") as stream:
        magic = stream.read(132)[128:] == b"DICM"
    return magic or path.suffix.lower() in _DICOM_SUFFIXES


def read_header(path: Path) -> pydicom.Dataset | None:
    """Reads the tags that discovery and geometry need, not the pixels.

    Returns:
        The tags, or None for a DICOM file that holds no image (a DICOMDIR, a report).

    Raises:
        InputError: when the file is damaged or ends in its header.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_HEADER_TAGS))
    except _DAMAGED as error:
        raise InputError(f"{path}: not a readable DICOM file ({error}); copy it again from its source.") from error
    if "Rows" in header:
        return header
    sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
    if len(header) == 0 and not sop_class:
        raise InputError(f"{path}: not a DICOM file, or one that ends in its header; copy it again or remove it.")
    if header.get("Modality", "CT") == "CT" and sop_class in _CT_CLASSES:
        raise InputError(f"{path}: truncated DICOM file, it ends before its image; copy it again from its source.")
    return None


def is_ct(header: pydicom.Dataset) -> bool:
    """Whether the header is that of a CT slice; localizers are not."""
    if "LOCALIZER" in (header.get("ImageType") or []):
        return False
    sop_class, modality = header.get("SOPClassUID") or "", header.get("Modality") or ""
    if modality and modality != "CT":
        return False
    # Without either tag an image with a position may be CT; a screenshot filed under CT has none.
    return sop_class in _CT_CLASSES or ((bool(modality) or not sop_class) and "ImagePositionPatient" in header)


def read_slice_frames(files: SeriesFiles) -> dict[str, SliceFrame]:
    """Where each slice of a DICOM series lies, by SOPInstanceUID, in no order.

    Raises:
        InputError: when a file lacks what places it.
    """
    frames = (_frame(path) for path in files.files)
    return {frame.sop_uid: frame for frame in frames}


def read_dicom(files: SeriesFiles) -> tuple[np.ndarray, Affine, dict[str, str]]:
    """Reads a series.

    Args:
        files: the slices of one series, in any order.

    Returns:
        HU int16 (depth, height, width), the RAS affine, and kernel, manufacturer and the like.

    Raises:
        InputError: when the slices make no volume (see `stack_slices`), or one of them is damaged.
    """
    name = f"Series {files.series_id} in {files.files[0].parent}"
    frames, affine = stack_slices([_frame(path) for path in files.files], name=name)
    first = _read_whole(frames[0].path)
    if abs(float(first.get("GantryDetectorTilt") or 0)) > 0.1 and np.allclose(abs(frames[0].normal[2]), 1):
        _logger.warning("%s: GantryDetectorTilt is set though the slices are axial; taken as corrected.", name)
    stack = np.stack([_read_hu(_read_whole(frame.path), path=frame.path) for frame in frames])
    hu, volume_affine = to_volume_axes(rearrange(stack, "slice row column -> column row slice"), affine, name=name)
    return hu, volume_affine, {tag: str(first[tag].value) for tag in _INFO_TAGS if first.get(tag) not in (None, "")}


def _frame(path: Path) -> SliceFrame:
    header = read_header(path)
    if header is None:
        raise InputError(f"{path}: no image in this DICOM file; remove it from the series.")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{path}: multi-frame (enhanced) DICOM is not read; convert it to one file a slice or to NIfTI (dcm2niix)."
        )
    try:
        orientation = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
        position = np.array(header.ImagePositionPatient, dtype=float).reshape(3)
        row_mm, column_mm = (float(value) for value in header.PixelSpacing)
        orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
    except _DAMAGED as error:
        raise InputError(
            f"{path}: a CT slice needs ImagePositionPatient, ImageOrientationPatient and PixelSpacing, and one is "
            "missing or unreadable. Export the series again with its geometry, or convert it to NIfTI."
        ) from error
    return SliceFrame(
        path=path,
        sop_uid=str(header.get("SOPInstanceUID") or path.name),
        position_lps_mm=position,
        column_direction=orientation[0],
        row_direction=orientation[1],
        spacing_mm=(row_mm, column_mm),
        shape=(int(header.Rows), int(header.Columns)),
        thickness_mm=float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0),
    )


def _read_whole(path: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, force=True)
    except _DAMAGED as error:
        raise InputError(f"{path}: damaged DICOM file ({error}); copy it again from its source.") from error


def _read_hu(slice_: pydicom.Dataset, *, path: Path) -> np.ndarray:
    """int16 (rows, columns) of one slice."""
    stored = _decode(slice_, path=path)
    slope, intercept = float(slice_.get("RescaleSlope", 1) or 1), float(slice_.get("RescaleIntercept", 0) or 0)
    hu = stored * slope + intercept
    padding = slice_.get("PixelPaddingValue")
    if padding is not None:
        # Writers disagree on the sign of this tag: compare its bits.
        bits = np.array(int(padding) & 0xFFFF, np.uint16)
        hu[stored == (bits.view(np.int16) if slice_.PixelRepresentation else bits)] = CT_RANGE_HU[0]
    return np.rint(hu).clip(-32768, 32767).astype(np.int16)


def _decode(slice_: pydicom.Dataset, *, path: Path) -> np.ndarray:
    if "PixelData" not in slice_:
        raise InputError(f"{path}: no pixel data in this DICOM file; copy it again or remove it from the series.")
    if "TransferSyntaxUID" not in slice_.file_meta:
        slice_.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    syntax = slice_.file_meta.TransferSyntaxUID
    if int(slice_.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{path}: a colour image, not a CT slice; remove it from the series.")
    try:
        stored = slice_.pixel_array
    except (RuntimeError, *_DAMAGED) as error:
        if syntax.is_compressed and "missing dependencies" in str(error):
            raise InputError(
                f"{path}: compressed as {syntax.name}, which needs a decoder that is not installed. Run `pip install "
                "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, or decompress the series (`gdcmconv --raw`)."
            ) from error
        raise InputError(
            f"{path}: truncated or damaged DICOM pixels ({error}); copy it again from its source."
        ) from error
    return np.asarray(stored, dtype=np.float64)
