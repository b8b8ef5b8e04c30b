"""Hounsfield units, the windows through which images are seen, and the labels of their pixels.

Images are in HU (int16 on disk, float32 in sums) unless a name says `unit`, which means a window mapped to [-1, 1].
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from lungsynth.errors import InputError

__all__ = [
    "AIR_HU",
    "CT_RANGE_HU",
    "DENSE_HU",
    "DISPLAY_WINDOW",
    "LUNG_HU",
    "NETWORK_WINDOW",
    "SOLID_HU",
    "Label",
    "Window",
    "check_hu",
    "to_int16",
]

AIR_HU = -1000  # by the definition of the scale; water is 0
LUNG_HU = -850  # a usual level of aerated lung at inspiration; fills in where a level cannot be measured
DENSE_HU = -500  # midway between air and water: in the lungs, vessels, walls and nodules are above, parenchyma below
SOLID_HU = -300  # of a nodule, what is above counts as its solid part, what is below as ground glass
_FAT_HU = -300  # nothing but air and lung is below
_NARROW_HU = 700  # of values: windows for soft tissue are 400 wide, a chest spans more than 1,200
CT_RANGE_HU = (-1024, 3071)  # what 12 bits hold; padding such as -2048 is air and is clipped to the lower end


class Label(IntEnum):
    """Ids of the pixels of a label map. A nodule is part of the lung: lung = {LUNG, NODULE}."""

    BACKGROUND = 0
    LUNG = 1
    NODULE = 2
    UNLABELLED = 255  # nobody looked: losses and metrics ignore it


@dataclass(frozen=True)
class Window:
    """An interval of HU, mapped linearly to [-1, 1] and back.

    Raises:
        InputError: when `low_hu` is not below `high_hu`.
    """

    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise InputError(f"A window needs low_hu < high_hu, got {self.low_hu:g} and {self.high_hu:g}.")

    def to_unit(self, hu: Any) -> Any:
        """Maps HU (array or tensor of any shape) to [-1, 1], clipping outside the window."""
        return ((hu - self.low_hu) / (self.high_hu - self.low_hu) * 2 - 1).clip(-1, 1)

    def to_hu(self, unit: Any) -> Any:
        """Maps [-1, 1] (array or tensor of any shape) to HU."""
        return (unit + 1) / 2 * (self.high_hu - self.low_hu) + self.low_hu

    def to_grey(self, hu: np.ndarray) -> np.ndarray:
        """Maps HU to uint8 grey for pictures, same shape."""
        return np.rint((self.to_unit(hu.astype(np.float32)) + 1) * 127.5).astype(np.uint8)


# The networks of the three bundles see this window; their metadata.json repeat it (tests/test_interfaces_bundles.py).
NETWORK_WINDOW = Window(-1000, 400)
DISPLAY_WINDOW = Window(-1350, 150)  # lung window, level -600, width 1500


def to_int16(hu: Any) -> np.ndarray:
    """Rounds HU to the nearest integer within `CT_RANGE_HU`, as int16 of the same shape."""
    return np.clip(np.rint(np.asarray(hu)), *CT_RANGE_HU).astype(np.int16)


def check_hu(image: np.ndarray, *, name: str) -> None:
    """Refuses images whose values cannot be a chest CT in HU: NaN, grey values, scaled to 0..1, or without air.

    Whether lung and tissue lie where they should is judged when they are known (`lungsynth.cohort.hu_check`).

    Args:
        image: any shape; padding below -1024 may still be there.
        name: the file, for the message.

    Raises:
        InputError: naming the file, what was found and the remedy.
    """
    if lost := int(image.size - np.isfinite(image).sum()) if image.dtype.kind == "f" else 0:
        raise InputError(
            f"{name}: expected CT in HU, got NaN or infinity (not a number) in {lost / image.size:.1%} of its voxels. "
            f"Write air there ({AIR_HU}) if they lie outside the scan, or export it again."
        )
    low, high = float(np.min(image)), float(np.max(image))
    found = f"expected CT in HU, reaching from air (about {AIR_HU}) to soft tissue (above 0), got [{low:g}, {high:g}]"
    if low >= -1.5 and high <= 1.5:
        raise InputError(f"{name}: {found}, values that were scaled to 0..1 or so. Convert it back to HU first.")
    if low >= 0 and high <= 255:
        raise InputError(
            f"{name}: {found}, grey values of 8 bits and not HU: a window was applied to them, which cannot be undone. "
            "Export the CT again."
        )
    if low > AIR_HU / 2 or high > 32767 or high < 0:
        looks = ""
        if high > 32767:
            looks = ", negative values that were stored as if they had no sign"
        elif low >= _FAT_HU and 1000 < high < 8192:
            looks = ", values that look 1024 too high (stored ones)"
        elif 900 < high < 1100:
            looks = ", values that look as if they had the wrong sign, or were cut"
        elif high - low <= _NARROW_HU:
            looks = ", values that were cut to a window"
        elif high < 0:
            looks = ", values that look 1024 too low (RescaleIntercept applied twice)"
        raise InputError(
            f"{name}: {found}{looks}. Convert it back to HU (apply RescaleSlope and RescaleIntercept once) before "
            "preparing it."
        )
