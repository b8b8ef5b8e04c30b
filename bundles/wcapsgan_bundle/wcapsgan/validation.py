# SPDX-License-Identifier: Apache-2.0
"""Validation: the average generator against held-out samples, its weights kept, a picture each time."""

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

__all__ = ["GenerationEvaluator", "KeptWeights", "SampleMontage"]

logger = logging.getLogger(__name__)

KEEP = ("last", "best")


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


class KeptWeights:
    """Keeps weights that validation has seen, and stops a training that has not improved for long.

    `last` keeps those of each validation, and those of the end of the training, which is validated once more if its
    last epoch was not. `best` keeps those of the highest metric; the end is validated only where nothing has been, so
    that each training leaves weights. Either way `evaluator.state` is that of the kept weights when they are written.

    Unlike a saver and a stopper of MONAI, its memory can stand in a checkpoint: a resumed training does not overwrite
    better weights. What the end adds is not in that memory, so a training that goes on is one that never ended.

    Args:
        weights: the file; None keeps nothing (processes but the first).
        network: whose plain state dict is kept.
        evaluator: its key metric counts, higher is better.
        patience: validations without improvement of the metric after which the trainer stops, whatever is kept.
        keep: `last` or `best`.

    Raises:
        ValueError: for another `keep`.
    """

    def __init__(
        self,
        weights: str | Path | None,
        *,
        network: nn.Module,
        evaluator: Evaluator,
        patience: int,
        keep: str = "last",
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep must be one of {list(KEEP)}, got {keep!r}.")
        self.weights = Path(weights) if weights else None
        self.network, self.evaluator, self.patience, self.keep = network, evaluator, patience, keep
        self.best, self.waited = float("-inf"), 0

    def state_dict(self) -> dict[str, float]:
        """The best metric and how many validations ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes up where `state_dict` was."""
        self.best, self.waited = float(state["best"]), int(state["waited"])

    def attach(self, engine: Engine) -> None:
        """Looks at the end of each epoch of the trainer, and at its end; to be attached after its ValidationHandler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def __call__(self, engine: Engine) -> None:
        """Takes note of this epoch's validation, if there was one."""
        if not self._validated(engine):
            return
        state = self.evaluator.state
        metric = float(state.metrics[state.key_metric_name])
        improved = metric > self.best
        if improved:
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        if improved or self.keep == "last":
            self._save()
        if self.waited >= self.patience:
            logger.info("No improvement in %d validations: stopping after epoch %d.", self.waited, engine.state.epoch)
            engine.terminate()

    def complete(self, engine: Engine) -> None:
        """Validates and keeps the weights of the end, however the training came to it, where that is still to do."""
        if not self._validated(engine) and (self.keep == "last" or self.best == float("-inf")):
            self.evaluator.run(engine.state.epoch)
            self._save()

    def _validated(self, engine: Engine) -> bool:
        return bool(self.evaluator.state.epoch == engine.state.epoch)

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
