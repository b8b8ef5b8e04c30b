"""A MONAI transform that lays nodules on a user's own real slices while they train.

Slices are (1, H, W) in HU and in the project's frame: rows anterior to posterior, columns from the patient's right to
left, which `LoadImaged`, `EnsureChannelFirstd`, `Orientationd(axcodes="PLS")` and `SqueezeDimd(dim=-1)` give. Put it
before any transform of intensities.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from lungsynth.compositing.nodule import NodulePatch, ResampledNodule, blur_steps, match_noise_and_edge, noise_class
from lungsynth.compositing.overlay import LungBackground, Overlay, overlay
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label, check_hu, to_int16
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.groups import GroupSettings, draw_groups
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.presence import PresencePrior, analytic_presence
from lungsynth.placement.resolve import NodulePlacement, resolve
from lungsynth.placement.rules import PlacementRules

__all__ = ["RandInsertNodulesd"]

_LARGEST_SEED = 2**31 - 1


class RandInsertNodulesd(RandomizableTransform, MapTransform):
    """Lays a group of nodules on a slice, where nodules occur and where they fit, with the noise and edge of the slice.

    Adds to a dictionary, or extends there: nodule pixels (2) in the label map, `boxes` float32 (n, 4) as
    `LayeredLungDataset` has them, and `labels` int64 (n,), indices into `categories`. A slice on which no group fits
    after `tries` stays as it is. The same `set_random_state` gives the same nodules.

    Args:
        library: folder with `assets/` and `assets.parquet`, or the library itself; its nodules are used.
        keys: of the image, one.
        label_key: uint8 (1, H, W), 1 in lung; nodules that are there already stay.
        prob: of laying any nodule.
        spacing_mm: (row, column), for images without meta data.
        categories: nodules to choose from; all of the library when None.
        prior: where nodules occur.
        settings: counts, scales and turns.
        rules: where nodules may lie.
        tries: groups tried on a slice.

    Raises:
        InputError: when the library has no nodule of these categories; on a call, when the slice is not as above.
    """

    def __init__(
        self,
        library: str | Path | AssetLibrary,
        *,
        keys: Hashable = "image",
        label_key: Hashable = "label",
        prob: float = 1.0,
        spacing_mm: tuple[float, float] | None = None,
        categories: tuple[str, ...] | None = None,
        prior: PresencePrior | None = None,
        settings: GroupSettings | None = None,
        rules: PlacementRules | None = None,
        tries: int = 20,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        self.library = library if isinstance(library, AssetLibrary) else AssetLibrary(Path(library))
        found = [asset for asset in self.library if asset.kind == "nodule"]
        self.categories = tuple(sorted({asset.category for asset in found})) if categories is None else categories
        self.nodules = [asset for asset in found if asset.category in self.categories]
        if not self.nodules:
            raise InputError(f"{self.library.folder}: no nodule of {self.categories}; it has {len(found)} of others.")
        self.label_key, self.spacing_mm, self.tries = label_key, spacing_mm, tries
        self.prior, self.settings, self.rules = prior or analytic_presence(), settings, rules or PlacementRules()
        self.seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether to lay nodules, and the seed from which all else follows."""
        super().randomize(None)
        self.seed = int(self.R.randint(_LARGEST_SEED))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary with nodules."""
        result = dict(data)
        self.randomize()
        if not self._do_transform:
            return result
        image, label = result[self.keys[0]], result[self.label_key]
        hu, known = _plane(image, self.keys[0]), _plane(label, self.label_key)
        check_hu(hu, name=str(self.keys[0]))
        spacing_mm = _spacing_mm(image, self.spacing_mm)
        lung = (known == Label.LUNG) | (known == Label.NODULE)
        shape = LungShape.from_mask(lung, spacing_mm=spacing_mm, hu=to_int16(hu))
        layer = LungBackground.of(to_int16(hu), lung, spacing_mm=spacing_mm)
        for group in draw_groups(self.nodules, self.tries, seed=self.seed, prior=self.prior, settings=self.settings):
            placed = resolve(shape, group, self.rules).placements
            if placed:
                self._insert(result, layer, placed)
                break
        return result

    def _insert(self, result: dict[Hashable, Any], layer: LungBackground, placed: tuple[NodulePlacement, ...]) -> None:
        laid = overlay(layer, [(one, self._stamp(one, layer)) for one in placed], seed=self.seed)
        image, label = result[self.keys[0]], result[self.label_key]
        # What the overlay did not touch stays the user's own, fractions of HU included.
        touched = laid.image != layer.hu
        result[self.keys[0]] = _like(image, np.where(touched, laid.image, _plane(image, self.keys[0])))
        known = _plane(label, self.label_key)
        result[self.label_key] = _like(label, np.where(laid.label == Label.NODULE, Label.NODULE, known))
        self._annotate(result, laid, placed)

    def _stamp(self, placed: NodulePlacement, layer: LungBackground) -> ResampledNodule:
        def patch_of(steps: int, grain: int) -> NodulePatch:
            return NodulePatch.from_asset(self.library.load(placed.asset), blur_steps=steps, grain_steps=grain)

        steps, loudness = blur_steps(layer.texture, placed.scale), noise_class(layer.texture)
        return match_noise_and_edge(placed, patch_of, layer.spacing_mm, steps=steps, loudness=loudness)

    def _annotate(self, result: dict[Hashable, Any], laid: Overlay, placed: tuple[NodulePlacement, ...]) -> None:
        boxes = torch.tensor([finding.box for finding in laid.findings], dtype=torch.float32)
        labels = torch.tensor([self.categories.index(one.category) for one in placed])
        for key, values in (("boxes", boxes), ("labels", labels)):
            before = torch.as_tensor(result[key]) if key in result else values[:0]
            result[key] = torch.cat([before.to(values.dtype), values])


def _plane(values: Any, key: Hashable) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 3 or array.shape[0] != 1:
        raise InputError(
            f"`{key}`: nodules are laid on slices of shape (1, H, W), got {array.shape}. Take slices first, and turn "
            'them with Orientationd(axcodes="PLS").'
        )
    return rearrange(array, "1 h w -> h w")


def _like(values: Any, plane: np.ndarray) -> Any:
    """The plane as (1, H, W), of the type, dtype, device and meta data of what it replaces."""
    array = rearrange(plane, "h w -> 1 h w")
    if isinstance(values, torch.Tensor):
        fresh = values.clone()
        fresh[...] = torch.as_tensor(array, device=values.device).to(values.dtype)
        return fresh
    return array.astype(np.asarray(values).dtype)


def _spacing_mm(image: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        return given
    if not isinstance(image, MetaTensor):
        raise InputError("The image has no meta data that would tell its spacing; give spacing_mm=(row, column).")
    row_mm, column_mm = (float(value) for value in image.pixdim[:2])
    return row_mm, column_mm
