# SPDX-License-Identifier: Apache-2.0
"""CNN+VGG: a patch classifier in the manner of VGG, swept over the slice.

3 x 3 convolutions and pooling, as Simonyan and Zisserman (2015), turn a patch into two numbers: the logit of "the
patch's middle lies in a nodule" and log2 of the nodule's diameter over 8 pixels. Convolutions are not padded, so that
sweeping gives what patch after patch would: the last pooling loses its stride and the layer after it is dilated instead
(Giusti et al., 2013), which halves the sweep's step to 4 pixels.
"""

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional

from .peaks import find_peaks

__all__ = ["PATCH_PX", "REFERENCE_PX", "STEP_PX", "PatchVgg"]

PATCH_PX = 60
STEP_PX = 4
REFERENCE_PX = 8.0
_MARGIN_PX = (PATCH_PX - STEP_PX) // 2  # a swept value stands for the middle of a block of STEP_PX


def _convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        Conv[Conv.CONV, 2](in_channels, out_channels, kernel_size, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class PatchVgg(nn.Module):
    """Patches (B, 1, 60, 60) in [-1, 1] -> (B, 2): logit of nodule, log2 of its diameter over 8 pixels.

    Args:
        channels: of the three pairs of convolutions.
        hidden: units of the dense layer.
        dropout: before the last layer, in training.
    """

    def __init__(
        self, *, channels: tuple[int, int, int] = (16, 32, 64), hidden: int = 128, dropout: float = 0.2
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.level_1 = nn.Sequential(_convolution(1, first), _convolution(first, first), nn.MaxPool2d(2))
        self.level_2 = nn.Sequential(_convolution(first, second), _convolution(second, second), nn.MaxPool2d(2))
        self.level_3 = nn.Sequential(_convolution(second, third), _convolution(third, third))
        self.dense = Conv[Conv.CONV, 2](third, hidden, 4)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(dropout), Conv[Conv.CONV, 2](hidden, 2, 1))

    def forward(self, patches: Tensor) -> Tensor:
        x = self.level_3(self.level_2(self.level_1(patches)))
        return self.head(self.dense(functional.max_pool2d(x, 2))).flatten(1)

    def sweep(self, image: Tensor) -> Tensor:
        """The classifier at every fourth pixel: (B, 1, H, W) -> (B, 2, ceil(H / 4), ceil(W / 4)).

        A value stands for the middle of a block of 4 x 4 pixels; beyond the image its border is repeated.
        """
        right, bottom = (_MARGIN_PX + -size % STEP_PX for size in (image.shape[-1], image.shape[-2]))
        x = functional.pad(image, (_MARGIN_PX, right, _MARGIN_PX, bottom), mode="replicate")
        x = functional.max_pool2d(self.level_3(self.level_2(self.level_1(x))), 2, stride=1)
        return self.head(functional.conv2d(x, self.dense.weight, self.dense.bias, dilation=2))

    @torch.inference_mode()
    def find(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Nodules on each image.

        Args:
            image: (B, 1, H, W) in [-1, 1].

        Returns:
            A list of (n, 4): row, column, diameter (pixels), probability; and the probability of nodule (B, H, W).
        """
        out = self.sweep(image).float()
        heat, diameter = torch.sigmoid(out[:, 0]), REFERENCE_PX * torch.exp2(out[:, 1].clamp(-2, 4))
        finds = [find_peaks(*planes, step_px=STEP_PX) for planes in zip(heat, diameter, strict=True)]
        size = [STEP_PX * side for side in heat.shape[-2:]]
        fine = functional.interpolate(heat[:, None], size=size, mode="bilinear", align_corners=False)
        return finds, fine[:, 0, : image.shape[-2], : image.shape[-1]]
