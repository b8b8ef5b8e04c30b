# SPDX-License-Identifier: Apache-2.0
"""Validation: the average generator against held-out samples, and a picture each time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from .latents import latents_of, seeded_generator
from .montage import montage, write_png

__all__ = ["GenerationEvaluator", "SampleMontage"]


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


class SampleMontage:
    """Writes a picture of the first real and generated samples of each validation to `folder/epoch_<n>.png`.

    Of several processes, only the first one writes.
    """

    def __init__(self, folder: str | Path, *, rows: int = 4, columns: int = 8) -> None:
        self.folder = Path(folder)
        self.rows, self.columns = rows, columns
        self._shown: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Collects each iteration of the evaluator and writes at its end."""
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, lambda engine: self._shown.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        if sum(len(output["pred"]) for output in self._shown) < self.rows * self.columns:
            self._shown.append(engine.state.output)

    def _write(self, engine: Engine) -> None:
        count = self.rows * self.columns
        real, generated = (torch.cat([o[k] for o in self._shown])[:count].cpu() for k in ("label", "pred"))
        picture = montage([real, generated], columns=self.columns)
        write_png(picture, self.folder / f"epoch_{engine.state.epoch:04d}.png")
