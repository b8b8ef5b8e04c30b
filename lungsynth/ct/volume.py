"""`Volume`: a CT in HU with the geometry that places it in the patient.

Arrays are (depth, height, width): slices run inferior to superior, rows anterior to posterior, columns from the
patient's right to left. The affine is nibabel's: it maps voxel indices (column, row, slice) to RAS millimetres, so the
file that nibabel would write holds the transposed array. LUNA16's world is LPS: x and y have the other sign.
"""

from dataclasses import dataclass, field

import numpy as np

from lungsynth.errors import InputError
from lungsynth.types import Affine, HuPlane, HuVolume

__all__ = ["Volume"]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A CT series in HU.

    Args:
        hu: int16 (depth, height, width), within `CT_RANGE_HU`.
        affine: (4, 4), (column, row, slice) -> RAS mm; axial in this module's orientation.
        series_id: SeriesInstanceUID, or the file's stem where there is none.
        patient_id: PatientID; the series itself where none is known (see `patient_known`).
        patient_known: False when `patient_id` is only the series.
        modality_info: kernel, manufacturer and the like, where the files tell.
        notes: what was left out or taken on trust while reading.

    Raises:
        InputError: when the affine is not axial in the stated orientation.
    """

    hu: HuVolume
    affine: Affine
    series_id: str
    patient_id: str
    patient_known: bool = True
    modality_info: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        linear = self.affine[:3, :3]
        tilt = np.abs(linear - np.diag(np.diag(linear))).max()
        if tilt > 1e-3 or not (np.sign(np.diag(linear)) == [-1, -1, 1]).all():
            raise InputError(
                f"{self.series_id}: a Volume's affine must be axial (columns to the patient's left, rows to posterior, "
                f"slices to superior), got {linear.round(4).tolist()}. Read files with lungsynth.ct.read_volume."
            )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(slice, row, column) in mm."""
        column, row, depth = np.abs(np.diag(self.affine)[:3])
        return float(depth), float(row), float(column)

    def plane(self, index: int) -> HuPlane:
        """Axial slice `index`, (height, width)."""
        return self.hu[index]

    def plane_affine(self, index: int) -> Affine:
        """Affine of axial slice `index` as a volume of depth one."""
        shifted = self.affine.copy()
        shifted[:3, 3] = (self.affine @ [0.0, 0.0, float(index), 1.0])[:3]
        return shifted
