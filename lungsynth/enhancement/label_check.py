"""Whether the segmentation bundle still finds what it found before a slice was enhanced, and nothing else.

A candidate counts from the detector's operating point on. It is on a nodule when it lies on the nodule's mask or
within its radius of its centre (2 mm at least); elsewhere it is an old one when there was one near it before. What is
lost or new is blended back: around it the slice becomes again what it was, with a smooth transition.

What counts is what is found on whole slices, as whoever uses the labels will look. Another machine rounds in another
way, so there is a margin around the operating point, in which no probability may get worse by more than a tolerance;
none may cross it. Both are of log-odds: a network that is sure of itself has its operating point near 1, where
probabilities lie close.

A composite is its lung but near the nodules. A detector that can look again sees only that part, and the rest is what
it found on the lung. A window moves probabilities a little, so it decides only where nothing is in doubt: where a
probability comes nearer than `doubt` to what the check minds, the whole slices are looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from scipy import special

from lungsynth.geometry import Box
from lungsynth.types import MIN_HIT_RADIUS_MM, CandidateDetector, Candidates, HuPlane, Plane

if TYPE_CHECKING:
    from lungsynth.compositing.render import Rendered

__all__ = [
    "LABEL_CHECK_DOUBT",
    "LABEL_CHECK_MARGIN",
    "LABEL_CHECK_RULES",
    "LABEL_CHECK_TOLERANCE",
    "MAX_ROUNDS",
    "SHARE_STEPS",
    "FindingChanges",
    "LabelCheck",
    "LabelComparison",
    "LooksAgain",
    "LungLook",
    "SliceLook",
    "Spot",
    "transition_mask",
]

# Of the check that `stage.open_stage` makes, in log-odds. A wider margin or a smaller tolerance blends more back, and
# leaves less to chance on machines that round differently (docs/results/enhancement.md has what these leave).
LABEL_CHECK_MARGIN, LABEL_CHECK_TOLERANCE = 1.0, 0.2
LABEL_CHECK_DOUBT = 0.05  # of log-odds, by which a window may be off; docs/results/enhancement.md has how far it is
MAX_ROUNDS = 3  # of blending back before a slice is refused; each costs one look of the detector
SHARE_STEPS = 256  # steps of a transition, so that shares are stored exactly

_SAME_MM = 5.0  # candidates before and after this near are one; a detection's centre moves when a slice changes
_SLICE_MM = 1.0  # thickness of a lone slice: no distance depends on it
_CLEAR_PX = 4  # around what is blended back, the slice is wholly what it was: the detector sees a rim, too
_TRANSITION_PX = 12  # over which it passes to the enhanced slice; a shorter one would draw an edge
_MIN_PROBABILITY = 1e-4  # no probability counts as nearer to 0 or 1 than this, where log-odds are rounding errors

# What decides over the check's results beside its detector; another number here makes another export.
LABEL_CHECK_RULES: Mapping[str, float] = {
    "margin": LABEL_CHECK_MARGIN,
    "tolerance": LABEL_CHECK_TOLERANCE,
    "doubt": LABEL_CHECK_DOUBT,
    "rounds": MAX_ROUNDS,
    "same_mm": _SAME_MM,
    "min_radius_mm": MIN_HIT_RADIUS_MM,
    "clear_px": _CLEAR_PX,
    "transition_px": _TRANSITION_PX,
    "min_probability": _MIN_PROBABILITY,
}


@runtime_checkable
class LooksAgain(Protocol):
    """A detector that need not see the whole of a slice which is another one but for some boxes.

    What `look` and `look_again` return has the attribute `candidates` (n, 5), as in a call.
    """

    def look(self, hu: HuPlane, spacing_mm: tuple[float, float], /) -> Any:
        """Looks at a slice (H, W)."""
        ...

    def look_again(self, findings: Any, hu: HuPlane, spacing_mm: tuple[float, float], changed: Sequence[Box], /) -> Any:
        """Looks at another slice, which differs from that of `findings` within the boxes alone."""
        ...


class Spot(NamedTuple):
    """A disc on a slice, in pixels."""

    row: float
    column: float
    radius_px: float


class SliceLook(NamedTuple):
    """What a detector found on a slice.

    Args:
        candidates: those that the check minds, in the slice's pixels.
        findings: what the detector's `look_again` goes on with; None where it has none.
    """

    candidates: Candidates
    findings: Any = None


class LungLook(NamedTuple):
    """What was found on a lung without nodules, before and after it was enhanced."""

    before: SliceLook
    after: SliceLook


class FindingChanges(NamedTuple):
    """What became of the findings in an image that was changed.

    Args:
        found: bool (nodules,), which of them were found before.
        gone: likewise, which of those are not found after.
        fallen: likewise, those and nodules that became less probable within the margin.
        n_new: candidates found after, on no nodule and not found before.
        risen: those, and candidates that became more probable within the margin.
    """

    found: np.ndarray
    gone: np.ndarray
    fallen: np.ndarray
    n_new: int
    risen: Candidates


@dataclass(frozen=True, kw_only=True)
class LabelComparison:
    """What a slice shows after, relative to before.

    Args:
        n_found: nodules found before.
        n_lost: those of them that are not found after.
        n_invented: candidates found after, on no nodule and not found before.
        lost: what is to be blended back: those, and nodules that became less probable within the margin.
        invented: likewise, with candidates that became more probable within the margin.
    """

    n_found: int
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
        detector: of `lung_seg_bundle`; its `operating_point` says from which probability on it found something (0.5
            where it has none).
        same_mm: candidates before and after this near are one.
        margin: around the operating point, in log-odds; 0 compares what counts as found and nothing else.
        tolerance: of changes within the margin, in log-odds.
        doubt: how far a look at windows may be off, in log-odds (`is_clear`).
    """

    def __init__(
        self,
        detector: CandidateDetector,
        *,
        same_mm: float = _SAME_MM,
        margin: float = 0.0,
        tolerance: float = 0.0,
        doubt: float = 0.0,
    ) -> None:
        self.detector = detector
        self.operating_point = float(getattr(detector, "operating_point", 0.5))
        self.same_mm = same_mm
        self.margin, self.tolerance, self.doubt = margin, tolerance, doubt

    def detect(self, hu: HuPlane, spacing_mm: tuple[float, float]) -> Candidates:
        """The candidates of a slice, in its pixels."""
        return self.look(hu, spacing_mm).candidates

    def look(self, hu: HuPlane, spacing_mm: tuple[float, float]) -> SliceLook:
        """The candidates of a slice, with what `compare_windows` goes on from."""
        if isinstance(self.detector, LooksAgain):
            findings = self.detector.look(hu, spacing_mm)
            return SliceLook(self._minded(findings.candidates), findings)
        return SliceLook(self._minded(self.detector(hu[None], (_SLICE_MM, *spacing_mm))["candidates"]))

    def compare_windows(
        self, look: LungLook, image: HuPlane, sample: "Rendered", spacing_mm: tuple[float, float], boxes: Sequence[Box]
    ) -> LabelComparison | None:
        """`compare` by windows, `kept` only where nothing is in doubt; None where the detector sees whole slices alone.

        Args:
            look: at the lung.
            image: the enhanced slice.
            sample: the composite.
            spacing_mm: (row, column).
            boxes: where the two differ from the lung, before and after.
        """
        if not isinstance(self.detector, LooksAgain):
            return None
        before, after = (
            self._minded(self.detector.look_again(known.findings, plane, spacing_mm, boxes).candidates, self.doubt)
            for known, plane in ((look.before, sample.image), (look.after, image))
        )
        return self.compare(before, after, sample, spacing_mm, doubt=self.doubt)

    def _minded(self, found: Any, doubt: float = 0.0) -> Candidates:
        candidates = np.asarray(found, dtype=np.float64).reshape(-1, 5)
        counts = _log_odds(candidates[:, 4]) >= _log_odds(self.operating_point) - self.margin - doubt
        return np.asarray(candidates[counts])

    def compare(
        self,
        before: Candidates,
        after: Candidates,
        sample: "Rendered",
        spacing_mm: tuple[float, float],
        *,
        doubt: float = 0.0,
    ) -> LabelComparison:
        """What of `before` is in `after`.

        Args:
            before: candidates of the slice as it was.
            after: of the enhanced slice.
            sample: its nodules.
            spacing_mm: (row, column).
            doubt: so much less than the tolerance, in so much wider a margin, counts as worse.
        """
        changes = self.changes(
            before,
            after,
            on_nodules=lambda candidates: self._on_nodules(candidates, sample, spacing_mm),
            apart_mm=lambda candidates, others: _distances_mm(candidates, others[:, 1:3], spacing_mm),
            doubt=doubt,
        )
        pixel_mm = min(spacing_mm)
        return LabelComparison(
            n_found=int(changes.found.sum()),
            n_lost=int(changes.gone.sum()),
            n_invented=changes.n_new,
            lost=tuple(_spot(sample.boxes[index]) for index in np.flatnonzero(changes.fallen)),
            invented=tuple(Spot(float(c[1]), float(c[2]), float(c[3]) / 2 / pixel_mm) for c in changes.risen),
        )

    def changes(
        self,
        before: Candidates,
        after: Candidates,
        *,
        on_nodules: Callable[[Candidates], np.ndarray],
        apart_mm: Callable[[Candidates, Candidates], np.ndarray],
        doubt: float = 0.0,
    ) -> FindingChanges:
        """What became of findings, in two or three dimensions.

        Args:
            before: candidates of the image as it was.
            after: of the image as it is.
            on_nodules: which candidate is on which nodule, (candidates, nodules).
            apart_mm: from each candidate to each other one, (candidates, others).
            doubt: so much less than the tolerance, in so much wider a margin, counts as worse.
        """
        point, tolerance = _log_odds(self.operating_point), self.tolerance - doubt
        low, high = point - self.margin - doubt, point + self.margin + doubt
        was, still = (_log_odds(_highest(candidates, on_nodules(candidates))) for candidates in (before, after))
        gone = (was >= point) & (still < point)
        fallen = gone | (was >= low) & (still < np.minimum(was - tolerance, high))
        elsewhere = after[~on_nodules(after).any(axis=1)]
        near = apart_mm(before, elsewhere) <= self.same_mm
        old, present = _log_odds(_highest(before, near)), _log_odds(elsewhere[:, 4])
        new = (present >= point) & (old < point)
        risen = new | (present >= low) & (old < high) & (present > old + tolerance)
        return FindingChanges(
            found=was >= point, gone=gone, fallen=fallen, n_new=int(new.sum()), risen=elsewhere[risen]
        )

    def _on_nodules(self, candidates: Candidates, sample: "Rendered", spacing_mm: tuple[float, float]) -> np.ndarray:
        """Which candidate is on which nodule, (candidates, nodules)."""
        centres = np.array([_spot(box)[:2] for box in sample.boxes]).reshape(-1, 2)
        radii = [max(nodule.diameter_mm / 2, MIN_HIT_RADIUS_MM) for nodule in sample.annotations]
        near = _distances_mm(candidates, centres, spacing_mm) <= np.array(radii)
        for index, (box, mask) in enumerate(zip(sample.boxes, sample.masks, strict=True)):
            padded = np.pad(mask, 1)
            rows = np.clip(np.rint(candidates[:, 1]) - box.row_from + 1, 0, padded.shape[0] - 1).astype(int)
            columns = np.clip(np.rint(candidates[:, 2]) - box.column_from + 1, 0, padded.shape[1] - 1).astype(int)
            near[:, index] |= padded[rows, columns]
        return near


