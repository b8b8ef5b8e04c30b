# SPDX-License-Identifier: Apache-2.0
"""Slices and nodule patches as files, and the transforms that make training samples of them.

In memory a slice is (1, H, W): rows anterior to posterior, columns from the patient's right to left (axis codes
`PLS`), int16 HU until `ToUnitd`. On disk it is a NIfTI of depth one in any orientation; a file keeps its own when it
is written again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from torch.nn.functional import interpolate

from .common.atomic import replacing
from .common.hounsfield import check_hu, to_int16

__all__ = ["LoadSlice", "NoduleCrop", "RandomFlip", "list_slices", "read_slice", "write_slice"]

FRAME = ("P", "L", "S")
NODULE = 2  # label of nodule pixels
PATCH_SPACING_MM = 0.7  # of the patches in a cohort's npz files
SAME_SPACING = 1.1  # ratio of two spacings up to which they count as one: resampling blurs more than this differs
ALPHA_NODULE = 0.5  # from this soft mask on a pixel of a patch is nodule


def list_slices(folder: str | Path) -> list[Path]:
    """NIfTI files of a folder, sorted.

    Raises:
        FileNotFoundError: when there is none.
    """
    files = sorted([*Path(folder).glob("*.nii.gz"), *Path(folder).glob("*.nii")])
    if not files:
        raise FileNotFoundError(f"{folder}: expected NIfTI slices, found none. Give dataset_dir a folder with some.")
    return files


def read_slice(path: str | Path) -> np.ndarray:
    """Values (H, W) of a NIfTI slice, in the frame of this module, in the file's own type.

    Raises:
        ValueError: when the file is no NIfTI of depth one.
    """
    try:
        image = nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path}: not a NIfTI file ({error}). Write it again.") from error
    if len(image.shape) != 3:
        raise ValueError(
            f"{path}: expected an axial slice (W, H, 1), got the shape {image.shape}. Split it into slices."
        )
    values = np.asanyarray(image.as_reoriented(_to_frame(image.affine)).dataobj)
    if values.shape[2] != 1:
        raise ValueError(
            f"{path}: expected an axial slice, one deep, got {values.shape[2]} deep. Split it into slices."
        )
    return values[:, :, 0]


def write_slice(path: str | Path, hu: np.ndarray, *, like: str | Path) -> None:
    """Writes int16 HU (H, W) with the orientation, affine and description of the slice file `like`."""
    image = nibabel.load(like)
    to_frame = _to_frame(image.affine)
    framed = nibabel.Nifti1Image(hu[:, :, np.newaxis], image.as_reoriented(to_frame).affine)
    back = framed.as_reoriented(ornt_transform(axcodes2ornt(FRAME), io_orientation(image.affine)))
    header = image.header.copy()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(1, 0)
    with replacing(path) as temporary:
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(back.dataobj), image.affine, header), temporary)


def _to_frame(affine: np.ndarray) -> np.ndarray:
    return ornt_transform(io_orientation(affine), axcodes2ornt(FRAME))


def _read_hu(path: str | Path) -> np.ndarray:
    values = read_slice(path)
    check_hu(values, name=str(path))
    return to_int16(values)


class LoadSlice(Transform):
    """Loads an entry of `data.py`: `image` (1, H, W) int16 HU, `nodule` (1, H, W) bool, `spacing_mm`, `path`.

    An entry without `label` has no nodule. Of a nodule patch, the largest slice is taken.

    Raises:
        ValueError: naming the file, when it is not in HU or its label has another size.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        patch = data.get("kind") == "nodule"
        hu, nodule = _read_patch(data["image"]) if patch else self._read(data)
        if nodule.shape != hu.shape:
            raise ValueError(
                f"{data['label']}: its size {nodule.shape} is not that of {data['image']}, {hu.shape}. Label it again."
            )
        return {
            "image": torch.from_numpy(np.ascontiguousarray(hu[np.newaxis])),
            "nodule": torch.from_numpy(np.ascontiguousarray(nodule[np.newaxis])),
            "spacing_mm": PATCH_SPACING_MM if patch else _spacing_mm(data["image"]),
            "path": str(data["image"]),
        }

    def _read(self, data: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        hu = _read_hu(data["image"])
        label = data.get("label")
        return hu, np.zeros(hu.shape, bool) if label is None else read_slice(label) == NODULE


def _spacing_mm(path: str | Path) -> float:
    """Side of a square as large as a pixel."""
    image = nibabel.load(path)
    framed = image.affine @ inv_ornt_aff(_to_frame(image.affine), image.shape)  # of the head alone
    rows, columns = np.linalg.norm(framed[:3, :2], axis=0)
    return float(np.sqrt(rows * columns))


def _read_patch(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as patch:
        largest = int(patch["largest"])
        return patch["context"][largest].astype(np.int16), patch["alpha"][largest] >= ALPHA_NODULE


class NoduleCrop(Randomizable, Transform):
    """Cuts squares of `image` and `nodule`; a smaller image is continued by its mirror image.

    With `target_mm` in the dictionary, a square of that spacing comes out, averaged from `spacing_mm`; spacings that
    differ by less than `SAME_SPACING` are left as they are.

    Args:
        crop_px: side of the square, even.
        nodule_share: probability that a nodule's pixel is the centre; else any pixel is. None: not random, the square
            lies around the middle of the nodules (or of the image where there is none).

    Raises:
        ValueError: for a size that the networks cannot use.
    """

    def __init__(self, crop_px: int, *, nodule_share: float | None = 0.5) -> None:
        if crop_px < 32 or crop_px % 2:
            raise ValueError(f"crop_px must be even and at least 32, which the discriminators need, got {crop_px}.")
        self.crop_px = crop_px
        self.nodule_share = nodule_share

    def randomize(self, data: torch.Tensor) -> tuple[int, int]:
        """Draws the centre (row, column) of a crop for a nodule mask (1, H, W)."""
        if self.nodule_share is not None and self.R.rand() >= self.nodule_share:
            return int(self.R.randint(data.shape[1])), int(self.R.randint(data.shape[2]))
        pixels = data[0].nonzero()
        if not len(pixels):
            return data.shape[1] // 2, data.shape[2] // 2
        row, column = pixels.float().mean(0) if self.nodule_share is None else pixels[self.R.randint(len(pixels))]
        return int(row), int(column)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        height, width = data["nodule"].shape[1:]
        row, column = self.randomize(data["nodule"])
        ratio = data["target_mm"] / data["spacing_mm"] if "target_mm" in data else 1.0
        side = round(self.crop_px * ratio) if ratio > SAME_SPACING else self.crop_px
        rows, columns = _within(row, height, side), _within(column, width, side)
        cut = {key: data[key][:, rows, columns] for key in ("image", "nodule")}
        if side != self.crop_px:
            cut = self._averaged(cut, side)
        return {**data, **{key: _mirrored(plane, self.crop_px) for key, plane in cut.items()}}

    def _averaged(self, cut: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
        """A square of `side` px, brought to `crop_px`: the mean of the HU, and nodule where half of the pixel is."""
        size = [2 * round(self.crop_px * length / side / 2) for length in cut["image"].shape[1:]]
        planes = torch.stack([cut["image"][0].float(), cut["nodule"][0].float()])[None]
        image, nodule = interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
        return {"image": image[None], "nodule": nodule[None] >= 0.5}


def _within(centre: int, size: int, side: int) -> slice:
    start = min(max(centre - side // 2, 0), max(size - side, 0))
    return slice(start, start + side)


def _mirrored(plane: torch.Tensor, side: int) -> torch.Tensor:
    """A plane (1, h, w) of at least (1, side, side): at each border its mirror image follows."""
    for axis in (1, 2):
        missing = max(side - plane.shape[axis], 0)
        places = np.pad(np.arange(plane.shape[axis]), (missing // 2, missing - missing // 2), mode="symmetric")
        plane = plane.index_select(axis, torch.from_numpy(places))
    return plane


class RandomFlip(Randomizable, Transform):
    """Flips `image` and `nodule` along rows, columns, both or neither."""

    def randomize(self, data: Any = None) -> list[int]:
        """Draws the axes to flip."""
        return [axis for axis in (1, 2) if self.R.rand() < 0.5]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        axes = self.randomize()
        return {**data, **{key: data[key].flip(axes) for key in ("image", "nodule")}}
