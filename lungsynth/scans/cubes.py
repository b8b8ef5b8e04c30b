"""Whence the nodules of a scan come: from the generator, or from the patients of a cohort."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from lungsynth.categories import TEXTURES
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.patches import NoduleCube, cube_diameter_mm
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import CubeEntry
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.scans.request import WantedNodule
from lungsynth.types import Origin

__all__ = ["CohortCubes", "CubePool", "CubeSource", "GeneratedCubes", "SourcedCube"]

Item = TypeVar("Item")

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


@runtime_checkable
class CubeSource(Protocol):
    """Gives nodules in three dimensions."""

    def identity(self) -> dict[str, str]:
        """What decides the bytes of its nodules."""
        ...

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """A nodule for each one wanted, near its size; nodule i depends on the seed, i and what is wanted alone.

        Raises:
            InputError: when there is none of a texture or size.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratedCubes:
    """Nodules of `wcapsgan_bundle`.

    Args:
        bundles: folder of the bundles.
    """

    bundles: Path

    def identity(self) -> dict[str, str]:
        """The weights."""
        from lungsynth.scans.generated_cubes import weights_sha256

        return {"weights": weights_sha256(self.bundles)}

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """See `CubeSource`."""
        from lungsynth.scans.generated_cubes import generate_cubes

        textures, diameters_mm = [nodule.texture for nodule in wanted], [nodule.diameter_mm for nodule in wanted]
        made = generate_cubes(self.bundles, textures, diameters_mm, seed=seed)
        weights = self.identity()["weights"]
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


@dataclass(frozen=True, eq=False, kw_only=True)
class CubePool:
    """Nodules that are at hand, each for as many samples as need it: for inserting while a network trains.

    Args:
        nodules: by texture.
        name: what is missing where none fits, for the message.
    """

    nodules: Mapping[str, Sequence[SourcedCube]]
    name: str = "The pool"

    @classmethod
    def generated(
        cls, bundles: Path, *, per_texture: int = 40, diameter_mm: tuple[float, float] = (4.0, 30.0), seed: int = 0
    ) -> "CubePool":
        """Nodules of `wcapsgan_bundle`, their diameters even on a scale of ratios.

        Args:
            bundles: folder of the bundles.
            per_texture: how many.
            diameter_mm: smallest and largest.
            seed: of all of them.
        """
        sizes = np.geomspace(*diameter_mm, per_texture).round(2).tolist()
        wanted = [WantedNodule(texture=texture, diameter_mm=mm) for texture in TEXTURES for mm in sizes]
        made = GeneratedCubes(bundles=bundles).cubes(wanted, seed=seed)
        nodules = {
            texture: [cube for nodule, cube in zip(wanted, made, strict=True) if nodule.texture == texture]
            for texture in TEXTURES
        }
        return cls(nodules=nodules, name="The pool of generated nodules")

    def identity(self) -> dict[str, str]:
        """The nodules."""
        hashes = [cube.hash for texture in sorted(self.nodules) for cube in self.nodules[texture]]
        return {"cubes": hashlib.sha256(" ".join(hashes).encode()).hexdigest()}

    def cubes(self, wanted: Sequence[WantedNodule], *, seed: int) -> list[SourcedCube]:
        """See `CubeSource`."""
        return [
            _near(
                self.nodules.get(nodule.texture, ()),
                nodule,
                np.random.default_rng([seed, index]),
                diameter_of=lambda cube: cube.diameter_mm,
                name=self.name,
            )
            for index, nodule in enumerate(wanted)
        ]


@dataclass(frozen=True, kw_only=True)
class CohortCubes:
    """Real nodules of a cohort's training patients.

    Args:
        cohort: that `lungsynth prepare` wrote.
    """

    cohort: Cohort

    def identity(self) -> dict[str, str]:
        """The nodules that are chosen from."""
        listed = json.dumps(self.cohort.entries("cubes", "training"), sort_keys=True)
        return {"cubes": hashlib.sha256(listed.encode()).hexdigest()}

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
        alike = [entry for entry in self._entries if entry.category == nodule.texture]
        near = _near(alike, nodule, rng, diameter_of=lambda entry: entry.diameter_mm, name=str(self.cohort.folder))
        return self._read(near)

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


def _near(
    alike: Sequence[Item],
    nodule: WantedNodule,
    rng: np.random.Generator,
    *,
    diameter_of: Callable[[Item], float],
    name: str,
) -> Item:
    """One of the nodules of a texture whose size is nearest to what is wanted.

    Raises:
        NoSamplesError: when all would have to be scaled too much.
    """
    low, high = nodule.diameter_mm / _SCALES[1], nodule.diameter_mm / _SCALES[0]
    sizes = np.array([diameter_of(item) for item in alike])
    apart = np.abs(np.log(sizes / nodule.diameter_mm)) if len(sizes) else sizes
    fitting = [int(k) for k in np.argsort(apart, kind="stable")[:_NEAREST] if low <= sizes[k] <= high]
    if not fitting:
        has = f"{len(sizes)} of {sizes.min():.1f} to {sizes.max():.1f} mm" if len(sizes) else "none of this texture"
        raise NoSamplesError(
            f"{name}: no {nodule.texture} nodule of {low:.1f} to {high:.1f} mm is known in three dimensions, from "
            f"which one of {nodule.diameter_mm:g} mm could be made; it has {has}."
        )
    return alike[fitting[int(rng.integers(len(fitting)))]]
