# SPDX-License-Identifier: Apache-2.0
"""A training that ends when it has used up its processor time, so that methods are compared at the same cost."""

import logging

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from .common.clock import CpuClock

__all__ = ["TimeBudget"]

_logger = logging.getLogger(__name__)


class TimeBudget:
    """Stops a training at the end of the epoch in which it has used up its minutes of one core.

    Args:
        clock: counts them, across stops.
        max_minutes: None for no limit. With several processes, the one that has used most counts.

    Raises:
        ValueError: for a limit that is not positive.
    """

    def __init__(self, clock: CpuClock, max_minutes: float | None) -> None:
        if max_minutes is not None and not max_minutes > 0:
            raise ValueError(f"max_minutes must be positive or None (no limit), got {max_minutes:g}.")
        self.clock, self.max_minutes = clock, max_minutes

    def attach(self, engine: Engine) -> None:
        """Looks at the end of each epoch; attach it after what an epoch's end should still do."""
        if self.max_minutes is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        minutes = torch.tensor(self.clock.minutes(), device=engine.state.device)
        if dist.is_initialized():
            dist.all_reduce(minutes, op=dist.ReduceOp.MAX)
        if float(minutes) >= self.max_minutes:
            _logger.info(
                "%.1f of %g minutes used: stopping after epoch %d.", minutes, self.max_minutes, engine.state.epoch
            )
            engine.terminate()
