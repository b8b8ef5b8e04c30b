"""The phantom's nodules: lumpy balls of three textures that find their own place in the lungs.

Masks are whole: one piece without holes in each slice, so that a reader's contour along their edge gives them back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from lungsynth.cohort.phantom.shapes import Canvas
from lungsynth.errors import InputError

__all__ = ["NoduleSpec", "Texture", "draw_specs", "paint_nodules"]

Texture = Literal["solid", "part_solid", "ground_glass"]

_TEXTURES: tuple[Texture, ...] = ("solid", "part_solid", "ground_glass")
_TEXTURE_SHARES = (0.6, 0.22, 0.18)
_CORE_SHARE = 0.6  # radius of a part-solid nodule's core over its own
_TRIES = 600
_CROSS = ndimage.generate_binary_structure(2, 1)
_FLAT_CROSS = _CROSS[None]


@dataclass(frozen=True, kw_only=True)
class NoduleSpec:
    """A nodule to draw.

    Args:
        texture_class: `solid`, `part_solid` or `ground_glass`.
        diameter_mm: 5 to 40; what comes out is a little off, as its surface is lumpy and its mask has whole voxels.
        juxtapleural: whether it sits on the pleura.

    Raises:
        InputError: when the texture is unknown or the diameter out of range.
    """

    texture_class: Texture = "solid"
    diameter_mm: float = 14.0
    juxtapleural: bool = False

    def __post_init__(self) -> None:
        if self.texture_class not in _TEXTURES or not 5 <= self.diameter_mm <= 40:
            raise InputError(
                f"A phantom nodule needs a texture of {', '.join(_TEXTURES)} and a diameter of 5 to 40 mm, got "
                f"{self.texture_class!r} and {self.diameter_mm:g} mm."
            )


@dataclass(frozen=True)
class _Room:
    """Where nodules may go, all (depth, height, width): lung, its rim, depth below the pleura, what is free."""

    lung: np.ndarray
    rim: np.ndarray
    flat_rim: np.ndarray  # within a slice, where a reader sees the pleura
    depth_mm: np.ndarray
    free: np.ndarray


def draw_specs(rng: np.random.Generator, *, height_mm: float) -> list[NoduleSpec]:
    """One to three nodules of random kind, mostly solid as in life, that fit into a slab of `height_mm`."""
    largest_mm = float(np.clip(height_mm / 3, 8, 26))
    return [
        NoduleSpec(
            texture_class=_TEXTURES[rng.choice(3, p=_TEXTURE_SHARES)],
            diameter_mm=float(rng.uniform(7.5, largest_mm)),
            juxtapleural=bool(rng.random() < 0.35),
        )
        for _ in range(int(rng.integers(1, 4)))
    ]


def paint_nodules(
    canvas: Canvas, lung: np.ndarray, specs: Sequence[NoduleSpec], rng: np.random.Generator
) -> list[np.ndarray]:
    """Finds each nodule a place, paints it, and returns the masks in the order of `specs`.

    Args:
        canvas: with the thorax painted.
        lung: bool (depth, height, width).
        specs: what to draw.
        rng: for places and shapes.

    Raises:
        InputError: when a nodule finds no room.
    """
    rim, flat_rim = (
        lung & ~ndimage.binary_erosion(lung, cross, border_value=1)
        for cross in (ndimage.generate_binary_structure(3, 1), _FLAT_CROSS)
    )
    depth_mm = ndimage.distance_transform_edt(lung, sampling=canvas.spacing_mm)
    room = _Room(lung=lung, rim=rim, flat_rim=flat_rim, depth_mm=depth_mm, free=np.ones_like(lung))
    masks = []
    for spec in specs:
        box, mask, distance_mm = _find_place(canvas, room, spec, rng)
        _paint_texture(canvas, box, distance_mm, spec, rng)
        full = np.zeros_like(lung)
        full[box] = mask
        room.free[ndimage.binary_dilation(full, iterations=3)] = False
        masks.append(full)
    return masks


def _find_place(
    canvas: Canvas, room: _Room, spec: NoduleSpec, rng: np.random.Generator
) -> tuple[tuple[slice, slice, slice], np.ndarray, np.ndarray]:
    """Box, mask in it and signed distance (mm) in it of a nodule that keeps to its spec."""
    radius_mm = spec.diameter_mm / 2
    candidates = np.argwhere(_suitable(canvas, room, spec))
    for _ in range(min(_TRIES, 4 * len(candidates))):
        centre = candidates[rng.integers(len(candidates))]
        box, distance_mm = _lumpy_ball(canvas, centre, radius_mm, rng)
        ball = distance_mm < 0
        mask = ndimage.binary_fill_holes(ball & room.lung[box], _FLAT_CROSS)
        rim = room.flat_rim if spec.juxtapleural else room.rim
        touches = bool((mask & (rim[box] | ~room.lung[box])).any())
        enough = mask.sum() > (0.5 if spec.juxtapleural else 0.99) * ball.sum()
        if enough and touches == spec.juxtapleural and room.free[box][mask].all() and _in_one_piece(mask):
            return box, mask, np.where(mask, distance_mm, np.maximum(distance_mm, canvas.pixel_mm / 2))
    raise InputError(
        f"No room in this phantom's lungs for a {spec.texture_class} nodule of {spec.diameter_mm:g} mm beside the "
        f"others; ask for fewer or smaller nodules, or for more slices."
    )


def _suitable(canvas: Canvas, room: _Room, spec: NoduleSpec) -> np.ndarray:
    """Where a nodule's centre may lie: off the hila, its ball within the slices."""
    radius_mm, half_mm = spec.diameter_mm / 2, float(np.abs(canvas.z_mm).max())
    peripheral = (np.abs(canvas.x_mm) > 52 + radius_mm) | (np.abs(canvas.z_mm) > 50 + radius_mm)
    suitable = room.free & room.lung & peripheral & (np.abs(canvas.z_mm) <= max(half_mm - radius_mm, 0))
    if spec.juxtapleural:  # the costal pleura, not the one at the heart
        on_ribs = (np.abs(canvas.x_mm) > 72) | (canvas.y_mm > 45)
        return suitable & on_ribs & (room.depth_mm < 0.7 * radius_mm + canvas.pixel_mm)
    return suitable & (room.depth_mm > 1.2 * radius_mm + canvas.pixel_mm)


