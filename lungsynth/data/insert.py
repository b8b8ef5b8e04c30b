"""A MONAI transform that inserts nodules into a user's own real slices while they train.

Slices are (1, H, W) in HU and in the project's frame: rows anterior to posterior, columns from the patient's right to
left, which `LoadImaged`, `EnsureChannelFirstd`, `Orientationd(axcodes="PLS")` and `SqueezeDimd(dim=-1)` give. Put it
before any transform of intensities.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from lungsynth.compositing.nodule import NoduleMatch, NodulePatch, ResampledNodule, match_noise_and_edge
from lungsynth.compositing.overlay import LungBackground, Overlay, overlay
from lungsynth.config import PlacementConfig, Policy
from lungsynth.data.dataset import Ragged
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label, check_hu, to_int16
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.groups import GroupArrays, GroupSettings, NodulePlacement, draw_groups
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.planning import usable_pairs
from lungsynth.placement.policy import classes_of, varied_ranks
from lungsynth.placement.presence import PresencePrior, expected_distances, lidc_presence
from lungsynth.placement.rules import PlacementRules, resolve, score

__all__ = ["InsertionSettings", "RandInsertNodulesd", "SeededMapTransform", "like"]

_MAX_SEED = 2**31 - 1  # what `RandomState.randint` gives on every platform


@dataclass(frozen=True, kw_only=True)
class InsertionSettings:
    """How nodules are placed on a slice.

    Args:
        policy: which of the groups that fit is inserted, as in a plan: `varied` or `farthest`.
        prior: where nodules occur; LIDC-IDRI's density on the slice's own lungs when None.
        groups: how many there are on a slice, their scales and turns.
        rules: where they may lie; those of the policy when None.
        tries: groups drawn; a slice on which none fits stays as it is.

    Raises:
        InputError: when the policy needs a cohort.
    """

    policy: Policy = "varied"
    prior: PresencePrior | None = None
    groups: GroupSettings = field(default_factory=GroupSettings)
    rules: PlacementRules | None = None
    tries: int = 20

    def __post_init__(self) -> None:
        if self.policy not in ("varied", "farthest"):
            raise InputError(f"Nodules are inserted with the policy varied or farthest, got {self.policy}.")

    @property
    def placement_rules(self) -> PlacementRules:
        """The rules given, else those of the policy."""
        return PlacementConfig(policy=self.policy, rules=self.rules).placement_rules

    def choose(self, shape: LungShape, nodules: Sequence[Asset], *, seed: int) -> tuple[NodulePlacement, ...]:
        """Where nodules come to lie on a lung; none when no group fits.

        Args:
            shape: of the lung.
            nodules: to choose from.
            seed: of all that is random.
        """
        prior = self.prior or lidc_presence([shape])
        groups = draw_groups(nodules, self.tries, seed=seed, prior=prior, settings=self.groups)
        arrays = GroupArrays.of(groups)
        scores = score(shape, arrays, self.placement_rules)
        usable = usable_pairs(scores)
        if not len(usable):
            return ()
        if self.policy == "farthest":
            best = usable[int(scores.min_distance[usable].argmax())]
        else:
            classes = classes_of(arrays, scores.distance[arrays.places[usable]], usable)
            best = usable[int(varied_ranks(classes, expected_distances(prior, [shape]), seed=seed).argmin())]
        return resolve(shape, groups[int(best)], self.placement_rules).placements


class SeededMapTransform(RandomizableTransform, MapTransform):
    """A dictionary transform of which one seed decides all that is random.

    Args:
        keys: of what it changes.
        prob: probability of changing anything.
    """

    def __init__(self, keys: Hashable, prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        self.seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether to change anything, and the seed from which all else follows."""
        super().randomize(None)
        self.seed = int(self.R.randint(_MAX_SEED))


