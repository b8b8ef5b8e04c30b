"""How the slices of a DICOM series lie in the patient: order, spacing, and what makes them no volume.

Positions are LPS millimetres of the centre of a slice's first pixel (ImagePositionPatient). `PixelSpacing` is (row,
column), `ImageOrientationPatient` the direction in which columns count, then that in which rows count.

Two levels of tolerance: scanners round, which is worth a warning; what would move anatomy is refused.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungsynth.errors import InputError
from lungsynth.types import Affine

__all__ = ["SliceFrame", "stack_slices"]

_logger = logging.getLogger(__name__)
_SAME_POSITION_MM = 1e-2  # slices nearer than this are one position (duplicates); rounding of headers is below it
# Relative to the spacing: up to 1 % is rounding, up to 10 % is warned of; a gap of 1.5 spacings lacks a slice.
_GAP_ROUNDING, _GAP_UNEVEN, _GAP_MISSING = 0.01, 0.1, 1.5
_DRIFT_ROUNDING_MM, _DRIFT_PIXELS = 1e-2, 0.5  # of the slices' origins in plane: ignored, and refused from there on
_SAME_ORIENTATION = 1e-3  # difference of direction cosines; real headers round them to about 1e-4
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceFrame:
    """Where one stored slice lies.

    Args:
        path: its file.
        sop_uid: SOPInstanceUID.
        position_lps_mm: centre of the first pixel (3,).
        column_direction: unit vector (3,) along which the column index grows.
        row_direction: unit vector (3,) along which the row index grows.
        spacing_mm: (row, column).
        shape: (rows, columns).
        thickness_mm: what a single slice is taken to span.
    """

    path: Path
    sop_uid: str
    position_lps_mm: np.ndarray
    column_direction: np.ndarray
    row_direction: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float = 1.0

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) across the slice."""
        return np.cross(self.column_direction, self.row_direction)

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_lps_mm @ self.normal)

    def to_lps(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """LPS millimetres (n, 3) of stored pixels (n,), (n,)."""
        across = np.multiply.outer(np.asarray(columns, float) * self.spacing_mm[1], self.column_direction)
        down = np.multiply.outer(np.asarray(rows, float) * self.spacing_mm[0], self.row_direction)
        return self.position_lps_mm + across + down


def stack_slices(frames: Sequence[SliceFrame], *, name: str) -> tuple[list[SliceFrame], Affine]:
    """Orders slices along their normal and checks that they make an even stack.

    Args:
        frames: at least one, in any order.
        name: the series, for messages.

    Returns:
        The slices in order and the RAS affine of (column, row, slice).

    Raises:
        InputError: on several orientations or shapes, duplicate or missing slices, uneven spacing, and gantry tilt.
    """
    _check_uniform(frames, name=name)
    ordered = sorted(frames, key=lambda frame: frame.height_mm)
    spacing_mm = _slice_spacing(ordered, name=name)
    _check_drift(ordered, name=name)
    first = ordered[0]
    affine = np.eye(4)
    affine[:3, 0] = first.column_direction * first.spacing_mm[1]
    affine[:3, 1] = first.row_direction * first.spacing_mm[0]
    affine[:3, 2] = first.normal * spacing_mm
    affine[:3, 3] = first.position_lps_mm
    return ordered, _RAS_FROM_LPS @ affine


def _check_uniform(frames: Sequence[SliceFrame], *, name: str) -> None:
    first = frames[0]
    for frame in frames[1:]:
        if frame.shape != first.shape:
            _refuse_mixture(first, frame, f"{first.shape} and {frame.shape} pixels", name=name)
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-3):
            _refuse_mixture(first, frame, f"pixel spacings {first.spacing_mm} and {frame.spacing_mm} mm", name=name)
        turned = np.abs(frame.column_direction - first.column_direction).max()
        if max(turned, np.abs(frame.row_direction - first.row_direction).max()) > _SAME_ORIENTATION:
            _refuse_mixture(first, frame, "several orientations", name=name)


def _refuse_mixture(one: SliceFrame, other: SliceFrame, what: str, *, name: str) -> None:
    raise InputError(
        f"{name}: one volume needs slices of one shape and orientation, got {what} ({one.path.name}, "
        f"{other.path.name}). Keep the axial slices and move the others (localizers, reformats) to another series."
    )


def _slice_spacing(ordered: Sequence[SliceFrame], *, name: str) -> float:
    """Spacing along the normal in mm; the thickness where there is one slice."""
    if len(ordered) == 1:
        return ordered[0].thickness_mm
    heights = np.array([frame.height_mm for frame in ordered])
    gaps = np.diff(heights)
    spacing = float(np.median(gaps))
    index = int(gaps.argmin())
    if gaps[index] < _SAME_POSITION_MM:
        raise InputError(
            f"{name}: {int((gaps < _SAME_POSITION_MM).sum())} duplicate slices, first {ordered[index].path.name} and "
            f"{ordered[index + 1].path.name} at {heights[index]:g} mm. Keep one of each (separate reconstructions or "
            "time points into series of their own)."
        )
    if (wide := gaps > _GAP_MISSING * spacing).any():
        index = int(wide.argmax())
        missing = int((np.rint(gaps[wide] / spacing) - 1).clip(1).sum())
        raise InputError(
            f"{name}: {missing} missing slices, first between {ordered[index].path.name} and "
            f"{ordered[index + 1].path.name} ({gaps[index]:g} mm apart, the others {spacing:g} mm). "
            "Copy the whole series, or split it at the gap."
        )
    uneven = float(np.abs(gaps / spacing - 1).max())
    if uneven > _GAP_UNEVEN:
        raise InputError(
            f"{name}: uneven slice spacing, {gaps.min():g} to {gaps.max():g} mm. Resample it to an even one, or "
            "split it where the spacing changes."
        )
    if uneven > _GAP_ROUNDING:
        _logger.warning("%s: slice spacing varies by %.1f %%; taken as even.", name, 100 * uneven)
    return float((heights[-1] - heights[0]) / (len(ordered) - 1))


def _check_drift(ordered: Sequence[SliceFrame], *, name: str) -> None:
    """Refuses stacks that shear: under gantry tilt slices move sideways along the table."""
    positions = np.array([frame.position_lps_mm for frame in ordered]) - ordered[0].position_lps_mm
    normal = ordered[0].normal
    sideways = np.linalg.norm(positions - np.outer(positions @ normal, normal), axis=1)
    if sideways.max() > _DRIFT_PIXELS * min(ordered[0].spacing_mm):
        height = float(np.abs(positions @ normal).max())
        raise InputError(
            f"{name}: slices shift sideways by {sideways.max():.2f} mm over {height:.1f} mm (gantry tilt, "
            f"{np.degrees(np.arctan2(sideways.max(), height)):.1f} degrees). Correct it by resampling to an axial grid."
        )
    if sideways.max() > _DRIFT_ROUNDING_MM:
        _logger.warning("%s: slices shift sideways by up to %.3f mm; taken as straight.", name, sideways.max())
