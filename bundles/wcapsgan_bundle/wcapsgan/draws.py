# SPDX-License-Identifier: Apache-2.0
"""What a training step draws, from one generator in one order: alike in every process, of which each takes its rows."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .augment import AugmentationRange, augment
from .data import Batch, CohortSamples
from .latents import draw_latents

__all__ = ["StepDraws", "averaged", "gathered"]


class StepDraws:
    """The randomness of a step.

    Args:
        generator: seeded for this step.
        dataset: where real samples come from.
        augmentation: of real and generated samples; None for none.
        batch_size: samples a process.
        device: where they go.
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        dataset: CohortSamples,
        augmentation: AugmentationRange | None,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.generator, self.dataset, self.augmentation = generator, dataset, augmentation
        self.batch_size, self.device = batch_size, device

    def reals(self) -> Batch:
        """Fresh real samples with their conditions."""
        batch = self.dataset.draw(self.generator, self.batch_size * _world())
        return Batch(*(self._own(values) for values in batch))

    def latents(self, dim: int) -> Tensor:
        """Fresh latents (B, dim)."""
        return self._share(lambda count: draw_latents(self.generator, count, dim))

    def shares(self) -> Tensor:
        """Fresh numbers in [0, 1), (B,)."""
        return self._share(lambda count: torch.rand(count, generator=self.generator))

    def augmented(self, samples: Tensor) -> Tensor:
        """Samples (B, 2, ...), each under an operation of its own."""
        if self.augmentation is None:
            return samples
        shape = torch.Size((len(samples) * _world(), *samples.shape[1:]))
        drawn = self.augmentation.draw(self.generator, shape)
        rows = {name: self._own(value) for name, value in drawn._asdict().items() if isinstance(value, Tensor)}
        return augment(samples, drawn._replace(**rows))

    def _share(self, make: Callable[[int], Tensor]) -> Tensor:
        """Of what `make(count)` draws for all processes, the rows of this one."""
        return self._own(make(self.batch_size * _world()))

    def _own(self, values: Tensor) -> Tensor:
        """The rows of this process, on its device."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        return values[rank :: _world()].to(self.device)


def averaged(terms: dict[str, Tensor]) -> dict[str, float]:
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
