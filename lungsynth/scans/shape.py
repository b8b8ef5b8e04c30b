"""The lungs of a scan as placing sees them: distances to the pleura, vessels, airways and where nodules occur.

All is kept on blocks of voxels of about 2 mm, which is what places are decided by; voxels are (slice, row, column),
with the centre of the first one at (0, 0, 0). The ends of the scan are an edge as the pleura is.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy import ndimage

from lungsynth.cohort.lung_mask import block_mean
from lungsynth.errors import InputError
from lungsynth.hounsfield import DENSE_HU
from lungsynth.placement.lung_shape import AIRWAY_HU, LungShape, filled_lung
from lungsynth.placement.presence import lidc_presence
from lungsynth.types import HuVolume

__all__ = ["ScanShape"]

_BLOCK_MM = 2.0
_SHAPES = 8  # slices whose lungs the density of nodules is laid on; more cost time and change little
_LEAST_CM3 = 100.0  # of lung: with less nothing was found, or a slice or two of a scan

Blocks = Bool[np.ndarray, "d h w"]
LungVolume = Bool[np.ndarray, "depth height width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanShape:
    """Lungs of a scan, in blocks of voxels; made by `of`.

    Args:
        spacing_mm: (slice, row, column) of the voxels.
        origin: first voxel of the first block.
        factors: voxels of a block along each axis.
        distance_mm: of the blocks' centres to the edge of the lung, 0 outside.
        vessel: what is dense in the lung.
        airway: what is as dark as the lumen of an airway.
        taken: blocks with nodules that are there already.
    """

    spacing_mm: tuple[float, float, float]
    origin: tuple[int, int, int]
    factors: tuple[int, int, int]
    distance_mm: Float32[np.ndarray, "d h w"]
    vessel: Blocks
    airway: Blocks
    taken: Blocks

    @classmethod
    def of(
        cls,
        hu: HuVolume,
        lung: LungVolume,
        *,
        spacing_mm: tuple[float, float, float],
        nodules: LungVolume | None = None,
        name: str = "The scan",
    ) -> "ScanShape":
        """Measures a scan.

        Args:
            hu: the scan.
            lung: true in lung; holes of vessels may be open.
            spacing_mm: (slice, row, column).
            nodules: true in nodules that are there already.
            name: of the scan, for the message.

        Raises:
            InputError: when there is hardly any lung.
        """
        voxel_cm3 = float(np.prod(spacing_mm)) / 1000
        if (cm3 := float(np.count_nonzero(lung)) * voxel_cm3) < _LEAST_CM3:
            raise InputError(
                f"{name}: nodules are inserted into lungs of {_LEAST_CM3:g} cm3 and more, found {cm3:.0f}. Give a "
                "whole chest CT, or a lung mask beside it."
            )
        box = _bounding_box(lung)
        factors = tuple(max(1, round(_BLOCK_MM / mm)) for mm in spacing_mm)
        block_mm = tuple(mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
        inside = np.stack([_filled(plane, block_mm) for plane in _middles(lung[box], factors)])
        level = block_mean(hu[box], factors)
        taken = (
            np.zeros_like(inside) if nodules is None else block_mean(nodules[box].astype(np.int16) * 100, factors) > 0
        )
        return cls(
            spacing_mm=spacing_mm,
            origin=(box[0].start, box[1].start, box[2].start),
            factors=(factors[0], factors[1], factors[2]),
            distance_mm=_distance(inside, block_mm),
            vessel=inside & (level > DENSE_HU),
            airway=inside & (level < AIRWAY_HU),
            taken=inside & taken,
        )

    @property
    def block_mm(self) -> tuple[float, float, float]:
        """Size of a block."""
        depth, height, width = (mm * factor for mm, factor in zip(self.spacing_mm, self.factors, strict=True))
        return depth, height, width

    @cached_property
    def blocks(self) -> Int64[np.ndarray, "n 3"]:
        """The blocks in lung, in a fixed order."""
        return np.argwhere(self.distance_mm > 0)

    @cached_property
    def block_distance_mm(self) -> Float32[np.ndarray, " n"]:
        """Distances of `blocks` to the edge."""
        return self.distance_mm[self.distance_mm > 0]

    @cached_property
    def presence(self) -> Float64[np.ndarray, " n"]:
        """How likely each of `blocks` has a nodule: LIDC-IDRI's density, laid on the lungs of each slice."""
        inside = self.distance_mm > 0
        areas = inside.sum(axis=(1, 2))
        large = np.flatnonzero(areas >= np.median(areas[areas > 0]))
        chosen = large[np.unique(np.linspace(0, len(large) - 1, min(_SHAPES, len(large))).astype(int))]
        spacing_mm = self.block_mm[1:]
        prior = lidc_presence([LungShape.from_mask(inside[k], spacing_mm=spacing_mm) for k in chosen])
        density = np.zeros(len(self.blocks))
        ends = np.searchsorted(self.blocks[:, 0], np.arange(len(inside) + 1))  # of each slice's blocks
        for k in np.flatnonzero(areas):
            own = slice(int(ends[k]), int(ends[k + 1]))
            rows, columns = self.blocks[own, 1], self.blocks[own, 2]
            v, u = (_within(at, np.flatnonzero(inside[k].any(axis=axis))) for at, axis in ((rows, 1), (columns, 0)))
            density[own] = prior.density(u, v)
        return density

    def to_voxels(self, blocks: np.ndarray) -> np.ndarray:
        """Voxel positions (..., 3) of places (..., 3) in blocks, both with the first centre at 0."""
        factors = np.asarray(self.factors)
        return np.asarray(self.origin) + (blocks + 0.5) * factors - 0.5

    def window(self, block: np.ndarray, radius_mm: float) -> tuple[tuple[slice, ...], Blocks]:
        """The blocks of a ball: the box around it, and which of the box's blocks lie in it."""
        reach = [int(radius_mm / mm) + 1 for mm in self.block_mm]
        box = tuple(
            slice(max(0, int(at) - r), min(size, int(at) + r + 1))
            for at, r, size in zip(block, reach, self.distance_mm.shape, strict=True)
        )
        steps = [
            (np.arange(part.start, part.stop) - at) * mm for part, at, mm in zip(box, block, self.block_mm, strict=True)
        ]
        z, y, x = np.meshgrid(*steps, indexing="ij", sparse=True)
        return box, z**2 + y**2 + x**2 <= radius_mm**2


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    seen: np.ndarray = np.logical_or.reduce(mask, axis=0)
    depth: np.ndarray = np.logical_or.reduce(mask, axis=(1, 2))
    return _extent(depth), _extent(np.any(seen, axis=1)), _extent(np.any(seen, axis=0))


