"""What features may miss: HU by tissue, noise, size and outline, measured on each sample and compared as distributions.

The distance of a check is Wasserstein's of order one, in the check's own unit: how far a real value has to be moved,
on average, to make a generated one. It is never 0 for finite sets: read it beside the floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from evaluation.generation.measurements import lung_measurements, nodule_measurements, power_spectrum, tissue_hu
from lungsynth.similarity.samples import SampleKind, Samples

__all__ = ["Check", "CheckComparison", "compare_checks", "measure_checks"]

_STEPS = 256

UNITS: Mapping[str, str] = {
    "diameter_mm": "mm",
    "mean_hu": "HU",
    "spread_hu": "HU",
    "noise_hu": "HU",
    "edge_hu_per_mm": "HU/mm",
    "area_cm2": "cm2",
    "power_spectrum": "dB",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Check:
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
        return "HU" if self.name.startswith("hu_") else UNITS.get(self.name, "")

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which samples have the measurement."""
        return np.isfinite(self.values).all(axis=(1, 2))


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckComparison:
    """A check of real and of generated samples, as cumulative shares on one grid.

    Args:
        real: (N, distributions, steps).
        generated: (M, distributions, steps).
        step: of the grid, by distribution.
    """

    name: str
    unit: str
    real: Float[np.ndarray, "n distributions steps"]
    generated: Float[np.ndarray, "m distributions steps"]
    step: Float[np.ndarray, " distributions"]
    real_known: Bool[np.ndarray, " n"]
    generated_known: Bool[np.ndarray, " m"]

    def distance(self, real: Float[np.ndarray, " n"], generated: Float[np.ndarray, " m"]) -> float:
        """Mean over the distributions; weights say how often a sample was drawn. NaN where a side has no value."""
        w, v = real * self.real_known, generated * self.generated_known
        if not w.sum() or not v.sum():
            return float("nan")
        gap = np.tensordot(w / w.sum(), self.real, 1) - np.tensordot(v / v.sum(), self.generated, 1)
        return float((np.abs(gap).sum(axis=1) * self.step).mean())


def measure_checks(samples: Samples, kind: SampleKind) -> dict[str, Check]:
    """All checks of a set, by name."""
    measured: Callable[[Samples], dict[str, np.ndarray]] = (
        nodule_measurements if kind == "nodules" else lung_measurements
    )
    found = {name: Check(name=name, values=values[:, None, None]) for name, values in measured(samples).items()}
    for name, values in tissue_hu(samples, kind).items():
        found[name] = Check(name=name, values=values[:, None, :])
    found["power_spectrum"] = Check(name="power_spectrum", values=power_spectrum(samples.hu)[:, :, None])
    return found


def compare_checks(real: Check, generated: Check) -> CheckComparison:
    """Puts a check of two sets on one grid."""
    low = np.fmin(_lowest(real.values), _lowest(generated.values))
    high = np.fmax(_highest(real.values), _highest(generated.values))
    step = np.maximum(high - low, 1e-9) / (_STEPS - 1)
    grid = low[:, None] + step[:, None] * np.arange(_STEPS)
    return CheckComparison(
        name=real.name,
        unit=real.unit,
        real=_cumulative(real.values, grid),
        generated=_cumulative(generated.values, grid),
        step=step,
        real_known=real.known,
        generated_known=generated.known,
    )


def _lowest(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanmin(values, axis=(0, 2), initial=np.inf))


def _highest(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanmax(values, axis=(0, 2), initial=-np.inf))


def _cumulative(values: np.ndarray, grid: np.ndarray) -> Float[np.ndarray, "n distributions steps"]:
    """Share of a sample's values at or below each step; NaN counts nowhere."""
    found = np.zeros((*values.shape[:2], grid.shape[1]))
    for index in range(values.shape[1]):
        place = np.searchsorted(grid[index], values[:, index], side="left")
        for row, places in enumerate(place):
            counts = np.bincount(places, minlength=grid.shape[1] + 1)[: grid.shape[1]]
            found[row, index] = counts.cumsum() / values.shape[2]
    return found
