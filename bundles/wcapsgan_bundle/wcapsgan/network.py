# SPDX-License-Identifier: Apache-2.0
"""The two networks of the W-CapsuleGAN: one definition for nodules (64 px) and for lungs (256 px).

Samples are (B, 2, H, W): channel 0 the image, HU of the window [-1000, 400] mapped to [-1, 1]; channel 1 the soft mask
in [0, 1] (alpha of a nodule, lung mask of a lung). `category` (B,) int64 counts the configured categories;
`diameter_mm` (B,) is the disc diameter asked for, 0 where there is none (lungs). No network here has batch statistics:
a sample never depends on the others of its batch.
"""

import itertools
from collections.abc import Sequence

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .capsules import PrimaryCapsules, RoutingCapsules
from .layers import SLOPE, DiameterFeatures, NoiseFields, Smooth, UpBlock, layers_of, levels_between
from .slopes import Leaky

__all__ = ["CapsuleCritic", "Generator", "MultiScaleCritic"]

SUPPORT = 4.0  # a nodule's HU are its own from a mask of 1 / SUPPORT on


class Generator(nn.Module):
    """Makes images with their soft masks from latents, of the category and the diameter asked for.

    A mapping network mixes latent, category and diameter into a style, from which the coarsest features start and
    which modulates each resolution (after Karras et al., 2019), so that a condition reaches every scale. Each
    resolution adds what it knows to the output of the coarser one, so that outlines are learnt before details, and
    gets noise of its own, so that no features have to imitate it.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image, `min_size` times a power of two.
        channels: features at full resolution; doubled at each coarser level up to `widest * channels`.
        widest: see `channels`.
        n_noise: latent numbers that choose the noise, see `NoiseFields`.
        flat_background: where the mask is 0 the image is a level, one number, as it is around the nodules of a cohort.
            Convolutions do not make an even surface by themselves.
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
        spatial_dims: int = 2,
        min_size: int = 4,
    ) -> None:
        super().__init__()
        self.latent_dim, self.n_categories, self.size = latent_dim, n_categories, size
        self.flat_background, self.support = flat_background, SUPPORT
        levels = levels_between(size, min_size)
        widths = [channels * min(2**level, widest) for level in range(levels, -1, -1)]  # coarse to fine
        style_dim = 128
        convolution, singletons = layers_of(spatial_dims)
        axes = " ".join("hwd"[:spatial_dims])
        self.category = nn.Embedding(n_categories, 32)
        self.diameter = DiameterFeatures(32)
        self.mapping = nn.Sequential(
            nn.Linear(latent_dim + 64, style_dim),
            nn.LeakyReLU(SLOPE),
            nn.Linear(style_dim, style_dim),
            nn.LeakyReLU(SLOPE),
        )
        for layer in (self.mapping[0], self.mapping[2]):  # keeps the latent at unit size
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
        self.start = nn.Sequential(
            nn.Linear(style_dim, widths[0] * min_size**spatial_dims),
            Rearrange(f"b (c {axes}) -> b c {axes}", **dict.fromkeys("hwd"[:spatial_dims], min_size)),
            nn.LeakyReLU(SLOPE),
        )
        self.blocks = nn.ModuleList(
            UpBlock(wide, narrow, style_dim, spatial_dims=spatial_dims) for wide, narrow in itertools.pairwise(widths)
        )
        self.noise = nn.ModuleList(
            NoiseFields(min(n_noise, latent_dim), min_size * 2**level, spatial_dims=spatial_dims)
            for level in range(1, levels + 1)
        )
        self.level = nn.Sequential(nn.Linear(style_dim, 1), Rearrange(f"b c -> b c {singletons}"))
        self.heads = nn.ModuleList(convolution(width, 2, kernel_size=3, padding=1) for width in widths[1:])
        self.larger = nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear")
        self.smooth = Smooth(2, spatial_dims=spatial_dims)
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
            x = block(x, style, noise(latent))
            y = head(x) if level == 0 else self.larger(y) + head(x)
        y = self.smooth(y.float())
        image, mask = y[:, :1], torch.sigmoid(y[:, 1:])
        if self.flat_background:
            image = self.level(style).float() + (self.support * mask).clamp(max=1) * image
        return torch.cat([torch.tanh(image), mask], dim=1)


class CapsuleCritic(nn.Module):
    """Scores samples by routing capsules; a score is the Wasserstein critic's value, without bounds.

    Strided convolutions, primary capsules, routing to one capsule a category and one more for features of no category
    (Sabour 2017, section 7: "none of the above"), without which routing would have nothing to decide when there is a
    single category. The score is read linearly from the capsule of the sample's category *before* squashing: the
    Wasserstein distance (paper, Eq. 2) needs a critic that grows with the distance of its input at a bounded slope,
    while a squashed length ends at 1, where its gradient dies. The direction of the read-out depends on the category
    and on the diameter (a projection, after Miyato and Koyama, 2018); the diameter also shifts the first features.

    No batch, instance or layer statistics: the gradient penalty is one of each sample (Gulrajani 2017, section 4).

    Args:
        n_categories: at least 1.
        size: pixels of the square image, 8 times a power of two.
        channels: of the first features; doubled at each coarser level up to `4 * channels`.
        depth: further convolutions at each level, before the resolution is halved.
        in_channels: 2, image and mask.
        spatial_dims: 2, or 3 for cubes.
        n_maps: primary capsules at each of the 4 x 4 positions.
        capsule_dim: of a primary capsule.
        category_dim: of an output capsule.
        routing_iterations: of the routing by agreement.
    """

    def __init__(
        self,
        n_categories: int,
        size: int,
        channels: int,
        depth: int = 0,
        in_channels: int = 2,
        spatial_dims: int = 2,
        n_maps: int = 16,
        capsule_dim: int = 8,
        category_dim: int = 16,
        routing_iterations: int = 3,
    ) -> None:
        super().__init__()
        levels = levels_between(size, 8)
        convolution, singletons = layers_of(spatial_dims)
        widths = [channels * min(2**level, 4) for level in range(levels)]  # fine to coarse
        self.fine = nn.Sequential()
        if depth:
            self.fine = nn.Sequential(convolution(in_channels, channels // 2, kernel_size=3, padding=1), Leaky(SLOPE))
            in_channels = channels // 2
        self.first = convolution(in_channels, channels, kernel_size=4, stride=2, padding=1)
        self.diameter_shift = nn.Sequential(DiameterFeatures(channels), Rearrange(f"b c -> b c {singletons}"))
        stem: list[nn.Module] = [Leaky(SLOPE)]
        for narrow, wide in itertools.pairwise(widths):
            for _ in range(depth):
                stem += [convolution(narrow, narrow, kernel_size=3, padding=1), Leaky(SLOPE)]
            stem += [convolution(narrow, wide, kernel_size=4, stride=2, padding=1), Leaky(SLOPE)]
        self.stem = nn.Sequential(*stem)
        self.primary = PrimaryCapsules(widths[-1], n_maps, capsule_dim, spatial_dims=spatial_dims)
        n_primary = n_maps * 4**spatial_dims
        self.routing = RoutingCapsules(
            n_primary, capsule_dim, n_categories + 1, category_dim, n_iterations=routing_iterations
        )
        self.readout = nn.Embedding(n_categories, category_dim)
        self.diameter_readout = DiameterFeatures(category_dim)

    def capsules(self, x: Tensor, diameter_mm: Tensor) -> Tensor:
        """Output capsules before squashing, shape (B, n_categories + 1, category_dim); the last is of no category."""
        return self.routing(
            self.primary(self.stem(self.first(self.fine(x)) + self.diameter_shift(diameter_mm))).float()
        )

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Scores samples (B, 2, size, size) of categories (B,) and diameters (B,); higher is more real, shape (B,)."""
        capsules = self.capsules(x, diameter_mm)
        own = capsules[torch.arange(x.shape[0], device=x.device), category]
        return (own * (self.readout(category) + self.diameter_readout(diameter_mm))).sum(dim=1)


