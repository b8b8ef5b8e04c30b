# SPDX-License-Identifier: Apache-2.0
"""How well finds on single images match the drawn nodules, as one number to choose weights by.

Finds are (n, 4) tensors: row, column, diameter (pixels), probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from .. import IGNORED
from .objects import Objects, objects_of

__all__ = ["FALSE_PER_IMAGE", "ImageFroc", "match_finds"]

FALSE_PER_IMAGE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_BINS = 1000
_LEAST_RADIUS_PX = 3.0


def match_finds(finds: Tensor, objects: Objects, label: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities with which objects are found, and those of finds where nothing is.

    A find hits an object when it lies within its radius (at least 3 pixels) of its centroid, or on it. What is found
    where nobody looked (255) counts for nothing.

    Args:
        finds: (n, 4).
        objects: of the same image.
        label: (H, W).

    Returns:
        float32 (number of objects,), 0 where nothing was found; float32 (number of false finds,).
    """
    height, width = label.shape
    rows, columns = finds[:, 0].round().long().clamp(0, height - 1), finds[:, 1].round().long().clamp(0, width - 1)
    distance = torch.cdist(finds[:, :2].float(), objects.centres.to(finds.device))
    hits = distance <= (objects.diameters.to(finds.device) / 2).clamp(min=_LEAST_RADIUS_PX)
    region = torch.as_tensor(objects.regions, device=finds.device).long()[rows, columns]
    hits |= region[:, None] == torch.arange(1, len(objects.centres) + 1, device=finds.device)
    best = torch.zeros(len(objects.centres), device=finds.device)
    if len(finds) and len(best):
        best = (hits * finds[:, 3:]).amax(dim=0)
    return best, finds[~hits.any(dim=1) & (label[rows, columns] != IGNORED), 3]


def _unpack(output: Mapping[str, Any]) -> tuple[list[Tensor], Tensor, Tensor]:
    return output["finds"], output["label"], output["labelled"]


class ImageFroc(Metric):
    """Mean sensitivity at 1/8, 1/4, ... 8 false finds an image, over the images on which nodules were drawn.

    It is computed from histograms of probability (1000 bins), which processes can add up.
    """

    def __init__(self) -> None:
        super().__init__(output_transform=_unpack)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forgets what was seen."""
        self.found = torch.zeros(_BINS, dtype=torch.float64)
        self.false = torch.zeros(_BINS, dtype=torch.float64)
        self.objects = torch.zeros(1, dtype=torch.float64)
        self.images = torch.zeros(1, dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: Sequence[Any]) -> None:
        """Adds a batch: finds (a list of (n, 4)), label ids (B, 1, H, W), labelled (B, 2)."""
        for finds, label, labelled in zip(*output, strict=True):
            if not labelled[1]:
                continue
            objects = objects_of(label[0])
            best, false = match_finds(finds, objects, label[0])
            self.found += _histogram(best[best > 0])
            self.false += _histogram(false)
            self.objects += len(best)
            self.images += 1

    @sync_all_reduce("found", "false", "objects", "images")
    def compute(self) -> float:
        """The mean sensitivity; NaN when no object was drawn."""
        if not self.objects:
            return float("nan")
        sensitivity = self.found.flip(0).cumsum(0) / self.objects
        rate = self.false.flip(0).cumsum(0) / self.images
        allowed = [sensitivity[rate <= most] for most in FALSE_PER_IMAGE]
        return torch.stack([part[-1] if len(part) else sensitivity.new_zeros(()) for part in allowed]).mean().item()


def _histogram(probabilities: Tensor) -> Tensor:
    return torch.histc(probabilities.double().cpu(), bins=_BINS, min=0, max=1)