def _in_one_piece(mask: np.ndarray) -> bool:
    planes = mask.any(axis=(1, 2))
    single = all(ndimage.label(plane, _CROSS)[1] == 1 for plane in mask[planes])
    return single and ndimage.label(planes)[1] == 1


def _lumpy_ball(
    canvas: Canvas, centre: np.ndarray, radius_mm: float, rng: np.random.Generator
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Signed distance (mm) to a ball with a few bumps, in the box around it."""
    middle = centre + rng.uniform(-0.5, 0.5, 3)
    sides, steps = [], []
    for size, at, spacing in zip(canvas.hu.shape, middle, canvas.spacing_mm, strict=True):
        reach = 1.6 * radius_mm / spacing + 2
        side = slice(max(0, int(at - reach)), min(size, int(at + reach) + 2))
        sides.append(side)
        steps.append((np.arange(side.start, side.stop) - at) * spacing)
    dz, dy, dx = np.meshgrid(*steps, indexing="ij")
    away = np.sqrt(dx * dx + dy * dy + dz * dz) + 1e-3
    bumps = np.zeros_like(away)
    for direction in rng.standard_normal((4, 3)):
        x, y, z = direction / np.linalg.norm(direction)
        bumps += rng.uniform(-0.15, 0.2) * np.exp((dx * x + dy * y + dz * z) / away / 0.3 - 1 / 0.3)
    return (sides[0], sides[1], sides[2]), away - radius_mm * (1 + bumps)


def _paint_texture(
    canvas: Canvas, box: tuple[slice, slice, slice], distance_mm: np.ndarray, spec: NoduleSpec, rng: np.random.Generator
) -> None:
    """Vessels show through ground glass; a part-solid nodule has a solid core within its glass."""
    solid_hu, glass_hu = rng.uniform(20, 60), rng.uniform(-600, -450)
    below = canvas.hu[box]
    cover = canvas.cover(distance_mm)
    if spec.texture_class == "solid":
        canvas.hu[box] = below + cover * (solid_hu - below)
        return
    painted = below + cover * (np.maximum(below, glass_hu) - below)
    if spec.texture_class == "part_solid":
        core = canvas.cover(distance_mm + (1 - _CORE_SHARE) * spec.diameter_mm / 2)
        painted = painted + core * (solid_hu - painted)
    canvas.hu[box] = painted