class MultiScaleCritic(nn.Module):
    """Sum of the scores of several capsule critics, each of which sees the samples averaged over squares.

    A critic of a whole slice at full resolution learns the few patients by heart before it has taught any outline;
    one that sees less of it teaches outlines, and the full one beside it teaches vessels (after Karras et al., 2018,
    who grow the resolution instead).

    Args:
        n_categories: at least 1.
        size: pixels of the square image.
        channels: see `CapsuleCritic`.
        scales: sides of the squares in pixels, one a critic.
        depths: see `CapsuleCritic`, one a critic.
        spatial_dims: 2, or 3 for cubes.
        routing_iterations: of the routing by agreement.
    """

    def __init__(
        self,
        n_categories: int,
        size: int,
        channels: int,
        scales: Sequence[int] = (1,),
        depths: Sequence[int] = (0,),
        spatial_dims: int = 2,
        routing_iterations: int = 3,
    ) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            CapsuleCritic(
                n_categories,
                size // scale,
                channels,
                depth=depth,
                spatial_dims=spatial_dims,
                routing_iterations=routing_iterations,
            )
            for scale, depth in zip(scales, depths, strict=True)
        )
        pool = nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d
        self.pools = nn.ModuleList(pool(scale) if scale > 1 else nn.Identity() for scale in scales)

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Scores samples (B, 2, size, size) of categories (B,) and diameters (B,), shape (B,)."""
        scores = [critic(pool(x), category, diameter_mm) for pool, critic in zip(self.pools, self.critics, strict=True)]
        return torch.stack(scores).sum(dim=0)
