"""NIfTI files, CT or mask, in the orientation of `Volume`.

The file is read whole, so that gzip's checksum counts, and holds as many voxels as its header says. Affines are in
millimetres whatever the unit of the header. Where sform and qform are both set they say the same.
"""

import io
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

from lungsynth.ct.source_files import first_bytes, inflate
from lungsynth.ct.volume import check_size, same_grid, to_volume_axes
from lungsynth.errors import InputError, naming_file
from lungsynth.types import Affine

__all__ = ["read_nifti"]

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2; of NIfTI-1 they are 348
_FIRST_BYTES = 1 << 16  # of a file, that hold the header, compressed or not
_MOST_PACKED = 1.01  # gzip makes what cannot be compressed a little larger
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # metre, millimetre, micrometre; others are taken for millimetres
_LATEST_START = 1 << 24  # byte at which voxels begin, after the header's extensions
_PADDING_BYTES = 1 << 16  # zeros after the voxels


def read_nifti(path: Path) -> tuple[np.ndarray, Affine]:
    """Reads a NIfTI image.

    Args:
        path: `.nii` or `.nii.gz`; whether it is compressed follows from its content.

    Returns:
        The values (depth, height, width), scl_slope and scl_inter applied, and the RAS affine.

    Raises:
        InputError: when it is missing, damaged (the checksum included), shorter or longer than its header says, not of
            3 dimensions, with a slope or an affine that makes no sense, or oblique.
    """
    with naming_file(path, "could not be read as NIfTI"):
        with path.open("rb") as stream:
            head = stream.read(_FIRST_BYTES)
        is_packed = head.startswith(_GZIP)
        header = _read_header(path, memoryview(first_bytes(head, _HEADER_BYTES) if is_packed else head))
        # The header is read first, so that no more is read and inflated than it says.
        most = _end_of_voxels(path, header) + _PADDING_BYTES
        if path.stat().st_size > most * _MOST_PACKED:
            raise InputError(f"{path}: holds more bytes than its header says ({most}); copy it again from its source.")
        packed = path.read_bytes()
        content = memoryview(inflate(packed, name=str(path), most=most) if is_packed else packed)
        array = _voxels(path, header, content)
        return to_volume_axes(array, _affine(path, header, array.shape), name=str(path))


def _read_header(path: Path, content: memoryview) -> nib.Nifti1Header:
    """The header of NIfTI-1 or NIfTI-2, of either byte order."""
    magic = content[4:8] if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else content[344:348]
    if magic not in (b"n+1\0", b"n+2\0"):
        kind = "header file (.hdr) without its voxels" if magic in (b"ni1\0", b"ni2\0") else "NIfTI file"
        what = "" if kind.startswith("header") else "not a "
        raise InputError(f"{path}: {what}{kind} in spite of its name; convert it to NIfTI (.nii.gz).")
    header = nib.Nifti2Header if magic == b"n+2\0" else nib.Nifti1Header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on extensions, which do not matter
        return header.from_fileobj(io.BytesIO(content[:_HEADER_BYTES]), check=False)


def _end_of_voxels(path: Path, header: nib.Nifti1Header) -> int:
    """Bytes of a file that is what its header says, checked."""
    shape, dtype = _shape(path, header), header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise InputError(f"{path}: expected one number a voxel, got {dtype}; split its channels and keep one.")
    check_size(shape, name=str(path))
    start = int(header["vox_offset"])
    if not header.single_vox_offset <= start <= _LATEST_START:
        raise InputError(f"{path}: its header says that voxels begin at byte {start}; copy it again from its source.")
    return start + int(np.prod(shape)) * dtype.itemsize


def _voxels(path: Path, header: nib.Nifti1Header, content: memoryview) -> np.ndarray:
    """(column, row, slice) of the file's grid, scaled."""
    shape, dtype, start = _shape(path, header), header.get_data_dtype(), int(header["vox_offset"])
    expected = _end_of_voxels(path, header) - start
    voxels = content[start : start + expected]
    if len(voxels) < expected:
        raise InputError(
            f"{path}: could not be read as NIfTI (truncated: expected {expected} bytes of voxels for {shape} of "
            f"{dtype.name}, got {len(voxels)}); copy it again from its source."
        )
    after = content[start + expected :]
    if len(after) > _PADDING_BYTES or any(after):
        raise InputError(
            f"{path}: holds {len(after)} bytes after the voxels that its header {shape} says; header or voxels are "
            "damaged. Copy it again from its source."
        )
    return _scale(path, header, np.frombuffer(voxels, dtype).reshape(shape, order="F"))


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    dimensions = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : dimensions + 1]] if 1 <= dimensions <= 7 else []
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        raise InputError(
            f"{path}: expected one CT of 3 dimensions, got {len(sizes)} dimensions {tuple(sizes)}. "
            "Split it into volumes and keep one."
        )
    return sizes[0], sizes[1], sizes[2]


def _scale(path: Path, header: nib.Nifti1Header, stored: np.ndarray) -> np.ndarray:
    """Values of the stored ones: a slope of 0, or one that is not a number, means none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (np.isnan(slope) and not np.isinf(inter)):
        return stored
    if not (0 < slope < np.inf and np.isfinite(inter)):
        raise InputError(
            f"{path}: scl_slope {slope:g} and scl_inter {inter:g} give no HU; a slope is above 0. Write the file again "
            "in HU."
        )
    return stored if (slope, inter) == (1, 0) else stored * slope + inter


def _affine(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    """RAS affine in mm."""
    if not (header["sform_code"] or header["qform_code"]):
        raise InputError(f"{path}: neither sform nor qform is set, so left and right are unknown; set one of them.")
    mm = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    affines = []
    if header["sform_code"]:
        affines.append(header.get_sform() * [[mm], [mm], [mm], [1]])
    if header["qform_code"]:
        affines.append(header.get_qform() * [[mm], [mm], [mm], [1]])
    if len(affines) == 2 and not same_grid(affines[0], affines[1], (shape[0], shape[1], shape[2])):
        raise InputError(
            f"{path}: sform and qform differ ({_told(affines[0])} and {_told(affines[1])}), so left and right or the "
            "place are unclear. Find out which is right and write both alike."
        )
    return affines[0]


def _told(affine: np.ndarray) -> str:
    codes = "".join(code or "?" for code in nib.aff2axcodes(affine)) if np.isfinite(affine).all() else "?"
    return f"axes {codes}, origin {affine[:3, 3].round(3).tolist()} mm"
