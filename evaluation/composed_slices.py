"""Whole diseased slices of patients: what generators of such slices in one piece are trained on, and compared with.

Whole slices with outlined nodules are rare (those of `enhancement.json`), so they are composed: one to three real
nodules of one category on a real normal slice, all of patients of one split, by the placement and the overlay of the
product: where and how many as LIDC-IDRI and the cohort have them, at their own size, mirrored and turned. The first
placement that the rules accept is taken, whatever its distance to the edge, so that the reference does not share the
product's selection. Patients of the lungs take turns, and so do their slices. The slices are brought onto the
generator's grid like its lungs and are a data set of their own; beside them are the real ones.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from evaluation.composites import LUNG_TRIALS, PatientTurns, first_placement
from lungsynth.categories import UNKNOWN
from lungsynth.cohort.montage import Tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.reader import Cohort, CohortSplit, Split
from lungsynth.cohort.slices import LUNG_SIZES_PX, slice_on_grid
from lungsynth.compositing.render import Renderer
from lungsynth.errors import InputError
from lungsynth.generate_assets import real_lungs, real_nodules
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_arrays, write_json, write_picture
from lungsynth.io.stored import anything, lists, mappings, objects, read_json
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import Recipe
from lungsynth.placement.groups import GroupSettings
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.plan_catalogue import measure_occurrence
from lungsynth.placement.presence import PresencePrior
from lungsynth.run_folder import FORMAT, RunFolder
from lungsynth.seeds import SeedStream, seeds
from lungsynth.types import Affine, HuPlane, LabelPlane

__all__ = ["COHORT_SPLITS", "ComposedSliceConfig", "compose_slices"]

COHORT_SPLITS: tuple[str, ...] = get_args(Split)
_LISTED = objects({name: lists(mappings(anything)) for name in COHORT_SPLITS})
_SHOWN = 16  # slices of each category, in the picture
_COLUMNS, _TILE_PX = 8, 192

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ComposedSliceConfig:
    """A set of composed slices.

    Args:
        cohort: folder written by `lungsynth prepare`.
        out: folder of the slices; one left unfinished goes on.
        count: slices of each category in the training split.
        held_out: slices of each category in the validation split and in the test split.
        seed: of everything random.

    Raises:
        InputError: when a number is out of its range.
    """

    cohort: Path
    out: Path
    count: int = 400
    held_out: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.held_out) < 1 or self.seed < 0:
            raise InputError(
                f"`count` and `held_out` must be at least 1 and `seed` not negative, got {self.count}, "
                f"{self.held_out} and {self.seed}."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class ComposedSlice:
    """The plan of one slice.

    Args:
        id: of the slice.
        category: of all its nodules.
        recipe: how it is made from the library.
        lung: id of the normal slice.
        nodules: their ids.
        patients: of the lung, then of the nodules; none twice.
    """

    id: str
    category: str
    recipe: Recipe
    lung: str
    nodules: tuple[str, ...]
    patients: tuple[str, ...]


def compose_slices(config: ComposedSliceConfig) -> dict[str, dict[str, int]]:
    """Composes the slices of all splits and writes `slices.json` and `diseased.json`.

    Returns:
        Slices by split and category; `diseased` counts the real ones.

    Raises:
        InputError: when the cohort cannot be used, its training split gives no slice, or `out` holds something else.
    """
    cohort, out = Cohort.open(config.cohort), config.out
    categories = _categories(cohort.split("training").nonempty())
    numbers = {"count": config.count, "held_out": config.held_out, "seed": config.seed}
    identity = {"format": FORMAT, "lungsynth": version("lungsynth"), **numbers, **cohort.identity}
    folder = RunFolder(path=out, identity=identity)
    if folder.check() and (out / "cohort.json").exists():  # written last
        return _finished_counts(out)
    with folder.held():
        return _compose_splits(cohort, config, categories, identity)


def _compose_splits(
    cohort: Cohort, config: ComposedSliceConfig, categories: Sequence[str], identity: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Composes the slices of all splits; `cohort.json` is written last."""
    out = config.out
    composed: dict[str, list[dict[str, Any]]] = {}
    diseased: dict[str, list[dict[str, Any]]] = {}
    for key, name in enumerate(COHORT_SPLITS):
        split = cohort.split(name)
        count = config.count if name == "training" else config.held_out
        composed[name] = _compose(split, out, categories, count=count, seed=config.seed, key=key)
        diseased[name] = list(_diseased(split, out))
    if not composed["training"]:
        raise InputError(
            f"{config.cohort}: its training split gives no slice: it needs nodules (nodules.json) and normal slices "
            "(lungs.json) with room for them. Prepare the cohort from scans beside crops."
        )
    write_picture(out / "montage.png", _montage(composed["training"], out))
    write_json(out / "diseased.json", diseased)
    write_json(out / "slices.json", composed)
    facts = {name: cohort.described[name] for name in ("settings", "sources", "split_hash") if name in cohort.described}
    write_json(out / "cohort.json", {"format": cohort.described.get("format"), **facts, "slices": identity})
    return _finished_counts(out)


