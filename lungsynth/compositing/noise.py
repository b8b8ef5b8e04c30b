"""Noise and sharpness of a lung slice, measured so that nodules laid on it can be given the same.

Noise is measured in blocks of 8 x 8 pixels inside the lungs, after a plane is taken out of each. Blocks with vessels
vary more than those without, so the noise level around a place is the lower quartile of the blocks near it. The
quietest quarter of all blocks gives the covariance between neighbouring pixels; a tile of noise with that covariance
stands for the scanner's kernel. Part of what varies in lung is fine anatomy, which a solid nodule does not have: the
blocks of soft tissue between the lungs tell how much is noise. Sharpness is measured where the lungs meet what
surrounds them, as the width of the Gaussian that would blur a step like that.

Sums are of integers, so the numbers are the same on every machine. All constants below decide over the pixels of
rendered samples: another value renders existing catalogues differently.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from einops import rearrange
from jaxtyping import Int16, Int64

from lungsynth.types import HuPlane, MaskPlane

__all__ = [
    "MEDIAN_OF_NORMAL",
    "TILE_PX",
    "TILE_UNIT",
    "LungNoise",
    "fourth_difference",
    "measure_noise",
    "slice_correlation",
]

MEDIAN_OF_NORMAL = 0.6745  # median of |x| of a standard normal: turns a median into a standard deviation
TILE_PX = 128  # width of a tile of noise, which repeats; more than a nodule's window, so that no repeat is seen
TILE_UNIT = 256  # a standard deviation of 1 in a tile, as int16

_BLOCK_PX = 8  # width of a block: 61 degrees of freedom, and small enough to lie between vessels
_NEAR_BLOCKS = 3  # on each side of a place: 56 pixels around it; more would average over the lung's zones
_MIN_BLOCKS = 5  # near a place; with fewer, its level is that of the whole slice
_QUARTILE = 0.25  # of blocks: those without vessels
_MAX_LEVEL = 32000  # of a block, 1/16 HU (2,000 HU): the largest that int16 holds, less some
_TISSUE_HU = (-150, 250)  # range of blocks of soft tissue: fat to muscle and blood, without lung and bone
_MIN_TISSUE_BLOCKS = 20  # with fewer, tissue is taken to be as noisy as lung
_MIN_DENSE_SHARE = 0.6  # of the lung's noise, in dense tissue: no nodule turns flat where a scanner smoothed tissue
_COMMON = 1344  # makes the residual of a plane through a block integer: lcm(64, 8 * 168)
_LAG_PX = 3  # up to which covariances are measured; kernels of CT correlate over two or three pixels
_SPECTRUM = 16  # side of the torus on which the filter is computed, at least 2 * (2 * _LAG_PX + 1)
_TAPER = (1.0, 1.0, 0.8, 0.4)  # factor of a covariance by its lag: far ones are few and unsure
_KERNEL_UNIT = 1024  # a tap of 1, as integer
_MIN_STEP_HU = 400  # edges lower than this tell little of sharpness; lung to chest wall is about 850 HU
_PROFILE_PX = 8  # length of a profile across an edge; the mean of two pixels at each end gives the step
_SQRT_2_PI = 2.5066  # step = sqrt(2 pi) sigma slope for a blurred step; rounded, and rendered samples depend on it


@dataclass(frozen=True, eq=False, kw_only=True)
class LungNoise:
    """Noise and sharpness of a slice, made by `measure_noise`.

    Args:
        block_hu: noise level of the blocks, 1/16 HU; -1 where a block does not lie in the lungs.
        origin_px: (row, column) of the first block.
        whole_hu: noise level of the slice as a whole, HU.
        dense_share: noise of soft tissue as a share of that in lung, in [0.6, 1]; 1 when there is no tissue to measure.
        tile: noise with the lung's covariance and a standard deviation of `TILE_UNIT`; it repeats without an edge.
        fine: standard deviation of the tile's `fourth_difference`, as a share of the tile's own.
        edge_mm: standard deviation of the Gaussian that blurs the sharper edges; 0 when there are none to measure.
    """

    block_hu: Int16[np.ndarray, "rows columns"]
    origin_px: tuple[int, int]
    whole_hu: float
    dense_share: float
    tile: Int16[np.ndarray, "128 128"]
    fine: float
    edge_mm: float

    def noise_hu(self, row_px: float, col_px: float) -> float:
        """Standard deviation of the noise around a place, HU."""
        row = int(row_px - self.origin_px[0]) // _BLOCK_PX
        column = int(col_px - self.origin_px[1]) // _BLOCK_PX
        near = self.block_hu[
            max(0, row - _NEAR_BLOCKS) : max(0, row + _NEAR_BLOCKS + 1),
            max(0, column - _NEAR_BLOCKS) : max(0, column + _NEAR_BLOCKS + 1),
        ]
        levels = np.sort(near[near >= 0])
        if len(levels) < _MIN_BLOCKS:
            return self.whole_hu
        return _quartile(levels) / 16


def measure_noise(hu: HuPlane, mask: MaskPlane, *, spacing_mm: tuple[float, float]) -> LungNoise:
    """Measures a lung slice.

    Args:
        hu: (H, W).
        mask: (H, W), true in lung.
        spacing_mm: (row, column).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    height, width = ((int(at[-1]) + 1 - int(at[0])) // _BLOCK_PX * _BLOCK_PX for at in (rows, columns))
    lungs = slice(top, top + height), slice(left, left + width)
    blocks, inside = _blocks(hu[lungs]), _blocks(mask[lungs]).all(axis=-1)
    residual = _residuals(blocks[inside])
    level = _levels(residual)
    tile = _matched_tile(residual[np.argsort(level, kind="stable")[: math.ceil(_QUARTILE * len(residual))]])
    expected = _quartile(np.sort(_levels(_residuals(_blocks(tile).reshape(-1, _BLOCK_PX**2))))) / TILE_UNIT
    block_hu = np.full(inside.shape, -1, dtype=np.int16)
    block_hu[inside] = np.minimum(np.rint(level / expected * 16), _MAX_LEVEL)
    whole_hu = _quartile(np.sort(block_hu[inside])) / 16
    return LungNoise(
        block_hu=block_hu,
        origin_px=(top, left),
        whole_hu=whole_hu,
        dense_share=_dense_share(blocks[~inside], whole_hu * expected),
        tile=tile,
        fine=_fine(tile),
        edge_mm=_edge_mm(hu, mask, spacing_mm),
    )


def slice_correlation(first: HuPlane, second: HuPlane, mask: MaskPlane) -> float:
    """Correlation of the noise of two neighbouring slices, in [0, 1], in sixteenths; 0 where there is none to measure.

    Args:
        first: (H, W).
        second: likewise.
        mask: (H, W), true in lung on both.
    """
    height, width = (size // _BLOCK_PX * _BLOCK_PX for size in mask.shape)
    inside = _blocks(mask[:height, :width]).all(axis=-1)
    residuals = [_residuals(_blocks(plane[:height, :width])[inside]) >> 4 for plane in (first, second)]
    # Blocks that are quiet on both slices: what goes on from one slice to the next elsewhere is vessels.
    level = np.maximum(*((residual * residual).sum(axis=-1) for residual in residuals))
    quiet = np.argsort(level, kind="stable")[: math.ceil(_QUARTILE * len(level))]
    one, other = (residual[quiet] for residual in residuals)
    squares = [int((residual * residual).sum()) for residual in (one, other)]
    if not all(squares):
        return 0.0
    return max(0, round(16 * int((one * other).sum()) / math.sqrt(squares[0] * squares[1]))) / 16


def fourth_difference(plane: np.ndarray) -> np.ndarray:
    """Second difference along rows, then along columns, (H - 2, W - 2): the fine structure, without edges' slopes."""
    rows = plane[2:] - 2 * plane[1:-1] + plane[:-2]
    return np.asarray(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2])


def _blocks(plane: np.ndarray) -> np.ndarray:
    return rearrange(plane, "(r a) (c b) -> r c (a b)", a=_BLOCK_PX, b=_BLOCK_PX)


def _quartile(ordered: np.ndarray) -> float:
    return float(ordered[int(_QUARTILE * (len(ordered) - 1))]) if len(ordered) else 0.0


def _levels(residual: np.ndarray) -> np.ndarray:
    """Standard deviation of blocks, in the unit of their pixels."""
    squares = (residual * residual).sum(axis=-1, dtype=np.int64)
    return np.sqrt(squares / ((_BLOCK_PX**2 - 3) * _COMMON**2))


def _residuals(blocks: np.ndarray) -> Int64[np.ndarray, "blocks 64"]:
    """Blocks less their mean and slopes, times `_COMMON`."""
    values = blocks.astype(np.int64)
    along = np.arange(1 - _BLOCK_PX, _BLOCK_PX, 2)  # -7, -5 .. 7
    down, across = np.repeat(along, _BLOCK_PX), np.tile(along, _BLOCK_PX)
    sums = [(values * weight).sum(axis=-1, keepdims=True) for weight in (np.int64(21), down, across)]
    return _COMMON * values - sums[0] - down * sums[1] - across * sums[2]


def _dense_share(blocks: np.ndarray, lung_hu: float) -> float:
    tissue = blocks[(blocks.min(axis=-1) > _TISSUE_HU[0]) & (blocks.max(axis=-1) < _TISSUE_HU[1])]
    quietest = _quartile(np.sort(_levels(_residuals(tissue))))
    # Without any noise it is no scan's tissue but painted, and tells nothing.
    if len(tissue) < _MIN_TISSUE_BLOCKS or quietest == 0 or lung_hu == 0:
        return 1.0
    return min(1.0, max(_MIN_DENSE_SHARE, round(quietest / lung_hu * 64) / 64))


def _matched_tile(residual: np.ndarray) -> Int16[np.ndarray, "128 128"]:
    """Noise whose blocks have the covariance of these, once a plane is taken out of them too."""
    if not residual.any():
        return _tile(((_KERNEL_UNIT,),))
    wanted = _covariance(residual)
    first = _tile(_kernel(wanted))
    # The plane takes the slow part of the noise with it: what it took from the tile is given back.
    measured = _covariance(_residuals(_blocks(first).reshape(-1, _BLOCK_PX**2)))
    return _tile(_kernel(2 * wanted - measured))


def _covariance(residual: np.ndarray) -> np.ndarray:
    """Between pixels up to `_LAG_PX` apart, of a variance of 1, on a torus of 16 x 16."""
    # Shortened, so that sums of the largest products still fit; what is lost is 1/84 HU.
    planes = rearrange(residual >> 4, "n (a b) -> n a b", a=_BLOCK_PX)
    covariance = np.zeros((_SPECTRUM, _SPECTRUM))
    for down in range(_LAG_PX + 1):
        for across in range(-_LAG_PX, _LAG_PX + 1):
            first = planes[:, : _BLOCK_PX - down, max(0, -across) : _BLOCK_PX - max(0, across)]
            second = planes[:, down:, max(0, across) : _BLOCK_PX + min(0, across)]
            value = int((first * second).sum(dtype=np.int64)) / first.size
            covariance[down, across] = covariance[-down, -across] = value
    return covariance / covariance[0, 0]


def _kernel(covariance: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Taps (7 x 7, in 1/1024) of the filter that gives white noise this covariance."""
    taper = np.zeros(_SPECTRUM)
    taper[: _LAG_PX + 1] = _TAPER
    taper[-_LAG_PX:] = _TAPER[:0:-1]
    amplitude = np.sqrt(np.maximum(np.fft.fft2(covariance * taper[:, None] * taper[None, :]).real, 0))
    taps = np.roll(np.fft.ifft2(amplitude).real, (_LAG_PX, _LAG_PX), (0, 1))[: 2 * _LAG_PX + 1, : 2 * _LAG_PX + 1]
    whole = np.rint(taps / math.sqrt((taps * taps).sum()) * _KERNEL_UNIT).astype(int)
    return tuple(tuple(row) for row in whole.tolist())


@cache
def _white() -> np.ndarray:
    """White noise, a sum of eight bytes a pixel: nearly Gaussian, and of the raw stream, which never changes."""
    raw = np.random.PCG64(20231).random_raw(TILE_PX * TILE_PX)  # any seed would do
    # Little-endian or not, the sum of the bytes is the same.
    total = raw.view(np.uint8).reshape(TILE_PX, TILE_PX, 8).sum(axis=-1, dtype=np.int32)
    return total - np.int32(1020)  # the mean of eight bytes, 8 * 127.5


def _tile(kernel: tuple[tuple[int, ...], ...]) -> Int16[np.ndarray, "128 128"]:
    white, radius = _white(), len(kernel) // 2
    extended = np.pad(white, radius, mode="wrap")
    total = np.zeros_like(white)
    for down, row in enumerate(kernel):
        for across, tap in enumerate(row):
            if tap:
                total += np.int32(tap) * extended[down : down + TILE_PX, across : across + TILE_PX]
    squares = int((total.astype(np.int64) ** 2).sum())
    return np.rint(total / math.sqrt(squares / TILE_PX**2) * TILE_UNIT).astype(np.int16)


def _fine(tile: np.ndarray) -> float:
    fine = fourth_difference(tile.astype(np.int64))
    return math.sqrt(int((fine * fine).sum()) / fine.size) / TILE_UNIT


def _edge_mm(hu: HuPlane, mask: MaskPlane, spacing_mm: tuple[float, float]) -> float:
    widths = np.sort(np.concatenate([_widths(hu.T, mask.T) * spacing_mm[0], _widths(hu, mask) * spacing_mm[1]]))
    # The sharper ones: where the edge is square to the row or column, and to the slice.
    return round(_quartile(widths) * 16) / 16


def _widths(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Standard deviations of the Gaussians that blur the edges along rows, in pixels: step / (sqrt(2 pi) slope)."""
    half = _PROFILE_PX // 2
    rows, columns = np.nonzero(mask[:, half : 1 - half] != mask[:, half - 1 : -half])
    profile = hu[rows[:, None], columns[:, None] + np.arange(_PROFILE_PX)].astype(np.int32)
    step = np.abs(profile[:, :2].sum(axis=1) - profile[:, -2:].sum(axis=1)) / 2
    slope = np.abs(np.diff(profile, axis=1)).max(axis=1, initial=1)
    high = step >= _MIN_STEP_HU
    return step[high] / (_SQRT_2_PI * slope[high])
