"""Nodules for the tests of wcapsgan_bundle."""

import numpy as np

__all__ = ["disc"]


def disc(diameter: float, size: int = 16) -> np.ndarray:
    """A mask (size, size), float16, 1 within a disc of that diameter in pixels about the middle."""
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    return (np.hypot(rows, columns) <= diameter / 2).astype(np.float16)
