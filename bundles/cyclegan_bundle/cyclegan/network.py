# SPDX-License-Identifier: Apache-2.0
"""The networks of the CycleGAN (Zhu et al., 2017): G: X -> Y, F: Y -> X, D_X, D_Y.

X are composites, Y real slices. Images are (B, 1, H, W) in units (`common/hounsfield.py`), of any H and W.

Both kinds of network are local: no layer depends on statistics of the image or the batch, so an output pixel depends
on the input within `receptive_field_px` only, and an enhanced region equals the same region of an enhanced slice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from .common.hounsfield import CT_RANGE_HU, NETWORK_WINDOW

__all__ = ["GeneratorInput", "HashNoise", "PatchDiscriminator", "ResidualEnhancer", "WindowAndDetail"]

PIXEL_CHANNELS = 8  # feature maps of full resolution: few, as they cost four times those of the cells
LEAK = 0.2  # negative slope of the discriminators, as in Isola et al. (2017)


class WindowAndDetail(nn.Module):
    """What a network sees of an image: (B, 1, H, W) in units -> (B, 2, H, W), the window and its amplified fine detail.

    The texture of lung, some 40 HU, is a 35th of the window: without amplification the discriminators overlook it, the
    generators get no gradient, and the cycle and identity terms hold them at the identity. The window is shifted so
    that air is 0: then the zero padding of the convolutions continues the image with air.

    Args:
        gain: of the detail: with 8, texture of 40 HU is 0.46, of the order of the window itself.
        ceiling_hu: what is denser looks like this.
    """

    reach_px = 2

    def __init__(self, *, gain: float = 8.0, ceiling_hu: float = NETWORK_WINDOW.high_hu) -> None:
        super().__init__()
        self.gain = gain
        self.ceiling_unit = NETWORK_WINDOW.unit(ceiling_hu)

    def forward(self, unit: Tensor) -> Tensor:
        """The window from 0 on, and `gain` times its difference from the mean of 5 x 5 px."""
        seen = unit.clamp(-1.0, self.ceiling_unit) + 1.0
        blurred = avg_pool2d(seen, kernel_size=5, stride=1, padding=2, count_include_pad=False)
        return torch.cat([seen, self.gain * (seen - blurred)], dim=1)


class HashNoise(nn.Module):
    """Noise that follows from the image itself: (B, 1, H, W) in units -> (B, 1, H, W), evenly spread in [-1, 1].

    A network without a source of noise answers a smooth lung with a pattern. This one is a hash of a pixel's whole HU
    and those of its four neighbours, so it is local, needs no seed, and moves with the image.

    A weighted sum of the five is taken modulo a prime, and two quadratic polynomials mix what is left. Weights and
    moduli are different primes, so that a change of any one HU of them moves the result anywhere, and neighbouring
    pixels, which share HU but not weights, get unrelated values. Of 12 bits of HU, no intermediate value exceeds 2^21:
    all are integers that float32 holds exactly, and the noise has the same bits on every machine. Other primes of this
    size would do as well, but the generators are trained with these: others need a new training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hu_per_unit = NETWORK_WINDOW.hu_per_unit
        self.offset_hu = NETWORK_WINDOW.low_hu - CT_RANGE_HU[0]

    def forward(self, unit: Tensor) -> Tensor:
        """The hash, with air around the image."""
        hu = torch.round((unit.detach() + 1.0) * self.hu_per_unit + self.offset_hu)  # from 0 at -1024 HU on
        around = pad(hu, [1, 1, 1, 1])
        mixed = 89.0 * around[..., :-2, 1:-1] + 97.0 * around[..., 2:, 1:-1] + 101.0 * around[..., 1:-1, :-2]
        mixed = torch.remainder(mixed + 103.0 * around[..., 1:-1, 2:] + 107.0 * hu, 509.0)
        mixed = torch.remainder(mixed * mixed + 31.0 * mixed, 521.0)
        return torch.remainder(mixed * mixed + 7.0 * mixed, 257.0) / 128.0 - 1.0  # 257 values, 0 to 256


class GeneratorInput(nn.Module):
    """What a generator sees: the channels of `WindowAndDetail` and `HashNoise`, (B, 1, H, W) -> (B, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = WindowAndDetail()
        self.grain = HashNoise()

    def forward(self, unit: Tensor) -> Tensor:
        """Window, detail, noise."""
        return torch.cat([self.detail(unit), self.grain(unit)], dim=1)


def _initialise(network: nn.Module) -> None:
    """Starts with signals of one size in all layers (He et al., 2015); PyTorch's start lets them fade."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=LEAK, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)


