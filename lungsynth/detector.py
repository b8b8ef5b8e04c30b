"""What lungsynth asks of a nodule detector: the `detector` of `lung_seg_bundle`, or anything that behaves like it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lungsynth.geometry import Box
from lungsynth.types import HuPlane, HuVolume

__all__ = ["MIN_HIT_RADIUS_MM", "CandidateDetector", "Candidates", "LooksAgain"]

# LUNA16 counts a candidate as a hit within a nodule's radius of its centre. Of nodules below 4 mm it is at least this:
# a millimetre more or less says nothing of them.
MIN_HIT_RADIUS_MM = 2.0

Candidates = Float[np.ndarray, "_ 5"]  # slice, row, column (voxels, fractional), diameter in mm, probability


@runtime_checkable
class CandidateDetector(Protocol):
    """Finds what may be nodules.

    The attribute `operating_point` is the probability from which on a candidate counts. Some detectors have none, and
    each user says what holds then.
    """

    def __call__(self, hu: HuVolume, spacing_mm: tuple[float, float, float], /) -> Mapping[str, np.ndarray]:
        """Looks at a volume, a part of one, or a lone slice.

        Args:
            hu: int16 (D, H, W), HU; D may be 1.
            spacing_mm: (slice, row, column).

        Returns:
            `candidates` (n, 5), see `Candidates`, the most probable first, down to low probabilities; and maps of
            probabilities (D, H, W), `nodule` and `lung`, where the method has them.
        """
        ...


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
