"""Shape aliases used in signatures; tests run with shapes checked (`pytest --jaxtyping-packages`).

Rows run anterior to posterior, columns from the patient's right to left, slices inferior to superior.
"""

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8

__all__ = ["Affine", "HuPatches", "HuPlane", "HuVolume", "LabelPlane", "LabelVolume", "MaskPlane", "Plane"]

HuVolume = Int16[np.ndarray, "depth height width"]
LabelVolume = UInt8[np.ndarray, "depth height width"]

HuPlane = Int16[np.ndarray, "height width"]
LabelPlane = UInt8[np.ndarray, "height width"]
MaskPlane = Bool[np.ndarray, "height width"]
Plane = Float[np.ndarray, "height width"]

HuPatches = Int16[np.ndarray, "slices 64 64"]

Affine = Float[np.ndarray, "4 4"]
