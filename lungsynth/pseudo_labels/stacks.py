"""Scans restacked from the slices of a cohort, as far as they follow each other without a gap."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from lungsynth.cohort.records import SeriesRow, SliceRow
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.types import LabelVolume

__all__ = ["SliceStack", "read_stacks", "slice_index"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceStack:
    """Consecutive slices of a series.

    Args:
        volume: their HU.
        labels: their label maps, the shape of `volume.hu`.
        rows: one a slice.
    """

    volume: Volume
    labels: LabelVolume
    rows: tuple[SliceRow, ...]

    @property
    def first(self) -> int:
        """Index in the series of the first slice."""
        return slice_index(self.rows[0])


def slice_index(row: SliceRow) -> int:
    """Index of a slice in its series."""
    return int(row.slice_id.rsplit("_", maxsplit=1)[1])


def read_stacks(cohort: Path, series: SeriesRow, rows: Sequence[SliceRow]) -> Iterator[SliceStack]:
    """Reads the slices of a series, a stack for each run of consecutive ones.

    Args:
        cohort: its folder.
        series: whose slices.
        rows: in any order.

    Raises:
        InputError: when a file is missing or damaged, or the slices differ in their grids.
    """
    ordered = sorted(rows, key=slice_index)
    for _, run in groupby(enumerate(ordered), key=lambda item: slice_index(item[1]) - item[0]):
        yield _read_stack(cohort, series, tuple(row for _, row in run))


def _read_stack(cohort: Path, series: SeriesRow, rows: tuple[SliceRow, ...]) -> SliceStack:
    planes = [read_plane(cohort / "slices" / f"{row.slice_id}.nii.gz") for row in rows]
    labels = [read_plane(cohort / "labels" / f"{row.slice_id}.nii.gz")[0] for row in rows]
    shapes = {plane.shape for plane in [*(hu for hu, _ in planes), *labels]}
    if len(shapes) > 1:
        raise InputError(
            f"{cohort / 'slices'}: slices of {series.series_id} differ in size: {sorted(shapes)}. Prepare it again."
        )
    volume = Volume(
        hu=np.stack([hu for hu, _ in planes]),
        affine=planes[0][1],
        series_id=series.series_id,
        patient_id=series.patient_id,
        patient_known=series.patient_known,
    )
    wanted = series.spacing_slice_mm or 0.0
    if abs(volume.spacing_mm[0] - wanted) > 0.01:
        raise InputError(
            f"{cohort / 'slices'}: the slices of {series.series_id} say a spacing of {volume.spacing_mm[0]:g} mm, "
            f"series.csv says {wanted:g} mm. Prepare the cohort again."
        )
    return SliceStack(volume=volume, labels=np.stack(labels), rows=rows)
