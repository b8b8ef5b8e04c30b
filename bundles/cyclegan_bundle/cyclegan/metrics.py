# SPDX-License-Identifier: Apache-2.0
"""How far enhanced composites are from real slices, and what enhancing did to the nodules.

The distance is the sliced Wasserstein distance (Rabin et al., 2011) between patches of Laplacian pyramids (Karras et
al., 2018, section 5), seen through the window. Positions and projections are drawn from one seed, so that epochs are
compared on equal terms. It judges texture at the scales of the patches, not anatomy.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from ignite import distributed
from ignite.metrics import Metric
from torch import Tensor
from torch.nn.functional import unfold

from .common.hounsfield import NETWORK_WINDOW
from .common.sliced_wasserstein import laplacian_pyramid, sliced_wasserstein
from .losses import volume_change

__all__ = ["HUChange", "LabelsKept", "SlicedWasserstein"]


class SlicedWasserstein(Metric):
    """Distance between two sets of images, one batch of each per update, in units of the second set's spread.

    It is the mean over the levels of the pyramid.

    Args:
        output_transform: gives of the engine's output two image batches (B, 1, H, W) in units.
        ceiling_hu: what is denser looks like this, see `network.PatchDiscriminator`.
        levels: of the pyramid.
        patch_px: side of a patch, on each level.
        patches: drawn from each image and level.
        projections: directions.
        seed: of positions and directions.
    """

    def __init__(
        self,
        output_transform: Callable[[Any], tuple[Tensor, Tensor]],
        *,
        ceiling_hu: float,
        levels: int = 3,
        patch_px: int = 7,
        patches: int = 64,
        projections: int = 128,
        seed: int = 0,
    ) -> None:
        self.ceiling_unit = NETWORK_WINDOW.unit(ceiling_hu)
        self.levels, self.patch_px, self.patches = levels, patch_px, patches
        self.projections, self.seed = projections, seed
        super().__init__(output_transform)

    def reset(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._patches: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        for images, patches in zip(output, self._patches, strict=True):
            shown = images.cpu().clamp(-1, self.ceiling_unit)
            patches.append(
                [self._draw(level) for level in laplacian_pyramid(shown, self.levels, upsampling="bilinear")]
            )

    def compute(self) -> float:
        """The distance; all processes get that of the first, so that they stop together."""
        generator = torch.Generator().manual_seed(self.seed)
        sets = ([torch.cat(level) for level in zip(*patches, strict=True)] for patches in self._patches)
        distances = [
            sliced_wasserstein(a, b, n_projections=self.projections, generator=generator) / b.std().clamp(min=1e-6)
            for a, b in zip(*sets, strict=True)
        ]
        return float(distributed.broadcast(torch.stack(distances).mean().item(), src=0))

    def _draw(self, level: Tensor) -> Tensor:
        patches = rearrange(unfold(level, self.patch_px), "batch dim places -> batch places dim")
        places = torch.randint(patches.shape[1], (self.patches,), generator=self._generator)
        return rearrange(patches[:, places], "batch places dim -> (batch places) dim")


class HUChange(Metric):
    """Mean absolute change in HU where a mask is set; 0 when it never is.

    Args:
        output_transform: gives of the engine's output the images before and after (B, 1, H, W), in units, and the mask.
    """

    def reset(self) -> None:
        self._sum, self._pixels = 0.0, 0

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        before, after, mask = output
        self._sum += float((after - before).abs()[mask].sum()) * NETWORK_WINDOW.hu_per_unit
        self._pixels += int(mask.sum())

    def compute(self) -> float:
        return float(distributed.broadcast(self._sum / max(self._pixels, 1), src=0))


class LabelsKept(Metric):
    """Share of nodules that still are what their label says: in mean HU, and in volume; 1 without any nodule.

    Args:
        output_transform: see `HUChange`.
        max_hu: largest change of the nodule's mean.
        max_volume: largest change of its volume (`losses.volume_change`), as a share of it.
    """

    def __init__(
        self,
        output_transform: Callable[[Any], tuple[Tensor, Tensor, Tensor]],
        *,
        max_hu: float = 20.0,
        max_volume: float = 0.1,
    ) -> None:
        self.max_hu, self.max_volume = max_hu, max_volume
        super().__init__(output_transform)

    def reset(self) -> None:
        self._kept, self._images = 0, 0

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        before, after, nodule = output
        pixels = nodule.flatten(1).sum(dim=1)
        change_hu = (
            ((after - before) * nodule).flatten(1).sum(dim=1).abs() / pixels.clamp(min=1) * NETWORK_WINDOW.hu_per_unit
        )
        kept = (change_hu <= self.max_hu) & (volume_change(before, after, nodule) <= self.max_volume)
        self._kept += int((kept & (pixels > 0)).sum())
        self._images += int((pixels > 0).sum())

    def compute(self) -> float:
        return float(distributed.broadcast(self._kept / self._images if self._images else 1.0, src=0))
