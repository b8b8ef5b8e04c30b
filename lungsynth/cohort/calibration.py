"""Brings 8-bit crops of CT, min-max scaled a slice, back to HU.

A grey level g in 0..255 is linear in HU, HU = low + gain * g, with a low and a gain of its own in each slice: low is
the smallest value of the whole slice (air, about -1000, or the scanner's padding), low + 255 * gain its largest (bone,
metal). Neither is in the crop, but lung and soft tissue are. We take the most probable (low, gain) under a fixed
mixture of what 45 mm around a nodule hold (lung, soft tissue, partial volume, bone, air) and a prior on the range.
How far off it is stands in docs/results/hu_calibration.md, measured against the HU cubes of the same nodules.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["Calibration", "estimate_calibration"]

GREYS = np.arange(256)
AIR_LOWS_HU = np.arange(-1040, -899, 20)
PADDING_LOWS_HU = np.array([-2048, -3024])  # GE's and Siemens's fill outside the scan circle
GAINS = np.geomspace(4, 18, 60)  # HU a grey level: ranges of 1,000 to 4,600 HU
EVIDENCE_PIXELS = 10  # neighbouring pixels repeat each other: a crop counts as this many independent ones


@dataclass(frozen=True)
class Calibration:
    """HU = low_hu + gain * grey."""

    low_hu: float
    gain: float

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError(f"gain must be positive, got {self.gain:g}")

    def to_hu(self, grey: np.ndarray) -> np.ndarray:
        """HU (float32) of grey levels, any shape."""
        return (self.low_hu + self.gain * grey.astype(np.float32)).astype(np.float32)


def estimate_calibration(grey: UInt8[np.ndarray, "height width"]) -> Calibration:
    """Most probable calibration of one crop, from its grey levels alone."""
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    lows, log_likelihood, log_prior = _tables()
    score = EVIDENCE_PIXELS * (log_likelihood @ share) + log_prior
    low_index, gain_index = np.unravel_index(score.argmax(), score.shape)
    return Calibration(low_hu=float(lows[low_index]), gain=float(GAINS[gain_index]))


@cache
def _tables() -> tuple[
    Float[np.ndarray, " lows"], Float[np.ndarray, "lows gains greys"], Float[np.ndarray, "lows gains"]
]:
    """Candidate lows, log p(grey | low, gain) and log p(low, gain)."""
    lows = np.concatenate([AIR_LOWS_HU, PADDING_LOWS_HU]).astype(np.float64)
    hu = lows[:, None, None] + GAINS[:, None] * GREYS
    density = (
        0.50 * _normal(hu, mean=-850, spread=70)  # lung
        + 0.15 * _normal(hu, mean=20, spread=60)  # muscle, blood, solid nodules
        + 0.25 * np.where((hu > -1000) & (hu < 150), 1 / 1150, 1e-7)  # partial volume, vessels, ground glass
        + 0.05 * np.where((hu > 100) & (hu < 900), 1 / 800, 1e-7)  # bone, calcium
        + 0.05 * _normal(hu, mean=-1000, spread=20)  # air
    )
    log_likelihood = np.log(density * GAINS[:, None] + 1e-9)
    log_low = np.concatenate([-0.5 * ((AIR_LOWS_HU + 1000) / 20) ** 2 + np.log(0.85 / 4), np.log([0.10, 0.04])])
    high = np.maximum(lows[:, None] + 255 * GAINS, 50)
    log_prior = log_low[:, None] - 0.5 * (np.log((high + 1000) / 2050) / 0.16) ** 2
    return lows, log_likelihood, log_prior


def _normal(x: np.ndarray, *, mean: float, spread: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
