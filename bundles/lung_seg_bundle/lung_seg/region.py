# SPDX-License-Identifier: Apache-2.0
"""Where in a scan the lungs can be: a box a slice, found without the network, so that the network runs on less.

The search looks for air inside the body on a grid of about 3 mm. It only has to leave nothing out: bowel gas or a
hollow table make the boxes larger, not wrong. A lung without air (collapse, effusion) has no air to be found by, so the
box is made symmetric about the body; neighbouring slices count as well. What looks like no chest is taken whole.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .grid import Box

__all__ = ["MARGIN_MM", "lung_boxes"]

MARGIN_MM = 8.0  # around the air in the slice
REACH_MM = 10.0  # to the neighbouring slices whose air counts as well
SMALLEST_CHEST_MM = 200.0  # narrower images are crops of a chest
REGION_GRID_MM = 3.0  # grid on which lungs are looked for: coarser is faster and makes the boxes less exact
TISSUE_FROM_HU = -400.0
ROOM_BELOW_HU = -940.0  # air around the patient; lungs are denser
SMALLEST_LUNG_ML = 20.0
IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = True


def lung_boxes(
    hu: torch.Tensor, spacing_mm: tuple[float, float, float], *, margin_mm: float = MARGIN_MM
) -> list[Box | None]:
    """The part of each slice that can show lung.

    Args:
        hu: int16 (D, H, W).
        spacing_mm: (slice, row, column).
        margin_mm: kept around the lungs' air in the slice.

    Returns:
        A box a slice, on the slice's own grid; None where a scan shows no lung. Whole slices when the image is
        narrower than a chest or no lung is found.
    """
    depth, height, width = hu.shape
    whole: list[Box | None] = [Box.whole((height, width))] * depth
    if min(height * spacing_mm[1], width * spacing_mm[2]) < SMALLEST_CHEST_MM:
        return whole
    steps = (_step(spacing_mm[0]), _step(spacing_mm[1]), _step(spacing_mm[2]))
    coarse = _coarse(hu, steps)
    grid_mm = tuple(mm * step for mm, step in zip(spacing_mm, steps, strict=True))
    body = _body(coarse)
    air = _lung_air(coarse, body, math.prod(grid_mm) / 1000)
    found = [_box(plane, tissue) for plane, tissue in zip(air, body, strict=True)]
    if not any(found):
        return whole
    reach = math.ceil(REACH_MM / grid_mm[0])
    margins = (math.ceil(margin_mm / spacing_mm[1]), math.ceil(margin_mm / spacing_mm[2]))
    boxes = []
    for index in range(depth):
        place = min(index // steps[0], len(found) - 1)
        near = [box for box in found[max(0, place - reach) : place + reach + 1] if box]
        boxes.append(_on_slice(near, steps[1:], margins, (height, width)) if near else None)
    return boxes


def _step(mm: float) -> int:
    return max(1, int(REGION_GRID_MM / mm + 0.5))


def _coarse(hu: torch.Tensor, steps: tuple[int, int, int]) -> np.ndarray:
    """Means over blocks of every so-manieth slice, float32."""
    planes = [
        functional.avg_pool2d(plane[None].float(), steps[1:], ceil_mode=True)[0]
        for plane in hu[steps[0] // 2 :: steps[0]]
    ]
    return torch.stack(planes or [functional.avg_pool2d(hu[:1].float(), steps[1:], ceil_mode=True)[0]]).cpu().numpy()


def _body(coarse: np.ndarray) -> np.ndarray:
    """The largest piece of tissue; shells of tables are thinner than the three voxels that this asks for."""
    # An image border that is not room air cuts through the patient, and closes the body there.
    cut = np.pad(coarse, ((0, 0), (1, 1), (1, 1)), mode="edge") >= ROOM_BELOW_HU
    cut[:, 1:-1, 1:-1] = coarse >= TISSUE_FROM_HU
    thick = ndimage.binary_opening(cut, IN_PLANE)[:, 1:-1, 1:-1]
    labels, count = ndimage.label(thick)
    if count == 0:
        return thick
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _spanned(mask: np.ndarray, axis: int) -> np.ndarray:
    """What lies between the first and the last that is true along an axis."""
    before = np.logical_or.accumulate(mask, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis)
    return np.asarray(before & after)


def _lung_air(coarse: np.ndarray, body: np.ndarray, voxel_ml: float) -> np.ndarray:
    """Air inside the body, in pieces large enough to be lung; single slices have no volume to go by."""
    room, _ = ndimage.label(np.pad(coarse < ROOM_BELOW_HU, ((0, 0), (1, 1), (1, 1)), constant_values=True), IN_PLANE)
    # The padding hangs together with the air around the patient, slice by slice.
    around = (room == room[:, :1, :1])[:, 1:-1, 1:-1]
    inside = _spanned(body, 1) & _spanned(body, 2) & ~around
    # Opened, since the skin's partial volumes look like lung in a line of one voxel.
    air = ndimage.binary_opening((coarse < TISSUE_FROM_HU) & inside, IN_PLANE)
    labels, count = ndimage.label(air)
    if count == 0:
        return air
    volumes = np.bincount(labels.ravel()) * voxel_ml
    volumes[0] = 0
    smallest = SMALLEST_LUNG_ML if len(coarse) > 1 else 0.0
    return np.asarray((volumes > min(smallest, 0.5 * volumes.max()))[labels])


def _box(air: np.ndarray, body: np.ndarray) -> Box | None:
    """Around the air of one coarse slice, its columns mirrored about the middle of the body."""
    if not air.any():
        return None
    rows, columns = (np.flatnonzero(air.any(axis=axis)) for axis in (1, 0))
    left, right = int(columns[0]), int(columns[-1])
    if body.any():
        tissue = np.flatnonzero(body.any(axis=0))
        both = int(tissue[0] + tissue[-1])
        left, right = max(0, min(left, both - right)), min(air.shape[1] - 1, max(right, both - left))
    return Box(rows=(int(rows[0]), int(rows[-1]) + 1), columns=(left, right + 1))


def _on_slice(near: list[Box], steps: tuple[int, ...], margins: tuple[int, int], shape: tuple[int, int]) -> Box:
    box = near[0]
    for other in near[1:]:
        box = box.union(other)
    rows, columns = (
        (max(0, start * step - margin), min(size, stop * step + margin))
        for (start, stop), step, margin, size in zip((box.rows, box.columns), steps, margins, shape, strict=True)
    )
    return Box(rows=rows, columns=columns)
