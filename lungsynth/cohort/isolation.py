"""A nodule without its surroundings, with a soft edge: on a patch's grid or on a cube's."""

import numpy as np
from jaxtyping import Bool, Float16, Int16
from scipy import ndimage

from lungsynth.hounsfield import DENSE_HU, LUNG_HU, to_int16

__all__ = ["isolate", "soft_mask"]

EDGE_PX = 0.8  # standard deviation of the soft edge, about half the width of a standard kernel's point spread


def soft_mask(mask: Bool[np.ndarray, "*grid"], *, valid: Bool[np.ndarray, "*grid"]) -> Float16[np.ndarray, "*grid"]:
    """Soft mask of a nodule on the patch's or cube's grid: 0.5 on its outline, 0 on the border and where not valid."""
    alpha = ndimage.gaussian_filter(mask.astype(np.float32), EDGE_PX)
    alpha[alpha < 0.02] = 0
    alpha *= valid
    for axis in range(alpha.ndim):
        np.moveaxis(alpha, axis, 0)[[0, -1]] = 0
    return alpha.clip(0, 1).astype(np.float16)


def isolate(
    context: Int16[np.ndarray, "*grid"], mask: Bool[np.ndarray, "*grid"], *, valid: Bool[np.ndarray, "*grid"]
) -> tuple[Int16[np.ndarray, "*grid"], float]:
    """Replaces what surrounds a nodule by the local lung level.

    Returns:
        The isolated image, and the lung level in HU: the median of what is darker than `DENSE_HU` around the nodule.
    """
    outside_px = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    around = valid & (outside_px >= 3) & (outside_px <= 15) & (context < DENSE_HU)
    level = float(np.median(context[around])) if around.sum() >= 20 else float(LUNG_HU)
    keep = np.clip(1 - outside_px / 2, 0, 1)
    return to_int16(keep * context + (1 - keep) * level), level
