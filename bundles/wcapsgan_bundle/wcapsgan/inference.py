# SPDX-License-Identifier: Apache-2.0
"""The run of `configs/inference.json`: a list of requests, sampled, written as `samples.npz` and `montage.png`."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch.utils.data import Dataset

from .common.atomic import replacing
from .common.hounsfield import NETWORK_WINDOW
from .montage import montage, write_png
from .sampler import Sampler

__all__ = ["Requests", "SampleWriter", "SamplingEvaluator", "gather_requests"]

_logger = logging.getLogger(__name__)


class Requests(Dataset):
    """`count` requests with consecutive seeds, their categories in turn.

    Args:
        data: the categories to request.
        count: of samples, at least 1.
        first_seed: of the first.
        diameter_mm: of all; None draws each one as in training.

    Raises:
        ValueError: when there is nothing to request.
    """

    def __init__(
        self, data: Sequence[str], *, count: int, first_seed: int = 0, diameter_mm: float | None = None
    ) -> None:
        if count < 1 or not data:
            raise ValueError(f"Expected count >= 1 and at least one category, got count {count} and {list(data)}.")
        self.data = [
            {"seed": first_seed + i, "category": data[i % len(data)], "diameter_mm": diameter_mm} for i in range(count)
        ]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]


def gather_requests(requests: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Collates requests into lists."""
    return {key: [request[key] for request in requests] for key in ("seed", "category", "diameter_mm")}


class SamplingEvaluator(Evaluator):
    """Passes each batch of requests to the sampler; `state.output` is what it returns."""

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable[Any],
        *,
        sampler: Sampler,
        val_handlers: Iterable[Any] = (),
    ) -> None:
        self.sampler = sampler
        super().__init__(device, val_data_loader, val_handlers=list(val_handlers), decollate=False)

    def _iteration(self, engine: Engine, batchdata: dict[str, list[Any]]) -> dict[str, Any]:
        return self.sampler(batchdata["seed"], batchdata["category"], batchdata["diameter_mm"])


class SampleWriter:
    """Writes all samples of a run to `folder/samples.npz`, and a picture of the first to `folder/montage.png`."""

    def __init__(self, folder: str | Path, *, columns: int = 8, shown: int = 64) -> None:
        self.folder = Path(folder)
        self.columns, self.shown = columns, shown
        self._outputs: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Collects each iteration and writes at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self._outputs.append(engine.state.output))
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        samples = {key: np.concatenate([np.asarray(o[key]) for o in self._outputs]) for key in self._outputs[0]}
        self._outputs = []
        with replacing(self.folder / "samples.npz") as temporary:
            np.savez_compressed(temporary, **samples)
        mask = samples["alpha" if "alpha" in samples else "mask"]
        hu, mask_shown = (torch.from_numpy(a[: self.shown]).float() for a in (samples["hu"], mask))
        shown = torch.stack([NETWORK_WINDOW.to_unit(hu, clip=True), mask_shown], dim=1)
        write_png(montage([shown], columns=self.columns), self.folder / "montage.png")
        _logger.info("Wrote %d samples to %s.", len(mask), self.folder / "samples.npz")
