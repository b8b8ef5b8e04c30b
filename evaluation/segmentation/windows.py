"""Table I on windows: real nodules among real vessels, pleura and ribs, off the middle of 67 x 67 mm.

A window shows a nodule's largest slice; the detector gets it with the neighbouring slices that there are. It counts
candidates, hits and false ones, on that slice, and its pixels. A candidate on what one reader alone drew is neither.
Rates are false positives per 100 cm2, of which a slice through two lungs shows about four.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.metrics.bootstrap import Estimate, Estimates, estimate, estimate_ratio
from evaluation.metrics.dice import PixelCounts, pixel_estimates
from evaluation.metrics.froc import Froc
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule
from evaluation.segmentation.detectors import Detection, detect
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.schema import NoduleRow
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.types import CandidateDetector

__all__ = [
    "RATES_PER_100_CM2",
    "SIDE_PX",
    "FreeView",
    "NoduleView",
    "WindowRecords",
    "evaluate_free_windows",
    "evaluate_windows",
    "found_at",
    "rate_per_window",
    "read_windows",
    "reader_sensitivity",
    "window_estimates",
]

RATES_PER_100_CM2 = (0.25, 0.5, 1.0)
SIDE_PX = 96
_AREA_CM2 = (SIDE_PX * PATCH_SPACING_MM / 10) ** 2
_OFF_PX = 6  # the nodule's middle is at least so far from the window's
_NEAR_PX = 2  # a candidate's middle so close to an outline still lies on it
_TRIES = 100
_SMALLEST_PX = 8  # of the nodule's largest slice
_LOWEST = 0.1  # probability from which on pixels belong to a peak
_CORNERS = np.ones((3, 3), dtype=bool)
_READERS = 4  # of LIDC-IDRI


@dataclass(frozen=True, eq=False, kw_only=True)
class NoduleView:
    """A nodule in its window.

    Args:
        nodule: its row.
        hu: int16 (n, 96, 96), the slices of its stack.
        slice_mm: their distance; 1 for a single one.
        index: of the slice that is judged.
        votes: uint8 (96, 96), readers that drew each pixel of it.
        readers: uint8 (96, 96), which ones, by bit; None where unknown.
    """

    nodule: NoduleRow
    hu: np.ndarray
    slice_mm: float
    index: int
    votes: np.ndarray
    readers: np.ndarray | None

    @property
    def mask(self) -> np.ndarray:
        """What two readers agree on, bool (96, 96)."""
        return self.votes >= 2


@dataclass(frozen=True, eq=False, kw_only=True)
class FreeView:
    """A window without a nodule.

    Args:
        id: of the window.
        patient: whose it is.
        hu: int16 (96, 96), at 0.7 mm.
    """

    id: str
    patient: str
    hu: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WindowRecords:
    """What a method did on the windows: a case a nodule, and the pixels of its slice; none without a map."""

    cases: tuple[Case, ...] = ()
    pixels: tuple[PixelCounts, ...] = ()


def read_windows(subset: Subset, problems: list[str]) -> list[NoduleView]:
    """The windows of a subset's nodules that two readers drew; what cannot be read is added to `problems`.

    A nodule without room for a window that holds it off the middle is left out, as is one whose source shows nothing
    around it.
    """
    views = []
    for nodule in subset.evaluated_nodules:
        path = subset.folder / nodule.window
        if not nodule.expert_mask or not path.is_file():
            continue
        try:
            view = _view(nodule, path)
        except InputError as error:
            problems.append(f"left out of the windows: {error}")
            continue
        if view is not None:
            views.append(view)
    return views


def _view(nodule: NoduleRow, path: Path) -> NoduleView | None:
    hu, label, votes, z_mm, largest = read_arrays(path, "hu", "label", "votes", "z_mm", "largest")
    index = int(largest)
    mask = votes[index] >= 2
    if mask.sum() < _SMALLEST_PX:
        return None
    covered = np.argwhere((label[index] != 255) | (votes[index] > 0))
    place = _place(mask, covered, seed=zlib.crc32(nodule.nodule_id.encode()))
    if place is None:
        return None
    window = tuple(slice(start, start + SIDE_PX) for start in place)
    with np.load(path) as arrays:
        readers = arrays["readers"][index][window] if "readers" in arrays.files else None
    return NoduleView(
        nodule=nodule,
        hu=np.ascontiguousarray(hu[(slice(None), *window)]),
        slice_mm=float(np.median(np.diff(z_mm))) if len(z_mm) > 1 else 1.0,
        index=index,
        votes=votes[index][window],
        readers=readers,
    )


def _place(mask: np.ndarray, covered: np.ndarray, *, seed: int) -> tuple[int, int] | None:
    """First row and column of a window that holds the nodule, off its middle, within what the source covered."""
    low, high = covered.min(axis=0), covered.max(axis=0) + 1 - SIDE_PX
    if (high < low).any():
        return None
    rng, middle = np.random.default_rng(seed), np.array(ndimage.center_of_mass(mask))
    for _ in range(_TRIES):
        top, left = (int(rng.integers(a, b + 1)) for a, b in zip(low, high, strict=True))
        inside = mask[top : top + SIDE_PX, left : left + SIDE_PX].sum() == mask.sum()
        if inside and np.hypot(*(middle - (top, left) - SIDE_PX / 2)) >= _OFF_PX:
            return top, left
    return None


def evaluate_windows(views: Sequence[NoduleView], detector: CandidateDetector, *, name: str) -> WindowRecords:
    """Runs a detector on the windows.

    Candidates are the peaks of its nodule map on the judged slice, so that all methods are counted alike; those of its
    table where it has no map.

    Args:
        views: of the subset.
        detector: the method.
        name: of the method.

    Raises:
        InputError: when the detector returns no detection.
    """
    threshold = float(getattr(detector, "pixel_threshold", 0.5))
    cases, pixels = [], []
    for view in tqdm(views, desc=f"{name}: windows", unit="nodule", leave=False):
        spacing_mm = (view.slice_mm, PATCH_SPACING_MM, PATCH_SPACING_MM)
        detection = detect(detector, view.hu, spacing_mm, name=name)
        probability = None if detection.probability is None else detection.probability[view.index]
        peaks = _nearby(detection.candidates, view) if probability is None else _peaks(probability)
        cases.append(_case(view, peaks, detection))
        if probability is not None:
            valid = view.mask | (view.votes == 0)
            owner = {"patient": view.nodule.patient_id, "nodule": view.nodule.nodule_id}
            pixels.append(PixelCounts.of(probability >= threshold, view.mask, valid, **owner))
    return WindowRecords(cases=tuple(cases), pixels=tuple(pixels))


def evaluate_free_windows(views: Sequence[FreeView], detector: CandidateDetector, *, name: str) -> tuple[Case, ...]:
    """Runs a detector on windows without a nodule: cases in which every candidate is false.

    Args:
        views: the windows.
        detector: the method.
        name: of the method.

    Raises:
        InputError: when the detector returns no detection.
    """
    cases = []
    for view in tqdm(views, desc=f"{name}: free windows", unit="window", leave=False):
        detection = detect(detector, view.hu[None], (1.0, PATCH_SPACING_MM, PATCH_SPACING_MM), name=name)
        probability = detection.probability
        peaks = detection.candidates[:, [1, 2, 4]] if probability is None else _peaks(probability[0])
        cases.append(detection.case(view.id, view.patient, (), _false_positives(peaks, index=0)))
    return tuple(cases)


def _nearby(candidates: np.ndarray, view: NoduleView) -> np.ndarray:
    """Row, column and probability of the candidates on the judged slice."""
    return candidates[np.rint(candidates[:, 0]) == view.index][:, [1, 2, 4]]


def _peaks(probability: np.ndarray) -> np.ndarray:
    """Row, column and height of the peaks of a map, (n, 3).

    A connected piece of `_LOWEST` or more is a peak; where half of its height parts it, each part is one.
    """
    smooth = ndimage.uniform_filter(probability.astype(np.float32), 3)
    pieces, count = ndimage.label(probability >= _LOWEST, _CORNERS)
    rows = []
    for index in range(1, count + 1):
        inside = pieces == index
        parts, number = ndimage.label(inside & (smooth >= smooth[inside].max() / 2), _CORNERS)
        for part in range(1, number + 1):
            own = parts == part
            rows.append([*ndimage.center_of_mass(smooth * own), float(smooth[own].max())])
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _case(view: NoduleView, peaks: np.ndarray, detection: Detection) -> Case:
    agreed, drawn = (ndimage.binary_dilation(view.votes >= votes, iterations=_NEAR_PX) for votes in (2, 1))
    rows, columns = (np.clip(np.rint(peaks[:, axis]).astype(int), 0, SIDE_PX - 1) for axis in (0, 1))
    hits, false = agreed[rows, columns], ~drawn[rows, columns]
    row, column = ndimage.center_of_mass(view.mask)
    nodule = ReferenceNodule(
        id=view.nodule.nodule_id,
        patient=view.nodule.patient_id,
        centre=(float(view.index), float(row), float(column)),
        diameter_mm=view.nodule.diameter_mm,
        category=view.nodule.texture_class,
        score=float(peaks[hits, 2].max()) if hits.any() else None,
        nearest_mm=None,
        nearest_probability=None,
    )
    positives = _false_positives(peaks[false], index=view.index)
    return detection.case(nodule.id, nodule.patient, (nodule,), positives)


def _false_positives(peaks: np.ndarray, *, index: int) -> tuple[FalsePositive, ...]:
    """Peaks of one slice, highest first."""
    return tuple(
        FalsePositive(
            centre=(float(index), float(peak[0]), float(peak[1])),
            diameter_mm=0.0,
            probability=float(peak[2]),
            nearest_mm=None,
        )
        for peak in sorted(peaks.tolist(), key=lambda peak: -peak[2])
    )


def window_estimates(records: WindowRecords, *, seed: int) -> Estimates:
    """`sensitivity_at_<rate>` a rate of `RATES_PER_100_CM2`, and `dice`, a mean over nodules, with intervals."""
    if not records.cases:
        return {}
    froc = Froc(records.cases)
    rates = [rate_per_window(rate) for rate in RATES_PER_100_CM2]
    figures = estimate(
        froc.groups,
        lambda counts: froc.sensitivity_at(rates, counts).tolist(),
        n=[froc.n_lesions] * len(rates),
        seed=seed,
    )
    named = {f"sensitivity_at_{rate:g}": figure for rate, figure in zip(RATES_PER_100_CM2, figures, strict=True)}
    return named | ({"dice": pixel_estimates(records.pixels, seed=seed)["dice"]} if records.pixels else {})


def rate_per_window(rate: float) -> float:
    """False positives a window that are `rate` per 100 cm2."""
    return rate * _AREA_CM2 / 100


def found_at(records: WindowRecords, rate: float) -> list[tuple[ReferenceNodule, bool]]:
    """Each nodule, and whether it is found where `rate` false positives per 100 cm2 are left."""
    threshold = Froc(records.cases).threshold_at(rate_per_window(rate))
    return [(nodule, nodule.is_found(threshold)) for case in records.cases for nodule in case.nodules]


def reader_sensitivity(views: Sequence[NoduleView], *, seed: int) -> Estimate | None:
    """The ceiling: how many nodules that two of three readers drew the fourth drew, too; None where it is not known
    who drew what.
    """
    owners, hits = [], []
    for view in views:
        if view.readers is None:
            continue
        drawn = np.stack([view.readers >> reader & 1 for reader in range(_READERS)])
        for reader in range(_READERS):
            others = np.delete(drawn, reader, axis=0).sum(axis=0) >= 2
            if others.any():
                owners.append(view.nodule.patient_id)
                hits.append(float((drawn[reader].astype(bool) & others).any()))
    return estimate_ratio(owners, hits, [1.0] * len(hits), seed=seed) if owners else None
