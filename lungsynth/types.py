"""Types of signatures: shapes, which tests check (`pytest --jaxtyping-packages`), and what is asked of a detector.

Rows run anterior to posterior, columns from the patient's right to left, slices inferior to superior.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float16, Int16, UInt8

__all__ = [
    "MIN_HIT_RADIUS_MM",
    "Affine",
    "CandidateDetector",
    "Candidates",
    "Float16Planes",
    "HuPatches",
    "HuPlane",
    "HuPlanes",
    "HuVolume",
    "LabelPlane",
    "LabelVolume",
    "MaskPlane",
    "Origin",
    "Plane",
]

HuVolume = Int16[np.ndarray, "depth height width"]
LabelVolume = UInt8[np.ndarray, "depth height width"]

HuPlane = Int16[np.ndarray, "height width"]
LabelPlane = UInt8[np.ndarray, "height width"]
MaskPlane = Bool[np.ndarray, "height width"]
Plane = Float[np.ndarray, "height width"]

HuPlanes = Int16[np.ndarray, "n size size"]
Float16Planes = Float16[np.ndarray, "n size size"]

HuPatches = Int16[np.ndarray, "slices 64 64"]

Affine = Float[np.ndarray, "4 4"]

Origin = Literal["real", "generated"]  # of a nodule or lung: voxels of a patient, or made by a network


# LUNA16 counts a candidate as a hit within a nodule's radius of its centre. Of nodules below 4 mm it is at least this:
# a millimetre more or less says nothing of them.
MIN_HIT_RADIUS_MM = 2.0

Candidates = Float[np.ndarray, "_ 5"]  # slice, row, column (voxels, fractional), diameter in mm, probability


@runtime_checkable
class CandidateDetector(Protocol):
    """Finds what may be nodules.

    The attribute `operating_point` is the probability from which on a candidate counts. Some detectors have none, and
    each user says what holds then.
    """

    def __call__(self, hu: HuVolume, spacing_mm: tuple[float, float, float], /) -> Mapping[str, np.ndarray]:
        """Looks at a volume, a part of one, or a lone slice.

        Args:
            hu: int16 (D, H, W), HU; D may be 1.
            spacing_mm: (slice, row, column).

        Returns:
            `candidates` (n, 5), see `Candidates`, the most probable first, down to low probabilities; and maps of
            probabilities (D, H, W), `nodule` and `lung`, where the method has them.
        """
        ...
