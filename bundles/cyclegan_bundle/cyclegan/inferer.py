# SPDX-License-Identifier: Apache-2.0
"""Enhancing slices: HU in, HU out, any size. `Enhancer` takes one slice, `SaveEnhanced` writes whole folders."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from monai.transforms import Transform
from torch import nn

from .common.hounsfield import CT_RANGE_HU, NETWORK_WINDOW, to_int16
from .common.precision import use_bfloat16
from .slices import list_slices, write_slice

__all__ = ["Enhancer", "SaveEnhanced", "bounded_change", "inference_copy", "slice_entries"]


def inference_copy(network: nn.Module, *, device: torch.device | str, amp: bool | None = None) -> nn.Module:
    """A copy of a generator on `device`, to run and not to train.

    Args:
        network: trained; not changed.
        device: where it will run.
        amp: whether its layers are kept in bfloat16 (`common.precision.use_bfloat16`). Images stay float32; what is
            rounded is the change of a pixel, which is bounded.
    """
    kind = torch.bfloat16 if use_bfloat16(device, amp) else torch.float32
    return copy.deepcopy(network).to(device, kind, memory_format=torch.channels_last).eval()


def bounded_change(
    hu: np.ndarray, enhanced: np.ndarray, nodule: np.ndarray, *, nodule_max_residual_hu: float | None
) -> np.ndarray:
    """Enhanced slice as int16 HU (H, W), whose change inside the nodules is cut off at a bound.

    Args:
        hu: the slice before, HU.
        enhanced: the slice after, HU.
        nodule: bool.
        nodule_max_residual_hu: the bound; None leaves the network's own.
    """
    change = enhanced - hu
    if nodule_max_residual_hu is not None:
        change = np.where(nodule, change.clip(-nodule_max_residual_hu, nodule_max_residual_hu), change)
    return to_int16(hu + change)


class Enhancer:
    """Makes composites look acquired: `(hu, nodule_mask) -> hu`, deterministic, one slice at a time.

    `receptive_field_px` and `alignment_px` say what of a slice a region needs to be enhanced as in the whole slice.

    Args:
        network: a `ResidualEnhancer` with its weights.
        device: where to compute.
        nodule_max_residual_hu: bound of the change inside the nodule mask; None leaves that of the network.
        amp: see `inference_copy`. Another precision, or another kind of processor, may round a pixel to another HU.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        nodule_max_residual_hu: float | None = 40.0,
        amp: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.network = inference_copy(network, device=self.device, amp=amp)
        self.nodule_max_residual_hu = nodule_max_residual_hu
        self.receptive_field_px = int(network.receptive_field_px)
        self.alignment_px = int(network.alignment_px)
        self.max_residual_hu = float(network.max_residual_unit) * NETWORK_WINDOW.hu_per_unit

    @torch.inference_mode()
    def __call__(self, hu: np.ndarray, nodule_mask: np.ndarray) -> np.ndarray:
        """Enhances a slice.

        Args:
            hu: int16 (H, W), HU.
            nodule_mask: bool (H, W).

        Returns:
            int16 (H, W), HU within `CT_RANGE_HU`, changed by at most `max_residual_hu`.

        Raises:
            ValueError: when the arrays are not a slice and its mask.
        """
        if hu.dtype != np.int16 or hu.ndim != 2 or nodule_mask.shape != hu.shape or nodule_mask.dtype != np.bool_:
            raise ValueError(
                "The enhancer needs int16 HU (H, W) and a bool mask of the same shape, got "
                f"{hu.dtype} {hu.shape} and {nodule_mask.dtype} {nodule_mask.shape}. Convert them first."
            )
        before = hu.clip(*CT_RANGE_HU).astype(np.float32)
        unit = NETWORK_WINDOW.to_unit(torch.from_numpy(before), clip=False)
        enhanced = self.network(rearrange(unit, "h w -> 1 1 h w").to(self.device))
        after = rearrange(NETWORK_WINDOW.to_hu(enhanced), "1 1 h w -> h w").cpu().numpy()
        return bounded_change(before, after, nodule_mask, nodule_max_residual_hu=self.nodule_max_residual_hu)


def slice_entries(dataset_dir: str | Path, *, label_dir: str | Path | None = None) -> list[dict[str, str]]:
    """Entries of the NIfTI slices of a folder, with the label of the same name in `label_dir` where one is given."""
    entries = [{"image": str(path)} for path in list_slices(dataset_dir)]
    if label_dir is None:
        return entries
    return [entry | {"label": str(Path(label_dir) / Path(entry["image"]).name)} for entry in entries]


class SaveEnhanced(Transform):
    """Writes `pred` of a sample as int16 NIfTI of the same name, orientation and affine as the file `path`.

    Args:
        output_dir: made when it is not there.
        nodule_max_residual_hu: see `bounded_change`.

    Raises:
        ValueError: when that would overwrite the slices read.
    """

    def __init__(self, output_dir: str | Path, *, nodule_max_residual_hu: float | None = 40.0) -> None:
        self.output_dir = Path(output_dir)
        self.nodule_max_residual_hu = nodule_max_residual_hu

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        source = Path(data["path"])
        if source.parent.resolve() == self.output_dir.resolve():
            raise ValueError(f"{self.output_dir}: holds the slices that are read. Give another output_dir.")
        before, after = (_plane(NETWORK_WINDOW.to_hu(data[key])) for key in ("image", "pred"))
        hu = bounded_change(before, after, _plane(data["nodule"]), nodule_max_residual_hu=self.nodule_max_residual_hu)
        write_slice(self.output_dir / source.name, hu, like=source)
        return dict(data)


def _plane(image: torch.Tensor | Sequence[Any]) -> np.ndarray:
    return rearrange(torch.as_tensor(image), "1 h w -> h w").cpu().numpy()
