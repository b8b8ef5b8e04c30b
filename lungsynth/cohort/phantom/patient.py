"""A procedural chest CT with known lungs and nodules: seeded, small, and good enough to be taken for a schematic scan.

It stands in for patients in tests and in the tour: every reader, mask and label can be checked against what was drawn.
The grid is `LUNG_FIELD_MM` wide and deep, so a phantom of 256 pixels has the 1.4 mm of a generated lung.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lungsynth.cohort.phantom.anatomy import Thorax, paint_table, paint_thorax
from lungsynth.cohort.phantom.nodules import NoduleSpec, Texture, draw_specs, paint_nodules
from lungsynth.cohort.phantom.shapes import Canvas
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM, axial_affine, voxel_to_lps
from lungsynth.hounsfield import AIR_HU, to_int16
from lungsynth.types import LabelVolume

__all__ = ["NoduleSpec", "PhantomNodule", "PhantomPatient", "draw_patient"]


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
        lung_mask: uint8, 1 in lung; vessels, bronchi beyond the main ones and nodules within the lungs are lung.
        airway_mask: uint8, 1 in the lumen of trachea and main bronchi, which are not lung.
        nodules: never overlapping.
        seed: from which identifiers are derived.
    """

    volume: Volume
    lung_mask: LabelVolume
    airway_mask: LabelVolume
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
        seed: not negative; of everything that is random, and of the identifiers.
        size_px: rows and columns, `LUNG_FIELD_MM` in all.
        slices: axial slices, around the middle of the lungs, which are about 230 mm high.
        slice_spacing_mm: between slices.
        nodules: what to draw; one to three of random kinds if None.

    Raises:
        InputError: when the grid is too small, or the nodules find no room in the lungs.
    """
    if seed < 0 or size_px < 32 or slices < 3 or not 0.5 <= slice_spacing_mm <= 20:
        raise InputError(
            f"A phantom needs seed >= 0, size_px >= 32, slices >= 3 and slice_spacing_mm of 0.5 to 20, got {seed}, "
            f"{size_px}, {slices} and {slice_spacing_mm:g}."
        )
    anatomy_rng, nodule_rng, noise_rng = (np.random.default_rng([seed, stage]) for stage in range(3))
    canvas = Canvas.blank(
        shape=(slices, size_px, size_px),
        spacing_mm=(slice_spacing_mm, LUNG_FIELD_MM / size_px, LUNG_FIELD_MM / size_px),
        fill_hu=AIR_HU,
    )
    thorax = Thorax.draw(anatomy_rng)
    affine = _random_affine(canvas, anatomy_rng)
    paint_table(canvas, thorax)
    canvas.warp(anatomy_rng, knot_mm=45.0, amplitude_mm=3.0, turn_degrees=thorax.turn_degrees)
    lung, airway = paint_thorax(canvas, thorax, anatomy_rng)
    specs = draw_specs(nodule_rng, height_mm=slices * slice_spacing_mm) if nodules is None else nodules
    masks = paint_nodules(canvas, lung, specs, nodule_rng)
    name = f"PHANTOM-{seed:04d}"
    return PhantomPatient(
        volume=Volume(hu=to_int16(_scan(canvas, noise_rng)), affine=affine, series_id=name, patient_id=name),
        lung_mask=np.logical_or.reduce([lung, *masks]).astype(np.uint8),
        airway_mask=airway.astype(np.uint8),
        nodules=tuple(_measure(mask, spec, canvas, affine) for mask, spec in zip(masks, specs, strict=True)),
        seed=seed,
    )


def _random_affine(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The scanner's origin is anywhere; tenths of a millimetre survive every file format."""
    depth, height, width = canvas.hu.shape
    corner = np.array([-width * canvas.pixel_mm / 2, -height * canvas.pixel_mm / 2, -depth * canvas.spacing_mm[0] - 90])
    x, y, z = (round(float(value), 1) for value in corner + rng.uniform(-20, 20, 3))
    return axial_affine(spacing_mm=canvas.spacing_mm, origin_lps_mm=(x, y, z))


def _scan(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of it: a point spread function and correlated noise of 20 to 40 HU."""
    seen = ndimage.gaussian_filter(canvas.hu, (0, 0.45, 0.45))
    noise = ndimage.gaussian_filter(rng.standard_normal(seen.shape, dtype=np.float32), (0, 0.6, 0.6))
    return seen + noise * (rng.uniform(20, 40) / noise.std())


def _measure(mask: np.ndarray, spec: NoduleSpec, canvas: Canvas, affine: np.ndarray) -> PhantomNodule:
    volume_mm3 = float(mask.sum()) * float(np.prod(canvas.spacing_mm))
    x, y, z = voxel_to_lps(affine, np.argwhere(mask).mean(axis=0))
    return PhantomNodule(
        mask=mask.astype(np.uint8),
        diameter_mm=(6 * volume_mm3 / np.pi) ** (1 / 3),
        texture_class=spec.texture_class,
        centre_lps_mm=(float(x), float(y), float(z)),
        juxtapleural=spec.juxtapleural,
    )
