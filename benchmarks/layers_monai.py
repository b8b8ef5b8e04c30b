"""The same overlay made of MONAI's dictionary transforms, as a user without this project would write it."""

from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Affined,
    AsDiscreted,
    BoundingRectd,
    Compose,
    CopyItemsd,
    EnsureTyped,
    Flipd,
    Lambdad,
    RandGaussianNoised,
    Resized,
)

from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.placement.assets import ALPHA_SCALE, AssetLibrary
from lungsynth.placement.catalogue import Recipe


class MonaiOverlay:
    """Image, mask and boxes of a recipe. The patch is turned, scaled, brought to the lung's spacing, given noise of one
    amplitude, and pasted; nothing is matched to the lung, and nothing is softened beyond the patch's own alpha."""

    def __init__(self, library: AssetLibrary) -> None:
        self.library = library

    def __call__(self, recipe: Recipe) -> dict[str, Any]:
        hu, mask = self.library.load(recipe.lung)
        spacing = self.library[recipe.lung].spacing_mm
        image, label, boxes = torch.from_numpy(hu.astype(np.float32)), torch.from_numpy(mask.astype(np.uint8)), []
        for placed in recipe.nodules:
            stored = self.library.load(placed.asset)
            sample = {"hu": stored[:1].astype(np.float32), "alpha": stored[1:].astype(np.float32) / ALPHA_SCALE}
            patch = self._transforms(placed, spacing)(sample)
            size = patch["hu"].shape[-1]
            top, left = round(placed.row_px - size / 2), round(placed.col_px - size / 2)
            here = slice(top, top + size), slice(left, left + size)
            alpha = patch["alpha"][0]
            image[here] = alpha * patch["hu"][0] + (1 - alpha) * image[here]
            label[here][patch["nodule"][0] > 0] = 2
            boxes.append(np.asarray(patch["nodule_bbox"])[0] + [top, top, left, left])
        return {"image": image[None], "mask": label[None], "boxes": np.array(boxes)}

    def _transforms(self, placed: Any, spacing: tuple[float, float]) -> Compose:
        both = ["hu", "alpha"]
        size = int(np.ceil(64 * PATCH_SPACING_MM / min(spacing)))
        steps = [
            EnsureTyped(keys=both),
            Affined(
                keys=both,
                rotate_params=float(np.radians(placed.rotation_deg)),
                scale_params=(1 / placed.scale, 1 / placed.scale),
                padding_mode="border",
            ),
            Resized(keys=both, spatial_size=(size, size), mode="bilinear"),
            RandGaussianNoised(keys="hu", prob=1.0, std=25.0),
            CopyItemsd(keys="alpha", names="nodule"),
            AsDiscreted(keys="nodule", threshold=0.5),
            BoundingRectd(keys="nodule"),
            Lambdad(keys="alpha", func=lambda alpha: alpha.clamp(0, 1)),
        ]
        return Compose([Flipd(keys=both, spatial_axis=1), *steps] if placed.flip else steps)
