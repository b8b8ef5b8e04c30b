"""Whether generated samples lie where real ones do, and the other way round.

Precision and recall: Kynkäänniemi et al. (2019), k = 3. Density and coverage: Naeem et al. (2020), k = 5. A set's
manifold is the union of spheres around its samples, each reaching to its k-th nearest neighbour in the set.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from evaluation.metrics.fid_kid import SampleWeights, Vectors
from lungsynth.errors import InputError
from lungsynth.similarity.features import pairwise_distance

__all__ = ["Manifolds", "compare_manifolds"]

_PRECISION_K, _DENSITY_K = 3, 5  # neighbours, as in the two papers; more make the spheres larger and all figures higher

PairMask = Bool[np.ndarray, "real generated"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifolds:
    """Which generated sample lies in which real one's sphere, and the other way round; made by `compare_manifolds`.

    Args:
        in_real: in the sphere of 3 neighbours of the real sample.
        in_generated: the real sample lies in the sphere of 3 neighbours of the generated one.
        in_real_wide: in the sphere of 5 neighbours of the real sample.
    """

    in_real: PairMask
    in_generated: PairMask
    in_real_wide: PairMask

    def figures(self, real: SampleWeights, generated: SampleWeights) -> tuple[float, float, float, float]:
        """Precision, recall, density and coverage; counts say how often a sample was drawn.

        The spheres stay those of the whole set: they describe the feature space, the draw says who is in it.
        """
        drawn_real, drawn_generated = (real > 0).astype(np.float64), (generated > 0).astype(np.float64)
        precision = generated @ (drawn_real @ self.in_real > 0) / generated.sum()
        recall = real @ (self.in_generated @ drawn_generated > 0) / real.sum()
        density = float(real @ self.in_real_wide @ generated) / (_DENSITY_K * generated.sum() * real.sum() / len(real))
        coverage = real @ (self.in_real_wide @ drawn_generated > 0) / real.sum()
        return float(precision), float(recall), float(density), float(coverage)


def compare_manifolds(real: Vectors, generated: Vectors) -> Manifolds:
    """Compares all pairs.

    Raises:
        InputError: with too few samples for five neighbours.
    """
    if min(len(real), len(generated)) <= _DENSITY_K:
        raise InputError(
            f"Neighbours need more than {_DENSITY_K} samples a side, got {len(real)} and {len(generated)}."
        )
    across = pairwise_distance(real, generated)
    radii_real, radii_generated = _sorted_neighbours(real), _sorted_neighbours(generated)
    return Manifolds(
        in_real=across <= radii_real[:, _PRECISION_K - 1, None],
        in_generated=across <= radii_generated[None, :, _PRECISION_K - 1],
        in_real_wide=across <= radii_real[:, _DENSITY_K - 1, None],
    )


def _sorted_neighbours(x: Vectors) -> Float[np.ndarray, "n k"]:
    """Distances to the nearest neighbours, nearest first, without the sample itself."""
    distances = pairwise_distance(x, x)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :_DENSITY_K]
