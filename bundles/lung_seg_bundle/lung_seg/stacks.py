# SPDX-License-Identifier: Apache-2.0
"""Reading a sample's slices from disk, as the datalist names them.

A `Stack` is one source's slices with their label maps, on their own grid. A sample of kind `slice` has one stack of one
slice; a sample of kind `nodule` has a stack a nodule, which shows 90 mm around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Transform
from torch import Tensor

from .neighbours import neighbour_indices

__all__ = ["LoadStacks", "Stack", "open_nodule", "read_window"]

WINDOW_SPACING_MM = (0.7, 0.7)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stack:
    """Slices of one source.

    Args:
        hu: int16 (n, H, W).
        label: uint8 (n, H, W), label ids.
        z_mm: positions of the slices, ascending, float64 (n,).
        spacing_mm: (row, column).
        main: index of the slice that stands for the source: a nodule's largest.

    Raises:
        ValueError: when image and label differ in shape.
    """

    hu: Tensor
    label: Tensor
    z_mm: np.ndarray
    spacing_mm: tuple[float, float]
    main: int = 0

    def __post_init__(self) -> None:
        if self.hu.shape != self.label.shape or len(self.hu) != len(self.z_mm):
            raise ValueError(
                f"A stack's hu, label and z_mm differ in shape: {tuple(self.hu.shape)}, {tuple(self.label.shape)}, "
                f"{self.z_mm.shape}."
            )

    def planes(self, index: int, slices: int) -> Tensor:
        """Slice `index` with its neighbours, (slices, H, W)."""
        return self.hu[neighbour_indices(self.z_mm, slices)[index]]


def open_nodule(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a nodule's npz.

    Raises:
        ValueError: when the file has them not.
    """
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a nodule's npz with {', '.join(names)} ({error}). Prepare the cohort again."
        ) from error


def read_window(path: str | Path) -> Stack:
    """A nodule with what surrounds it, and its label as `prepare` decided it.

    Raises:
        ValueError: when the file has not the arrays of a COHORT's window.
    """
    arrays = open_nodule(path, ("hu", "label", "z_mm", "largest"))
    return Stack(
        hu=torch.from_numpy(arrays["hu"]),
        label=torch.from_numpy(arrays["label"]),
        z_mm=arrays["z_mm"],
        spacing_mm=WINDOW_SPACING_MM,
        main=int(arrays["largest"]),
    )


class LoadStacks(Transform):
    """Reads a sample of `read_datalist`: adds `stacks`, keeps `kind` and `labelled`."""

    def __init__(self) -> None:
        keys = ["image", "label"]
        self.read_slice = Compose(
            [
                LoadImaged(keys, dtype=np.int16),
                EnsureChannelFirstd(keys, channel_dim="no_channel"),
                Orientationd(keys, axcodes="PLS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ]
        )

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        stacks = [self._slice(data)] if data["kind"] == "slice" else [read_window(path) for path in data["nodules"]]
        return {"kind": data["kind"], "labelled": torch.tensor(data["labelled"]), "stacks": stacks}

    def _slice(self, data: Mapping[str, Any]) -> Stack:
        loaded = self.read_slice({key: data[key] for key in ("image", "label")})
        image, label = loaded["image"], loaded["label"]
        if image.shape != label.shape or image.shape[-1] != 1:
            raise ValueError(
                f"{data['image']}: expected a slice and a label map of the same shape (W, H, 1), got "
                f"{tuple(image.shape[1:])} and {tuple(label.shape[1:])}. Prepare the cohort again."
            )
        row, column = (float(spacing) for spacing in image.pixdim[:2])
        return Stack(
            hu=image.as_tensor()[..., 0],
            label=label.as_tensor()[..., 0].to(torch.uint8),
            z_mm=np.zeros(1),
            spacing_mm=(row, column),
        )
