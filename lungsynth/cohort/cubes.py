"""A nodule in three dimensions: 64 x 64 x 64 voxels of 0.7 mm with HU and soft mask.

The patches of a nodule cannot be stacked to it: each is centred on the mask of its own slice, which straightens a
nodule that runs obliquely (in 134 LIDC nodules those centres lie 2.3 mm apart in the median, 20 mm at most).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int16

from lungsynth.cohort.isolation import isolate, soft_mask
from lungsynth.cohort.resampling import CentredGrid
from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM
from lungsynth.io.atomic import write_arrays
from lungsynth.types import HuVolume

__all__ = ["NoduleCube", "cut_cube"]

_FEWEST_SLICES = 3  # that show a nodule; with fewer its shape along them is a guess
_REACH_MM = (PATCH_PX / 2 - 1) * PATCH_SPACING_MM  # the border stays free


@dataclass(frozen=True, kw_only=True)
class NoduleCube:
    """One nodule, centred: slices inferior to superior, rows and columns as in a patch.

    Args:
        hu: the nodule's HU inside, one level, that of the lung around it, outside.
        alpha: soft mask in [0, 1], 0 on the faces.
    """

    hu: Int16[np.ndarray, "64 64 64"]
    alpha: Float16[np.ndarray, "64 64 64"]

    def save(self, path: Path) -> None:
        """Writes the npz."""
        write_arrays(path, hu=self.hu, alpha=self.alpha)


def cut_cube(
    hu: HuVolume, mask: Bool[np.ndarray, "depth height width"], *, spacing_mm: Sequence[float]
) -> NoduleCube | None:
    """Cuts a nodule out of a volume.

    Args:
        hu: the volume, or what lies within a cube's reach of the nodule.
        mask: the nodule, not empty.
        spacing_mm: (slice, row, column).

    Returns:
        The cube; None when the volume ends within it along the slices, the nodule reaches beyond it, or fewer than
        three slices show the nodule.
    """
    points = np.argwhere(mask)
    if len(np.unique(points[:, 0])) < _FEWEST_SLICES:
        return None
    if (np.abs(points - points.mean(axis=0)) * np.asarray(spacing_mm)).max() > _REACH_MM:
        return None
    grid = CentredGrid(mask, spacing_mm)
    if not grid.covered(axis=0):
        return None
    inside, valid = grid.share(mask) >= 0.5, grid.share(np.ones(mask.shape, bool)) > 0.999
    isolated, _ = isolate(grid.hu(hu), inside & valid, valid=valid)
    return NoduleCube(hu=isolated, alpha=soft_mask(inside & valid, valid=valid))
