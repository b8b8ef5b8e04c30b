"""Where the lung is, and what surrounds it: its region with the vessels, the sharpness of the pleura, the ribs.

All at 0.7 mm a pixel. Masks differ in what they leave out (an expert's often the vessels at the hilum), so the region
that is measured is closed and filled first.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.draw import polygon2mask

from lungsynth.geometry import PATCH_SPACING_MM

__all__ = ["PIXEL_MM", "lung_region", "pleura_hu_per_mm", "rib_count"]

PIXEL_MM = PATCH_SPACING_MM
_CLOSING_MM = 3.2  # vessels at the hilum are at most twice as wide
_AIRY_HU = -500  # next to the mask: lung that its drawer left out
_MARGIN_PX = 3
_MIN_LUNG_CM2 = 10.0  # of a connected component; smaller ones are specks
_GRADIENT_SIGMA_PX = 0.9  # smoothing before the gradient, so that it is the pleura's and not the noise's
_NEAR_PX = 5  # the steepest place within so many pixels (3.5 mm) across counts: masks end before or behind the pleura
_SHELL_MM = 25.0  # ribs lie within this of the hull of both lungs
_BONE_HU = 200
_BONE_SIGMA_PX = 1.0
_MIN_RIB_MM2 = 30.0

_Plane = Float[np.ndarray, "height width"]
_Mask = Bool[np.ndarray, "height width"]


def lung_region(hu: _Plane, mask: _Mask) -> _Mask:
    """The lungs with their vessels: mask and airy pixels beside it, closed, filled, without specks; may be empty."""
    airy = ndimage.binary_dilation(mask, iterations=_MARGIN_PX) & (hu < _AIRY_HU)
    steps = _CLOSING_MM / PIXEL_MM
    grown = ndimage.distance_transform_edt(~(mask | airy)) <= steps
    closed = ndimage.distance_transform_edt(np.pad(grown, 1, constant_values=True))[1:-1, 1:-1] > steps
    labels, count = ndimage.label(ndimage.binary_fill_holes(closed | mask))
    area_cm2 = np.bincount(labels.ravel(), minlength=count + 1) * PIXEL_MM**2 / 100
    large = area_cm2 >= _MIN_LUNG_CM2
    large[0] = False
    return np.asarray(large[labels])


def pleura_hu_per_mm(hu: _Plane, region: _Mask) -> float:
    """Median over the region's outline of the steepest gradient next to it."""
    steepness = ndimage.gaussian_gradient_magnitude(hu, _GRADIENT_SIGMA_PX) / PIXEL_MM
    outline = region & ~ndimage.binary_erosion(region, border_value=1)
    if not outline.any():
        return float("nan")
    return float(np.median(ndimage.maximum_filter(steepness, _NEAR_PX)[outline]))


def rib_count(hu: _Plane, region: _Mask) -> float:
    """Separate pieces of bone around the lungs; merged ribs count once, and the spine lies mostly farther off."""
    away_mm = ndimage.distance_transform_edt(~_hull(region)) * PIXEL_MM
    shell = (away_mm > 0) & (away_mm <= _SHELL_MM)
    bone = shell & (ndimage.gaussian_filter(hu, _BONE_SIGMA_PX) > _BONE_HU)
    labels, _ = ndimage.label(bone)
    return float((np.bincount(labels.ravel())[1:] * PIXEL_MM**2 >= _MIN_RIB_MM2).sum())


def _hull(region: _Mask) -> _Mask:
    points = np.argwhere(region & ~ndimage.binary_erosion(region))
    try:
        corners = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # fewer than three points, or all on a line
        return region
    return np.asarray(polygon2mask(region.shape, corners)) | region
