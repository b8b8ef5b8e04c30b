"""What features may miss: HU by tissue, noise, size and outline, measured on each sample and compared as distributions.

The distance of a check is the Wasserstein distance of order one, in the check's own unit: how far a real value has to
be moved, on average, to make a generated one. It is never 0 for finite sets: read it beside the floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from lungsynth.geometry import disc_diameter
from lungsynth.hounsfield import SOLID_HU
from lungsynth.similarity.samples import SampleKind, Samples
from lungsynth.types import HuPlanes

__all__ = [
    "CHECK_UNITS",
    "CheckComparison",
    "CtCheck",
    "compare_checks",
    "lung_measurements",
    "measure_checks",
    "nodule_measurements",
]

CHECK_UNITS: Mapping[str, str] = {
    "diameter_mm": "mm",
    "mean_hu": "HU",
    "spread_hu": "HU",
    "noise_hu": "HU",
    "edge_hu_per_mm": "HU/mm",
    "area_cm2": "cm2",
    "power_spectrum": "dB",
}
_GRID_STEPS = 256  # of the range of values on which distributions are compared; the error is below half a step
_BONE_HU = 250  # cortical and most trabecular bone are denser, contrast-free soft tissue is not
_AIR_LIMIT_HU = -400  # lung and airways are darker
_QUANTILES = (np.arange(32) + 0.5) / 32  # of the HU of a tissue in a sample
_SPECTRUM_RINGS = 16  # from 0 to the Nyquist frequency, equally wide
_MIN_LUNG_CM2 = 10.0  # of a connected component that counts as a lung; smaller ones are specks
_MIN_PX = 3  # of a mask that is measured: a line of two has no area
_RIM = (0.02, 0.5)  # of a nodule's soft mask: below the first it does not reach the image
_EDGE_SIGMA_PX = 0.7  # smoothing before the gradient, so that it is the outline's and not the noise's
_NOISE_SIGMA_PX = 1.0  # what a Gaussian of this width takes away counts as noise
_NOISE_MARGIN_PX = 2  # from the mask's border, whose edge is no noise
_MIN_POWER = 1e-3  # HU^2, so that the logarithm of a flat image is finite
_PIXEL_VARIANCE = 1 / 12  # of a pixel's own area, in pixels squared: a single row of pixels has a width

Measurements = dict[str, Float[np.ndarray, " n"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class CtCheck:
    """A measurement of N samples.

    Args:
        name: of the measurement.
        values: (N, distributions, values of one sample in one distribution); NaN where a sample has none.
    """

    name: str
    values: Float[np.ndarray, "n distributions values"]

    @property
    def unit(self) -> str:
        """Of its distance."""
        return "HU" if self.name.startswith("hu_") else CHECK_UNITS.get(self.name, "")

    @property
    def defined(self) -> Bool[np.ndarray, " n"]:
        """Which samples have the measurement."""
        return np.isfinite(self.values).all(axis=(1, 2))


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckComparison:
    """A check of real and of generated samples, as cumulative shares on one grid.

    Args:
        real: (N, distributions, steps).
        generated: (M, distributions, steps).
        step: of the grid, by distribution.
        real_defined: which real samples have the measurement.
        generated_defined: which generated ones.
    """

    name: str
    unit: str
    real: Float[np.ndarray, "n distributions steps"]
    generated: Float[np.ndarray, "m distributions steps"]
    step: Float[np.ndarray, " distributions"]
    real_defined: Bool[np.ndarray, " n"]
    generated_defined: Bool[np.ndarray, " m"]

    def distance(self, real: Float[np.ndarray, " n"], generated: Float[np.ndarray, " m"]) -> float:
        """Mean over the distributions; counts say how often a sample was drawn. NaN where a side has no value."""
        w, v = real * self.real_defined, generated * self.generated_defined
        if not w.sum() or not v.sum():
            return float("nan")
        gap = np.tensordot(w / w.sum(), self.real, 1) - np.tensordot(v / v.sum(), self.generated, 1)
        return float((np.abs(gap).sum(axis=1) * self.step).mean())


def measure_checks(samples: Samples, kind: SampleKind) -> dict[str, CtCheck]:
    """All checks of a set, by name."""
    measure: Callable[[Samples], Measurements] = nodule_measurements if kind == "nodules" else lung_measurements
    checks = {name: CtCheck(name=name, values=values[:, None, None]) for name, values in measure(samples).items()}
    for name, values in _tissue_hu(samples, kind).items():
        checks[name] = CtCheck(name=name, values=values[:, None, :])
    checks["power_spectrum"] = CtCheck(name="power_spectrum", values=_power_spectrum(samples.hu)[:, :, None])
    return checks


def compare_checks(real: CtCheck, generated: CtCheck) -> CheckComparison:
    """Puts a check of two sets on one grid."""
    low = np.fmin(_lowest(real.values), _lowest(generated.values))
    high = np.fmax(_highest(real.values), _highest(generated.values))
    step = np.maximum(high - low, 1e-9) / (_GRID_STEPS - 1)
    grid = low[:, None] + step[:, None] * np.arange(_GRID_STEPS)
    return CheckComparison(
        name=real.name,
        unit=real.unit,
        real=_cumulative(real.values, grid),
        generated=_cumulative(generated.values, grid),
        step=step,
        real_defined=real.defined,
        generated_defined=generated.defined,
    )


def _lowest(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanmin(values, axis=(0, 2), initial=np.inf))


def _highest(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanmax(values, axis=(0, 2), initial=-np.inf))


def _cumulative(values: np.ndarray, grid: np.ndarray) -> Float[np.ndarray, "n distributions steps"]:
    """Share of a sample's values at or below each step; NaN counts nowhere."""
    shares = np.zeros((*values.shape[:2], grid.shape[1]))
    for index in range(values.shape[1]):
        steps = np.searchsorted(grid[index], values[:, index], side="left")
        for row, of_sample in enumerate(steps):
            counts = np.bincount(of_sample, minlength=grid.shape[1] + 1)[: grid.shape[1]]
            shares[row, index] = counts.cumsum() / values.shape[2]
    return shares


