# SPDX-License-Identifier: Apache-2.0
"""The critic of the W-CapsuleGAN: capsules that score nodules (64 px) and lungs (256 px); samples as in `network`.

It has no batch statistics: the value of a sample never depends on the others of its batch.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .canvas import CanvasResampler
from .capsules import PrimaryCapsules, RoutingCapsules
from .double_backward import NEGATIVE_SLOPE, InputGradientLeakyReLU
from .modules import DiameterFeatures, convolution_of, doublings

__all__ = ["CapsuleCritic", "CapsuleSettings", "CriticScale", "MultiScaleCritic"]

_COARSEST = 8  # pixels of the features that primary capsules are made of
_MAX_WIDTH_MULTIPLIER = 4  # of the channels at coarse resolutions; others were not tried


@dataclass(frozen=True, kw_only=True)
class CapsuleSettings:
    """Sizes of the capsules.

    Args:
        n_maps: primary capsules at each of the 4 x 4 positions (Sabour 2017: 32).
        dim: of a primary capsule (Sabour 2017: 8).
        category_dim: of an output capsule (Sabour 2017: 16).
        routing_iterations: of the routing by agreement (Sabour 2017: 3); 1 couples evenly.
    """

    n_maps: int = 16
    dim: int = 8
    category_dim: int = 16
    routing_iterations: int = 3


@dataclass(frozen=True, kw_only=True)
class CriticScale:
    """One critic of several.

    Args:
        downsampling: pixels of the sample's side for each of the canvas' that this critic sees; 1: the sample itself.
        extra_convolutions: before the resolution is halved, at each resolution.
    """

    downsampling: int
    extra_convolutions: int


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
        extra_convolutions: see `CriticScale`.
        capsules: their sizes.
        spatial_dims: 2, or 3 for cubes.
    """

    def __init__(
        self,
        *,
        n_categories: int,
        size: int,
        channels: int,
        extra_convolutions: int = 0,
        capsules: CapsuleSettings = CapsuleSettings(),
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        levels = doublings(size, _COARSEST)
        convolution, singletons = convolution_of(spatial_dims)
        widths = [channels * min(2**level, _MAX_WIDTH_MULTIPLIER) for level in range(levels)]  # fine to coarse
        in_channels = 2  # image and mask
        self.fine = nn.Sequential()
        if extra_convolutions:
            in_channels = channels // 2
            self.fine = nn.Sequential(convolution(2, in_channels, kernel_size=3, padding=1), _activation())
        self.first = convolution(in_channels, channels, kernel_size=4, stride=2, padding=1)
        self.diameter_shift = nn.Sequential(DiameterFeatures(channels), Rearrange(f"b c -> b c {singletons}"))
        stem: list[nn.Module] = [_activation()]
        for narrow, wide in itertools.pairwise(widths):
            for _ in range(extra_convolutions):
                stem += [convolution(narrow, narrow, kernel_size=3, padding=1), _activation()]
            stem += [convolution(narrow, wide, kernel_size=4, stride=2, padding=1), _activation()]
        self.stem = nn.Sequential(*stem)
        self.primary = PrimaryCapsules(widths[-1], capsules.n_maps, capsules.dim, spatial_dims=spatial_dims)
        self.routing = RoutingCapsules(
            n_in=capsules.n_maps * (_COARSEST // 2) ** spatial_dims,
            dim_in=capsules.dim,
            n_out=n_categories + 1,
            dim_out=capsules.category_dim,
            n_iterations=capsules.routing_iterations,
        )
        self.readout = nn.Embedding(n_categories, capsules.category_dim)
        self.diameter_readout = DiameterFeatures(capsules.category_dim)

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
    which a nodule fills whatever its size, shows outlines (see `CanvasResampler`).

    Args:
        n_categories: at least 1.
        size: pixels of the square image.
        channels: see `CapsuleCritic`.
        scales: arguments of a `CriticScale` for each critic.
        spacing_mm: of a pixel of the sample; None where it follows from the diameter (`FittedFrame`).
        capsules: their sizes.
        spatial_dims: 2, or 3 for cubes.
    """

    def __init__(
        self,
        *,
        n_categories: int,
        size: int,
        channels: int,
        scales: Sequence[Mapping[str, int]],
        spacing_mm: float | None,
        capsules: CapsuleSettings = CapsuleSettings(),
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        settings = [CriticScale(**scale) for scale in scales]
        self.critics = nn.ModuleList(
            CapsuleCritic(
                n_categories=n_categories,
                size=size // scale.downsampling,
                channels=channels,
                extra_convolutions=scale.extra_convolutions,
                capsules=capsules,
                spatial_dims=spatial_dims,
            )
            for scale in settings
        )
        self.downsampling = [scale.downsampling for scale in settings]
        self.to_canvas = nn.ModuleList(
            CanvasResampler(frame=size, canvas=size // factor, spacing_mm=spacing_mm) for factor in self.downsampling
        )

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Scores samples (B, 2, size, size) of categories (B,) and diameters (B,), shape (B,)."""
        scores = []
        for index, (to_canvas, critic) in enumerate(zip(self.to_canvas, self.critics, strict=True)):
            seen = to_canvas(x, diameter_mm) if self.downsampling[index] > 1 else x
            scores.append(critic(seen, category, diameter_mm))
        return torch.stack(scores).sum(dim=0)


def _activation() -> nn.Module:
    return InputGradientLeakyReLU(NEGATIVE_SLOPE)
