"""Rendering: a recipe and the library of its assets -> image, label map and annotations."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from lungsynth.compositing.nodule import NodulePatch, ResampledNodule, blur_steps, match_noise_and_edge, noise_class
from lungsynth.compositing.overlay import LungBackground, NoduleMask, overlay
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe
from lungsynth.placement.lung_shape import Box
from lungsynth.placement.resolve import NodulePlacement
from lungsynth.types import Affine, HuPlane, LabelPlane

__all__ = ["Annotation", "Enhancer", "Rendered", "Renderer", "render"]

Enhancer = Callable[..., np.ndarray]  # (hu: int16 (H, W), nodule_mask: bool (H, W)) -> int16 (H, W)

_CACHED_LUNGS = 1024  # label map and texture: 0.3 MB each at 512 x 512; the HU stay mapped
_CACHED_PATCHES = 2048  # 0.02 MB each
_CACHED_STAMPS = 16384  # 0.006 MB each


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
        masks: one a nodule, in its box.
        annotations: one a nodule.
        windows: one a nodule; outside them the image is its lung.
    """

    image: HuPlane
    label: LabelPlane
    affine: Affine
    boxes: tuple[Box, ...]
    masks: tuple[NoduleMask, ...]
    annotations: tuple[Annotation, ...]
    windows: tuple[Box, ...]


class _PreparedLung(NamedTuple):
    layer: LungBackground
    affine: Affine
    lps: tuple[tuple[float, float, float], ...]  # rows x, y, z: factors of column and row, and the origin


def _lps(lung: _PreparedLung, placed: NodulePlacement) -> tuple[float, float, float]:
    x, y, z = (column * placed.col_px + row * placed.row_px + origin for column, row, origin in lung.lps)
    return x, y, z


class Renderer:
    """Makes the samples of a library, and keeps what their assets were turned into.

    Args:
        library: the assets.
        matched: give nodules the noise and the edges of their lung; without, they keep those of their patches.
    """

    def __init__(self, library: AssetLibrary, *, matched: bool = True) -> None:
        self.library = library
        self.matched = matched
        self._lungs = _Recent(_CACHED_LUNGS)
        self._patches = _Recent(_CACHED_PATCHES)
        self._stamps = _Recent(_CACHED_STAMPS)

    def render(self, recipe: Recipe, *, out: tuple[HuPlane, LabelPlane] | None = None) -> Rendered:
        """Makes a sample as it is before enhancement.

        Args:
            recipe: what to make.
            out: arrays of the lung's shape to fill with image and label; new ones when None.

        Raises:
            InputError: when an asset is missing, damaged or of another kind.
        """
        lung: _PreparedLung = self._lungs.get(recipe.lung, self._prepare_lung)
        nodules = [(placed, self._stamp(placed, lung.layer)) for placed in recipe.nodules]
        result = overlay(lung.layer, nodules, seed=recipe.seed, out=out)
        annotations = [
            Annotation(*_lps(lung, placed), finding.diameter_mm)
            for placed, finding in zip(recipe.nodules, result.findings, strict=True)
        ]
        return Rendered(
            image=result.image,
            label=result.label,
            affine=lung.affine,
            boxes=tuple(finding.box for finding in result.findings),
            masks=tuple(finding.mask for finding in result.findings),
            annotations=tuple(annotations),
            windows=tuple(finding.window for finding in result.findings),
        )

    def lung(self, recipe: Recipe) -> Rendered:
        """The lung of a sample without its nodules."""
        lung: _PreparedLung = self._lungs.get(recipe.lung, self._prepare_lung)
        image, label = np.array(lung.layer.hu), lung.layer.label.copy()
        return Rendered(image=image, label=label, affine=lung.affine, boxes=(), masks=(), annotations=(), windows=())

    def layer(self, recipe: Recipe) -> LungBackground:
        """The lung that a sample lies on, as it is kept; not to be written to."""
        layer: LungBackground = self._lungs.get(recipe.lung, self._prepare_lung).layer
        return layer

    def shape(self, recipe: Recipe) -> tuple[int, int]:
        """(H, W) of a sample."""
        height, width = self._lungs.get(recipe.lung, self._prepare_lung).layer.label.shape
        return height, width

    def spacing_mm(self, recipe: Recipe) -> tuple[float, float]:
        """(row, column) of a sample."""
        spacing: tuple[float, float] = self._lungs.get(recipe.lung, self._prepare_lung).layer.spacing_mm
        return spacing

    def _stamp(self, placed: NodulePlacement, lung: LungBackground) -> ResampledNodule:
        edge, loudness = blur_steps(lung.texture, placed.scale), noise_class(lung.texture)
        fraction = placed.row_px % 1, placed.col_px % 1
        transform = placed.asset, fraction, placed.rotation_deg, placed.flip, placed.scale
        key = (transform, lung.spacing_mm, edge, loudness)

        def patch_of(steps: int, grain: int) -> NodulePatch:
            patch: NodulePatch = self._patches.get((placed.asset, steps, grain), self._prepare_patch)
            return patch

        def make(_: Hashable) -> ResampledNodule:
            return match_noise_and_edge(placed, patch_of, lung.spacing_mm, steps=edge, loudness=loudness)

        stamp: ResampledNodule = self._stamps.get(key, make)
        return stamp

    def _prepare_lung(self, asset_hash: str) -> _PreparedLung:
        asset = self.library[asset_hash]
        hu, mask = self.library.load(asset_hash)
        layer = LungBackground.of(hu, mask > 0, spacing_mm=asset.spacing_mm, matched=self.matched)
        affine = asset.affine_matrix
        signs = (-1.0, -1.0, 1.0)  # RAS to LPS
        lps = tuple((s * float(a[0]), s * float(a[1]), s * float(a[3])) for s, a in zip(signs, affine, strict=False))
        return _PreparedLung(layer, affine, lps)

    def _prepare_patch(self, key: tuple[str, int, int]) -> NodulePatch:
        asset_hash, steps, grain = key
        if (kind := self.library[asset_hash].kind) != "nodule":
            raise InputError(f"{self.library.folder}: asset {asset_hash} should be a nodule, it is a {kind}.")
        return NodulePatch.from_asset(self.library.load(asset_hash), blur_steps=steps, grain_steps=grain)


class _Recent:
    """Values by key, made when they are asked for; the one not used for longest goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[Any], Any]) -> Any:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value

    def __getstate__(self) -> dict[str, Any]:
        # What was made would travel as copies to the workers of a DataLoader.
        return {"_size": self._size, "_values": OrderedDict()}


_renderers: WeakKeyDictionary[AssetLibrary, Renderer] = WeakKeyDictionary()


def render(recipe: Recipe, library: AssetLibrary, *, enhance: Enhancer | None = None) -> Rendered:
    """Makes a sample.

    Args:
        recipe: what to make.
        library: holds the recipe's assets; what they are turned into is kept as long as it lives.
        enhance: the last stage; the sample is as it was before that stage when None. The label stays as it is.

    Raises:
        InputError: when an asset is missing, damaged or of another kind.
    """
    renderer = _renderers.get(library) or _renderers.setdefault(library, Renderer(library))
    sample = renderer.render(recipe)
    if enhance is None:
        return sample
    return replace(sample, image=enhance(sample.image, sample.label == Label.NODULE))
