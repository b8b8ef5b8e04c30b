# SPDX-License-Identifier: Apache-2.0
"""What the trainers of this bundle share: numbered steps that draw for themselves, and the means of an epoch.

A training is the steps 1, 2, ... in turn. Each draws from the seed and its number, so one that was stopped goes on
exactly.
"""

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import Tensor
from torch.optim import Optimizer

from .common.precision import use_bfloat16

__all__ = ["StepTrainer", "descend"]


class StepTrainer(Trainer):
    """A trainer without a data loader: `step` gives the losses as floats, `state.metrics` has their means of the epoch.

    Args:
        device: of the networks.
        max_epochs: of `epoch_length` steps each.
        epoch_length: steps.
        amp: bfloat16 autocast; None where the device has instructions for it.
    """

    def __init__(
        self, device: torch.device | str, max_epochs: int, epoch_length: int, *, amp: bool | None = None
    ) -> None:
        super().__init__(device, max_epochs, range(epoch_length), epoch_length, decollate=False)
        self.amp = use_bfloat16(self.state.device, amp)
        self._epoch_outputs: list[dict[str, float]] = []
        self.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)

    def run(self) -> None:
        """Runs until `max_epochs`; bfloat16 needs no gradient scaler."""
        super(Trainer, self).run()

    def step(self, iteration: int) -> dict[str, float]:
        """The training step of that number, from 1 on: critic, generator, average. Returns the losses in parts."""
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """For the networks' passes."""
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _iteration(self, engine: Engine, batchdata: Any) -> dict[str, float]:
        return self.step(engine.state.iteration)

    def _collect(self, engine: Engine) -> None:
        self._epoch_outputs.append(engine.state.output)

    def _summarise(self, engine: Engine) -> None:
        outputs, self._epoch_outputs = self._epoch_outputs, []
        engine.state.metrics = {key: sum(o[key] for o in outputs) / len(outputs) for key in outputs[0]}


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """One step down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
