"""DICOM CT series: which files are CT slices, and a series as an HU array.

A file is recognised as DICOM by its contents, with a preamble or without. Only CT images count: radiographs, PET,
segmentations, structure sets, dose reports and localizers are passed over. One file holds a slice, or a whole stack
(enhanced CT). Values are HU: RescaleSlope and RescaleIntercept are applied, and pixels of PixelPaddingValue become the
lower end of `CT_RANGE_HU`, which is air.

Tags are anything that a writer put there. Those that place a slice or scale its values are checked and named; of the
others a value that makes no sense is as good as none.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from einops import rearrange
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import Tag

from lungsynth.ct.dicom_geometry import SliceFrame, leave_out_strays, stack_slices
from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.volume import check_size, to_volume_axes
from lungsynth.errors import InputError, naming_file, reason
from lungsynth.hounsfield import CT_RANGE_HU
from lungsynth.types import Affine

__all__ = ["RESCALE_MISSING", "is_ct", "looks_like_dicom", "read_dicom", "read_header", "read_slice_frames"]

_logger = logging.getLogger(__name__)
RESCALE_MISSING = "RescaleIntercept is missing"
_CT_CLASSES = {uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage}
_HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SyntheticData",
    "Manufacturer",
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
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_INFO_TAGS = (
    "Manufacturer",
    "ManufacturerModelName",
    "ConvolutionKernel",
    "SliceThickness",
    "KVP",
    "ContrastBolusAgent",
)
_RESCALE_TAGS = ("RescaleSlope", "RescaleIntercept")
# What a frame of an enhanced CT says of itself, or all frames share, and in which sequence.
_FRAME_TAGS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
_PIXELS = {Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")}
_MOST_BYTES = 1 << 31  # of a file: it is read whole
_MOST_ELEMENTS = 20_000  # of a header; what has more is no DICOM, or would take minutes
_SLOPES, _MOST_INTERCEPT = (1e-3, 100.0), 1e5  # RescaleSlope is 1 in nearly all CT, and some write 0.1 to 10


def looks_like_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: the letters DICM after the preamble, a first tag, or a name that says so."""
    return path.suffix.lower() in _DICOM_SUFFIXES or _begins_like_dicom(path)


def _begins_like_dicom(path: Path) -> bool:
    """Whether there is a preamble, or, without one, a plausible first element of group 0002 or 0008."""
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        return True
    little, big = head[:2] in (b"\x02\0", b"\x08\0"), head[:2] in (b"\0\x02", b"\0\x08")
    element = int.from_bytes(head[2:4], "little" if little else "big")
    explicit = re.match(rb"UL|UI|CS|DA|TM|LO|SH|OB|PN", head[4:6]) is not None
    implicit = little and int.from_bytes(head[4:8], "little") <= 64
    return len(head) == 132 and (little or big) and element <= 0x60 and (explicit or implicit)


def read_header(path: Path) -> Dataset | None:
    """Reads the tags that discovery and geometry need, not the pixels.

    Returns:
        The tags, or None for a DICOM file that holds no image (a DICOMDIR, a report).

    Raises:
        InputError: when the file is damaged or ends in its header.
    """
    with naming_file(path, "not a readable DICOM file"):
        if not _begins_like_dicom(path):
            raise InputError(f"{path}: not a DICOM file in spite of its name; copy it again or remove it.")
        header = _read(path, tags=_HEADER_TAGS)
        if _text(header, "Rows"):
            return header
        sop_class = _text(header, "SOPClassUID") or str(header.file_meta.get("MediaStorageSOPClassUID") or "")
        if len(header) == 0 and not sop_class:
            raise InputError(f"{path}: not a DICOM file, or one that ends in its header; copy it again or remove it.")
        if _text(header, "Modality") in ("CT", "") and sop_class in _CT_CLASSES:
            raise InputError(f"{path}: truncated DICOM file, it ends before its image; copy it again from its source.")
    return None


def is_ct(header: Dataset) -> bool:
    """Whether the header is that of a CT slice; localizers are not."""
    if "LOCALIZER" in _text(header, "ImageType").upper():
        return False
    sop_class, modality = _text(header, "SOPClassUID"), _text(header, "Modality")
    if modality and modality != "CT":
        return False
    # Without either tag an image with a position may be CT; a screenshot filed under CT has none.
    return sop_class in _CT_CLASSES or ((bool(modality) or not sop_class) and "ImagePositionPatient" in header)


