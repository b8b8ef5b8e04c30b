"""Enhances samples of a catalogue: the lung once, then what depends on the nodules, then the label check.

The result is that of the enhancer on the whole slice, pixel for pixel, where the label check leaves it alone. An
enhancer with a receptive field of 2 r + 1 pixels changes, beside the windows of the nodules, r pixels around them; to
compute those as in the whole slice it must see r more (`regions_of`). An enhanced lung is made once: it is kept in
memory, and in a folder where there is one, by the lung and what enhanced it (`EnhancedLungs`).

HU that changed are counted, not averaged, so that sums over samples, and differences of parts of a slice, are exact.
"""

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int64

from lungsynth.bundles import component_settings, open_bundle, read_weights
from lungsynth.compositing.overlay import LungBackground
from lungsynth.compositing.render import Enhancer, Rendered
from lungsynth.enhancement.label_check import (
    LABEL_CHECK_DOUBT,
    LABEL_CHECK_MARGIN,
    LABEL_CHECK_RULES,
    LABEL_CHECK_TOLERANCE,
    MAX_ROUNDS,
    SHARE_STEPS,
    LabelCheck,
    LabelComparison,
    LungLook,
    transition_mask,
)
from lungsynth.errors import InputError
from lungsynth.geometry import Box, joined_boxes
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import replacing
from lungsynth.placement.catalogue import Catalogue
from lungsynth.types import HuPlane, LabelPlane, Plane

__all__ = [
    "CHANGE_BINS",
    "ZONES",
    "Changes",
    "EnhancedLung",
    "EnhancedLungs",
    "EnhancedSlice",
    "EnhancementStage",
    "LabelCheckVerdict",
    "Region",
    "change_summary",
    "check_noted_weights",
    "enhancement_identity",
    "enhancement_key",
    "open_stage",
    "regions_of",
]

LabelCheckVerdict = Literal["unchecked", "kept", "blended", "refused"]
ZONES = ("outside", "lung", "nodule")  # in the order of `Label`
CHANGE_BINS = 512  # of 1 HU; larger changes count as 511 HU, and the enhancer's are bounded by far less

_IN_MEMORY = 512  # enhanced lungs, with what was found on them 3 MB each at 512 x 512
_ENHANCER, _DETECTOR = ("cyclegan", "enhancer"), ("lung_seg", "detector")  # bundles and their components


Counts = Int64[np.ndarray, "3 512"]


@dataclass(frozen=True, eq=False)
class Changes:
    """Pixels of each zone by their absolute change in whole HU."""

    counts: Counts

    @classmethod
    def none(cls) -> "Changes":
        """Of no pixel."""
        return cls(np.zeros((len(ZONES), CHANGE_BINS), np.int64))

    @classmethod
    def of(cls, before: HuPlane, after: HuPlane, label: LabelPlane) -> "Changes":
        """Counts the pixels of a slice or a part of one; unlabelled pixels are outside."""
        change = np.minimum(np.abs(after.astype(np.int32) - before), CHANGE_BINS - 1)
        zone = np.where(label <= Label.NODULE, label, Label.BACKGROUND).astype(np.int32)
        flat = np.bincount((zone * CHANGE_BINS + change).ravel(), minlength=len(ZONES) * CHANGE_BINS)
        return cls(flat.reshape(len(ZONES), CHANGE_BINS).astype(np.int64))

    @classmethod
    def total(cls, changes: Iterable["Changes"]) -> "Changes":
        """The sum of several."""
        return cls(sum((each.counts for each in changes), cls.none().counts))

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(self.counts + other.counts)

    def __sub__(self, other: "Changes") -> "Changes":
        return Changes(self.counts - other.counts)

    def figures(self) -> dict[str, float | None]:
        """`<zone>_mean_hu` and `<zone>_p95_hu`; None for a zone without pixels."""
        figures: dict[str, float | None] = {}
        for zone, counts in zip(ZONES, self.counts, strict=True):
            pixels = int(counts.sum())
            mean = float(counts @ np.arange(CHANGE_BINS)) / pixels if pixels else None
            highest = int(np.searchsorted(np.cumsum(counts), 0.95 * pixels)) if pixels else None
            figures |= {f"{zone}_mean_hu": mean, f"{zone}_p95_hu": highest}
        return figures


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


class EnhancedLung(NamedTuple):
    """A lung after enhancement.

    Args:
        hu: HU.
        share: of the enhancer's change that was left at each pixel; None where that is all of it everywhere.
        changes: from the lung before.
        look: of the label check, where that looks at windows.
    """

    hu: HuPlane
    share: Plane | None
    changes: Changes
    look: LungLook | None = None


