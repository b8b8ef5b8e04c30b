"""Overlaying nodules on a lung, in HU, on the lung's own grid.

The patch (0.7 mm) is mirrored, turned and scaled, and averaged over each pixel of the lung where that is coarser:
`image = alpha * nodule + (1 - alpha) * lung`, for ground glass too: what a nodule shows through stands in its own HU.
Colour travels premultiplied, so the patch's surroundings do not leak in. Where alpha is 0 the lung is untouched, bit
for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float32
from scipy import ndimage

from lungsynth.hounsfield import Label, to_int16
from lungsynth.layers.assets import ALPHA_SCALE, PATCH_SPACING_MM, AssetArray, disc_diameter_mm
from lungsynth.layers.lung_shape import Box
from lungsynth.layers.placement import NodulePlacement
from lungsynth.types import HuPlane, LabelPlane, MaskPlane

__all__ = ["Finding", "NodulePatch", "Overlay", "overlay"]


@dataclass(frozen=True, eq=False)
class NodulePatch:
    """A nodule ready for blending.

    Args:
        alpha: soft mask in [0, 1].
        premultiplied: alpha * HU.
        anchor_px: (row, column) of the centroid of alpha >= 0.5; it comes to lie where the nodule is placed.
        reach_mm: from the anchor to the farthest pixel with alpha above 0, and one more.
    """

    alpha: Float32[np.ndarray, "64 64"]
    premultiplied: Float32[np.ndarray, "64 64"]
    anchor_px: tuple[float, float]
    reach_mm: float

    @classmethod
    def from_asset(cls, stored: AssetArray) -> "NodulePatch":
        """The patch of a stored nodule, see `assets`."""
        alpha = stored[1].astype(np.float32) / ALPHA_SCALE
        row, column = (float(np.mean(index)) for index in np.nonzero(alpha >= 0.5))
        rows, columns = np.nonzero(alpha)
        reach_px = float(np.sqrt((rows - row) ** 2 + (columns - column) ** 2).max()) + 1
        return cls(alpha, alpha * stored[0].astype(np.float32), (row, column), reach_px * PATCH_SPACING_MM)


class Finding(NamedTuple):
    """What the label map shows of one nodule: its box, and the diameter of the disc of equal area."""

    box: Box
    diameter_mm: float


@dataclass(frozen=True, eq=False)
class Overlay:
    """A lung slice with nodules.

    Args:
        image: HU.
        label: `Label` ids; a nodule is where its alpha is at least 0.5.
        findings: one a nodule, in the order placed.
    """

    image: HuPlane
    label: LabelPlane
    findings: tuple[Finding, ...]


def overlay(
    lung_hu: HuPlane,
    lung_mask: MaskPlane,
    nodules: Sequence[tuple[NodulePlacement, NodulePatch]],
    *,
    spacing_mm: tuple[float, float],
) -> Overlay:
    """Blends nodules into a lung slice, one after the other.

    Args:
        lung_hu: (H, W), left as it is.
        lung_mask: (H, W).
        nodules: where, and what.
        spacing_mm: (row, column) of the lung.
    """
    image = np.array(lung_hu)
    label = np.where(lung_mask, Label.LUNG, Label.BACKGROUND).astype(np.uint8)
    findings = []
    for placement, patch in nodules:
        window = _window(placement, patch, spacing_mm, image.shape)
        alpha, premultiplied = _resample(placement, patch, window, spacing_mm)
        here = slice(window.row_from, window.row_to), slice(window.column_from, window.column_to)
        blended = premultiplied + (1 - alpha) * image[here]
        image[here] = np.where(alpha > 0, to_int16(blended), image[here])
        nodule = _nodule_pixels(alpha)
        label[here][nodule] = Label.NODULE
        findings.append(_finding(nodule, window, spacing_mm))
    return Overlay(image, label, tuple(findings))


def _window(
    placement: NodulePlacement, patch: NodulePatch, spacing_mm: tuple[float, float], shape: tuple[int, ...]
) -> Box:
    """The pixels that a nodule can touch."""
    reach = [patch.reach_mm * placement.scale / spacing + 1 for spacing in spacing_mm]
    return Box(
        max(0, math.floor(placement.row_px - reach[0])),
        max(0, math.floor(placement.col_px - reach[1])),
        min(shape[0], math.ceil(placement.row_px + reach[0]) + 1),
        min(shape[1], math.ceil(placement.col_px + reach[1]) + 1),
    )


def _resample(
    placement: NodulePlacement, patch: NodulePatch, window: Box, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and alpha * HU on the window, each the mean over the lung's pixel (partial volume)."""
    per_row, per_column = (max(1, round(spacing / (PATCH_SPACING_MM * placement.scale))) for spacing in spacing_mm)
    down_mm = (_centres(window.row_from, window.row_to, per_row) - placement.row_px) * spacing_mm[0]
    left_mm = (_centres(window.column_from, window.column_to, per_column) - placement.col_px) * spacing_mm[1]
    at = _to_patch(placement, patch, down_mm[:, None], left_mm[None, :])
    sampled = [ndimage.map_coordinates(plane, at, order=1) for plane in (patch.alpha, patch.premultiplied)]
    alpha, premultiplied = (reduce(plane, "(h a) (w b) -> h w", "mean", a=per_row, b=per_column) for plane in sampled)
    return alpha, premultiplied


def _to_patch(placement: NodulePlacement, patch: NodulePatch, down_mm: np.ndarray, left_mm: np.ndarray) -> np.ndarray:
    """Patch indices (2, h, w) of offsets from the nodule's centre: turned back, mirrored back, shrunk."""
    angle = math.radians(placement.rotation_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    row_mm = cos * down_mm - sin * left_mm
    column_mm = sin * down_mm + cos * left_mm
    mirror = -1 if placement.flip else 1
    step_mm = PATCH_SPACING_MM * placement.scale
    return np.stack([patch.anchor_px[0] + row_mm / step_mm, patch.anchor_px[1] + mirror * column_mm / step_mm])


def _centres(start: int, stop: int, parts: int) -> np.ndarray:
    """Centres of the equal parts of the pixels start .. stop."""
    return start - 0.5 + (np.arange((stop - start) * parts) + 0.5) / parts


def _nodule_pixels(alpha: np.ndarray) -> np.ndarray:
    """A nodule smaller than a pixel is the pixel that shows it best, so that no nodule is without a label."""
    nodule = alpha >= 0.5
    if not nodule.any():
        nodule = np.zeros_like(nodule)
        nodule.flat[np.argmax(alpha)] = True
    return nodule


def _finding(nodule: np.ndarray, window: Box, spacing_mm: tuple[float, float]) -> Finding:
    rows, columns = np.flatnonzero(nodule.any(axis=1)), np.flatnonzero(nodule.any(axis=0))
    box = Box(
        window.row_from + int(rows[0]),
        window.column_from + int(columns[0]),
        window.row_from + int(rows[-1]) + 1,
        window.column_from + int(columns[-1]) + 1,
    )
    return Finding(box, disc_diameter_mm(int(nodule.sum()), spacing_mm))
