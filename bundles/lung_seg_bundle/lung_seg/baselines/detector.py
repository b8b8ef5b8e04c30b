# SPDX-License-Identifier: Apache-2.0
"""Applying a detector to a volume: slice by slice, then together."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.hounsfield import Window
from ..common.precision import use_bfloat16
from ..grid import Box, Frame, cut, resample, resampled_shape
from ..region import lung_boxes
from .dcnn import DEPTH, SIDE_PX
from .merging import merge_finds

__all__ = ["SliceDetector"]


class SliceDetector:
    """Finds nodules in a volume with a network that finds them on slices: `(hu, spacing_mm) -> {"candidates": ...}`.

    The network's `find` takes (B, 1, H, W) in [-1, 1] and gives a list of (n, 4) (row, column, diameter in pixels,
    probability) and a map of probability (B, H, W) or None. Where it also has `judge`, that sees a cube around each
    candidate, and the candidate's probability is the geometric mean of both.

    Finds outside the part of a scan that can show lung (`region.py`) are dropped.

    Args:
        network: trained.
        operating_point: the probability from which on a candidate counts as found.
        pixel_threshold: the probability from which on a pixel of the map counts as nodule.
        spacing_mm: of the grid that the network was trained on.
        window_hu: mapped to [-1, 1], clipped outside.
        device: where the network runs; the network is moved there.
        batch_size: slices at a time.
        most: candidates of a volume, at most.
        amp: whether the network runs in bfloat16; None leaves that to the device.

    Raises:
        ValueError: for a spacing that is not positive.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        network: nn.Module,
        *,
        operating_point: float,
        pixel_threshold: float = 0.5,
        spacing_mm: float = 0.7,
        window_hu: tuple[float, float] = (-1000, 400),
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        most: int = 100,
        amp: bool | None = None,
    ) -> None:
        if not spacing_mm > 0:
            raise ValueError(f"SliceDetector needs a positive spacing_mm, got {spacing_mm}.")
        self.device = torch.device(device)
        self.network: Any = network.to(self.device).eval()
        self.operating_point = operating_point
        self.pixel_threshold = pixel_threshold
        self.spacing_mm = spacing_mm
        self.window = Window(*window_hu)
        self.batch_size = batch_size
        self.most = most
        self.amp = use_bfloat16(self.device, amp)

    @torch.inference_mode()
    def __call__(self, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Nodules of one volume.

        Args:
            hu: int16 (D, H, W).
            spacing_mm: (slice, row, column).

        Returns:
            `candidates`, float32 (n, 5): slice, row, column (voxels), diameter in mm, probability, the most probable
            first; and `nodule`, float16 (D, H, W), where the network has such a map.

        Raises:
            ValueError: when the volume has not three axes, or the spacing is not positive.
        """
        if hu.ndim != 3 or 0 in hu.shape:
            raise ValueError(f"Expected a volume (D, H, W) in HU, got shape {hu.shape}. Give one slice as (1, H, W).")
        if len(spacing_mm) != 3 or not all(mm > 0 and math.isfinite(mm) for mm in spacing_mm):
            raise ValueError(f"Expected a positive spacing (slice, row, column) in mm, got {tuple(spacing_mm)}.")
        volume = torch.from_numpy(np.ascontiguousarray(hu))
        finds, maps = [], []
        for start in range(0, len(volume), self.batch_size):
            found, heat = self._slices(volume[start : start + self.batch_size], spacing_mm[1:], first=start)
            finds.append(found)
            maps.append(heat)
        inside = _within(np.concatenate(finds), lung_boxes(volume, spacing_mm))
        candidates = merge_finds(inside, spacing_mm=spacing_mm)[: self.most]
        if hasattr(self.network, "judge") and len(candidates):
            candidates = self._judged(volume, candidates, spacing_mm)
        result = {"candidates": candidates}
        return result if maps[0] is None else {**result, "nodule": np.concatenate(maps)}

    def _unit(self, hu: Tensor) -> Tensor:
        return self.window.to_unit(hu.to(self.device), clip=True)

    def _slices(self, hu: Tensor, spacing_mm: tuple[float, ...], *, first: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Finds (n, 5) of slices (B, H, W), the first of which is slice `first`, and their map float16 (B, H, W)."""
        own = (hu.shape[1], hu.shape[2])
        grid = resampled_shape(own, spacing_mm=(spacing_mm[0], spacing_mm[1]), target_mm=self.spacing_mm)
        unit = resample(self._unit(hu)[:, None], grid).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            found, heat = self.network.find(unit)
        rows = []
        for index, finds in enumerate(found):
            row, column, diameter, probability = finds.double().cpu().numpy().T
            row, column = ((at + 0.5) * full / px - 0.5 for at, full, px in zip((row, column), own, grid, strict=True))
            rows.append(
                np.stack(
                    [np.full_like(row, first + index), row, column, diameter * self.spacing_mm, probability], axis=1
                )
            )
        if heat is None:
            return np.concatenate(rows), None
        return np.concatenate(rows), resample(heat[:, None].float(), own)[:, 0].half().cpu().numpy()

    def _judged(self, volume: Tensor, candidates: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Candidates with what the cubes around them say, the most probable first."""
        step = (self.spacing_mm / spacing_mm[1], self.spacing_mm / spacing_mm[2])
        cubes = []
        for middle, row, column in candidates[:, :3].tolist():
            frame = Frame(row_px=row, column_px=column, step_px=step)
            indices = (round(middle) - DEPTH // 2 + np.arange(DEPTH)).clip(0, len(volume) - 1)
            blank = torch.zeros(volume.shape[1:], dtype=torch.uint8)
            cubes.append(torch.stack([cut(volume[i], blank, frame, size_px=SIDE_PX)[0] for i in indices]))
        judged = []
        for part in torch.stack(cubes)[:, None].split(16):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                judged.append(self.network.judge(self._unit(part)).cpu().numpy())
        result = candidates.copy()
        result[:, 4] = np.sqrt(candidates[:, 4] * np.concatenate(judged))
        return result[np.argsort(-result[:, 4], kind="stable")]


def _within(finds: np.ndarray, boxes: list[Box | None]) -> np.ndarray:
    """Finds (n, 5) that lie within the box of their slice."""
    kept = []
    for index, row, column in finds[:, :3].tolist():
        box = boxes[round(index)]
        kept.append(box is not None and all(a <= x < b for (a, b), x in ((box.rows, row), (box.columns, column))))
    return finds[np.array(kept, dtype=bool)]
