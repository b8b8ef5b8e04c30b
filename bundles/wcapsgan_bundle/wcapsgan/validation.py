# SPDX-License-Identifier: Apache-2.0
"""Validation: the average generator against held-out samples, the best weights kept, a picture each time."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from .latents import latents_of, seeded_generator
from .montage import montage, write_png

__all__ = ["BestWeights", "GenerationEvaluator", "SampleMontage"]

logger = logging.getLogger(__name__)


class GenerationEvaluator(Evaluator):
    """Generates one sample for each real one, of its category and diameter, from the latent of its index.

    `state.output` has `label`, the real samples, and `pred`, the generated ones, (B, 2, S, S[, S]).
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable[Any],
        *,
        network: nn.Module,
        inferer: Inferer | None = None,
        key_val_metric: dict[str, Any] | None = None,
        val_handlers: Iterable[Any] = (),
    ) -> None:
        self.network = network
        self.inferer = inferer or SimpleInferer()
        super().__init__(
            device, val_data_loader, key_val_metric=key_val_metric, val_handlers=list(val_handlers), decollate=False
        )

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        device = engine.state.device
        self.network.eval()
        generators = [seeded_generator(int(index)) for index in batchdata["index"]]
        latent = latents_of(generators, self.network.latent_dim).to(device)
        conditions = (batchdata["category"].to(device), batchdata["diameter_mm"].to(device))
        with torch.inference_mode():
            generated = self.inferer(latent, self.network, *conditions)
        return {"label": batchdata["image"], "pred": generated}


class BestWeights:
    """Keeps the weights of the best validation, and stops a training that has not improved for long.

    Unlike a saver and a stopper of MONAI, its memory can stand in a checkpoint: a resumed training does not overwrite
    better weights.

    Args:
        weights: the file; None keeps nothing (processes but the first).
        network: whose plain state dict is kept.
        evaluator: its key metric counts, higher is better.
        patience: validations without improvement after which the trainer stops.
    """

    def __init__(self, weights: str | Path | None, *, network: nn.Module, evaluator: Evaluator, patience: int) -> None:
        self.weights = Path(weights) if weights else None
        self.network, self.evaluator, self.patience = network, evaluator, patience
        self.best, self.waited = float("-inf"), 0

    def state_dict(self) -> dict[str, float]:
        """The best metric and how many validations ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes up where `state_dict` was."""
        self.best, self.waited = float(state["best"]), int(state["waited"])

    def attach(self, engine: Engine) -> None:
        """Looks at the end of each epoch of the trainer; to be attached after its ValidationHandler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = self.evaluator.state
        if state.epoch != engine.state.epoch:
            return  # no validation in this epoch
        metric = float(state.metrics[state.key_metric_name])
        if metric > self.best:
            self.best, self.waited = metric, 0
            self._save()
        else:
            self.waited += 1
        if self.waited >= self.patience:
            logger.info("No improvement in %d validations: stopping after epoch %d.", self.waited, engine.state.epoch)
            engine.terminate()

    def _save(self) -> None:
        if self.weights is None:
            return
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        part = self.weights.with_suffix(".part")
        torch.save({key: value.cpu().contiguous() for key, value in self.network.state_dict().items()}, part)
        part.rename(self.weights)


class SampleMontage:
    """Writes a picture of the first real and generated samples of each validation to `folder/epoch_<n>.png`."""

    def __init__(self, folder: str | Path, *, rows: int = 4, columns: int = 8) -> None:
        self.folder = Path(folder)
        self.rows, self.columns = rows, columns
        self._shown: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Collects each iteration of the evaluator and writes at its end."""
        engine.add_event_handler(Events.STARTED, lambda engine: self._shown.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        if sum(len(output["pred"]) for output in self._shown) < self.rows * self.columns:
            self._shown.append(engine.state.output)

    def _write(self, engine: Engine) -> None:
        count = self.rows * self.columns
        real, generated = (torch.cat([o[k] for o in self._shown])[:count].cpu() for k in ("label", "pred"))
        self.folder.mkdir(parents=True, exist_ok=True)
        picture = montage([real, generated], columns=self.columns)
        write_png(picture, self.folder / f"epoch_{engine.state.epoch:04d}.png")
