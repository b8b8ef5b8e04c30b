"""How a nodule is blended into a lung slice, in HU.

A nodule comes resampled to the lung's pixels (see `nodule`), with the edge that the lung's scanner would have given it.
Then, with the blend weight w in [0, 1], `overlay` makes

    image = lung + (1 - k) w (nodule - lung) + g sigma n

k keeps what is denser than the nodule, so vessels run on into ground glass and the pleura is not painted over. n is
noise of the lung's covariance, sigma its level at this place: that of lung where the nodule is thin, that of soft
tissue where it is dense. g tops up the variance: of the lung's own noise (1 - w) is left, and of the nodule's only a
share q is there, so g^2 = 1 - (1 - w)^2 - q w^2. Where w is 0 the lung is untouched, bit for bit.
A nodule at the pleura ends there, as real ones do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from lungsynth.compositing.nodule import ResampledNodule
from lungsynth.compositing.noise import TILE_PX, TILE_UNIT, LungNoise, measure_noise
from lungsynth.errors import InputError
from lungsynth.geometry import Box, disc_diameter
from lungsynth.hounsfield import CT_RANGE_HU, Label
from lungsynth.placement.groups import NodulePlacement
from lungsynth.placement.lung_shape import filled_lung
from lungsynth.seeds import GOLDEN_STEP, mix_bits
from lungsynth.types import HuPlane, LabelPlane, MaskPlane

__all__ = [
    "LungBackground",
    "NoduleMask",
    "NoiseField",
    "Overlay",
    "VisibleNodule",
    "blend",
    "box_on_slice",
    "noise_window",
    "overlay",
    "within_lung",
]

# Lung pixels denser than the nodule by up to a margin are replaced (k = 0), by twice as much kept (k = 1), between in
# proportion. The margin is this, or so many standard deviations of the noise, so that noise alone is not kept; a vessel
# exceeds lung by some 800 HU. Another value renders existing catalogues differently.
_DENSER_HU = 50.0
_DENSER_SIGMAS = 2

NoduleMask = Bool[np.ndarray, "_ _"]  # its own box's shape


class VisibleNodule(NamedTuple):
    """What the label map shows of one nodule: its box, the diameter of the disc of equal area, its mask in the box.

    `window` is larger: outside it the nodule changed no pixel of the lung.
    """

    box: Box
    diameter_mm: float
    mask: NoduleMask
    window: Box


@dataclass(frozen=True, eq=False)
class LungBackground:
    """A lung slice to lay nodules on.

    Args:
        hu: (H, W), left as it is.
        label: `Label` ids without nodules.
        spacing_mm: (row, column).
        noise: its noise and sharpness; None for nodules without noise, with the edges of their patches.
        inside: (H, W), true in lung and its vessels; there ends what is seen of a nodule. None for no such limit.
    """

    hu: HuPlane
    label: LabelPlane
    spacing_mm: tuple[float, float]
    noise: LungNoise | None = None
    inside: MaskPlane | None = None

    @classmethod
    def of(
        cls, hu: HuPlane, mask: MaskPlane, *, spacing_mm: tuple[float, float], matched: bool = True
    ) -> "LungBackground":
        """A slice and its lung mask; `matched` measures its noise, which takes some milliseconds."""
        label = np.where(mask, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
        noise = measure_noise(hu, mask, spacing_mm=spacing_mm) if matched else None
        return cls(hu, label, spacing_mm, noise, filled_lung(mask, spacing_mm))


@dataclass(frozen=True, eq=False)
class Overlay:
    """A lung slice with nodules.

    Args:
        image: HU.
        label: `Label` ids; a nodule is where its alpha is at least 0.5.
        nodules: in the order placed.
    """

    image: HuPlane
    label: LabelPlane
    nodules: tuple[VisibleNodule, ...]


def overlay(
    background: LungBackground,
    nodules: Sequence[tuple[NodulePlacement, ResampledNodule]],
    *,
    seed: int = 0,
    out: tuple[HuPlane, LabelPlane] | None = None,
) -> Overlay:
    """Blends nodules into a lung slice, one after the other.

    Args:
        background: left as it is.
        nodules: where, and what (resampled to the lung's spacing).
        seed: of the noise.
        out: arrays to fill with image and label; new ones when None.

    Raises:
        InputError: when a nodule lies outside the slice.
    """
    image, label = out or (np.empty(background.hu.shape, np.int16), np.empty(background.hu.shape, np.uint8))
    np.copyto(image, background.hu)
    np.copyto(label, background.label)
    visible = []
    for index, (placement, nodule) in enumerate(nodules):
        top, left = math.floor(placement.row_px) + nodule.top, math.floor(placement.col_px) + nodule.left
        window, part = box_on_slice(top, left, nodule.weight.shape, image.shape)
        nodule = within_lung(nodule, part, background.inside, window)
        mask = nodule.nodule[part]
        if not mask.any():
            raise InputError(
                f"A nodule at ({placement.row_px:g}, {placement.col_px:g}) lies outside its slice of {image.shape} "
                "pixels. The catalogue belongs to other lungs: use the folder that it was planned with."
            )
        noise = _window_noise(background.noise, placement, mask.shape, mix_bits(seed * GOLDEN_STEP + index))
        image[window.pixels] = blend(image[window.pixels], nodule, part, noise)
        label[window.pixels][mask] = Label.NODULE
        visible.append(_visible(mask, window, background.spacing_mm))
    return Overlay(image, label, tuple(visible))


def within_lung(
    nodule: ResampledNodule, part: tuple[slice, slice], inside: MaskPlane | None, window: Box
) -> ResampledNodule:
    """The nodule as far as it lies in the lung: the label ends at the edge, the image a pixel later.

    The pixel that follows the edge is part lung, part wall; without it, a dark line would stay between nodule and wall.
    """
    if inside is None or inside[window.pixels].all():
        return nodule
    top, left = max(0, window.row_from - 1), max(0, window.column_from - 1)
    near = ndimage.binary_dilation(inside[top : window.row_to + 1, left : window.column_to + 1])
    rows = slice(window.row_from - top, window.row_to - top)
    columns = slice(window.column_from - left, window.column_to - left)
    weight, mask = np.zeros_like(nodule.weight), np.zeros_like(nodule.nodule)
    weight[part] = np.where(near[rows, columns], nodule.weight[part], 0)
    mask[part] = nodule.nodule[part] & inside[window.pixels]
    return replace(nodule, weight=weight, nodule=mask)


def box_on_slice(top: int, left: int, size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Box, tuple[slice, slice]]:
    """Where an array of this size falls on a slice, and the part of it that does.

    Args:
        top: row of its first pixel, which may lie outside.
        left: likewise its column.
        size: rows and columns.
        shape: of the slice.
    """
    box = Box(max(0, top), max(0, left), min(shape[0], top + size[0]), min(shape[1], left + size[1]))
    return box, (slice(box.row_from - top, box.row_to - top), slice(box.column_from - left, box.column_to - left))


class NoiseField(NamedTuple):
    """Noise of a window: its level in lung, what dense tissue has of it, and noise of a standard deviation of 1.

    `fine` is that of the lung, see `noise.LungNoise`.
    """

    hu: float
    dense_share: float
    unit: Float32[np.ndarray, "height width"]
    fine: float


def _window_noise(
    noise: LungNoise | None, placement: NodulePlacement, shape: tuple[int, ...], word: int
) -> NoiseField | None:
    level_hu = 0.0 if noise is None else noise.noise_hu(placement.row_px, placement.col_px)
    if noise is None or level_hu == 0:
        return None
    return NoiseField(level_hu, noise.dense_share, noise_window(noise, shape, word), noise.fine)


def noise_window(noise: LungNoise, shape: tuple[int, ...], word: int) -> Float32[np.ndarray, "height width"]:
    """A part of a lung's tile of noise, with a standard deviation of 1; two ends of the random word say which."""
    rows = np.arange(word % TILE_PX, word % TILE_PX + shape[0]) % TILE_PX
    begin = (word >> 32) % TILE_PX
    columns = np.arange(begin, begin + shape[1]) % TILE_PX
    unit = noise.tile[rows[:, None], columns].astype(np.float32)
    unit *= np.float32(1 / TILE_UNIT)
    return unit


def blend(base: np.ndarray, nodule: ResampledNodule, part: tuple[slice, slice], noise: NoiseField | None) -> np.ndarray:
    """A window of a slice with a nodule in it.

    Args:
        base: int16 (H, W), the window.
        nodule: resampled to the slice.
        part: of the nodule, that falls into the window.
        noise: of the window; None for none.
    """
    lung, weight = base.astype(np.float32), nodule.weight[part]
    margin = np.float32(_DENSER_HU if noise is None else max(_DENSER_HU, _DENSER_SIGMAS * noise.hu))
    change = nodule.hu[part] - lung
    denser = change + margin
    denser *= -1 / margin
    np.clip(denser, 0, 1, out=denser)
    replaced = weight - weight * denser
    change *= replaced
    if noise is not None:
        change += _top_up(replaced, nodule, part, noise)
    change += lung
    np.rint(change, out=change)
    np.clip(change, *CT_RANGE_HU, out=change)
    return np.where(weight > 0, change.astype(np.int16), base)


def _top_up(replaced: np.ndarray, nodule: ResampledNodule, part: tuple[slice, slice], noise: NoiseField) -> np.ndarray:
    """Noise that brings the variance to its due; how much the nodule has itself is told by its fine structure."""
    missing_hu = noise.hu * (1 - noise.dense_share)
    due_hu = noise.hu - missing_hu * nodule.core_density
    own = np.float32(min(1.0, (nodule.fine_hu / (noise.fine * due_hu)) ** 2))
    rest = 1 - replaced
    gain = 1 - rest * rest
    gain -= own * (replaced * replaced)
    np.maximum(gain, 0, out=gain)
    np.sqrt(gain, out=gain)
    gain *= np.float32(noise.hu) - np.float32(missing_hu) * nodule.density[part]
    gain *= noise.unit
    return gain


def _visible(mask: np.ndarray, window: Box, spacing_mm: tuple[float, float]) -> VisibleNodule:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    box = Box(window.row_from + top, window.column_from + left, window.row_from + bottom, window.column_from + right)
    diameter_mm = float(disc_diameter(int(np.count_nonzero(mask)) * spacing_mm[0] * spacing_mm[1]))
    return VisibleNodule(box, diameter_mm, mask[top:bottom, left:right], window)
