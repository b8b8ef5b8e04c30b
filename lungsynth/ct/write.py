"""Files on disk: NIfTI and MetaImage volumes, slices, `annotations.csv`. Whole or absent, the same bytes each time.

Arrays here are (depth, height, width) and (height, width); the NIfTI array is their transpose, so that nibabel's
affine of a `Volume` needs no change. A slice file holds (width, height, 1).
"""

import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from einops import rearrange

from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes, write_text
from lungsynth.types import Affine, HuPlane, HuVolume, LabelPlane, LabelVolume

__all__ = [
    "ANNOTATION_COLUMNS",
    "read_plane",
    "write_annotations",
    "write_atomically",
    "write_metaimage",
    "write_nifti",
    "write_plane",
]

write_atomically = write_bytes  # for callers that have not moved to `io.atomic` yet
ANNOTATION_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_COMPRESSION = 6  # of gzip; another level changes the bytes of every file
_UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)
_DESCRIP_BYTES = 79  # the header's field has 80 bytes, the last one zero


def _nifti_bytes(array: np.ndarray, affine: Affine, *, descrip: str) -> bytes:
    if array.dtype not in (np.int16, np.uint8):
        raise InputError(f"A NIfTI of this project holds int16 HU or uint8 labels, got {array.dtype}; cast it first.")
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header["descrip"] = descrip.encode("ascii", "replace")[:_DESCRIP_BYTES]
    return image.to_bytes()


def _write_image(path: Path, array: np.ndarray, affine: Affine, *, descrip: str) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: a NIfTI file's name must end in .nii or .nii.gz; rename it.")
    content = _nifti_bytes(array, affine, descrip=descrip)
    if path.suffix == ".gz":
        packed = io.BytesIO()
        # Neither time nor name in the header: the same image gives the same bytes.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=packed, mtime=0) as stream:
            stream.write(content)
        content = packed.getvalue()
    write_bytes(path, content)


def write_nifti(
    path: Path, image: Volume | HuVolume | LabelVolume, affine: Affine | None = None, *, descrip: str = ""
) -> None:
    """Writes a volume as NIfTI, bit-exact.

    Args:
        path: ends in `.nii.gz` or `.nii`.
        image: a `Volume`, or int16 HU or uint8 labels (depth, height, width).
        affine: RAS, of (column, row, slice); a `Volume` brings its own.
        descrip: the header's field of this name, at most 79 ASCII characters.

    Raises:
        InputError: on another dtype or name, or an array without affine.
    """
    if isinstance(image, Volume):
        array, affine = image.hu, image.affine if affine is None else affine
    else:
        array = image
    if affine is None:
        raise InputError(f"{path}: an array needs its affine to be written; give one or pass a Volume.")
    _write_image(path, rearrange(array, "depth height width -> width height depth"), affine, descrip=descrip)


def write_plane(path: Path, plane: HuPlane | LabelPlane, affine: Affine, *, descrip: str = "") -> None:
    """Writes one slice as a NIfTI of depth one, bit-exact; its array is (width, height, 1).

    Args:
        path: ends in `.nii.gz` or `.nii`.
        plane: int16 HU or uint8 labels (height, width).
        affine: RAS, of (column, row, 0), as `Volume.plane_affine` gives it.
        descrip: the header's field of this name, at most 79 ASCII characters.

    Raises:
        InputError: on another dtype or name.
    """
    _write_image(path, rearrange(plane, "height width -> width height 1"), affine, descrip=descrip)


def read_plane(path: Path) -> tuple[HuPlane | LabelPlane, Affine]:
    """Reads what `write_plane` wrote: the plane (height, width) in its own dtype, and its affine.

    Raises:
        InputError: when the file is missing, damaged, or not a slice of int16 or uint8.
    """
    try:
        image = nib.load(path)
        array = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    except _UNREADABLE as error:
        raise InputError(f"{path}: could not be read as a slice ({error}); write the cohort again.") from error
    if array.ndim != 3 or array.shape[2] != 1 or array.dtype not in (np.int16, np.uint8):
        raise InputError(
            f"{path}: a slice file holds int16 or uint8 (width, height, 1), got {array.dtype} {array.shape}. "
            "Write it with lungsynth.ct.write_plane."
        )
    if not np.isfinite(image.affine).all():  # type: ignore[attr-defined]
        raise InputError(f"{path}: its affine holds values that are no numbers. Write the cohort again.")
    plane = np.ascontiguousarray(rearrange(array, "width height 1 -> height width"))
    return plane, np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]


def write_metaimage(out: Path, name: str, image: HuVolume | LabelVolume, affine: Affine, *, comment: str) -> list[str]:
    """Writes a volume as MetaImage, a header and a raw file beside it, bit-exact.

    Args:
        out: folder.
        name: of the header in it, with `.mhd`.
        image: int16 HU or uint8 labels (depth, height, width).
        affine: RAS, of (column, row, slice).
        comment: one line.

    Returns:
        The names of both files. The data are named last, so that a header never lacks them.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    raw = f"{Path(name).stem}.raw"
    depth, height, width = image.shape
    header = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": False,
        "TransformMatrix": _numbers((lps[:3, :3] / spacing).T.ravel()),
        "Offset": _numbers(lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing),
        "DimSize": f"{width} {height} {depth}",
        "Comment": comment,
        "ElementType": {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[image.dtype.name],
        "ElementDataFile": raw,
    }
    data = Path(name).with_name(raw).as_posix()
    write_bytes(out / data, np.ascontiguousarray(image).astype(image.dtype.newbyteorder("<")).tobytes())
    write_text(out / name, "".join(f"{key} = {value}\n" for key, value in header.items()))
    return [name, data]


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value + 0.0:.9g}" for value in values)  # + 0.0 makes 0 of -0


def write_annotations(
    path: Path, rows: Iterable[tuple[str, float, float, float, float]], *, textures: Sequence[str] | None = None
) -> None:
    """Writes nodules as LUNA16's `annotations.csv`, three decimals, in the order given.

    Args:
        path: the file.
        rows: series or sample, x, y and z of the centre in LPS mm, diameter in mm.
        textures: of each nodule, for a further column `texture`.
    """
    table = pd.DataFrame(list(rows), columns=list(ANNOTATION_COLUMNS))
    if textures is not None:
        table["texture"] = list(textures)
    write_text(path, table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
