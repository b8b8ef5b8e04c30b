"""Where nodules occur, how many on a slice, and of which sizes: LIDC-IDRI's figures, and what a cohort adds.

Positions are (u, v) in the bounding box of both lungs: u from the patient's right (0) to the left (1), v from
anterior (0) to posterior (1). The prior knows no single lung; that a nodule lies inside one is the business of `rules`.

`data/lidc_presence.json` (made by scripts/distil_presence.py) holds the density of 2,118 nodules in mm around the
centre of their images. Where the lungs were on those images is not known. So it is laid on the mean shape of the
lungs at hand, at their mean size, shifted to where most of it falls into lung, and multiplied with the share of lungs
that are lung at each point.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.hounsfield import Label
from lungsynth.placement.lung_shape import MARGIN_PX, LungShape
from lungsynth.placement.policy import DISTANCE_EDGES_MM, SIZE_EDGES_MM, TargetDistribution, distance_class, size_class

if TYPE_CHECKING:
    from lungsynth.cohort.reader import CohortSplit
    from lungsynth.cohort.schema import DiseasedEntry

__all__ = [
    "NoduleStatistics",
    "PresencePrior",
    "analytic_presence",
    "expected_distances",
    "fit_presence",
    "lidc_nodules_per_slice",
    "lidc_presence",
    "measure_nodules",
]

Positions = Float[np.ndarray, "points 2"]

# Of `analytic_presence`, shares of the bounding box; a plan uses LIDC-IDRI's density instead.
_HALF_WIDTH = 0.22  # of a lung's ellipse, so that a gap of 0.12 is left for the mediastinum
_RIM = 1.1  # radii of an ellipse at which the density has fallen to 0: outlines differ from ellipses
_RAMP = 0.2  # radii over which it falls
# Of `lidc_presence`.
_CELLS = 64  # of the density along u and v, 5 mm each on a chest; finer ones would be noise of 2,118 nodules
_SHIFTS_MM = np.arange(-42.0, 43.0, 6.0)  # tried: how far lungs may lie from the centre of their images, at its cells
# Of `measure_nodules`.
_SLICES_PER_SERIES = 4  # at most; neighbours show the same nodule, so more tell little
_MEASURED_SLICES = 200  # in all: some seconds of reading; more narrow the estimate
_PRIOR_NODULES = 50  # LIDC-IDRI's figures count as so many nodules (or slices) of the cohort's; more trust them longer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PresencePrior:
    """Density over the unit square, constant in each cell of a grid.

    Args:
        grid: (v, u), not negative; scaled here to a mean of 1, so that a value is a probability density.

    Raises:
        InputError: when the grid holds negative or no finite values, or is empty everywhere.
    """

    grid: Float[np.ndarray, "v u"]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.grid).all() and self.grid.min() >= 0 and self.grid.sum() > 0):
            raise InputError("A presence prior needs finite densities, none negative and not all zero.")
        object.__setattr__(self, "grid", self.grid / self.grid.mean())

    def density(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Density at (u, v), arrays of one shape; 0 outside the unit square."""
        rows, columns = self.grid.shape
        inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        row = np.clip(v * rows, 0, rows - 1).astype(int)
        column = np.clip(u * columns, 0, columns - 1).astype(int)
        return np.where(inside, self.grid[row, column], 0.0)

    def sample(self, rng: np.random.Generator, n: int) -> Positions:
        """Draws n positions, (n, 2) as (u, v)."""
        return self.positions(rng.random((n, 3)))

    def positions(self, numbers: Float[np.ndarray, "points 3"]) -> Positions:
        """The positions that uniform numbers in [0, 1) stand for: a cell, and where in it."""
        rows, columns = self.grid.shape
        edges = np.cumsum(self.grid)
        cell = np.searchsorted(edges, numbers[:, 0] * edges[-1], side="right")
        row, column = np.divmod(np.minimum(cell, self.grid.size - 1), columns)
        return np.stack([(column + numbers[:, 1]) / columns, (row + numbers[:, 2]) / rows], axis=1)


def analytic_presence(*, cells: int = 64, posterior: float = 2.0, peripheral: float = 2.0) -> PresencePrior:
    """Two ellipses, one a lung, that favour the periphery and the posterior.

    Args:
        cells: cells along u and v.
        posterior: density at the back over that at the front.
        peripheral: density at an ellipse's rim over that at its middle.
    """
    middle = (np.arange(cells) + 0.5) / cells
    v, u = np.meshgrid(middle, middle, indexing="ij")
    side = np.minimum(u, 1 - u)  # 0 at the lateral wall, 0.5 in the midline
    radius = np.hypot((side - _HALF_WIDTH) / _HALF_WIDTH, (v - 0.5) / 0.5)
    inside = np.clip((_RIM - radius) / _RAMP, 0, 1)
    return PresencePrior(inside * (1 + (posterior - 1) * v) * (1 + (peripheral - 1) * np.minimum(radius, 1)))