class Region(NamedTuple):
    """`changed` is what becomes of the slice, `seen` what the enhancer must see for it."""

    changed: Box
    seen: Box

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where `changed` lies in `seen`."""
        top, left, bottom, right = self.changed
        return (
            slice(top - self.seen.row_from, bottom - self.seen.row_from),
            slice(left - self.seen.column_from, right - self.seen.column_from),
        )


class EnhancementStage:
    """`(sample, lung hash, lung) -> image and EnhancedSlice`.

    Args:
        enhance: the enhancer of cyclegan_bundle. One that does not state its `receptive_field_px` is applied to whole
            slices.
        label_check: blends back what costs or invents a nodule; None for no check.
        key: what decides over its results, for the names of files (`enhancement_key`).
        folder: of enhanced lungs; None keeps them in memory alone.
    """

    def __init__(
        self, enhance: Enhancer, *, label_check: LabelCheck | None = None, key: str = "", folder: Path | None = None
    ) -> None:
        self._enhance = enhance
        self._label_check = label_check
        self._field = getattr(enhance, "receptive_field_px", None)
        self._alignment = getattr(enhance, "alignment_px", 1)
        self._lungs = EnhancedLungs(self._make_lung, self._look, key=key, folder=folder)

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
        boxes = [region.changed for region in regions]
        changes = self._changes(sample, image, lung, background, boxes)
        if (check := self._label_check) is None or not regions:
            return image, EnhancedSlice(verdict="unchecked", found=0, lost=0, invented=0, changes=changes)
        near = check.compare_windows(lung.look, image, sample, background.spacing_mm, boxes) if lung.look else None
        if near is not None and near.kept:
            return image, EnhancedSlice(verdict="kept", found=near.n_found, lost=0, invented=0, changes=changes)
        return _checked(check, sample, image, changes, background)

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

    def _look(self, background: LungBackground, enhanced: HuPlane) -> LungLook | None:
        """At a lung that was enhanced by another process."""
        if (check := self._label_check) is None:
            return None
        return LungLook(*(check.look(np.array(hu), background.spacing_mm) for hu in (background.hu, enhanced)))

    def _make_lung(self, background: LungBackground) -> tuple[HuPlane, Plane | None, LungLook | None]:
        """A lung is checked as a whole, once, so that samples need only be where their nodules are."""
        hu = np.array(background.hu)  # of its own: assets are mapped and not to be written to, which torch warns of
        enhanced = self._enhance(hu, np.zeros(hu.shape, np.bool_))
        if (check := self._label_check) is None:
            return enhanced, None, None
        nothing = _without_nodules(background)
        before, share, image = check.look(hu, background.spacing_mm), None, enhanced
        for _ in range(MAX_ROUNDS):
            after = check.look(image, background.spacing_mm)
            comparison = check.compare(before.candidates, after.candidates, nothing, background.spacing_mm)
            if comparison.kept:
                return image, share, LungLook(before, after)
            transition = transition_mask(comparison.invented, image.shape)
            share = transition if share is None else np.minimum(share, transition)
            image = _with_share(hu, enhanced, share)
        return hu, np.zeros(hu.shape, np.float32), LungLook(before, before)


def open_stage(bundles: Path, *, label_check: bool, folder: Path | None = None) -> EnhancementStage:
    """The stage with the enhancer and, for the label check, the detector of a folder of bundles.

    Args:
        bundles: folder of the bundles.
        label_check: blend back what costs or invents a nodule.
        folder: of enhanced lungs; None keeps them in memory alone.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    key = enhancement_key(enhancement_identity(bundles, label_check=label_check))
    enhance: Enhancer = open_bundle(bundles, "cyclegan", component="enhancer")
    if not label_check:
        return EnhancementStage(enhance, key=key, folder=folder)
    check = LabelCheck(
        open_bundle(bundles, "lung_seg", component="detector"),
        margin=LABEL_CHECK_MARGIN,
        tolerance=LABEL_CHECK_TOLERANCE,
        doubt=LABEL_CHECK_DOUBT,
    )
    return EnhancementStage(enhance, label_check=check, key=key, folder=folder)


def check_noted_weights(catalogue: Catalogue, bundles: Path) -> None:
    """Looks whether the enhancer is the one that made the samples of a catalogue.

    Raises:
        InputError: when it has other weights, or cannot be used.
    """
    noted, found = catalogue.enhancement, read_weights(bundles, "cyclegan").sha256
    if noted is not None and noted.weights != found:
        raise InputError(
            f"{catalogue.path}: its samples went through a CycleGAN with the weights {noted.weights[:12]}..., "
            f"{bundles} has {found[:12]}... Give `bundles` with those weights, or say with `enhance` that these are to "
            "be used, or that the samples stay composites."
        )


