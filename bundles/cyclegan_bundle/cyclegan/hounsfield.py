# SPDX-License-Identifier: Apache-2.0
"""The one place of this bundle that knows Hounsfield units.

Images on disk are int16 HU. `unit` means the window `WINDOW_HU` mapped linearly to [-1, 1] and NOT clipped: bone of
900 HU is 1.71 and comes back as 900 HU. What a network sees of it is the network's business (`network.py` clamps its
view).
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["CT_RANGE_HU", "HU_PER_UNIT", "WINDOW_HU", "to_hu", "to_int16", "to_unit"]

WINDOW_HU = (-1000.0, 400.0)
CT_RANGE_HU = (-1024, 3071)  # what 12 bits hold; padding such as -2048 is air and is clipped to the lower end
HU_PER_UNIT = (WINDOW_HU[1] - WINDOW_HU[0]) / 2


def to_unit(hu: Tensor) -> Tensor:
    """Maps HU (any shape, any number type) to float32 units, without clipping."""
    return (hu.to(torch.float32) - WINDOW_HU[0]) / HU_PER_UNIT - 1


def to_hu(unit: Tensor) -> Tensor:
    """Maps units (any shape) to HU, the inverse of `to_unit`."""
    return (unit + 1) * HU_PER_UNIT + WINDOW_HU[0]


def to_int16(hu: np.ndarray) -> np.ndarray:
    """Rounds HU to the nearest integer within `CT_RANGE_HU`, as int16 of the same shape."""
    return np.clip(np.rint(hu), *CT_RANGE_HU).astype(np.int16)
