# SPDX-License-Identifier: Apache-2.0
"""Differentiable augmentation (Zhao et al., 2020): real and generated samples pass through the same operations.

On small data a critic learns its samples by heart; augmenting the real ones alone would teach the generator the
augmentations. First draw, then apply: the drawn values are a plain tuple.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augmentation", "AugmentationRange", "augment"]


class AugmentationRange(NamedTuple):
    """What may be drawn.

    Attributes:
        brightness: largest shift of the image, in units of [-1, 1].
        contrast: largest relative change of the contrast about the image's mean.
        translation: largest shift as a share of the side.
        flips: whether axes may be reversed and exchanged. Not for lungs: a heart on the other side would become as
            good as real.
        rotation_deg: largest rotation in the plane of the last two axes.
        zoom: largest relative change of the size. Half of the samples are neither rotated nor zoomed, so that the
            critic sees pixels that no interpolation has smoothed.
    """

    brightness: float = 0.05
    contrast: float = 0.1
    translation: float = 0.0625
    flips: bool = True
    rotation_deg: float = 0.0
    zoom: float = 0.0

    def draw(self, generator: torch.Generator, shape: torch.Size) -> "Augmentation":
        """Draws for a batch of `shape` (B, 2, S, S[, S])."""
        count, axes, margin = shape[0], len(shape) - 2, int(self.translation * shape[-1])
        brightness, contrast = (torch.rand(2, count, generator=generator) * 2 - 1).unbind()
        starts = torch.randint(2 * margin + 1, (count, axes), generator=generator)
        flips = torch.rand(count, axes, generator=generator) < (0.5 if self.flips else 0)
        exchange = torch.rand(count, generator=generator) < (0.5 if self.flips else 0)
        moved = (torch.rand(count, generator=generator) < 0.5).float()
        angle, zoom = (torch.rand(2, count, generator=generator) * 2 - 1).unbind()
        angle, zoom = moved * angle * math.radians(self.rotation_deg), 1 + moved * zoom * self.zoom
        warp = torch.stack([angle, zoom], dim=1) if self.rotation_deg or self.zoom else None
        return Augmentation(
            brightness * self.brightness, contrast * self.contrast, starts, margin, flips, exchange, warp
        )


class Augmentation(NamedTuple):
    """Values drawn a sample.

    Attributes:
        brightness: (B,).
        contrast: (B,).
        starts: of the windows, (B, axes).
        margin: their largest value is twice that.
        flips: (B, axes).
        exchange: of the last two axes, (B,).
        warp: angle in radians and zoom, (B, 2); None for neither.
    """

    brightness: Tensor
    contrast: Tensor
    starts: Tensor
    margin: int
    flips: Tensor
    exchange: Tensor
    warp: Tensor | None = None


def augment(x: Tensor, drawn: Augmentation) -> Tensor:
    """Applies drawn values to samples (B, 2, S, S[, S]); the mask moves with its image, its values stay."""
    axes = range(2, x.ndim)
    brightness, contrast = (v.to(x.device)[(...,) + (None,) * (x.ndim - 1)] for v in drawn[:2])
    image, mask = x[:, :1], x[:, 1:]
    mean = image.mean(dim=tuple(axes), keepdim=True)
    x = torch.cat([mean + (image - mean) * (1 + contrast) + brightness, mask], dim=1)
    for axis, flip in zip(axes, drawn.flips.to(x.device).unbind(1), strict=True):
        x = torch.where(flip[(...,) + (None,) * (x.ndim - 1)], x.flip(axis), x)
    x = torch.where(drawn.exchange.to(x.device)[(...,) + (None,) * (x.ndim - 1)], x.transpose(-1, -2), x)
    x = _warp(x, drawn.warp) if drawn.warp is not None else x
    return _translate(x, drawn) if drawn.margin else x


def _warp(x: Tensor, warp: Tensor) -> Tensor:
    """Turns and zooms samples (B, 2, S, S[, S]) about their middle, the border repeated."""
    angle, zoom = warp.to(x.device).unbind(1)
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(angle)
    rows = [[cos, -sin, zero], [sin, cos, zero]]
    if x.ndim == 5:  # of a cube, slices come last here: the axes are in the order of columns, rows, slices
        rows = [[cos, -sin, zero, zero], [sin, cos, zero, zero], [zero, zero, 1 / zoom, zero]]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)


def _translate(x: Tensor, drawn: Augmentation) -> Tensor:
    """Moves each sample by its own whole pixels, the border repeated."""
    size = x.shape[-1]
    padded = functional.pad(x, [drawn.margin] * (2 * (x.ndim - 2)), mode="replicate")
    moved = []
    for sample, starts in zip(padded.unbind(0), drawn.starts.tolist(), strict=True):
        for axis, start in enumerate(starts, start=1):
            sample = sample.narrow(axis, start, size)
        moved.append(sample)
    return torch.stack(moved).contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
