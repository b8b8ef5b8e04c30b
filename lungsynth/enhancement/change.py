"""By how many HU a slice was changed, in the nodules, in the lung and outside: counts, of which sums can be made."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from lungsynth.hounsfield import Label
from lungsynth.types import HuPlane, LabelPlane

__all__ = ["ZONES", "Changes"]

ZONES = ("outside", "lung", "nodule")  # in the order of `Label`
_BINS = 512  # larger changes count as 511 HU

Counts = Int64[np.ndarray, "3 512"]


@dataclass(frozen=True, eq=False)
class Changes:
    """Pixels of each zone by their absolute change in whole HU."""

    counts: Counts

    @classmethod
    def none(cls) -> "Changes":
        """Of no pixel."""
        return cls(np.zeros((len(ZONES), _BINS), np.int64))

    @classmethod
    def of(cls, before: HuPlane, after: HuPlane, label: LabelPlane) -> "Changes":
        """Counts the pixels of a slice or a part of one; unlabelled pixels are outside."""
        change = np.minimum(np.abs(after.astype(np.int32) - before), _BINS - 1)
        zone = np.where(label <= Label.NODULE, label, Label.BACKGROUND).astype(np.int32)
        flat = np.bincount((zone * _BINS + change).ravel(), minlength=len(ZONES) * _BINS)
        return cls(flat.reshape(len(ZONES), _BINS).astype(np.int64))

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
        found: dict[str, float | None] = {}
        for zone, counts in zip(ZONES, self.counts, strict=True):
            pixels = int(counts.sum())
            mean = float(counts @ np.arange(_BINS)) / pixels if pixels else None
            highest = int(np.searchsorted(np.cumsum(counts), 0.95 * pixels)) if pixels else None
            found |= {f"{zone}_mean_hu": mean, f"{zone}_p95_hu": highest}
        return found
