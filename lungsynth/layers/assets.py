"""Assets: the nodules and lungs from which samples are made, each known by the hash of its content.

A nodule is int16 (2, 64, 64): HU and alpha * 16384, at 0.7 mm. A lung is int16 (2, H, W): HU and lung mask (1 in
lung), on its own grid. `library` keeps them on disk.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int16

from lungsynth.errors import InputError
from lungsynth.types import Affine

__all__ = [
    "ALPHA_SCALE",
    "PATCH_SIZE",
    "PATCH_SPACING_MM",
    "Asset",
    "AssetArray",
    "Kind",
    "Source",
    "content_hash",
    "disc_diameter_mm",
]

ALPHA_SCALE = 16384  # alpha 1.0 as int16
PATCH_SIZE = 64
PATCH_SPACING_MM = 0.7

Kind = Literal["nodule", "lung"]
Source = Literal["real", "generated"]
AssetArray = Int16[np.ndarray, "2 height width"]


def content_hash(array: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of the dtype, the shape and the bytes of an array."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def disc_diameter_mm(pixels: int, spacing_mm: tuple[float, float]) -> float:
    """Diameter of the disc with the area of that many pixels; `spacing_mm` is (row, column)."""
    return float(2 * np.sqrt(pixels * spacing_mm[0] * spacing_mm[1] / np.pi))


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A row of `assets.parquet`.

    Args:
        hash: name of the file, see `content_hash`.
        kind: nodule or lung.
        source: real (voxels of a patient) or generated.
        category: the nodule's or lung's class.
        origin: id of the slice or nodule, or the seed that made it.
        diameter_mm: of the disc of equal area to alpha >= 0.5; nodules only.
        affine: 16 floats row by row, (column, row, slice) -> RAS mm; lungs only.
        weights: SHA-256 of the weights that generated it; None for real ones.

    Raises:
        InputError: when a value is not one of those, or is missing for its kind.
    """

    hash: str
    kind: Kind
    source: Source
    category: str
    origin: str
    diameter_mm: float | None = None
    affine: tuple[float, ...] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.source not in get_args(Source):
            raise InputError(
                f"Asset {self.hash}: kind must be one of {get_args(Kind)} and source one of {get_args(Source)}, "
                f"got {self.kind!r} and {self.source!r}."
            )
        if self.kind == "nodule" and not (self.diameter_mm and self.diameter_mm > 0):
            raise InputError(f"Asset {self.hash}: a nodule needs a positive diameter_mm, got {self.diameter_mm}.")
        if self.kind == "lung" and (self.affine is None or len(self.affine) != 16):
            raise InputError(f"Asset {self.hash}: a lung needs an affine of 16 floats, got {self.affine}.")

    @property
    def affine_matrix(self) -> Affine:
        """The affine of a lung, (4, 4)."""
        if self.affine is None:
            raise InputError(f"Asset {self.hash} is a {self.kind} and has no affine; ask a lung.")
        return np.reshape(np.asarray(self.affine, dtype=np.float64), (4, 4))

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Spacing (row, column) in mm of the asset's grid."""
        if self.kind == "nodule":
            return PATCH_SPACING_MM, PATCH_SPACING_MM
        columns, rows = np.linalg.norm(self.affine_matrix[:3, :2], axis=0)
        return float(rows), float(columns)
