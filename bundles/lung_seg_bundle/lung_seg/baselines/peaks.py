# SPDX-License-Identifier: Apache-2.0
"""From a heat map's maxima to finds.

A large nodule is a plateau with several maxima; each climbs to the middle of what is warm around it (mean shift with
the predicted diameter), where they meet and all but the most probable are dropped.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["drop_neighbours", "find_peaks"]

_CLIMBS = 8


def find_peaks(
    heat: Tensor, diameter: Tensor, *, step_px: int, most: int = 32, least_probability: float = 0.02
) -> Tensor:
    """Finds (n, 4) of one image: row, column, diameter (pixels), probability; the most probable first.

    Args:
        heat: probability (h, w).
        diameter: predicted diameter in pixels (h, w).
        step_px: pixels of the image in one of the map; a map's value stands for the middle of its block.
        most: finds kept.
        least_probability: of a find.
    """
    highest = functional.max_pool2d(heat[None, None], 3, stride=1, padding=1)[0, 0]
    rows, columns = torch.nonzero((heat == highest) & (heat >= least_probability), as_tuple=True)
    order = heat[rows, columns].argsort(descending=True, stable=True)[: 4 * most]
    rows, columns = rows[order], columns[order]
    probability, size = heat[rows, columns], diameter[rows, columns]
    centres = torch.stack([rows, columns], dim=1).float()
    for _ in range(_CLIMBS):
        centres = _climb(heat, centres, size / (2 * step_px))
    finds = torch.cat([step_px * (centres + 0.5) - 0.5, size[:, None], probability[:, None]], dim=1)
    return drop_neighbours(finds)[:most]


def _climb(heat: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Each centre (n, 2) moves to the centroid of the heat within its radius (n,), at least 1; in the map's pixels."""
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(side, device=heat.device).float() for side in heat.shape), indexing="ij"), dim=-1
    )
    near = (grid[None] - centres[:, None, None]).square().sum(-1) <= radius.clamp(min=1).square()[:, None, None]
    weight = near * heat.square()[None]
    total = weight.sum(dim=(1, 2)).clamp(min=1e-12)
    return torch.einsum("nhw,hwa->na", weight, grid) / total[:, None]


def drop_neighbours(finds: Tensor) -> Tensor:
    """Leaves out finds (n, 4) that lie within the radius of a more probable one; the most probable come first."""
    finds = finds[finds[:, 3].argsort(descending=True, stable=True)]
    distance = torch.cdist(finds[:, :2], finds[:, :2])
    radius = torch.maximum(finds[:, None, 2], finds[None, :, 2]) / 2
    near = (distance <= radius.clamp(min=3.0)).tolist()
    kept: list[int] = []
    for index, row in enumerate(near):
        if not any(row[other] for other in kept):
            kept.append(index)
    return finds[kept]
