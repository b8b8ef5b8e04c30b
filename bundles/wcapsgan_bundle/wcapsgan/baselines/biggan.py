# SPDX-License-Identifier: Apache-2.0
"""BigGAN (Brock et al., 2019), small: residual blocks, spectral norm, class-conditional batch norm, projection.

Kept: a part of the latent for each resolution, beside the embedded condition; spectral norm of both networks (Miyato et
al., 2018); orthogonal weights to begin with; the projection of the condition (Miyato and Koyama, 2018). Left out: self-
attention, truncated latents, orthogonal regularisation, and the large batches that gave it its name.
"""

import itertools

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from ..modules import doublings
from .interface import ConditionalGenerator, Conditions, halving_widths, to_sample

__all__ = ["BigGanCritic", "BigGanGenerator"]

# Channels at fine resolutions, at least; numbers that embed the condition. Neither was tried otherwise.
_NARROWEST, _CONDITION_DIM = 16, 32


class BigGanGenerator(ConditionalGenerator):
    """Residual blocks, each modulated by its part of the latent and by the condition.

    Args:
        latent_dim: of the standard normal prior, at least one number a resolution.
        n_categories: at least 1.
        size: pixels of the square image, 4 times a power of two.
        width: channels of the coarsest features; halved at each doubling of the resolution, not below 16.
    """

    def __init__(self, *, latent_dim: int, n_categories: int, size: int, width: int) -> None:
        super().__init__(latent_dim=latent_dim, n_categories=n_categories, size=size)
        levels = doublings(size, 4)
        if latent_dim <= levels:
            raise ValueError(f"latent_dim must be at least {levels + 1} for a size of {size}, got {latent_dim}.")
        widths = halving_widths(width, levels + 1, narrowest=min(_NARROWEST, width))
        part = latent_dim // (levels + 1)
        self.parts = [latent_dim - levels * part, *[part] * levels]
        self.embedding = nn.Linear(self.conditions.width, _CONDITION_DIM, bias=False)
        self.start = _normed(nn.Linear(self.parts[0], width * 16))
        self.blocks = nn.ModuleList(
            UpResidual(wide, narrow, part + _CONDITION_DIM) for wide, narrow in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = _normed(nn.Conv2d(widths[-1], 2, 3, padding=1))

    def forward(self, latent: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Samples (B, 2, size, size) of latents (B, latent_dim), categories (B,) and diameters (B,)."""
        condition = self.embedding(self.conditions(category, diameter_mm))
        first, *others = latent.split(self.parts, dim=1)
        x = rearrange(self.start(first), "b (c h w) -> b c h w", h=4, w=4)
        for block, part in zip(self.blocks, others, strict=True):
            x = block(x, torch.cat([part, condition.to(part.dtype)], dim=1))
        return to_sample(self.head(functional.relu(self.norm(x))))


class BigGanCritic(nn.Module):
    """Residual blocks down to 4 x 4, summed features, and a score with the projection of the condition.

    Args:
        n_categories: at least 1.
        size: pixels of the square image, 4 times a power of two.
        width: channels of the coarsest features.
    """

    def __init__(self, *, n_categories: int, size: int, width: int) -> None:
        super().__init__()
        self.conditions = Conditions(n_categories)
        widths = halving_widths(width, doublings(size, 4), narrowest=min(_NARROWEST, width))[::-1]  # fine to coarse
        pairs = itertools.pairwise([2, *widths])
        self.blocks = nn.ModuleList(DownResidual(inner, outer, first=inner == 2) for inner, outer in pairs)
        self.last = DownResidual(width, width, halve=False)
        self.score = _normed(nn.Linear(width, 1))
        self.projection = _normed(nn.Linear(self.conditions.width, width, bias=False))

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Scores (B,) of samples (B, 2, size, size); higher is more real."""
        for block in self.blocks:
            x = block(x)
        features = reduce(functional.relu(self.last(x)), "b c h w -> b c", "sum")
        direction = self.projection(self.conditions(category, diameter_mm))
        return self.score(features).squeeze(1) + (features * direction).sum(dim=1)


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and shift follow from a condition vector."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = _normed(nn.Linear(condition_dim, channels, bias=False))
        self.shift = _normed(nn.Linear(condition_dim, channels, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, shift = (rearrange(layer(condition), "b c -> b c () ()") for layer in (self.gain, self.shift))
        return torch.addcmul(shift, self.norm(x), 1 + gain)


class UpResidual(nn.Module):
    """Doubles the resolution: norm, rectifier, nearest neighbour, convolution, norm, rectifier, convolution."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(channels, condition_dim) for channels in (in_channels, out_channels))
        self.first = _normed(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.second = _normed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = _normed(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = functional.relu(self.norms[0](x, condition))
        y = self.first(functional.interpolate(y, scale_factor=2.0))
        y = self.second(functional.relu(self.norms[1](y, condition)))
        # A 1 x 1 convolution and copying pixels can change places; this way it sees a quarter of them.
        return y + functional.interpolate(self.shortcut(x), scale_factor=2.0)


class DownResidual(nn.Module):
    """Rectifier, convolution, rectifier, convolution, and the mean over 2 x 2 pixels; beside it a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, first: bool = False, halve: bool = True) -> None:
        super().__init__()
        self.is_first, self.scale = first, 2 if halve else 1
        self.first = _normed(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.second = _normed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels and not halve
        self.shortcut = nn.Identity() if same else _normed(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x if self.is_first else functional.relu(x))
        y = functional.avg_pool2d(self.second(functional.relu(y)), self.scale)
        return y + self.shortcut(functional.avg_pool2d(x, self.scale))


def _normed(layer: nn.Module) -> nn.Module:
    """A layer with orthogonal weights under spectral norm."""
    nn.init.orthogonal_(layer.weight)
    return spectral_norm(layer, eps=1e-6)