class RandInsertNodulesd(SeededMapTransform):
    """Inserts a group of nodules into a slice, where nodules occur and where they fit, with its noise and sharpness.

    Adds to a dictionary, or extends there: nodule pixels (2) in the label map, `boxes` float32 (n, 4) and `labels`
    int64 (n,), indices into `categories`, both `Ragged` as `LayeredLungDataset` has them. A slice that gets no nodule,
    by chance or because no group fits, has boxes of n = 0. The same `set_random_state` gives the same nodules.

    Args:
        library: folder with `assets/` and `assets.parquet`, or the library itself; its nodules are used.
        keys: of the image, one.
        label_key: uint8 (1, H, W), 1 in lung; nodules that are there already stay.
        prob: probability of inserting any nodule.
        spacing_mm: (row, column), for images without meta data.
        categories: nodules to choose from; all of the library when None.
        settings: how they are placed; the defaults of `InsertionSettings` when None.

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
        settings: InsertionSettings | None = None,
    ) -> None:
        super().__init__(keys, prob)
        self.library = library if isinstance(library, AssetLibrary) else AssetLibrary(Path(library))
        nodules = [asset for asset in self.library if asset.kind == "nodule"]
        self.categories = tuple(sorted({asset.category for asset in nodules})) if categories is None else categories
        self.nodules = [asset for asset in nodules if asset.category in self.categories]
        if not self.nodules:
            raise InputError(f"{self.library.folder}: no nodule of {self.categories}; it has {len(nodules)} of others.")
        self.label_key, self.spacing_mm = label_key, spacing_mm
        self.settings = settings or InsertionSettings()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary with nodules."""
        result = dict(data)
        for key, dtype, columns in (("boxes", torch.float32, 4), ("labels", torch.int64, None)):
            result[key] = Ragged.of(result.get(key, ()), dtype, columns)
        self.randomize()
        if not self._do_transform:
            return result
        image, label = result[self.keys[0]], result[self.label_key]
        hu, labelled = _plane(image, self.keys[0]), _plane(label, self.label_key)
        check_hu(hu, name=str(self.keys[0]))
        spacing_mm = _spacing_mm(image, self.spacing_mm)
        lung = (labelled == Label.LUNG) | (labelled == Label.NODULE)
        shape = LungShape.from_mask(lung, spacing_mm=spacing_mm, hu=to_int16(hu))
        background = LungBackground.of(to_int16(hu), lung, spacing_mm=spacing_mm)
        if placements := self.settings.choose(shape, self.nodules, seed=self.seed):
            self._insert(result, background, placements)
        return result

    def _insert(
        self, result: dict[Hashable, Any], background: LungBackground, placements: tuple[NodulePlacement, ...]
    ) -> None:
        nodules = [(placement, self._resampled(placement, background)) for placement in placements]
        composite = overlay(background, nodules, seed=self.seed)
        image, label = result[self.keys[0]], result[self.label_key]
        # What the overlay did not touch stays the user's own, fractions of HU included.
        touched = composite.image != background.hu
        result[self.keys[0]] = like(image, np.where(touched, composite.image, _plane(image, self.keys[0])))
        labelled = _plane(label, self.label_key)
        result[self.label_key] = like(label, np.where(composite.label == Label.NODULE, Label.NODULE, labelled))
        self._annotate(result, composite, placements)

    def _resampled(self, placement: NodulePlacement, background: LungBackground) -> ResampledNodule:
        stored = self.library.load(placement.asset)

        def patch_of(blur_steps: int, smoothing_steps: int) -> NodulePatch:
            return NodulePatch.from_asset(stored, blur_steps=blur_steps, smoothing_steps=smoothing_steps)

        match = NoduleMatch.of(background.noise, placement.scale)
        return match_noise_and_edge(placement, patch_of, background.spacing_mm, match)

    def _annotate(
        self, result: dict[Hashable, Any], composite: Overlay, placements: tuple[NodulePlacement, ...]
    ) -> None:
        boxes = [nodule.box for nodule in composite.nodules]
        labels = [self.categories.index(placement.category) for placement in placements]
        for key, values in (("boxes", boxes), ("labels", labels)):
            result[key] = torch.cat([result[key], torch.tensor(values, dtype=result[key].dtype)])


def _plane(values: Any, key: Hashable) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 3 or array.shape[0] != 1:
        raise InputError(
            f"`{key}`: nodules are inserted into slices of shape (1, H, W), got {array.shape}. Take slices first, and "
            'turn them with Orientationd(axcodes="PLS").'
        )
    return rearrange(array, "1 h w -> h w")


def like(values: Any, array: np.ndarray) -> Any:
    """An array without channels as (1, ...), of the type, dtype, device and meta data of what it replaces."""
    if isinstance(values, torch.Tensor):
        fresh = values.clone()
        fresh[...] = torch.as_tensor(array[None], device=values.device).to(values.dtype)
        return fresh
    return array[None].astype(np.asarray(values).dtype)


def _spacing_mm(image: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        return given
    if not isinstance(image, MetaTensor):
        raise InputError("The image has no meta data that would tell its spacing; give spacing_mm=(row, column).")
    row_mm, column_mm = (float(value) for value in image.pixdim[:2])
    return row_mm, column_mm
