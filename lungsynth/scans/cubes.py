"""Whence the nodules of a scan come: from the generator, or from the patients of a cohort."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.patches import NoduleCube, sphere_diameter_mm
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import CubeEntry
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.scans.request import WantedNodule
from lungsynth.types import Origin

__all__ = ["CohortCubes", "CubeSource", "GeneratedCubes", "SourcedCube", "cube_diameter_mm"]

_SCALES = (0.8, 1.25)  # of a real nodule: its edge and its noise are scaled with it
_NEAREST = 12  # of the real nodules of a size, from which one is drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class SourcedCube:
    """A nodule with what is known of it.

    Args:
        cube: HU and alpha.
        source: real or generated.
        origin: pseudonym of the nodule, or the seed that made it.
        diameter_mm: of the sphere of equal volume to alpha >= 0.5.
        patient: pseudonym of whose voxels it holds; None for generated ones.
        weights: SHA-256 of the weights that generated it; None for real ones.
    """

    cube: NoduleCube
    source: Origin
    origin: str
    diameter_mm: float
    patient: str | None = None
    weights: str | None = None

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of its voxels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.cube.hu).data)
        digest.update(np.ascontiguousarray(self.cube.alpha).data)
        return digest.hexdigest()[:16]


class CubeSource(Protocol):
    """Gives nodules in three dimensions."""

    @property
    def identity(self) -> dict[str, str]:
        """What decides the bytes of its nodules."""
        ...

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """A nodule for each one wanted, near its size; nodule i depends on the seed, i and what is wanted alone.

        Raises:
            InputError: when there is none of a texture or size.
        """
        ...


def cube_diameter_mm(cube: NoduleCube) -> float:
    """Diameter of the sphere of equal volume to alpha >= 0.5."""
    return sphere_diameter_mm(int((cube.alpha >= 0.5).sum()), voxel_volume_mm3=PATCH_SPACING_MM**3)


@dataclass(frozen=True, kw_only=True)
class GeneratedCubes:
    """Nodules of `wcapsgan_bundle`.

    Args:
        bundles: folder of the bundles.
    """

    bundles: Path

    @property
    def identity(self) -> dict[str, str]:
        """The weights."""
        from lungsynth.scans.generated_cubes import weights_sha256

        return {"weights": weights_sha256(self.bundles)}

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """See `CubeSource`."""
        from lungsynth.scans.generated_cubes import generate_cubes

        textures, diameters_mm = [nodule.texture for nodule in wanted], [nodule.diameter_mm for nodule in wanted]
        made = generate_cubes(self.bundles, textures, diameters_mm, seed=seed)
        weights = self.identity["weights"]
        return [
            SourcedCube(
                cube=cube,
                source="generated",
                origin=f"{seed}-{index}",
                diameter_mm=cube_diameter_mm(cube),
                weights=weights,
            )
            for index, cube in enumerate(made)
        ]


@dataclass(frozen=True, kw_only=True)
class CohortCubes:
    """Real nodules of a cohort's training patients.

    Args:
        cohort: that `lungsynth prepare` wrote.
    """

    cohort: Cohort

    @property
    def identity(self) -> dict[str, str]:
        """The cohort."""
        return self.cohort.identity

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """See `CubeSource`."""
        return [self._chosen(nodule, np.random.default_rng([seed, index])) for index, nodule in enumerate(wanted)]

    @cached_property
    def _entries(self) -> tuple[CubeEntry, ...]:
        if not (entries := self.cohort.split("training").cubes()):
            raise InputError(
                f"{self.cohort.folder}: has no nodule that is known in three dimensions. Prepare it from scans, or "
                "leave the nodules to the generator."
            )
        return entries

    def _chosen(self, nodule: WantedNodule, rng: np.random.Generator) -> SourcedCube:
        low, high = nodule.diameter_mm / _SCALES[1], nodule.diameter_mm / _SCALES[0]
        alike = [entry for entry in self._entries if entry.category == nodule.texture]
        fitting = sorted(
            (abs(np.log(entry.diameter_mm / nodule.diameter_mm)), entry.nodule_id, entry)
            for entry in alike
            if low <= entry.diameter_mm <= high
        )
        if not fitting:
            sizes = sorted(entry.diameter_mm for entry in alike)
            has = f"{len(alike)} of {sizes[0]:.1f} to {sizes[-1]:.1f} mm" if alike else "none of this texture"
            raise InputError(
                f"{self.cohort.folder}: no {nodule.texture} nodule of {low:.1f} to {high:.1f} mm is known in three "
                f"dimensions, from which one of {nodule.diameter_mm:g} mm could be made; it has {has}."
            )
        near = fitting[:_NEAREST]
        return self._read(near[int(rng.integers(len(near)))][2])

    def _read(self, entry: CubeEntry) -> SourcedCube:
        hu, alpha = read_arrays(self.cohort.folder / entry.cube, "hu", "alpha")
        cube, names = NoduleCube(hu=hu, alpha=alpha), self.cohort.pseudonyms
        return SourcedCube(
            cube=cube,
            source="real",
            origin=names.named("nodules", entry.nodule_id),
            diameter_mm=cube_diameter_mm(cube),
            patient=names.named("patients", entry.patient_id) if entry.patient_id else None,
        )