def fit_presence(
    points: Positions,
    *,
    weights: Float[np.ndarray, " points"] | None = None,
    cells: int = 64,
    bandwidth: float = 0.06,
    prior: PresencePrior | None = None,
    prior_points: float = 50,
) -> PresencePrior:
    """Kernel density of measured positions, mixed with a prior that counts as `prior_points` positions.

    Args:
        points: (n, 2) as (u, v), from `LungShape.to_unit`; those outside the unit square are left out.
        weights: how many positions each counts as; 1 when None.
        cells: cells along u and v.
        bandwidth: standard deviation of the Gaussian kernel, as a share of the bounding box.
        prior: `analytic_presence` when None.
        prior_points: how many positions the prior is worth.
    """
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=cells, range=((0, 1), (0, 1)), weights=weights)
    smooth = ndimage.gaussian_filter(counts, bandwidth * cells, mode="reflect") * cells**2
    middle = (np.arange(cells) + 0.5) / cells
    v, u = np.meshgrid(middle, middle, indexing="ij")
    return PresencePrior(smooth + prior_points * (prior or analytic_presence(cells=cells)).density(u, v))


@cache
def _table() -> dict[str, Any]:
    return dict(
        json.loads(
            resources.files("lungsynth.placement").joinpath("data/lidc_presence.json").read_text(encoding="utf-8")
        )
    )


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
    densities = _shifted_densities(height_mm, width_mm)
    _, _, density = max(
        ((int((density * inside).sum()), -number, density) for number, density in enumerate(densities)),
        key=lambda candidate: candidate[:2],
    )
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


@cache
def _table_density() -> Int64[np.ndarray, "down left"]:
    return np.array(_table()["density"], dtype=np.int64)


def _shifted_densities(height_mm: float, width_mm: float) -> Iterator[Int64[np.ndarray, "v u"]]:
    """The table on the cells of a bounding box whose middle is shifted from the images' centre, down and left; 0
    beyond the table.
    """
    density, cell_mm = _table_density(), float(_table()["cell_mm"])
    middle = (np.arange(_CELLS) + 0.5) / _CELLS - 0.5
    columns = [_cells(middle * width_mm + left, cell_mm, density.shape[1]) for left in _SHIFTS_MM]
    for down in _SHIFTS_MM:
        row, row_inside = _cells(middle * height_mm + down, cell_mm, density.shape[0])
        lines = density[row] * row_inside[:, None]
        for column, column_inside in columns:
            yield lines[:, column] * column_inside