# Measurements: a value for each sample, NaN where it shows no nodule or no lung.


def nodule_measurements(samples: Samples) -> Measurements:
    """Diameter, density, noise, edge and outline of each nodule; the roundness of few pixels may exceed 1."""
    return _columns([_nodule(hu, mask, samples.spacing_mm) for hu, mask in zip(samples.hu, samples.mask, strict=True)])


def lung_measurements(samples: Samples) -> Measurements:
    """Area, density, noise, components, bone and agreement of image and mask of each slice."""
    return _columns([_lung(hu, mask, samples.spacing_mm) for hu, mask in zip(samples.hu, samples.mask, strict=True)])


def _tissue_hu(samples: Samples, kind: SampleKind) -> dict[str, Float[np.ndarray, "n quantiles"]]:
    """32 quantiles of the HU of each sample by tissue: nodule, rim and lung around; or lung and the rest."""
    mask, (faint, half) = samples.mask.astype(np.float32), _RIM
    regions = (
        {"hu_nodule": mask >= half, "hu_rim": (mask > faint) & (mask < half), "hu_around": mask <= faint}
        if kind == "nodules"
        else {"hu_lung": mask >= half, "hu_outside": mask < half}
    )
    return {
        name: np.stack([_quantiles(hu[inside]) for hu, inside in zip(samples.hu, region, strict=True)])
        for name, region in regions.items()
    }


def _power_spectrum(hu: HuPlanes) -> Float[np.ndarray, "n rings"]:
    """Radial power spectrum of each image in dB of HU^2: 16 rings up to Nyquist, after a Hann window."""
    size = hu.shape[-1]
    window = np.outer(np.hanning(size), np.hanning(size))
    images = hu.astype(np.float32)
    images = (images - images.mean(axis=(1, 2), keepdims=True)) * window
    power = np.abs(np.fft.rfft2(images)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * 2
    ring = np.minimum((radius * _SPECTRUM_RINGS).astype(int), _SPECTRUM_RINGS)
    means = np.stack([power[:, ring == index].mean(axis=1) for index in range(_SPECTRUM_RINGS)], axis=1)
    return 10 * np.log10(np.maximum(means, _MIN_POWER)).astype(np.float64)


def _nodule(hu: np.ndarray, soft_mask: np.ndarray, spacing_mm: float) -> Mapping[str, float]:
    mask, plane = soft_mask >= 0.5, hu.astype(np.float32)
    if mask.sum() < _MIN_PX:
        return dict.fromkeys(_NODULE_NAMES, float("nan"))
    gradient = np.hypot(*np.gradient(ndimage.gaussian_filter(plane, _EDGE_SIGMA_PX), spacing_mm))
    outline = mask & ~ndimage.binary_erosion(mask)
    perimeter, moments = _perimeter_px(mask), np.cov(np.argwhere(mask).T) + np.eye(2) * _PIXEL_VARIANCE
    widths = np.sqrt(np.linalg.eigvalsh(moments))
    return {
        "diameter_mm": float(disc_diameter(mask.sum())) * spacing_mm,
        "mean_hu": float(plane[mask].mean()),
        "spread_hu": float(plane[mask].std()),
        "noise_hu": _noise_hu(plane, mask),
        "solid_fraction": float((plane[mask] > SOLID_HU).mean()),
        "edge_hu_per_mm": float(gradient[outline].mean()),
        "roundness": float(4 * np.pi * mask.sum() / perimeter**2),
        "elongation": float(widths[1] / widths[0]),
        "convexity": _convexity(mask),
        "pieces": float(ndimage.label(mask)[1]),
    }


def _lung(hu: np.ndarray, soft_mask: np.ndarray, spacing_mm: float) -> Mapping[str, float]:
    mask, plane = soft_mask >= 0.5, hu.astype(np.float32)
    if mask.sum() < _MIN_PX:
        return dict.fromkeys(_LUNG_NAMES, float("nan"))
    components, count = ndimage.label(mask)
    cm2 = np.bincount(components.ravel(), minlength=count + 1)[1:] * spacing_mm**2 / 100
    return {
        "area_cm2": float(cm2.sum()),
        "mean_hu": float(plane[mask].mean()),
        "spread_hu": float(plane[mask].std()),
        "noise_hu": _noise_hu(plane, mask),
        "bone_share": float((plane > _BONE_HU).mean()),
        "dark_share_of_mask": float((plane[mask] < _AIR_LIMIT_HU).mean()),
        "lungs": float((cm2 >= _MIN_LUNG_CM2).sum()),
    }


_NODULE_NAMES = (
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
_LUNG_NAMES = ("area_cm2", "mean_hu", "spread_hu", "noise_hu", "bone_share", "dark_share_of_mask", "lungs")


def _noise_hu(plane: np.ndarray, mask: np.ndarray) -> float:
    """Spread of what a Gaussian takes away, inside the mask and off its edge where it is large enough."""
    core = ndimage.binary_erosion(mask, iterations=_NOISE_MARGIN_PX)
    residual = plane - ndimage.gaussian_filter(plane, _NOISE_SIGMA_PX)
    return float(residual[core if core.sum() >= _MIN_PX else mask].std())


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
    return np.quantile(values, _QUANTILES) if len(values) >= _MIN_PX else np.full(len(_QUANTILES), np.nan)


def _columns(rows: list[Mapping[str, float]]) -> Measurements:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]} if rows else {}
