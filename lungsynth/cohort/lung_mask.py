"""Lung masks from HU thresholds, for scans that come without one.

Lung is air inside the body: the components that are large enough, without the trachea and the main bronchi as far as
they stand apart from the lung in a slice, closed in the slices so that vessels and nodules at the pleura belong to it.
The search runs on a grid of about 2 mm; only the last step, the edge, looks at the voxels themselves.

It is a stand-in for an expert's mask, and files that hold it say `lung_mask = threshold`. Consolidation and effusion
are denser than the threshold and stay outside.
"""

import numpy as np
from einops import repeat
from jaxtyping import Bool, Int
from scipy import ndimage

from lungsynth.hounsfield import AIR_HU
from lungsynth.types import HuVolume

__all__ = ["LUNG_BELOW_HU", "block_mean", "threshold_lung_mask"]

LUNG_BELOW_HU = -300
_GRID_MM = 2.0  # the search grid; thinner voxels are averaged
_TABLE_MM = 4.0  # shells of tables are thinner than this, chest walls are thicker
_AIRWAY_CM2 = 7.0  # a slice through trachea or bronchus is smaller
_AIRWAY_LENGTH_MM = 30.0
_AIRWAY_OFF_CENTRE_MM = 25.0  # apices and bases of the lungs lie farther out
_SMALLEST_LUNG = 0.06  # share of the air inside the body that a component must have
_GAS_BELOW_HU = -965  # bowel gas and stomach are emptier than any lung
_CLOSING_MM = 9.0

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_IN_PLANE_SQUARE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE_SQUARE[1] = True

_Mask = Bool[np.ndarray, "d h w"]  # on the search grid


