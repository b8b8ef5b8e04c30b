"""Agreement of a mask with the readers', pixel by pixel.

An empty mask has a high accuracy, because most pixels are no nodule; balanced accuracy, the mean of the shares of
nodule and of other pixels that are correct, is 0.5 then. Counts are pooled over slices; Dice is a mean over slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from evaluation.metrics.bootstrap import Estimates, PatientCounts, estimate, patient_index

__all__ = ["PixelCounts", "dice", "pixel_estimates"]

AnyMask = Bool[np.ndarray, "*shape"]


@dataclass(frozen=True, kw_only=True)
class PixelCounts:
    """Pixels of one slice, by reference (positive: nodule) and predicted mask.

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
    def of(cls, mask: AnyMask, reference: AnyMask, valid: AnyMask, *, patient: str, nodule: str) -> "PixelCounts":
        """Counts the valid pixels."""
        return cls(
            patient=patient,
            nodule=nodule,
            true_positive=int((mask & reference & valid).sum()),
            false_positive=int((mask & ~reference & valid).sum()),
            false_negative=int((~mask & reference & valid).sum()),
            true_negative=int((~mask & ~reference & valid).sum()),
        )

    @property
    def dice(self) -> float:
        """Of mask and reference; 1 when both are empty."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else 1.0


def dice(first: AnyMask, second: AnyMask) -> float:
    """Of two masks; 1 when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def pixel_estimates(counts: Sequence[PixelCounts], *, seed: int) -> Estimates:
    """`accuracy` and `balanced_accuracy` over all pixels; `dice`, a mean over slices; `dice_per_nodule`."""
    patients = sorted({count.patient for count in counts})
    owners = patient_index([count.patient for count in counts], patients)
    rows = [(c.true_positive, c.false_positive, c.false_negative, c.true_negative, c.dice, 1) for c in counts]
    sums = _sum_by_patient(np.reshape(rows, (-1, 6)), owners, len(patients))
    nodules = _sum_by_patient(*_nodule_rows(counts, patients), len(patients))

    def statistic(drawn: PatientCounts) -> list[float]:
        tp, fp, fn, tn, dices, slices = drawn @ sums
        shares = (_share(tp, tp + fn), _share(tn, tn + fp))
        accuracy = _share(tp + tn, tp + tn + fp + fn)
        return [accuracy, float(np.mean(shares)), _share(dices, slices), _share(*(drawn @ nodules))]

    n_nodules = len({count.nodule for count in counts})
    figures = estimate([patients], statistic, n=[len(counts), len(counts), len(counts), n_nodules], seed=seed)
    return dict(zip(("accuracy", "balanced_accuracy", "dice", "dice_per_nodule"), figures, strict=True))


def _nodule_rows(counts: Sequence[PixelCounts], patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(Dice of all slices together, 1) of each nodule, and the position of its patient."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for count in counts:
        terms = np.array([2 * count.true_positive, count.false_positive + count.false_negative])
        key = count.patient, count.nodule
        sums[key] = sums.get(key, np.zeros(2, dtype=np.int64)) + terms
    rows = [(float(twice / (twice + wrong)) if twice + wrong else 1.0, 1.0) for twice, wrong in sums.values()]
    return np.reshape(rows, (-1, 2)), patient_index([patient for patient, _ in sums], patients)


def _sum_by_patient(rows: np.ndarray, owners: np.ndarray, patients: int) -> np.ndarray:
    sums = np.zeros((patients, rows.shape[1]))
    np.add.at(sums, owners, rows)
    return sums


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
