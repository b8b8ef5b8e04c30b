"""Measurements of single samples: density, size, outline, noise and HU by tissue, of nodules and of lungs.

Each function returns arrays with a value a sample; NaN where a sample shows no nodule or no lung.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from lungsynth.grids import disc_diameter
from lungsynth.hounsfield import SOLID_HU
from lungsynth.similarity.samples import SampleKind, Samples
from lungsynth.types import HuPlanes

__all__ = ["lung_measurements", "nodule_measurements", "power_spectrum", "tissue_hu"]

_BONE_HU = 250
_AIR_LIMIT_HU = -400  # lung and airways are darker
_QUANTILES = (np.arange(32) + 0.5) / 32
_BINS = 16
_LUNG_CM2 = 10.0  # smaller pieces of a lung mask are no lung
_LEAST_PX = 3

Measured = dict[str, Float[np.ndarray, " n"]]
Single = Mapping[str, float]


def nodule_measurements(samples: Samples) -> Measured:
    """Diameter, density, noise, edge and outline of each nodule; the roundness of few pixels may exceed 1."""
    return _table([_nodule(hu, mask, samples.spacing_mm) for hu, mask in zip(samples.hu, samples.mask, strict=True)])


def lung_measurements(samples: Samples) -> Measured:
    """Area, density, noise, pieces, bone and agreement of image and mask of each slice."""
    return _table([_lung(hu, mask, samples.spacing_mm) for hu, mask in zip(samples.hu, samples.mask, strict=True)])


def tissue_hu(samples: Samples, kind: SampleKind) -> dict[str, Float[np.ndarray, "n quantiles"]]:
    """32 quantiles of the HU of each sample by tissue: nodule, rim and lung around; or lung and the rest."""
    mask = samples.mask.astype(np.float32)
    regions = (
        {"hu_nodule": mask >= 0.5, "hu_rim": (mask > 0.02) & (mask < 0.5), "hu_around": mask <= 0.02}
        if kind == "nodules"
        else {"hu_lung": mask >= 0.5, "hu_outside": mask < 0.5}
    )
    return {
        name: np.stack([_quantiles(hu[inside]) for hu, inside in zip(samples.hu, region, strict=True)])
        for name, region in regions.items()
    }


def power_spectrum(hu: HuPlanes) -> Float[np.ndarray, "n bins"]:
    """Radial power spectrum of each image in dB of HU^2: 16 rings up to Nyquist, after a Hann window."""
    size = hu.shape[-1]
    window = np.outer(np.hanning(size), np.hanning(size))
    images = hu.astype(np.float32)
    images = (images - images.mean(axis=(1, 2), keepdims=True)) * window
    power = np.abs(np.fft.rfft2(images)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * 2
    ring = np.minimum((radius * _BINS).astype(int), _BINS)
    means = np.stack([power[:, ring == index].mean(axis=1) for index in range(_BINS)], axis=1)
    return 10 * np.log10(np.maximum(means, 1e-3)).astype(np.float64)


def _nodule(hu: np.ndarray, soft: np.ndarray, spacing_mm: float) -> Single:
    mask, plane = soft >= 0.5, hu.astype(np.float32)
    if mask.sum() < _LEAST_PX:
        return dict.fromkeys(_NODULE, float("nan"))
    steep = np.hypot(*np.gradient(ndimage.gaussian_filter(plane, 0.7), spacing_mm))
    outline = mask & ~ndimage.binary_erosion(mask)
    perimeter, moments = _perimeter_px(mask), np.cov(np.argwhere(mask).T) + np.eye(2) / 12
    widths = np.sqrt(np.linalg.eigvalsh(moments))
    return {
        "diameter_mm": float(disc_diameter(mask.sum())) * spacing_mm,
        "mean_hu": float(plane[mask].mean()),
        "spread_hu": float(plane[mask].std()),
        "noise_hu": _noise_hu(plane, mask),
        "solid_fraction": float((plane[mask] > SOLID_HU).mean()),
        "edge_hu_per_mm": float(steep[outline].mean()),
        "roundness": float(4 * np.pi * mask.sum() / perimeter**2),
        "elongation": float(widths[1] / widths[0]),
        "convexity": _convexity(mask),
        "pieces": float(ndimage.label(mask)[1]),
    }


def _lung(hu: np.ndarray, soft: np.ndarray, spacing_mm: float) -> Single:
    mask, plane = soft >= 0.5, hu.astype(np.float32)
    if mask.sum() < _LEAST_PX:
        return dict.fromkeys(_LUNG, float("nan"))
    pieces, count = ndimage.label(mask)
    cm2 = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * spacing_mm**2 / 100
    return {
        "area_cm2": float(cm2.sum()),
        "mean_hu": float(plane[mask].mean()),
        "spread_hu": float(plane[mask].std()),
        "noise_hu": _noise_hu(plane, mask),
        "bone_share": float((plane > _BONE_HU).mean()),
        "dark_share_of_mask": float((plane[mask] < _AIR_LIMIT_HU).mean()),
        "lungs": float((cm2 >= _LUNG_CM2).sum()),
    }


_NODULE = (
    "diameter_mm",
    "mean_hu",
    "spread_hu",
    "noise_hu",
    "solid_fraction",
    "edge_hu_per_mm",
    "roundness",
    "elongation",
    "convexity",
    "pieces",
)
_LUNG = ("area_cm2", "mean_hu", "spread_hu", "noise_hu", "bone_share", "dark_share_of_mask", "lungs")


def _noise_hu(plane: np.ndarray, mask: np.ndarray) -> float:
    """Spread of what a Gaussian of one pixel takes away, inside the mask and off its edge where it is large enough."""
    core = ndimage.binary_erosion(mask, iterations=2)
    residual = plane - ndimage.gaussian_filter(plane, 1.0)
    return float(residual[core if core.sum() >= _LEAST_PX else mask].std())


def _perimeter_px(mask: np.ndarray) -> float:
    """Crofton's formula over four directions: crossings of the outline by parallel lines."""
    m = np.pad(mask, 1).astype(np.int8)
    straight = np.abs(np.diff(m, axis=0)).sum() + np.abs(np.diff(m, axis=1)).sum()
    oblique = np.abs(m[1:, 1:] - m[:-1, :-1]).sum() + np.abs(m[1:, :-1] - m[:-1, 1:]).sum()
    return float(np.pi / 8 * (straight + oblique / np.sqrt(2)))


def _convexity(mask: np.ndarray) -> float:
    """Area over the area of the convex hull of the pixels' corners."""
    corners = (np.argwhere(mask)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
    try:
        return float(mask.sum() / ConvexHull(corners).volume)
    except QhullError:
        return float("nan")


def _quantiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, _QUANTILES) if len(values) >= _LEAST_PX else np.full(len(_QUANTILES), np.nan)


def _table(rows: list[Single]) -> Measured:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]} if rows else {}
