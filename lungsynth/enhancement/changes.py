"""What enhancement did to a set of samples: HU of nodules, lung and the rest, and the fate of labels.

HU are counted, not averaged, so that sums over samples, and differences of parts of a slice, are exact.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from lungsynth.hounsfield import Label
from lungsynth.types import HuPlane, LabelPlane

__all__ = ["CHANGE_BINS", "ZONES", "Changes", "change_summary"]

ZONES = ("outside", "lung", "nodule")  # in the order of `Label`
CHANGE_BINS = 512  # of 1 HU; larger changes count as 511 HU, and the enhancer's are bounded by far less
_VERDICTS = ("unchecked", "kept", "blended", "refused")  # of `stage.EnhancedSlice`

Counts = Int64[np.ndarray, "3 512"]


@dataclass(frozen=True, eq=False)
class Changes:
    """Pixels of each zone by their absolute change in whole HU."""

    counts: Counts

    @classmethod
    def none(cls) -> "Changes":
        """Of no pixel."""
        return cls(np.zeros((len(ZONES), CHANGE_BINS), np.int64))

    @classmethod
    def of(cls, before: HuPlane, after: HuPlane, label: LabelPlane) -> "Changes":
        """Counts the pixels of a slice or a part of one; unlabelled pixels are outside."""
        change = np.minimum(np.abs(after.astype(np.int32) - before), CHANGE_BINS - 1)
        zone = np.where(label <= Label.NODULE, label, Label.BACKGROUND).astype(np.int32)
        flat = np.bincount((zone * CHANGE_BINS + change).ravel(), minlength=len(ZONES) * CHANGE_BINS)
        return cls(flat.reshape(len(ZONES), CHANGE_BINS).astype(np.int64))

    @classmethod
    def total(cls, changes: Iterable["Changes"]) -> "Changes":
        """The sum of several."""
        return cls(sum((each.counts for each in changes), cls.none().counts))

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(self.counts + other.counts)

    def __sub__(self, other: "Changes") -> "Changes":
        return Changes(self.counts - other.counts)

    def figures(self) -> dict[str, float | None]:
        """`<zone>_mean_hu` and `<zone>_p95_hu`; None for a zone without pixels."""
        figures: dict[str, float | None] = {}
        for zone, counts in zip(ZONES, self.counts, strict=True):
            pixels = int(counts.sum())
            mean = float(counts @ np.arange(CHANGE_BINS)) / pixels if pixels else None
            highest = int(np.searchsorted(np.cumsum(counts), 0.95 * pixels)) if pixels else None
            figures |= {f"{zone}_mean_hu": mean, f"{zone}_p95_hu": highest}
        return figures


def change_summary(facts: Iterable[Mapping[str, Any]], changes: Changes) -> dict[str, float | None]:
    """The figures of a set.

    Args:
        facts: of each sample, as `stage.EnhancedSlice.facts` gives them.
        changes: of all samples together.

    Returns:
        `samples`; of those `unchecked`, `kept`, `blended` and `refused`; `nodules_found` in the composites; of those
        `nodules_lost`, and `nodules_invented`, by the enhancer, before blending set that right; `labels_kept` (share,
        likewise before; None where nothing was found); `<zone>_mean_hu`, `<zone>_p95_hu` of the samples as they are.
    """
    rows = list(facts)
    verdicts = Counter(row["verdict"] for row in rows)
    n_found, n_lost, n_invented = (sum(row[key] for row in rows) for key in ("found", "lost", "invented"))
    return {
        "samples": len(rows),
        **{verdict: verdicts[verdict] for verdict in _VERDICTS},
        "nodules_found": n_found,
        "nodules_lost": n_lost,
        "nodules_invented": n_invented,
        "labels_kept": 1 - n_lost / n_found if n_found else None,
        **changes.figures(),
    }