def threshold_lung_mask(
    hu: HuVolume, *, spacing_mm: tuple[float, float, float]
) -> Bool[np.ndarray, "depth height width"]:
    """Finds the lungs of a chest CT.

    Args:
        hu: the scan; padding below air is air.
        spacing_mm: (slice, row, column).

    Returns:
        True in lung, the shape of `hu`; all False when there is no air inside the body.
    """
    factors = tuple(max(1, int(_GRID_MM / mm + 0.5)) for mm in spacing_mm)
    coarse = block_mean(np.maximum(hu, AIR_HU), factors)
    grid_mm = tuple(mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
    air = (coarse < LUNG_BELOW_HU) & _inside_body(coarse, grid_mm)
    airway = _airway(air, grid_mm)
    dark = _large_components(air & ~airway, coarse)
    lung = _close_each_side(dark, grid_mm) & ~airway
    return _refine(lung, dark, airway, hu, factors)


def block_mean(values: np.ndarray, factors: tuple[int, ...]) -> Int[np.ndarray, "d h w"]:
    """Means of whole numbers over blocks of voxels, rounded down; the far ends are padded with their last voxels."""
    padding = [(0, -size % factor) for size, factor in zip(values.shape, factors, strict=True)]
    padded = np.pad(values, padding, mode="edge") if any(after for _, after in padding) else values
    offsets = np.ndindex(*factors)
    total = sum(padded[a :: factors[0], b :: factors[1], c :: factors[2]].astype(np.int32) for a, b, c in offsets)
    return np.asarray(total // int(np.prod(factors)), dtype=np.int32)


def _inside_body(hu: np.ndarray, grid_mm: tuple[float, ...]) -> _Mask:
    """The body with what it encloses: the largest piece of tissue, filled slice by slice, without the table."""
    tissue = hu >= LUNG_BELOW_HU
    steps = max(1, round(_TABLE_MM / 2 / grid_mm[1]))
    thick = ndimage.binary_opening(tissue, _IN_PLANE, iterations=steps)
    labels, count = ndimage.label(thick)
    if count == 0:
        return np.zeros_like(tissue)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = np.zeros_like(tissue)
    for index, plane in enumerate(labels == sizes.argmax()):
        body[index] = ndimage.binary_fill_holes(plane)
    return body


def _airway(air: _Mask, grid_mm: tuple[float, ...]) -> _Mask:
    """Trachea and main bronchi: small in each slice, long across slices, near the middle of the body."""
    planes, count = ndimage.label(air, _IN_PLANE)
    if count == 0:
        return np.zeros_like(air)
    area_cm2 = np.bincount(planes.ravel()) * grid_mm[1] * grid_mm[2] / 100
    small = air & (area_cm2 < _AIRWAY_CM2)[planes]
    groups, count = ndimage.label(small)
    middle = np.average(np.arange(air.shape[2]), weights=air.sum(axis=(0, 1)))
    airway = np.zeros_like(air)
    for label, box in enumerate(ndimage.find_objects(groups), start=1):
        length_mm = (box[0].stop - box[0].start) * grid_mm[0]
        if length_mm < _AIRWAY_LENGTH_MM:
            continue
        group = groups[box] == label
        column = box[2].start + np.average(np.arange(group.shape[2]), weights=group.sum(axis=(0, 1)))
        if abs(column - middle) * grid_mm[2] < _AIRWAY_OFF_CENTRE_MM:
            airway[box] |= group
    wall = max(1, round(1.5 / grid_mm[1]))
    return ndimage.binary_dilation(airway, _IN_PLANE, iterations=wall)


def _large_components(air: _Mask, hu: np.ndarray) -> _Mask:
    labels, count = ndimage.label(air)
    if count == 0:
        return air
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    core_hu = ndimage.median(hu, labels, np.arange(count + 1)) if count < 50 else _mean_hu(hu, labels)
    kept = (sizes >= _SMALLEST_LUNG * sizes.sum()) & (core_hu > _GAS_BELOW_HU)
    kept[0] = False
    return kept[labels]


def _mean_hu(hu: np.ndarray, labels: np.ndarray) -> np.ndarray:
    sums = np.bincount(labels.ravel(), weights=hu.ravel())
    return sums / np.maximum(np.bincount(labels.ravel()), 1)


def _close_each_side(lung: _Mask, grid_mm: tuple[float, ...]) -> _Mask:
    """Closes the right and the left lung on their own, so that the mediastinum between them stays open."""
    if not lung.any():
        return lung
    columns = lung.sum(axis=(0, 1))
    used = np.flatnonzero(columns)
    span = used[-1] - used[0] + 1
    central = slice(used[0] + int(0.35 * span), used[0] + int(0.65 * span) + 1)
    middle = central.start + int(columns[central].argmin())
    closed = np.zeros_like(lung)
    for side in (slice(0, middle), slice(middle, None)):
        closed[..., side] = _close(lung[..., side], steps=max(1, round(_CLOSING_MM / grid_mm[1])))
    return closed


def _close(mask: _Mask, *, steps: int) -> _Mask:
    """Closing with an octagon of radius `steps` pixels in each slice, then filling what is enclosed."""
    grown = np.pad(mask, ((0, 0), (steps, steps), (steps, steps)))
    for operation in (ndimage.binary_dilation, ndimage.binary_erosion):
        for step in range(steps):
            grown = operation(grown, _IN_PLANE_SQUARE if step % 3 == 2 else _IN_PLANE)
    closed = grown[:, steps:-steps, steps:-steps]
    return np.stack([ndimage.binary_fill_holes(plane) for plane in closed]) | mask


def _refine(
    lung: _Mask, dark: _Mask, airway: _Mask, hu: HuVolume, factors: tuple[int, ...]
) -> Bool[np.ndarray, "depth height width"]:
    """Back to the voxels: where the edge of the lung is that of dark air, the voxels' own HU decide."""
    closed_in = lung & ~ndimage.binary_dilation(dark, _IN_PLANE)
    inside = _enlarge(ndimage.binary_erosion(lung, _IN_PLANE) | closed_in, hu.shape, factors)
    near = _enlarge(ndimage.binary_dilation(lung, _IN_PLANE_SQUARE) & ~airway, hu.shape, factors)
    return inside | (near & (hu < LUNG_BELOW_HU))


def _enlarge(mask: _Mask, shape: tuple[int, ...], factors: tuple[int, ...]) -> Bool[np.ndarray, "depth height width"]:
    a, b, c = factors
    enlarged = repeat(mask, "d h w -> (d a) (h b) (w c)", a=a, b=b, c=c)
    return enlarged[: shape[0], : shape[1], : shape[2]]