def enhancement_identity(bundles: Path | None, *, label_check: bool) -> dict[str, str | None]:
    """SHA-256 of weights (`enhancer`, `label_check`) and of settings (`enhancer_settings`, `label_check_settings`).

    Args:
        bundles: folder of the bundles; None where nothing is enhanced.
        label_check: whether the label check takes part.

    Returns:
        None for what takes no part.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    used = {"enhancer": _ENHANCER if bundles else None, "label_check": _DETECTOR if bundles and label_check else None}
    if bundles is None:
        return {key: None for part in used for key in (part, f"{part}_settings")}
    identity: dict[str, str | None] = {}
    for part, place in used.items():
        rules = LABEL_CHECK_RULES if part == "label_check" else {}
        identity[part] = read_weights(bundles, place[0]).sha256 if place else None
        identity[f"{part}_settings"] = _digest([component_settings(bundles, *place), dict(rules)]) if place else None
    return identity


def enhancement_key(identity: Mapping[str, str | None]) -> str:
    """A short name of an identity, for files."""
    return _digest(dict(identity))[:16]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def change_summary(facts: Iterable[Mapping[str, Any]], changes: Changes) -> dict[str, float | None]:
    """The figures of a set.

    Args:
        facts: of each sample, as `EnhancedSlice.facts` gives them.
        changes: of all samples together.

    Returns:
        `samples`; of those `unchecked`, `kept`, `blended` and `refused`; `nodules_found` in the composites; of those
        `nodules_lost`, and `nodules_invented`, by the enhancer, before blending set that right; `labels_kept` (share,
        likewise before; None where nothing was found); `<zone>_mean_hu`, `<zone>_p95_hu` of the samples as they are.
    """
    rows = list(facts)
    verdicts = Counter(row["verdict"] for row in rows)
    n_found, n_lost, n_invented = (sum(row[key] for row in rows) for key in ("found", "lost", "invented"))
    return {
        "samples": len(rows),
        **{verdict: verdicts[verdict] for verdict in get_args(LabelCheckVerdict)},
        "nodules_found": n_found,
        "nodules_lost": n_lost,
        "nodules_invented": n_invented,
        "labels_kept": 1 - n_lost / n_found if n_found else None,
        **changes.figures(),
    }


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


class EnhancedLungs:
    """Gives the enhanced lung of a hash, and makes it when it is not there.

    Args:
        make: (lung) -> HU, share and look, see `EnhancedLung`.
        look: (lung, its enhanced HU) -> the look, of a lung that is read.
        key: of what beside the lung decides over the result, see `enhancement_key`.
        folder: where files `<lung>-<key>.npy` are kept, int16 (2, H, W): HU and share * 256; None keeps none.
    """

    def __init__(
        self,
        make: Callable[[LungBackground], tuple[HuPlane, Plane | None, LungLook | None]],
        look: Callable[[LungBackground, HuPlane], LungLook | None],
        *,
        key: str,
        folder: Path | None = None,
    ) -> None:
        self._make, self._look = make, look
        self._key = key
        self._folder = folder
        self._kept: OrderedDict[str, EnhancedLung] = OrderedDict()

    def get(self, lung_hash: str, background: LungBackground) -> EnhancedLung:
        """The enhanced lung; `lung_hash` is that of its asset."""
        if lung_hash not in self._kept:
            if stored := self._read(lung_hash, background):
                hu, share = stored
                look = self._look(background, hu)
            else:
                hu, share, look = self._make_and_write(lung_hash, background)
            changes = Changes.of(np.asarray(background.hu), hu, background.label)
            self._kept[lung_hash] = EnhancedLung(hu, share, changes, look)
            if len(self._kept) > _IN_MEMORY:
                self._kept.popitem(last=False)
        self._kept.move_to_end(lung_hash)
        return self._kept[lung_hash]

    def _path(self, lung_hash: str) -> Path | None:
        return self._folder / f"{lung_hash}-{self._key}.npy" if self._folder else None

    def _read(self, lung_hash: str, background: LungBackground) -> tuple[HuPlane, Plane | None] | None:
        path = self._path(lung_hash)
        if path is None or not path.is_file():
            return None
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # damaged: it is made again
        if stored.shape != (2, *background.hu.shape) or stored.dtype != np.int16:
            return None
        share = None if (stored[1] == SHARE_STEPS).all() else (stored[1] / np.float32(SHARE_STEPS)).astype(np.float32)
        return stored[0], share

    def _make_and_write(
        self, lung_hash: str, background: LungBackground
    ) -> tuple[HuPlane, Plane | None, LungLook | None]:
        hu, share, look = self._make(background)
        if path := self._path(lung_hash):
            steps = np.full(hu.shape, SHARE_STEPS) if share is None else share * SHARE_STEPS
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, np.stack([hu, steps.astype(np.int16)]))
        return hu, share, look


def regions_of(
    windows: Iterable[Box], shape: tuple[int, int], *, receptive_field_px: int, alignment_px: int
) -> list[Region]:
    """The regions of a slice that its nodules touch; those that meet are one.

    Args:
        windows: outside which the slice is its lung.
        shape: (H, W) of the slice.
        receptive_field_px: of the enhancer.
        alignment_px: of the enhancer.
    """
    reach = receptive_field_px // 2
    changed = joined_boxes([window.grown(reach, shape) for window in windows])
    seen = [box.grown(reach, shape) for box in changed]
    aligned = [
        box._replace(
            row_from=box.row_from // alignment_px * alignment_px,
            column_from=box.column_from // alignment_px * alignment_px,
        )
        for box in seen
    ]
    return [Region(*boxes) for boxes in zip(changed, aligned, strict=True)]
