"""MetaImage files (`.mhd` with `.raw`, `.mha`), CT or mask, in the orientation of `Volume`.

SimpleITK reads them; the header is looked at first, because ITK's own messages do not say what to mend.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from einops import rearrange

from lungsynth.ct.orientation import to_volume_axes
from lungsynth.errors import InputError
from lungsynth.types import Affine

__all__ = ["read_metaimage"]

_HEADER_BYTES = 1 << 16  # the text of a header is shorter; a file without `ElementDataFile` in them is none
_ELEMENT_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
}
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])


def read_metaimage(path: Path) -> tuple[np.ndarray, Affine]:
    """Reads a MetaImage.

    Args:
        path: the `.mhd` or `.mha` file.

    Returns:
        The values (depth, height, width) and the RAS affine.

    Raises:
        InputError: when the header is damaged, the data file missing or truncated, the image not of 3 dimensions, or
            the grid oblique.
    """
    _check_files(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"{path}: could not be read as MetaImage ({reason}); copy it again from its source."
        ) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: expected one CT of 3 dimensions and one channel, got {image.GetDimension()} dimensions with "
            f"{image.GetNumberOfComponentsPerPixel()} channels. Split it into volumes and keep one."
        )
    columns_rows_slices = rearrange(sitk.GetArrayFromImage(image), "k j i -> i j k")
    return to_volume_axes(columns_rows_slices, _ras_affine(image), name=str(path))


def _ras_affine(image: sitk.Image) -> np.ndarray:
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = _RAS_FROM_LPS @ direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = _RAS_FROM_LPS @ np.array(image.GetOrigin())
    return affine


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields with lower-case keys, and the byte after its last line (ElementDataFile)."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: could not be opened ({error.strerror}); check the path.") from error
    fields: dict[str, str] = {}
    position = 0
    for line in head.splitlines(keepends=True):
        position += len(line)
        key, separator, value = line.decode("latin-1").partition("=")
        if separator:
            fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return fields, position
    raise InputError(
        f"{path}: no ElementDataFile in its header, so it is no MetaImage or a damaged one; copy it again."
    )


def _check_files(path: Path) -> None:
    fields, header_bytes = _read_header(path)
    target = fields["elementdatafile"]
    if target.upper().startswith("LIST") or "%" in target:
        return  # one file a slice: ITK names what it misses
    local = target.upper() == "LOCAL"
    data = path if local else path.parent / target
    if not data.is_file():
        raise InputError(f"{path}: its data file {target} is missing; put it beside the header.")
    if fields.get("compresseddata", "false").lower() == "true":
        return  # ITK notices a damaged stream itself
    try:
        count = int(np.prod([int(size) for size in fields["dimsize"].split()]))
        expected = count * int(fields.get("elementnumberofchannels", "1")) * _ELEMENT_BYTES[fields["elementtype"]]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: DimSize or ElementType is missing or unreadable; write the file again.") from error
    present = data.stat().st_size - (header_bytes if local else 0)
    if present < expected:
        raise InputError(
            f"{data}: truncated, expected {expected} bytes of pixels for {fields['dimsize']} {fields['elementtype']}, "
            f"got {present}. Copy it again from its source."
        )
