"""Nodules and lungs small enough to see, for the tests of `lungsynth.placement`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lungsynth.geometry import axial_affine
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import SCHEMA, Recipe, TableWriter
from lungsynth.placement.groups import Member, NoduleGroup

LUNG_HU, NODULE_HU = -850, 40


def disc(shape: tuple[int, int], centre: tuple[float, float], radius_px: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius_px


def soft_disc(diameter_mm: float, centre: tuple[float, float] = (31.5, 31.5)) -> np.ndarray:
    rows, columns = np.ogrid[:64, :64]
    radius = np.hypot(rows - centre[0], columns - centre[1])
    return np.clip(diameter_mm / 0.7 / 2 - radius + 0.5, 0, 1)


def add_nodule(library: AssetLibrary, diameter_mm: float = 10.0, *, origin: str = "n", **settings: object) -> Asset:
    values = {"category": "solid", "source": "generated"} | settings
    hu = np.full((64, 64), NODULE_HU, dtype=np.int16)
    return library.add_nodule(hu, soft_disc(diameter_mm), origin=origin, **values)


def lung_mask(shape: tuple[int, int] = (200, 240)) -> np.ndarray:
    """Two lungs."""
    return disc(shape, (100, 60), 50) | disc(shape, (100, 180), 50)


def lung_hu(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 20, mask.shape)
    return np.rint(np.where(mask, LUNG_HU, 40) + noise).astype(np.int16)


def add_lung(library: AssetLibrary, spacing_mm: tuple[float, float] = (0.7, 0.7), *, seed: int = 0) -> Asset:
    mask = lung_mask()
    affine = axial_affine(spacing_mm=(2.5, *spacing_mm), origin_lps_mm=(-90.0, -70.0, 12.5))
    return library.add_lung(lung_hu(mask, seed), mask, affine=affine, source="generated", origin=str(seed))


def group_at(asset: Asset, *positions: tuple[float, float], scale: float = 1.0) -> NoduleGroup:
    """A group of one nodule at some (u, v)."""
    return NoduleGroup(
        tuple(
            Member(
                asset=asset.hash,
                category=asset.category,
                source=asset.source,
                diameter_mm=asset.diameter_mm * scale,
                u=u,
                v=v,
                scale=scale,
            )
            for u, v in positions
        )
    )


def library_in(folder: Path) -> tuple[AssetLibrary, Asset, Asset]:
    """A library with one lung and one nodule."""
    library = AssetLibrary(folder)
    return library, add_lung(library), add_nodule(library)


def write_catalogue(recipes: Sequence[Recipe], path: Path) -> Path:
    """A catalogue of these recipes, in their order."""
    places = ("row_px", "col_px", "distance_mm")

    def row(recipe: Recipe) -> dict[str, object]:
        of_nodules = {name: [getattr(nodule, name) for nodule in recipe.nodules] for name in places}
        return {name: getattr(recipe, name) for name in SCHEMA.names if name not in places} | of_nodules

    with TableWriter(path) as writer:
        writer.write([row(recipe) for recipe in recipes])
    return path
