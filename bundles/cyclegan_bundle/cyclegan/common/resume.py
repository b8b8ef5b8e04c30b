# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""What a training must remember beside its networks to go on as if it had never stopped: the random generators."""

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd

__all__ = ["RandomState", "process_seed"]

# `set_rnd` gives the random transforms of a dataset consecutive seeds. Seeds of two epochs are so far apart that the
# transforms of one, up to 1000, never get the seeds of another. Another step would draw other samples.
_EPOCH_STEP = 1000
# Seeds of two processes are a number apart that is no multiple of it (a prime), so that where the epochs of one reach
# the seeds of the other, after 100 epochs, they meet at different transforms.
_PROCESS_STEP = 100_003


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
