"""Which candidates hit which lesions, by LUNA16's criterion.

A candidate hits a lesion when it lies within the lesion's radius of its centre, but at least within 2 mm. Further
candidates on a lesion that has one, and candidates on lesions that do not count, are neither hits nor false positives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from lungsynth.types import MIN_HIT_RADIUS_MM, Candidates

__all__ = ["Case", "FalsePositive", "Lesion", "ReferenceNodule", "Vector3", "match"]

Vector3 = tuple[float, float, float]  # (slice, row, column)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A lesion of an image.

    Args:
        id: of the nodule.
        patient: whose it is.
        centre: (slice, row, column) in voxels, fractional.
        diameter_mm: of the sphere or disc of equal size.
        category: texture class.
        slices: first and last slice of its mask; hits then need one of these slices, and the distance is in plane.
        counts: False for lesions that are neither to be found nor false (small ones, those of one reader).
    """

    id: str
    patient: str
    centre: Vector3
    diameter_mm: float
    category: str = "unknown"
    slices: tuple[int, int] | None = None
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class ReferenceNodule:
    """A lesion that counts, with its match.

    Args:
        score: highest probability of the candidates that hit it; None when none does.
        nearest_mm: distance of the nearest candidate of any probability; None without candidates.
        nearest_probability: of that candidate.
    """

    id: str
    patient: str
    centre: Vector3
    diameter_mm: float
    category: str
    score: float | None
    nearest_mm: float | None
    nearest_probability: float | None

    def is_found(self, probability: float) -> bool:
        """Whether a candidate of at least this probability hits it."""
        return self.score is not None and self.score >= probability


@dataclass(frozen=True, kw_only=True)
class FalsePositive:
    """A candidate on no lesion; `nearest_mm` is its distance to the nearest one, None without lesions."""

    centre: Vector3
    diameter_mm: float
    probability: float
    nearest_mm: float | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A crop, slice or scan after a detector ran on it.

    Args:
        id: of the image.
        patient: whose image it is; the lesions of a composite have patients of their own.
        slices: number of slices.
        seconds: that the detector took.
        marked: candidates at or above the detector's operating point, anywhere.
        nodules: the lesions that count.
        false_positives: candidates on no lesion, most probable first.
    """

    id: str
    patient: str
    slices: int
    seconds: float
    marked: int
    nodules: tuple[ReferenceNodule, ...]
    false_positives: tuple[FalsePositive, ...]


def match(
    candidates: Candidates,
    lesions: Sequence[Lesion],
    *,
    spacing_mm: Vector3,
    ignored: Bool[np.ndarray, " candidates"] | None = None,
) -> tuple[tuple[ReferenceNodule, ...], tuple[FalsePositive, ...]]:
    """Assigns the candidates of one image to its lesions.

    Args:
        candidates: slice, row, column (voxels), diameter_mm, probability.
        lesions: of the image.
        spacing_mm: (slice, row, column).
        ignored: candidates that are no false positives wherever they lie, such as those on a nodule's mask.

    Returns:
        The lesions that count, and the false positives, most probable first.
    """
    distance = np.stack([_distance_mm(candidates, lesion, spacing_mm) for lesion in lesions] or [np.empty(0)])
    hits = np.stack([_hits(candidates, lesion, spacing_mm) for lesion in lesions] or [np.zeros(len(candidates), bool)])
    rows = zip(lesions, distance, hits, strict=bool(lesions))
    nodules = tuple(_reference_nodule(lesion, candidates, d, h) for lesion, d, h in rows if lesion.counts)
    excused = hits.any(axis=0) if ignored is None else hits.any(axis=0) | ignored
    false = np.flatnonzero(~excused)
    order = false[np.argsort(-candidates[false, 4], kind="stable")]
    false_positives = (
        _false_positive(candidates[index], distance[:, index].min() if lesions else None) for index in order
    )
    return nodules, tuple(false_positives)


def _offsets_mm(candidates: Candidates, lesion: Lesion, spacing_mm: Vector3) -> np.ndarray:
    return (np.asarray(candidates[:, :3], dtype=np.float64) - lesion.centre) * spacing_mm


def _distance_mm(candidates: Candidates, lesion: Lesion, spacing_mm: Vector3) -> np.ndarray:
    return np.linalg.norm(_offsets_mm(candidates, lesion, spacing_mm), axis=1)


def _hits(candidates: Candidates, lesion: Lesion, spacing_mm: Vector3) -> np.ndarray:
    radius_mm = max(lesion.diameter_mm / 2, MIN_HIT_RADIUS_MM)
    offsets = _offsets_mm(candidates, lesion, spacing_mm)
    if lesion.slices is None:
        return np.linalg.norm(offsets, axis=1) <= radius_mm
    first, last = lesion.slices
    on_slices = (candidates[:, 0] >= first - 0.5) & (candidates[:, 0] <= last + 0.5)
    return on_slices & (np.linalg.norm(offsets[:, 1:], axis=1) <= radius_mm)


def _reference_nodule(
    lesion: Lesion, candidates: Candidates, distance: np.ndarray, hits: np.ndarray
) -> ReferenceNodule:
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


def _false_positive(candidate: np.ndarray, nearest_mm: float | None) -> FalsePositive:
    return FalsePositive(
        centre=(float(candidate[0]), float(candidate[1]), float(candidate[2])),
        diameter_mm=float(candidate[3]),
        probability=float(candidate[4]),
        nearest_mm=None if nearest_mm is None else float(nearest_mm),
    )
