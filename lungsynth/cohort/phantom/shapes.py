"""Drawing with signed distances on a CT grid: the brushes of the phantom.

Distances are in mm, negative inside; an edge is as soft as a pixel is wide, which stands for the partial volume effect.
Positions are anatomical millimetres (x to the patient's left, y to posterior, z to superior), the origin in the middle
of the thorax. A smooth random warp between the grid and anatomy makes every body a little irregular.
"""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Canvas", "Point", "ellipsoid_mm", "smooth_field", "smooth_max", "smooth_min", "superellipse_mm"]

Point = tuple[float, float, float]

_BOX_MARGIN_MM = 14.0  # a warp moves nothing farther than this


def superellipse_mm(dx: np.ndarray, dy: np.ndarray, *, half_x_mm: np.ndarray | float, half_y_mm: np.ndarray | float,
                    power: float) -> np.ndarray:  # fmt: skip
    """Distance along the ray from the centre to |dx/half_x|^power + |dy/half_y|^power = 1, (depth, height, width)."""
    level = (np.abs(dx / half_x_mm) ** power + np.abs(dy / half_y_mm) ** power) ** (1 / power)
    return np.sqrt(dx * dx + dy * dy) * (1 - 1 / np.maximum(level, 1e-3))


def ellipsoid_mm(dx: np.ndarray, dy: np.ndarray, dz: np.ndarray, *, half_mm: Point) -> np.ndarray:
    """Distance along the ray from the centre to an ellipsoid with the half axes `half_mm` (x, y, z)."""
    level = np.sqrt((dx / half_mm[0]) ** 2 + (dy / half_mm[1]) ** 2 + (dz / half_mm[2]) ** 2)
    return np.sqrt(dx * dx + dy * dy + dz * dz) * (1 - 1 / np.maximum(level, 1e-3))


def smooth_max(a: np.ndarray, b: np.ndarray, *, width_mm: float) -> np.ndarray:
    """Intersection of two shapes, its edge rounded over `width_mm`."""
    near = np.maximum(width_mm - np.abs(a - b), 0)
    return np.maximum(a, b) + near * near / (4 * width_mm)


def smooth_min(a: np.ndarray, b: np.ndarray, *, width_mm: float) -> np.ndarray:
    """Union of two shapes, its edge rounded over `width_mm`."""
    return -smooth_max(-a, -b, width_mm=width_mm)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], *, knot_px: Point) -> np.ndarray:
    """Random field of unit variance that varies over `knot_px` voxels (slice, row, column), float32 of `shape`."""
    counts = [max(2, round(size / knot)) + 3 for size, knot in zip(shape, knot_px, strict=True)]
    values = rng.standard_normal(counts).astype(np.float32)
    for size, count in zip(shape, counts, strict=True):
        place = np.linspace(1, count - 2, size)[:, None] - np.arange(count)
        weights = np.exp(-0.5 * (place / 0.6) ** 2)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        values = np.tensordot(values, weights.astype(np.float32), axes=(0, 1))  # this axis goes to the back
    return values


