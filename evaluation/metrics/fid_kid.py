"""Distances of two sets of features, and the Inception Score; each with weights, so that patients can be resampled.

FID: Heusel et al. (2017). KID: Binkowski et al. (2018), all pairs at once instead of random subsets. IS: Salimans et
al. (2016), one split. torchmetrics computes the same three (tests/test_evaluation_metrics.py compares) but without
weights.

A weight counts how often a sample was drawn. Pairs of a sample with itself never count in KID, so that drawing one
twice does not bring a set nearer to itself.
"""

import numpy as np
from jaxtyping import Float

from lungsynth.errors import InputError

__all__ = ["KernelMatrices", "Vectors", "frechet_distance", "inception_score", "kernel_distance", "kernel_matrices"]

Vectors = Float[np.ndarray, "_ features"]
SampleWeights = Float[np.ndarray, " _"]
KernelMatrices = tuple[np.ndarray, np.ndarray, np.ndarray]


def frechet_distance(
    x: Vectors,
    y: Vectors,
    *,
    x_weights: SampleWeights | None = None,
    y_weights: SampleWeights | None = None,
) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), covariances with n - 1 below; biased upwards at small n.

    The trace of the root is the nuclear norm of R_x R_y^T for any R with R^T R = S, which needs no complex root.

    Raises:
        InputError: with fewer than two samples on a side.
    """
    (mean_x, root_x), (mean_y, root_y) = _moments(x, x_weights), _moments(y, y_weights)
    product = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    spread = (root_x**2).sum() + (root_y**2).sum() - 2 * product
    return float(((mean_x - mean_y) ** 2).sum() + max(spread, 0.0))


def kernel_matrices(x: Vectors, y: Vectors) -> KernelMatrices:
    """k(x, x), k(x, y), k(y, y) of the kernel (a . b / F + 1)^3."""
    return _kernel(x, x), _kernel(x, y), _kernel(y, y)


def kernel_distance(
    kernels: KernelMatrices, *, x_weights: SampleWeights | None = None, y_weights: SampleWeights | None = None
) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy; may be negative.

    Raises:
        InputError: with fewer than two samples on a side.
    """
    within_x, across, within_y = kernels
    a = np.ones(len(within_x)) if x_weights is None else x_weights
    b = np.ones(len(within_y)) if y_weights is None else y_weights
    return _within(within_x, a) + _within(within_y, b) - 2 * float(a @ across @ b) / float(a.sum() * b.sum())


def inception_score(probabilities: Float[np.ndarray, "n classes"], *, weights: SampleWeights | None = None) -> float:
    """Exp of the mean of KL(p(class | sample) | p(class)); between 1 and the number of classes."""
    w = np.ones(len(probabilities)) if weights is None else weights
    p = np.clip(probabilities, 1e-12, None)
    marginal = (w @ p) / w.sum()
    divergence = (p * (np.log(p) - np.log(marginal))).sum(axis=1)
    return float(np.exp((w @ divergence) / w.sum()))


def _moments(x: Vectors, weights: SampleWeights | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a matrix R with R^T R = the covariance."""
    w = np.ones(len(x)) if weights is None else weights
    total = float(w.sum())
    if total < 2:
        raise InputError(f"A Fréchet distance needs two samples or more on each side, got {total:g}.")
    mean = (w @ x) / total
    rows = (x - mean) * np.sqrt(w / (total - 1))[:, None]
    if rows.shape[0] <= rows.shape[1]:
        return mean, rows
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return mean, (vectors * np.sqrt(np.clip(values, 0, None))).T


def _kernel(a: Vectors, b: Vectors) -> np.ndarray:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _within(kernel: np.ndarray, w: np.ndarray) -> float:
    pairs = float(w.sum() ** 2 - (w**2).sum())
    if pairs <= 0:
        raise InputError("A kernel distance needs two samples or more on each side.")
    return float(w @ kernel @ w - (w**2) @ np.diag(kernel)) / pairs
