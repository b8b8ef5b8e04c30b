# SPDX-License-Identifier: Apache-2.0
"""Nodules on label maps as objects: what detectors are trained on and measured by.

An object is a connected region of label 2 on one image. Rows and columns are pixels of the network's grid; boxes are
(row, column, row, column) of their edges, so that a box of one pixel has sides of 1.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .. import IGNORED
from ..losses import NODULE

__all__ = ["Objects", "ignored_share", "objects_of"]


class Objects(NamedTuple):
    """The n objects of one image.

    Args:
        boxes: float32 (n, 4).
        centres: float32 (n, 2), centroids in pixels.
        diameters: float32 (n,), of the disc of equal area, in pixels.
        regions: uint8 or int32 (H, W): 1 to n where an object is, 0 elsewhere.
    """

    boxes: Tensor
    centres: Tensor
    diameters: Tensor
    regions: np.ndarray


def objects_of(label: Tensor) -> Objects:
    """Objects of one label map (H, W)."""
    regions, count = ndimage.label(label.cpu().numpy() == NODULE, structure=np.ones((3, 3)))
    if not count:
        return Objects(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0), regions)
    indices = np.arange(1, count + 1)
    boxes = [
        (rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(regions, count)
    ]
    centres = np.array(ndimage.center_of_mass(regions > 0, regions, indices))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    return Objects(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(centres, dtype=torch.float32),
        torch.tensor(2 * np.sqrt(areas / math.pi), dtype=torch.float32),
        regions,
    )


def ignored_share(label: Tensor, boxes: Tensor) -> Tensor:
    """Share of each box (n, 4) that nobody looked at (label 255), float32 (n,); beyond the image everything counts."""
    height, width = label.shape
    table = torch.zeros(height + 1, width + 1, device=label.device)
    table[1:, 1:] = (label != IGNORED).float().cumsum(0).cumsum(1)
    edges = boxes.round().long()
    top, left = edges[:, 0].clamp(0, height), edges[:, 1].clamp(0, width)
    bottom, right = edges[:, 2].clamp(0, height), edges[:, 3].clamp(0, width)
    seen = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    inside = ((bottom - top) * (right - left)).clamp(min=0)
    return torch.where(inside > 0, 1 - seen / inside.clamp(min=1), 1.0)
