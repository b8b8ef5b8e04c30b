# SPDX-License-Identifier: Apache-2.0
"""The critic of the detail stages: a capsule critic at every place of an image.

It judges what lies around a place (some 60 pixels, 40 mm), beside the coarse image there, and never the image as a
whole: a few patients are many samples to it. The primary capsules of each place are routed to two output capsules, as
in `critic.CapsuleCritic`; the score of the place is read from the first one before squashing.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .capsules import RoutingCapsules
from .critic import CapsuleSettings
from .detail import enlarged
from .double_backward import NEGATIVE_SLOPE

__all__ = ["LocalCapsuleCritic"]

_LUNG_TOP = -0.286  # -500 HU on the networks' scale
_SIZES = CapsuleSettings()
_N_INPUTS = 4  # image and coarse image, each in two windows


class LocalCapsuleCritic(nn.Module):
    """Scores the places of images, each beside what is coarse there.

    Args:
        channels: of the features at half the resolution and after each further halving.
        factor: pixels of the image for each of the coarse one.
        capsules: their sizes; `n_maps` is the number at each place.
    """

    def __init__(self, *, channels: Sequence[int], factor: int, capsules: CapsuleSettings = _SIZES) -> None:
        super().__init__()
        self.factor, self.capsule_dim, self.n_maps = factor, capsules.dim, capsules.n_maps
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(4 * _N_INPUTS, channels[0], kernel_size=3, padding=1), _activation()]
        for fine, wide in itertools.pairwise(channels):
            layers += [nn.Conv2d(fine, wide, kernel_size=4, stride=2, padding=1), _activation()]
            layers += [nn.Conv2d(wide, wide, kernel_size=3, padding=1), _activation()]
        self.stem = nn.Sequential(*layers)
        self.primary = nn.Conv2d(channels[-1], capsules.n_maps * capsules.dim, kernel_size=4, stride=2, padding=1)
        self.routing = RoutingCapsules(
            n_in=capsules.n_maps,
            dim_in=capsules.dim,
            n_out=2,
            dim_out=capsules.category_dim,
            n_iterations=capsules.routing_iterations,
        )
        self.readout = nn.Linear(capsules.category_dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, coarse: Tensor) -> Tensor:
        """Scores images (B, 1, H, W) beside coarse ones (B, 1, h, w), shape (B, places); higher is more real."""
        beside = enlarged(coarse, self.factor)
        seen = torch.cat([image, _lung_window(image), beside, _lung_window(beside)], dim=1)
        poses = self.primary(self.stem(seen)).float()
        rows = poses.permute(0, 2, 3, 1).reshape(-1, self.n_maps, self.capsule_dim)
        own = self.routing(rows)[:, 0]
        return self.readout(own).reshape(image.shape[0], -1)


def _lung_window(image: Tensor) -> Tensor:
    """The contrast of lung: [-1000, -500] HU stretched to [-1, 1]."""
    return ((image + 1) * (2 / (1 + _LUNG_TOP)) - 1).clamp(-1, 1)


def _activation() -> nn.Module:
    return nn.LeakyReLU(NEGATIVE_SLOPE)
