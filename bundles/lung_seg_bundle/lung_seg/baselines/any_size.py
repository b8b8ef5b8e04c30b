# SPDX-License-Identifier: Apache-2.0
"""MONAI's segmentation networks on images of any size."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AnySize"]


class AnySize(nn.Module):
    """A network whose levels halve the grid, on sizes that they do not divide: (B, C, H, W) -> (B, K, H, W).

    The border is repeated up to the next multiple, and the result is cropped again. Of a network that returns a list
    (MONAI's `BasicUNetPlusPlus`) the first output is taken.

    Args:
        network: applied to the padded image.
        multiple: the coarsest level's pixel, in pixels of the image.

    Raises:
        ValueError: for a multiple below 1.
    """

    def __init__(self, network: nn.Module, *, multiple: int) -> None:
        super().__init__()
        if multiple < 1:
            raise ValueError(f"AnySize needs a multiple of at least 1, got {multiple}.")
        self.network = network
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        down, right = (-size % self.multiple for size in (height, width))
        padded = functional.pad(image, (0, right, 0, down), mode="replicate") if down or right else image
        out: Tensor | Sequence[Tensor] = self.network(padded)
        first = out if isinstance(out, Tensor) else out[0]
        return first[..., :height, :width]