def _finished_counts(out: Path) -> dict[str, dict[str, int]]:
    composed, diseased = (
        read_json(out / f"{name}.json", _LISTED, what="a list of composed slices", remedy="Give another `out`.")
        for name in ("slices", "diseased")
    )
    return {name: {**_count(composed[name]), "diseased": len(diseased[name])} for name in COHORT_SPLITS}


def _categories(split: CohortSplit) -> list[str]:
    """Categories of the nodules of a split; unrated ones only where there are no others."""
    categories = sorted({nodule.category for nodule in split.nodules()})
    return [name for name in categories if name != UNKNOWN] or categories


# Planning


class _RealSlices:
    """The lungs and nodules of a split in a library, and how nodules are drawn for them; lungs are measured once."""

    def __init__(self, library: AssetLibrary, split: CohortSplit, categories: Sequence[str], *, order: int) -> None:
        self.library, self._patient_of = library, split.patient_of
        lungs = list(dict.fromkeys(real_lungs(library, split, seed=order)))
        self.nodules = {
            name: list(dict.fromkeys(real_nodules(library, split, name, seed=order))) for name in categories
        }
        self._shapes: dict[str, LungShape] = {}
        self._turns = PatientTurns(lungs, lambda lung: self._patient(lung.origin))
        self.is_empty = not lungs or not any(self.nodules.values())
        if not self.is_empty:
            occurrence = measure_occurrence(LibraryLungs.of(library), split)
            self._prior: PresencePrior = occurrence.prior
            self._settings: GroupSettings = replace(occurrence.group_settings(), scale_range=(1.0, 1.0))

    def place(self, nodules: Sequence[Asset], turn: int, seed: int) -> Recipe | None:
        """The first placement on the lung whose turn it is; None when the rules accept none."""
        lung = self._turns[turn]
        return first_placement(nodules, lung, self._shape(lung), seed=seed, prior=self._prior, settings=self._settings)

    def describe(self, recipe: Recipe) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Ids of a recipe's lung and of its nodules, and their patients, none twice."""
        lung = self.library[recipe.lung].origin
        nodules = tuple(self.library[nodule.asset].origin for nodule in recipe.nodules)
        return lung, nodules, tuple(dict.fromkeys(self._patient(origin) for origin in (lung, *nodules)))

    def _patient(self, origin: str) -> str:
        return self._patient_of.get(origin, origin)

    def _shape(self, lung: Asset) -> LungShape:
        if lung.hash not in self._shapes:
            hu, mask = self.library.load(lung.hash, keep=False)
            self._shapes[lung.hash] = LungShape.from_mask(mask > 0, spacing_mm=lung.spacing_mm, hu=hu)
        return self._shapes[lung.hash]


