# SPDX-License-Identifier: Apache-2.0
"""Cubes to train the 3D network on: nodules against other dense places.

With a nodule: from the crops, from scans on which it was drawn, and composites of crops in lungs, where the nodule ends
within the cube as it does in a scan (the crops themselves hold only slices that show it). Without: dense places beside
air, away from what anybody drew, in the crops, in those scans, and in the lungs, as `composites.py` has it.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from .. import IGNORED
from ..common.hounsfield import Window
from ..composites import Insert, read_planes
from ..datalist import nodule_files, read_datalist
from ..grid import Frame, cut
from ..losses import LUNG, NODULE
from ..stacks import LoadStacks, Stack
from .dcnn import DEPTH, SIDE_PX

__all__ = ["CubeBank", "CubeSource"]

_DENSE_HU, _AIR_HU = -600, -800
_AROUND_PX, _AIR_SHARE = 17, 0.35  # how much of the surroundings of a dense place is air
_CLEAR_PX = 8  # how far from a nodule a place without one must be
_PLACES = 200  # kept of each slice, at most
_NOISE_HU = ((-30, 30), (0, 40))  # a cube's shift, and the standard deviation of its noise
# Where cubes lie, by group of sources and kind of place, and in which shares.
_WITH_NODULE = {("crops", "nodules"): 3, ("lungs", "lung"): 3, ("scans", "nodules"): 1}
_WITHOUT = {("crops", "clear"): 1, ("lungs", "clear"): 1, ("scans", "clear"): 1}


@dataclass(frozen=True, eq=False)
class CubeSource:
    """Slices with the places (n, 3) (slice, row, column) that cubes can lie around.

    Args:
        stack: the slices.
        nodules: middles of nodules on their slices.
        clear: dense places where nobody drew a nodule.
        lung: places in the lung, for composites; empty where nodules were drawn.
    """

    stack: Stack
    nodules: np.ndarray
    clear: np.ndarray
    lung: np.ndarray

    @classmethod
    def of(cls, stack: Stack, *, rng: np.random.Generator) -> "CubeSource":
        """Finds the places of a stack."""
        slices = [_places_of(hu, label) for hu, label in zip(stack.hu.numpy(), stack.label.numpy(), strict=True)]
        kinds = []
        for kind in zip(*slices, strict=True):
            some = [rng.permutation(places)[:_PLACES] for places in kind]
            kinds.append(np.concatenate([np.insert(places, 0, index, axis=1) for index, places in enumerate(some)]))
        return cls(stack, *kinds)


def _places_of(hu: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 2) of a slice: middles of nodules, dense places without one, lung where there is no nodule at all."""
    nodule = label == NODULE
    regions, count = ndimage.label(nodule)
    middles = np.array(ndimage.center_of_mass(nodule, regions, range(1, count + 1))).reshape(-1, 2)
    near = ndimage.binary_dilation(nodule, iterations=_CLEAR_PX) if count else nodule
    has_lung = (label == LUNG).any()
    airy = ndimage.uniform_filter((hu < _AIR_HU).astype(np.float32), _AROUND_PX) > _AIR_SHARE
    seen = label == LUNG if has_lung else label != IGNORED
    clear = np.argwhere((hu > _DENSE_HU) & airy & seen & ~near)
    lung = np.argwhere(label == LUNG) if has_lung and not count else np.zeros((0, 2))
    return middles, clear, lung


