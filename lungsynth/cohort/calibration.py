"""Brings 8-bit crops of CT, min-max scaled a slice, back to HU.

A grey level g in 0..255 is linear in HU, HU = low + gain * g, with a low and a gain of its own in each slice: low is
the smallest value of the whole slice (air, about -1000, or the scanner's padding), low + 255 * gain its largest (bone,
metal). Neither is in the crop, but lung and soft tissue are. We take the most probable (low, gain) under a fixed
mixture of what 45 mm around a nodule hold (lung, soft tissue, partial volume, bone, air) and a prior on the range.

How far off it is stands in docs/results/hu_calibration.md, measured against HU cubes of the same nodules: a crop is
laid over the cubes of its patient by normalised cross-correlation; where they match, the straight line from grey to HU
is the truth, and the estimate (from the crop alone) is compared with it at three levels of HU. The trivial baseline
gives each crop the same range, the median one.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from tqdm import tqdm

__all__ = ["LEVELS_HU", "Calibration", "Match", "compare_with_cubes", "estimate_calibration", "match_crops"]

GREYS = np.arange(256)
AIR_LOWS_HU = np.arange(-1040, -899, 20)
PADDING_LOWS_HU = np.array([-2048, -3024])  # GE's and Siemens's fill outside the scan circle
GAINS = np.geomspace(4, 18, 60)  # HU a grey level: ranges of 1,000 to 4,600 HU
LEVELS_HU = {"lung": -870, "ground glass": -400, "soft tissue": 40}
MIN_CORRELATION = 0.975
TEMPLATE_PX = 24
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


MEDIAN_CALIBRATION = Calibration(low_hu=-1005, gain=8.0)  # the trivial baseline: one range for all


@dataclass(frozen=True, kw_only=True)
class Match:
    """A crop that was found in a cube: its estimated and its true calibration."""

    patient: str
    row: int
    correlation: float
    estimate: Calibration
    truth: Calibration


def compare_with_cubes(crops: Path, cubes: Path) -> pd.DataFrame:
    """Errors in HU: one line a level and method, with n, bias, median and 90th percentile of the absolute error."""
    matches = match_crops(crops, cubes)
    methods = {"estimated from the crop": None, "one range for all (baseline)": MEDIAN_CALIBRATION}
    lines = []
    for method, fixed in methods.items():
        for level, hu in LEVELS_HU.items():
            greys = [(hu - m.truth.low_hu) / m.truth.gain for m in matches]
            calibrations = [fixed or m.estimate for m in matches]
            errors = np.array([c.low_hu + c.gain * g - hu for c, g in zip(calibrations, greys, strict=True)])
            lines.append(
                {
                    "method": method,
                    "level": level,
                    "hu": hu,
                    "n": len(errors),
                    "bias_hu": float(np.median(errors)),
                    "median_error_hu": float(np.median(np.abs(errors))),
                    "p90_error_hu": float(np.quantile(np.abs(errors), 0.9)),
                }
            )
    return pd.DataFrame(lines)


def match_crops(crops: Path, cubes: Path) -> list[Match]:
    """Finds, for each cube of a known patient, the crop that shows the same nodule (at most one a cube)."""
    index, cube_index = pd.read_csv(crops / "index.csv"), pd.read_csv(cubes / "index.csv")
    with np.load(sorted(crops.glob("*_64.npz"))[0]) as arrays:
        images = dict(zip(arrays["row"].tolist(), arrays["image"], strict=True))
    with np.load(cubes / "cubes.npz") as arrays:
        volumes = arrays["hu"]
    largest = index.loc[index.groupby(["patient", "nodule"])["px_majority"].idxmax()]
    matches = []
    for cube in tqdm(cube_index.dropna(subset="lidc_patient").to_dict("records"), desc="cubes", unit="cube"):
        candidates = largest[largest["patient"] == cube["lidc_patient"]]
        found = [
            _best_match(images[row], float(spacing), volumes[cube["row"]])
            for row, spacing in zip(candidates["row"], candidates["pixel_spacing_mm"], strict=True)
        ]
        if found and max(correlation for correlation, _ in found) >= MIN_CORRELATION:
            best = int(np.argmax([correlation for correlation, _ in found]))
            row = int(candidates["row"].iloc[best])
            matches.append(
                Match(
                    patient=cube["lidc_patient"],
                    row=row,
                    correlation=found[best][0],
                    estimate=estimate_calibration(images[row]),
                    truth=found[best][1],
                )
            )
    return matches


def _best_match(crop: np.ndarray, spacing_mm: float, volume: np.ndarray) -> tuple[float, Calibration]:
    """Highest correlation of the crop's centre with the axial planes of a 1 mm cube, and the line there."""
    template = _centre(ndimage.zoom(crop.astype(np.float32), spacing_mm, order=1), TEMPLATE_PX)
    unit = (template - template.mean()) / (template.std() + 1e-6)
    best = (-1.0, MEDIAN_CALIBRATION)
    for plane in _centre(volume, 21).astype(np.float32):
        windows = sliding_window_view(plane, template.shape)
        correlation = np.einsum("rchw,hw->rc", windows, unit) / (windows.std(axis=(2, 3)) * unit.size + 1e-6)
        place = np.unravel_index(correlation.argmax(), correlation.shape)
        if correlation[place] > best[0]:
            gain, low = np.polyfit(template.ravel(), windows[place].ravel(), 1)
            if gain > 0:
                best = (float(correlation[place]), Calibration(low_hu=float(low), gain=float(gain)))
    return best


def _centre(array: np.ndarray, size: int) -> np.ndarray:
    """The central `size` of the first axis, and of the second for a plane."""
    axes = (0,) if array.ndim == 3 else (0, 1)
    for axis in axes:
        start = max((array.shape[axis] - size) // 2, 0)
        array = array.take(range(start, min(start + size, array.shape[axis])), axis=axis)
    return array
