# SPDX-License-Identifier: Apache-2.0
"""How far generated samples are from held-out real ones: the sliced Wasserstein distance of pyramid patches.

After Karras et al. (2018): patches of 7 x 7 pixels (of cubes: 7 x 7 x 7) from each level of a Laplacian pyramid (both
channels), and each sample as a whole at 8 pixels a side, are projected on random directions; in one dimension the
Wasserstein distance is the mean difference of the sorted values. Patches are scaled by the real ones' mean and spread,
so a wrong density counts.
Needs no feature network, takes about a second, and gives the same figure for the same samples.
"""

from collections.abc import Callable
from typing import Any

import torch
from ignite.metrics import Metric
from torch import Tensor
from torch.nn import functional

from .latents import seeded_generator

__all__ = ["GeneratedDistance", "sliced_wasserstein"]

PATCH, PATCHES_PER_SAMPLE, DIRECTIONS, COARSEST = 7, 48, 256, 8


def sliced_wasserstein(real: Tensor, generated: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Distances of two sets of samples, one a scale.

    Args:
        real: samples (N, C, S, S[, S]).
        generated: as many, same shape.
        seed: of patch positions and directions.

    Returns:
        `swd_<pixels of the level>` each, and `swd`, their mean; 0 for equal sets, in units of the real spread.

    Raises:
        ValueError: when the sets differ in shape, or have fewer than two samples.
    """
    if real.shape != generated.shape or len(real) < 2:
        raise ValueError(
            f"Expected two sets of the same shape with at least 2 samples, got {tuple(real.shape)} and "
            f"{tuple(generated.shape)}. Validate on more patients."
        )
    draw, axes = seeded_generator(seed), real.ndim - 2
    shrink = functional.avg_pool2d if axes == 2 else functional.avg_pool3d
    distances = {}
    while real.shape[-1] > COARSEST:
        smaller = [shrink(x, 2) for x in (real, generated)]
        details = [
            x - functional.interpolate(s, scale_factor=2.0) for x, s in zip((real, generated), smaller, strict=True)
        ]
        positions = torch.randint(real.shape[-1] - PATCH + 1, (len(real), PATCHES_PER_SAMPLE, axes), generator=draw)
        distances[f"swd_{real.shape[-1]}"] = _projected(*(_patches(x, positions) for x in details), draw)
        real, generated = smaller
    distances[f"swd_{real.shape[-1]}"] = _projected(real.flatten(2), generated.flatten(2), draw)
    return {"swd": sum(distances.values()) / len(distances), **distances}


def _patches(x: Tensor, positions: Tensor) -> Tensor:
    """Patches (N * n, C, 7 * 7[ * 7]) of samples (N, C, S, S[, S]) at corners (N, n, axes)."""
    for axis in range(2, x.ndim):
        x = x.unfold(axis, PATCH, 1)
    samples = torch.arange(len(x))[:, None]
    return x[(samples, slice(None), *positions.unbind(-1))].flatten(0, 1).flatten(2)


def _projected(real: Tensor, generated: Tensor, draw: torch.Generator) -> float:
    """Mean over directions of the distance of two sets of descriptors (M, C, n), scaled by the real ones."""
    mean = real.mean(dim=(0, 2), keepdim=True)
    spread = real.std(dim=(0, 2), keepdim=True).clamp(min=1e-6)
    directions = functional.normalize(torch.randn(real.shape[1] * real.shape[2], DIRECTIONS, generator=draw), dim=0)
    lines = [(((x - mean) / spread).flatten(1) @ directions).sort(dim=0).values for x in (real, generated)]
    return float((lines[0] - lines[1]).abs().mean())


class GeneratedDistance(Metric):
    """Metric of an engine whose output has `label` (real) and `pred` (generated) samples (B, C, S, S[, S]).

    `compute` gives the negative distance (higher is better, as MONAI's key metric wants it); the parts stand in
    `state.metrics` too.
    """

    required_output_keys = ("label", "pred")

    def __init__(self, output_transform: Callable[[Any], Any] = lambda output: output, seed: int = 0) -> None:
        self.seed = seed
        self._samples: list[tuple[Tensor, Tensor]] = []
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forgets all samples."""
        self._samples = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Takes one batch: real and generated samples."""
        real, generated = output
        self._samples.append((real.float().cpu(), generated.float().cpu()))

    def compute(self) -> float:
        """The negative distance over all batches."""
        real, generated = (torch.cat(parts) for parts in zip(*self._samples, strict=True))
        self.parts = sliced_wasserstein(real, generated, seed=self.seed)
        return -self.parts["swd"]

    def completed(self, engine: Any, name: str) -> None:
        """Adds the distances of the scales to the metrics."""
        super().completed(engine, name)
        engine.state.metrics.update(self.parts)
