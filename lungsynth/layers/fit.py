"""Fitting a nodule to a lung: the edge that its scanner would have given it, and no more grain than it has.

A nodule from a sharper scan, or from a network that leaves a grid behind, is louder than a quiet lung. Its HU are then
smoothed in small steps until their fine structure is at most half as strong again as noise of the lung would be.
"""

import math
from collections.abc import Callable

from lungsynth.layers.assets import PATCH_SPACING_MM
from lungsynth.layers.patch import BLUR_STEP_PX, NodulePatch
from lungsynth.layers.placement import NodulePlacement
from lungsynth.layers.stamp import Stamp, make_stamp
from lungsynth.layers.texture import LungTexture

__all__ = ["blur_steps", "fit_stamp", "loudness_class"]

_PATCH_EDGE_MM = 0.56  # the edge that patches bring along: 0.8 pixels of 0.7 mm (contract C2.3)
_LEAST_BLUR_MM = 0.45  # what the fading of a patch's HU beyond its outline takes away from its edge
_MOST_BLUR_STEPS = 8
_MOST_GRAIN_STEPS = 6
_LOUDER = 1.5
_CLASSES_PER_OCTAVE = 2


def blur_steps(texture: LungTexture | None, scale: float) -> int:
    """How much a patch must be blurred (in `patch.BLUR_STEP_PX`) to get the edge of a lung with this texture."""
    if texture is None:
        return 0
    # Variances of Gaussians add up, so the patch lacks the difference.
    lacking = max(texture.edge_mm**2 - _PATCH_EDGE_MM**2, _LEAST_BLUR_MM**2) ** 0.5
    return min(_MOST_BLUR_STEPS, round(lacking / (PATCH_SPACING_MM * scale * BLUR_STEP_PX)))


def loudness_class(texture: LungTexture | None) -> int | None:
    """The fine structure of a lung's noise in half octaves, so that a stamp serves all lungs of a class; None without
    noise, where nodules stay as they are.
    """
    if texture is None or texture.whole_hu == 0:
        return None
    return round(_CLASSES_PER_OCTAVE * math.log2(max(1.0, texture.fine * texture.whole_hu)))


def fit_stamp(
    placed: NodulePlacement,
    patch_of: Callable[[int, int], NodulePatch],
    spacing_mm: tuple[float, float],
    *,
    steps: int,
    loudness: int | None,
) -> Stamp:
    """The stamp of a nodule for the lungs of one spacing, edge and loudness.

    Args:
        placed: the nodule.
        patch_of: (blur steps, grain steps) -> the nodule's patch.
        spacing_mm: (row, column) of the lungs.
        steps: see `blur_steps`.
        loudness: see `loudness_class`.
    """
    stamp = make_stamp(placed, patch_of(steps, 0), spacing_mm)
    if loudness is None:
        return stamp
    bearable = _LOUDER * 2.0 ** (loudness / _CLASSES_PER_OCTAVE)
    for grain in range(1, _MOST_GRAIN_STEPS + 1):
        if stamp.fine_hu <= bearable:
            break
        stamp = make_stamp(placed, patch_of(steps, grain), spacing_mm)
    return stamp
