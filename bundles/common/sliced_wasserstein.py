# SPDX-License-Identifier: Apache-2.0
"""Distance of two sets of vectors, such as patches of images, and the pyramid that patches are taken from.

After Rabin et al. (2011), and Karras et al. (2018), section 5, who compare patches of Laplacian pyramids: no network of
features is needed, and equal sets and seeds give equal figures.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, interpolate

__all__ = ["laplacian_pyramid", "sliced_wasserstein"]


def laplacian_pyramid(images: Tensor, levels: int, *, upsampling: str) -> list[Tensor]:
    """Detail of each scale, finest first, and, last, the blurred rest.

    Args:
        images: (B, C, H, W) or (B, C, D, H, W).
        levels: at least 1; each has half the sides of the one before, rounded up.
        upsampling: of the coarser level that is taken away: `bilinear` (images only) or `nearest`.

    Returns:
        `levels` tensors, which add up to the images when each is upsampled to the next finer one.
    """
    pool = avg_pool2d if images.ndim == 4 else avg_pool3d
    corners = {"align_corners": False} if upsampling == "bilinear" else {}
    pyramid = []
    for _ in range(levels - 1):
        coarse = pool(images, 2, ceil_mode=True)
        pyramid.append(images - interpolate(coarse, size=images.shape[2:], mode=upsampling, **corners))
        images = coarse
    return [*pyramid, images]


def sliced_wasserstein(a: Tensor, b: Tensor, *, n_projections: int, generator: torch.Generator) -> Tensor:
    """Mean over random directions of the 1-Wasserstein distance of two sets of vectors (N, D), in their units.

    On a line it is the mean difference of the sorted values.

    Args:
        a: one set.
        b: the other one, of the same size.
        n_projections: directions.
        generator: draws them, on the CPU.
    """
    directions = torch.randn(b.shape[1], n_projections, generator=generator)
    directions = directions / directions.norm(dim=0)
    ordered = [(vectors @ directions).sort(dim=0).values for vectors in (a, b)]
    return (ordered[0] - ordered[1]).abs().mean()
