"""Whole slices with known nodules: nodules of the judged patients laid on normal slices of the judged patients.

Each slice gets one nodule, by the same rules and the same overlay as the product's samples, on the lung's own grid.
Patients of the lungs take turns, so do nodules. Slices whose lungs an expert outlined are preferred: where there are
any, no others are used. What the slice shows beside the nodule counts
as normal, because no expert drew a nodule there; tumours that nobody drew would count as false alarms.
"""

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset, SubsetNodule
from evaluation.metrics.matching import CandidateDetector, Case, Lesion, match
from evaluation.segmentation.detection import detect, labels_at
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
from lungsynth.types import HuPlane, LabelPlane

__all__ = ["Composite", "Composites", "evaluate_composites"]

_PLACES = 32  # tried for a nodule on a slice before the next slice is taken
_SLICES = 4  # tried for a nodule before it is left out
_SLICE_MM = 1.0  # thickness of a lone slice: no distance depends on it


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


class Composites:
    """The composites of a part, planned once and rendered when asked for; they live while the context is open.

    Args:
        part: lends nodules and normal slices.
        count: wanted; there are fewer when nodules or slices are few.
        seed: of places and turns.
        problems: takes what could not be used.
    """

    def __init__(self, part: Subset, *, count: int, seed: int, problems: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lungsynth-evaluation-")
        self._library = AssetLibrary(Path(self._folder.name))
        self._recipes: list[Recipe] = []
        self._lesions: list[tuple[SubsetNodule, str]] = []
        lungs = self._add_lungs(part, problems) if part.judged_nodules and part.lungs and count else []
        nodules = self._add_nodules(part, problems) if lungs else []
        self._plan(lungs, nodules, count=count, seed=seed)

    def __enter__(self) -> "Composites":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._recipes)

    def __getitem__(self, index: int) -> Composite:
        recipe, (nodule, patient) = self._recipes[index], self._lesions[index]
        sample, placed = render(recipe, self._library), recipe.nodules[0]
        return Composite(
            id=f"composite-{index:04d}",
            patient=patient,
            hu=sample.image,
            label=sample.label,
            spacing_mm=self._library[recipe.lung].spacing_mm,
            lesion=Lesion(
                id=nodule.id,
                patient=nodule.patient,
                centre=(0.0, float(placed.row_px), float(placed.col_px)),
                diameter_mm=float(placed.diameter_mm),
                category=nodule.category,
                slices=(0, 0),
            ),
        )

    @property
    def library(self) -> AssetLibrary:
        """Their lungs and nodules, while the context is open."""
        return self._library

    def recipe(self, index: int) -> tuple[Recipe, SubsetNodule, str]:
        """How a composite is made, its nodule, and the patient of its lung."""
        return self._recipes[index], *self._lesions[index]

    def __iter__(self) -> Iterator[Composite]:
        return (self[index] for index in range(len(self)))

    def _add_lungs(self, part: Subset, problems: list[str]) -> list[tuple[Asset, LungShape, str]]:
        lungs = []
        outlined = {series.id for series in part.series if series.expert_lung}
        entries = [entry for entry in part.lungs if entry["series_id"] in outlined] or part.lungs
        for entry in entries:
            try:
                hu, affine = read_plane(part.folder / entry["image"])
                label, _ = read_plane(part.folder / entry["label"])
                asset = self._library.add_lung(
                    hu, label == Label.LUNG, affine=affine, source="real", origin=Path(entry["image"]).name
                )
                shape = LungShape.from_mask(label == Label.LUNG, spacing_mm=asset.spacing_mm, hu=hu)
            except InputError as error:
                problems.append(f"left out of the composites: {error}")
                continue
            lungs.append((asset, shape, str(entry["patient_id"])))
        return lungs

    def _add_nodules(self, part: Subset, problems: list[str]) -> list[tuple[Asset, SubsetNodule]]:
        nodules = []
        for nodule in part.judged_nodules:
            try:
                with np.load(nodule.patch or "", allow_pickle=False) as arrays:
                    largest = int(arrays["largest"])
                    hu, alpha = arrays["hu"][largest], arrays["alpha"][largest]
                asset = self._library.add_nodule(
                    hu, alpha, category=nodule.category, source="real", origin=f"{nodule.id}"
                )
            except (InputError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                problems.append(f"left out of the composites: {nodule.patch}: {error}")
                continue
            nodules.append((asset, nodule))
        return nodules

    def _plan(
        self,
        lungs: Sequence[tuple[Asset, LungShape, str]],
        nodules: Sequence[tuple[Asset, SubsetNodule]],
        *,
        count: int,
        seed: int,
    ) -> None:
        prior, turn = analytic_presence(), 0
        by_patient = _by_patient(lungs, seed)
        while lungs and nodules and len(self._recipes) < count and turn < 2 * count:
            asset, nodule = nodules[_taking_turns(len(nodules), turn, seed)]
            for offset in range(_SLICES):
                own = by_patient[(turn + offset) % len(by_patient)]
                lung, shape, patient = own[(turn + offset) // len(by_patient) % len(own)]
                recipe = _place(asset, lung, shape, seed=seed + turn, prior=prior)
                if recipe is not None:
                    self._recipes.append(recipe)
                    self._lesions.append((nodule, patient))
                    break
            turn += 1


def evaluate_composites(composites: Composites, detector: CandidateDetector, *, name: str) -> tuple[Case, ...]:
    """Runs a detector on the composites; each is a volume of one slice.

    Raises:
        InputError: when the detector returns no detection.
    """
    cases = []
    for image in tqdm(composites, total=len(composites), desc=f"{name}: composites", unit="slice", leave=False):
        spacing_mm = (_SLICE_MM, *image.spacing_mm)
        found = detect(detector, image.hu[None], spacing_mm, name=name)
        on_nodule = labels_at(found.candidates, image.label[None]) == Label.NODULE
        targets, alarms = match(found.candidates, [image.lesion], spacing_mm=spacing_mm, on_finding=on_nodule)
        cases.append(found.case(image.id, image.patient, targets, alarms))
    return tuple(cases)


def _by_patient(lungs: Sequence[tuple[Asset, LungShape, str]], seed: int) -> list[list[tuple[Asset, LungShape, str]]]:
    """The slices of each patient, in an order that the seed gives."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[tuple[Asset, LungShape, str]]] = {}
    for index in rng.permutation(len(lungs)):
        groups.setdefault(lungs[index][2], []).append(lungs[index])
    return [groups[patient] for patient in sorted(groups)]


def _taking_turns(count: int, turn: int, seed: int) -> int:
    """Round after round, each in an order of its own."""
    return int(np.random.default_rng([seed, turn // count]).permutation(count)[turn % count])


def _place(nodule: Asset, lung: Asset, shape: LungShape, *, seed: int, prior: PresencePrior) -> Recipe | None:
    """The first place that the rules accept; None when there is none among those drawn."""
    settings = GroupSettings(count_probabilities={1: 1.0}, scale_range=(1.0, 1.0))
    for group in draw_groups([nodule], _PLACES, seed=seed, prior=prior, settings=settings):
        resolution = resolve(shape, group, PlacementRules())
        if resolution.verdict is PlacementVerdict.KEPT:
            return make_recipe(lung, group, resolution.placements, seed=seed)
    return None
