"""Where LIDC-IDRI's nodules lie, brought into the frame of measured lungs.

`data/lidc_presence.json` (made by scripts/distil_presence.py) holds the density of 2,118 nodules in mm around the
centre of their images. Where the lungs were on those images is not known. So it is laid on the mean shape of the
lungs at hand, at their mean size, shifted to where most of it falls into lung, and multiplied with the share of lungs
that are lung at each point.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from lungsynth.placement.lung_shape import MARGIN_PX, UNITS_PER_MM, LungShape
from lungsynth.placement.policy import DISTANCE_EDGES_MM, distance_class
from lungsynth.placement.presence import PresencePrior

__all__ = ["expected_distances", "lidc_nodules_per_slice", "lidc_presence"]

_CELLS = 64
_SHIFTS_MM = np.arange(-42.0, 43.0, 6.0)


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(resources.files("lungsynth.placement").joinpath("data/lidc_presence.json").read_text()))


def lidc_nodules_per_slice() -> dict[int, float]:
    """Number of nodules on a slice that shows any -> share of such slices."""
    return {int(count): float(share) for count, share in _table()["nodules_per_slice"].items()}


def lidc_presence(shapes: Sequence[LungShape]) -> PresencePrior:
    """The density of LIDC-IDRI's nodules in the frame of some lungs.

    Args:
        shapes: at least one; some dozens say enough.
    """
    inside = sum(_inside(shape) for shape in shapes)
    height_mm, width_mm = (sum(shape.size_mm[axis] for shape in shapes) / len(shapes) for axis in (0, 1))
    placed = [
        (int((density * inside).sum()), density)
        for down in _SHIFTS_MM
        for left in _SHIFTS_MM
        for density in [_density(height_mm, width_mm, down, left)]
    ]
    _, density = max(placed, key=lambda entry: entry[0])
    return PresencePrior((density * inside).astype(np.float64))


def expected_distances(prior: PresencePrior, shapes: Sequence[LungShape]) -> Float64[np.ndarray, " distance_classes"]:
    """Share of each class of distance among nodules that lie in some lungs as the prior says.

    Args:
        prior: where nodules lie.
        shapes: at least one.
    """
    shares = np.zeros(len(DISTANCE_EDGES_MM) + 1)
    for shape in shapes:
        rows, columns = np.nonzero(shape.signed > 0)
        row, column = rows + (shape.box.row_from - MARGIN_PX), columns + (shape.box.column_from - MARGIN_PX)
        density = prior.density(*shape.to_unit(row, column))
        classes = distance_class(shape.signed[rows, columns] / UNITS_PER_MM)
        shares += np.bincount(classes, weights=density, minlength=len(shares)) / max(float(density.sum()), 1e-9)
    return shares / shares.sum()


def _inside(shape: LungShape) -> Int64[np.ndarray, "v u"]:
    """1 where the middle of a cell is lung."""
    middle = (np.arange(_CELLS) + 0.5) / _CELLS
    row, column = shape.to_pixels(middle, middle)
    rows, columns = (np.rint(at).astype(int) for at in (row, column))
    rows, columns = rows - shape.box.row_from + MARGIN_PX, columns - shape.box.column_from + MARGIN_PX
    return (shape.signed[np.ix_(rows, columns)] > 0).astype(np.int64)


def _density(height_mm: float, width_mm: float, down_mm: float, left_mm: float) -> Int64[np.ndarray, "v u"]:
    """The table on the cells of a bounding box whose middle lies that far from the images' centre; 0 beyond it."""
    density, cell_mm = np.array(_table()["density"], dtype=np.int64), float(_table()["cell_mm"])
    middle = (np.arange(_CELLS) + 0.5) / _CELLS - 0.5
    rows, row_inside = _cells(middle * height_mm + down_mm, cell_mm, density.shape[0])
    columns, column_inside = _cells(middle * width_mm + left_mm, cell_mm, density.shape[1])
    return np.where(np.logical_and.outer(row_inside, column_inside), density[np.ix_(rows, columns)], 0)


def _cells(at_mm: np.ndarray, cell_mm: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.floor(at_mm / cell_mm).astype(int) + cells // 2
    return np.clip(index, 0, cells - 1), (index >= 0) & (index < cells)
