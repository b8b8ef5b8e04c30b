# SPDX-License-Identifier: Apache-2.0
"""Which samples an epoch shows: how often each kind of data comes is set, however many of it there are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data.distributed import DistributedSampler

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler):
    """Draws an epoch's samples from the seed and the epoch's number, so that a resumed training sees the same ones.

    It is a DistributedSampler because MONAI's engines tell those which epoch begins; each process draws its own.

    Args:
        data: the samples (`read_datalist`); those of equal `kind` and `labelled` form a group. Groups share alike, but
            for those of kind `nodule` and the extra ones; within a group samples come in proportion to their `weight`.
        nodule_crop_share: share of the groups of kind `nodule` in what is not extra, where there are others
            beside them.
        samples: how many an epoch shows in this process, with replacement.
        seed: of the draw.
        extra_share: share of the samples marked `extra` in the whole, where there are any; 1 leaves nothing else.

    Raises:
        ValueError: when a share is not in [0, 1].
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        samples: int,
        nodule_crop_share: float = 0.3,
        seed: int = 0,
        extra_share: float = 0.5,
    ) -> None:
        if not (0 <= nodule_crop_share <= 1 and 0 <= extra_share <= 1):
            raise ValueError(
                f"Shares lie in [0, 1], got nodule_crop_share {nodule_crop_share} and extra_share {extra_share}."
            )
        ready = distributed.is_available() and distributed.is_initialized()
        replicas, rank = (distributed.get_world_size(), distributed.get_rank()) if ready else (1, 0)
        super().__init__(data, num_replicas=replicas, rank=rank, seed=seed)
        self.num_samples = samples
        groups = [("extra",) if sample.get("extra") else (sample["kind"], *sample["labelled"]) for sample in data]
        sums: Counter[tuple[Any, ...]] = Counter()
        for group, sample in zip(groups, data, strict=True):
            sums[group] += sample["weight"]
        shares = _shares(list(sums), nodule_crop_share=nodule_crop_share, extra_share=extra_share)
        weights = [shares[group] * sample["weight"] / sums[group] for group, sample in zip(groups, data, strict=True)]
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence([self.seed, self.epoch, self.rank]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(state))
        return iter(torch.multinomial(self.weights, self.num_samples, replacement=True, generator=generator).tolist())


def _shares(
    groups: Sequence[tuple[Any, ...]], *, nodule_crop_share: float, extra_share: float
) -> dict[tuple[Any, ...], float]:
    """How often each group comes; the extra ones keep their share whatever else there is."""
    kinds = Counter(kind for kind, *_ in groups)
    of_kind = {"nodule": nodule_crop_share, "slice": 1 - nodule_crop_share}
    known = sum(share for kind, share in of_kind.items() if kinds[kind]) or 1.0
    real = 1 - extra_share if kinds["extra"] else 1.0
    of_kind = {kind: real * share / known for kind, share in of_kind.items()} | {"extra": extra_share}
    return {group: of_kind[group[0]] / kinds[group[0]] for group in groups}
