"""A nodule in three dimensions brought to the slices of a scan: its `NoduleCube` on the scan's own anisotropic grid.

The cube is what `compositing.nodule.NodulePatch` is in a slice: alpha, blend weight and weight * HU at 0.7 mm. Each
voxel of the scan is the mean over its pixel and over the thickness of its slice, so that a nodule fades through thick
slices as real ones do, and shows in both of two slices that overlap. In the slices, its edge is blurred by what it
lacks of the scan's, and its fine structure smoothed to that of the scan's noise, by the figures of
`compositing.nodule`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from lungsynth.cohort.patches import NoduleCube
from lungsynth.compositing.fixed_point import (
    POSITION_BITS,
    POSITIONS,
    convolved,
    cos_sin,
    gaussian,
    interpolate,
    mean_over_parts,
    offsets,
)
from lungsynth.compositing.nodule import (
    MARGIN_PX,
    MAX_PARTS,
    MAX_SMOOTHING_STEPS,
    MIN_WEIGHT,
    WEIGHT_RISE,
    NoduleMatch,
    ResampledNodule,
    resampled_plane,
)
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.scans.places import NodulePlace

__all__ = ["CubePlanes", "ResampledCube", "match_cube", "resample_cube"]

_MAX_SLICE_PARTS = 16  # of a slice's thickness: for slices of up to 11 mm
_MAX_VOXELS = 1 << 25  # of a nodule on a scan's grid; more are pixels of a micro-CT, or a wrong affine

Planes3d = Float32[np.ndarray, "3 depth height width"]  # alpha, weight, weight * HU


@dataclass(frozen=True, eq=False)
class CubePlanes:
    """A nodule at 0.7 mm, cropped to its support.

    Args:
        planes: alpha, weight, and weight * HU.
        anchor: (slice, row, column) of the centroid of alpha >= 0.5; it comes to lie where the nodule is placed.
        reach_mm: from the anchor to the farthest voxel with a weight, along each axis, and one more.
    """

    planes: Planes3d
    anchor: tuple[float, float, float]
    reach_mm: tuple[float, float, float]

    @classmethod
    def of(cls, cube: NoduleCube, *, blur_steps: int = 0, smoothing_steps: int = 0) -> "CubePlanes":
        """The planes of a cube.

        Args:
            cube: HU and alpha.
            blur_steps: standard deviation of a Gaussian that softens the edge in the slices, in quarters of a voxel.
            smoothing_steps: likewise of one that smooths the HU alone, not the edge.
        """
        blur, smoothing = gaussian(blur_steps), gaussian(smoothing_steps)
        in_slice = max(len(blur), len(smoothing)) // 2 + MARGIN_PX
        pad = ((MARGIN_PX, MARGIN_PX), (in_slice, in_slice), (in_slice, in_slice))
        box = ndimage.find_objects((cube.alpha > 0).astype(np.uint8))[0]
        alpha = np.pad(cube.alpha[box].astype(np.float32), pad)
        weight = np.minimum(alpha * np.float32(WEIGHT_RISE), np.float32(1))
        smooth = convolved(np.pad(cube.hu[box].astype(np.float32), pad, mode="edge"), smoothing, axes=(1, 2))
        weighted_hu = convolved(weight * smooth, blur, axes=(1, 2))
        weight = convolved(weight, blur, axes=(1, 2))
        visible = weight >= MIN_WEIGHT
        planes = np.stack([alpha, np.where(visible, weight, 0), np.where(visible, weighted_hu, 0)]).astype(np.float32)
        inside = np.argwhere(alpha >= 0.5)
        centre = [int(at) / len(inside) for at in inside.sum(axis=0)]
        support = np.argwhere(visible | (alpha > 0))
        first, last = support.min(axis=0) - MARGIN_PX, support.max(axis=0) + MARGIN_PX
        cropped = planes[(slice(None), *(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)))]
        # In the slices the nodule is turned, so that its reach there is that of its farthest corner.
        away = np.abs(support - centre)
        in_plane = math.sqrt((away[:, 1:] ** 2).sum(axis=1).max()) + 1
        reach = [(value * PATCH_SPACING_MM) for value in (float(away[:, 0].max()) + 1, in_plane, in_plane)]
        anchor = [at - int(start) for at, start in zip(centre, first, strict=True)]
        return cls(np.ascontiguousarray(cropped), (anchor[0], anchor[1], anchor[2]), (reach[0], reach[1], reach[2]))


@dataclass(frozen=True, eq=False)
class ResampledCube:
    """A nodule on the grid of a scan.

    Args:
        planes: one a slice; all have the fine structure and the density of the nodule's largest one.
        first: slice of the first plane less that of the place, rounded down.
    """

    planes: tuple[ResampledNodule, ...]
    first: int

    @property
    def voxels(self) -> int:
        """Of its mask."""
        return sum(int(plane.nodule.sum()) for plane in self.planes)

    @property
    def fine_hu(self) -> float:
        """See `ResampledNodule`."""
        return self.planes[0].fine_hu


def resample_cube(
    place: NodulePlace, planes: CubePlanes, *, scale: float, spacing_mm: tuple[float, float, float], thickness_mm: float
) -> ResampledCube:
    """Resamples a placed nodule.

    Args:
        place: where (its fraction of a voxel counts), and how it is mirrored and turned.
        planes: what.
        scale: enlarges it.
        spacing_mm: (slice, row, column) of the scan.
        thickness_mm: of its slices.

    Raises:
        InputError: when the voxels are so fine that it would have too many of them.
    """
    fractions = [centre % 1 for centre in place.voxel]
    reach = [mm * scale / spacing + 1 for mm, spacing in zip(planes.reach_mm, spacing_mm, strict=True)]
    reach[0] += thickness_mm / 2 / spacing_mm[0]
    begin = [math.floor(fraction - r) for fraction, r in zip(fractions, reach, strict=True)]
    end = [math.ceil(fraction + r) + 1 for fraction, r in zip(fractions, reach, strict=True)]
    if (voxels := math.prod(b - a for a, b in zip(begin, end, strict=True))) > _MAX_VOXELS:
        raise InputError(
            f"A nodule would have {voxels:,} voxels of {' x '.join(f'{mm:g}' for mm in spacing_mm)} mm, more than "
            f"{_MAX_VOXELS:,}. Mend the scan's affine, in mm, or ask for smaller nodules."
        )
    alpha, weight, weighted_hu = _sample(place, planes, scale, spacing_mm, thickness_mm, begin, end)
    nodule = alpha >= 0.5
    if not nodule.any():  # smaller than a voxel: the one that shows it best
        nodule.flat[np.argmax(alpha)] = True
    shown = np.flatnonzero((weight > 0).any(axis=(1, 2)))
    slices = range(int(shown[0]), int(shown[-1]) + 1)
    cut = [resampled_plane(alpha[k], weight[k], weighted_hu[k], nodule[k], begin=(begin[1], begin[2])) for k in slices]
    middle = max(cut, key=lambda plane: int(plane.nodule.sum()))
    alike = (replace(plane, fine_hu=middle.fine_hu, core_density=middle.core_density) for plane in cut)
    return ResampledCube(tuple(alike), begin[0] + slices.start)


def match_cube(
    place: NodulePlace,
    cube: NoduleCube,
    match: NoduleMatch,
    *,
    scale: float,
    spacing_mm: tuple[float, float, float],
    thickness_mm: float,
) -> ResampledCube:
    """Resamples a placed nodule for a scan of some edge and noise; arguments as in `resample_cube`.

    Args:
        place: where.
        cube: what.
        match: of the scan, at this place.
        scale: enlarges it.
        spacing_mm: (slice, row, column).
        thickness_mm: of the slices.
    """
    for smoothing_steps in range(MAX_SMOOTHING_STEPS + 1):
        planes = CubePlanes.of(cube, blur_steps=match.blur_steps, smoothing_steps=smoothing_steps)
        nodule = resample_cube(place, planes, scale=scale, spacing_mm=spacing_mm, thickness_mm=thickness_mm)
        if nodule.fine_hu <= match.allowed_fine_hu:
            break
    return nodule


def _sample(
    place: NodulePlace,
    planes: CubePlanes,
    scale: float,
    spacing_mm: tuple[float, float, float],
    thickness_mm: float,
    begin: list[int],
    end: list[int],
) -> Planes3d:
    """The cube's planes on the voxels begin .. end, each the mean over its pixel and its slice (partial volume)."""
    step_mm = PATCH_SPACING_MM * scale
    fractions = [centre % 1 for centre in place.voxel]
    in_slice = [min(MAX_PARTS, max(1, round(mm / step_mm))) for mm in spacing_mm[1:]]
    through = min(_MAX_SLICE_PARTS, max(1, round(thickness_mm / step_mm)))
    per_part = [
        mm / step_mm * (1 << POSITION_BITS) / (POSITIONS * n) for mm, n in zip(spacing_mm[1:], in_slice, strict=True)
    ]
    down = offsets(begin[1], end[1], fractions[1], in_slice[0])[:, None]
    left = offsets(begin[2], end[2], fractions[2], in_slice[1])[None, :]
    cos, sin = cos_sin(place.rotation_deg)
    row = down * round(cos * per_part[0]) - left * round(sin * per_part[1])
    column = (-1 if place.flip else 1) * (down * round(sin * per_part[0]) + left * round(cos * per_part[1]))
    # Centres of the parts of each slice's thickness, which may be more or less than the distance of slices.
    slices_mm = (np.arange(begin[0], end[0]) - fractions[0])[:, None] * spacing_mm[0]
    parts_mm = ((np.arange(through) + 0.5) / through - 0.5) * thickness_mm
    above = np.rint((slices_mm + parts_mm).ravel() / step_mm * (1 << POSITION_BITS)).astype(np.int64)
    anchor = [round(at * (1 << POSITION_BITS)) for at in planes.anchor]
    slice_at = (-above if place.mirror else above)[:, None, None] + anchor[0]
    sampled = interpolate(planes.planes, (slice_at, row + anchor[1], column + anchor[2]))
    return mean_over_parts(sampled, (through, *in_slice))