def _cells(at_mm: np.ndarray, cell_mm: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.floor(at_mm / cell_mm).astype(int) + cells // 2
    return np.clip(index, 0, cells - 1), (index >= 0) & (index < cells)


@dataclass(frozen=True, eq=False, kw_only=True)
class NoduleStatistics:
    """Nodules of a cohort's training patients.

    Args:
        points: (u, v) of nodules on slices whose lungs are outlined; each nodule is seen on a few slices.
        weights: a series counts as one nodule's worth.
        distance_mm: of those nodules' centres to the edge of the lung.
        per_slice: slices with 1, 2, ... nodules.
        diameters_mm: by category, of all nodules.
    """

    points: Float64[np.ndarray, "points 2"]
    weights: Float64[np.ndarray, " points"]
    distance_mm: Float64[np.ndarray, " points"]
    per_slice: Counter[int]
    diameters_mm: dict[str, list[float]]

    def presence(self, lungs: Sequence[LungShape]) -> PresencePrior:
        """LIDC-IDRI's density on these lungs, which counts as `_PRIOR_NODULES`, with the cohort's own positions."""
        prior = lidc_presence(lungs)
        return fit_presence(self.points, weights=self.weights, prior=prior, prior_points=_PRIOR_NODULES)

    def counts(self) -> dict[int, float]:
        """Share of slices with 1, 2, 3 nodules: LIDC-IDRI's, worth `_PRIOR_NODULES` slices, and the cohort's."""
        lidc = lidc_nodules_per_slice()
        sums = {count: _PRIOR_NODULES * lidc.get(count, 0.0) + self.per_slice[count] for count in (1, 2, 3)}
        return {count: round(value / sum(sums.values()), 4) for count, value in sums.items()}

    def diameter_range_mm(self, category: str) -> tuple[float, float] | None:
        """The measured range of a category's diameters; None when nothing is known."""
        diameters_mm = self.diameters_mm.get(category)
        return (min(diameters_mm), max(diameters_mm)) if diameters_mm else None

    def distances(self, prior: PresencePrior, lungs: Sequence[LungShape]) -> Float64[np.ndarray, " distance_classes"]:
        """Nodules of each class of distance, of all categories alike.

        Few cohorts outline lungs and nodules on the same slices, so the distances that the prior gives on these lungs
        count as `_PRIOR_NODULES`.
        """
        measured = np.bincount(
            distance_class(self.distance_mm), weights=self.weights, minlength=len(DISTANCE_EDGES_MM) + 1
        )
        return np.asarray(measured + _PRIOR_NODULES * expected_distances(prior, lungs))

    def target(self, category: str, prior: PresencePrior, lungs: Sequence[LungShape]) -> TargetDistribution | None:
        """Distribution of a category's real nodules; None when the cohort has none of them."""
        sizes = self.diameters_mm.get(category)
        if not sizes:
            return None
        return TargetDistribution(
            distance=self.distances(prior, lungs),
            size=np.bincount(size_class(np.array(sizes)), minlength=len(SIZE_EDGES_MM) + 1).astype(np.float64),
        )


def measure_nodules(cohort: "CohortSplit | None") -> NoduleStatistics:
    """Measures a cohort; without one, nothing is known."""
    points, per_slice = list[tuple[float, float, float, float]](), Counter[int]()
    diameters: dict[str, list[float]] = defaultdict(list)
    for nodule in cohort.nodules() if cohort else ():
        if not np.isnan(nodule.diameter_mm):
            diameters[nodule.category].append(nodule.diameter_mm)
    for entries in _some_slices(cohort.diseased() if cohort else ()):
        slices = [nodules for entry in entries if cohort and (nodules := list(_points(cohort, entry)))]
        per_slice.update(len(nodules) for nodules in slices)
        seen = sum(len(nodules) for nodules in slices)
        most = max((len(nodules) for nodules in slices), default=0)
        points += [(u, v, distance, most / seen) for nodules in slices for u, v, distance in nodules]
    table = np.array(points, dtype=np.float64).reshape(-1, 4)
    return NoduleStatistics(
        points=table[:, :2],
        distance_mm=table[:, 2],
        weights=table[:, 3],
        per_slice=per_slice,
        diameters_mm=dict(diameters),
    )


def _some_slices(entries: Sequence["DiseasedEntry"]) -> Iterator[list["DiseasedEntry"]]:
    """A few slices of each series, evenly spread; neighbours show the same nodule."""
    series: dict[str, list[DiseasedEntry]] = defaultdict(list)
    for entry in entries:
        series[entry.series_id or entry.image].append(entry)
    left = _MEASURED_SLICES
    for slices in series.values():
        places = np.unique(np.linspace(0, len(slices) - 1, min(_SLICES_PER_SERIES, len(slices))).astype(int))
        if left <= 0:
            return
        left -= len(places)
        yield [slices[int(place)] for place in places]


def _points(cohort: "CohortSplit", entry: "DiseasedEntry") -> Iterator[tuple[float, float, float]]:
    """(u, v, distance in mm) of the nodules of a slice; none where its lungs were not outlined."""
    try:
        _, label, affine = cohort.cohort.read_slice(entry)
    except InputError as error:
        _logger.warning("left out of the measurement of real nodules: %s", error)
        return
    if not (label == Label.LUNG).any():
        return
    columns_mm, rows_mm = (float(value) for value in np.linalg.norm(affine[:3, :2], axis=0))
    inside = (label == Label.LUNG) | (label == Label.NODULE)
    shape = LungShape.from_mask(inside, spacing_mm=(rows_mm, columns_mm))
    nodules, count = ndimage.label(label == Label.NODULE)
    centres = np.array(ndimage.center_of_mass(nodules > 0, nodules, np.arange(1, count + 1))).reshape(-1, 2)
    u, v = shape.to_unit(centres[:, 0], centres[:, 1])
    distances = shape.distance_mm(centres[:, 0], centres[:, 1])
    yield from zip(u.tolist(), v.tolist(), distances.tolist(), strict=True)
