# SPDX-License-Identifier: Apache-2.0
"""RoIAlign (He et al., 2017): what a feature map holds within boxes, on a small regular grid, without rounding."""

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

__all__ = ["level_of", "roi_align"]


def roi_align(features: Tensor, boxes: Tensor, *, stride_px: int, size: int, samples: int = 2) -> Tensor:
    """Pools boxes of one image: float32 (n, C, size, size), each value the mean of `samples` ** 2 bilinear samples.

    A feature stands for the middle of a block of `stride_px` pixels; beyond the map its border is repeated.

    Args:
        features: (1, C, h, w).
        boxes: (n, 4), edges in pixels of the image: row, column, row, column.
        stride_px: pixels of the image in one of the map.
        size: values along each side.
        samples: along each side of a value.
    """
    height, width = features.shape[-2:]
    fraction = (torch.arange(size * samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / (size * samples)
    rows = boxes[:, 0, None] + fraction * (boxes[:, 2] - boxes[:, 0])[:, None]
    columns = boxes[:, 1, None] + fraction * (boxes[:, 3] - boxes[:, 1])[:, None]
    # grid_sample's -1 and 1 are the edges of the map.
    y = (2 * rows / (height * stride_px) - 1)[:, :, None].expand(-1, -1, size * samples)
    x = (2 * columns / (width * stride_px) - 1)[:, None, :].expand(-1, size * samples, -1)
    grid = rearrange(torch.stack([x, y], dim=-1), "n r c xy -> 1 (n r) c xy")
    sampled = functional.grid_sample(features.float(), grid.float(), padding_mode="border", align_corners=False)
    return reduce(sampled, "1 c (n r i) (q j) -> n c r q", "mean", n=len(boxes), r=size, q=size, i=samples, j=samples)


def level_of(boxes: Tensor, *, levels: int, reference_px: float) -> Tensor:
    """Which level of a pyramid a box (n, 4) is pooled from: 0 below `reference_px` of mean side, one more an octave."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1e-6).sqrt()
    return (torch.log2(side / reference_px).floor() + 1).clamp(0, levels - 1).long()