def _extent(used: np.ndarray) -> slice:
    at = np.flatnonzero(used)
    return slice(int(at[0]), int(at[-1]) + 1)


def _middles(mask: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """The middle voxel of each block; of blocks that reach beyond the end, the last one."""
    index = [
        np.minimum(np.arange(-(-size // step)) * step + step // 2, size - 1)
        for size, step in zip(mask.shape, factors, strict=True)
    ]
    return mask[np.ix_(*index)]


def _filled(plane: np.ndarray, block_mm: tuple[float, ...]) -> np.ndarray:
    """A slice of lung with the holes of its vessels; its border is background."""
    if not plane.any():
        return plane
    return filled_lung(np.pad(plane, 1), (block_mm[1], block_mm[2]))[1:-1, 1:-1]


def _distance(inside: np.ndarray, block_mm: tuple[float, ...]) -> np.ndarray:
    distance = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=block_mm)[1:-1, 1:-1, 1:-1]
    # The edge lies half a block before the first centre outside, at most half the largest one.
    return np.where(inside, np.maximum(distance - min(block_mm) / 2, 0.01), 0).astype(np.float32)


def _within(at: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Positions in the extent of the lungs, 0 to 1."""
    return (at + 0.5 - used[0]) / (used[-1] + 1 - used[0])
