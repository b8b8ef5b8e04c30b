# SPDX-License-Identifier: Apache-2.0
"""DCGAN (Radford et al., 2016): strided convolutions, batch norm, no dense layers. Also the networks of WGAN-GP.

The coarsest features are 4 x 4; channels halve at each doubling of the resolution, as in the original, and begin with
`width` instead of 1024.
"""

import itertools

import torch
from torch import Tensor, nn

from ..double_backward import NEGATIVE_SLOPE, InputGradientConv2d, InputGradientLeakyReLU
from ..modules import doublings
from .interface import ConditionalGenerator, Conditions, halving_widths, to_sample, with_planes

__all__ = ["DcganCritic", "DcganGenerator"]

_NARROWEST = 16  # channels at fine resolutions, at least; not tried otherwise


class DcganGenerator(ConditionalGenerator):
    """Transposed convolutions from 4 x 4 features to a sample; the condition stands beside the latent.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image, 4 times a power of two.
        width: channels of the coarsest features.
    """

    def __init__(self, *, latent_dim: int, n_categories: int, size: int, width: int) -> None:
        super().__init__(latent_dim=latent_dim, n_categories=n_categories, size=size)
        widths = halving_widths(width, doublings(size, 4), narrowest=min(_NARROWEST, width))
        layers = [nn.ConvTranspose2d(latent_dim + self.conditions.width, width, 4, bias=False)]
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.ConvTranspose2d(widths[-1], 2, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)
        self.apply(_start_small)

    def forward(self, latent: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Samples (B, 2, size, size) of latents (B, latent_dim), categories (B,) and diameters (B,)."""
        x = torch.cat([latent, self.conditions(category, diameter_mm)], dim=1)
        return to_sample(self.layers(x[:, :, None, None]))


class DcganCritic(nn.Module):
    """Strided convolutions down to one number; the condition stands beside the image as constant planes.

    Args:
        n_categories: at least 1.
        size: pixels of the square image, 4 times a power of two.
        width: channels of the coarsest features.
        batch_norm: as in DCGAN. Not with a gradient penalty, which is one of each sample (Gulrajani 2017, section 4).
    """

    def __init__(self, *, n_categories: int, size: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.conditions = Conditions(n_categories)
        widths = halving_widths(width, doublings(size, 4), narrowest=min(_NARROWEST, width))[::-1]  # fine to coarse
        layers: list[nn.Module] = [
            InputGradientConv2d(2 + self.conditions.width, widths[0], 4, 2, 1),
            InputGradientLeakyReLU(NEGATIVE_SLOPE),
        ]
        for narrow, wide in itertools.pairwise(widths):
            layers.append(InputGradientConv2d(narrow, wide, 4, 2, 1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(wide)] if batch_norm else []
            layers.append(InputGradientLeakyReLU(NEGATIVE_SLOPE))
        self.layers = nn.Sequential(*layers, InputGradientConv2d(width, 1, 4))
        if batch_norm:
            self.apply(_start_small)

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Logits or scores (B,) of samples (B, 2, size, size); higher is more real."""
        return self.layers(with_planes(x, self.conditions(category, diameter_mm))).flatten()


def _start_small(layer: nn.Module) -> None:
    """Weights of standard deviation 0.02 (Radford 2016, section 4)."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
