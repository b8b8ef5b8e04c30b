# SPDX-License-Identifier: Apache-2.0
"""Two terms that any objective may have beside it, as pure functions: the slope of a critic, the size of a nodule."""

import torch
from torch import Tensor, nn

from .slopes import slopes_only

__all__ = ["disc_diameter_mm", "gradient_penalty"]


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
        with slopes_only():
            scores = critic(x, *conditions)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


def disc_diameter_mm(mask: Tensor, spacing_mm: float) -> Tensor:
    """Diameter of the disc of the same area as a soft mask (B, H, W) at 0.5, in mm, shape (B,), with a gradient.

    The step at 0.5 is a steep sigmoid, shifted and scaled to send 0 to 0 and 1 to 1, so that an empty mask has no area.
    """
    low, high = torch.sigmoid(torch.tensor([-5.0, 5.0])).tolist()
    inside = (torch.sigmoid((mask - 0.5) * 10) - low) / (high - low)
    return 2 * spacing_mm * (inside.sum(dim=(1, 2)) / torch.pi + 1e-3).sqrt()
