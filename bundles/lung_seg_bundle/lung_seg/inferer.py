# SPDX-License-Identifier: Apache-2.0
"""Running the network on slices of any spacing: probabilities come back on the slice's own grid."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from tqdm import tqdm

from . import CHANNELS
from .grid import resample, resampled_shape

__all__ = ["Segmenter", "VolumeInferer"]


class Segmenter:
    """Finds lung and nodules on a slice: `(hu, spacing_mm) -> {"lung": ..., "nodule": ...}`.

    Args:
        network: trained; (B, 1, H, W) in [-1, 1] -> logits (B, 2, H, W), any H and W.
        spacing_mm: of the grid that the network was trained on.
        window_hu: mapped to [-1, 1], clipped outside.
        device: where the network runs; the network is moved there.
        inferer: how the network is applied, such as MONAI's sliding windows; on whole slices by default.
        amp: whether the network runs in bfloat16.

    Raises:
        ValueError: for a spacing that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        spacing_mm: float = 1.0,
        window_hu: tuple[float, float] = (-1000, 400),
        device: str | torch.device = "cpu",
        inferer: Inferer | None = None,
        amp: bool = False,
    ) -> None:
        if not spacing_mm > 0:
            raise ValueError(f"Segmenter needs a positive spacing_mm, got {spacing_mm}.")
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.spacing_mm = spacing_mm
        self.window_hu = window_hu
        self.inferer = inferer or SimpleInferer()
        self.amp = amp

    def __call__(self, hu: np.ndarray, spacing_mm: tuple[float, float]) -> dict[str, np.ndarray]:
        """Probabilities of one slice.

        Args:
            hu: int16 (H, W).
            spacing_mm: (row, column).

        Returns:
            `lung` (nodules included) and `nodule`, each float32 (H, W) in [0, 1].

        Raises:
            ValueError: when the slice has not two axes, or the spacing is not positive.
        """
        if hu.ndim != 2:
            raise ValueError(
                f"Expected one slice (H, W) in HU, got shape {hu.shape}. Call the segmenter slice by slice."
            )
        planes = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))[None, None]
        maps = self.probabilities(planes, spacing_mm)[0].cpu().numpy()
        return dict(zip(CHANNELS, maps, strict=True))

    @torch.inference_mode()
    def probabilities(self, hu: Tensor, spacing_mm: tuple[float, float]) -> Tensor:
        """Probabilities float32 (B, 2, H, W) of slices (B, 1, H, W) in HU with spacing (row, column)."""
        if min(spacing_mm) <= 0:
            raise ValueError(f"Expected a positive spacing (row, column) in mm, got {tuple(spacing_mm)}.")
        low, high = self.window_hu
        unit = ((hu.to(self.device).float() - low) / (high - low) * 2 - 1).clip(-1, 1)
        own = (hu.shape[-2], hu.shape[-1])
        grid = resampled_shape(own, spacing_mm=spacing_mm, target_mm=self.spacing_mm)
        unit = resample(unit, grid).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            logits = self.inferer(unit, self.network)
        return torch.sigmoid(resample(logits.float(), own))


class VolumeInferer(Inferer):
    """Applies a segmenter to volumes, slice by slice, for MONAI's evaluators.

    Args:
        segmenter: whose network is used.
        batch_size: slices at a time.
        progress: whether a bar is shown.
    """

    def __init__(self, segmenter: Segmenter, *, batch_size: int = 4, progress: bool = True) -> None:
        self.segmenter = segmenter
        self.batch_size = batch_size
        self.progress = progress

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Probabilities float16 (B, 2, H, W, D) of volumes (B, 1, H, W, D) in HU, axes posterior, left, superior.

        Args:
            inputs: with its spacing, when it is a MetaTensor; at the network's spacing otherwise.
            network: not used, the segmenter has its own.
            *args: not used.
            **kwargs: not used.
        """
        return torch.stack([self._volume(volume) for volume in inputs])

    def _volume(self, volume: Tensor) -> Tensor:
        spacing = [float(mm) for mm in volume.pixdim[:2]] if isinstance(volume, MetaTensor) else None
        row, column = spacing or (self.segmenter.spacing_mm, self.segmenter.spacing_mm)
        planes = torch.as_tensor(volume.as_tensor() if isinstance(volume, MetaTensor) else volume).movedim(-1, 0)
        starts = tqdm(range(0, len(planes), self.batch_size), desc="slices", disable=not self.progress)
        found = [
            self.segmenter.probabilities(planes[start : start + self.batch_size], (row, column)).half()
            for start in starts
        ]
        return torch.cat(found).movedim(0, -1)
