"""The shape of the lungs on one slice: their bounding box, and the signed distance to the edge of the parenchyma.

Pixels are (row, column), fractional, with the centre of the first pixel at (0, 0). Distances are in mm, positive in
the lung and negative outside; the edge lies half a pixel from the centres of its pixels. Holes no larger than a
vessel are no edge.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.types import HuPlane, MaskPlane

__all__ = ["VESSEL_HU", "Box", "LungShape"]

VESSEL_HU = -500  # vessels and airway walls in the parenchyma, above partial volume
_VESSEL_WINDOW_MM = 5.0
_LARGEST_HOLE_MM2 = 80.0  # a vessel of 10 mm
_MARGIN_PX = 1  # background kept around the bounding box


class Box(NamedTuple):
    """Rows and columns, each from (included) .. to (excluded)."""

    row_from: int
    column_from: int
    row_to: int
    column_to: int


@dataclass(frozen=True, eq=False, kw_only=True)
class LungShape:
    """Geometry of a lung mask, computed once a lung and looked up for each pair.

    Args:
        box: bounding box of the lungs.
        spacing_mm: (row, column).
        signed_mm: signed distance to the edge on the box and one pixel around it.
        vessel_share: share of vessels around a pixel, same grid; None when the HU are not known.
    """

    box: Box
    spacing_mm: tuple[float, float]
    signed_mm: Float32[np.ndarray, "box_rows box_columns"]
    vessel_share: Float32[np.ndarray, "box_rows box_columns"] | None = None

    @classmethod
    def from_mask(cls, mask: MaskPlane, *, spacing_mm: tuple[float, float], hu: HuPlane | None = None) -> "LungShape":
        """Measures a lung mask.

        Args:
            mask: (H, W), true in lung.
            spacing_mm: (row, column).
            hu: the slice, to find its vessels.

        Raises:
            InputError: when there is no lung, or the slice has another grid.
        """
        if not mask.any() or (hu is not None and hu.shape != mask.shape):
            raise InputError(
                f"Expected a lung mask with lung in it on the grid of its slice, got {int(mask.sum())} lung pixels, "
                f"shape {mask.shape} and slice {None if hu is None else hu.shape}. Leave it out or mend its mask."
            )
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        lung = _fill_small_holes(np.pad(_crop(mask, box), _MARGIN_PX), spacing_mm)
        vessels = (
            None if hu is None else _vessel_share(np.pad(_crop(hu, box), _MARGIN_PX, mode="edge"), lung, spacing_mm)
        )
        return cls(box=box, spacing_mm=spacing_mm, signed_mm=_signed_distance(lung, spacing_mm), vessel_share=vessels)

    def to_pixels(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of positions in the bounding box (see `presence`)."""
        row = self.box.row_from - 0.5 + v * (self.box.row_to - self.box.row_from)
        return row, self.box.column_from - 0.5 + u * (self.box.column_to - self.box.column_from)

    def to_unit(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of pixels: the inverse of `to_pixels`."""
        v = (row + 0.5 - self.box.row_from) / (self.box.row_to - self.box.row_from)
        return (column + 0.5 - self.box.column_from) / (self.box.column_to - self.box.column_from), v

    def distance_mm(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Signed distance to the edge of the lung, float64, linear between pixels."""
        return self._look_up(self.signed_mm, row, column)

    def inward(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit vector (row, column) that points away from the nearest edge; 0 on a ridge."""
        along_row = self.distance_mm(row + 1, column) - self.distance_mm(row - 1, column)
        along_column = self.distance_mm(row, column + 1) - self.distance_mm(row, column - 1)
        along_row, along_column = along_row / self.spacing_mm[0], along_column / self.spacing_mm[1]
        length = np.maximum(np.sqrt(along_row**2 + along_column**2), 1e-6)
        return along_row / length, along_column / length

    def vessels(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Share of vessels around pixels, in [0, 1]; 0 when the HU are not known."""
        if self.vessel_share is None:
            return np.zeros(np.shape(row))
        return self._look_up(self.vessel_share, row, column)

    def _look_up(self, values: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        at = np.stack([row - self.box.row_from + _MARGIN_PX, column - self.box.column_from + _MARGIN_PX])
        return ndimage.map_coordinates(values, at, order=1, mode="nearest", output=np.float64)


def _crop(plane: np.ndarray, box: Box) -> np.ndarray:
    return plane[box.row_from : box.row_to, box.column_from : box.column_to]


def _fill_small_holes(lung: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    holes, _ = ndimage.label(~lung)
    small = np.bincount(holes.ravel()) * spacing_mm[0] * spacing_mm[1] <= _LARGEST_HOLE_MM2
    # Label 0 is lung; the label of the margin is what surrounds the lungs, however small.
    small[[0, holes[0, 0]]] = False
    return lung | small[holes]


def _signed_distance(lung: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    inside = ndimage.distance_transform_edt(lung, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~lung, sampling=spacing_mm)
    half_px = min(spacing_mm) / 2
    return np.where(lung, inside - half_px, half_px - outside).astype(np.float32)


def _vessel_share(hu: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    size = [max(1, round(_VESSEL_WINDOW_MM / spacing)) for spacing in spacing_mm]
    vessels = lung & (hu > VESSEL_HU)
    return np.clip(ndimage.uniform_filter(vessels.astype(np.float32), size=size), 0, 1)
