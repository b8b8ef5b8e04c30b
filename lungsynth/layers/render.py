"""Rendering: a recipe and the library of its assets -> image, label map and annotations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lungsynth.ct.volume import voxel_to_lps
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.layers.catalogue import Recipe
from lungsynth.layers.composite import NodulePatch, overlay
from lungsynth.layers.library import AssetLibrary
from lungsynth.layers.lung_shape import Box
from lungsynth.types import Affine, HuPlane, LabelPlane

__all__ = ["Annotation", "Enhancer", "Rendered", "render"]

Enhancer = Callable[..., np.ndarray]  # (hu: int16 (H, W), nodule_mask: bool (H, W)) -> int16 (H, W)


class Annotation(NamedTuple):
    """A nodule as in LUNA16's `annotations.csv`: LPS mm of its centre, and the diameter measured on the label map."""

    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Rendered:
    """A sample.

    Args:
        image: HU.
        label: `Label` ids.
        affine: (column, row, slice) -> RAS mm, the lung's.
        boxes: one a nodule.
        annotations: one a nodule.
    """

    image: HuPlane
    label: LabelPlane
    affine: Affine
    boxes: tuple[Box, ...]
    annotations: tuple[Annotation, ...]


def render(recipe: Recipe, library: AssetLibrary, *, enhance: Enhancer | None = None) -> Rendered:
    """Makes a sample.

    Args:
        recipe: what to make.
        library: holds the recipe's assets.
        enhance: the last stage; the sample is as it was before that stage when None. The label stays as it is.

    Raises:
        InputError: when an asset is missing, damaged or of another kind.
    """
    lung = library[recipe.lung]
    hu, mask = library.load(lung.hash)
    nodules = [
        (placement, NodulePatch.from_asset(_load_nodule(library, placement.asset))) for placement in recipe.nodules
    ]
    result = overlay(hu, mask > 0, nodules, spacing_mm=lung.spacing_mm)
    centres = [(0, placement.row_px, placement.col_px) for placement in recipe.nodules]
    lps = voxel_to_lps(lung.affine_matrix, np.array(centres))
    return Rendered(
        image=result.image if enhance is None else enhance(result.image, result.label == Label.NODULE),
        label=result.label,
        affine=lung.affine_matrix,
        boxes=tuple(finding.box for finding in result.findings),
        annotations=tuple(
            Annotation(float(x), float(y), float(z), finding.diameter_mm)
            for (x, y, z), finding in zip(lps, result.findings, strict=True)
        ),
    )


def _load_nodule(library: AssetLibrary, asset_hash: str) -> np.ndarray:
    if library[asset_hash].kind != "nodule":
        raise InputError(
            f"{library.folder}: asset {asset_hash} should be a nodule, it is a {library[asset_hash].kind}."
        )
    return library.load(asset_hash)
