"""Pixel by pixel: how well a mask agrees with the readers'.

Finding nothing has a high accuracy, because most pixels are no nodule; balanced accuracy, the mean of the shares of
nodule and of other pixels that are right, is 0.5 then. Counts are pooled over slices; Dice is a mean over slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index

__all__ = ["PixelCounts", "dice", "pixel_estimates"]

_Mask = Bool[np.ndarray, "*shape"]


@dataclass(frozen=True, kw_only=True)
class PixelCounts:
    """Pixels of one slice, by reference (positive: nodule) and answer.

    Args:
        patient: whose slice it is.
        nodule: id of the nodule.
    """

    patient: str
    nodule: str
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @classmethod
    def of(cls, answer: _Mask, reference: _Mask, looked_at: _Mask, *, patient: str, nodule: str) -> "PixelCounts":
        """Counts of the pixels looked at."""
        return cls(
            patient=patient,
            nodule=nodule,
            true_positive=int((answer & reference & looked_at).sum()),
            false_positive=int((answer & ~reference & looked_at).sum()),
            false_negative=int((~answer & reference & looked_at).sum()),
            true_negative=int((~answer & ~reference & looked_at).sum()),
        )

    @property
    def dice(self) -> float:
        """Of answer and reference; 1 when both are empty."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else 1.0


def dice(first: _Mask, second: _Mask) -> float:
    """Of two masks; 1 when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def pixel_estimates(counts: Sequence[PixelCounts], *, seed: int) -> dict[str, Estimate]:
    """`accuracy` and `balanced_accuracy` over all pixels; `dice`, a mean over slices; `dice_per_nodule`."""
    patients = sorted({count.patient for count in counts})
    place = patient_index([count.patient for count in counts], patients)
    rows = [(c.true_positive, c.false_positive, c.false_negative, c.true_negative, c.dice, 1) for c in counts]
    sums = _by_patient(np.reshape(rows, (-1, 6)), place, len(patients))
    nodules = _by_patient(*_nodule_rows(counts, patients), len(patients))

    def statistic(weights: PatientCounts) -> list[float]:
        tp, fp, fn, tn, dices, slices = weights @ sums
        shares = (_share(tp, tp + fn), _share(tn, tn + fp))
        accuracy = _share(tp + tn, tp + tn + fp + fn)
        return [accuracy, float(np.mean(shares)), _share(dices, slices), _share(*(weights @ nodules))]

    n_nodules = len({count.nodule for count in counts})
    found = estimate([patients], statistic, n=[len(counts), len(counts), len(counts), n_nodules], seed=seed)
    return dict(zip(("accuracy", "balanced_accuracy", "dice", "dice_per_nodule"), found, strict=True))


def _nodule_rows(counts: Sequence[PixelCounts], patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(Dice of all slices together, 1) of each nodule, and its patient's place."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for count in counts:
        both = np.array([2 * count.true_positive, count.false_positive + count.false_negative])
        key = count.patient, count.nodule
        sums[key] = sums.get(key, np.zeros(2, dtype=np.int64)) + both
    rows = [(float(twice / (twice + wrong)) if twice + wrong else 1.0, 1.0) for twice, wrong in sums.values()]
    return np.reshape(rows, (-1, 2)), patient_index([patient for patient, _ in sums], patients)


def _by_patient(rows: np.ndarray, place: np.ndarray, patients: int) -> np.ndarray:
    sums = np.zeros((patients, rows.shape[1]))
    np.add.at(sums, place, rows)
    return sums


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
