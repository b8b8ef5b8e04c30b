"""A procedural chest CT with known lungs and nodules: seeded, small, and good enough to be taken for a schematic scan.

It stands in for patients in tests and in the tour: every reader, mask and label can be checked against what was drawn.
The grid is `FIELD_MM` wide and deep, so a phantom of 256 pixels has the 1.4 mm of a generated lung.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from lungsynth.cohort.phantom_anatomy import Thorax, paint_thorax
from lungsynth.cohort.phantom_shapes import Canvas
from lungsynth.ct.volume import Volume, axial_affine, voxel_to_lps
from lungsynth.errors import InputError
from lungsynth.hounsfield import AIR_HU, to_int16
from lungsynth.types import LabelVolume

__all__ = ["FIELD_MM", "NoduleSpec", "PhantomNodule", "PhantomPatient", "draw_patient"]

FIELD_MM = 358.4
_TEXTURES = ("solid", "part_solid", "ground_glass")
_TEXTURE_SHARES = (0.6, 0.22, 0.18)
_CORE_SHARE = 0.5  # radius of a part-solid nodule's core over its own
_TRIES = 4000

Texture = Literal["solid", "part_solid", "ground_glass"]


@dataclass(frozen=True, kw_only=True)
class NoduleSpec:
    """A nodule to draw.

    Args:
        texture_class: `solid`, `part_solid` or `ground_glass`.
        diameter_mm: 5 to 40; what comes out is a little off, as the mask has whole voxels.
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


@dataclass(frozen=True, kw_only=True)
class PhantomNodule:
    """A nodule as drawn.

    Args:
        mask: uint8 (depth, height, width), 1 in the nodule.
        diameter_mm: of the sphere of the mask's volume.
        texture_class: `solid`, `part_solid` or `ground_glass`.
        centre_lps_mm: (x, y, z), centroid of the mask.
        juxtapleural: whether it touches the pleura.
    """

    mask: LabelVolume
    diameter_mm: float
    texture_class: Texture
    centre_lps_mm: tuple[float, float, float]
    juxtapleural: bool


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """A patient as drawn.

    Args:
        volume: the CT.
        lung_mask: uint8, 1 in lung; vessels and nodules within the lungs are lung.
        nodules: never overlapping.
        seed: from which identifiers are derived.
    """

    volume: Volume
    lung_mask: LabelVolume
    nodules: tuple[PhantomNodule, ...]
    seed: int

    @property
    def nodule_mask(self) -> LabelVolume:
        """uint8, 1 in any nodule."""
        mask = np.zeros_like(self.lung_mask)
        for nodule in self.nodules:
            mask |= nodule.mask
        return mask


def draw_patient(
    seed: int, *, size_px: int = 128, slices: int = 40, slice_spacing_mm: float = 5.0,
    nodules: Sequence[NoduleSpec] | None = None,
) -> PhantomPatient:  # fmt: skip
    """Draws a patient; the same arguments give the same bytes.

    Anatomy and noise depend on the seed and the grid alone, not on the nodules asked for.

    Args:
        seed: of everything that is random; also makes the identifiers.
        size_px: rows and columns, `FIELD_MM` in all.
        slices: axial slices, around the middle of the lungs, which are about 230 mm high.
        slice_spacing_mm: between slices.
        nodules: what to draw; one to three of random kinds if None.

    Raises:
        InputError: when the grid is too small, or the nodules find no room in the lungs.
    """
    if size_px < 32 or slices < 3 or not 0.5 <= slice_spacing_mm <= 20:
        raise InputError(
            f"A phantom needs size_px >= 32, slices >= 3 and slice_spacing_mm of 0.5 to 20, got {size_px}, {slices} "
            f"and {slice_spacing_mm:g}."
        )
    anatomy_rng, nodule_rng, noise_rng = (np.random.default_rng([seed, stage]) for stage in range(3))
    shape, pixel_mm = (slices, size_px, size_px), FIELD_MM / size_px
    spacing_mm = (slice_spacing_mm, pixel_mm, pixel_mm)
    canvas = Canvas.blank(shape=shape, spacing_mm=spacing_mm, fill_hu=AIR_HU)
    thorax = Thorax.draw(anatomy_rng)
    canvas.warp(anatomy_rng, knot_mm=45.0, amplitude_mm=3.0, turn_degrees=thorax.turn_degrees)
    lung_mm = paint_thorax(canvas, thorax, anatomy_rng)
    origin_mm = np.round([-FIELD_MM / 2, -FIELD_MM / 2, -1.3 * slices * slice_spacing_mm], 1)
    origin_mm += np.round(anatomy_rng.uniform(-20, 20, 3), 1)
    affine = axial_affine(spacing_mm=spacing_mm, origin_lps_mm=(origin_mm[0], origin_mm[1], origin_mm[2]))
    specs = _draw_specs(nodule_rng, slices * slice_spacing_mm) if nodules is None else nodules
    lung = lung_mm < 0
    masks = _paint_nodules(canvas, lung, specs, nodule_rng)
    for mask in masks:
        lung |= mask
    hu = to_int16(_scan(canvas, noise_rng))
    name = f"PHANTOM-{seed:04d}"
    volume = Volume(hu=hu, affine=affine, series_id=name, patient_id=name, modality_info={"Manufacturer": "lungsynth"})
    found = tuple(_measure(mask, spec, affine, spacing_mm) for mask, spec in zip(masks, specs, strict=True))
    return PhantomPatient(volume=volume, lung_mask=lung.astype(np.uint8), nodules=found, seed=seed)


