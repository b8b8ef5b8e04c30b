# SPDX-License-Identifier: Apache-2.0
"""Training samples of a cohort, held in memory, drawn evenly over the categories.

They are nodule slices, nodule cubes, normal lungs, or whole diseased slices of a folder of scripts/make_slices.py. A
sample is (2, S, S), of a cube (2, S, S, S), scaled so that the nodule fills it (`FittedFrame`): the image in [-1, 1]
(HU of the networks' window) and its soft mask in [0, 1], of the nodule or of the lungs. Its diameter in mm is that of
the disc (of a cube: the sphere) as large as its mask (alpha >= 0.5); 0 for lungs and whole slices.
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
from .fitted import FittedFrame, second_moments
from .sample_types import sample_type_of

__all__ = ["Batch", "CohortSamples", "load_datalist"]

_logger = logging.getLogger(__name__)

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
    """An entry, its category, and its usable samples (n, S, S[, S]): HU int16, soft masks float16, diameters in mm."""

    entry: Mapping[str, Any]
    category: str
    hu: np.ndarray
    mask: np.ndarray
    diameter_mm: np.ndarray


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
    """All usable samples of a data list. Nodules without a pixel of at least half alpha on this grid, or that
    do not fit their frame, are left out.

    Args:
        data: entries of `load_datalist`.
        sample_type: a name of `SAMPLE_TYPES`, the entries' key of the npz file.
        size: pixels of a sample's side; files of slices and lungs of a multiple of it are averaged over squares.
        spacing_mm: of a pixel; of cubes, as they are in the files.
        categories: of the entries; those that have none are left out.
        largest_only: take one slice a nodule instead of each one of at least half the largest area.
        allow_absent: a category may have no entry, as in a small validation split.
        fitted: how cubes are scaled, which they need; None for samples that keep their spacing.

    Raises:
        ValueError: when cubes come without `fitted`, there is no entry, or none of a category, or a file has
            another size.
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
        fitted: FittedFrame | None = None,
    ) -> None:
        self.sample_type, self.size, self.spacing_mm, self.largest_only = sample_type, size, spacing_mm, largest_only
        self.spatial_dims, has_diameter, _ = sample_type_of(sample_type)
        self.fitted = fitted
        self._moments: list[np.ndarray] = []  # of all cubes' nodules, those that do not fit their frame included
        if (self.spatial_dims == 3) != (fitted is not None):
            raise ValueError(
                f"Cubes are scaled by `fitted`, and nothing else is; got sample_type {sample_type!r} "
                f"{'with' if fitted else 'without'} it. Lay train_cube.json over train.json for cubes alone."
            )
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
        self.diameter_mm = torch.from_numpy(np.concatenate([case.diameter_mm for case in cases])) * has_diameter

    def _usable(self, data: Sequence[Mapping[str, Any]], categories: CategoryRule) -> list[_Case]:
        """What has a category and at least one usable sample."""
        cases = [
            _Case(entry, category, *self._read(Path(entry[self.sample_type])))
            for entry, category in zip(data, categories.categories_of(data), strict=True)
            if category is not None
        ]
        if empty := [Path(case.entry[self.sample_type]).name for case in cases if not len(case.hu)]:
            _logger.warning("Left out, without a pixel of half alpha or beyond their frame: %s.", ", ".join(empty))
        return [case for case in cases if len(case.hu)]

    def _refuse(self, data: Sequence[Mapping[str, Any]], categories: CategoryRule, names: Sequence[str]) -> None:
        present = sorted({str(entry.get(categories.key)) for entry in data})
        raise ValueError(
            f"Expected {self.sample_type} entries of each of the categories {list(categories.names)}, got none of "
            f"{sorted(set(categories.names) - set(names))}. The data list has {present}; set `categories` to match, or "
            "`category_edges` to make bins of a number."
        )

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The usable samples of one file: HU int16 and mask float16, (n, size, size[, size]), and diameters (n,)."""
        kind = sample_type_of(self.sample_type)
        with np.load(path) as file:
            hu, mask = file["hu"], file[kind.mask_key]
            if self.sample_type == "nodule":
                chosen = self._chosen_slices(mask, int(file["largest"]))
                hu, mask = hu[chosen], mask[chosen]
            else:
                hu, mask = hu[None], mask[None]
        hu = np.clip(hu, *CT_RANGE_HU)
        if self.fitted is not None:
            return self._read_cube(self.fitted, hu[0], mask[0], path)
        if (scale := self._scale_of(hu.shape[1:], path)) > 1:
            hu, mask = (_averaged(samples, scale) for samples in (hu, mask))
        if kind.has_diameter:
            visible = (mask >= _OUTLINE).reshape(len(mask), -1).any(axis=1)
            hu, mask = hu[visible], mask[visible]
        return np.rint(hu).astype(np.int16), mask.astype(np.float16), self._diameters(mask)

    def _read_cube(
        self, fitted: FittedFrame, hu: np.ndarray, alpha: np.ndarray, path: Path
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_read`, of a cube; none where it has no nodule, or one that does not fit."""
        if hu.shape != (fitted.cube_size,) * 3:
            raise ValueError(
                f"{path}: expected a cube of {fitted.cube_size} voxels a side, got {hu.shape}. Prepare the cohort anew."
            )
        inside, frame = alpha >= _OUTLINE, None
        if inside.any():
            self._moments.append(second_moments(inside))
            frame = fitted.fit(hu, alpha)
        if frame is None:
            none = np.zeros((0, *[self.size] * 3))
            return none.astype(np.int16), none.astype(np.float16), np.zeros(0, np.float32)
        image, mask = frame
        return np.rint(image[None]).astype(np.int16), mask[None].astype(np.float16), self._diameters(alpha[None])

    def _diameters(self, mask: np.ndarray) -> np.ndarray:
        """Equivalent diameters in mm of masks on the grid of `spacing_mm`, float32 (n,)."""
        inside = torch.from_numpy((mask >= _OUTLINE).sum(axis=tuple(range(1, mask.ndim))))
        return (equivalent_diameter(inside.float(), self.spatial_dims) * self.spacing_mm).numpy()

    def pixel_mm(self, diameter_mm: Tensor) -> float | Tensor:
        """Pixel size of samples of these diameters: of all, or of each (B,)."""
        return self.spacing_mm if self.fitted is None else self.fitted.voxel_mm(diameter_mm)

    def _chosen_slices(self, alpha: np.ndarray, largest: int) -> list[int]:
        """The slices of a nodule (n, H, W) that are used: the largest one, or all that are large enough."""
        area = (alpha >= _OUTLINE).sum(axis=(1, 2))
        large = np.flatnonzero(area >= max(_LEAST_AREA * area.max(), 1)).tolist()
        return [largest] if self.largest_only or not large else large

    def _scale_of(self, shape: tuple[int, ...], path: Path) -> int:
        """Pixels of the file's side for each one of a sample."""
        scale = shape[0] // self.size
        if scale < 1 or shape != (scale * self.size,) * 2:
            wanted, got = (" x ".join(map(str, sides)) for sides in ((self.size,) * 2, shape))
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

    def shape_moments(self, count: int) -> Tensor:
        """Second moments (count, 3, 3) of cubes' nodules, evenly out of all."""
        places = np.arange(count) * len(self._moments) // count
        return torch.from_numpy(np.stack(self._moments)[places]).float()


def _patient_weights(data: Sequence[Mapping[str, Any]], category: Tensor) -> Tensor:
    """Of each category (row) the shares in which cases (columns) are drawn; see `CohortSamples.draw`."""
    patients = [entry.get("patient_id", index) for index, entry in enumerate(data)]
    counts = Counter(zip(patients, category.tolist(), strict=True))
    own = torch.tensor([counts[key] ** -0.5 for key in zip(patients, category.tolist(), strict=True)])
    return torch.stack([own * (category == row) for row in range(int(category.max()) + 1)])


def _averaged(samples: np.ndarray, scale: int) -> np.ndarray:
    """Means over squares of `scale` pixels, float32."""
    return reduce(samples.astype(np.float32), "n (h a) (w b) -> n h w", "mean", a=scale, b=scale)


def _below(limits: Tensor, generator: torch.Generator) -> Tensor:
    """Draws an integer in [0, limit) for each limit."""
    uniform = torch.rand(limits.shape, generator=generator, dtype=torch.float64)
    return (uniform * limits).long().clamp(max=limits - 1)
