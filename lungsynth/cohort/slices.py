"""Axial slices of a scan: their label maps, which are normal, lungs on the generator's grid; and scans made of slices.

The generator's grid covers 358.4 mm, centred on the lungs: 256 pixels of 1.4 mm or 512 of 0.7 mm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, Int16, UInt8
from scipy import ndimage

from lungsynth.cohort.schema import SeriesRow, slice_id
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM
from lungsynth.hounsfield import AIR_HU, Label, to_int16
from lungsynth.types import HuPlane, HuVolume, LabelPlane, LabelVolume, MaskPlane

__all__ = [
    "LUNG_SIZES_PX",
    "SliceStack",
    "far_from",
    "label_volume",
    "lung_area_cm2",
    "lung_on_grid",
    "normal_slices",
    "read_scan",
    "read_stacks",
    "relative_size",
    "slice_on_grid",
]

LUNG_SIZES_PX = (256, 512)

_SMALL_ADULT_CM2 = 400.0  # of a slice through the chest; adults have 400 to 1,000, a child of a year about 130
_BODY_ABOVE_HU = -300  # tissue, with the table and without the lungs

_MaskVolume = Bool[np.ndarray, "depth height width"]
_BySlice = Bool[np.ndarray, " depth"]


def label_volume(*, lung: _MaskVolume, nodule: _MaskVolume, unlabelled: _MaskVolume) -> LabelVolume:
    """Label map: a nodule is nodule wherever it lies, and what nobody agreed on is unlabelled."""
    labels = np.where(lung, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
    labels[unlabelled] = Label.UNLABELLED
    labels[nodule] = Label.NODULE
    return labels


def lung_area_cm2(lung: _MaskVolume, *, spacing_mm: tuple[float, float, float]) -> Float[np.ndarray, " depth"]:
    """Area of lung in each slice."""
    return lung.sum(axis=(1, 2)) * spacing_mm[1] * spacing_mm[2] / 100


def relative_size(hu: HuVolume, lung: _MaskVolume, *, spacing_mm: tuple[float, float, float]) -> float:
    """Size of a patient against a small adult, at most 1: the median cross-section of the body where there is lung.

    Thresholds of area are those of adults; children's follow from this factor.
    """
    planes = np.flatnonzero(lung.any(axis=(1, 2)))
    if len(planes) == 0:
        return 1.0
    body = [int(((hu[index] > _BODY_ABOVE_HU) | lung[index]).sum()) for index in planes]
    area_cm2 = float(np.median(body)) * spacing_mm[1] * spacing_mm[2] / 100
    return min(1.0, area_cm2 / _SMALL_ADULT_CM2)


def normal_slices(
    diseased: _BySlice, area_cm2: Float[np.ndarray, " depth"], *, slice_mm: float, gap_mm: float, min_cm2: float
) -> _BySlice:
    """Slices that show enough lung and lie farther than `gap_mm` from every slice with a nodule."""
    return far_from(diseased, slice_mm=slice_mm, gap_mm=gap_mm) & (area_cm2 >= min_cm2)


def far_from(diseased: _BySlice, *, slice_mm: float, gap_mm: float) -> _BySlice:
    """Slices that lie farther than `gap_mm` from every slice with a nodule."""
    if not diseased.any():
        return np.ones_like(diseased)
    return np.asarray(ndimage.distance_transform_edt(~diseased) * slice_mm > gap_mm)


def lung_on_grid(
    hu: HuPlane, lung: MaskPlane, *, spacing_mm: tuple[float, float], size_px: int
) -> tuple[Int16[np.ndarray, "size size"], UInt8[np.ndarray, "size size"]]:
    """Resamples a slice to the generator's grid, centred on the bounding box of its lungs.

    HU are interpolated linearly at half the grid's spacing and averaged by 2 x 2, so that scans of any pixel size
    arrive with about the same noise; outside the scan is air.

    Args:
        hu: the slice.
        lung: its lungs, not empty.
        spacing_mm: (row, column) of the slice.
        size_px: of the grid, which always covers `LUNG_FIELD_MM`.

    Returns:
        HU and lung mask (1 in lung).
    """
    return slice_on_grid(hu, lung.astype(np.uint8), spacing_mm=spacing_mm, size_px=size_px)


def slice_on_grid(
    hu: HuPlane, label: LabelPlane, *, spacing_mm: tuple[float, float], size_px: int
) -> tuple[Int16[np.ndarray, "size size"], UInt8[np.ndarray, "size size"]]:
    """A slice with its label map on the generator's grid, as `lung_on_grid`; a nodule is part of the lungs.

    Args:
        hu: the slice.
        label: its label map, in which there is lung.
        spacing_mm: (row, column) of the slice.
        size_px: of the grid, which always covers `LUNG_FIELD_MM`.

    Returns:
        HU and label map; what is unlabelled counts as background.

    Raises:
        InputError: when no lung is labelled.
    """
    labelled = np.where(label == Label.UNLABELLED, np.uint8(Label.BACKGROUND), label)
    lung = labelled != Label.BACKGROUND
    if not lung.any():
        raise InputError("A lung can only be centred on the grid when its mask is not empty.")
    used = [np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0)]
    centre = [(float(line[0]) + float(line[-1])) / 2 for line in used]
    fine = _sample(hu.astype(np.float32), centre, spacing_mm, 2 * size_px, order=1, outside=AIR_HU)
    grid_hu = reduce(fine, "(h 2) (w 2) -> h w", "mean")
    grid_label = _sample(labelled, centre, spacing_mm, size_px, order=0, outside=Label.BACKGROUND)
    return to_int16(grid_hu), grid_label.astype(np.uint8)


def _sample(
    image: np.ndarray, centre: list[float], spacing_mm: tuple[float, float], size_px: int, *, order: int, outside: int
) -> np.ndarray:
    scale = LUNG_FIELD_MM / size_px / np.asarray(spacing_mm)
    offset = np.asarray(centre) - scale * (size_px - 1) / 2
    shape = (size_px, size_px)
    return ndimage.affine_transform(image, scale, offset, output_shape=shape, order=order, cval=outside)


_SPACING_TOLERANCE_MM = 0.01  # tables have four decimals, headers float32


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceStack:
    """Consecutive slices of a series.

    Args:
        volume: their HU.
        labels: their label maps, of the shape of `volume.hu`.
        first: index in the series of the first one.
    """

    volume: Volume
    labels: LabelVolume
    first: int

    def __len__(self) -> int:
        return len(self.labels)

    def slice_id(self, place: int) -> str:
        """Id of the slice at a place in the stack."""
        return slice_id(self.volume.series_id, self.first + place)


def read_stacks(cohort: Path, series: SeriesRow, indices: Sequence[int]) -> Iterator[SliceStack]:
    """Reads slices of a series, a stack for each run of consecutive ones.

    Args:
        cohort: its folder.
        series: whose slices.
        indices: of the slices in the series, in any order.

    Raises:
        InputError: when a file is missing or damaged, or the slices differ in their grids.
    """
    ordered = sorted(indices)
    for _, run in groupby(enumerate(ordered), key=lambda item: item[1] - item[0]):
        yield _read(cohort, series, [index for _, index in run])


def read_scan(cohort: Path, series: SeriesRow, indices: Sequence[int]) -> SliceStack:
    """Reads slices of a series as one stack; a slice that was not written has the HU of the one before, unlabelled.

    Args:
        cohort: its folder.
        series: whose slices.
        indices: of the slices in the series, in any order; at least one.

    Raises:
        InputError: when a file is missing or damaged, or the slices differ in their grids.
    """
    stack = _read(cohort, series, sorted(indices))
    written = np.sort(np.asarray(indices)) - stack.first
    places = np.searchsorted(written, np.arange(written[-1] + 1), side="right") - 1  # of the slice at or before each
    labels = stack.labels[places]
    labels[np.setdiff1d(np.arange(len(labels)), written)] = Label.UNLABELLED
    volume = stack.volume
    filled = Volume(
        hu=volume.hu[places],
        affine=volume.affine,
        series_id=volume.series_id,
        patient_id=volume.patient_id,
        patient_known=volume.patient_known,
    )
    return SliceStack(volume=filled, labels=labels, first=stack.first)


def _read(cohort: Path, series: SeriesRow, indices: Sequence[int]) -> SliceStack:
    names = [f"{slice_id(series.series_id, index)}.nii.gz" for index in indices]
    planes = [read_plane(cohort / "slices" / name) for name in names]
    labels = [read_plane(cohort / "labels" / name)[0] for name in names]
    shapes = {plane.shape for plane in [*(hu for hu, _ in planes), *labels]}
    if len(shapes) > 1:
        raise InputError(
            f"{cohort / 'slices'}: slices and label maps of {series.series_id} differ in size: {sorted(shapes)}. "
            "Prepare the cohort again."
        )
    volume = Volume(
        hu=np.stack([hu for hu, _ in planes]),
        affine=planes[0][1],
        series_id=series.series_id,
        patient_id=series.patient_id,
        patient_known=series.patient_known,
    )
    wanted = series.spacing_slice_mm or 0.0
    if abs(volume.spacing_mm[0] - wanted) > _SPACING_TOLERANCE_MM:
        raise InputError(
            f"{cohort / 'slices'}: the slices of {series.series_id} say a spacing of {volume.spacing_mm[0]:g} mm, "
            f"series.csv says {wanted:g} mm. Prepare the cohort again."
        )
    return SliceStack(volume=volume, labels=np.stack(labels), first=indices[0])