def _draw_specs(rng: np.random.Generator, height_mm: float) -> list[NoduleSpec]:
    largest_mm = float(np.clip(height_mm / 3, 8, 26))
    return [
        NoduleSpec(
            texture_class=_TEXTURES[rng.choice(3, p=_TEXTURE_SHARES)],
            diameter_mm=float(rng.uniform(7.5, largest_mm)),
            juxtapleural=bool(rng.random() < 0.35),
        )
        for _ in range(int(rng.integers(1, 4)))
    ]


def _paint_nodules(
    canvas: Canvas, lung: np.ndarray, specs: Sequence[NoduleSpec], rng: np.random.Generator
) -> list[np.ndarray]:
    """Finds each nodule a place, paints it, and returns the masks, bool (depth, height, width)."""
    spacing_mm = (_slice_mm(canvas), canvas.pixel_mm, canvas.pixel_mm)
    depth_mm = ndimage.distance_transform_edt(lung, sampling=spacing_mm)
    free = np.ones_like(lung)
    masks: list[np.ndarray] = []
    for spec in specs:
        mask, distance = _place(canvas, (lung, depth_mm, free), spec, rng)
        free &= ~ndimage.binary_dilation(mask, iterations=3)
        _paint_texture(canvas, distance, spec, rng)
        masks.append(mask)
    return masks


def _slice_mm(canvas: Canvas) -> float:
    return float(canvas.z_mm[1, 0, 0] - canvas.z_mm[0, 0, 0])


def _place(
    canvas: Canvas, room: tuple[np.ndarray, np.ndarray, np.ndarray], spec: NoduleSpec, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and signed distance of a nodule that keeps to its spec; `room` is lung, depth in it (mm) and free space."""
    lung, depth_mm, free = room
    radius = spec.diameter_mm / 2
    far_from_hilum = (np.abs(canvas.x_mm) > 50) | (np.abs(canvas.z_mm) > 45)
    inside_slab = np.abs(canvas.z_mm) < np.abs(canvas.z_mm).max() - radius + _slice_mm(canvas)
    if spec.juxtapleural:  # the costal pleura, where the lung is left sideways or backwards
        suitable = (depth_mm > 0.3 * radius) & (depth_mm < 0.75 * radius + canvas.pixel_mm) & (np.abs(canvas.x_mm) > 70)
    else:
        suitable = depth_mm > 1.25 * radius + canvas.pixel_mm
    candidates = np.argwhere(suitable & lung & free & inside_slab & far_from_hilum)
    for _ in range(min(_TRIES, 4 * len(candidates))):
        centre = candidates[rng.integers(len(candidates))]
        distance = _lumpy_ball_mm(canvas, centre, radius, rng)
        mask = _whole(distance < 0)
        mask &= lung | ndimage.binary_closing(mask & lung, _CROSS)
        touches = bool((mask & (depth_mm <= 1.5 * canvas.pixel_mm)).any() or (mask & ~lung).any())
        if mask.any() and free[mask].all() and touches == spec.juxtapleural and _is_hearty(mask, distance):
            mask = _whole(mask)
            return mask, np.where(mask, distance, np.maximum(distance, canvas.pixel_mm / 4))
    raise InputError(
        f"No room in this phantom's lungs for a {spec.texture_class} nodule of {spec.diameter_mm:g} mm beside the others; "
        f"ask for fewer or smaller nodules, or for more slices."
    )


_CROSS = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])[:, None, None]


def _whole(mask: np.ndarray) -> np.ndarray:
    """The mask without notches and holes in its slices: what a reader's contour along its outer side encloses."""
    padded = np.pad(mask, 2)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(padded, _CROSS), _CROSS)
    return closed[2:-2, 2:-2, 2:-2]


