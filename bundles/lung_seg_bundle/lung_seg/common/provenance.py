# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""The sidecar of a weight file: which data, split, seed and versions it came from, and how well it did."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from .atomic import write_json

__all__ = ["Sidecar", "file_sha256"]

PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hex digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Sidecar:
    """Writes `model.json` beside `model.pt` after each epoch, so that weights never stand without their origin.

    Args:
        ckpt_path: the weight file; nothing is written until it exists.
        network: dotted name of the network's class.
        dataset_dir: the COHORT trained on; its `cohort.json` tells the split and the licences.
        seed: of the training.
        evaluator: engine whose `state.metrics` and `state.best_metric` are the validation figures.
        extra: further facts, such as the network's size; a callable is asked when the file is written.
    """

    def __init__(
        self,
        ckpt_path: str | Path,
        *,
        network: str,
        dataset_dir: str | Path,
        seed: int,
        evaluator: Engine | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.ckpt_path = Path(ckpt_path)
        self.network = network
        self.dataset_dir = Path(dataset_dir)
        self.seed = seed
        self.evaluator = evaluator
        self.extra = dict(extra or {})

    def attach(self, engine: Engine) -> None:
        """Writes at the end of each epoch of `engine` and when it completes."""
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Writes the sidecar of the weights that stand on disk now."""
        if not self.ckpt_path.is_file():
            return
        sidecar = self.ckpt_path.with_suffix(".json")
        sha256 = file_sha256(self.ckpt_path)
        if sidecar.is_file() and json.loads(sidecar.read_text(encoding="utf-8"))["sha256"] == sha256:
            return  # the weights are still those of an earlier epoch
        facts = self.describe(sha256) | {"epochs": engine.state.epoch, "iterations": engine.state.iteration}
        write_json(sidecar, facts)

    def describe(self, sha256: str) -> dict[str, Any]:
        """The facts, as plain JSON types."""
        cohort_file = self.dataset_dir / "cohort.json"
        cohort = json.loads(cohort_file.read_text(encoding="utf-8")) if cohort_file.is_file() else {}
        return {
            "network": self.network,
            "sha256": sha256,
            "split_hash": cohort.get("split_hash"),
            "data": [
                {key: source.get(key) for key in ("name", "licence", "citation")}
                for source in cohort.get("sources", [])
            ],
            "seed": self.seed,
            "versions": {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES},
            "validation": self._validation(),
            **{name: fact() if callable(fact) else fact for name, fact in self.extra.items()},
        }

    def _validation(self) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        state = self.evaluator.state
        return {name: float(value) for name, value in state.metrics.items() if isinstance(value, (int, float))}
