"""Where pixels lie: the grids that cohorts, stored assets and networks share, boxes, and places in the patient.

Nodules are kept on 64 x 64 pixels of 0.7 mm (a usual spacing of chest CT), centred on the nodule. Lungs are generated
on a field of 358.4 mm, 256 pixels of 1.4 mm or 512 of 0.7 mm (docs/reference/conventions.md). The bundles' weights and
all stored assets are bound to these numbers: other ones need new cohorts and new trainings.

Voxels are (slice, row, column), with the centre of the first at (0, 0, 0). An affine is nibabel's: (column, row, slice)
to RAS millimetres. LUNA16's and DICOM's world is LPS: x and y have the other sign.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lungsynth.types import Affine

__all__ = [
    "LUNG_FIELD_MM",
    "LUNG_SPACING_MM",
    "PATCH_PX",
    "PATCH_SPACING_MM",
    "UNITS_PER_MM",
    "Box",
    "axial_affine",
    "disc_diameter",
    "joined_boxes",
    "lps_to_voxel",
    "voxel_to_lps",
]

PATCH_PX = 64  # width of a nodule's patch
PATCH_SPACING_MM = 0.7  # of its pixels
LUNG_FIELD_MM = 358.4  # width of a generated lung slice
LUNG_SPACING_MM = LUNG_FIELD_MM / 256  # of the lung generator's pixels, 1.4 mm
UNITS_PER_MM = 64  # of distances to the edge of a lung: steps of 0.016 mm, and up to 512 mm in int16
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Box(NamedTuple):
    """Rows and columns, each from (included) .. to (excluded)."""

    row_from: int
    column_from: int
    row_to: int
    column_to: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The index of its pixels in a slice."""
        return slice(self.row_from, self.row_to), slice(self.column_from, self.column_to)

    def grown(self, margin_px: int, shape: tuple[int, ...]) -> "Box":
        """The box with a margin, cut off at the edges of a slice of this shape."""
        return Box(
            max(0, self.row_from - margin_px),
            max(0, self.column_from - margin_px),
            min(shape[0], self.row_to + margin_px),
            min(shape[1], self.column_to + margin_px),
        )

    def meets(self, other: "Box") -> bool:
        """Whether they share a pixel."""
        rows = self.row_from < other.row_to and other.row_from < self.row_to
        return rows and self.column_from < other.column_to and other.column_from < self.column_to


def joined_boxes(boxes: Iterable[Box]) -> list[Box]:
    """Boxes that meet become the one around them, until none meet."""
    done: list[Box] = []
    for box in boxes:
        while meeting := [other for other in done if box.meets(other)]:
            done = [other for other in done if other not in meeting]
            tops, lefts, bottoms, rights = zip(box, *meeting, strict=True)
            box = Box(min(tops), min(lefts), max(bottoms), max(rights))
        done.append(box)
    return done


def disc_diameter(area: Any) -> Any:
    """Diameter of the disc of that area, a number or an array: of mm^2 in mm, of a number of pixels in pixels."""
    return 2 * np.sqrt(area / np.pi)


def axial_affine(*, spacing_mm: tuple[float, float, float], origin_lps_mm: tuple[float, float, float]) -> Affine:
    """RAS affine of an axial grid: slices run inferior to superior, rows anterior to posterior, columns right to left.

    Args:
        spacing_mm: (slice, row, column), all positive.
        origin_lps_mm: LPS position of the centre of voxel (0, 0, 0), as in DICOM and MetaImage.
    """
    affine = np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0])
    affine[:3, 3] = origin_lps_mm
    return _LPS_FROM_RAS @ affine


def voxel_to_lps(affine: Affine, slice_row_column: np.ndarray) -> np.ndarray:
    """LPS millimetres (..., 3) as (x, y, z) of voxel indices (..., 3) as (slice, row, column)."""
    points = np.asarray(slice_row_column, dtype=np.float64)[..., ::-1]
    return points @ (_LPS_FROM_RAS @ affine)[:3, :3].T + (_LPS_FROM_RAS @ affine)[:3, 3]


def lps_to_voxel(affine: Affine, xyz_mm: np.ndarray) -> np.ndarray:
    """Voxel indices (..., 3) as fractional (slice, row, column) of LPS millimetres (..., 3)."""
    lps = _LPS_FROM_RAS @ affine
    points = (np.asarray(xyz_mm, dtype=np.float64) - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T
    return points[..., ::-1]
