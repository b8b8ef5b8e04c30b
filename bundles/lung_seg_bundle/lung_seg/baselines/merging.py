# SPDX-License-Identifier: Apache-2.0
"""From what is found on single slices to candidates of a volume: one nodule, one candidate.

The most probable find is the seed of a candidate and takes all finds within its sphere, the next one left is the next
seed; the sphere moves to the middle of what it holds. So chains of finds along a vessel fall into spheres and never
become one long candidate.
"""

import numpy as np

__all__ = ["merge_finds"]

_LEAST_RADIUS_MM = 3.0
_CLIMBS = 3
_STRONG = 0.5  # finds of at least this share of the seed's probability say where the candidate is and how large


def merge_finds(finds: np.ndarray, *, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Candidates of a volume, the most probable first.

    A sphere reaches a slice further than its radius, since slices lie apart.

    Args:
        finds: (n, 5): slice, row, column (voxels), diameter in mm, probability.
        spacing_mm: (slice, row, column).

    Returns:
        float32 (m, 5), columns alike: the place is the mean of the sphere's strong finds, the diameter their largest,
        the probability the seed's.
    """
    left = finds[np.argsort(-finds[:, 4], kind="stable")]
    merged = []
    while len(left):
        seed, place = left[0], left[0, :3]
        radius = max(seed[3] / 2, _LEAST_RADIUS_MM)
        for _ in range(_CLIMBS):
            taken = _within(left[:, :3], place, radius, spacing_mm)
            taken[0] = True
            strong = left[taken & (left[:, 4] >= _STRONG * seed[4])]
            place = np.average(strong[:, :3], axis=0, weights=strong[:, 4])
        merged.append([*place, strong[:, 3].max(), seed[4]])
        left = left[~taken]
    return np.array(merged, dtype=np.float32).reshape(-1, 5)


def _within(
    places: np.ndarray, middle: np.ndarray, radius_mm: float, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    apart = np.abs(places - middle) * spacing_mm
    apart[:, 0] = np.maximum(apart[:, 0] - spacing_mm[0], 0)
    return np.asarray(np.linalg.norm(apart, axis=1) <= radius_mm)
