"""Nodules of held-out patients laid on normal slices of held-out scans, with `lungsynth.placement`, slice by slice.

A nodule's largest slice is laid on one slice of the scan; on the slices above and below it is shrunk as a sphere of its
diameter would be. Nodules of one scan lie so far apart that none can hide behind the candidate of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.slices import SliceStack
from lungsynth.compositing.nodule import NodulePatch, resample_nodule
from lungsynth.compositing.overlay import LungBackground, overlay
from lungsynth.geometry import PATCH_SPACING_MM, disc_diameter
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import ALPHA_SCALE
from lungsynth.placement.groups import Member, NoduleGroup, NodulePlacement
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.presence import analytic_presence
from lungsynth.placement.rules import PlacementRules, resolve

SMALLEST_MM = 3.0  # of a nodule, and of what a slice shows of it
TRIES = 20


@dataclass(frozen=True, kw_only=True)
class CompositeSettings:
    """Times that nodules are laid on the scans, the seed, and how far apart nodules of one scan lie at least."""

    rounds: int
    seed: int
    apart_mm: float


@dataclass(frozen=True, eq=False)
class HeldOutNodule:
    """A nodule's largest slice, ready for blending."""

    nodule_id: str
    patient_id: str
    diameter_mm: float
    patch: NodulePatch


class HeldOutNodules:
    """Nodules that experts drew, of some parts of a cohort, in an order that the seed gives, over and over."""

    def __init__(self, cohort: Cohort, splits: Sequence[str], *, seed: int) -> None:
        self.folder = cohort.folder
        drawn = {row.patch for row in cohort.nodules if row.expert_mask or row.sphere}
        self.entries = [
            entry
            for split in splits
            for entry in cohort.split(split).nodules()
            if entry.nodule in drawn and entry.diameter_mm >= SMALLEST_MM
        ]
        self.order = np.random.default_rng(seed).permutation(len(self.entries))
        self.next = 0

    def draw(self) -> HeldOutNodule:
        """The next nodule; its diameter is that of the disc of its largest slice."""
        entry = self.entries[self.order[self.next % len(self.order)]]
        self.next += 1
        patches, alphas, largest = read_arrays(self.folder / entry.nodule, "hu", "alpha", "largest")
        hu, alpha = patches[int(largest)], alphas[int(largest)]
        diameter_mm = float(disc_diameter(int((alpha >= 0.5).sum()) * PATCH_SPACING_MM**2))
        stored = np.stack([hu, np.rint(alpha.astype(np.float32) * ALPHA_SCALE).astype(np.int16)])
        return HeldOutNodule(entry.nodule_id, entry.patient_id, diameter_mm, NodulePatch.from_asset(stored))


def insert_nodules(
    stack: SliceStack,
    normal: np.ndarray,
    nodules: HeldOutNodules,
    rng: np.random.Generator,
    settings: CompositeSettings,
) -> tuple[SliceStack, dict[int, HeldOutNodule]]:
    """A copy of a stack with nodules on its slices that are `normal`, and which slice shows which nodule."""
    slice_mm = stack.volume.spacing_mm[0]
    hu = stack.volume.hu.copy()
    shown: dict[int, HeldOutNodule] = {}
    free_from = float(rng.uniform(0, settings.apart_mm))  # in mm from the first slice
    while nodules.entries and free_from / slice_mm < len(hu):
        nodule = nodules.draw()
        half = int(np.sqrt(max(nodule.diameter_mm**2 - SMALLEST_MM**2, 0)) / 2 / slice_mm)
        centre = int(np.ceil(free_from / slice_mm)) + half
        slices = range(centre - half, centre + half + 1)
        placed = None
        if slices.stop <= len(hu) and normal[slices.start : slices.stop].all():
            placed = _place(stack, centre, nodule, rng)
        if placed is None:
            free_from += slice_mm
            continue
        for k in slices:
            hu[k] = _with_nodule(stack, k, placed, nodule, abs(k - centre) * slice_mm)
            shown[k] = nodule
        free_from = (slices.stop - 1) * slice_mm + settings.apart_mm
    return replace(stack, volume=replace(stack.volume, hu=hu)), shown


def _place(stack: SliceStack, centre: int, nodule: HeldOutNodule, rng: np.random.Generator) -> NodulePlacement | None:
    spacing_mm = stack.volume.spacing_mm[1:]
    lung = stack.labels[centre] == Label.LUNG
    shape = LungShape.from_mask(lung, spacing_mm=spacing_mm, hu=stack.volume.plane(centre))
    for u, v in analytic_presence().sample(rng, TRIES):
        member = Member(
            asset=nodule.nodule_id,
            category="any",
            source="real",
            diameter_mm=nodule.diameter_mm,
            u=float(u),
            v=float(v),
            rotation_deg=float(rng.uniform(0, 360)),
            flip=bool(rng.integers(2)),
        )
        resolved = resolve(shape, NoduleGroup((member,)), PlacementRules(min_diameter_mm=0, min_pixels=0))
        if resolved.placements:
            return resolved.placements[0]
    return None


def _with_nodule(
    stack: SliceStack, k: int, placed: NodulePlacement, nodule: HeldOutNodule, off_mm: float
) -> np.ndarray:
    scale = float(np.sqrt(1 - (2 * off_mm / nodule.diameter_mm) ** 2))
    here = replace(placed, scale=scale, diameter_mm=nodule.diameter_mm * scale)
    lung = stack.labels[k] == Label.LUNG
    spacing_mm = stack.volume.spacing_mm[1:]
    layer = LungBackground.of(stack.volume.plane(k), lung, spacing_mm=spacing_mm, matched=False)
    return overlay(layer, [(here, resample_nodule(here, nodule.patch, spacing_mm))]).image