def read_slice_frames(files: SeriesFiles) -> dict[str, SliceFrame]:
    """Where each slice of a DICOM series lies, by SOPInstanceUID, in no order; enhanced CT has none.

    Raises:
        InputError: when a file lacks what places it.
    """
    by_file = (_frames(path) for path in files.files)
    return {frames[0].sop_uid: frames[0] for frames in by_file if len(frames) == 1}


def read_dicom(files: SeriesFiles) -> tuple[np.ndarray, Affine, dict[str, str], tuple[str, ...]]:
    """Reads a series.

    Args:
        files: the slices of one series, in any order, or a file with all of them.

    Returns:
        HU int16 (depth, height, width), the RAS affine, kernel, manufacturer and the like, and notes on what was left
        out.

    Raises:
        InputError: when the slices make no volume (see `stack_slices`), or one of them is damaged.
    """
    name = f"Series {files.series_id} in {files.files[0].parent}"
    frames, notes = leave_out_strays([frame for path in files.files for frame in _frames(path)], name=name)
    check_size((len(frames), *frames[0].shape), name=name)
    try:
        frames, copies = _without_copies(frames)
        frames, affine = stack_slices(frames, name=name)
        stack, unscaled = _read_stack(frames)
        first = _read_whole(frames[0].path)
    finally:
        _pixels.cache_clear()
    if abs(_lenient(first, "GantryDetectorTilt")) > 0.1 and np.allclose(abs(frames[0].normal[2]), 1):
        _logger.warning("%s: GantryDetectorTilt is set though the slices are axial; taken as corrected.", name)
    if unscaled and len(unscaled) < len(frames):
        raise InputError(
            f"{name}: {RESCALE_MISSING} in {len(unscaled)} of {len(frames)} slices, first {unscaled[0]}; export the "
            "series again."
        )
    if unscaled:
        notes += (f"{name}: {RESCALE_MISSING}, its values are taken for HU",)
    hu, volume_affine = to_volume_axes(rearrange(stack, "slice row column -> column row slice"), affine, name=name)
    info = {tag: _text(first, tag) for tag in _INFO_TAGS if _text(first, tag)}
    info |= {tag: text for tag in _RESCALE_TAGS if (text := _text(_flat(first, frames[0].index), tag))}
    return hu, volume_affine, info, notes + copies


