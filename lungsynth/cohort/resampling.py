"""The grid that nodules are resampled to: pixels of 0.7 mm along each axis, centred on a mask."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int16
from scipy import ndimage

from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import to_int16

__all__ = ["CentredGrid"]

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