def _is_hearty(mask: np.ndarray, distance: np.ndarray) -> bool:
    """One piece in 3D and in each slice, holding at least half of its ball."""
    if 2 * mask.sum() < (distance < 0).sum():
        return False
    flat = ndimage.generate_binary_structure(2, 1)
    return ndimage.label(mask)[1] == 1 and all(ndimage.label(plane, flat)[1] <= 1 for plane in mask)


def _lumpy_ball_mm(canvas: Canvas, centre: np.ndarray, radius_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Signed distance to a ball with a few bumps, about as large as a ball of `radius_mm`."""
    spacing = np.array([_slice_mm(canvas), canvas.pixel_mm, canvas.pixel_mm])
    middle = centre + rng.uniform(-0.5, 0.5, 3)
    steps = [((np.arange(n) - c) * s).astype(np.float32) for n, c, s in zip(canvas.hu.shape, middle, spacing, strict=True)]
    dz, dy, dx = steps[0][:, None, None], steps[1][None, :, None], steps[2][None, None, :]
    away = np.sqrt(dx * dx + dy * dy + dz * dz) + 1e-3
    bumps = np.zeros_like(away)
    near = np.nonzero(away < 2 * radius_mm)
    for direction in rng.standard_normal((4, 3)):
        direction = direction / np.linalg.norm(direction)
        along = (dx * direction[0] + dy * direction[1] + dz * direction[2])[near] / away[near]
        bumps[near] += rng.uniform(-0.14, 0.2) * np.exp(-(1 - along) / 0.3)
    return away - radius_mm * (1 + bumps)


def _paint_texture(canvas: Canvas, distance: np.ndarray, spec: NoduleSpec, rng: np.random.Generator) -> None:
    """Vessels show through ground glass; a part-solid nodule has a solid core within it."""
    cover = canvas.cover(distance)
    solid_hu, glass_hu = rng.uniform(20, 60), rng.uniform(-600, -450)
    if spec.texture_class == "solid":
        canvas.hu += cover * (solid_hu - canvas.hu)
        return
    veil = np.maximum(canvas.hu, glass_hu)
    canvas.hu += cover * (np.where(distance < 0, veil, glass_hu) - canvas.hu)
    if spec.texture_class == "part_solid":
        core = distance + (1 - _CORE_SHARE) * spec.diameter_mm / 2
        canvas.hu += canvas.cover(core) * (solid_hu - canvas.hu)


def _scan(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of it: a point spread function and correlated noise of 20 to 40 HU."""
    seen = ndimage.gaussian_filter(canvas.hu, (0, 0.45, 0.45))
    noise = ndimage.gaussian_filter(rng.standard_normal(seen.shape, dtype=np.float32), (0, 0.6, 0.6))
    return seen + noise * (rng.uniform(20, 40) / noise.std())


def _measure(
    mask: np.ndarray, spec: NoduleSpec, affine: np.ndarray, spacing_mm: tuple[float, float, float]
) -> PhantomNodule:
    volume_mm3 = float(mask.sum()) * float(np.prod(spacing_mm))
    centre = voxel_to_lps(affine, np.argwhere(mask).mean(axis=0))
    return PhantomNodule(
        mask=mask.astype(np.uint8), diameter_mm=(6 * volume_mm3 / np.pi) ** (1 / 3), texture_class=spec.texture_class,
        centre_lps_mm=(float(centre[0]), float(centre[1]), float(centre[2])), juxtapleural=spec.juxtapleural,
    )  # fmt: skip
