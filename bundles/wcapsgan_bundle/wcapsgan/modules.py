# SPDX-License-Identifier: Apache-2.0
"""The parts that the networks are made of, for 2 or 3 spatial axes; none has batch statistics."""

import math
from collections.abc import Sequence

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional

from .double_backward import NEGATIVE_SLOPE, InputGradientConv2d, InputGradientConv3d
from .modulation import modulate

__all__ = [
    "DiameterFeatures",
    "NoiseFields",
    "PixelNorm",
    "Smooth",
    "StyledBlock",
    "Upsample",
    "convolution_of",
    "diameter_features",
    "doublings",
    "gaussian_taps",
]

_DIAMETER_SCALE_MM = 20.0  # brings nodule diameters (3 to 40 mm) to order 1; the shipped weights belong to it


def doublings(size: int, min_size: int) -> int:
    """How often `min_size` doubles to reach `size`.

    Raises:
        ValueError: when it does not reach it, or is not smaller.
    """
    levels = round(math.log2(size / min_size))
    if min_size * 2**levels != size or levels < 1:
        raise ValueError(f"size must be min_size ({min_size}) times a power of two, at least 2; got size {size}.")
    return levels


def convolution_of(spatial_dims: int) -> tuple[type[nn.Module], str]:
    """Convolution of that many axes, and the singleton axes for einops.

    Raises:
        ValueError: for other than 2 or 3 axes.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    return (InputGradientConv2d, "() ()") if spatial_dims == 2 else (InputGradientConv3d, "() () ()")


def diameter_features(diameter_mm: Tensor, scale_mm: float = _DIAMETER_SCALE_MM) -> Tensor:
    """Diameters in mm (B,), scaled to order one, and their logarithms: (B, 2)."""
    return torch.stack([diameter_mm / scale_mm, torch.log1p(diameter_mm)], dim=1)


class DiameterFeatures(nn.Module):
    """Embeds a diameter in mm, from its scaled value and its logarithm: (B,) to (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, dim)

    def forward(self, diameter_mm: Tensor) -> Tensor:
        return self.linear(diameter_features(diameter_mm))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two and a 3 x 3 convolution, as one transposed convolution at the low resolution.

    Upsampling copies each pixel, so several taps of the kernel meet the same value. Their sums make a 4 x 4 kernel of
    stride two with the same result, 2.25 times fewer multiplications than upsampling first (measured: 2.5 times faster)
    and no uneven overlap: every output pixel sees as many taps as its neighbours.
    """

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        fan_in = in_channels * 3**spatial_dims
        kernel = (
            torch.randn(in_channels, out_channels, *[3] * spatial_dims) * (2 / (1 + NEGATIVE_SLOPE**2) / fan_in) ** 0.5
        )
        self.weight = nn.Parameter(kernel)

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial_dims == 2:
            kernel = 4 * functional.avg_pool2d(
                functional.pad(self.weight, [1, 1, 1, 1]), 2, stride=1
            )  # sums of 2 x 2 taps
            return functional.conv_transpose2d(x, kernel, stride=2, padding=1)
        kernel = 8 * functional.avg_pool3d(functional.pad(self.weight, [1, 1, 1, 1, 1, 1]), 2, stride=1)
        return functional.conv_transpose3d(x, kernel, stride=2, padding=1)


class PixelNorm(nn.Module):
    """Scales the features of each pixel to a mean square of one (Karras et al., 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class Smooth(nn.Module):
    """A symmetric filter along each axis, borders repeated.

    Args:
        channels: each filtered alone.
        taps: weights, an odd number of sum one. By default binomial, which removes patterns of period two pixels.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int, *, taps: Sequence[float] = (0.25, 0.5, 0.25), spatial_dims: int = 2) -> None:
        super().__init__()
        self.margins, self.channels = [len(taps) // 2] * (2 * spatial_dims), channels
        kernel = torch.ones(())
        for _ in range(spatial_dims):
            kernel = kernel.unsqueeze(-1) * torch.tensor(taps)
        self.register_buffer("kernel", kernel.expand(channels, 1, *kernel.shape).clone(), persistent=False)
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = functional.pad(x, self.margins, mode="replicate")
            return functional.conv2d(x, self.kernel, groups=self.channels)
        # Of three axes, a matrix product an axis: many times faster than a grouped convolution.
        matrix = self.matrix(x.shape[-1]).to(x.dtype)
        x = torch.matmul(matrix, torch.matmul(x, matrix.t()))
        return torch.matmul(matrix, x.flatten(3)).reshape(x.shape)

    def matrix(self, size: int) -> Tensor:
        """The filter along an axis of that many pixels, (size, size)."""
        places = torch.arange(size, device=self.taps.device)
        matrix = torch.zeros(size, size, device=self.taps.device)
        for tap in range(self.taps.shape[0]):
            sources = (places + (tap - self.taps.shape[0] // 2)).clamp(0, size - 1)
            matrix = matrix + self.taps[tap] * functional.one_hot(sources, size)
        return matrix


def gaussian_taps(sigma_px: float) -> list[float]:
    """Weights of a Gaussian of that standard deviation, to four of them on each side; of 0, the pixel itself."""
    reach = round(4 * sigma_px)
    if reach == 0:
        return [1.0]
    weights = [math.exp(-((place / sigma_px) ** 2) / 2) for place in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


class NoiseFields(nn.Module):
    """White noise that follows from the latent, for what no latent can hold: the noise of a scanner, pixel by pixel.

    Fixed fields of white noise are mixed by a part of the latent, scaled to length one. Each pixel of the mixture is
    standard normal and independent of its neighbours; latents that are not alike give noise that is not alike. The
    fields follow from the size alone, so they are not stored with the weights.

    Args:
        n_fields: how many latent numbers choose the noise.
        size: pixels of the side.
        spatial_dims: 2 or 3.
    """

    def __init__(self, n_fields: int, size: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        self.n_fields = n_fields
        draw = torch.Generator().manual_seed(size)
        fields = torch.randn(n_fields, *[size] * spatial_dims, generator=draw)
        self.register_buffer("fields", fields, persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Noise of latents (B, latent_dim), shape (B, 1, size, size[, size])."""
        mixture = functional.normalize(latent[:, : self.n_fields], dim=1)
        return torch.einsum("bk,k...->b...", mixture, self.fields).unsqueeze(1)


class StyledBlock(nn.Module):
    """One resolution: convolve, add noise, normalise each pixel, modulate by style, activate.

    Args:
        in_channels: of the coarser features.
        out_channels: of these.
        style_dim: of the style.
        enlarge: whether the coarser features come at half the size. What was enlarged is filtered (after Karras et
            al., 2020): it has a pattern of period two pixels, which each further resolution would make twice as
            coarse, to a grid of dots in the image.
        noise_strength: at the start; learnt.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        *,
        enlarge: bool,
        noise_strength: float,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        convolution, singletons = convolution_of(spatial_dims)
        if enlarge:
            self.convolution = Upsample(in_channels, out_channels, spatial_dims=spatial_dims)
            self.smooth = Smooth(out_channels, spatial_dims=spatial_dims)
        else:
            self.convolution = convolution(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
            self.smooth = nn.Identity()
        self.noise_strength = nn.Parameter(torch.full((out_channels, *[1] * spatial_dims), noise_strength))
        self.norm = PixelNorm()
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)
        self.scale = nn.Sequential(nn.Linear(style_dim, out_channels), Rearrange(f"b c -> b c {singletons}"))
        self.shift = nn.Sequential(nn.Linear(style_dim, out_channels), Rearrange(f"b c -> b c {singletons}"))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Features (B, C, n, n[, n]), style (B, style_dim), noise (B, 1, m, m[, m]) to features (B, C, m, m[, m])."""
        x, scale, shift = self.smooth(self.convolution(x)), self.scale(style), self.shift(style)
        if not torch.jit.is_scripting() and x.device.type == "cpu":
            return modulate(x, noise, self.noise_strength, scale, shift, slope=self.activation.negative_slope)
        x = self.norm(x + (self.noise_strength * noise).to(x.dtype))
        return self.activation(torch.addcmul(shift, x, 1 + scale))
