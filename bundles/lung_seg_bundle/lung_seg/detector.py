# SPDX-License-Identifier: Apache-2.0
"""From a scan in HU to nodule candidates: what the project's other rooms call."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import CHANNELS
from .candidates import CandidateFinder
from .grid import Box
from .inferer import Look, Segmenter

__all__ = ["Detector", "SliceFindings"]

Boxes = Sequence[tuple[int, int, int, int]]


class SliceFindings(NamedTuple):
    """What a detector found on a slice: `candidates` as in a call of it, and what they come from."""

    candidates: np.ndarray
    look: Look


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

    def look(self, hu: np.ndarray, spacing_mm: tuple[float, float]) -> SliceFindings:
        """The candidates of one slice (H, W), as a call gives them, to be gone on with by `look_again`."""
        return self._findings(self.segmenter.look(torch.from_numpy(np.ascontiguousarray(hu)), spacing_mm), spacing_mm)

    def look_again(
        self, findings: SliceFindings, hu: np.ndarray, spacing_mm: tuple[float, float], changed: Boxes
    ) -> SliceFindings:
        """Those of a slice that is another one but for some boxes, by looking there alone.

        Args:
            findings: on the other slice.
            hu: int16 (H, W).
            spacing_mm: (row, column), as in that look.
            changed: where the two may differ: first row and column, and those after the last.
        """
        boxes = [Box(rows=(top, bottom), columns=(left, right)) for top, left, bottom, right in changed]
        image = torch.from_numpy(np.ascontiguousarray(hu))
        return self._findings(self.segmenter.look_again(findings.look, image, spacing_mm, boxes), spacing_mm)

    def _findings(self, look: Look, spacing_mm: tuple[float, float]) -> SliceFindings:
        found = dict(zip(CHANNELS, look.maps.numpy()[:, None], strict=True))
        return SliceFindings(self.finder(found["nodule"], found["lung"], (1.0, *spacing_mm)), look)