def _read(path: Path, *, tags: Sequence[str] = (), whole: bool = False) -> Dataset:
    """A data set, to its pixels or whole; a header of absurdly many elements is refused."""
    count = 0

    def stop(tag: int, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > _MOST_ELEMENTS:
            raise InputError(f"{path}: not a readable DICOM file (more than {_MOST_ELEMENTS} tags); copy it again.")
        return not whole and tag in _PIXELS

    with config.disable_value_validation(), path.open("rb") as stream:
        wanted = [Tag(tag) for tag in (*tags, "SpecificCharacterSet")] if tags else None
        return read_partial(stream, stop_when=stop, force=True, specific_tags=wanted)  # type: ignore[arg-type]


def _read_whole(path: Path) -> Dataset:
    with naming_file(path, "damaged DICOM file"):
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than the {_MOST_BYTES} bytes of a DICOM file that is read; convert it.")
        return _read(path, whole=True)


def _text(dataset: Dataset, tag: str) -> str:
    """A value as text; empty where it is missing or makes no sense."""
    try:
        value = dataset.get(tag)
        return "" if value is None else str(value).strip()
    except Exception:  # pydicom converts when a value is asked for, and raises what the converter raises
        return ""


def _lenient(dataset: Dataset, tag: str, default: float = 0.0) -> float:
    """A number that nobody needs; the default where it is missing or makes no sense."""
    try:
        value = float(_text(dataset, tag))
    except ValueError:
        return default
    return value if np.isfinite(value) else default


def _numbers(dataset: Dataset, tag: str, count: int) -> np.ndarray:
    """Finite numbers of a tag.

    Raises:
        ValueError: when there are others, or not so many.
    """
    value = dataset.get(tag)
    if value is None:
        raise ValueError(f"{tag} is missing")
    values = np.array(value, dtype=float).reshape(-1)
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{tag} is {value}")
    return values


def _flat(dataset: Dataset, index: int) -> Dataset:
    """What frame `index` says of itself, as the tags of a single slice; the data set itself where it has no frames."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return dataset
    own = dataset.PerFrameFunctionalGroupsSequence[index]
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    flat = Dataset()
    for tag, sequence in _FRAME_TAGS.items():
        for group in (own, shared):
            if sequence in group and tag in group[sequence][0]:
                flat.add(group[sequence][0][tag])
                break
    return flat


def _frames(path: Path) -> list[SliceFrame]:
    """The slices of a file."""
    header = read_header(path)
    if header is None:
        raise InputError(f"{path}: no image in this DICOM file; remove it from the series.")
    with naming_file(path, "not a readable CT image"):
        count = int(_lenient(header, "NumberOfFrames", 1)) or 1
        if count > 1 and len(header.get("PerFrameFunctionalGroupsSequence") or ()) != count:
            raise InputError(
                f"{path}: multi-frame DICOM that does not say where its {count} frames lie is not read; convert it to "
                "one file a slice or to NIfTI (dcm2niix)."
            )
        rows, columns = (int(_lenient(header, tag)) for tag in ("Rows", "Columns"))
        if min(rows, columns) < 1:
            raise InputError(f"{path}: Rows and Columns are {rows} and {columns}; copy it again from its source.")
        check_size((count, rows, columns), name=str(path))
        return [_frame(path, header, index) for index in range(count)]


def _frame(path: Path, header: Dataset, index: int) -> SliceFrame:
    plane = _flat(header, index)
    try:
        orientation = _numbers(plane, "ImageOrientationPatient", 6).reshape(2, 3)
        position = _numbers(plane, "ImagePositionPatient", 3)
        row_mm, column_mm = _numbers(plane, "PixelSpacing", 2).tolist()
        lengths = np.linalg.norm(orientation, axis=1, keepdims=True)
        if not (lengths > 0).all() or abs((orientation / lengths).prod(axis=0).sum()) > 0.01:
            raise ValueError(f"ImageOrientationPatient is {orientation.ravel().tolist()}")
        if min(row_mm, column_mm) <= 0:
            raise ValueError(f"PixelSpacing is {[row_mm, column_mm]}")
    except Exception as error:
        raise InputError(
            f"{path}: a CT slice needs ImagePositionPatient, ImageOrientationPatient and PixelSpacing, and one is "
            f"missing or unreadable ({reason(error)}). Export the series again with its geometry, or convert it to "
            "NIfTI."
        ) from error
    thickness_mm = _lenient(plane, "SpacingBetweenSlices") or _lenient(plane, "SliceThickness")
    return SliceFrame(
        path=path,
        index=index,
        sop_uid=_text(header, "SOPInstanceUID") or path.name,
        position_lps_mm=position,
        column_direction=orientation[0] / lengths[0],
        row_direction=orientation[1] / lengths[1],
        spacing_mm=(row_mm, column_mm),
        shape=(int(header.Rows), int(header.Columns)),
        thickness_mm=thickness_mm if thickness_mm > 0 else 1.0,
    )


def _without_copies(frames: list[SliceFrame]) -> tuple[list[SliceFrame], tuple[str, ...]]:
    """Slices without those that are there twice, with the same values at the same place; and a note on them."""
    kept: dict[tuple[float, ...], SliceFrame] = {}
    unique, copies = [], []
    for frame in frames:
        key = (*frame.position_lps_mm.round(2).tolist(), *frame.normal.round(3).tolist())
        first = kept.setdefault(key, frame)
        if first.path != frame.path and np.array_equal(_read_stack([first])[0], _read_stack([frame])[0]):
            copies.append(frame)
        else:
            unique.append(frame)
    note = f"{copies[0].path}: {len(copies)} slices are in the series twice and were read once" if copies else ""
    return unique, (note,) if note else ()


def _read_stack(frames: Sequence[SliceFrame]) -> tuple[np.ndarray, list[str]]:
    """HU int16 (slice, row, column) of frames of one shape, and the files without RescaleIntercept."""
    stack, unscaled = np.empty((len(frames), *frames[0].shape), np.int16), []
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.path, []).append(place)
    for path, of_file in places.items():
        dataset, stored = _pixels(path)
        for place in of_file:
            index = frames[place].index
            if index >= len(stored) or stored[index].shape != frames[place].shape:
                raise InputError(f"{path}: its pixels are {stored.shape}, not what its header says; copy it again.")
            plane = _flat(dataset, index)
            stack[place] = _to_hu(stored[index], dataset, plane, path=path)
            if not _text(plane, "RescaleIntercept"):
                unscaled.append(path.name)
    return stack, unscaled


@lru_cache(maxsize=2)  # copies are compared frame by frame
def _pixels(path: Path) -> tuple[Dataset, np.ndarray]:
    """A data set, and its stored values (frame, row, column)."""
    dataset = _read_whole(path)
    return dataset, _decode(dataset, path=path)


def _to_hu(stored: np.ndarray, dataset: Dataset, plane: Dataset, *, path: Path) -> np.ndarray:
    """int16 (rows, columns) of stored values."""
    slope, intercept = (
        _rescale(plane, "RescaleSlope", 1.0, path=path),
        _rescale(plane, "RescaleIntercept", 0.0, path=path),
    )
    if not _SLOPES[0] <= slope <= _SLOPES[1]:
        raise InputError(
            f"{path}: RescaleSlope is {slope:g}, which gives no HU (a slope lies within {_SLOPES[0]:g}.."
            f"{_SLOPES[1]:g}, nearly always at 1); mend the tag or export the series again."
        )
    if not abs(intercept) <= _MOST_INTERCEPT:
        raise InputError(
            f"{path}: RescaleIntercept is {intercept:g}, which gives no HU (nearly always -1024 or 0); mend the tag or "
            "export the series again."
        )
    hu = stored.astype(np.float64) * slope + intercept
    padding = _text(dataset, "PixelPaddingValue")
    if re.fullmatch(r"[+-]?\d{1,6}", padding):
        # Writers disagree on the sign of this tag: compare its bits.
        bits = np.array(int(padding) & 0xFFFF, np.uint16)
        hu[stored == (bits.view(np.int16) if stored.dtype.kind == "i" else bits)] = CT_RANGE_HU[0]
    return np.rint(hu).clip(-32768, 32767).astype(np.int16)


def _rescale(plane: Dataset, tag: str, default: float, *, path: Path) -> float:
    text = _text(plane, tag)
    if not text and tag not in plane:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"{path}: {tag} is {text[:40]!r}, which is no number; mend the tag or export the series again."
        ) from error


@contextmanager
def _decoders_quiet() -> Iterator[None]:
    """Silence: pydicom logs each decoder's traceback; what went wrong is in the exception, which names them all."""
    logger = logging.getLogger("pydicom.pixels.decoders.base")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _decode(dataset: Dataset, *, path: Path) -> np.ndarray:
    """Stored values (frame, row, column)."""
    if "PixelData" not in dataset:
        raise InputError(f"{path}: no pixel data in this DICOM file; copy it again or remove it from the series.")
    if "TransferSyntaxUID" not in dataset.file_meta:
        explicit = not dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if explicit else uid.ImplicitVRLittleEndian
    syntax = dataset.file_meta.TransferSyntaxUID
    if _lenient(dataset, "SamplesPerPixel", 1) != 1:
        raise InputError(f"{path}: a colour image, not a CT slice; remove it from the series.")
    if _lenient(dataset, "NumberOfFrames") < 1 and "NumberOfFrames" in dataset:
        del dataset.NumberOfFrames
    try:
        with _decoders_quiet():
            stored = np.asarray(dataset.pixel_array)
    except Exception as error:  # decoders raise anything
        if syntax.is_compressed and "missing dependencies" in str(error):
            raise InputError(
                f"{path}: compressed as {syntax.name}, which needs a decoder that is not installed. Run `pip install "
                "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, or decompress the series (`gdcmconv --raw`)."
            ) from error
        raise InputError(
            f"{path}: truncated or damaged DICOM pixels ({reason(error)}); copy it again from its source."
        ) from error
    return stored[None] if stored.ndim == 2 else stored
