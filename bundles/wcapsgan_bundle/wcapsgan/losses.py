# SPDX-License-Identifier: Apache-2.0
"""Terms that any objective may have beside it, as pure functions: gradient penalty and energy distance."""

import torch
from torch import Tensor, nn

from .double_backward import input_gradient_only

__all__ = ["energy_distance", "gradient_penalty"]

_LEAST_SQUARE = 1e-6  # added to squared distances: at 0 the root has no finite gradient


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, conditions: tuple[Tensor, ...], mix: Tensor
) -> Tensor:
    """Mean squared distance of the critic's gradient norm from 1, between samples (Gulrajani et al., 2017, Eq. 3).

    In float32 whatever surrounds it: the gradient is a small number made of many products.

    Args:
        critic: called as `critic(x, *conditions)`, returns scores (B,).
        real: samples (B, C, ...).
        fake: generated samples of the same conditions and shape, detached.
        conditions: category and diameter, each (B,).
        mix: share of the real sample, in [0, 1], shape (B,).
    """
    with torch.autocast(real.device.type, enabled=False):
        share = mix.float()[(...,) + (None,) * (real.ndim - 1)]
        x = (share * real.float() + (1 - share) * fake.float()).requires_grad_()
        with input_gradient_only():
            scores = critic(x, *conditions)
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


def energy_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Energy distance of two sets (Szekely and Rizzo, 2013), relative to the mean distance of two real samples.

    `2 E|x - y| - E|x - x'| - E|y - y'|` with Euclidean distances: 0 on average for sets of one distribution, 1 and
    more for generated samples that are all alike. The middle term drives them apart, which no critic that sees one
    sample at a time can do: it can only send all of them to where the real ones are.

    Args:
        real: (N, ...), N at least 2.
        fake: (M, ...), M at least 2.
    """
    x, y = fake.float().flatten(1), real.float().flatten(1)
    between = (x[:, None] - y).square().sum(dim=2).add(_LEAST_SQUARE).sqrt().mean()
    spread = _mean_distance(y)
    return (2 * between - _mean_distance(x) - spread) / spread


def _mean_distance(x: Tensor) -> Tensor:
    """Mean distance of two different rows of (N, F)."""
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    return (x[first] - x[second]).square().sum(dim=1).add(_LEAST_SQUARE).sqrt().mean()
