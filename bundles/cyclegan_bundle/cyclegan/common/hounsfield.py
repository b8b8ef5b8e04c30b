# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units (HU), and the window of them that networks see.

Images are in HU, int16 on disk, unless a name says `unit`, which means a window mapped linearly to [-1, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

__all__ = ["AIR_HU", "CT_RANGE_HU", "NETWORK_WINDOW", "ToUnitd", "Window", "check_hu", "to_int16"]

AIR_HU = -1000
CT_RANGE_HU = (-1024, 3071)  # what 12 bits hold; padding such as -2048 is air and is clipped to the lower end


@dataclass(frozen=True)
class Window:
    """An interval of HU, mapped linearly to [-1, 1] and back.

    Raises:
        ValueError: when `low_hu` is not below `high_hu`.
    """

    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ValueError(f"A window needs low_hu < high_hu, got {self.low_hu:g} and {self.high_hu:g}.")

    @property
    def hu_per_unit(self) -> float:
        """HU that one unit spans: half of the window."""
        return (self.high_hu - self.low_hu) / 2

    def unit(self, hu: float) -> float:
        """One density in units, not clipped."""
        return (hu - self.low_hu) / self.hu_per_unit - 1

    def to_unit(self, hu: Tensor, *, clip: bool) -> Tensor:
        """Maps HU (any shape, any number type) to float32 units.

        Args:
            hu: to be mapped.
            clip: to [-1, 1]. Without it what lies outside the window survives: in [-1000, 400], bone of 900 HU is
                1.71, and comes back as 900 HU.
        """
        unit = (hu.to(torch.float32) - self.low_hu) / self.hu_per_unit - 1
        return unit.clamp(-1, 1) if clip else unit

    def to_hu(self, unit: Tensor) -> Tensor:
        """Maps units (float, any shape) to HU: the inverse of `to_unit`."""
        return (unit + 1) * self.hu_per_unit + self.low_hu


NETWORK_WINDOW = Window(-1000.0, 400.0)  # of the networks of all bundles; metadata.json states it as well


class ToUnitd(MapTransform):
    """Maps images in HU to float32 units, for a network.

    Args:
        keys: of the images.
        window: what the network sees, a `Window` or its two ends in HU.
        clip: see `Window.to_unit`.
    """

    def __init__(self, keys: KeysCollection, *, clip: bool, window: Window | Sequence[float] = NETWORK_WINDOW) -> None:
        super().__init__(keys)
        self.clip = clip
        self.window = window if isinstance(window, Window) else Window(*window)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        mapped = {key: self.window.to_unit(data[key], clip=self.clip) for key in self.key_iterator(dict(data))}
        return {**data, **mapped}


def to_int16(hu: np.ndarray) -> np.ndarray:
    """Rounds HU to the nearest integer within `CT_RANGE_HU`, as int16 of the same shape."""
    return np.clip(np.rint(hu), *CT_RANGE_HU).astype(np.int16)


def check_hu(image: np.ndarray | Tensor, *, name: str) -> None:
    """Refuses images that cannot be a chest CT in HU: scaled to [0, 1] or [0, 255], or without air.

    Args:
        image: any shape; padding below -1024 may still be there.
        name: of the file, for the message.

    Raises:
        ValueError: naming the file, the range found and the remedy.
    """
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all() or low > AIR_HU / 2 or high < 0:
        raise ValueError(
            f"{name}: expected CT in HU, reaching from air (about {AIR_HU}) to soft tissue (above 0), got "
            f"[{low:g}, {high:g}]. Convert it back to HU (apply RescaleSlope and RescaleIntercept) first."
        )