def transition_mask(spots: Sequence[Spot], shape: tuple[int, int]) -> Plane:
    """Share of the change that stays, (H, W), in steps of 1/256: 0 on the spots and around them, 1 farther away."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    kept = np.ones(shape, np.float32)
    for spot in spots:
        away = np.hypot(rows - spot.row, columns - spot.column) - spot.radius_px - _CLEAR_PX
        x = np.clip(away / _TRANSITION_PX, 0, 1)
        kept = np.minimum(kept, (x * x * (3 - 2 * x)).astype(np.float32))
    return np.rint(kept * SHARE_STEPS) / np.float32(SHARE_STEPS)


def _highest(candidates: Candidates, near: np.ndarray) -> np.ndarray:
    """Highest probability of the candidates (first axis of `near`) at each place; 0 where there is none."""
    return np.asarray(np.where(near, candidates[:, 4:5], 0.0).max(axis=0, initial=0.0))


def _log_odds(probability: Any) -> Any:
    return special.logit(np.clip(probability, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY))


def _spot(box: Box) -> Spot:
    """The disc around a box."""
    height, width = box.row_to - box.row_from, box.column_to - box.column_from
    row, column = box.row_from + (height - 1) / 2, box.column_from + (width - 1) / 2
    return Spot(row, column, float(np.hypot(height, width)) / 2)


def _distances_mm(candidates: Candidates, places: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """From each candidate to each place (row, column), (candidates, places)."""
    away = (candidates[:, None, 1:3] - places[None, :, :2]) * np.asarray(spacing_mm)
    return np.asarray(np.hypot(away[..., 0], away[..., 1]))
