# SPDX-License-Identifier: Apache-2.0
"""The detail stages: a coarse slice restored to a fine one, by a network that sees only so far.

A layout of 64 x 64 pixels of 5.6 mm says where lungs, heart and ribs lie; a few patients teach it. What coarsening took
away (vessels, fissures, the grain of a scanner) is local, and crops of many patients teach that. Each doubling adds its
detail to the enlarged output, and what is added changes no mean of a coarse pixel. All of it is convolutional, so a
network trained on patches restores whole slices.

Images are (B, 1, H, W), HU of the window [-1000, 400] mapped to [-1, 1].
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .double_backward import NEGATIVE_SLOPE

__all__ = ["DetailGenerator", "NoiseShape", "consistent", "enlarged"]

# Values at the start of a training; the shipped weights come from these, others were not tried.
_NOISE = 0.3  # strength of the noise
_SMALL = 0.3  # of a residual block's second convolution
_STYLE = 0.1  # standard deviation of the weights that read the style
_HEAD = 0.01  # and of those that make the output
_BEYOND = 0.05  # share of what lies outside [-1, 1] that is kept in training
_ROUNDS = 2  # of `consistent`


class NoiseShape(NamedTuple):
    """The noise of a scale: fields, one a residual block, and their rows and columns."""

    fields: int
    rows: int
    columns: int


def enlarged(coarse: Tensor, factor: int) -> Tensor:
    """A coarse image (B, C, h, w) interpolated linearly to (B, C, factor * h, factor * w)."""
    return functional.interpolate(coarse, scale_factor=float(factor), mode="bilinear", align_corners=False)


def consistent(fine: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """A fine image (B, 1, H, W), shifted smoothly so that its block means are the coarse image (B, 1, h, w).

    Each round adds what is missing, interpolated; the second finds what interpolation lost.
    """
    for _ in range(_ROUNDS):
        fine = fine + enlarged(coarse - functional.avg_pool2d(fine, factor), factor)
    return fine


class _NoisyBlock(nn.Module):
    """A residual block of two convolutions, with white noise and a style between them.

    Args:
        channels: of its features.
        style_dim: of the style, which scales the features.
    """

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.strength = nn.Parameter(_NOISE * torch.randn(channels, 1, 1))
        self.scale = nn.Linear(style_dim, channels)
        nn.init.kaiming_normal_(self.first.weight, a=NEGATIVE_SLOPE)
        nn.init.kaiming_normal_(self.second.weight, a=NEGATIVE_SLOPE)
        nn.init.normal_(self.scale.weight, std=_STYLE)
        with torch.no_grad():
            self.second.weight.mul_(_SMALL)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Features (B, C, H, W), style (B, S) and standard normal noise (B, 1, H, W) to features (B, C, H, W)."""
        gain = 1 + self.scale(style)[:, :, None, None]
        h = functional.leaky_relu(self.first(x) * gain + self.strength * noise, NEGATIVE_SLOPE)
        return x + self.second(h)


class DetailGenerator(nn.Module):
    """Restores coarse images, a doubling after the other.

    Args:
        channels: of the features, one number a scale from the coarse one to the finest; one doubling fewer.
        blocks: residual blocks, one number a scale.
        style_dim: numbers that hold for a whole image, standard normal; what they mean, a training decides
            (`texture.TextureStyle`: the first ones are noise and sharpness).

    Raises:
        ValueError: when the two lists differ in length, or there is no doubling.
    """

    def __init__(self, *, channels: Sequence[int], blocks: Sequence[int], style_dim: int = 8) -> None:
        super().__init__()
        if len(channels) != len(blocks) or len(channels) < 2:
            raise ValueError(
                f"channels and blocks must have a number for each of two scales or more, got {list(channels)} and "
                f"{list(blocks)}."
            )
        self.style_dim = style_dim
        self.blocks_per_scale = tuple(blocks)
        self.factor = 2 ** (len(channels) - 1)
        self.first = nn.Conv2d(1, channels[0], kernel_size=3, padding=1)
        self.scales = nn.ModuleList(
            nn.ModuleList(_NoisyBlock(width, style_dim) for _ in range(count))
            for width, count in zip(channels, blocks, strict=True)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(wide, narrow, kernel_size=3, padding=1) for wide, narrow in itertools.pairwise(channels)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=3, padding=1) for width in channels)
        for head in self.heads:
            nn.init.normal_(head.weight, std=_HEAD)
            nn.init.zeros_(head.bias)

    def noise_shapes(self, rows: int, columns: int, *, margin: int = 0) -> list[NoiseShape]:
        """Of the noise that an input of so many coarse pixels needs, margin included; a shape a scale."""
        shapes = [NoiseShape(self.blocks_per_scale[0], rows, columns)]
        rows, columns = rows - 2 * margin, columns - 2 * margin
        for level, count in enumerate(self.blocks_per_scale[1:], start=1):
            shapes.append(NoiseShape(count, rows * 2**level, columns * 2**level))
        return shapes

    def forward(self, coarse: Tensor, style: Tensor, noise: Sequence[Tensor], margin: int = 0) -> Tensor:
        """Restores images.

        Args:
            coarse: (B, 1, h, w).
            style: (B, style_dim).
            noise: standard normal, for each scale (B, *shape), see `noise_shapes`.
            margin: coarse pixels at each border that serve as surroundings alone, left out of the result.

        Returns:
            (B, 1, factor * (h - 2 * margin), factor * (w - 2 * margin)) in [-1, 1]; in training a little beyond.
        """
        x, y = self.first(coarse), coarse
        for level, blocks in enumerate(self.scales):
            if level > 0:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = functional.leaky_relu(self.narrow[level - 1](x), NEGATIVE_SLOPE)
                y = enlarged(y, 2)
            for index, block in enumerate(blocks):
                x = block(x, style, noise[level][:, index : index + 1])
            y = y + self.heads[level](x)
            if level == 0:
                x, y, coarse = (_without(t, margin) for t in (x, y, coarse))
        y = consistent(y, coarse, self.factor)
        inside = y.clamp(-1, 1)
        return inside + _BEYOND * (y - inside) if self.training else inside


def _without(x: Tensor, margin: int) -> Tensor:
    return x[:, :, margin:-margin, margin:-margin] if margin else x
