# SPDX-License-Identifier: Apache-2.0
"""Pictures of samples: images in a lung window on the left, their masks on the right, one set below the other.

Of a cube, the three planes through its middle stand side by side: axial, coronal, sagittal.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .common.atomic import replacing
from .common.hounsfield import NETWORK_WINDOW

__all__ = ["montage", "write_png"]

_GAP = 6  # pixels of white between sets
_LUNG_WINDOW_HU = (-1350.0, 150.0)  # what pictures show: level -600, width 1500


def montage(sets: Sequence[Tensor], *, columns: int) -> np.ndarray:
    """Lays out sets of samples (N, 2, S, S[, S]), such as real and generated ones, in rows of `columns`; uint8."""
    blocks = []
    for samples in map(_planes, sets):
        image = _grey(NETWORK_WINDOW.to_hu(samples[:, 0]).float().numpy())
        mask = np.rint(samples[:, 1].float().numpy().clip(0, 1) * 255).astype(np.uint8)
        left, right = (_grid(pictures, columns) for pictures in (image, mask))
        gap = np.full((left.shape[0], _GAP), 255, np.uint8)
        blocks += [np.concatenate([left, gap, right], axis=1), np.full((_GAP, 2 * left.shape[1] + _GAP), 255, np.uint8)]
    return np.concatenate(blocks[:-1])


def _planes(samples: Tensor) -> Tensor:
    """Samples as they are shown, (N, 2, S, S), or (N, 2, S, 3 * S) of cubes; head and front are up."""
    if samples.ndim == 4:
        return samples
    middle = samples.shape[-1] // 2
    axial, coronal, sagittal = (samples.select(axis, middle) for axis in (2, 3, 4))
    return torch.cat([axial, coronal.flip(2), sagittal.flip(2)], dim=3)


def _grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    missing = -len(pictures) % columns
    filled = np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), np.uint8)])
    return rearrange(filled, "(rows columns) h w -> (rows h) (columns w)", columns=columns)


def _grey(hu: np.ndarray) -> np.ndarray:
    """HU as uint8 grey values of a lung window, same shape."""
    low, high = _LUNG_WINDOW_HU
    return np.rint(np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_png(picture: np.ndarray | torch.Tensor, path: Path) -> None:
    """Writes a uint8 picture, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(np.asarray(picture)).save(temporary)
