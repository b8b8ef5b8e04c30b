# SPDX-License-Identifier: Apache-2.0
"""The 3D network that tells nodules from what only looks like one on a slice, and the cubes that it sees.

A cube is `DEPTH` neighbouring slices, whatever their distance, by `SIDE_PX` pixels of the network's grid. Where a
volume ends, its last slice is repeated, and its border within a slice.
"""

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

__all__ = ["DEPTH", "SIDE_PX", "CubeNetwork"]

DEPTH = 5
SIDE_PX = 40


def _convolution(in_channels: int, out_channels: int) -> Convolution:
    return Convolution(
        3, in_channels, out_channels, adn_ordering="NA", norm="batch", act=("relu", {"inplace": True}), bias=False
    )


class CubeNetwork(nn.Module):
    """Cubes (n, 1, DEPTH, SIDE_PX, SIDE_PX) in [-1, 1] -> logits (n,).

    Args:
        channels: of the four levels; slices are kept apart until the last.
        dropout: before the last layer, in training.
    """

    def __init__(self, *, channels: tuple[int, int, int, int] = (12, 24, 48, 64), dropout: float = 0.2) -> None:
        super().__init__()
        first, second, third, fourth = channels
        pool = Pool[Pool.MAX, 3]
        self.features = nn.Sequential(
            _convolution(1, first),
            pool((1, 2, 2)),
            _convolution(first, second),
            _convolution(second, second),
            pool((1, 2, 2)),
            _convolution(second, third),
            _convolution(third, third),
            pool((2, 2, 2)),
            _convolution(third, fourth),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(fourth, 1))

    def forward(self, cubes: Tensor) -> Tensor:
        return self.head(self.features(cubes).amax(dim=(2, 3, 4)))[:, 0]