def _plan(real: _RealSlices, *, count: int, seed: int, key: int) -> Iterator[ComposedSlice]:
    """Plans `count` slices of each category; fewer where no placement is found."""
    if real.is_empty:
        return
    for index, (category, nodules) in enumerate(real.nodules.items()):
        words = seeds(seed, SeedStream.SLICES, key, index, n=count)
        for number, word in enumerate(words if nodules else ()):
            turn = index * count + number
            trials = (real.place(nodules, turn + trial, word) for trial in range(LUNG_TRIALS))
            recipe = next((trial for trial in trials if trial is not None), None)
            if recipe is None:
                _logger.warning(
                    "no place for nodules of category %s on %d lungs: a slice is left out", category, LUNG_TRIALS
                )
                continue
            lung, ids, patients = real.describe(recipe)
            yield ComposedSlice(
                id=f"{category}_{number:04d}",
                category=category,
                recipe=recipe,
                lung=lung,
                nodules=ids,
                patients=patients,
            )


# Writing


def _compose(
    split: CohortSplit, out: Path, categories: Sequence[str], *, count: int, seed: int, key: int
) -> list[dict[str, Any]]:
    """Writes what is missing of a split's slices; returns their entries.

    Args:
        split: whose lungs and nodules, and where nodules occur.
        out: folder.
        categories: as many slices of each.
        count: of slices for each category.
        seed: of everything random.
        key: of the split, so that splits draw differently.
    """
    with tempfile.TemporaryDirectory(prefix="lungsynth-slices-") as folder:
        library = AssetLibrary(Path(folder))
        order = seeds(seed, SeedStream.SLICES, key, n=1)[0]
        plans = list(_plan(_RealSlices(library, split, categories, order=order), count=count, seed=seed, key=key))
        renderer = Renderer(library)
        return [_write_composed(one, renderer, out, split.name) for one in tqdm(plans, desc=split.name, unit="slice")]


def _write_composed(plan: ComposedSlice, renderer: Renderer, out: Path, split: str) -> dict[str, Any]:
    name = f"slices/{split}_{plan.id}.npz"
    if not (out / name).exists():
        sample = renderer.render(plan.recipe)
        _write_slice(out / name, sample.image, sample.label, sample.affine)
    return {
        "slice": name,
        "category": plan.category,
        "patient_id": plan.patients[0],
        "patients": list(plan.patients),
        "lung": plan.lung,
        "nodules": list(plan.nodules),
    }


def _diseased(split: CohortSplit, out: Path) -> Iterator[dict[str, Any]]:
    """Brings the real whole slices with nodules of a split onto the grid."""
    for entry in split.diseased():
        names = split.cohort.pseudonyms
        name = f"diseased/{names.named('slices', entry.slice_id)}.npz"
        try:
            if not (out / name).exists():
                _write_slice(out / name, *split.cohort.read_slice(entry))
        except InputError as error:
            _logger.warning("%s is left out: %s", entry.slice_id, error)
            continue
        patient = names.patients.get(entry.patient_id) or names.named("slices", entry.slice_id)
        yield {"slice": name, "category": "diseased", "patient_id": patient, "patients": [patient]}


def _write_slice(path: Path, hu: HuPlane, label: LabelPlane, affine: Affine) -> None:
    column_mm, row_mm = (float(value) for value in np.linalg.norm(affine[:3, :2], axis=0))
    grid_hu, grid_label = slice_on_grid(hu, label, spacing_mm=(row_mm, column_mm), size_px=LUNG_SIZES_PX[0])
    mask = (grid_label != Label.BACKGROUND).astype(np.uint8)
    write_arrays(path, hu=grid_hu, mask=mask, label=grid_label)


def _montage(entries: Sequence[Mapping[str, Any]], out: Path) -> Any:
    """Some slices of each category, nodules outlined."""
    blocks = []
    for category in _count(entries):
        paths = [out / entry["slice"] for entry in entries if entry["category"] == category]
        tiles = [_tile(path) for path in spread(paths, _SHOWN)]
        blocks.append(tile_block(f"{category}: {len(tiles)} of {len(paths)}", tiles, columns=_COLUMNS))
    return stack_blocks(blocks)


def _tile(path: Path) -> Tile:
    with np.load(path) as arrays:
        return outlined(arrays["hu"], arrays["label"] == Label.NODULE, _TILE_PX)


def _count(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    names = [str(entry["category"]) for entry in entries]
    return {name: names.count(name) for name in sorted(set(names))}
