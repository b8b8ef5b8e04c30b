"""A nodule in three dimensions from its axial slices alone, where their spacing is known but not the scan around them.

Slices of LIDC lie 0.5 to 5 mm apart. Between two of them the mask follows from shape: signed distances to their
outlines are interpolated, positive ones are inside (Raya and Udupa, 1990), so that an outline moves from one to the
other and does not fade; HU are interpolated linearly. A slice shows half a step to either side. There the mask of the
last slice closes like the cap of a sphere, and beyond it nothing is known: no mask, HU at the level of the lung.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16
from scipy import ndimage

from lungsynth.cohort.patches import FEWEST_SLICES, NoduleCube, NodulePlanes, cut_cube
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import to_int16

__all__ = ["interpolate_masks", "stack_cube"]

_CUBE_MM = PATCH_PX * PATCH_SPACING_MM
_REACH = 0.6  # of the cube's side, around the nodule's middle: half, and what that is off its centre of mass
_STEP_TOLERANCE = 0.01  # share by which steps may differ and count as even


def stack_cube(planes: NodulePlanes, z_mm: Float[np.ndarray, " slices"]) -> NoduleCube | None:
    """Makes the cube of a nodule from its slices.

    Args:
        planes: the slices that somebody drew on, inferior to superior, of one nodule.
        z_mm: their positions, ascending.

    Returns:
        The cube; None where fewer than three slices show the nodule, slices are missing, or it reaches beyond the cube.
    """
    masks = planes.votes >= planes.mask_votes
    shown, steps = np.flatnonzero(masks.any(axis=(1, 2))), np.diff(z_mm)
    if len(shown) < FEWEST_SLICES or (np.diff(shown) > 1).any() or np.ptp(steps) > _STEP_TOLERANCE * steps.min():
        return None
    step_mm, region = float(steps[0]), _within_reach(np.asarray(masks.any(axis=0)), planes.spacing_mm)
    fine = math.ceil(step_mm / PATCH_SPACING_MM)
    ends = math.ceil(_REACH * _CUBE_MM / step_mm * fine)  # beyond the first and the last slice
    hu, inside = planes.hu[region], interpolate_masks(masks[region], spacing_mm=planes.spacing_mm, fine=fine)
    measured = np.ones(inside.shape, bool)
    if planes.covered is not None:
        measured &= np.repeat(planes.covered[region], fine, axis=0)
    around = ((ends, ends), (0, 0), (0, 0))
    return cut_cube(
        np.pad(_interpolate_hu(hu, fine), around, mode="edge"),
        np.pad(inside, around),
        spacing_mm=(step_mm / fine, *planes.spacing_mm),
        measured=np.pad(measured, around),
    )


def interpolate_masks(
    masks: Bool[np.ndarray, "slices height width"], *, spacing_mm: tuple[float, float], fine: int
) -> Bool[np.ndarray, "fine_slices height width"]:
    """Masks at `fine` evenly spaced positions of each slice's thickness, which is the step between slices.

    Args:
        masks: evenly spaced.
        spacing_mm: (row, column).
        fine: positions for each slice; the result has that many times as many slices.
    """
    distances = [_signed_distance(mask, spacing_mm) if mask.any() else None for mask in masks]
    made = np.zeros((len(masks) * fine, *masks.shape[1:]), bool)
    for index, plane in enumerate(made):
        place = (index + 0.5) / fine - 0.5  # in steps from the first slice
        below = math.floor(place)
        share = place - below
        lower, upper = (distances[k] if 0 <= k < len(masks) else None for k in (below, below + 1))
        if lower is not None and upper is not None:
            plane[:] = (1 - share) * lower + share * upper > 0
        elif (last := lower if upper is None else upper) is not None:
            plane[:] = last > last.max() * (1 - _cap_radius(share if upper is None else 1 - share))
    return made


def _cap_radius(steps: float) -> float:
    """Radius of a nodule that many steps beyond its last slice, as a share of that there; a cap half a step high."""
    return math.sqrt(max(1 - 2 * steps, 0.0))


def _signed_distance(
    mask: Bool[np.ndarray, "height width"], spacing_mm: tuple[float, float]
) -> Float32[np.ndarray, "height width"]:
    """Distance in mm to the outline of a mask, positive inside."""
    inside, outside = (ndimage.distance_transform_edt(side, sampling=spacing_mm) for side in (mask, ~mask))
    half_px = min(spacing_mm) / 2  # the outline lies between two pixels
    return np.where(mask, inside - half_px, half_px - outside).astype(np.float32)


def _interpolate_hu(
    hu: Int16[np.ndarray, "slices height width"], fine: int
) -> Int16[np.ndarray, "fine_slices height width"]:
    """HU at the same positions, the first and the last slice repeated."""
    places = ((np.arange(len(hu) * fine) + 0.5) / fine - 0.5).clip(0, len(hu) - 1)
    below = np.minimum(places.astype(int), len(hu) - 2)
    share = (places - below).astype(np.float32)[:, None, None]
    return to_int16((1 - share) * hu[below] + share * hu[below + 1])


def _within_reach(shown: Bool[np.ndarray, "height width"], spacing_mm: tuple[float, float]) -> tuple[slice, ...]:
    """What of the slices may lie in the cube, for speed alone."""
    reach = [math.ceil(_REACH * _CUBE_MM / mm) for mm in spacing_mm]
    ends = [(places.min(), places.max() + 1) for places in np.nonzero(shown)]
    middles = [(first + last) // 2 for first, last in ends]
    return (slice(None), *(slice(max(middle - px, 0), middle + px) for middle, px in zip(middles, reach, strict=True)))
