# SPDX-License-Identifier: Apache-2.0
"""What all methods have in common: how they take the condition, and what a generator must have.

The condition of a sample is a vector: its category as one number of several, and its diameter scaled to order one and
its logarithm. Networks that know no other way take it beside their input (Mirza and Osindero, 2014): generators beside
the latent, critics of images as constant planes beside the image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..modules import diameter_features

__all__ = ["ConditionalGenerator", "Conditions", "halving_widths", "to_sample", "with_planes"]


class Conditions(nn.Module):
    """Category indices (B,) and diameters in mm (B,) to condition vectors (B, `width`)."""

    def __init__(self, n_categories: int) -> None:
        super().__init__()
        self.n_categories, self.width = n_categories, n_categories + 2

    def forward(self, category: Tensor, diameter_mm: Tensor) -> Tensor:
        diameter = diameter_features(diameter_mm)
        return torch.cat([functional.one_hot(category, self.n_categories).to(diameter.dtype), diameter], dim=1)


class ConditionalGenerator(nn.Module):
    """What trainer, sampler and average ask of a generator beside its forward pass.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image.

    Attributes:
        spatial_dims: 2; there are no cubes of these methods.

    The buffer `diameter_quantiles` (n_categories, 101) holds the percentiles of the training diameters in mm.
    """

    spatial_dims = 2

    def __init__(self, *, latent_dim: int, n_categories: int, size: int) -> None:
        super().__init__()
        self.latent_dim, self.n_categories, self.size = latent_dim, n_categories, size
        self.conditions = Conditions(n_categories)
        self.register_buffer("diameter_quantiles", torch.zeros(n_categories, 101))


def to_sample(x: Tensor) -> Tensor:
    """Features (B, 2, S, S) as an image in [-1, 1] and a mask in [0, 1], float32."""
    x = x.float()
    return torch.cat([torch.tanh(x[:, :1]), torch.sigmoid(x[:, 1:])], dim=1)


def with_planes(x: Tensor, conditions: Tensor) -> Tensor:
    """Images (B, C, S, S) with their condition vectors (B, n) as further, constant channels: (B, C + n, S, S)."""
    planes = conditions[:, :, None, None].to(x.dtype).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes], dim=1)


def halving_widths(coarsest: int, levels: int, *, narrowest: int) -> list[int]:
    """Channels from coarse to fine: halved at each doubling of the resolution, never fewer than `narrowest`."""
    return [max(coarsest // 2**level, narrowest) for level in range(levels)]
