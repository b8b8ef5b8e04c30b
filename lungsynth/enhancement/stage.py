"""Enhances samples of a catalogue: the lung once, then what depends on the nodules, then the label check.

The result is that of the enhancer on the whole slice, pixel for pixel, where the label check leaves it alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lungsynth.compositing.overlay import LungBackground
from lungsynth.compositing.render import Enhancer, Rendered
from lungsynth.enhancement.changes import Changes
from lungsynth.enhancement.identity import enhancement_identity, enhancement_key
from lungsynth.enhancement.label_check import (
    LABEL_CHECK_MARGIN,
    LABEL_CHECK_TOLERANCE,
    MAX_ROUNDS,
    LabelCheck,
    LabelComparison,
    transition_mask,
)
from lungsynth.enhancement.lungs import EnhancedLung, EnhancedLungs
from lungsynth.enhancement.regions import Region, regions_of
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.catalogue import Catalogue
from lungsynth.placement.lung_shape import Box
from lungsynth.types import HuPlane, Plane

__all__ = ["EnhancedSlice", "EnhancementStage", "LabelCheckVerdict", "check_noted_weights", "open_stage"]

LabelCheckVerdict = Literal["unchecked", "kept", "blended", "refused"]


@dataclass(frozen=True, kw_only=True)
class EnhancedSlice:
    """What became of a sample.

    Args:
        verdict: `unchecked` without a label check; `kept`: nothing was lost or new; `blended`: back to the composite
            near what was; `refused`: that did not help, and the sample is the composite.
        found: nodules that the segmentation found in the composite.
        lost: of those, not found in the enhanced slice as it was before blending.
        invented: likewise findings that are new.
        changes: of HU, from the composite to the sample as it is now.
    """

    verdict: LabelCheckVerdict
    found: int
    lost: int
    invented: int
    changes: Changes

    def facts(self) -> dict[str, int | str]:
        """All but `changes`, as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "changes"}


class EnhancementStage:
    """`(sample, lung hash, lung) -> image and EnhancedSlice`.

    Args:
        enhance: the enhancer of cyclegan_bundle. One that does not state its `receptive_field_px` is applied to whole
            slices.
        label_check: blends back what costs or invents a nodule; None for no check.
        key: what decides over its results, for the names of files (`identity.enhancement_key`).
        folder: of enhanced lungs; None keeps them in memory alone.
    """

    def __init__(
        self, enhance: Enhancer, *, label_check: LabelCheck | None = None, key: str = "", folder: Path | None = None
    ) -> None:
        self._enhance = enhance
        self._label_check = label_check
        self._field = getattr(enhance, "receptive_field_px", None)
        self._alignment = getattr(enhance, "alignment_px", 1)
        self._lungs = EnhancedLungs(self._make_lung, key=key, folder=folder)

    def lung(self, lung_hash: str, background: LungBackground) -> EnhancedLung:
        """The enhanced lung, from memory or folder where it is there."""
        return self._lungs.get(lung_hash, background)

    def __call__(self, sample: Rendered, lung_hash: str, background: LungBackground) -> tuple[HuPlane, EnhancedSlice]:
        """Enhances a sample.

        Args:
            sample: the composite; its labels stay as they are.
            lung_hash: hash of its lung's asset.
            background: that lung.
        """
        lung = self.lung(lung_hash, background)
        shape = background.hu.shape[0], background.hu.shape[1]
        regions = self._regions(sample.windows, shape)
        image = np.array(lung.hu)
        for region in regions:
            self._fill(image, sample, lung, region)
        changes = self._changes(sample, image, lung, background, [region.changed for region in regions])
        if self._label_check is None or not regions:
            return image, EnhancedSlice(verdict="unchecked", found=0, lost=0, invented=0, changes=changes)
        return _checked(self._label_check, sample, image, changes, background)

    def _regions(self, windows: Sequence[Box], shape: tuple[int, int]) -> list[Region]:
        if self._field is None:
            whole = Box(0, 0, *shape)
            return [Region(whole, whole)] if windows else []
        return regions_of(windows, shape, receptive_field_px=self._field, alignment_px=self._alignment)

    def _fill(self, image: HuPlane, sample: Rendered, lung: EnhancedLung, region: Region) -> None:
        seen, changed = region.seen.pixels, region.changed.pixels
        nodule = sample.label[seen] == Label.NODULE
        enhanced = self._enhance(np.ascontiguousarray(sample.image[seen]), nodule)[region.inside]
        share = None if lung.share is None else lung.share[changed]
        image[changed] = _with_share(sample.image[changed], enhanced, share)

    def _changes(
        self, sample: Rendered, image: HuPlane, lung: EnhancedLung, background: LungBackground, boxes: Sequence[Box]
    ) -> Changes:
        """Those of the lung but for the boxes, which never overlap."""
        total = lung.changes
        for box in boxes:
            at = box.pixels
            total = total - Changes.of(np.asarray(background.hu[at]), lung.hu[at], background.label[at])
            total = total + Changes.of(sample.image[at], image[at], sample.label[at])
        return total

    def _make_lung(self, background: LungBackground) -> tuple[HuPlane, Plane | None]:
        """A lung is checked as a whole, once, so that samples need only be where their nodules are."""
        hu = np.array(background.hu)  # of its own: assets are mapped and not to be written to, which torch warns of
        enhanced = self._enhance(hu, np.zeros(hu.shape, np.bool_))
        if (check := self._label_check) is None:
            return enhanced, None
        nothing = _without_nodules(background)
        before, share, image = check.detect(hu, background.spacing_mm), None, enhanced
        for _ in range(MAX_ROUNDS):
            after = check.detect(image, background.spacing_mm)
            comparison = check.compare(before, after, nothing, background.spacing_mm)
            if comparison.kept:
                return image, share
            transition = transition_mask(comparison.invented, image.shape)
            share = transition if share is None else np.minimum(share, transition)
            image = _with_share(hu, enhanced, share)
        return hu, np.zeros(hu.shape, np.float32)


