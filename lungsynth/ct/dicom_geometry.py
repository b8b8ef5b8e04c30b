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

__all__ = ["SliceFrame", "leave_out_strays", "stack_slices"]

_logger = logging.getLogger(__name__)
_SAME_POSITION_MM = 1e-2  # slices nearer than this are one position (duplicates); rounding of headers is below it
# Relative to the spacing: up to 1 % is rounding, up to 10 % is warned of; a gap of 1.5 spacings lacks a slice.
_GAP_ROUNDING, _GAP_UNEVEN, _GAP_MISSING = 0.01, 0.1, 1.5
_DRIFT_ROUNDING_MM, _DRIFT_PIXELS = 1e-2, 0.5  # of the slices' origins in plane: ignored, and refused from there on
_SAME_ORIENTATION = 1e-3  # difference of direction cosines; real headers round them to about 1e-4
_SCOUT_TURN = 0.5  # difference of normals from which a slice lies across the others, as scouts do
_MOST_KINDS = 8  # of slices in a series; with more there is no rule to be found
_SCOUTS, _SLICES_A_SCOUT = 3, 10  # so few parallel slices of another shape are scouts, among so many a scout
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceFrame:
    """Where one stored slice lies.

    Args:
        path: its file.
        index: which frame of the file it is.
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
    index: int = 0

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


def leave_out_strays(frames: Sequence[SliceFrame], *, name: str) -> tuple[list[SliceFrame], tuple[str, ...]]:
    """Leaves out scouts and the like that were filed with a series: the few slices that are unlike all others.

    A slice that lies across most others is left out when such slices are fewer than a third; parallel ones of another
    shape or spacing only when they are one in ten and three at most.

    Returns:
        The others, and a note on what was left out.
    """
    alike: list[list[SliceFrame]] = []
    for frame in frames:
        group = next((group for group in alike if _difference(group[0], frame) is None), None)
        if group is None and len(alike) == _MOST_KINDS:
            return list(frames), ()
        if group is None:
            alike.append([frame])
        else:
            group.append(frame)
    main = max(alike, key=len)
    strays = [frame for group in alike if group is not main for frame in group]
    across = [f for f in strays if np.abs(np.abs(f.normal) - np.abs(main[0].normal)).max() > _SCOUT_TURN]
    few = len(strays) - len(across) <= min(_SCOUTS, len(main) // _SLICES_A_SCOUT)
    if not strays or not few or 3 * len(across) >= len(frames):
        return list(frames), ()
    names = ", ".join(frame.path.name for frame in strays[:3]) + (" and others" if len(strays) > 3 else "")
    note = f"{name}: {names} left out, unlike the {len(main)} other slices in shape or orientation (a scout?)"
    _logger.warning("%s", note)
    return main, (note,)


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
    for frame in frames[1:]:
        if (what := _difference(frames[0], frame)) is not None:
            _refuse_mixture(frames[0], frame, what, name=name)


def _difference(one: SliceFrame, other: SliceFrame) -> str | None:
    """Why two slices are of no one volume; None when they may be."""
    if other.shape != one.shape:
        return f"{one.shape} and {other.shape} pixels"
    if not np.allclose(other.spacing_mm, one.spacing_mm, rtol=1e-3):
        return f"pixel spacings {one.spacing_mm} and {other.spacing_mm} mm"
    turned = np.abs(other.column_direction - one.column_direction).max()
    if max(turned, np.abs(other.row_direction - one.row_direction).max()) > _SAME_ORIENTATION:
        return "several orientations"
    return None


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
