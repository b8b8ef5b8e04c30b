# SPDX-License-Identifier: Apache-2.0
"""Reading a sample's slices from disk, as the datalist names them.

A `Stack` is one source's slices with their label maps, on their own grid. A sample of kind `slice` has one stack of one
slice; a sample of kind `nodule` has a stack a nodule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Transform
from torch import Tensor

from . import IGNORED
from .losses import NODULE

__all__ = ["LoadStacks", "Stack", "mask_votes", "open_nodule", "read_nodule"]

NODULE_SPACING_MM = (0.7, 0.7)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one source.

    Args:
        hu: int16 (n, H, W).
        label: uint8 (n, H, W), label ids.
        spacing_mm: (row, column).
        main: index of the slice that stands for the source: a nodule's largest.

    Raises:
        ValueError: when image and label differ in shape.
    """

    hu: Tensor
    label: Tensor
    spacing_mm: tuple[float, float]
    main: int

    def __post_init__(self) -> None:
        if self.hu.shape != self.label.shape:
            raise ValueError(
                f"A stack's hu and label differ in shape: {tuple(self.hu.shape)}, {tuple(self.label.shape)}."
            )


def open_nodule(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a nodule's npz, and `sphere` where it has that: where nobody drew the nodule (see `mask_votes`).

    Raises:
        ValueError: when the file has them not.
    """
    try:
        with np.load(path) as arrays:
            read = {name: arrays[name] for name in names}
            for name in {"sphere", "ball"} & set(arrays.files):  # `ball` in cohorts of `format: 1`
                read["sphere"] = arrays[name]
            return read
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a nodule's npz with {', '.join(names)} ({error}). Prepare the cohort again."
        ) from error


def mask_votes(arrays: Mapping[str, np.ndarray]) -> int:
    """Votes that make a pixel nodule: two readers'; one where `votes` says what is dense in an annotated sphere."""
    return 1 if "sphere" in arrays else 2


def read_nodule(path: str | Path) -> Stack:
    """Crops of one nodule: nodule is what two readers agree on.

    Where a slice shows that, what one reader alone drew is background; on slices without it, and on nodules that only
    one reader saw, it is ignored. So is what the source did not cover.
    Where only centre and diameter are known, nodule is what is dense in the sphere, and the rest of it is ignored.

    Raises:
        ValueError: when the file has not the arrays of a COHORT's nodule.
    """
    arrays = open_nodule(path, ("context", "votes", "valid", "largest"))
    votes = arrays["votes"]
    mask = votes >= mask_votes(arrays)
    doubtful = arrays["sphere"] if "sphere" in arrays else (votes == 1) & ~mask.any(axis=(1, 2), keepdims=True)
    label = np.where(mask, NODULE, 0).astype(np.uint8)
    label[(doubtful & ~mask) | ~arrays["valid"]] = IGNORED
    return Stack(
        torch.from_numpy(arrays["context"]), torch.from_numpy(label), NODULE_SPACING_MM, int(arrays["largest"])
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
        stacks = [self._slice(data)] if data["kind"] == "slice" else [read_nodule(path) for path in data["nodules"]]
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
        return Stack(image.as_tensor()[..., 0], label.as_tensor()[..., 0].to(torch.uint8), (row, column), 0)
