# SPDX-License-Identifier: Apache-2.0
"""GAN (Goodfellow et al., 2014): two networks of dense layers.

The original's maxout units and dropout are left out, its generator's rectifiers are kept. A dense layer of 256 x 256
pixels would alone have more weights than all other methods together, so the networks work on at most
`pixels` x `pixels`: larger samples are interpolated from them, and averaged to them.
"""

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..double_backward import NEGATIVE_SLOPE
from .interface import ConditionalGenerator, Conditions, to_sample

__all__ = ["PlainDiscriminator", "PlainGenerator"]


class PlainGenerator(ConditionalGenerator):
    """Latent and condition through dense layers to all pixels of image and mask.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image.
        widths: of the hidden layers.
        pixels: of the side that the dense layers make; `size` must be a multiple of it, or smaller.
    """

    def __init__(
        self, *, latent_dim: int, n_categories: int, size: int, widths: Sequence[int] = (256, 80), pixels: int = 64
    ) -> None:
        super().__init__(latent_dim=latent_dim, n_categories=n_categories, size=size)
        self.pixels = _side(size, pixels)
        every = [latent_dim + self.conditions.width, *widths]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(every):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(every[-1], 2 * self.pixels**2))

    def forward(self, latent: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Samples (B, 2, size, size) of latents (B, latent_dim), categories (B,) and diameters (B,)."""
        x = self.layers(torch.cat([latent, self.conditions(category, diameter_mm)], dim=1))
        x = rearrange(x, "b (c h w) -> b c h w", h=self.pixels, w=self.pixels).float()
        if self.pixels < self.size:
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear")
        return to_sample(x)


class PlainDiscriminator(nn.Module):
    """All pixels of image and mask, and the condition, through dense layers to a logit.

    Args:
        n_categories: at least 1.
        size: pixels of the square image.
        widths: of the hidden layers.
        pixels: see `PlainGenerator`.
    """

    def __init__(self, *, n_categories: int, size: int, widths: Sequence[int] = (80, 256), pixels: int = 64) -> None:
        super().__init__()
        self.conditions = Conditions(n_categories)
        self.scale = size // _side(size, pixels)
        every = [2 * _side(size, pixels) ** 2 + self.conditions.width, *widths]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(every):
            layers += [nn.Linear(wide, narrow), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(every[-1], 1))

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Logits (B,) of samples (B, 2, size, size); positive is real."""
        pixels = functional.avg_pool2d(x, self.scale).flatten(1)
        return self.layers(torch.cat([pixels, self.conditions(category, diameter_mm)], dim=1)).squeeze(1)


def _side(size: int, pixels: int) -> int:
    side = min(size, pixels)
    if size % side:
        raise ValueError(f"size must be a multiple of pixels ({pixels}) or smaller, got {size}.")
    return side
