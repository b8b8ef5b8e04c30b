# SPDX-License-Identifier: Apache-2.0
"""Pairs of a composite and a real, on equal terms: of one spacing, the coarser of the two.

A discriminator would else tell them by the size of their pixels, and the generators would learn to change that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable
from torch import Tensor
from torch.utils.data import Dataset

from .data import Entry

__all__ = ["UnpairedDataset", "prepare_validation"]


class UnpairedDataset(Dataset, Randomizable):
    """Pairs of a composite and a real, drawn anew for each sample, or each in its turn.

    Args:
        data: `composites` and `reals` of `data.unpaired_entries`.
        load: makes `image` (1, H, W) in HU, `nodule` (1, H, W) bool and `spacing_mm` of an entry; cached.
        transform: makes `image` (1, h, w) in units and `nodule` (1, h, w) of that and of `target_mm`, the coarser of
            the pair's spacings.
        length: samples an epoch; None takes each entry in its turn, the shorter list again from its start.
        cache_slices: decoded slices of each domain that are kept in memory.
        progress: show a bar while caching.
    """

    def __init__(
        self,
        data: Mapping[str, Sequence[Entry]],
        *,
        load: Callable[[Entry], dict[str, Any]],
        transform: Compose,
        length: int | None = None,
        cache_slices: int = 1000,
        progress: bool = True,
    ) -> None:
        self.data = data
        self.transform = transform
        self.drawn = length is not None
        self.length = length or max(len(data["composites"]), len(data["reals"]))
        cached = {"cache_num": cache_slices, "progress": progress, "copy_cache": False}
        self.x = CacheDataset(list(data["composites"]), load, **cached)
        self.y = CacheDataset(list(data["reals"]), load, **cached)

    def __len__(self) -> int:
        return self.length

    def set_random_state(self, seed: int | None = None, state: Any = None) -> "UnpairedDataset":
        """Seeds the draw of entries and the random transforms."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A dict of `x`, `x_nodule`, `y`, `y_nodule`."""
        i, j = index % len(self.x), index % len(self.y)
        if self.drawn:
            i, j = int(self.R.randint(len(self.x))), int(self.R.randint(len(self.y)))
        pair = self.x[i], self.y[j]
        target_mm = max(loaded["spacing_mm"] for loaded in pair)
        x, y = (self.transform(loaded | {"target_mm": target_mm}) for loaded in pair)
        return {"x": x["image"], "x_nodule": x["nodule"], "y": y["image"], "y_nodule": y["nodule"]}


def prepare_validation(
    batch: Mapping[str, Tensor], device: torch.device | str, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Composites to enhance and, as their `label`, what the metrics compare with: `nodule` and `real`."""
    moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items()}
    return moved["x"], {"nodule": moved["x_nodule"], "real": moved["y"]}
