# SPDX-License-Identifier: Apache-2.0
"""Training samples of a cohort, held in memory, drawn evenly over the categories.

They are nodule slices, nodule cubes, normal lungs, or whole diseased slices of a folder of scripts/make_slices.py. A
sample is (2, S, S), of a cube (2, S, S, S): the image in [-1, 1] (HU of the networks' window) and its soft mask in
[0, 1], of the nodule or of the lungs. Its diameter is that of the disc (of a cube: the sphere) as large as its mask
(alpha >= 0.5), in mm; 0 for lungs and whole slices.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from torch import Tensor
from torch.utils.data import Dataset

from .categories import CategoryRule
from .common.hounsfield import CT_RANGE_HU, NETWORK_WINDOW
from .diameters import equivalent_diameter
from .sample_types import sample_type_of

__all__ = ["Batch", "CohortSamples", "load_datalist"]

_logger = logging.getLogger(__name__)

_BLOCKS = {2: "n (h a) (w b) -> n h w", 3: "n (d a) (h b) (w c) -> n d h w"}
# Slices of a nodule are used from this share of its largest area on: those of its poles look like smaller nodules.
_LEAST_AREA = 0.5
_OUTLINE = 0.5  # of a soft mask
_CUBE_MM = 44.8  # side of the cubes of a cohort: 64 voxels of 0.7 mm


class Batch(NamedTuple):
    """Samples (B, 2, S, S[, S]), category indices (B,) int64, diameters in mm (B,) float32."""

    samples: Tensor
    category: Tensor
    diameter_mm: Tensor


class _Case(NamedTuple):
    """An entry, its category, and its usable samples (n, S, S[, S]): HU int16 and soft masks float16."""

    entry: Mapping[str, Any]
    category: str
    hu: np.ndarray
    mask: np.ndarray


def load_datalist(dataset_dir: str | Path, *, sample_type: str, split: str) -> list[dict[str, Any]]:
    """Reads `nodules.json`, `cubes.json` or `lungs.json` of a cohort, or `slices.json` of a folder of slices.

    Args:
        dataset_dir: the cohort; for slices, a folder of scripts/make_slices.py.
        sample_type: a name of `SAMPLE_TYPES`.
        split: "training", "validation" or "test".

    Returns:
        The entries, with the path of their npz made absolute.

    Raises:
        FileNotFoundError: when `dataset_dir` is no cohort.
        ValueError: when the split is empty.
    """
    path = Path(dataset_dir) / f"{sample_type}s.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the data list of a cohort, found none. Prepare one (lungsynth prepare; slices: "
            "scripts/make_slices.py) and give its folder as dataset_dir."
        )
    entries = json.loads(path.read_text(encoding="utf-8")).get(split) or []
    if not entries:
        whose = f"whose scans (or cubes) cover {_CUBE_MM} mm around their nodules" if sample_type == "cube" else ""
        raise ValueError(
            f"{path}: expected entries in {split!r}, got none. Prepare the cohort from more patients"
            f"{', ' if whose else ''}{whose}."
        )
    return [{**entry, sample_type: str(path.parent.resolve() / entry[sample_type])} for entry in entries]


class CohortSamples(Dataset):
    """All usable samples of a data list. Nodules without a pixel of at least half alpha on this grid are left out.

    Args:
        data: entries of `load_datalist`.
        sample_type: a name of `SAMPLE_TYPES`, the entries' key of the npz file.
        size: pixels of a sample's side; files of a multiple of it are averaged over squares (cubes).
        spacing_mm: of a pixel.
        categories: of the entries; those that have none are left out.
        largest_only: take one slice a nodule instead of each one of at least half the largest area.
        allow_absent: a category may have no entry, as in a small validation split.

    Raises:
        ValueError: when there is no entry, or none of a category, or a file has another size.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        sample_type: str,
        size: int,
        spacing_mm: float,
        categories: CategoryRule,
        largest_only: bool = False,
        allow_absent: bool = False,
    ) -> None:
        self.sample_type, self.size, self.spacing_mm, self.largest_only = sample_type, size, spacing_mm, largest_only
        self.spatial_dims, has_diameter, _ = sample_type_of(sample_type)
        cases = self._usable(data, categories)
        names = [case.category for case in cases]
        if not cases or (set(categories.names) - set(names) and not allow_absent):
            self._refuse(data, categories, names)
        self.data = [case.entry for case in cases]
        self.hu = torch.from_numpy(np.concatenate([case.hu for case in cases]))
        self.mask = torch.from_numpy(np.concatenate([case.mask for case in cases]))
        self.case_count = torch.tensor([len(case.hu) for case in cases])
        self.case_start = self.case_count.cumsum(0) - self.case_count
        indices = {name: index for index, name in enumerate(categories.names)}
        self.case_category = torch.tensor([indices.get(name, 0) for name in names])
        self.category = self.case_category.repeat_interleave(self.case_count)
        self.case_weight = _patient_weights(self.data, self.case_category) if not has_diameter else None
        inside = (self.mask >= _OUTLINE).flatten(1).sum(dim=1).float()
        self.diameter_mm = equivalent_diameter(inside, self.spatial_dims) * spacing_mm * has_diameter

    def _usable(self, data: Sequence[Mapping[str, Any]], categories: CategoryRule) -> list[_Case]:
        """What has a category and at least one usable sample."""
        cases = [
            _Case(entry, category, *self._read(Path(entry[self.sample_type])))
            for entry, category in zip(data, categories.categories_of(data), strict=True)
            if category is not None
        ]
        if empty := [Path(case.entry[self.sample_type]).name for case in cases if not len(case.hu)]:
            _logger.warning("Left out, without a pixel of at least half alpha: %s.", ", ".join(empty))
        return [case for case in cases if len(case.hu)]

    def _refuse(self, data: Sequence[Mapping[str, Any]], categories: CategoryRule, names: Sequence[str]) -> None:
        present = sorted({str(entry.get(categories.key)) for entry in data})
        raise ValueError(
            f"Expected {self.sample_type} entries of each of the categories {list(categories.names)}, got none of "
            f"{sorted(set(categories.names) - set(names))}. The data list has {present}; set `categories` to match, or "
            "`category_edges` to make bins of a number."
        )

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """The usable samples of one file: HU int16 and mask float16, both (n, size, size[, size])."""
        kind = sample_type_of(self.sample_type)
        with np.load(path) as file:
            hu, mask = file["hu"], file[kind.mask_key]
            if self.sample_type == "nodule":
                chosen = self._chosen_slices(mask, int(file["largest"]))
                hu, mask = hu[chosen], mask[chosen]
            else:
                hu, mask = hu[None], mask[None]
        hu = np.clip(hu, *CT_RANGE_HU)
        if (scale := self._scale_of(hu.shape[1:], path)) > 1:
            hu, mask = (_averaged(samples, scale, kind.spatial_dims) for samples in (hu, mask))
        if kind.has_diameter:
            visible = (mask >= _OUTLINE).reshape(len(mask), -1).any(axis=1)
            hu, mask = hu[visible], mask[visible]
        return np.rint(hu).astype(np.int16), mask.astype(np.float16)

    def _chosen_slices(self, alpha: np.ndarray, largest: int) -> list[int]:
        """The slices of a nodule (n, H, W) that are used: the largest one, or all that are large enough."""
        area = (alpha >= _OUTLINE).sum(axis=(1, 2))
        large = np.flatnonzero(area >= max(_LEAST_AREA * area.max(), 1)).tolist()
        return [largest] if self.largest_only or not large else large

    def _scale_of(self, shape: tuple[int, ...], path: Path) -> int:
        """Pixels of the file's side for each one of a sample."""
        scale = shape[0] // self.size
        if scale < 1 or shape != (scale * self.size,) * self.spatial_dims:
            wanted, got = (" x ".join(map(str, sides)) for sides in ((self.size,) * self.spatial_dims, shape))
            raise ValueError(
                f"{path}: expected {self.sample_type}s of {wanted} pixels or a multiple, got {got}. "
                "Set `size`, or prepare the cohort with the grid of this sample type."
            )
        return scale

    def __len__(self) -> int:
        return len(self.hu)

    def take(self, indices: Tensor) -> Batch:
        """The samples of these indices (B,)."""
        image = NETWORK_WINDOW.to_unit(self.hu[indices], clip=True)
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
        """Draws `count` samples: a category evenly, one of its cases, one of the case's slices evenly.

        Cases are drawn evenly, but lungs and whole slices by patient: a patient's share grows as the square root of
        its slices, so that neither a patient with fifty of them nor one with a single slice is most of a training.
        """
        if self.case_weight is not None:
            category = torch.randint(len(self.case_weight), (count,), generator=generator)
            case = torch.multinomial(self.case_weight[category], 1, generator=generator)[:, 0]
            return self.take(self.case_start[case] + _below(self.case_count[case], generator))
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


def _patient_weights(data: Sequence[Mapping[str, Any]], category: Tensor) -> Tensor:
    """Of each category (row) the shares in which cases (columns) are drawn; see `CohortSamples.draw`."""
    patients = [entry.get("patient_id", index) for index, entry in enumerate(data)]
    counts = Counter(zip(patients, category.tolist(), strict=True))
    own = torch.tensor([counts[key] ** -0.5 for key in zip(patients, category.tolist(), strict=True)])
    return torch.stack([own * (category == row) for row in range(int(category.max()) + 1)])


def _averaged(samples: np.ndarray, scale: int, spatial_dims: int) -> np.ndarray:
    """Means over blocks of `scale` pixels along each of the last axes, float32."""
    axes = dict.fromkeys("abc"[:spatial_dims], scale)
    return reduce(samples.astype(np.float32), _BLOCKS[spatial_dims], "mean", **axes)


def _below(limits: Tensor, generator: torch.Generator) -> Tensor:
    """Draws an integer in [0, limit) for each limit."""
    uniform = torch.rand(limits.shape, generator=generator, dtype=torch.float64)
    return (uniform * limits).long().clamp(max=limits - 1)
