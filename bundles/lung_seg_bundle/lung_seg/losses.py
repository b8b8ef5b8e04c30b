# SPDX-License-Identifier: Apache-2.0
"""Loss on partly labelled data: only what an expert looked at counts.

A label map (B, 1, H, W) holds 0 background, 1 lung, 2 nodule, 255 unlabelled. It gives two targets, lung = {1, 2} and
nodule = {2}; `labelled` (B, 2) says which of them an expert drew on each image. Pixels of 255 count for neither.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import IGNORED

__all__ = ["MaskedLoss", "SegmentationTerms", "block_sums", "channel_targets", "segmentation_terms"]

LUNG, NODULE = 1, 2


class SegmentationTerms(NamedTuple):
    """Scalars; a channel that nobody drew in the batch has terms of 0 without gradient."""

    bce_lung: Tensor
    bce_nodule: Tensor
    dice_lung: Tensor
    dice_nodule: Tensor
    dice_small: Tensor

    def total(self, *, dice_weight: float, nodule_weight: float) -> Tensor:
        """Weighted sum of the terms."""
        lung = self.bce_lung + dice_weight * self.dice_lung
        nodule = self.bce_nodule + dice_weight * (self.dice_nodule + self.dice_small) / 2
        return lung + nodule_weight * nodule


def channel_targets(label: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and weights of the two channels.

    Args:
        label: (B, 1, H, W) label ids.
        labelled: (B, 2), 1 where an expert drew the channel.

    Returns:
        Targets and weights, both float32 (B, 2, H, W) of 0 and 1.
    """
    targets = torch.cat([(label == LUNG) | (label == NODULE), label == NODULE], dim=1).float()
    weights = (label != IGNORED).float() * labelled[:, :, None, None].float()
    return targets, weights


def segmentation_terms(logits: Tensor, label: Tensor, labelled: Tensor, *, block_px: int = 64) -> SegmentationTerms:
    """Binary cross-entropy and soft Dice of each channel, over the batch's labelled pixels.

    Dice is taken over the batch as a whole, so that images without a nodule, too, count by what is found on them; large
    nodules decide it. `dice_small` is the mean over blocks of `block_px` that show nodule, where each counts alike.

    Args:
        logits: float32 (B, 2, H, W): lung, nodule.
        label: (B, 1, H, W) label ids.
        labelled: (B, 2).
        block_px: side of a block, about that of a nodule's crop; what is left at the border stands in no block.
    """
    targets, weights = channel_targets(label, labelled)
    axes = (0, 2, 3)
    drawn = weights.sum(axes)
    bce = functional.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none").sum(axes)
    found = torch.sigmoid(logits) * weights
    overlap = (found * targets).sum(axes)
    size = found.sum(axes) + (targets * weights).sum(axes)
    dice = (1 - (2 * overlap + 1) / (size + 1)) * (drawn > 0)
    bce = bce / drawn.clamp(min=1)
    small = _blockwise_dice(found[:, 1], (targets * weights)[:, 1], block_px=block_px)
    return SegmentationTerms(bce[0], bce[1], dice[0], dice[1], small)


def block_sums(planes: Tensor, *, block_px: int) -> Tensor:
    """Sums over blocks of planes (B, H, W): (B, H // block_px, W // block_px), at least one block each way."""
    return functional.avg_pool2d(planes, min(block_px, *planes.shape[1:]), divisor_override=1)


def _blockwise_dice(found: Tensor, target: Tensor, *, block_px: int) -> Tensor:
    """Soft Dice loss, the mean over the blocks with target; planes (B, H, W)."""
    overlap, found_size, size = (block_sums(plane, block_px=block_px) for plane in (found * target, found, target))
    shown = size > 0
    dice = 1 - (2 * overlap + 1) / (found_size + size + 1)
    return (dice * shown).sum() / shown.sum().clamp(min=1)


class MaskedLoss:
    """`segmentation_terms` with the weights of their sum.

    Args:
        dice_weight: of soft Dice beside cross-entropy.
        nodule_weight: of the nodule channel beside the lung channel.
    """

    def __init__(self, *, dice_weight: float = 1.0, nodule_weight: float = 1.0) -> None:
        self.dice_weight = dice_weight
        self.nodule_weight = nodule_weight

    def __call__(self, logits: Tensor, label: Tensor, labelled: Tensor) -> tuple[Tensor, SegmentationTerms]:
        """Total (scalar) and its terms; arguments as in `segmentation_terms`."""
        terms = segmentation_terms(logits, label, labelled)
        return terms.total(dice_weight=self.dice_weight, nodule_weight=self.nodule_weight), terms
