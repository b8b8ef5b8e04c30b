# SPDX-License-Identifier: Apache-2.0
"""The improved U-Net of the paper: batch norm in the encoder, dense blocks and transposed convolutions in the decoder.

With a stem, encoder and decoder work on half the image's grid, between a convolution of stride 2 and a transposed one:
three quarters of the work are at the finest level otherwise.

A dense block's layer l sees the block's input and all earlier layers (the paper's formula 1):

    x_l = H_l([x_0, x_1, ..., x_{l-1}])

H_l is convolution, batch norm and activation with `growth_rate` output channels, so a block of L layers turns C
channels into C + L * growth_rate.
"""

import itertools
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DenseBlock", "DenseUNet", "UpStage"]

ACTIVATION = ("relu", {"inplace": True})


def _convolution(spatial_dims: int, in_channels: int, out_channels: int, *, strides: int = 1) -> Convolution:
    """Convolution, batch norm, activation, in this order; the norm's shift stands in for the bias."""
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=strides,
        adn_ordering="NA",
        norm="batch",
        act=ACTIVATION,
        bias=False,
    )


def _per_level(value: int | Sequence[int], levels: int) -> list[int]:
    """One number a level."""
    numbers = [value] * levels if isinstance(value, int) else list(value)
    if len(numbers) != levels:
        raise ValueError(f"DenseUNet needs one number, or one for each of {levels} levels, got {numbers}.")
    return numbers


class DenseBlock(nn.Module):
    """Dense block (formula 1): (B, C, ...) -> (B, C + layers * growth_rate, ...).

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        growth_rate: channels that each layer adds.
        layers: number of layers.
    """

    def __init__(self, spatial_dims: int, in_channels: int, *, growth_rate: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _convolution(spatial_dims, in_channels + index * growth_rate, growth_rate) for index in range(layers)
        )
        self.out_channels = in_channels + layers * growth_rate

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


class UpStage(nn.Module):
    """One level of the decoder: transposed convolution, the encoder's features beside it, dense block.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the coarser level.
        skip_channels: of the encoder's features at this level.
        growth_rate: of the dense block.
        layers: of the dense block.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, skip_channels: int, growth_rate: int, layers: int
    ) -> None:
        super().__init__()
        self.up = Conv[Conv.CONVTRANS, spatial_dims](in_channels, skip_channels, kernel_size=2, stride=2)
        self.dense = DenseBlock(spatial_dims, 2 * skip_channels, growth_rate=growth_rate, layers=layers)
        self.out_channels = self.dense.out_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.dense(torch.cat([self.up(x), skip], dim=1))


class DenseUNet(nn.Module):
    """Dense U-Net: (B, in_channels, H, W[, D]) in [-1, 1] -> logits (B, out_channels, H, W[, D]), any size.

    Sizes that the levels do not divide are padded by repeating the border, and the result is cropped again.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image: neighbouring slices.
        out_channels: 2: lung, nodule.
        stem_channels: of the convolution of stride 2 before the first level and of the transposed one after the last,
            whose result is joined with the image; 0: no stem.
        channels: of the encoder, one number a level, the finest first; each level halves the grid.
        convolutions: in each level of the encoder, one number for all levels or one a level.
        growth_rate: channels that each layer of a dense block adds; one number for all levels of the decoder, or one
            a level, the finest first.
        dense_layers: layers of each dense block, likewise.

    Raises:
        ValueError: for spatial dimensions other than 2 or 3, fewer than two levels, or a list that has not one number a
            level.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 2,
        stem_channels: int = 16,
        channels: Sequence[int] = (16, 32, 64, 96, 128),
        convolutions: int | Sequence[int] = (1, 2, 2, 2, 2),
        growth_rate: int | Sequence[int] = (8, 16, 16, 16),
        dense_layers: int | Sequence[int] = (2, 3, 4, 4),
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"DenseUNet needs spatial_dims 2 or 3, got {spatial_dims}.")
        if len(channels) < 2:
            raise ValueError(f"DenseUNet needs the channels of at least two levels, got {list(channels)}.")
        self.multiple = 2 ** (len(channels) - 1) * (2 if stem_channels else 1)
        self.stem: nn.Module = nn.Identity()
        if stem_channels:
            self.stem = _convolution(spatial_dims, in_channels, stem_channels, strides=2)
        self.encoder = nn.ModuleList()
        width = stem_channels or in_channels
        for level, (out, count) in enumerate(zip(channels, _per_level(convolutions, len(channels)), strict=True)):
            down = [Pool[Pool.MAX, spatial_dims](kernel_size=2)] if level else []
            widths = [width] + [out] * count
            self.encoder.append(
                nn.Sequential(*down, *(_convolution(spatial_dims, *pair) for pair in itertools.pairwise(widths)))
            )
            width = out
        self.decoder = nn.ModuleList()
        rates, layers = (_per_level(value, len(channels) - 1) for value in (growth_rate, dense_layers))
        for level in reversed(range(len(channels) - 1)):
            stage = UpStage(
                spatial_dims, width, skip_channels=channels[level], growth_rate=rates[level], layers=layers[level]
            )
            self.decoder.append(stage)
            width = stage.out_channels
        self.has_stem = stem_channels > 0
        self.restore: nn.Module = nn.Identity()
        if stem_channels:
            self.restore = Conv[Conv.CONVTRANS, spatial_dims](width, stem_channels, kernel_size=2, stride=2)
            width = stem_channels + in_channels
        self.head = Conv[Conv.CONV, spatial_dims](
            width, out_channels, kernel_size=3 if stem_channels else 1, padding=1 if stem_channels else 0
        )

    def forward(self, image: Tensor) -> Tensor:
        padded = self._pad(image)
        x = self.stem(padded)
        skips = [x]
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for index, stage in enumerate(self.decoder):
            x = stage(x, skips[len(skips) - 2 - index])
        if self.has_stem:
            x = torch.cat([self.restore(x), padded], dim=1)
        x = self.head(x)
        for axis in range(2, image.dim()):
            x = x.narrow(axis, 0, image.size(axis))
        return x

    def _pad(self, x: Tensor) -> Tensor:
        """Repeats the border at the end of each axis up to the next multiple of the coarsest level's pixel."""
        pads = torch.jit.annotate(list[int], [])
        for axis in range(x.dim() - 1, 1, -1):
            pads.extend([0, (self.multiple - x.size(axis) % self.multiple) % self.multiple])
        return functional.pad(x, pads, mode="replicate") if max(pads) > 0 else x
