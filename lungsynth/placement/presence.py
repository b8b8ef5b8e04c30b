"""Presence probability: where in the lungs nodules are found.

Positions are (u, v) in the bounding box of both lungs: u from the patient's right (0) to the left (1), v from
anterior (0) to posterior (1). The prior knows no single lung; that a nodule lies inside one is the business of
`placement`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from lungsynth.errors import InputError

__all__ = ["PresencePrior", "analytic_presence", "fit_presence"]

Positions = Float[np.ndarray, "points 2"]


@dataclass(frozen=True, eq=False)
class PresencePrior:
    """Density over the unit square, constant in each cell of a grid.

    Args:
        grid: (v, u), not negative; scaled here to a mean of 1, so that a value is a probability density.

    Raises:
        InputError: when the grid holds negative or no finite values, or is empty everywhere.
    """

    grid: Float[np.ndarray, "v u"]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.grid).all() and self.grid.min() >= 0 and self.grid.sum() > 0):
            raise InputError("A presence prior needs finite densities, none negative and not all zero.")
        object.__setattr__(self, "grid", self.grid / self.grid.mean())

    def density(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Density at (u, v), arrays of one shape; 0 outside the unit square."""
        rows, columns = self.grid.shape
        inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        row = np.clip(v * rows, 0, rows - 1).astype(int)
        column = np.clip(u * columns, 0, columns - 1).astype(int)
        return np.where(inside, self.grid[row, column], 0.0)

    def sample(self, rng: np.random.Generator, n: int) -> Positions:
        """Draws n positions, (n, 2) as (u, v)."""
        return self.positions(rng.random((n, 3)))

    def positions(self, numbers: Float[np.ndarray, "points 3"]) -> Positions:
        """The positions that uniform numbers in [0, 1) stand for: a cell, and where in it."""
        rows, columns = self.grid.shape
        edges = np.cumsum(self.grid)
        cell = np.searchsorted(edges, numbers[:, 0] * edges[-1], side="right")
        row, column = np.divmod(np.minimum(cell, self.grid.size - 1), columns)
        return np.stack([(column + numbers[:, 1]) / columns, (row + numbers[:, 2]) / rows], axis=1)


def analytic_presence(*, cells: int = 64, posterior: float = 2.0, peripheral: float = 2.0) -> PresencePrior:
    """Two ellipses, one a lung, that favour the periphery and the posterior.

    Args:
        cells: cells along u and v.
        posterior: density at the back over that at the front.
        peripheral: density at an ellipse's rim over that at its middle.
    """
    middle = (np.arange(cells) + 0.5) / cells
    v, u = np.meshgrid(middle, middle, indexing="ij")
    side = np.minimum(u, 1 - u)  # 0 at the lateral wall, 0.5 in the midline
    radius = np.hypot((side - 0.22) / 0.22, (v - 0.5) / 0.5)
    inside = np.clip((1.1 - radius) / 0.2, 0, 1)
    return PresencePrior(inside * (1 + (posterior - 1) * v) * (1 + (peripheral - 1) * np.minimum(radius, 1)))


def fit_presence(
    points: Positions,
    *,
    weights: Float[np.ndarray, " points"] | None = None,
    cells: int = 64,
    bandwidth: float = 0.06,
    prior: PresencePrior | None = None,
    prior_points: float = 50,
) -> PresencePrior:
    """Kernel density of measured positions, mixed with a prior that counts as `prior_points` positions.

    Args:
        points: (n, 2) as (u, v), from `LungShape.to_unit`; those outside the unit square are left out.
        weights: how many positions each counts as; 1 when None.
        cells: cells along u and v.
        bandwidth: standard deviation of the Gaussian kernel, as a share of the bounding box.
        prior: `analytic_presence` when None.
        prior_points: how many positions the prior is worth.
    """
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=cells, range=((0, 1), (0, 1)), weights=weights)
    smooth = ndimage.gaussian_filter(counts, bandwidth * cells, mode="reflect") * cells**2
    middle = (np.arange(cells) + 0.5) / cells
    v, u = np.meshgrid(middle, middle, indexing="ij")
    return PresencePrior(smooth + prior_points * (prior or analytic_presence(cells=cells)).density(u, v))
