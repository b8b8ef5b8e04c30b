# SPDX-License-Identifier: Apache-2.0
"""The learning rate of the paper: constant in the first half of the epochs, then linearly towards 0."""

__all__ = ["linear_decay"]


def linear_decay(epoch: int, *, max_epochs: int) -> float:
    """Factor of the learning rate after `epoch` epochs, for `torch.optim.lr_scheduler.LambdaLR`.

    The factor falls to 0 just after the last epoch, so that no epoch is lost to a rate of 0.
    """
    constant = max_epochs // 2
    return min(1.0, max(0.0, (max_epochs - epoch) / (max_epochs - constant)))