class DilatedResidual(nn.Module):
    """x + conv(relu(conv_dilated(relu(x)))), same shape (B, C, H, W)."""

    def __init__(self, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualEnhancer(nn.Module):
    """Adds a bounded residual to an image: G(x) = x + b tanh(r(x)), where r sees x clamped to the window.

    r works on cells of 2 x 2 px, four values each (Shi et al., 2016), a quarter of the work of full resolution
    without loss of detail; a region therefore starts at even rows and columns (`alignment_px`). The last layer sees
    pixels again, so that it can join what cells left unequal, and starts at zero: training starts from the identity.

    Args:
        channels: feature maps of the hidden layers.
        max_residual_hu: bound b of the change of a pixel, in HU.
        dilations: of the residual blocks, one number a block.

    Raises:
        ValueError: when an argument is not positive.
    """

    alignment_px = 2

    def __init__(
        self,
        *,
        channels: int = 32,
        max_residual_hu: float = 60.0,
        dilations: Sequence[int] = (1, 2, 2, 1),
    ) -> None:
        super().__init__()
        if channels < 1 or not max_residual_hu > 0 or min(dilations, default=0) < 1:
            raise ValueError(
                "ResidualEnhancer needs channels >= 1, max_residual_hu > 0 and dilations >= 1, "
                f"got {channels}, {max_residual_hu:g} and {list(dilations)}."
            )
        self.max_residual_unit = max_residual_hu / NETWORK_WINDOW.hu_per_unit
        # In cells to each side: one for the first and the last on cells, one more than its dilation for each block.
        reach = 2 + sum(dilation + 1 for dilation in dilations)
        # The last layer's neighbour may lie in the next cell, which reaches as far from there.
        self.receptive_field_px = 1 + 2 * (self.alignment_px * (reach + 1) + WindowAndDetail.reach_px)
        self.cells = nn.Sequential(GeneratorInput(), nn.PixelUnshuffle(2))
        self.first = nn.Conv2d(12, channels, kernel_size=3, padding=1)
        self.blocks = nn.Sequential(*(DilatedResidual(channels, dilation=dilation) for dilation in dilations))
        self.pixels = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 4 * PIXEL_CHANNELS, kernel_size=3, padding=1), nn.PixelShuffle(2), nn.ReLU()
        )
        self.last = nn.Conv2d(PIXEL_CHANNELS, 1, kernel_size=3, padding=1)
        _initialise(self)
        nn.init.zeros_(self.last.weight)

    def residual(self, unit: Tensor) -> Tensor:
        """Change of each pixel (B, 1, H, W), in units, within +-`max_residual_unit`."""
        height, width = unit.shape[-2], unit.shape[-1]
        even = pad(unit, [0, width % 2, 0, height % 2], value=-1.0)  # odd sizes go on with air
        # The layers may be kept in another precision than the image, which is never rounded to theirs.
        features = self.blocks(self.first(self.cells(even).to(self.first.weight.dtype)))
        change = torch.tanh(self.last(self.pixels(features)).to(unit.dtype))
        return self.max_residual_unit * change[..., :height, :width]

    def forward(self, unit: Tensor) -> Tensor:
        """Enhanced image (B, 1, H, W) in units; HU outside the window stay outside."""
        return unit + self.residual(unit)


class PatchDiscriminator(nn.Module):
    """Scores patches of 38 x 38 px: (B, 1, H, W) -> (B, 1, H / 4 - 2, W / 4 - 2), LSGAN (1 real, 0 fake).

    A smaller sibling of the 70 x 70 one of Isola et al. (2017), without normalisation. It sees what the generators see,
    but for what is denser than `ceiling_hu`: whether vessels and heart were filled with contrast medium is a matter of
    the scan, not of the composite, and nothing that the generators should learn.

    Args:
        channels: feature maps of the first layer; doubled in each of the two that follow.
        ceiling_hu: see above.
    """

    receptive_field_px = 34 + 2 * WindowAndDetail.reach_px

    def __init__(self, *, channels: int = 32, ceiling_hu: float = 100.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            WindowAndDetail(ceiling_hu=ceiling_hu),
            nn.Conv2d(2, channels, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(2 * channels, 4 * channels, kernel_size=4, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(4 * channels, 1, kernel_size=4, padding=1),
        )
        _initialise(self)
        nn.init.normal_(self.layers[-1].weight, std=0.01)  # all scores start near 0: neither real nor fake

    def forward(self, unit: Tensor) -> Tensor:
        """Scores of overlapping patches."""
        return self.layers(unit)
