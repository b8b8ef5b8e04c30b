# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""Keeping the weights of the best validation, and ending a training that no longer gets better.

MONAI's CheckpointSaver and EarlyStopHandler forget, at a resume, which score was the best and how long ago; the first
epoch after it would then replace better weights. This class can be part of the checkpoint.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ignite import distributed
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .atomic import save_weights

__all__ = ["BestWeights"]

_logger = logging.getLogger(__name__)
_Better = Literal["higher", "lower"]
_Keep = Literal["best", "last"]


class BestWeights:
    """Writes a network's plain state dict after validations: of the best so far, or of the last.

    A training that ends without weights, or whose last epoch was not validated where the last weights are kept, is
    validated once more; where it still has none, the log says why. The evaluator's state is always that of the weights
    that are written. A training that is resumed into another folder writes there from its first validation on. Only the
    first process writes.

    Args:
        ckpt_path: the weight file; its folder is made.
        network: whose weights are kept, or the DistributedDataParallel around it.
        metric: name in the evaluator's `state.metrics`.
        better: which values of the metric are.
        patience: validations without a better value after which the training ends; None never ends it.
        keep: weights of the `best` validation or of the `last`.
        least: smallest values of further metrics that a validation needs to count as better.

    Raises:
        ValueError: for a `patience` below 1, or another `better` or `keep`.
    """

    def __init__(
        self,
        ckpt_path: str | Path,
        *,
        network: nn.Module,
        metric: str,
        better: _Better,
        patience: int | None = None,
        keep: _Keep = "best",
        least: Mapping[str, float] | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 validation, or None, got {patience}.")
        for name, value, known in (("better", better, ("higher", "lower")), ("keep", keep, ("best", "last"))):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}.")
        self.ckpt_path = Path(ckpt_path)
        self.network, self.metric, self.better = network, metric, better
        self.patience, self.keep, self.least = patience, keep, dict(least or {})
        self.best: float | None = None
        self.waited = 0

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Looks at each end of `evaluator`, which `trainer` runs, and at the end of `trainer`.

        Attach it before what reads the weight file at the end of a training, such as a `Sidecar`.
        """
        evaluator.add_event_handler(Events.COMPLETED, self._validated, trainer)
        trainer.add_event_handler(Events.COMPLETED, self._finish, evaluator)

    def _validated(self, evaluator: Engine, trainer: Engine) -> None:
        metrics = evaluator.state.metrics
        if self._is_better(float(metrics[self.metric])) and all(
            float(metrics[name]) >= value for name, value in self.least.items()
        ):
            self.best, self.waited = float(metrics[self.metric]), 0
            self._save()
            return
        self.waited += 1
        if self.keep == "last" or (self.best is not None and not self.ckpt_path.is_file()):
            self._save()
        if self.patience is not None and self.waited >= self.patience:
            _logger.info("No better %s than %s in %d validations: stopping.", self.metric, self.best, self.waited)
            trainer.terminate()

    def _finish(self, trainer: Engine, evaluator: Any) -> None:
        if evaluator.state.epoch != trainer.state.epoch and (self.keep == "last" or self.best is None):
            evaluator.run(trainer.state.epoch)
        if not self.ckpt_path.is_file() and distributed.get_rank() == 0:
            _logger.warning("%s was not written: %s", self.ckpt_path, self._why_not(evaluator.state.metrics))

    def _why_not(self, metrics: Mapping[str, Any]) -> str:
        """Why no validation counted, by the figures of the last."""
        missed = [
            f"{name} {float(metrics[name]):.3g} of {low:g}" for name, low in self.least.items() if name in metrics
        ]
        found = f"the last one had {self.metric} {float(metrics.get(self.metric, math.nan)):.3g}"
        needed = f" and {', '.join(missed)} needed (best_weights#least)" if missed else ""
        return f"no validation was good enough; {found}{needed}. Train for more max_epochs."

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value > self.best if self.better == "higher" else value < self.best

    def _save(self) -> None:
        if distributed.get_rank() == 0:
            network = self.network
            save_weights(self.ckpt_path, network.module if isinstance(network, DistributedDataParallel) else network)

    def state_dict(self) -> dict[str, Any]:
        """The best value and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.best, self.waited = state["best"], state["waited"]
