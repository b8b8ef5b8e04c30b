"""Shape aliases used in signatures; tests run with shapes checked (`pytest --jaxtyping-packages`).

Rows run anterior to posterior, columns from the patient's right to left, slices inferior to superior.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float16, Int16, UInt8

__all__ = [
    "Affine",
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
