# SPDX-License-Identifier: Apache-2.0
"""The critic of the W-CapsuleGAN: capsules that score nodules (64 px) and lungs (256 px); samples as in `network`.

It has no batch statistics: the value of a sample never depends on the others of its batch.
"""

import itertools
from collections.abc import Sequence

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .capsules import PrimaryCapsules, RoutingCapsules
from .layers import SLOPE, DiameterFeatures, layers_of, levels_between
from .slopes import Leaky
from .zoom import Zoom

__all__ = ["CapsuleCritic", "MultiScaleCritic"]


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
    """Sum of the scores of several capsule critics: one of the samples as they are, others of smaller canvases.

    A critic of a whole slice at full resolution learns the few patients by heart before it has taught any outline;
    one that sees less of it teaches outlines, and the full one beside it teaches vessels (after Karras et al., 2018,
    who grow the resolution instead). A critic of nodules at full resolution sees little but surroundings; the canvas,
    which a nodule fills whatever its size, shows outlines (see `Zoom`).

    Args:
        n_categories: at least 1.
        size: pixels of the square image.
        channels: see `CapsuleCritic`.
        scales: pixels of the sample's side for each of the canvas', one a critic; 1 is the sample itself.
        depths: see `CapsuleCritic`, one a critic.
        spacing_mm: of a pixel of the sample.
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
        spacing_mm: float = 1.0,
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
        self.scales = [int(scale) for scale in scales]
        self.views = nn.ModuleList(Zoom(size, size // scale, spacing_mm) for scale in scales)

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Scores samples (B, 2, size, size) of categories (B,) and diameters (B,), shape (B,)."""
        scores = []
        for index, (view, critic) in enumerate(zip(self.views, self.critics, strict=True)):
            seen = view(x, diameter_mm) if self.scales[index] > 1 else x
            scores.append(critic(seen, category, diameter_mm))
        return torch.stack(scores).sum(dim=0)
