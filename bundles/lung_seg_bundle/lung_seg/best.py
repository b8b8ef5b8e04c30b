# SPDX-License-Identifier: Apache-2.0
"""Keeping the best weights, also across a stop: the best score so far is part of what a resumed training knows."""

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import distributed, nn

__all__ = ["BestWeights"]

logger = logging.getLogger(__name__)


class BestWeights:
    """Writes a network's plain state dict whenever a validation metric is higher than before.

    The file is replaced in one step, so it is always whole. A training resumed into another folder writes there from
    its first validation on. Only the first process writes.

    Args:
        path: the weight file; its folder is made.
        network: or the DistributedDataParallel around it.
        metric: name in the evaluator's `state.metrics`.
    """

    def __init__(self, path: str | Path, network: nn.Module, *, metric: str) -> None:
        self.path = Path(path)
        self.network = network
        self.metric = metric
        self.best: float | None = None

    def __call__(self, engine: Engine) -> None:
        """Attach to the evaluator's COMPLETED event."""
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
            return
        score = float(engine.state.metrics[self.metric])
        if self.best is not None and not score > self.best and self.path.is_file():
            return
        self.best = score if self.best is None else max(score, self.best)
        inner = self.network.module if isinstance(self.network, nn.parallel.DistributedDataParallel) else self.network
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".pt.part")
        torch.save(inner.state_dict(), temporary)
        temporary.rename(self.path)
        logger.info("%s: %s %.4f", self.path, self.metric, score)

    def state_dict(self) -> dict[str, Any]:
        """The best score."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the best score of an earlier run."""
        self.best = state["best"]
