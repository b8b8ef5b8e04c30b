# SPDX-License-Identifier: Apache-2.0
"""Training samples of a COHORT, held in memory, drawn evenly over the categories.

They are nodule slices, nodule cubes, normal lungs, or whole diseased slices of a folder of scripts/make_slices.py. A
sample is (2, S, S), of a cube (2, S, S, S): the image in [-1, 1] (HU of the networks' window) and its soft mask in
[0, 1], of the nodule or of the lungs. Its diameter is that of the disc (of a cube: the ball) as large as its mask
(alpha >= 0.5), in mm; 0 for lungs and whole slices.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from torch import Tensor
from torch.utils.data import Dataset

from .categories import categories_of
from .hounsfield import to_unit
from .kinds import equal_diameter, layer_of

__all__ = ["Batch", "CohortSamples", "load_datalist"]

logger = logging.getLogger(__name__)

_BLOCKS = {2: "n (h a) (w b) -> n h w", 3: "n (d a) (h b) (w c) -> n d h w"}
LARGE_ENOUGH = 0.5  # slices of a nodule are used from this share of its largest area on


class Batch(NamedTuple):
    """Samples (B, 2, S, S[, S]), category indices (B,) int64, diameters in mm (B,) float32."""

    samples: Tensor
    category: Tensor
    diameter_mm: Tensor


def load_datalist(dataset_dir: str | Path, layer: str, section: str) -> list[dict[str, Any]]:
    """Reads `nodules.json`, `cubes.json` or `lungs.json` of a COHORT, or `slices.json` of a folder of slices.

    Args:
        dataset_dir: the COHORT, as written by `scripts/prepare.py`; for slices, a folder of `make_slices.py`.
        layer: a name of `LAYERS`.
        section: "training", "validation" or "test".

    Returns:
        The entries, with the path of their npz made absolute.

    Raises:
        FileNotFoundError: when `dataset_dir` is no COHORT.
        ValueError: when the section is empty.
    """
    path = Path(dataset_dir) / f"{layer}s.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the data list of a COHORT, found none. Prepare one with scripts/prepare.py (slices: "
            "scripts/make_slices.py) and pass it as --dataset_dir."
        )
    entries = json.loads(path.read_text()).get(section) or []
    if not entries:
        raise ValueError(
            f"{path}: expected entries in {section!r}, got none. Prepare the COHORT from more patients"
            + (", whose scans (or cubes) cover 44.8 mm around their nodules." if layer == "cube" else ".")
        )
    return [{**entry, layer: str(path.parent.resolve() / entry[layer])} for entry in entries]


class CohortSamples(Dataset):
    """All usable samples of a data list. Nodules without a pixel of at least half alpha on this grid are left out.

    Args:
        data: entries of `load_datalist`.
        layer: a name of `LAYERS`, the entries' key of the npz file.
        size: pixels of a sample's side; files of a multiple of it are averaged over squares (cubes).
        categories: names in the order of their indices; entries of other categories are left out. Empty: one
            category that takes all.
        category_key: the entries' key of the category, such as "category" or "malignancy".
        category_edges: bins of a number, see `categories_of`; entries without one are left out.
        spacing_mm: of a pixel.
        largest_only: take one slice a nodule instead of each one of at least half the largest area.
        absent_allowed: a category may have no entry, as in a small validation part.

    Raises:
        ValueError: when there is no entry, or none of a category, the edges do not fit, or a file has another size.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        layer: str,
        size: int,
        categories: Sequence[str] = (),
        category_key: str = "category",
        category_edges: Sequence[float] = (),
        spacing_mm: float = 0.7,
        largest_only: bool = False,
        absent_allowed: bool = False,
    ) -> None:
        self.layer, self.size, self.spacing_mm, self.largest_only = layer, size, spacing_mm, largest_only
        self.kind = layer_of(layer)
        found = (
            categories_of(data, categories, key=category_key, edges=category_edges) if categories else [""] * len(data)
        )
        named = [(entry, name) for entry, name in zip(data, found, strict=True) if name is not None]
        read = [(entry, name, *self._read(Path(entry[layer]))) for entry, name in named]
        if empty := [Path(entry[layer]).name for entry, _, hu, _ in read if not len(hu)]:
            logger.warning("Left out, without a pixel of at least half alpha: %s.", ", ".join(empty))
        read = [sample for sample in read if len(sample[2])]
        self.data, names = [entry for entry, *_ in read], [name for _, name, *_ in read]
        absent = sorted(set(categories) - set(names))
        if not self.data or (absent and not absent_allowed):
            there = sorted({str(entry.get(category_key)) for entry in data})
            raise ValueError(
                f"Expected {layer} entries of each of the categories {list(categories)}, got none of {absent}. "
                f"The data list has {there}; set `categories` to match, or `category_edges` to make bins of a number."
            )
        self.hu = torch.from_numpy(np.concatenate([hu for _, _, hu, _ in read]))
        self.mask = torch.from_numpy(np.concatenate([mask for *_, mask in read]))
        self.case_count = torch.tensor([len(hu) for _, _, hu, _ in read])
        self.case_start = self.case_count.cumsum(0) - self.case_count
        self.case_category = torch.tensor([categories.index(name) if categories else 0 for name in names])
        self.category = self.case_category.repeat_interleave(self.case_count)
        inside = (self.mask >= 0.5).flatten(1).sum(dim=1).float()
        self.diameter_mm = equal_diameter(inside, self.kind.axes) * spacing_mm * self.kind.sized

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """The usable samples of one file: HU int16 and mask float16, both (n, size, size[, size])."""
        axes = self.kind.axes
        with np.load(path) as file:
            hu, mask = file["hu"], file[self.kind.mask]
            if self.layer != "nodule":
                hu, mask = hu[None], mask[None]
            else:
                area = (mask >= 0.5).sum(axis=(1, 2))
                keep = area >= max(LARGE_ENOUGH * area.max(), 1)
                largest = int(file["largest"])
                hu, mask = (a[[largest]] if self.largest_only or not keep.any() else a[keep] for a in (hu, mask))
        scale = hu.shape[1] // self.size
        if hu.shape[1:] != (scale * self.size,) * axes or scale < 1:
            wanted, got = (" x ".join(map(str, shape)) for shape in ((self.size,) * axes, hu.shape[1:]))
            raise ValueError(
                f"{path}: expected {self.layer}s of {wanted} pixels or a multiple, got {got}. "
                "Set `size`, or prepare the COHORT with the grid of this layer."
            )
        hu = np.clip(hu, -1024, 3071)
        if scale > 1:
            hu, mask = (_averaged(a, scale, axes) for a in (hu, mask))
        if self.kind.sized:
            shown = (mask >= 0.5).reshape(len(mask), -1).any(axis=1)
            hu, mask = hu[shown], mask[shown]
        return np.rint(hu).astype(np.int16), mask.astype(np.float16)

    def __len__(self) -> int:
        return len(self.hu)

    def take(self, indices: Tensor) -> Batch:
        """The samples of these indices (B,)."""
        image = to_unit(self.hu[indices].float())
        samples = torch.stack([image, self.mask[indices].float()], dim=1)
        return Batch(samples, self.category[indices], self.diameter_mm[indices])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.take(torch.tensor([index]))
        return {
            "index": torch.tensor(index),
            "image": batch.samples[0],
            "category": batch.category[0],
            "diameter_mm": batch.diameter_mm[0],
        }

    def draw(self, generator: torch.Generator, count: int) -> Batch:
        """Draws `count` samples: a category, one of its cases, one of the case's slices, each evenly."""
        order = self.case_category.argsort(stable=True)
        cases = self.case_category.bincount()
        first = cases.cumsum(0) - cases
        category = torch.randint(len(cases), (count,), generator=generator)
        case = order[first[category] + _below(cases[category], generator)]
        return self.take(self.case_start[case] + _below(self.case_count[case], generator))

    def diameter_quantiles(self) -> Tensor:
        """Percentiles 0 to 100 of the cases' largest diameters, a row a category, in mm."""
        largest = torch.stack([d.max() for d in self.diameter_mm.split(self.case_count.tolist())])
        steps = torch.linspace(0, 1, 101)
        present = range(int(self.case_category.max()) + 1)
        return torch.stack([largest[self.case_category == k].quantile(steps) for k in present])


def _averaged(samples: np.ndarray, scale: int, axes: int) -> np.ndarray:
    """Means over blocks of `scale` pixels along each of the last axes, float32."""
    return reduce(samples.astype(np.float32), _BLOCKS[axes], "mean", **dict.fromkeys("abc"[:axes], scale))


def _below(limits: Tensor, generator: torch.Generator) -> Tensor:
    """Draws an integer in [0, limit) for each limit."""
    uniform = torch.rand(limits.shape, generator=generator, dtype=torch.float64)
    return (uniform * limits).long().clamp(max=limits - 1)
