"""Overlaying nodules on a lung, in HU, on the lung's own grid.

The patch is mirrored, turned and scaled onto the lung's pixels (see `stamp`), with the edge that the lung's scanner
would have given it (see `fit`). Then, with the blend weight w in [0, 1],

    image = lung + (1 - k) w (nodule - lung) + g sigma n

k keeps what is denser than the nodule, so vessels run on into ground glass and the pleura is not painted over. n is
noise of the lung's texture, sigma its amplitude at this place: that of lung where the nodule is thin, that of soft
tissue where it is dense. g tops up the variance: of the lung's own noise (1 - w) is left, and of the nodule's only a
share q is there, so g^2 = 1 - (1 - w)^2 - q w^2. Where w is 0 the lung is untouched, bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from lungsynth.compositing.nodule import ResampledNodule
from lungsynth.compositing.noise import TILE_SIZE, TILE_UNIT, LungNoise, measure_noise
from lungsynth.errors import InputError
from lungsynth.grids import disc_diameter
from lungsynth.hounsfield import CT_RANGE_HU, Label
from lungsynth.placement.lung_shape import Box
from lungsynth.placement.resolve import NodulePlacement
from lungsynth.types import HuPlane, LabelPlane, MaskPlane

__all__ = ["LungBackground", "NoduleMask", "Overlay", "VisibleNodule", "overlay"]

_DENSER_HU = 50.0  # a vessel is denser than the nodule by at least this much, and by twice the noise


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
    """A lung to lay nodules on.

    Args:
        hu: (H, W), left as it is.
        label: `Label` ids without nodules.
        spacing_mm: (row, column).
        texture: its noise and edges; None for nodules without noise, with the edges of their patches.
    """

    hu: HuPlane
    label: LabelPlane
    spacing_mm: tuple[float, float]
    texture: LungNoise | None = None

    @classmethod
    def of(
        cls, hu: HuPlane, mask: MaskPlane, *, spacing_mm: tuple[float, float], matched: bool = True
    ) -> "LungBackground":
        """A slice and its lung mask; `matched` measures its texture, which takes some milliseconds."""
        label = np.where(mask, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
        texture = measure_noise(hu, mask, spacing_mm=spacing_mm) if matched else None
        return cls(hu, label, spacing_mm, texture)


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
    findings: tuple[VisibleNodule, ...]


def overlay(
    lung: LungBackground,
    nodules: Sequence[tuple[NodulePlacement, ResampledNodule]],
    *,
    seed: int = 0,
    out: tuple[HuPlane, LabelPlane] | None = None,
) -> Overlay:
    """Blends nodules into a lung slice, one after the other.

    Args:
        lung: left as it is.
        nodules: where, and what (`stamp.make_stamp` at the lung's spacing).
        seed: of the noise.
        out: arrays to fill with image and label; new ones when None.

    Raises:
        InputError: when a nodule lies outside the slice.
    """
    image, label = out or (np.empty(lung.hu.shape, np.int16), np.empty(lung.hu.shape, np.uint8))
    np.copyto(image, lung.hu)
    np.copyto(label, lung.label)
    findings = []
    for index, (placement, stamp) in enumerate(nodules):
        window, part = _window(placement, stamp, image.shape)
        here = slice(window.row_from, window.row_to), slice(window.column_from, window.column_to)
        nodule = stamp.nodule[part]
        if not nodule.any():
            raise InputError(
                f"A nodule at ({placement.row_px:g}, {placement.col_px:g}) lies outside its slice of {image.shape} "
                "pixels. The catalogue belongs to other lungs: use the folder that it was planned with."
            )
        noise = _noise(lung.texture, placement, nodule.shape, _mix(seed * 0x9E3779B97F4A7C15 + index))
        image[here] = _blend(image[here], stamp, part, noise)
        label[here][nodule] = Label.NODULE
        findings.append(_finding(nodule, window, lung.spacing_mm))
    return Overlay(image, label, tuple(findings))


def _window(
    placement: NodulePlacement, stamp: ResampledNodule, shape: tuple[int, ...]
) -> tuple[Box, tuple[slice, slice]]:
    """Where a stamp falls on a slice, and the part of it that does."""
    top, left = math.floor(placement.row_px) + stamp.top, math.floor(placement.col_px) + stamp.left
    height, width = stamp.weight.shape
    box = Box(max(0, top), max(0, left), min(shape[0], top + height), min(shape[1], left + width))
    return box, (slice(box.row_from - top, box.row_to - top), slice(box.column_from - left, box.column_to - left))


class _Noise(NamedTuple):
    """Noise of one window: its amplitude in lung, what dense tissue has of it, and noise of an amplitude of 1."""

    hu: float
    dense_share: float
    unit: Float32[np.ndarray, "height width"]
    fine: float


def _noise(texture: LungNoise | None, placement: NodulePlacement, shape: tuple[int, ...], word: int) -> _Noise | None:
    amplitude_hu = 0.0 if texture is None else texture.noise_hu(placement.row_px, placement.col_px)
    if texture is None or amplitude_hu == 0:
        return None
    rows = np.arange(word % TILE_SIZE, word % TILE_SIZE + shape[0]) % TILE_SIZE
    begin = (word >> 32) % TILE_SIZE
    columns = np.arange(begin, begin + shape[1]) % TILE_SIZE
    unit = texture.tile[rows[:, None], columns].astype(np.float32)
    unit *= np.float32(1 / TILE_UNIT)
    return _Noise(amplitude_hu, texture.dense_share, unit, texture.fine)


def _mix(word: int) -> int:
    """Scatters the bits of a seed (the finaliser of splitmix64)."""
    mask = (1 << 64) - 1
    word &= mask
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
    word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
    return word ^ word >> 31


def _blend(base: np.ndarray, stamp: ResampledNodule, part: tuple[slice, slice], noise: _Noise | None) -> np.ndarray:
    lung, weight = base.astype(np.float32), stamp.weight[part]
    margin = np.float32(_DENSER_HU if noise is None else max(_DENSER_HU, 2 * noise.hu))
    change = stamp.hu[part] - lung
    denser = change + margin
    denser *= -1 / margin
    np.clip(denser, 0, 1, out=denser)
    replaced = weight - weight * denser
    change *= replaced
    if noise is not None:
        change += _top_up(replaced, stamp, part, noise)
    change += lung
    np.rint(change, out=change)
    np.clip(change, *CT_RANGE_HU, out=change)
    return np.where(weight > 0, change.astype(np.int16), base)


def _top_up(replaced: np.ndarray, stamp: ResampledNodule, part: tuple[slice, slice], noise: _Noise) -> np.ndarray:
    """Noise that brings the variance to its due; how much the nodule has itself is judged by its fine structure."""
    missing_hu = noise.hu * (1 - noise.dense_share)
    due_hu = noise.hu - missing_hu * stamp.core_density
    own = np.float32(min(1.0, (stamp.fine_hu / (noise.fine * due_hu)) ** 2))
    rest = 1 - replaced
    gain = 1 - rest * rest
    gain -= own * (replaced * replaced)
    np.maximum(gain, 0, out=gain)
    np.sqrt(gain, out=gain)
    gain *= np.float32(noise.hu) - np.float32(missing_hu) * stamp.density[part]
    gain *= noise.unit
    return gain


def _finding(nodule: np.ndarray, window: Box, spacing_mm: tuple[float, float]) -> VisibleNodule:
    rows, columns = np.flatnonzero(nodule.any(axis=1)), np.flatnonzero(nodule.any(axis=0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    box = Box(window.row_from + top, window.column_from + left, window.row_from + bottom, window.column_from + right)
    diameter_mm = float(disc_diameter(int(np.count_nonzero(nodule)) * spacing_mm[0] * spacing_mm[1]))
    return VisibleNodule(box, diameter_mm, nodule[top:bottom, left:right], window)