@dataclass
class Canvas:
    """A CT in the making.

    Args:
        hu: float32 (depth, height, width), painted upon.
        x_mm, y_mm, z_mm: anatomical position of each voxel, float32, shapes (depth, height, width) twice and
            (depth, 1, 1).
        spacing_mm: (slice, row, column); rows and columns alike.
    """

    hu: np.ndarray
    x_mm: np.ndarray
    y_mm: np.ndarray
    z_mm: np.ndarray
    spacing_mm: Point

    @property
    def pixel_mm(self) -> float:
        """Size of a pixel."""
        return self.spacing_mm[2]

    @classmethod
    def blank(cls, *, shape: tuple[int, int, int], spacing_mm: Point, fill_hu: float) -> "Canvas":
        """An even canvas centred on the origin, without a warp. `spacing_mm` is (slice, row, column)."""
        z, y, x = (
            (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(spacing)
            for size, spacing in zip(shape, spacing_mm, strict=True)
        )
        columns, rows = np.meshgrid(x, y)
        full = np.ones((shape[0], 1, 1), np.float32)
        hu = np.full(shape, fill_hu, np.float32)
        return cls(hu=hu, x_mm=full * columns, y_mm=full * rows, z_mm=z[:, None, None], spacing_mm=spacing_mm)

    def warp(self, rng: np.random.Generator, *, knot_mm: float, amplitude_mm: float, turn_degrees: float) -> None:
        """Turns the anatomy about the body's axis and moves it smoothly, by `amplitude_mm` as standard deviation."""
        shape, angle = self.hu.shape, math.radians(turn_degrees)
        knot_px = (knot_mm / self.spacing_mm[0], knot_mm / self.pixel_mm, knot_mm / self.pixel_mm)
        shift_x, shift_y = (np.clip(smooth_field(rng, shape, knot_px=knot_px), -2, 2) * amplitude_mm for _ in range(2))
        x, y = self.x_mm, self.y_mm
        self.x_mm = (x * math.cos(angle) - y * math.sin(angle) + shift_x).astype(np.float32)
        self.y_mm = (x * math.sin(angle) + y * math.cos(angle) + shift_y).astype(np.float32)

    def cover(self, distance_mm: np.ndarray) -> np.ndarray:
        """How much of each voxel a shape covers, 0..1, from its signed distance."""
        return np.clip(0.5 - distance_mm / self.pixel_mm, 0, 1)

    def paint(self, distance_mm: np.ndarray, hu: np.ndarray | float) -> None:
        """Paints a shape over what is there. `distance_mm` is (depth, height, width)."""
        self.hu += self.cover(distance_mm) * (hu - self.hu)

    def tube(self, start: Point, end: Point, *, radii_mm: tuple[float, float], hu: float,
             within: np.ndarray | None = None) -> None:  # fmt: skip
        """Paints a tapering tube from `start` to `end`; one thinner than a pixel is painted fainter.

        Args:
            start: (x, y, z) mm.
            end: (x, y, z) mm.
            radii_mm: at start and end.
            hu: inside the tube.
            within: 0..1 (depth, height, width), where the tube may be seen; everywhere if None.
        """
        box = self._box(start, end, margin_mm=max(radii_mm) + self.pixel_mm)
        if box is None:
            return
        distance, radius = _tube_mm(self.x_mm[box], self.y_mm[box], self.z_mm[box[0]], (start, end), radii_mm)
        cover = self.cover(distance) * np.minimum(1, 2.4 * radius / self.pixel_mm)
        if within is not None:
            cover *= within[box]
        self.hu[box] += cover * (hu - self.hu[box])

    def _box(self, start: Point, end: Point, *, margin_mm: float) -> tuple[slice, slice, slice] | None:
        _, height, width = self.hu.shape
        planes = np.flatnonzero(
            (self.z_mm[:, 0, 0] > min(start[2], end[2]) - margin_mm)
            & (self.z_mm[:, 0, 0] < max(start[2], end[2]) + margin_mm)
        )
        if not len(planes):
            return None
        margin_px = (margin_mm + _BOX_MARGIN_MM) / self.pixel_mm
        sides = [slice(int(planes[0]), int(planes[-1]) + 1)]
        for axis, size in ((1, height), (0, width)):
            ends = sorted((start[axis] / self.pixel_mm + size / 2, end[axis] / self.pixel_mm + size / 2))
            sides.append(slice(max(0, int(ends[0] - margin_px)), max(0, min(size, int(ends[1] + margin_px) + 1))))
        return sides[0], sides[1], sides[2]


def _tube_mm(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, ends: tuple[Point, Point], radii_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    (ax, ay, az), (bx, by, bz) = ends
    ux, uy, uz = bx - ax, by - ay, bz - az
    length2 = max(ux * ux + uy * uy + uz * uz, 1e-6)
    along = np.clip(((x - ax) * ux + (y - ay) * uy + (z - az) * uz) / length2, 0, 1)
    dx, dy, dz = x - ax - along * ux, y - ay - along * uy, z - az - along * uz
    radius = radii_mm[0] + along * (radii_mm[1] - radii_mm[0])
    return np.sqrt(dx * dx + dy * dy + dz * dz) - radius, radius
