"""Scans put together again from the axial slices that a cohort holds of a series."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from lungsynth.cohort.schema import SeriesRow, slice_id
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.types import LabelVolume

__all__ = ["SliceStack", "read_scan", "read_stacks"]

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
