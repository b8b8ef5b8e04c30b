"""Vessels of a lung slice: bright ridges, their middle lines, and what those say of branches, webs, specks and calibre.

A ridge's strength is the largest of -s^2 times the smaller eigenvalue of the Hessian at scale s (Sato et al. 1998), in
HU. Ridges by hysteresis, thinned to lines one pixel wide; lines shorter than 3 mm are specks, not vessels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from evaluation.anatomy.outline import PIXEL_MM

__all__ = ["Vessels", "find_vessels", "ridge_strength"]

_SCALES_PX = (1.0, 1.5, 2.2, 3.2)  # vessels of about 1.5 to 6 mm
_TRUNCATE = 3.0
_RIDGE_HU = (35.0, 70.0)  # a ridge reaches the second and is followed down to the first
_SPECK_MM = 3.0
_LONG_MM = 15.0
_PERIPHERY_MM = 12.0  # from the pleura; beyond twice this is the core
_MIN_LINE_PX = 20  # of a zone in which a calibre is measured

_Plane = Float[np.ndarray, "height width"]
_Mask = Bool[np.ndarray, "height width"]

_EIGHT = np.ones((3, 3), dtype=bool)
_HALF_STEP_PX = np.array([[2**0.5, 1, 2**0.5], [1, 0, 1], [2**0.5, 1, 2**0.5]], dtype=np.float32) / 2


@dataclass(frozen=True, kw_only=True)
class Vessels:
    """What is measured of the vessels of one slice; NaN where there are none to measure.

    Args:
        length_mm_per_cm2: of their middle lines, by area of lung.
        long_share: of that length, in connected trees of 15 mm or more.
        loops_per_dm: closed meshes by length. Vessels branch and rarely meet again; webs do.
        taper: mean calibre in the core of the lung over that near the pleura.
        specks_per_cm2: bright spots that are no line, by area.
    """

    length_mm_per_cm2: float
    long_share: float
    loops_per_dm: float
    taper: float
    specks_per_cm2: float


def ridge_strength(hu: _Plane) -> _Plane:
    """How much brighter a place is than both of its sides, in HU; 0 where it is not."""
    best = np.zeros_like(hu)
    for scale in _SCALES_PX:
        yy, xx, xy = (
            ndimage.gaussian_filter(hu, scale, order=order, truncate=_TRUNCATE) for order in ((2, 0), (0, 2), (1, 1))
        )
        smaller = (yy + xx) / 2 - np.hypot((yy - xx) / 2, xy)
        np.maximum(best, -smaller * scale**2, out=best)
    return best


def find_vessels(strength: _Plane, core: _Mask, depth_mm: _Plane) -> Vessels:
    """Measures the vessels.

    Args:
        strength: of `ridge_strength`.
        core: the lung without its rim, where vessels are looked for; not empty.
        depth_mm: distance to the pleura.
    """
    area_cm2 = float(core.sum()) * PIXEL_MM**2 / 100
    ridges = apply_hysteresis_threshold(strength, *_RIDGE_HU) & core
    lines = skeletonize(ridges)
    labels, count = ndimage.label(lines, _EIGHT)
    steps_mm = np.where(lines, ndimage.convolve(lines.astype(np.float32), _HALF_STEP_PX, mode="constant"), 0) * PIXEL_MM
    lengths = np.bincount(labels.ravel(), weights=steps_mm.ravel(), minlength=count + 1)[1:]
    vessel = lengths >= _SPECK_MM
    total_mm = float(lengths[vessel].sum())
    trees = lines & np.concatenate([[False], vessel])[labels]
    return Vessels(
        length_mm_per_cm2=total_mm / area_cm2,
        long_share=float(lengths[lengths >= _LONG_MM].sum()) / total_mm if total_mm else float("nan"),
        loops_per_dm=(int(vessel.sum()) - euler_number(trees, 2)) / total_mm * 100 if total_mm else float("nan"),
        taper=_taper(ridges, trees, depth_mm),
        specks_per_cm2=float((~vessel).sum()) / area_cm2,
    )


def _taper(ridges: _Mask, lines: _Mask, depth_mm: _Plane) -> float:
    width = ndimage.distance_transform_edt(ridges)
    outer = lines & (depth_mm < _PERIPHERY_MM)
    inner = lines & (depth_mm > 2 * _PERIPHERY_MM)
    if min(outer.sum(), inner.sum()) < _MIN_LINE_PX:
        return float("nan")
    return float(width[inner].mean() / width[outer].mean())
