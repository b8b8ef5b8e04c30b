"""The grid that nodules are resampled to, and a nodule on it without its surroundings, with a soft edge.

Pixels are of 0.7 mm along each axis, centred on a mask; a patch has two axes, a cube three.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float16, Int16
from scipy import ndimage

from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import DENSE_HU, LUNG_HU, to_int16

__all__ = ["CentredGrid", "isolate", "soft_mask"]

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


_RANGE_FILTERS = (ndimage.minimum_filter, ndimage.maximum_filter)


class CentredGrid:
    """Resamples an image to the grid centred on a mask, in two dimensions or three.

    Args:
        mask: where the nodule is.
        spacing_mm: of the image, one number an axis.
        size_px: of the grid along each axis, 64 for patches and cubes.
    """

    def __init__(
        self, mask: Bool[np.ndarray, "*axes"], spacing_mm: Sequence[float], *, size_px: int = PATCH_PX
    ) -> None:
        self._size_px = size_px
        self._scale = PATCH_SPACING_MM / np.asarray(spacing_mm)
        self._offset = np.array(ndimage.center_of_mass(mask)) - self._scale * (size_px - 1) / 2
        self._shape = mask.shape

    def covered(self, axis: int) -> bool:
        """Whether the image reaches from one end of the grid to the other along an axis."""
        first = self._offset[axis]
        last = first + self._scale[axis] * (self._size_px - 1)
        return bool(first >= -0.5 and last <= self._shape[axis] - 0.5)

    def hu(self, image: Int16[np.ndarray, "*axes"]) -> Int16[np.ndarray, "*grid"]:
        """HU on the grid, the image's border repeated."""
        # Smooth before sampling more coarsely than the source, else noise folds back (aliasing).
        smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.5 * np.sqrt(np.maximum(self._scale**2 - 1, 0)))
        # Cubic keeps the noise that linear would smooth away; its overshoot beside an edge is cut to the neighbours'.
        low, high = (self._sample(around(smooth, 3), 0, mode="nearest") for around in _RANGE_FILTERS)
        return to_int16(self._sample(smooth, 3, mode="nearest").clip(low, high))

    def share(self, mask: Bool[np.ndarray, "*axes"]) -> np.ndarray:
        """How much of each pixel a mask covers, float32 in [0, 1], nothing beyond the image."""
        return self._sample(mask.astype(np.float32), 1, mode="constant", cval=0)

    def _sample(self, image: np.ndarray, order: int, **edge: float | str) -> np.ndarray:
        shape = (self._size_px,) * image.ndim
        return ndimage.affine_transform(image, self._scale, self._offset, output_shape=shape, order=order, **edge)
