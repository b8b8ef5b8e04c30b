# SPDX-License-Identifier: Apache-2.0
"""Features at three scales: a small backbone and the pyramid on top of it (FPN, Lin et al., 2017).

MONAI's own pyramid for backbones needs torchvision, which this bundle does without.
"""

from collections.abc import Sequence

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["STRIDES_PX", "Pyramid"]

STRIDES_PX = (4, 8, 16)


def _convolution(in_channels: int, out_channels: int, strides: int = 1) -> Convolution:
    return Convolution(
        2,
        in_channels,
        out_channels,
        strides=strides,
        adn_ordering="NA",
        norm="batch",
        act=("relu", {"inplace": True}),
        bias=False,
    )


class Pyramid(nn.Module):
    """(B, 1, H, W) -> three maps of `width` channels at strides of 4, 8 and 16 pixels; H and W are multiples of 16.

    Args:
        channels: of the backbone at strides 1, 2, 4, 8 and 16.
        width: channels of each map of the pyramid.
    """

    def __init__(self, *, channels: Sequence[int] = (12, 24, 48, 64, 96), width: int = 48) -> None:
        super().__init__()
        stem, half, *levels = channels
        self.stem = nn.Sequential(_convolution(1, stem), _convolution(stem, half, 2), _convolution(half, half))
        widths = [half, *levels]
        self.levels = nn.ModuleList(
            nn.Sequential(_convolution(below, out, 2), _convolution(out, out))
            for below, out in zip(widths, levels, strict=False)
        )
        self.lateral = nn.ModuleList(Conv[Conv.CONV, 2](out, width, 1) for out in levels)
        self.smooth = nn.ModuleList(Conv[Conv.CONV, 2](width, width, 3, padding=1) for _ in levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        merged = self.lateral[-1](features[-1])
        maps = [self.smooth[-1](merged)]
        for index in range(len(features) - 2, -1, -1):
            merged = self.lateral[index](features[index]) + functional.interpolate(merged, scale_factor=2.0)
            maps.insert(0, self.smooth[index](merged))
        return maps
