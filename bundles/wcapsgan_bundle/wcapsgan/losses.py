# SPDX-License-Identifier: Apache-2.0
"""The terms of critic and generator (Arjovsky 2017; Gulrajani 2017), as small pure functions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "CriticTerms",
    "GeneratorTerms",
    "LossWeights",
    "disc_diameter_mm",
    "gradient_penalty",
]


class LossWeights(NamedTuple):
    """How much each term counts.

    Attributes:
        gradient_penalty: 10 in Gulrajani 2017.
        drift: keeps real scores near 0, where nothing else would hold them (Karras 2018).
        diameter: a mm of difference between the diameter asked for and the one made; 0 for lungs.
    """

    gradient_penalty: float = 10.0
    drift: float = 1e-3
    diameter: float = 0.25


class CriticTerms(NamedTuple):
    """Scalars: the estimated Wasserstein distance, the gradient penalty and the drift."""

    distance: Tensor
    penalty: Tensor
    drift: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """What the critic minimises."""
        return -self.distance + weights.gradient_penalty * self.penalty + weights.drift * self.drift


class GeneratorTerms(NamedTuple):
    """Scalars: the negative score of the generated samples and the error of their diameters in mm."""

    adversarial: Tensor
    diameter: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """What the generator minimises."""
        return self.adversarial + weights.diameter * self.diameter


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, conditions: tuple[Tensor, ...], mix: Tensor
) -> Tensor:
    """Mean squared distance of the critic's slope from 1, between real and generated samples (Gulrajani 2017, Eq. 3).

    In float32 whatever surrounds it: the slope is a small number made of many products.

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
        (slope,) = torch.autograd.grad(critic(x, *conditions).sum(), x, create_graph=True)
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


def disc_diameter_mm(mask: Tensor, spacing_mm: float) -> Tensor:
    """Diameter of the disc of the same area as a soft mask (B, H, W) at 0.5, in mm, shape (B,), with a gradient.

    The step at 0.5 is a steep sigmoid, shifted and scaled to send 0 to 0 and 1 to 1, so that an empty mask has no area.
    """
    low, high = torch.sigmoid(torch.tensor([-5.0, 5.0])).tolist()
    inside = (torch.sigmoid((mask - 0.5) * 10) - low) / (high - low)
    return 2 * spacing_mm * (inside.sum(dim=(1, 2)) / torch.pi + 1e-3).sqrt()
