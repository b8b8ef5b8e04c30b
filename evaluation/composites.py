"""Whole slices with known nodules: nodules of evaluated patients composited onto normal slices of evaluated patients.

Each slice gets one nodule, by the same rules and the same overlay as the product's samples, on the lung's own grid.
Patients of the lungs take turns, and so do nodules. Slices whose lungs an expert outlined are preferred: where there
are any, no others are used. What the slice shows beside the nodule counts as normal, because no expert drew a nodule
there; tumours that nobody drew would count as false positives.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.metrics.matching import Case, Lesion, match
from evaluation.segmentation.detectors import detect, labels_at
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.schema import NoduleRow
from lungsynth.compositing.render import render
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import Recipe, make_recipe
from lungsynth.placement.groups import GroupSettings, draw_groups
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.presence import PresencePrior, analytic_presence
from lungsynth.placement.rules import PlacementRules, PlacementVerdict, resolve
from lungsynth.types import CandidateDetector, HuPlane, LabelPlane

__all__ = ["LUNG_TRIALS", "Composite", "Composites", "PatientTurns", "evaluate_composites", "first_placement"]

_PLACEMENT_TRIALS = 32  # groups drawn for a lung before the next one is tried; more find rarer places and take longer
LUNG_TRIALS = 4  # lungs tried before a slice is left out; more leave out fewer
_SLICE_MM = 1.0  # thickness that a lone slice states; no distance depends on it
_RULES = PlacementRules(min_diameter_mm=0.0, min_pixels=0.0)  # small ones count, too
_ONE_NODULE = GroupSettings(count_probabilities={1: 1.0}, scale_range=(1.0, 1.0))  # at its own size

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False, kw_only=True)
class Composite:
    """One slice.

    Args:
        id: of the slice.
        patient: whose lung it is.
        hu: (H, W).
        label: (H, W).
        spacing_mm: (row, column).
        lesion: the nodule on it.
    """

    id: str
    patient: str
    hu: HuPlane
    label: LabelPlane
    spacing_mm: tuple[float, float]
    lesion: Lesion


class PatientTurns(Generic[Item]):
    """Items of patients who take turns, and each patient's items one after the other.

    Args:
        items: in the order in which a patient's come.
        patient_of: the patient of an item.
    """

    def __init__(self, items: Sequence[Item], patient_of: Callable[[Item], str]) -> None:
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(patient_of(item), []).append(item)
        self._groups = [groups[patient] for patient in sorted(groups)]

    def __getitem__(self, turn: int) -> Item:
        own = self._groups[turn % len(self._groups)]
        return own[turn // len(self._groups) % len(own)]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Lung:
    asset: Asset
    shape: LungShape
    patient: str


class Composites:
    """The composites of a subset, planned once and rendered when asked for; they live while the context is open.

    Args:
        subset: whose nodules and normal slices.
        count: the number requested; there are fewer when nodules or slices are few.
        seed: of places and turns.
        problems: takes what could not be used.
    """

    def __init__(self, subset: Subset, *, count: int, seed: int, problems: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lungsynth-evaluation-")
        self._library = AssetLibrary(Path(self._folder.name))
        self._recipes: list[Recipe] = []
        self._sources: list[tuple[NoduleRow, str]] = []  # the nodule, and the patient of the lung
        lungs = self._add_lungs(subset, problems) if subset.evaluated_nodules and subset.lungs and count else []
        nodules = self._add_nodules(subset, problems) if lungs else []
        if nodules:
            self._plan(lungs, nodules, count=count, seed=seed)

    def __enter__(self) -> "Composites":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._recipes)

    def __iter__(self) -> Iterator[Composite]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Composite:
        recipe, nodule, patient = self.recipe(index)
        sample, placement = render(recipe, self._library), recipe.nodules[0]
        return Composite(
            id=f"composite-{index:04d}",
            patient=patient,
            hu=sample.image,
            label=sample.label,
            spacing_mm=self._library[recipe.lung].spacing_mm,
            lesion=Lesion(
                id=nodule.nodule_id,
                patient=nodule.patient_id,
                centre=(0.0, float(placement.row_px), float(placement.col_px)),
                diameter_mm=float(placement.diameter_mm),
                category=nodule.texture_class,
                slices=(0, 0),
            ),
        )

    @property
    def library(self) -> AssetLibrary:
        """Their lungs and nodules, while the context is open."""
        return self._library

    def recipe(self, index: int) -> tuple[Recipe, NoduleRow, str]:
        """How a composite is made, its nodule, and the patient of its lung."""
        return self._recipes[index], *self._sources[index]

    def _add_lungs(self, subset: Subset, problems: list[str]) -> list[_Lung]:
        lungs = []
        outlined = {series.series_id for series in subset.series if series.lung_mask == "data"}
        for entry in [entry for entry in subset.lungs if entry.series_id in outlined] or subset.lungs:
            try:
                hu, affine = read_plane(subset.folder / entry.image)
                label, _ = read_plane(subset.folder / entry.label)
                mask = label == Label.LUNG
                asset = self._library.add_lung(hu, mask, affine=affine, source="real", origin=Path(entry.image).name)
                shape = LungShape.from_mask(mask, spacing_mm=asset.spacing_mm, hu=hu)
            except InputError as error:
                problems.append(f"left out of the composites: {error}")
                continue
            lungs.append(_Lung(asset=asset, shape=shape, patient=entry.patient_id))
        return lungs

    def _add_nodules(self, subset: Subset, problems: list[str]) -> list[tuple[Asset, NoduleRow]]:
        nodules = []
        for nodule in subset.evaluated_nodules:
            try:
                hu, alpha, largest = read_arrays(subset.patch_path(nodule), "hu", "alpha", "largest")
                asset = self._library.add_nodule(
                    hu[int(largest)],
                    alpha[int(largest)],
                    category=nodule.texture_class,
                    source="real",
                    origin=nodule.nodule_id,
                )
            except InputError as error:
                problems.append(f"left out of the composites: {error}")
                continue
            nodules.append((asset, nodule))
        return nodules

    def _plan(
        self, lungs: Sequence[_Lung], nodules: Sequence[tuple[Asset, NoduleRow]], *, count: int, seed: int
    ) -> None:
        prior = analytic_presence()
        order = np.random.default_rng(seed).permutation(len(lungs))
        turns = PatientTurns([lungs[index] for index in order], lambda lung: lung.patient)
        for turn in range(2 * count):  # half of the nodules may find no place
            asset, nodule = nodules[_nodule_of_turn(len(nodules), turn, seed)]
            for trial in range(LUNG_TRIALS):
                lung = turns[turn + trial]
                recipe = first_placement(
                    [asset], lung.asset, lung.shape, seed=seed + turn, prior=prior, settings=_ONE_NODULE
                )
                if recipe is not None:
                    self._recipes.append(recipe)
                    self._sources.append((nodule, lung.patient))
                    break
            if len(self) == count:
                break


def evaluate_composites(composites: Composites, detector: CandidateDetector, *, name: str) -> tuple[Case, ...]:
    """Runs a detector on the composites; each is a volume of one slice.

    Raises:
        InputError: when the detector returns no detection.
    """
    cases = []
    for image in tqdm(composites, total=len(composites), desc=f"{name}: composites", unit="slice", leave=False):
        spacing_mm = (_SLICE_MM, *image.spacing_mm)
        detection = detect(detector, image.hu[None], spacing_mm, name=name)
        on_nodule = labels_at(detection.candidates, image.label[None]) == Label.NODULE
        matched = match(detection.candidates, [image.lesion], spacing_mm=spacing_mm, ignored=on_nodule)
        cases.append(detection.case(image.id, image.patient, *matched))
    return tuple(cases)


def first_placement(
    nodules: Sequence[Asset],
    lung: Asset,
    shape: LungShape,
    *,
    seed: int,
    prior: PresencePrior,
    settings: GroupSettings,
) -> Recipe | None:
    """The first of some random groups that the placement rules accept on a lung; None when they accept none.

    Args:
        nodules: the groups are drawn from them.
        lung: of the slice.
        shape: of the lung.
        seed: of the groups, and of the recipe.
        prior: where nodules occur.
        settings: of the groups.
    """
    for group in draw_groups(nodules, _PLACEMENT_TRIALS, seed=seed, prior=prior, settings=settings):
        resolution = resolve(shape, group, _RULES)
        if resolution.verdict is PlacementVerdict.KEPT:
            return make_recipe(lung, group, resolution.placements, seed=seed)
    return None


def _nodule_of_turn(count: int, turn: int, seed: int) -> int:
    """Index of the nodule whose turn it is: round after round, each in an order of its own."""
    return int(np.random.default_rng([seed, turn // count]).permutation(count)[turn % count])
