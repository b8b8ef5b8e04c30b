# SPDX-License-Identifier: Apache-2.0
"""The size of a nodule: the diameter of the disc (of a cube: the sphere) that is as large as its mask."""

import torch
from torch import Tensor

__all__ = ["equivalent_diameter", "mask_diameter_mm"]

_UNIT_SPHERE = {2: torch.pi, 3: 4 / 3 * torch.pi}  # area of the disc, volume of the sphere, of radius 1
# The step at 0.5 that makes a soft mask an outline is a sigmoid this steep, so that it has a gradient: from 0.28 to
# 0.72 of the mask it rises from 0.1 to 0.9. A steeper one teaches fewer pixels, a flatter one counts faint ones.
_STEEPNESS = 10.0
_LEAST_POWER = 1e-3  # px^2 (px^3), added to the radius squared (cubed): at 0 the root has no finite gradient


def equivalent_diameter(measure: Tensor, spatial_dims: int, *, offset: float = 0.0) -> Tensor:
    """Diameter of the disc (2 dimensions) or sphere (3) of an area or volume, in the pixels that it was counted in.

    Args:
        measure: areas or volumes, any shape.
        spatial_dims: 2 or 3.
        offset: added to the square (cube) of the radius.
    """
    power = measure / _UNIT_SPHERE[spatial_dims] + offset
    return 2 * (power.sqrt() if spatial_dims == 2 else power.pow(1 / 3))


def mask_diameter_mm(mask: Tensor, spacing_mm: float | Tensor) -> Tensor:
    """Equivalent diameter in mm of soft masks (B, H, W) or (B, D, H, W) at 0.5, shape (B,), with a gradient.

    `spacing_mm` is that of all, or of each (B,).

    The sigmoid that stands for the step is shifted and scaled to map 0 to 0 and 1 to 1: an empty mask has no area.
    """
    low, high = torch.sigmoid(torch.tensor([-_STEEPNESS / 2, _STEEPNESS / 2])).tolist()
    inside = (torch.sigmoid((mask - 0.5) * _STEEPNESS) - low) / (high - low)
    return equivalent_diameter(inside.flatten(1).sum(dim=1), mask.ndim - 1, offset=_LEAST_POWER) * spacing_mm
