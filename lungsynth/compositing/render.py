"""Rendering: a recipe and the library of its assets -> image, label map and annotations, on the lung's own grid.

A `Renderer` keeps what assets were turned into (lungs with their noise, patches, resampled nodules), since a catalogue
uses each many times. No byte depends on what is kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from lungsynth.compositing.nodule import NoduleMatch, NodulePatch, ResampledNodule, match_noise_and_edge
from lungsynth.compositing.overlay import LungBackground, NoduleMask, overlay
from lungsynth.errors import InputError
from lungsynth.geometry import Box
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe
from lungsynth.placement.groups import NodulePlacement
from lungsynth.types import Affine, HuPlane, LabelPlane

__all__ = ["Annotation", "Enhancer", "Rendered", "Renderer", "render"]

Enhancer = Callable[..., np.ndarray]  # (hu: int16 (H, W), nodule_mask: bool (H, W)) -> int16 (H, W)

# How many are kept: at 512 x 512 some 600 MB in all, for a paper's 500 lungs and 1,200 nodules. Speed and memory alone.
_CACHED_LUNGS = 1024  # label map and noise: 0.3 MB each; the HU stay mapped
_CACHED_PATCHES = 2048  # 0.02 MB each
_CACHED_NODULES = 16384  # resampled: 0.006 MB each


class Annotation(NamedTuple):
    """A nodule as in LUNA16's `annotations.csv`: LPS mm of its centre, and the diameter measured on the label map."""

    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Rendered:
    """A sample before enhancement.

    Args:
        image: HU.
        label: `Label` ids.
        affine: (column, row, slice) -> RAS mm, the lung's.
        boxes: one for each nodule.
        masks: one for each nodule, in its box.
        annotations: one for each nodule.
        windows: one for each nodule; outside them the image is its lung.
    """

    image: HuPlane
    label: LabelPlane
    affine: Affine
    boxes: tuple[Box, ...]
    masks: tuple[NoduleMask, ...]
    annotations: tuple[Annotation, ...]
    windows: tuple[Box, ...]


class Renderer:
    """Makes the samples of a library.

    Args:
        library: the assets.
        matched: give nodules the noise and the edges of their lung; without, they keep those of their patches.
    """

    def __init__(self, library: AssetLibrary, *, matched: bool = True) -> None:
        self.library = library
        self.matched = matched
        self._lungs = _LruCache(_CACHED_LUNGS)
        self._patches = _LruCache(_CACHED_PATCHES)
        self._nodules = _LruCache(_CACHED_NODULES)

    def render(self, recipe: Recipe, *, out: tuple[HuPlane, LabelPlane] | None = None) -> Rendered:
        """Makes a sample as it is before enhancement.

        Args:
            recipe: what to make.
            out: arrays of the lung's shape to fill with image and label; new ones when None.

        Raises:
            InputError: when an asset is missing, damaged or of another kind.
        """
        lung = self._lung(recipe)
        nodules = [(placement, self._resampled(placement, lung.background)) for placement in recipe.nodules]
        composite = overlay(lung.background, nodules, seed=recipe.seed, out=out)
        annotations = [
            Annotation(*_lps(lung, placement), nodule.diameter_mm)
            for placement, nodule in zip(recipe.nodules, composite.nodules, strict=True)
        ]
        return Rendered(
            image=composite.image,
            label=composite.label,
            affine=lung.affine,
            boxes=tuple(nodule.box for nodule in composite.nodules),
            masks=tuple(nodule.mask for nodule in composite.nodules),
            annotations=tuple(annotations),
            windows=tuple(nodule.window for nodule in composite.nodules),
        )

    def lung(self, recipe: Recipe) -> Rendered:
        """The lung of a sample without its nodules."""
        lung = self._lung(recipe)
        image, label = np.array(lung.background.hu), lung.background.label.copy()
        return Rendered(image=image, label=label, affine=lung.affine, boxes=(), masks=(), annotations=(), windows=())

    def background(self, recipe: Recipe) -> LungBackground:
        """The lung that a sample lies on, as it is kept; not to be written to."""
        return self._lung(recipe).background

    def shape(self, recipe: Recipe) -> tuple[int, int]:
        """(H, W) of a sample."""
        height, width = self._lung(recipe).background.label.shape
        return height, width

    def spacing_mm(self, recipe: Recipe) -> tuple[float, float]:
        """(row, column) of a sample."""
        return self._lung(recipe).background.spacing_mm

    def _lung(self, recipe: Recipe) -> "_PreparedLung":
        lung: _PreparedLung = self._lungs.get(recipe.lung, self._prepare_lung)
        return lung

    def _resampled(self, placement: NodulePlacement, background: LungBackground) -> ResampledNodule:
        match = NoduleMatch.of(background.noise, placement.scale)
        fraction = placement.row_px % 1, placement.col_px % 1
        transform = placement.asset, fraction, placement.rotation_deg, placement.flip, placement.scale

        def patch_of(blur_steps: int, smoothing_steps: int) -> NodulePatch:
            key = (placement.asset, blur_steps, smoothing_steps)
            patch: NodulePatch = self._patches.get(key, self._prepare_patch)
            return patch

        def make(_: Hashable) -> ResampledNodule:
            return match_noise_and_edge(placement, patch_of, background.spacing_mm, match)

        nodule: ResampledNodule = self._nodules.get((transform, background.spacing_mm, match), make)
        return nodule

    def _prepare_lung(self, asset_hash: str) -> "_PreparedLung":
        asset = self.library[asset_hash]
        hu, mask = self.library.load(asset_hash)
        background = LungBackground.of(hu, mask > 0, spacing_mm=asset.spacing_mm, matched=self.matched)
        affine = asset.affine_matrix
        signs = (-1.0, -1.0, 1.0)  # RAS to LPS
        lps = tuple((s * float(a[0]), s * float(a[1]), s * float(a[3])) for s, a in zip(signs, affine, strict=False))
        return _PreparedLung(background, affine, lps)

    def _prepare_patch(self, key: tuple[str, int, int]) -> NodulePatch:
        asset_hash, blur_steps, smoothing_steps = key
        if (kind := self.library[asset_hash].kind) != "nodule":
            raise InputError(f"{self.library.folder}: asset {asset_hash} should be a nodule, it is a {kind}.")
        stored = self.library.load(asset_hash)
        return NodulePatch.from_asset(stored, blur_steps=blur_steps, smoothing_steps=smoothing_steps)


def render(recipe: Recipe, library: AssetLibrary) -> Rendered:
    """Makes a sample before enhancement, by a renderer that is kept as long as the library lives.

    Args:
        recipe: what to make.
        library: holds the recipe's assets.

    Raises:
        InputError: when an asset is missing, damaged or of another kind.
    """
    renderer = _renderers.get(library) or _renderers.setdefault(library, Renderer(library))
    return renderer.render(recipe)


_renderers: WeakKeyDictionary[AssetLibrary, Renderer] = WeakKeyDictionary()


class _PreparedLung(NamedTuple):
    background: LungBackground
    affine: Affine
    lps: tuple[tuple[float, float, float], ...]  # rows x, y, z: factors of column and row, and the origin


def _lps(lung: _PreparedLung, placement: NodulePlacement) -> tuple[float, float, float]:
    x, y, z = (column * placement.col_px + row * placement.row_px + origin for column, row, origin in lung.lps)
    return x, y, z


class _LruCache:
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
