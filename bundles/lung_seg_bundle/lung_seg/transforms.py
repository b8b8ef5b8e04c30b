# SPDX-License-Identifier: Apache-2.0
"""From stacks of slices to what the network is trained and validated on, on the grid of `spacing_mm`.

A slice gives one square (training) or its whole frame (validation). Nodules come with 90 mm around them, half of the
square's side or less: `tiles_per_side` squared of them stand side by side in it, each of another nodule. Slices are
turned and scaled a little but never mirrored, since left and right lung differ; nodules are turned and mirrored freely.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform, Transform
from torch import Tensor

from . import IGNORED
from .common.hounsfield import AIR_HU, check_hu
from .grid import Frame, cut, resample, resampled_shape
from .losses import NODULE
from .neighbours import with_neighbours
from .stacks import Stack

__all__ = ["CheckHu", "FixedFrame", "Neighboursd", "RandFrame"]


def _whole(stack: Stack, *, spacing_mm: float) -> tuple[Tensor, Tensor]:
    """The first slice of a stack on the grid of `spacing_mm`: HU (1, H, W) and label (H, W)."""
    height, width = stack.label.shape[-2:]
    shape = resampled_shape((height, width), spacing_mm=stack.spacing_mm, target_mm=spacing_mm)
    hu = resample(stack.hu[:1, None].float(), shape)
    return hu[0], resample(stack.label[:1, None].float(), shape, mode="nearest-exact")[0, 0].to(torch.uint8)


def _tile(
    planes: Sequence[tuple[Stack, int, Frame]], *, tiles_per_side: int, size_px: int, slices: int
) -> tuple[Tensor, Tensor]:
    """Side by side: slice `index` of each stack with its neighbours through its frame, in `tiles_per_side` squared."""
    image = torch.full((slices, size_px, size_px), float(AIR_HU))
    label = torch.full((size_px, size_px), IGNORED, dtype=torch.uint8)
    side = size_px // tiles_per_side
    for place, (stack, index, frame) in enumerate(planes[: tiles_per_side * tiles_per_side]):
        rows, columns = (slice(start * side, (start + 1) * side) for start in divmod(place, tiles_per_side))
        shown = stack.planes(index, slices)
        image[:, rows, columns], label[rows, columns] = cut(shown, stack.label[index], frame, size_px=side)
    return image, label


def _sample(data: Mapping[str, Any], image: Tensor, label: Tensor) -> dict[str, Any]:
    return {"image": image, "label": label[None], "labelled": data["labelled"]}


def _centred(stack: Stack, *, spacing_mm: float) -> Frame:
    height, width = stack.label.shape[-2:]
    row, column = stack.spacing_mm
    step = (spacing_mm / row, spacing_mm / column)
    return Frame(row_px=(height - 1) / 2, column_px=(width - 1) / 2, step_px=step)


class FixedFrame(Transform):
    """Whole slices, or each nodule's largest slice.

    `image` is float32 HU, (1, H, W) of slices and (slices, H, W) of nodules, `label` (1, H, W), `labelled` (2,).

    Args:
        spacing_mm: of the network's grid.
        size_px: side of the square with the nodules.
        tiles_per_side: nodules in a row of that square.
        slices: that the network sees, see `neighbours.py`.
    """

    def __init__(self, *, spacing_mm: float, size_px: int, tiles_per_side: int, slices: int = 3) -> None:
        self.spacing_mm = spacing_mm
        self.size_px = size_px
        self.tiles_per_side = tiles_per_side
        self.slices = slices

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        stacks = data["stacks"]
        if data["kind"] == "slice":
            return _sample(data, *_whole(stacks[0], spacing_mm=self.spacing_mm))
        planes = [(stack, stack.main, _centred(stack, spacing_mm=self.spacing_mm)) for stack in stacks]
        tiled = _tile(planes, tiles_per_side=self.tiles_per_side, size_px=self.size_px, slices=self.slices)
        return _sample(data, *tiled)


class RandFrame(RandomizableTransform):
    """A random square of a slice, or random slices of nodules: keys and types as from `FixedFrame`, of one size.

    Half of a slice's squares are centred on the rarest thing that it shows (nodule, else lung), a quarter in the
    lungs, a quarter anywhere: air outside the body and the table look like lung and must be seen too. Nodules lie
    anywhere in their tile: a network that sees them in the middle learns the place, not the nodule.

    Args:
        spacing_mm: of the network's grid.
        size_px: side of the square.
        tiles_per_side: nodules in a row of the square.
        slices: that the network sees, see `neighbours.py`.
        angle_degrees: slices are turned by at most this.
        zoom: slices and nodules are scaled by a factor within [1 / zoom, zoom].
        shift_px: nodules lie off the middle of their tile by at most this many pixels of the network's grid.
        scatter_prob: share of the squares of nodules with one more tile in a row; their tiles show nodules
            anywhere, cut by the border at times.
        alone_prob: share of the squares of nodules whose slices are shown without their neighbours, as single slices
            are.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        *,
        spacing_mm: float,
        size_px: int,
        tiles_per_side: int,
        slices: int = 3,
        angle_degrees: float = 10.0,
        zoom: float = 1.2,
        shift_px: float = 18.0,
        scatter_prob: float = 0.0,
        alone_prob: float = 0.2,
    ) -> None:
        super().__init__(prob=1.0)
        self.spacing_mm = spacing_mm
        self.size_px = size_px
        self.tiles_per_side = tiles_per_side
        self.slices = slices
        self.angle_degrees = angle_degrees
        self.zoom = zoom
        self.shift_px = shift_px
        self.scatter_prob = scatter_prob
        self.alone_prob = alone_prob

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        stacks = data["stacks"]
        if data["kind"] == "slice":
            frame = self.draw_slice_frame(stacks[0])
            return _sample(data, *cut(stacks[0].hu[:1], stacks[0].label[0], frame, size_px=self.size_px))
        tiles_per_side, shift_px = self.tiles_per_side, self.shift_px
        if self.R.random() < self.scatter_prob:
            tiles_per_side += 1
            shift_px = self.size_px / tiles_per_side / 2
        shown = itertools.islice(itertools.cycle(stacks), tiles_per_side**2)
        planes = [(stack, self.draw_index(stack), self.draw_nodule_frame(stack, shift_px)) for stack in shown]
        slices = 1 if self.R.random() < self.alone_prob else self.slices
        return _sample(data, *_tile(planes, tiles_per_side=tiles_per_side, size_px=self.size_px, slices=slices))

    def draw_slice_frame(self, stack: Stack) -> Frame:
        """Where on the slice the square lies."""
        label = stack.label[0].numpy()
        seen = np.where(label == IGNORED, 0, label)
        luck = self.R.random()
        wanted = seen == seen.max() if luck < 0.5 else seen > 0 if luck < 0.75 else np.ones_like(seen, dtype=bool)
        candidates = np.flatnonzero(wanted) if wanted.any() else np.arange(seen.size)
        row, column = np.unravel_index(candidates[self.R.randint(candidates.size)], label.shape)
        angle = math.radians(self.R.uniform(-self.angle_degrees, self.angle_degrees))
        return Frame(
            row_px=float(row), column_px=float(column), step_px=self._draw_step(stack.spacing_mm), angle_rad=angle
        )

    def draw_index(self, stack: Stack) -> int:
        """Which slice of a nodule is shown: half the time one that two readers agree on, where there is one."""
        agreed = np.flatnonzero((stack.label == NODULE).flatten(1).any(1).numpy())
        pool = agreed if len(agreed) and self.R.random() < 0.5 else np.arange(len(stack.label))
        return int(pool[self.R.randint(len(pool))])

    def draw_nodule_frame(self, stack: Stack, shift_px: float) -> Frame:
        """Where in its tile a nodule lies, at most `shift_px` off the middle; half the time without interpolation."""
        centre = _centred(stack, spacing_mm=self.spacing_mm)
        on_grid = bool(self.R.random() < 0.5)
        step = centre.step_px if on_grid else self._draw_step(stack.spacing_mm)
        shift = self.R.uniform(-shift_px, shift_px, size=2)
        quarters = self.R.uniform(0, 4)
        if on_grid:
            shift, quarters = np.rint(shift), float(int(quarters))
        return Frame(
            row_px=centre.row_px + float(shift[0]) * step[0],
            column_px=centre.column_px + float(shift[1]) * step[1],
            step_px=step,
            angle_rad=quarters * math.pi / 2,
            mirrored=bool(self.R.random() < 0.5),
        )

    def _draw_step(self, spacing_mm: tuple[float, float]) -> tuple[float, float]:
        zoom = math.exp(self.R.uniform(-1, 1) * math.log(self.zoom))
        return self.spacing_mm * zoom / spacing_mm[0], self.spacing_mm * zoom / spacing_mm[1]


class Neighboursd(Transform):
    """Gives slices that are shown alone themselves as neighbours: `image` (1, H, W) becomes (slices, H, W).

    Args:
        slices: that the network sees, see `neighbours.py`.
    """

    def __init__(self, *, slices: int) -> None:
        self.slices = slices

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "image": with_neighbours(data["image"], self.slices)}


class CheckHu(Transform):
    """Refuses volumes that cannot be a CT in HU; passes the others on.

    Args:
        key: of the image, a MetaTensor that knows its file.
    """

    def __init__(self, key: str = "image") -> None:
        self.key = key

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Checks one volume.

        Raises:
            ValueError: naming the file, the range found and the remedy.
        """
        image = data[self.key]
        check_hu(image, name=Path(str(image.meta.get("filename_or_obj", "the image"))).name)
        return dict(data)
