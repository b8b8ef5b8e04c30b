# SPDX-License-Identifier: Apache-2.0
"""Keeps the best weights and ends a training that no longer gets better.

MONAI's CheckpointSaver and EarlyStopHandler forget, at a resume, which score was the best and how long ago; the first
epoch after it would then replace better weights. This one is part of the checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from ignite import distributed
from ignite.engine import Engine, Events
from torch import nn

__all__ = ["BestWeights"]

_LOG = logging.getLogger(__name__)


class BestWeights:
    """Writes the network's plain state dict when a metric of the evaluator reaches a new low, labels being kept.

    Args:
        path: the weight file.
        network: whose weights are kept.
        metric: name in `evaluator.state.metrics`; lower is better.
        trainer: ended after `patience` validations without a new low.
        patience: at least 1.
        kept: name of the metric of labels kept; None asks for none.
        min_kept: an epoch that keeps fewer is none to be chosen, whatever its distance.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        network: nn.Module,
        metric: str,
        trainer: Engine,
        patience: int,
        kept: str | None = None,
        min_kept: float = 0.99,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 validation, got {patience}.")
        self.path = Path(path)
        self.network = network
        self.metric = metric
        self.trainer = trainer
        self.patience = patience
        self.kept, self.min_kept = kept, min_kept
        self.best: float | None = None
        self.waited = 0

    def attach(self, evaluator: Engine) -> None:
        """Looks at the metric when `evaluator` completes."""
        evaluator.add_event_handler(Events.COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        value = float(evaluator.state.metrics[self.metric])
        safe = self.kept is None or float(evaluator.state.metrics[self.kept]) >= self.min_kept
        if safe and (self.best is None or value < self.best):
            self.best, self.waited = value, 0
            if distributed.get_rank() == 0:
                self._save()
            return
        self.waited += 1
        if self.waited >= self.patience:
            _LOG.info("No better %s than %s in %d validations: stopping", self.metric, self.best, self.waited)
            self.trainer.terminate()

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".pt.part")
        torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, part)
        part.rename(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The best value and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.best, self.waited = state["best"], state["waited"]
