"""Nodules in three dimensions as they are compared: three middle planes of each, and its shape."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lungsynth.categories import UNKNOWN, CategoryRule
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.patches import NoduleCube, sphere_diameter_mm
from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.similarity.samples import Samples, join

__all__ = ["PLANES", "SHAPES", "CubeSet", "Nodule", "describe_cubes", "read_cubes"]

PLANES = ("axial", "coronal", "sagittal")  # by the axis that they are across
SHAPES: Mapping[str, Callable[[NoduleCube], float]] = {  # measures by name
    "elongation": lambda cube: _elongation(cube),
    "sphericity": lambda cube: _sphericity(cube),
    "mean_hu": lambda cube: float(cube.hu[cube.alpha >= _OUTLINE].mean()),
}
_OUTLINE = 0.5


class Nodule(NamedTuple):
    """Who a cube is: its name, what the bootstrap draws, its category."""

    name: str
    owner: str
    category: str


@dataclass(frozen=True, eq=False, kw_only=True)
class CubeSet:
    """N cubes, as far as they are compared.

    Args:
        planes: N samples of each of `PLANES`, through the middle.
        diameter_mm: of the sphere of the nodule's volume, (N,).
        shapes: of each of `SHAPES`, (N,).
    """

    planes: tuple[Samples, ...]
    diameter_mm: Float[np.ndarray, " n"]
    shapes: Mapping[str, Float[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.diameter_mm)

    @property
    def categories(self) -> tuple[str, ...]:
        """Of each."""
        return self.planes[0].categories

    @property
    def owners(self) -> tuple[str, ...]:
        """Of each, what the bootstrap draws."""
        return self.planes[0].owners

    @property
    def all_planes(self) -> Samples:
        """All planes as 3 N samples."""
        return join(self.planes)

    def of(self, category: str) -> np.ndarray:
        """Places of the cubes of a category."""
        return self.planes[0].of(category)

    def take(self, places: Sequence[int] | np.ndarray) -> "CubeSet":
        """The cubes at these places, in this order."""
        index = np.asarray(places, dtype=np.int64)
        return CubeSet(
            planes=tuple(plane.take(index) for plane in self.planes),
            diameter_mm=self.diameter_mm[index],
            shapes={name: values[index] for name, values in self.shapes.items()},
        )


def describe_cubes(cubes: Iterable[tuple[Nodule, NoduleCube]]) -> CubeSet:
    """Measures cubes one by one.

    Raises:
        InputError: when there is none.
    """
    who, planes, diameters, shapes = [], [], [], []
    for nodule, cube in cubes:
        middle = cube.hu.shape[0] // 2
        who.append(nodule)
        planes.append([(cube.hu.take(middle, axis), cube.alpha.take(middle, axis)) for axis in range(len(PLANES))])
        diameters.append(_diameter_mm(cube))
        shapes.append([measure(cube) for measure in SHAPES.values()])
    if not who:
        raise InputError("There is no cube to compare.")
    return CubeSet(
        planes=tuple(_samples(who, [each[axis] for each in planes]) for axis in range(len(PLANES))),
        diameter_mm=np.array(diameters),
        shapes=dict(zip(SHAPES, np.array(shapes).T, strict=True)),
    )


def read_cubes(cohort: Path, split: str, *, rule: CategoryRule) -> CubeSet:
    """The cubes of a split that have a category and show a nodule.

    Args:
        cohort: what `lungsynth prepare` wrote.
        split: `training`, `validation` or `test`.
        rule: what a category is.

    Raises:
        InputError: when the split has none, or a file is damaged.
    """
    rated = [entry for entry in Cohort.open(cohort, rule=rule).split(split).cubes() if entry.category != UNKNOWN]
    cubes = (
        (Nodule(entry.nodule_id, entry.patient_id, entry.category), NoduleCube(hu=hu, alpha=alpha))
        for entry in rated
        for hu, alpha in [read_arrays(cohort / entry.cube, "hu", "alpha")]
        if (alpha >= _OUTLINE).any()
    )
    try:
        return describe_cubes(cubes)
    except InputError as error:
        if rated:
            raise
        raise NoSamplesError(
            f"{cohort / 'cubes.json'}: expected rated nodules in `{split}`, got none. Prepare the cohort from scans, "
            "or from slices with an index.csv that tells their spacing."
        ) from error


def _samples(who: Sequence[Nodule], planes: Sequence[tuple[np.ndarray, np.ndarray]]) -> Samples:
    return Samples(
        hu=np.stack([hu for hu, _ in planes]),
        mask=np.stack([alpha for _, alpha in planes]),
        categories=tuple(nodule.category for nodule in who),
        owners=tuple(nodule.owner for nodule in who),
        names=tuple(nodule.name for nodule in who),
        spacing_mm=PATCH_SPACING_MM,
    )


def _diameter_mm(cube: NoduleCube) -> float:
    return sphere_diameter_mm(int((cube.alpha >= _OUTLINE).sum()), voxel_volume_mm3=PATCH_SPACING_MM**3)


def _elongation(cube: NoduleCube) -> float:
    """Longest over shortest axis of the ellipsoid with the nodule's second moments; a voxel has its own extent."""
    points = np.argwhere(cube.alpha >= _OUTLINE).astype(np.float64)
    centred = points - points.mean(axis=0)
    moments = np.linalg.eigvalsh(centred.T @ centred / len(points) + np.eye(3) / 12)
    return float(np.sqrt(moments[-1] / moments[0]))


def _sphericity(cube: NoduleCube) -> float:
    """Surface of the sphere of equal volume over that of the nodule, which is the integral of alpha's slope."""
    alpha = cube.alpha.astype(np.float32)
    surface = float(np.linalg.norm(np.stack(list(np.gradient(alpha))), axis=0).sum())
    return float(np.pi ** (1 / 3) * (6 * float(alpha.sum())) ** (2 / 3) / surface)