def _runs(samples: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Slices of a series that follow on each other, as their files' names `<series>_<index>` tell."""

    def key(sample: dict[str, Any]) -> tuple[str, int]:
        series, _, index = Path(sample["image"]).name.split(".nii")[0].rpartition("_")
        return series, int(index)

    ordered = sorted(samples, key=key)
    # Within a run the index grows by one with each slice.
    numbered = itertools.groupby(enumerate(ordered), lambda item: (key(item[1])[0], key(item[1])[1] - item[0]))
    return [[sample for _, sample in run] for _, run in numbered]


def _load(samples: Sequence[dict[str, Any]], load: LoadStacks) -> Stack:
    planes = [load(sample)["stacks"][0] for sample in samples]
    hu, label = (torch.cat([getattr(plane, name) for plane in planes]) for name in ("hu", "label"))
    return Stack(hu=hu, label=label, z_mm=np.arange(len(planes), dtype=float), spacing_mm=planes[0].spacing_mm)


class CubeBank:
    """Draws cubes from a split of a COHORT, which is read when the first are asked for.

    Args:
        dataset_dir: the COHORT.
        split: `training`, `validation` or `test`.
        spacing_mm: of the network's grid.
        window_hu: mapped to [-1, 1], clipped outside.
        zoom: cubes are scaled by a factor within [1 / zoom, zoom].
        use_spheres: whether nodules of which only centre and diameter are known count (see `read_datalist`).
        max_slices: of scans, held in memory of either group; where there are more, series are left out.
    """

    def __init__(
        self,
        dataset_dir: str | Path | None,
        *,
        split: str = "training",
        spacing_mm: float = 0.7,
        window_hu: tuple[float, float] = (-1000, 400),
        zoom: float = 1.25,
        use_spheres: bool = False,
        max_slices: int = 4000,
    ) -> None:
        self.dataset_dir = dataset_dir
        self.split = split
        self.spacing_mm = spacing_mm
        self.window = Window(*window_hu)
        self.zoom = zoom
        self.use_spheres = use_spheres
        self.max_slices = max_slices
        self._groups: dict[str, list[CubeSource]] | None = None
        self._inserts: list[np.ndarray] = []

    def groups(self) -> dict[str, list[CubeSource]]:
        """Sources by kind: `crops`, `scans` (nodules known on slices), `lungs` (lungs drawn, nodules not)."""
        if self._groups is None:
            self._groups = self._read()
        return self._groups

    def _read(self) -> dict[str, list[CubeSource]]:
        rng = np.random.default_rng(0)
        load = LoadStacks()
        samples = read_datalist(self.dataset_dir, self.split, use_spheres=self.use_spheres)
        paths = [path for sample in samples if sample["kind"] == "nodule" for path in sample["nodules"]]
        slices = [sample for sample in samples if sample["kind"] == "slice"]
        drawn = self._some(_runs(sample for sample in slices if sample["labelled"][1]))
        lungs = self._some(_runs(sample for sample in slices if not sample["labelled"][1]))
        files = nodule_files(self.dataset_dir, self.split, use_spheres=self.use_spheres)
        self._inserts = [planes for planes in map(read_planes, files) if len(planes)]
        crops = [load({"kind": "nodule", "nodules": [path], "labelled": [0.0, 1.0]})["stacks"][0] for path in paths]
        scans = [_load(run, load) for run in tqdm(drawn + lungs, desc="stacks for cubes", leave=False)]
        sources = [CubeSource.of(stack, rng=rng) for stack in [*crops, *scans]]
        first, second = len(crops), len(crops) + len(drawn)
        # Scans whose nodules are known by their spheres are both: nodules, and lungs to lay others into.
        known = [source for source in sources[second:] if self.use_spheres and len(source.nodules)]
        return {"crops": sources[:first], "scans": sources[first:second] + known, "lungs": sources[second:]}

    def _some(self, runs: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """As many runs, drawn by chance, as `max_slices` allows, in their order; one at least."""
        if sum(map(len, runs)) <= self.max_slices:
            return runs
        order = np.random.default_rng(0).permutation(len(runs))
        count = np.searchsorted(np.cumsum([len(runs[index]) for index in order]), self.max_slices, side="right")
        return [runs[index] for index in sorted(order[: max(int(count), 1)])]

    def draw(self, positives: int, negatives: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cubes float32 (n, 1, DEPTH, SIDE_PX, SIDE_PX) in [-1, 1] and whether each shows a nodule (n,).

        Kinds that the COHORT lacks are left out; of what is there at least one must have places.

        Raises:
            ValueError: when there is nothing to draw from.
        """
        cubes = [self._cube(*choice, rng) for choice in self._choose(_WITH_NODULE, positives, rng)]
        cubes += [self._cube(*choice, rng) for choice in self._choose(_WITHOUT, negatives, rng)]
        hu = torch.stack(cubes)[:, None]
        shift, spread = (
            torch.from_numpy(rng.uniform(low, high, size=(len(hu), 1, 1, 1, 1))) for low, high in _NOISE_HU
        )
        noise = torch.from_numpy(rng.standard_normal(hu.shape, dtype=np.float32))
        unit = self.window.to_unit(hu + shift.float() + spread.float() * noise, clip=True)
        return unit, (torch.arange(len(hu)) < positives).float()

    def _choose(
        self, shares: dict[tuple[str, str], int], count: int, rng: np.random.Generator
    ) -> list[tuple[CubeSource, str]]:
        """Sources, and which of their places: kinds by their shares, within a kind each source equally often."""
        pools = []
        for (group, places), share in shares.items():
            sources = [source for source in self.groups()[group] if len(getattr(source, places))]
            if sources and (places != "lung" or self._inserts):
                pools.append((sources, places, share))
        if not pools:
            raise ValueError(
                f"{self.dataset_dir}: the split '{self.split}' has no {' or '.join(sorted({p for _, p in shares}))} to "
                "cut cubes around. Prepare a cohort with drawn nodules, or give use_spheres True where it has LUNA16's."
            )
        weights = np.array([share for _, _, share in pools]) / sum(share for _, _, share in pools)
        chosen = (pools[index] for index in rng.choice(len(pools), size=count, p=weights))
        return [(sources[rng.integers(len(sources))], places) for sources, places, _ in chosen]

    def _cube(self, source: CubeSource, places: str, rng: np.random.Generator) -> Tensor:
        """HU float32 (DEPTH, SIDE_PX, SIDE_PX) around one of the places, turned, mirrored and scaled."""
        candidates = getattr(source, places)
        middle, row, column = candidates[rng.integers(len(candidates))]
        zoom = self.spacing_mm * math.exp(rng.uniform(-1, 1) * math.log(self.zoom))
        step = (zoom / source.stack.spacing_mm[0], zoom / source.stack.spacing_mm[1])
        shift = rng.uniform(-2, 2, size=2)
        frame = Frame(
            row_px=float(row + shift[0] * step[0]),
            column_px=float(column + shift[1] * step[1]),
            step_px=step,
            angle_rad=rng.uniform(0, 2 * math.pi),
            mirrored=bool(rng.random() < 0.5),
        )
        indices = (int(middle) - DEPTH // 2 + np.arange(DEPTH)).clip(0, len(source.stack.hu) - 1)
        planes = [cut(source.stack.hu[i], source.stack.label[i], frame, size_px=SIDE_PX)[0] for i in indices]
        cube = torch.stack(planes if rng.random() < 0.5 else planes[::-1])
        return self._with_nodule(cube, rng) if places == "lung" else cube

    def _with_nodule(self, cube: Tensor, rng: np.random.Generator) -> Tensor:
        """Blends a nodule into the middle of a cube of lung; at its ends the lung goes on."""
        planes = self._inserts[rng.integers(len(self._inserts))]
        shown = np.flatnonzero((planes[:, 1] >= 0.5).any(axis=(1, 2)))
        if not len(shown):
            return cube
        turn: dict[str, Any] = {
            "angle_rad": rng.uniform(0, 2 * math.pi),
            "scale": math.exp(rng.uniform(-1, 1) * math.log(self.zoom)),
            "mirrored": bool(rng.random() < 0.5),
        }
        start, stride, margin = rng.choice(shown), rng.integers(1, 4), (planes.shape[-1] - SIDE_PX) // 2
        inner = slice(margin, margin + SIDE_PX)
        cube = cube.clone()
        for depth in range(DEPTH):
            index = start + (depth - DEPTH // 2) * stride
            if 0 <= index < len(planes):
                hu, alpha = torch.from_numpy(planes[index].astype(np.float32))
                insert = Insert(alpha, alpha * hu).turned(**turn)
                cube[depth] = insert.premultiplied[inner, inner] + (1 - insert.alpha[inner, inner]) * cube[depth]
        return cube
