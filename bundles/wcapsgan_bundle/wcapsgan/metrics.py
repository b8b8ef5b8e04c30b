# SPDX-License-Identifier: Apache-2.0
"""How far generated samples are from held-out real ones: the sliced Wasserstein distance of pyramid patches.

After Karras et al. (2018), section 5: patches of 7 x 7 pixels (of cubes: 7 x 7 x 7) from each level of a Laplacian
pyramid (both channels), and each sample as a whole at 8 pixels a side. Patches are scaled by the real ones' mean and
spread, so a wrong density counts. Takes about a second, and gives the same figure for the same samples.
"""

from collections.abc import Callable
from typing import Any

import torch
from ignite.metrics import Metric
from torch import Tensor

from .common.sliced_wasserstein import laplacian_pyramid, sliced_wasserstein
from .latents import seeded_generator

__all__ = ["GeneratedDistance", "pyramid_distance"]

_PATCH = 7  # pixels of a side, as in Karras et al. (2018)
# Karras et al.: 128 and 512. Fewer take less time; the figure is noisier with them.
_PATCHES_PER_SAMPLE, _DIRECTIONS = 48, 256
_COARSEST = 8  # pixels of the coarsest level, which is compared as a whole
_LEAST_SPREAD = 1e-6  # of the real values, which others are divided by


def pyramid_distance(real: Tensor, generated: Tensor, *, seed: int = 0) -> dict[str, float]:
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
    draw, levels, side = seeded_generator(seed), 1, real.shape[-1]
    while side > _COARSEST:
        levels, side = levels + 1, (side + 1) // 2
    pyramids = [laplacian_pyramid(x, levels, upsampling="nearest") for x in (real, generated)]
    *details, coarsest = zip(*pyramids, strict=True)
    distances = {}
    for of_real, of_generated in details:
        side = of_real.shape[-1]
        shape = (len(real), _PATCHES_PER_SAMPLE, real.ndim - 2)
        positions = torch.randint(side - _PATCH + 1, shape, generator=draw)
        distances[f"swd_{side}"] = _distance(_patches(of_real, positions), _patches(of_generated, positions), draw)
    of_real, of_generated = (x.flatten(2) for x in coarsest)
    distances[f"swd_{coarsest[0].shape[-1]}"] = _distance(of_real, of_generated, draw)
    return {"swd": sum(distances.values()) / len(distances), **distances}


def _patches(x: Tensor, positions: Tensor) -> Tensor:
    """Patches (N * n, C, 7 * 7[ * 7]) of samples (N, C, S, S[, S]) at corners (N, n, axes)."""
    for axis in range(2, x.ndim):
        x = x.unfold(axis, _PATCH, 1)
    samples = torch.arange(len(x))[:, None]
    return x[(samples, slice(None), *positions.unbind(-1))].flatten(0, 1).flatten(2)


def _distance(real: Tensor, generated: Tensor, draw: torch.Generator) -> float:
    """Sliced Wasserstein distance of two sets of descriptors (M, C, n), each channel scaled by the real ones."""
    mean = real.mean(dim=(0, 2), keepdim=True)
    spread = real.std(dim=(0, 2), keepdim=True).clamp(min=_LEAST_SPREAD)
    scaled = [((x - mean) / spread).flatten(1) for x in (real, generated)]
    return float(sliced_wasserstein(*scaled, n_projections=_DIRECTIONS, generator=draw))


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
        self.parts = pyramid_distance(real, generated, seed=self.seed)
        return -self.parts["swd"]

    def completed(self, engine: Any, name: str) -> None:
        """Adds the distances of the scales to the metrics."""
        super().completed(engine, name)
        engine.state.metrics.update(self.parts)
