# SPDX-License-Identifier: Apache-2.0
"""The prior, in one place: latents are standard normal, in training as in sampling.

Every draw comes from a `torch.Generator` on the CPU, so that a seed means the same on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_latents", "latents_of", "seeded_generator"]

_WORD = 1 << 32


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator for a tuple of integers, such as (seed, iteration).

    torch's generator keeps 32 bits of a seed; the numbers are mixed first, so that all bits of all numbers count.
    """
    mixed = 0
    for number in numbers:
        for word in (number % _WORD, (number >> 32) % _WORD):
            mixed = (mixed ^ word) * 0x9E3779B1 % _WORD
            mixed ^= mixed >> 15
    return torch.Generator().manual_seed(mixed)


def draw_latents(generator: torch.Generator, count: int, dim: int) -> Tensor:
    """Draws latents of shape (count, dim)."""
    return torch.randn(count, dim, generator=generator)


def latents_of(generators: Sequence[torch.Generator], dim: int) -> Tensor:
    """Draws one latent a generator, shape (len(generators), dim)."""
    return torch.cat([draw_latents(generator, 1, dim) for generator in generators])
