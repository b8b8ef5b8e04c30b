# SPDX-License-Identifier: Apache-2.0
"""What training steps draw: each step from one generator in one order, alike in all processes, which share its rows.

A step's randomness (samples, latents, augmentations, mixes) follows from the seed and the number of the step, so a
training that was stopped goes on exactly, and processes that share a step draw shares of one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .augment import AugmentationRange, augment
from .data import Batch, CohortSamples
from .latents import draw_latents, seeded_generator

__all__ = ["StepBatches", "StepDraws", "gathered", "mean_over_processes"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StepBatches:
    """Where the batches of all steps come from.

    Args:
        dataset: real samples.
        batch_size: samples a step and process.
        augmentation: of real and generated samples alike; None for none.
        seed: of everything drawn.
    """

    dataset: CohortSamples
    batch_size: int
    augmentation: AugmentationRange | None
    seed: int

    def step(self, iteration: int, device: torch.device) -> "StepDraws":
        """The draws of the step of that number, from 1 on."""
        return StepDraws(self, seeded_generator(self.seed, iteration), device)


class StepDraws:
    """The randomness of a step: each call draws anew.

    Args:
        batches: where it draws from.
        generator: seeded for this step.
        device: where the draws go.
    """

    def __init__(self, batches: StepBatches, generator: torch.Generator, device: torch.device) -> None:
        self.batches, self.generator, self.device = batches, generator, device

    def reals(self) -> Batch:
        """Fresh real samples with their conditions."""
        batch = self.batches.dataset.draw(self.generator, self.batches.batch_size * _world())
        return Batch(*(self._own(values) for values in batch))

    def latents(self, dim: int) -> Tensor:
        """Fresh latents (B, dim)."""
        return self._share(lambda count: draw_latents(self.generator, count, dim))

    def mixes(self) -> Tensor:
        """Fresh shares of real samples in a mix with generated ones, in [0, 1), (B,)."""
        return self._share(lambda count: torch.rand(count, generator=self.generator))

    def augmented(self, samples: Tensor) -> Tensor:
        """Samples (B, 2, ...), each under an operation of its own."""
        if self.batches.augmentation is None:
            return samples
        shape = torch.Size((len(samples) * _world(), *samples.shape[1:]))
        drawn = self.batches.augmentation.draw(self.generator, shape)
        rows = {name: self._own(value) for name, value in drawn._asdict().items() if isinstance(value, Tensor)}
        return augment(samples, drawn._replace(**rows))

    def _share(self, make: Callable[[int], Tensor]) -> Tensor:
        """Of what `make(count)` draws for all processes, the rows of this one."""
        return self._own(make(self.batches.batch_size * _world()))

    def _own(self, values: Tensor) -> Tensor:
        """The rows of this process, on its device."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        return values[rank :: _world()].to(self.device)


def mean_over_processes(terms: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as floats, averaged over the processes."""
    values = torch.stack([value.detach().float() for value in terms.values()])
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return dict(zip(terms, values.tolist(), strict=True))


def gathered(values: Tensor) -> Tensor:
    """The values (B, ...) of all processes, (B * processes, ...), with the gradient of this one's.

    It counts once for each process, because DistributedDataParallel will take the mean over them.
    """
    if not dist.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(_world())]
    dist.all_gather(parts, values.detach().contiguous())
    parts[dist.get_rank()] = values.detach() + _world() * (values - values.detach())
    return torch.cat(parts)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
