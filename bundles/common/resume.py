# SPDX-License-Identifier: Apache-2.0
"""Going on with a training as if it had never stopped: whole checkpoints, and the random generators in them."""

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from torch.nn.parallel import DistributedDataParallel

from .atomic import replacing

__all__ = ["RandomState", "ResumeSaver", "process_seed"]

# `set_rnd` gives the random transforms of a dataset consecutive seeds. Seeds of two epochs are so far apart that the
# transforms of one, up to 1000, never get the seeds of another. Another step would draw other samples.
_EPOCH_STEP = 1000
# Seeds of two processes are a number apart that is no multiple of it (a prime), so that where the epochs of one reach
# the seeds of the other, after 100 epochs, they meet at different transforms.
_PROCESS_STEP = 100_003


class ResumeSaver:
    """Writes `resume_<epoch>.pt` after an epoch, whole or not at all, and removes older ones.

    It knows older ones by their names, so that those of a process that was killed go, too. Only the first of several
    processes writes.

    Args:
        state: what a checkpoint holds, by name; each has `state_dict`.
        folder: of the files.
        keep: how many there are.
    """

    def __init__(self, state: Mapping[str, Any], *, folder: str | Path, keep: int = 1) -> None:
        self.state, self.folder, self.keep = state, Path(folder), keep

    def __call__(self, engine: Engine) -> None:
        """Writes the checkpoint of the epoch that `engine` has finished."""
        if distributed.get_rank() != 0:
            return
        content = io.BytesIO()  # given a path, torch.save would write its name into the file
        torch.save({name: _unwrapped(part).state_dict() for name, part in self.state.items()}, content)
        epoch = engine.state.epoch
        for half in self.folder.glob(".*.part_resume_*.pt"):
            half.unlink()
        with replacing(self.folder / f"resume_{epoch}.pt") as temporary:
            temporary.write_bytes(content.getvalue())
        for path in self.folder.glob("resume_*.pt"):
            number = path.stem.removeprefix("resume_")
            if number.isdecimal() and int(number) <= epoch - self.keep:
                path.unlink()


def _unwrapped(part: Any) -> Any:
    return part.module if isinstance(part, DistributedDataParallel) else part


def process_seed(seed: int, rank: int) -> int:
    """The seed of one of several processes, so that each draws other samples; the first keeps `seed`."""
    return seed + _PROCESS_STEP * rank


class RandomState:
    """Random generators of torch, numpy and Python, as an object that a CheckpointSaver can hold.

    MONAI's random transforms own a generator each, which no checkpoint reaches; once attached, they are seeded anew at
    the start of each epoch from `seed` and the epoch, so that an epoch is the same with a stop before it or without.

    Args:
        seed: of the transforms.
        dataset: whose transforms are seeded; None when no transform draws.
    """

    def __init__(self, *, seed: int = 0, dataset: Any = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Seeds the transforms at the start of each epoch of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_transforms)

    def _seed_transforms(self, engine: Engine) -> None:
        if self.dataset is not None:
            set_rnd(self.dataset, self.seed + _EPOCH_STEP * engine.state.epoch)

    def state_dict(self) -> dict[str, Any]:
        """State of all generators, in types that `torch.load(weights_only=True)` accepts."""
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        version, internal, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
            "python": [version, list(internal), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the generators back where `state_dict` found them."""
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
