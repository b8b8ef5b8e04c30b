"""Whether the segmentation bundle still finds what it found before a slice was enhanced, and nothing else.

A candidate counts from the detector's operating point on. It is on a nodule when it lies on the nodule's mask or
within its radius of its centre (2 mm at least); elsewhere it is known when there was one near it before. What is lost
or new is blended back: around it the slice becomes again what it was, with a smooth passage.

It looks at whole slices, as whoever uses the labels will: a part of a slice has a grid and surroundings of its own, and
a probability near the operating point another value there. Another machine rounds in another way, so that there is a
margin around the operating point, in which no probability may get worse by more than a tolerance; none may cross it.
Both are of log-odds: a network that is sure of itself has its operating point near 1, where probabilities lie close.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from lungsynth.compositing.render import Rendered
from lungsynth.placement.lung_shape import Box
from lungsynth.types import HuPlane, Plane

__all__ = [
    "LABEL_CHECK_RULES",
    "SHARE_STEPS",
    "CandidateDetector",
    "LabelCheck",
    "LabelComparison",
    "Spot",
    "transition_mask",
]

CandidateDetector = Callable[[np.ndarray, tuple[float, float, float]], dict[str, Any]]  # contract C6.5
Candidates = Float[np.ndarray, "_ 5"]

LABEL_CHECK_MARGIN, LABEL_CHECK_TOLERANCE = 1.0, 0.2  # log-odds, of the gate that `open_stage` makes
ROUNDS = 3  # of blending back before a slice is refused
_SAME_MM = 5.0
_SLICE_MM = 1.0  # thickness of a lone slice: no distance depends on it
_LEAST_RADIUS_MM = 2.0
_CLEAR_PX = 4  # around what is blended back, the slice is wholly what it was
_PASSAGE_PX = 12  # over which it passes to what was made of it
SHARE_STEPS = 256
_LEAST = 1e-4  # no probability counts as nearer to 0 or 1 than this

# What decides over the gate's results beside its detector; another number here makes another export.
LABEL_CHECK_RULES: Mapping[str, float] = {
    "margin": LABEL_CHECK_MARGIN,
    "tolerance": LABEL_CHECK_TOLERANCE,
    "rounds": ROUNDS,
    "same_mm": _SAME_MM,
    "least_radius_mm": _LEAST_RADIUS_MM,
    "clear_px": _CLEAR_PX,
    "passage_px": _PASSAGE_PX,
    "least": _LEAST,
}


class Spot(NamedTuple):
    """A disc on a slice, in pixels."""

    row: float
    column: float
    radius_px: float


@dataclass(frozen=True, kw_only=True)
class LabelComparison:
    """What a slice shows after, relative to before.

    Args:
        found: nodules found before.
        n_lost: those of them that are not found after.
        n_invented: candidates found after, on no nodule and not found before.
        lost: what is to be blended back: those, and nodules that became less probable within the margin.
        invented: likewise, with candidates that became more probable within the margin.
    """

    found: int
    n_lost: int
    n_invented: int
    lost: tuple[Spot, ...]
    invented: tuple[Spot, ...]

    @property
    def kept(self) -> bool:
        """Whether nothing was lost and nothing is new."""
        return not self.lost and not self.invented


class LabelCheck:
    """Compares slices by what a detector finds.

    Args:
        detector: of `lung_seg_bundle`; its `operating_point` says from which probability on it found something.
        same_mm: candidates before and after this near are one.
        margin: around the operating point, in log-odds; 0 compares what counts as found and nothing else.
        tolerance: of changes within the margin, in log-odds.
    """

    def __init__(
        self,
        detector: CandidateDetector,
        *,
        same_mm: float = _SAME_MM,
        margin: float = 0.0,
        tolerance: float = 0.0,
    ) -> None:
        self.detector = detector
        self.operating_point = float(getattr(detector, "operating_point", 0.5))
        self.same_mm = same_mm
        self.margin, self.tolerance = margin, tolerance

    def look(self, hu: HuPlane, spacing_mm: tuple[float, float]) -> Candidates:
        """The candidates of a slice, in its pixels."""
        found = np.asarray(self.detector(hu[None], (_SLICE_MM, *spacing_mm))["candidates"], dtype=np.float64)
        found = found.reshape(-1, 5)
        counts = _log_odds(found[:, 4]) >= _log_odds(self.operating_point) - self.margin
        return np.asarray(found[counts])

    def compare(
        self, before: Candidates, after: Candidates, sample: Rendered, spacing_mm: tuple[float, float]
    ) -> LabelComparison:
        """What of `before` is in `after`.

        Args:
            before: candidates of the slice as it was.
            after: of what was made of it.
            sample: its nodules.
            spacing_mm: (row, column).
        """
        point = _log_odds(self.operating_point)
        low, high = point - self.margin, point + self.margin
        was, still = (
            _log_odds(_highest(found, self._on_nodules(found, sample, spacing_mm))) for found in (before, after)
        )
        gone = (was >= point) & (still < point)
        fallen = gone | (was >= low) & (still < np.minimum(was - self.tolerance, high))
        lost = tuple(_spot(sample.boxes[index]) for index in np.flatnonzero(fallen))
        free = after[~self._on_nodules(after, sample, spacing_mm).any(axis=1)]
        near = _distances_mm(before, free[:, 1:3], spacing_mm) <= self.same_mm
        known, seen = _log_odds(_highest(before, near)), _log_odds(free[:, 4])
        new = (seen >= point) & (known < point)
        risen = new | (seen >= low) & (known < high) & (seen > known + self.tolerance)
        pixel_mm = min(spacing_mm)
        invented = tuple(Spot(float(c[1]), float(c[2]), float(c[3]) / 2 / pixel_mm) for c in free[risen])
        counts = {"found": was >= point, "n_lost": gone, "n_invented": new}
        return LabelComparison(**{key: int(which.sum()) for key, which in counts.items()}, lost=lost, invented=invented)

    def _on_nodules(self, found: Candidates, sample: Rendered, spacing_mm: tuple[float, float]) -> np.ndarray:
        """Which candidate is on which nodule, (candidates, nodules)."""
        centres = np.array([_spot(box)[:2] for box in sample.boxes]).reshape(-1, 2)
        radii = [max(nodule.diameter_mm / 2, _LEAST_RADIUS_MM) for nodule in sample.annotations]
        near = _distances_mm(found, centres, spacing_mm) <= np.array(radii)
        for index, (box, mask) in enumerate(zip(sample.boxes, sample.masks, strict=True)):
            padded = np.pad(mask, 1)
            rows = np.clip(np.rint(found[:, 1]) - box.row_from + 1, 0, padded.shape[0] - 1).astype(int)
            columns = np.clip(np.rint(found[:, 2]) - box.column_from + 1, 0, padded.shape[1] - 1).astype(int)
            near[:, index] |= padded[rows, columns]
        return near


def transition_mask(spots: Sequence[Spot], shape: tuple[int, int]) -> Plane:
    """Share of the change that stays, (H, W), in steps of 1/256: 0 on the spots and around them, 1 farther away."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    kept = np.ones(shape, np.float32)
    for spot in spots:
        away = np.hypot(rows - spot.row, columns - spot.column) - spot.radius_px - _CLEAR_PX
        x = np.clip(away / _PASSAGE_PX, 0, 1)
        kept = np.minimum(kept, (x * x * (3 - 2 * x)).astype(np.float32))
    return np.rint(kept * SHARE_STEPS) / np.float32(SHARE_STEPS)


def _highest(found: Candidates, there: np.ndarray) -> np.ndarray:
    """Highest probability of the candidates (first axis of `there`) at each place; 0 where there is none."""
    return np.asarray(np.where(there, found[:, 4:5], 0.0).max(axis=0, initial=0.0))


def _log_odds(probability: Any) -> Any:
    return special.logit(np.clip(probability, _LEAST, 1 - _LEAST))


def _spot(box: Box) -> Spot:
    """The disc around a box."""
    height, width = box.row_to - box.row_from, box.column_to - box.column_from
    row, column = box.row_from + (height - 1) / 2, box.column_from + (width - 1) / 2
    return Spot(row, column, float(np.hypot(height, width)) / 2)


def _distances_mm(found: Candidates, places: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """From each candidate to each place (row, column), (candidates, places)."""
    away = (found[:, None, 1:3] - places[None, :, :2]) * np.asarray(spacing_mm)
    return np.asarray(np.hypot(away[..., 0], away[..., 1]))
