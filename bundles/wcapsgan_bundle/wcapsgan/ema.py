# SPDX-License-Identifier: Apache-2.0
"""The average generator: its weights are what is validated and shipped."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["average_of"]


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network; `.module` is the network with the averaged weights.

    The decay grows with the number of updates to its final value, so that the first steps are soon forgotten.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(list(averages), list(values), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=update).eval().requires_grad_(False)
