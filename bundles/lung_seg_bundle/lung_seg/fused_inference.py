# SPDX-License-Identifier: Apache-2.0
"""The same network with less work on a CPU: to run, not to train.

Batch norms are folded into the convolutions before them, and weights are kept in the precision that is computed in.
Half of a dense block's time goes into joining channels, because channels-last tensors are joined pixel by pixel, a few
bytes at a time; here they are joined in the widest pieces that the channel counts allow.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .network import DenseUNet

__all__ = ["FusedDenseUNet", "fuse", "join"]

WIDE = (torch.complex128, torch.int64, torch.int32)  # 16, 8 and 4 bytes, only to be moved


class FusedDenseUNet(nn.Module):
    """Computes what a trained 2D `DenseUNet` computes in evaluation: (B, C, H, W) -> logits of equal height and width.

    Args:
        network: not changed.
        dtype: of weights and activations.

    Raises:
        ValueError: for a network of other spatial dimensions.
    """

    def __init__(self, network: DenseUNet, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if network.head.weight.dim() != 4:
            raise ValueError("FusedDenseUNet runs networks of 2 spatial dimensions; run others as they are.")
        self.multiple = network.multiple
        self.dtype = dtype
        self.stem = _folded(network.stem) if network.has_stem else None
        self.restore = copy.deepcopy(network.restore) if network.has_stem else None
        self.encoder = nn.ModuleList(
            nn.ModuleList(_folded(layer) for layer in stage if hasattr(layer, "conv")) for stage in network.encoder
        )
        self.ups = nn.ModuleList(copy.deepcopy(stage.up) for stage in network.decoder)
        self.blocks = nn.ModuleList(
            nn.ModuleList(_folded(layer) for layer in stage.dense.layers) for stage in network.decoder
        )
        self.head = copy.deepcopy(network.head)
        self.pad = network._pad
        self.to(dtype=dtype, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = self.pad(image).to(dtype=self.dtype, memory_format=torch.channels_last)
        x = padded if self.stem is None else self.stem(padded).relu_()
        skips = []
        for level, layers in enumerate(self.encoder):
            x = functional.max_pool2d(x, 2) if level else x
            for layer in layers:
                x = layer(x).relu_()
            skips.append(x)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips[:-1]), strict=True):
            x = join([up(x), skip])
            for layer in block:
                x = join([x, layer(x).relu_()])
        x = x if self.restore is None else join([self.restore(x), padded])
        return self.head(x)[..., :height, :width]


def fuse(network: nn.Module, *, amp: bool) -> nn.Module:
    """A faster equal of `network` where this module knows one, else the network itself.

    Args:
        network: trained, not changed.
        amp: whether to compute in bfloat16.
    """
    # A subclass may compute something else.
    if type(network) is not DenseUNet or network.head.weight.dim() != 4:
        return network
    return FusedDenseUNet(network, dtype=torch.bfloat16 if amp else torch.float32).to(network.head.weight.device)


def join(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat(parts, dim=1)` of channels-last tensors (B, C_i, H, W)."""
    widths = [part.shape[1] * part.element_size() for part in parts]
    kind = next((kind for kind in WIDE if all(width % kind.itemsize == 0 for width in widths)), parts[0].dtype)
    pieces = [part.movedim(1, -1).contiguous().view(kind) for part in parts]
    return torch.cat(pieces, dim=-1).view(parts[0].dtype).movedim(-1, 1)


def _folded(layer: nn.Module) -> nn.Module:
    """Convolution and batch norm of one layer, as one convolution."""
    return fuse_conv_bn_eval(layer.conv, layer.adn.N)
