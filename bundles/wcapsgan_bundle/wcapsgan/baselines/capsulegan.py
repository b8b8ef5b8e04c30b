# SPDX-License-Identifier: Apache-2.0
"""CapsuleNets: the capsule discriminator of CapsuleGAN (Jaiswal et al., 2018), for a margin loss.

The length of a squashed capsule tells how real a sample is. The original has that one output capsule only, among which
routing has nothing to decide (the coupling of a capsule to the only capsule is 1); here a second one takes what is no
sign of reality ("none of the above", Sabour 2017, section 7). The generator is DCGAN's, as in the original.
"""

import itertools

import torch
from torch import Tensor, nn

from ..capsules import PrimaryCapsules, RoutingCapsules, squash
from ..double_backward import NEGATIVE_SLOPE
from ..modules import doublings
from .interface import Conditions, halving_widths, with_planes

__all__ = ["CapsuleDiscriminator"]

_NARROWEST = 16  # channels at fine resolutions, at least; not tried otherwise


class CapsuleDiscriminator(nn.Module):
    """Strided convolutions, primary capsules at 4 x 4 positions, routing by agreement, and the length of a capsule.

    Args:
        n_categories: at least 1; the condition stands beside the image as constant planes.
        size: pixels of the square image, 8 times a power of two.
        width: channels of the coarsest features, 8 x 8.
        n_maps: primary capsules a position.
        capsule_dim: of a primary capsule.
        output_dim: of an output capsule.
    """

    def __init__(
        self, *, n_categories: int, size: int, width: int, n_maps: int = 16, capsule_dim: int = 8, output_dim: int = 16
    ) -> None:
        super().__init__()
        self.conditions = Conditions(n_categories)
        widths = halving_widths(width, doublings(size, 8), narrowest=min(_NARROWEST, width))[::-1]  # fine to coarse
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise([2 + self.conditions.width, *widths]):
            layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.stem = nn.Sequential(*layers)
        self.primary = PrimaryCapsules(width, n_maps, capsule_dim)
        self.routing = RoutingCapsules(n_maps * 16, capsule_dim, 2, output_dim)
        self.apply(_keep_variance)

    def forward(self, x: Tensor, category: Tensor, diameter_mm: Tensor) -> Tensor:
        """Lengths (B,), in [0, 1), of the capsule of samples (B, 2, size, size); 1 is real."""
        u = squash(self.primary(self.stem(with_planes(x, self.conditions(category, diameter_mm)))).float())
        v = squash(self.routing.gather(self.routing.couplings(u), u))
        return torch.linalg.vector_norm(v[:, 0], dim=1)


def _keep_variance(layer: nn.Module) -> None:
    """Weights that keep the variance of features (He et al., 2015): squashing a short capsule leaves it no gradient."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, NEGATIVE_SLOPE)
        nn.init.zeros_(layer.bias)
