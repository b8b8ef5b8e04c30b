# SPDX-License-Identifier: Apache-2.0
"""Dice over all labelled pixels of a data set, and Dice a nodule.

Pooled pixels are those of a few large tumours: with one such patient among those that validate, the pooled Dice jumps
between 0.4 and 0.7 from one validation to the next. The weights are chosen by Dice a block of 64 pixels instead, about
a nodule each.
"""

from collections.abc import Mapping, Sequence

import torch
from ignite.metrics import Metric, MetricsLambda
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from . import CHANNELS
from .losses import block_sums, channel_targets

__all__ = ["BlockDice", "PooledDice", "mean_of"]


def _unpack(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return output["pred"], output["label"], output["labelled"]


class PooledDice(Metric):
    """Dice of the pooled pixels, so that false findings on slices without a nodule count; the mean over channels.

    Channels that nobody drew are left out of the mean; it is NaN when that leaves none.

    Args:
        channels: `lung`, `nodule` or both.
    """

    def __init__(self, channels: Sequence[str] = CHANNELS) -> None:
        self.indices = [CHANNELS.index(channel) for channel in channels]
        super().__init__(output_transform=_unpack)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forgets what was seen."""
        self.overlap = torch.zeros(2, dtype=torch.float64)
        self.size = torch.zeros(2, dtype=torch.float64)
        self.drawn = torch.zeros(2, dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: Sequence[Tensor]) -> None:
        """Adds a batch: logits (B, 2, H, W), label ids (B, 1, H, W), labelled (B, 2)."""
        logits, label, labelled = output
        targets, weights = channel_targets(label, labelled)
        found = (logits > 0).float() * weights
        targets = targets * weights
        axes = (0, 2, 3)
        self.overlap += (found * targets).sum(axes).double().cpu()
        self.size += (found + targets).sum(axes).double().cpu()
        self.drawn += targets.sum(axes).double().cpu()

    @sync_all_reduce("overlap", "size", "drawn")
    def compute(self) -> float:
        """Mean Dice over the channels that were drawn."""
        dice = 2 * self.overlap / self.size
        chosen = [dice[index] for index in self.indices if self.drawn[index] > 0]
        return torch.stack(chosen).mean().item() if chosen else float("nan")


class BlockDice(Metric):
    """Dice of the nodule channel, the mean over blocks that show nodule; NaN without any.

    Args:
        block_px: side of a block.
    """

    def __init__(self, block_px: int = 64) -> None:
        self.block_px = block_px
        super().__init__(output_transform=_unpack)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forgets what was seen."""
        self.dice = torch.zeros((), dtype=torch.float64)
        self.blocks = torch.zeros((), dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: Sequence[Tensor]) -> None:
        """Adds a batch: logits (B, 2, H, W), label ids (B, 1, H, W), labelled (B, 2)."""
        logits, label, labelled = output
        targets, weights = channel_targets(label, labelled)
        found, target = ((plane * weights)[:, 1] for plane in ((logits > 0).float(), targets))
        overlap, found_size, size = (
            block_sums(plane, block_px=self.block_px) for plane in (found * target, found, target)
        )
        shown = size > 0
        self.dice += (2 * overlap / (found_size + size))[shown].sum().double().cpu()
        self.blocks += shown.sum().double().cpu()

    @sync_all_reduce("dice", "blocks")
    def compute(self) -> float:
        """Mean Dice."""
        return (self.dice / self.blocks).item()


def mean_of(metrics: Sequence[Metric]) -> MetricsLambda:
    """The mean of what metrics give; NaN (nothing drawn) is left out."""
    return MetricsLambda(lambda *values: torch.tensor(values, dtype=torch.float64).nanmean().item(), *metrics)
