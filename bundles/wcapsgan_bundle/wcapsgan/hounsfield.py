# SPDX-License-Identifier: Apache-2.0
"""The window of HU that the networks see, mapped to [-1, 1]; `configs/metadata.json` states it as well."""

import numpy as np
from torch import Tensor

__all__ = ["WINDOW_HU", "to_grey", "to_hu", "to_unit"]

WINDOW_HU = (-1000.0, 400.0)
DISPLAY_HU = (-1350.0, 150.0)  # lung window, level -600, width 1500


def to_unit(hu: Tensor) -> Tensor:
    """Maps HU (float, any shape) to [-1, 1], clipping outside the window."""
    low, high = WINDOW_HU
    return ((hu - low) / (high - low) * 2 - 1).clamp(-1, 1)


def to_hu(unit: Tensor) -> Tensor:
    """Maps [-1, 1] (any shape) to HU, float."""
    low, high = WINDOW_HU
    return (unit + 1) / 2 * (high - low) + low


def to_grey(hu: np.ndarray) -> np.ndarray:
    """Maps HU to uint8 grey of a lung window, for pictures; same shape."""
    low, high = DISPLAY_HU
    return np.rint(np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
