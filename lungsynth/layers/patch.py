"""A nodule ready for blending, on its own grid; `stamp` brings it to that of a lung.

Three planes belong to a patch: `alpha` (the label is where it is at least 0.5), the blend weight, and weight * HU. The
weight is 1 as far as the patch's HU are the nodule's own, half a pixel beyond its outline, and falls to 0 where alpha
does; colour travels multiplied by it, so the patch's surroundings do not leak in.

All arithmetic is of integers or of single IEEE operations, and what comes from libm (cosines, exponentials) is rounded
to few bits: a nodule has the same bits on every machine.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32

from lungsynth.layers.assets import ALPHA_SCALE, PATCH_SPACING_MM, AssetArray

__all__ = ["BLUR_STEP_PX", "NodulePatch", "Planes"]

Planes = Float32[np.ndarray, "3 height width"]  # alpha, weight, weight * HU

BLUR_STEP_PX = 0.25  # blurs are multiples of it, so that few patches need be kept
_WEIGHT_RISE = 4.0  # weight = min(1, 4 alpha): see docs/rendering.md for the profiles it was chosen by
_LEAST_WEIGHT = np.float32(1 / 128)
_MARGIN_PX = 2  # zeros around the support, so that interpolation ends in them


@dataclass(frozen=True, eq=False)
class NodulePatch:
    """A nodule at 0.7 mm, cropped to its support.

    Args:
        planes: see above.
        anchor_px: (row, column) of the centroid of alpha >= 0.5; it comes to lie where the nodule is placed.
        reach_mm: from the anchor to the farthest pixel with a weight, and one more.
    """

    planes: Planes
    anchor_px: tuple[float, float]
    reach_mm: float

    @classmethod
    def from_asset(cls, stored: AssetArray, *, blur_steps: int = 0, grain_steps: int = 0) -> "NodulePatch":
        """The patch of a stored nodule (see `assets`), its edge softened by a Gaussian.

        Args:
            stored: HU and alpha.
            blur_steps: standard deviation of the Gaussian, in `BLUR_STEP_PX` of the patch.
            grain_steps: likewise of one that smooths the HU alone, not the edge.
        """
        kernel = _gaussian(blur_steps)
        grain = _gaussian(grain_steps)
        pad = max(len(kernel), len(grain)) // 2 + _MARGIN_PX
        alpha = np.pad(stored[1].astype(np.float32) / np.float32(ALPHA_SCALE), pad)
        weight = np.minimum(alpha * np.float32(_WEIGHT_RISE), np.float32(1))
        colour = weight * _smooth(np.pad(stored[0].astype(np.float32), pad, mode="edge"), grain)
        weight, colour = _smooth(weight, kernel), _smooth(colour, kernel)
        seen = weight >= _LEAST_WEIGHT
        planes = np.stack([alpha, np.where(seen, weight, 0), np.where(seen, colour, 0)]).astype(np.float32)
        row, column = (int(index.sum()) / len(index) for index in np.nonzero(alpha >= 0.5))
        rows, columns = np.nonzero(seen | (alpha > 0))
        reach_px = math.sqrt(((rows - row) ** 2 + (columns - column) ** 2).max()) + 1
        top, left = int(rows.min()) - _MARGIN_PX, int(columns.min()) - _MARGIN_PX
        cropped = planes[:, top : int(rows.max()) + _MARGIN_PX + 1, left : int(columns.max()) + _MARGIN_PX + 1]
        return cls(np.ascontiguousarray(cropped), (row - top, column - left), reach_px * PATCH_SPACING_MM)


@lru_cache(maxsize=64)
def _gaussian(blur_steps: int) -> tuple[float, ...]:
    """Taps that sum to 1, multiples of 1/4096 but for that division."""
    sigma = blur_steps * BLUR_STEP_PX
    radius = math.ceil(2.5 * sigma)
    taps = [round(math.exp(-0.5 * (k / sigma) ** 2) * 4096) if sigma else 4096 for k in range(-radius, radius + 1)]
    return tuple(tap / sum(taps) for tap in taps)


def _smooth(plane: np.ndarray, kernel: tuple[float, ...]) -> np.ndarray:
    """Separable convolution in a fixed order of adding; what comes round from the other side has no weight there."""
    radius = len(kernel) // 2
    for axis in (0, 1):
        taps = [np.roll(plane, k - radius, axis) * np.float32(tap) for k, tap in enumerate(kernel)]
        plane = sum(taps[1:], taps[0])
    return plane
