# SPDX-License-Identifier: Apache-2.0
"""Dice over all labelled pixels of a data set."""

from collections.abc import Mapping, Sequence

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from . import CHANNELS
from .losses import channel_targets

__all__ = ["PooledDice"]


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
