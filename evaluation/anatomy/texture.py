"""Fine structure of the parenchyma: noise, power spectrum, and patches of lung at full resolution."""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from evaluation.anatomy.outline import PIXEL_MM
from evaluation.anatomy.vessels import ridge_strength

__all__ = ["PATCH_PX", "fine_structure", "lung_patches", "noise_hu", "patch_features"]

PATCH_PX = 48  # 33.6 mm: larger ones hardly fit between hilum and pleura
_STEP_PX = 12
_LUNG_SHARE = 0.9  # of a patch
_SPECTRUM_PX = 32
_SPECTRUM_SHARE = 0.98
_FINE_PER_MM = (0.5, 0.714)  # cycles: what a grid of 1.4 mm cannot hold; the end is that of 0.7 mm
_SLOPE_PER_MM = (0.06, 0.6)
_RINGS = 10
_DENSE_HU = -300.0  # vessels' walls against air would hide the parenchyma in a spectrum
_NOISE_SIGMA_PX = 1.0
_WHITE_SHARE = 0.872  # of white noise's deviation that is left when a Gaussian of 1 px is taken away
_MAD = 1.4826  # from median absolute deviation to standard deviation
_PARENCHYMA_HU = -600.0
_MIN_PX = 500
_PATCH_RINGS = 8
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TAILS = (0.5, 0.75, 0.9, 0.97)

_Plane = Float[np.ndarray, "height width"]
_Mask = Bool[np.ndarray, "height width"]


def noise_hu(hu: _Plane, core: _Mask, quiet: _Mask) -> float:
    """Standard deviation of white noise that would leave as much after taking away a Gaussian of one pixel.

    Args:
        hu: the slice.
        core: the lung without its rim.
        quiet: where no vessel is near.
    """
    residual = hu - ndimage.gaussian_filter(hu, _NOISE_SIGMA_PX)
    parenchyma = core & (hu < _PARENCHYMA_HU)
    measured = parenchyma & quiet if (parenchyma & quiet).sum() >= _MIN_PX else core
    values = residual[measured]
    return float(_MAD * np.median(np.abs(values - np.median(values))) / _WHITE_SHARE)


def fine_structure(hu: _Plane, core: _Mask) -> tuple[float, float]:
    """Share of the finest structures in the power of the lung, in dB, and slope of the spectrum; NaN in a small lung.

    Median over windows of 22 mm. The slope is that of the logarithm of power over the logarithm of frequency.
    """
    places = _windows(core, _SPECTRUM_PX, _SPECTRUM_PX // 2, _SPECTRUM_SHARE)
    if not len(places):
        return float("nan"), float("nan")
    view = sliding_window_view(np.minimum(hu, _DENSE_HU), (_SPECTRUM_PX, _SPECTRUM_PX))
    windows = view[places[:, 0], places[:, 1]].astype(np.float32)
    taper = np.outer(np.hanning(_SPECTRUM_PX + 1)[:-1], np.hanning(_SPECTRUM_PX + 1)[:-1])
    windows = windows - (windows * taper).sum(axis=(1, 2), keepdims=True) / taper.sum()
    power = np.abs(np.fft.fft2(windows * taper)) ** 2
    axis = np.fft.fftfreq(_SPECTRUM_PX, PIXEL_MM)
    frequency = np.hypot(axis[:, None], axis[None])
    fine = (frequency >= _FINE_PER_MM[0]) & (frequency <= _FINE_PER_MM[1])
    share = power[:, fine].sum(axis=1) / np.maximum(power[:, frequency > 0].sum(axis=1), 1e-6)
    return float(np.median(10 * np.log10(np.maximum(share, 1e-9)))), _slope(np.median(power, axis=0), frequency)


def lung_patches(hu: _Plane, core: _Mask, *, count: int, seed: int) -> Float[np.ndarray, "n size size"]:
    """Patches of lung, at most `count` of those on a grid of 8 mm that show little else, drawn by seed."""
    places = _windows(core, PATCH_PX, _STEP_PX, _LUNG_SHARE)
    if len(places) > count:
        places = places[np.sort(np.random.default_rng(seed).choice(len(places), count, replace=False))]
    if not len(places):
        return np.zeros((0, PATCH_PX, PATCH_PX), dtype=np.float32)
    view = sliding_window_view(hu, (PATCH_PX, PATCH_PX))
    return np.ascontiguousarray(view[places[:, 0], places[:, 1]], dtype=np.float32)


def _windows(core: _Mask, size: int, step: int, share: float) -> np.ndarray:
    """Corners of the windows of which at least a share lies in the core, (n, 2)."""
    if min(core.shape) < size:
        return np.zeros((0, 2), dtype=np.int64)
    total = np.pad(core.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return np.argwhere(inside[::step, ::step] >= share * size**2) * step


def _slope(power: np.ndarray, frequency: np.ndarray) -> float:
    edges = np.geomspace(*_SLOPE_PER_MM, _RINGS + 1)
    rings = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    used = [(np.log10(frequency[ring].mean()), np.log10(power[ring].mean() + 1e-3)) for ring in rings if ring.any()]
    x, y = np.array(used).T
    return float(np.polyfit(x, y, 1)[0])


def patch_features(patches: Float[np.ndarray, "p size size"]) -> Float[np.ndarray, "p features"]:
    """What a patch of lung looks like: HU, spectrum, ridges, edges, residuals."""
    if not len(patches):
        return np.zeros((0, len(_QUANTILES) + _PATCH_RINGS + 3 * len(_TAILS) + 3), dtype=np.float64)
    return np.stack([_features(patch) for patch in patches])


def _features(patch: np.ndarray) -> np.ndarray:
    size = len(patch)
    taper = np.outer(np.hanning(size), np.hanning(size))
    level = patch - (patch * taper).sum() / taper.sum()
    power = np.abs(np.fft.rfft2(level * taper)) ** 2
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    edges = np.linspace(0.01, 0.5, _PATCH_RINGS + 1)
    rings = [np.log10(power[(radius >= a) & (radius < b)].mean() + 1e-3) for a, b in pairwise(edges)]
    residual = patch - ndimage.gaussian_filter(patch, 1.0)
    strength = ridge_strength(patch)
    gradient = ndimage.gaussian_gradient_magnitude(patch, 0.7)
    tails = [np.quantile(np.abs(one), _TAILS) for one in (residual, strength, gradient)]
    scale = residual.std() + 1e-3
    right, down = residual[:, 1:], residual[1:]
    shape = [
        ((residual / scale) ** 4).mean(),
        (right * residual[:, :-1]).mean() / scale**2,
        (down * residual[:-1]).mean() / scale**2,
    ]
    return np.concatenate([np.quantile(patch, _QUANTILES), rings, *tails, shape])
