"""Which candidates point at which lesions: LUNA16's criterion.

A candidate hits a lesion when it lies within the lesion's radius of its centre, but at least within 2 mm, because a
millimetre more or less says nothing of a nodule of 3 mm. Further candidates on a lesion that has one, and candidates on
findings that do not count, are neither hits nor false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lungsynth.detector import MIN_HIT_RADIUS_MM, CandidateDetector

__all__ = ["CandidateDetector", "Case", "FalsePositive", "Lesion", "Point", "ReferenceNodule", "match"]

Candidates = Float[np.ndarray, "candidates 5"]
Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """What should be found.

    Args:
        id: of the nodule.
        patient: whose it is.
        centre: (slice, row, column) in voxels, fractional.
        diameter_mm: of the ball or disc of equal size.
        category: texture class.
        slices: first and last slice of its mask; the slice then counts instead of the distance along the body.
        counts: False for findings that are neither to be found nor false (small ones, one reader's).
    """

    id: str
    patient: str
    centre: Point
    diameter_mm: float
    category: str = "unknown"
    slices: tuple[int, int] | None = None
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class ReferenceNodule:
    """A lesion that counts, and what came of it.

    Args:
        score: highest probability of the candidates that hit it; None when none does.
        nearest_mm: distance of the nearest candidate of any probability; None without candidates.
        nearest_probability: of that candidate.
    """

    id: str
    patient: str
    centre: Point
    diameter_mm: float
    category: str
    score: float | None
    nearest_mm: float | None
    nearest_probability: float | None


@dataclass(frozen=True, kw_only=True)
class FalsePositive:
    """A candidate on no lesion; `nearest_mm` is its distance to the nearest one, None without lesions."""

    centre: Point
    diameter_mm: float
    probability: float
    nearest_mm: float | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A crop, slice or scan that a detector looked at.

    Args:
        id: of the image.
        patient: whose image it is; the lesions of a composite have patients of their own.
        slices: how many it has.
        seconds: that the detector took.
        marked: candidates at or above the detector's operating point, wherever they lie.
        targets: the lesions that count.
        alarms: candidates on no lesion, most probable first.
    """

    id: str
    patient: str
    slices: int
    seconds: float
    marked: int
    targets: tuple[ReferenceNodule, ...]
    alarms: tuple[FalsePositive, ...]


def match(
    candidates: Candidates,
    lesions: Sequence[Lesion],
    *,
    spacing_mm: Point,
    on_finding: Bool[np.ndarray, " candidates"] | None = None,
) -> tuple[tuple[ReferenceNodule, ...], tuple[FalsePositive, ...]]:
    """Assigns the candidates of one image.

    Args:
        candidates: slice, row, column (voxels), diameter_mm, probability.
        lesions: of the image.
        spacing_mm: (slice, row, column).
        on_finding: candidates that lie on a finding's mask, and are no false alarms wherever its centre is.

    Returns:
        A target for each lesion that counts, and the alarms, most probable first.
    """
    distance = np.stack([_distance_mm(candidates, lesion, spacing_mm) for lesion in lesions] or [np.empty(0)])
    hits = np.stack([_hits(candidates, lesion, spacing_mm) for lesion in lesions] or [np.zeros(len(candidates), bool)])
    pairs = zip(lesions, distance, hits, strict=bool(lesions))
    targets = tuple(_target(lesion, candidates, d, h) for lesion, d, h in pairs if lesion.counts)
    taken = hits.any(axis=0) if on_finding is None else hits.any(axis=0) | on_finding
    free = np.flatnonzero(~taken)
    order = free[np.argsort(-candidates[free, 4], kind="stable")]
    alarms = (_alarm(candidates[index], distance[:, index].min() if lesions else None) for index in order)
    return targets, tuple(alarms)


def _offsets_mm(candidates: Candidates, lesion: Lesion, spacing_mm: Point) -> np.ndarray:
    return (np.asarray(candidates[:, :3], dtype=np.float64) - lesion.centre) * spacing_mm


def _distance_mm(candidates: Candidates, lesion: Lesion, spacing_mm: Point) -> np.ndarray:
    return np.linalg.norm(_offsets_mm(candidates, lesion, spacing_mm), axis=1)


def _hits(candidates: Candidates, lesion: Lesion, spacing_mm: Point) -> np.ndarray:
    radius_mm = max(lesion.diameter_mm / 2, MIN_HIT_RADIUS_MM)
    offsets = _offsets_mm(candidates, lesion, spacing_mm)
    if lesion.slices is None:
        return np.linalg.norm(offsets, axis=1) <= radius_mm
    first, last = lesion.slices
    on_slices = (candidates[:, 0] >= first - 0.5) & (candidates[:, 0] <= last + 0.5)
    return on_slices & (np.linalg.norm(offsets[:, 1:], axis=1) <= radius_mm)


def _target(lesion: Lesion, candidates: Candidates, distance: np.ndarray, hits: np.ndarray) -> ReferenceNodule:
    nearest = int(distance.argmin()) if len(candidates) else None
    return ReferenceNodule(
        id=lesion.id,
        patient=lesion.patient,
        centre=lesion.centre,
        diameter_mm=lesion.diameter_mm,
        category=lesion.category,
        score=float(candidates[hits, 4].max()) if hits.any() else None,
        nearest_mm=None if nearest is None else float(distance[nearest]),
        nearest_probability=None if nearest is None else float(candidates[nearest, 4]),
    )


def _alarm(candidate: np.ndarray, nearest_mm: float | None) -> FalsePositive:
    place = (float(candidate[0]), float(candidate[1]), float(candidate[2]))
    return FalsePositive(
        centre=place,
        diameter_mm=float(candidate[3]),
        probability=float(candidate[4]),
        nearest_mm=None if nearest_mm is None else float(nearest_mm),
    )
