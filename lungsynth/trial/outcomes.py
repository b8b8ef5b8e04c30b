"""What a detector's answers mean: which nodules it found, and what else it marked because of them.

A candidate hits the nodule when its centre lies within the nodule's radius of its centre (at least 2 mm, as LUNA16
counts), or on its outline grown by 2 mm, or, of a mask, when its piece touches the nodule. A candidate apart from it
counts as caused by the insertion when nothing was marked near its place in the pair without the nodule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from lungsynth.detector import MIN_HIT_RADIUS_MM
from lungsynth.trial.detections import Detection, TrialImage

__all__ = ["Outcome", "Place", "Truth", "judge", "operating_point_at", "record_of"]

_GROWN_MM = 2.0
_SAME_PLACE_MM = 5.0  # two candidates so near to each other mark the same thing
_DIGITS = 4  # of places and probabilities that are kept
_HIT = 5  # index of a record's column

Record = Mapping[str, Any]  # `name`, and `candidates` (slice, row, column, diameter_mm, probability, hit) or `error`


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a nodule was put.

    Args:
        centre: (slice, row, column) in voxels.
        diameter_mm: of the disc or sphere of equal size.
    """

    centre: tuple[float, float, float]
    diameter_mm: float

    @property
    def hit_mm(self) -> float:
        """From its centre, within which a candidate hits."""
        return max(self.diameter_mm / 2, MIN_HIT_RADIUS_MM)


class Truth(NamedTuple):
    """A nodule: its place, and its mask (D, H, W)."""

    place: Place
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A pair at an operating point.

    Args:
        score: the highest probability of what hits the nodule, 0 without; None where the detector failed.
        found: whether that reaches the operating point.
        marked_without: whether something at its place reaches it without the nodule; None where that is not known.
        caused: candidates that the insertion caused elsewhere; likewise.
        lost: candidates elsewhere that vanished with it; likewise.
        error: why there is no answer.
    """

    score: float | None
    found: bool | None
    marked_without: bool | None = None
    caused: int | None = None
    lost: int | None = None
    error: str | None = None


def record_of(image: TrialImage, answer: Detection | str, truth: Truth | None) -> dict[str, Any]:
    """An answer as it is kept: the candidates with whether each hits, or the reason why there are none."""
    if isinstance(answer, str):
        return {"name": image.name, "error": answer}
    hits = np.zeros(len(answer.candidates)) if truth is None else _hits(answer, truth, image.spacing_mm)
    table = np.hstack([np.asarray(answer.candidates, dtype=np.float64), hits[:, None]])
    order = np.argsort(-table[:, 4], kind="stable")
    return {"name": image.name, "candidates": np.round(table[order], _DIGITS).tolist()}


def judge(
    with_nodule: Record, without: Record | None, place: Place, spacing_mm: Sequence[float], *, point: float
) -> Outcome:
    """What a pair's two records say.

    Args:
        with_nodule: of the slice with the nodule.
        without: of the slice without; None where that was not asked.
        place: of the nodule.
        spacing_mm: (slice, row, column).
        point: probability from which on a candidate counts.
    """
    if "error" in with_nodule:
        return Outcome(score=None, found=None, error=str(with_nodule["error"]))
    table = _table(with_nodule)
    hit = table[:, _HIT] > 0
    score = float(table[hit, 4].max()) if hit.any() else 0.0
    if without is None or "error" in without:
        return Outcome(score=score, found=score >= point and bool(hit.any()))
    other = _table(without)
    others = table[~hit & (table[:, 4] >= point)]
    counted = other[other[:, 4] >= point]
    on_nodule = _distances(counted, np.array([place.centre]), spacing_mm)[:, 0] <= place.hit_mm
    elsewhere = counted[~on_nodule]
    return Outcome(
        score=score,
        found=score >= point and bool(hit.any()),
        marked_without=bool(on_nodule.any()),
        caused=_unmatched(others, counted, spacing_mm),
        lost=_unmatched(elsewhere, table[table[:, 4] >= point], spacing_mm),
    )


def operating_point_at(without: Sequence[Record], rate: float) -> float:
    """The lowest probability at which slices without a nodule have at most `rate` candidates on average."""
    answered = [record for record in without if "error" not in record]
    allowed = int(rate * len(answered) + 1e-9)
    scores = sorted((row[4] for record in answered for row in record["candidates"]), reverse=True)
    return float(np.nextafter(scores[allowed], 2.0)) if len(scores) > allowed else 0.0


def _table(record: Record) -> np.ndarray:
    return np.array(record["candidates"], dtype=np.float64).reshape(-1, _HIT + 1)


def _hits(answer: Detection, truth: Truth, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    candidates = np.asarray(answer.candidates, dtype=np.float64)
    near = _distances(candidates, np.array([truth.place.centre]), spacing_mm)[:, 0] <= truth.place.hit_mm
    grown = ndimage.distance_transform_edt(~truth.mask, sampling=spacing_mm) <= _GROWN_MM
    at = tuple(
        np.clip(np.rint(candidates[:, axis]).astype(int), 0, size - 1) for axis, size in enumerate(truth.mask.shape)
    )
    hits = near | grown[at]
    if answer.pieces is not None:
        touching = np.unique(answer.pieces[truth.mask])
        hits |= np.isin(np.arange(1, len(candidates) + 1), touching)
    return np.asarray(hits, dtype=np.float64)


def _distances(first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mm between places, (first, second)."""
    apart = (first[:, None, :3] - second[None, :, :3]) * np.asarray(spacing_mm)
    return np.asarray(np.sqrt((apart**2).sum(axis=-1)))


def _unmatched(rows: np.ndarray, others: np.ndarray, spacing_mm: Sequence[float]) -> int:
    """How many rows have none of the others at their place."""
    if not len(rows) or not len(others):
        return len(rows)
    reach = np.maximum(_SAME_PLACE_MM, np.maximum(rows[:, None, 3], others[None, :, 3]) / 2)
    return int((~(_distances(rows, others, spacing_mm) <= reach).any(axis=1)).sum())