def open_stage(bundles: Path, *, label_check: bool, folder: Path | None = None) -> EnhancementStage:
    """The stage with the enhancer and, for the label check, the detector of a folder of bundles.

    Args:
        bundles: folder of the bundles.
        label_check: blend back what costs or invents a nodule.
        folder: of enhanced lungs; None keeps them in memory alone.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    from lungsynth.bundles import open_bundle

    key = enhancement_key(enhancement_identity(bundles, label_check=label_check))
    enhance: Enhancer = open_bundle(bundles, "cyclegan", component="enhancer")
    if not label_check:
        return EnhancementStage(enhance, key=key, folder=folder)
    check = LabelCheck(
        open_bundle(bundles, "lung_seg", component="detector"),
        margin=LABEL_CHECK_MARGIN,
        tolerance=LABEL_CHECK_TOLERANCE,
    )
    return EnhancementStage(enhance, label_check=check, key=key, folder=folder)


def check_noted_weights(catalogue: Catalogue, bundles: Path) -> None:
    """Looks whether the enhancer is the one that made the samples of a catalogue.

    Raises:
        InputError: when it has other weights, or cannot be used.
    """
    from lungsynth.bundles import read_weights

    noted, found = catalogue.enhancement, read_weights(bundles, "cyclegan").sha256
    if noted is not None and noted.weights != found:
        raise InputError(
            f"{catalogue.path}: its samples went through a CycleGAN with the weights {noted.weights[:12]}..., "
            f"{bundles} has {found[:12]}... Give `bundles` with those weights, or say with `enhance` that these are to "
            "be used, or that the samples stay composites."
        )


def _checked(
    check: LabelCheck, sample: Rendered, image: HuPlane, changes: Changes, background: LungBackground
) -> tuple[HuPlane, EnhancedSlice]:
    """The enhanced image, blended back where that is needed, and what became of it."""
    spacing_mm = background.spacing_mm
    before = check.detect(sample.image, spacing_mm)
    first = comparison = check.compare(before, check.detect(image, spacing_mm), sample, spacing_mm)
    facts = {"found": first.n_found, "lost": first.n_lost, "invented": first.n_invented}
    if first.kept:
        return image, EnhancedSlice(verdict="kept", changes=changes, **facts)
    for _ in range(MAX_ROUNDS):
        image = _blended_back(sample.image, image, comparison)
        comparison = check.compare(before, check.detect(image, spacing_mm), sample, spacing_mm)
        if comparison.kept:
            break
    image = image if comparison.kept else np.array(sample.image)
    changes = Changes.of(sample.image, image, sample.label)
    return image, EnhancedSlice(verdict="blended" if comparison.kept else "refused", changes=changes, **facts)


def _with_share(before: HuPlane, after: HuPlane, share: Plane | None) -> HuPlane:
    """`before` with a share of the change."""
    if share is None:
        return after
    change = after.astype(np.float32) - before
    mixed: HuPlane = before + np.rint(share * change).astype(np.int16)
    return mixed


def _blended_back(before: HuPlane, image: HuPlane, comparison: LabelComparison) -> HuPlane:
    shape = image.shape[0], image.shape[1]
    return _with_share(before, image, transition_mask((*comparison.lost, *comparison.invented), shape))


def _without_nodules(background: LungBackground) -> Rendered:
    return Rendered(
        image=np.asarray(background.hu),
        label=background.label,
        affine=np.eye(4),
        boxes=(),
        masks=(),
        annotations=(),
        windows=(),
    )
