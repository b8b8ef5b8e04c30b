# SPDX-License-Identifier: Apache-2.0
"""The generator of the W-CapsuleGAN: one definition for nodules (64 px) and for lungs (256 px).

Samples are (B, 2, H, W): channel 0 the image, HU of the window [-1000, 400] mapped to [-1, 1]; channel 1 the soft mask
in [0, 1] (alpha of a nodule, lung mask of a lung). `category` (B,) int64 counts the configured categories;
`diameter_mm` (B,) is the disc diameter asked for, 0 where there is none (lungs). There are no batch statistics: a
sample never depends on the others of its batch.
"""

import itertools

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .layers import SLOPE, DiameterFeatures, NoiseFields, Smooth, StyledBlock, gaussian_taps, layers_of, levels_between
from .zoom import Zoom

__all__ = ["Generator"]

FINE_NOISE = 0.1  # strength at the last resolution, at the start
OUTSIDE = -8.0  # the mask beyond the canvas, before its sigmoid
SUPPORT = 4.0  # a nodule's HU are its own from a mask of 1 / SUPPORT on
EDGED_SUPPORT = 2.0  # the same for a soft edge of a cohort: on the mask, half a pixel outside, none at two pixels


class Generator(nn.Module):
    """Makes images with their soft masks from latents, of the category and the diameter asked for.

    A mapping network mixes latent, category and diameter into a style, from which the coarsest features start and
    which modulates each resolution (after Karras et al., 2019), so that a condition reaches every scale. Each
    resolution adds what it knows to the output of the coarser one, so that outlines are learnt before details, and
    gets noise of its own, so that no features have to imitate it. A `zoomed` generator works on a canvas that the
    nodule fills whatever its size, and in the frame, where pixels have their spacing, at the last resolution alone.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image, `min_size` times a power of two.
        channels: features at full resolution; doubled at each coarser level up to `widest * channels`.
        widest: see `channels`.
        n_noise: latent numbers that choose the noise, see `NoiseFields`.
        flat_background: where the mask is 0 the image is a level, one number, as it is around the nodules of a cohort.
            Convolutions do not make an even surface by themselves.
        zoomed: whether to draw on a canvas, see `Zoom`; needs diameters.
        spacing_mm: of a pixel; matters to the canvas alone.
        edge_px: standard deviation of the mask's soft edge in pixels, 0 for none. The soft masks of a cohort are
            filtered outlines; so are the generator's then, which has outlines to learn, and no soft edges.
        coarse_noise: strength of the noise at all resolutions but the last, at the start. Where outlines are made, it
            makes them differ from the first step on.
        spatial_dims: 2, or 3 for cubes.
        min_size: pixels of the coarsest features.

    The buffer `diameter_quantiles` (n_categories, 101) holds the percentiles of the training diameters in mm; it
    travels with the weights, so that a sampler can draw diameters as they were in training.
    """

    def __init__(
        self,
        latent_dim: int,
        n_categories: int,
        size: int,
        channels: int,
        widest: int = 4,
        n_noise: int = 32,
        flat_background: bool = False,
        zoomed: bool = False,
        spacing_mm: float = 1.0,
        edge_px: float = 0.0,
        coarse_noise: float = 0.1,
        spatial_dims: int = 2,
        min_size: int = 4,
    ) -> None:
        super().__init__()
        self.latent_dim, self.n_categories, self.size = latent_dim, n_categories, size
        self.flat_background, self.support = flat_background, EDGED_SUPPORT if edge_px else SUPPORT
        self.zoomed, self.outside = zoomed, OUTSIDE
        levels = levels_between(size, min_size)
        widths = [channels * min(2**level, widest) for level in range(levels, -1, -1)]  # coarse to fine
        style_dim = 128
        convolution, singletons = layers_of(spatial_dims)
        self.category = nn.Embedding(n_categories, 32)
        self.diameter = DiameterFeatures(32)
        self.mapping = _mapping(latent_dim + 64, style_dim)
        self.start = _start(style_dim, widths[0], min_size, spatial_dims)
        fine = len(widths) - 2  # the last resolution
        self.blocks = nn.ModuleList(
            StyledBlock(
                wide,
                narrow,
                style_dim,
                enlarge=not (zoomed and level == fine),
                noise_strength=FINE_NOISE if level == fine else coarse_noise,
                spatial_dims=spatial_dims,
            )
            for level, (wide, narrow) in enumerate(itertools.pairwise(widths))
        )
        self.place = Zoom(size, size // 2, spacing_mm, to_frame=True)
        self.noise = nn.ModuleList(
            NoiseFields(min(n_noise, latent_dim), min_size * 2**level, spatial_dims=spatial_dims)
            for level in range(1, levels + 1)
        )
        self.level = nn.Sequential(nn.Linear(style_dim, 1), Rearrange(f"b c -> b c {singletons}"))
        self.heads = nn.ModuleList(convolution(width, 2, kernel_size=3, padding=1) for width in widths[1:])
        self.larger = nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear")
        self.smooth = Smooth(2, spatial_dims=spatial_dims)
        self.edge = Smooth(1, taps=gaussian_taps(edge_px), spatial_dims=spatial_dims)
        self.register_buffer("diameter_quantiles", torch.zeros(n_categories, 101))

    def forward(self, latent: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Generates samples.

        Args:
            latent: standard normal, shape (B, latent_dim).
            category: index, int64, shape (B,).
            diameter_mm: disc diameter, shape (B,); 0 where it means nothing.

        Returns:
            Images in [-1, 1] and masks in [0, 1], float32, shape (B, 2, size, size).
        """
        conditions = torch.cat([latent, self.category(category), self.diameter(diameter_mm)], dim=1)
        style = self.mapping(conditions)
        x = self.start(style)
        y = torch.zeros(1)
        for level, (block, noise, head) in enumerate(zip(self.blocks, self.noise, self.heads, strict=True)):
            if self.zoomed and level == len(self.blocks) - 1:
                x = self.place(x, diameter_mm)
                y = self.place(self.smooth(y.float()) - self.outside, diameter_mm) + self.outside
            elif level > 0:
                y = self.larger(y)
            x = block(x, style, noise(latent))
            y = head(x) if level == 0 else y + head(x)
        y = y.float() if self.zoomed else self.smooth(y.float())
        image, mask = y[:, :1], self.edge(torch.sigmoid(y[:, 1:]))
        if self.flat_background:
            image = self.level(style).float() + (self.support * mask).clamp(max=1) * image
        return torch.cat([torch.tanh(image), mask], dim=1)


def _mapping(in_features: int, style_dim: int) -> nn.Sequential:
    """Two layers from latent and conditions to a style, whose initial values keep the latent at unit size."""
    layers = [nn.Linear(in_features, style_dim), nn.Linear(style_dim, style_dim)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    return nn.Sequential(layers[0], nn.LeakyReLU(SLOPE), layers[1], nn.LeakyReLU(SLOPE))


def _start(style_dim: int, channels: int, size: int, spatial_dims: int) -> nn.Sequential:
    """From a style to the coarsest features, (B, channels, size, size[, size])."""
    axes = " ".join("hwd"[:spatial_dims])
    return nn.Sequential(
        nn.Linear(style_dim, channels * size**spatial_dims),
        Rearrange(f"b (c {axes}) -> b c {axes}", **dict.fromkeys("hwd"[:spatial_dims], size)),
        nn.LeakyReLU(SLOPE),
    )
