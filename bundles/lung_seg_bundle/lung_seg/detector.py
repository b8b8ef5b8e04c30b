# SPDX-License-Identifier: Apache-2.0
"""From a scan in HU to nodule candidates: what the project's other rooms call."""

import numpy as np
import torch

from . import CHANNELS
from .candidates import CandidateFinder
from .inferer import Segmenter

__all__ = ["Detector"]


class Detector:
    """Finds nodule candidates: `(hu, spacing_mm) -> {"candidates": ..., "nodule": ..., "lung": ...}`.

    Args:
        segmenter: gives the probability maps.
        finder: finds candidates in them.
        operating_point: probability from which on a candidate counts as found.
        pixel_threshold: probability from which on a voxel counts as nodule.
        progress: whether a bar is shown.

    Raises:
        ValueError: for an operating point outside [0, 1].
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        finder: CandidateFinder | None = None,
        operating_point: float = 0.5,
        pixel_threshold: float = 0.5,
        progress: bool = False,
    ) -> None:
        if not 0 <= operating_point <= 1:
            raise ValueError(f"An operating_point lies in [0, 1], got {operating_point}.")
        self.segmenter = segmenter
        self.finder = finder or CandidateFinder()
        self.operating_point = operating_point
        self.pixel_threshold = pixel_threshold
        self.progress = progress

    def __call__(self, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Candidates and probability maps of a scan, a stack of crops, or one slice.

        Args:
            hu: int16 (D, H, W): slices inferior to superior, rows to posterior, columns to the patient's left.
            spacing_mm: (slice, row, column).

        Returns:
            `candidates`, float32 (n, 5), the most probable first: slice, row, column (voxels), diameter_mm,
            probability, down to low probabilities; `nodule` and `lung`, float16 (D, H, W) in [0, 1].

        Raises:
            ValueError: when the scan has not three axes, or a spacing is not positive.
        """
        if hu.ndim != 3:
            raise ValueError(f"Expected a scan (D, H, W) in HU, got shape {hu.shape}. Give one slice as (1, H, W).")
        volume = torch.from_numpy(np.ascontiguousarray(hu))
        maps = self.segmenter.volume(volume, spacing_mm, progress=self.progress).numpy()
        found = dict(zip(CHANNELS, maps, strict=True))
        return {"candidates": self.finder(found["nodule"], found["lung"], spacing_mm), **found}
