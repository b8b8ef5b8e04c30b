"""How far the calibration of 8-bit crops is off, against HU cubes of the same nodules.

A crop is laid over the cubes of its patient by normalised cross-correlation; where they match, the straight line from
grey to HU is the truth, and the estimate (from the crop alone) is compared with it at three levels of HU. The trivial
baseline gives each crop the same range, the median one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from tqdm import tqdm

from lungsynth.cohort.calibration import Calibration, estimate_calibration

__all__ = ["LEVELS_HU", "Match", "compare_with_cubes", "match_crops"]

LEVELS_HU = {"lung": -870, "ground glass": -400, "soft tissue": 40}
MEDIAN_CALIBRATION = Calibration(low_hu=-1005, gain=8.0)  # the trivial baseline: one range for all
MIN_CORRELATION = 0.975
TEMPLATE_PX = 24


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
