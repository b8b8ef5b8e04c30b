"""Experiment (a): the segmentation bundle, trained from scratch on few patients with and without added slices.

Each run trains `lung_seg_bundle` by its own `train.json` with `extra_datalist`, as a user would, and its detector is
evaluated on the crops and composites of Table I. The bundle's composites of real nodules while training are switched
off in all arms but one. Crops of real nodules are shown equally often in all arms, and added slices take the place of
half of the slices with lungs, whatever the dose: a larger dose means other slices, not more of them in a step.

Added slices are generated, or are copy-paste as a control: real nodules of the few patients on real normal slices of
the few patients, by the product's placement, balance over the categories and overlay.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.methods import Method, digest_of
from evaluation.metrics.froc import Froc
from evaluation.runner import RecordStore
from evaluation.segmentation.errors import SegmentationImages
from evaluation.segmentation.figures import SIZES_MM
from evaluation.segmentation.records import SegmentationResult, result_from_json
from evaluation.segmentation.run import evaluate_detector
from evaluation.utility.arms import Arm
from evaluation.utility.estimates import PatientTable, ShareColumns, share_table
from evaluation.utility.subcohort import CATEGORIES, SubCohort
from lungsynth.bundles import open_bundle, read_weights_file, train_bundle
from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.compositing.render import render
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig, SelectionConfig
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.export.split import PARTS
from lungsynth.generate import generate
from lungsynth.io.atomic import write_json
from lungsynth.io.stored import anything, lists, mappings, objects, read_json
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue

__all__ = [
    "SHARES",
    "SegmentationExperiment",
    "SegmentationRun",
    "SegmentationTraining",
    "run_segmentation",
    "segmentation_table",
]

_FORMAT = 3  # of the records
_VALIDATIONS = 4  # in a training, of which the best state is kept
# Lungs that are generated for the largest dose; each of its slices has a group of nodules of its own. More lungs take
# longer to make, fewer are seen more often.
_LUNGS = 200
_GROUPS = ("all", *CATEGORIES, *SIZES_MM)

_NAMES = {"dice": "dice", "off_centre": "sensitivity, off the centre", "composites": "sensitivity, composites"}
SHARES: ShareColumns = {
    _NAMES[kind] if group == "all" else f"{_NAMES[kind]}, {group}": ((f"{kind}/{group}", f"{kind}/{group}/n"),)
    for kind in _NAMES
    for group in _GROUPS
}


@dataclass(frozen=True, kw_only=True)
class SegmentationTraining:
    """The budget of a training, the same for all arms.

    Args:
        steps: of the optimiser.
        batch_size: of a step.
        size_px: side of the squares.
        tiles: crops in a row of a square.
        learning_rate: at its highest.
        amp: bfloat16; None: where the device has instructions for it.
        validation_samples: that choose the weights.
        crop_share: of crops of real nodules in what is shown, in all arms with real samples.
        added_share: of added slices, in these arms; slices with lungs are the rest.
        own_composites: probabilities of 0, 1, 2, ... nodules that the bundle composites itself, in the arm that has it.
    """

    steps: int = 300
    batch_size: int = 8
    size_px: int = 128
    tiles: int = 2
    learning_rate: float = 2e-3
    amp: bool | None = None
    validation_samples: int = 24
    crop_share: float = 0.35
    added_share: float = 0.325
    own_composites: tuple[float, ...] = (0.1, 0.3, 0.3, 0.3)

    def overrides(self, arm: Arm, datalist: Path | None) -> dict[str, Any]:
        """Keys of `train.json` for an arm, whose added slices `datalist` names."""
        validations = min(_VALIDATIONS, self.steps)
        added = self.added_share if datalist else 0.0
        return {
            "max_epochs": validations,
            "epoch_length": self.steps // validations,
            "val_interval": 1,
            "validate::dataset::data::limit": self.validation_samples,
            "patience": validations + 1,
            "batch_size": self.batch_size,
            "size_px": self.size_px,
            "train::frame::tiles_per_side": self.tiles,
            "learning_rate": self.learning_rate,
            "amp": self.amp,
            "train::dataset::progress": False,
            "validate::dataset::progress": False,
            "train::sampler::nodule_crop_share": self.crop_share / (1 - added),
            "extra_share": added if arm.real else 1.0,
            "extra_datalist": str(datalist) if datalist else None,
            "train::composites::count_probs": [*self.own_composites] if arm.plain else [1.0],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationExperiment:
    """What all runs share.

    Args:
        images: that runs are evaluated on.
        folder: for records, synthetic sets and trainings.
        bundles: folder of the bundles.
        training: the budget.
        enhance: send added composites through the CycleGAN.
        dependencies: what else decides over the runs: weights and settings of the bundles.
        tracking_uri: of the generated slices.
    """

    images: SegmentationImages
    folder: Path
    bundles: Path
    training: SegmentationTraining
    enhance: bool
    dependencies: Mapping[str, Any]
    tracking_uri: str


@dataclass(frozen=True, kw_only=True)
class SegmentationRun:
    """One finished run.

    Args:
        result: records on all images.
        added: slices.
        validation: Dice of nodules of the chosen state; None where the sidecar has none.
    """

    result: SegmentationResult
    added: int
    validation: float | None


def run_segmentation(
    arm: Arm, cohort: SubCohort, experiment: SegmentationExperiment, *, largest: int
) -> SegmentationRun:
    """A run, kept or made.

    Args:
        arm: of the experiment.
        cohort: few patients.
        experiment: what all runs share.
        largest: slices of the largest dose; the smaller ones are drawn of them.

    Raises:
        InputError: when a bundle refuses what it gets.
    """
    added = arm.count(cohort.crops, categories=len(CATEGORIES))
    pool = [_FORMAT, cohort.split_hash, cohort.seed, largest, dict(experiment.dependencies)]
    identity = digest_of([*pool, experiment.images.identity, asdict(arm), added, asdict(experiment.training)])
    store: RecordStore[SegmentationRun] = RecordStore(
        folder=experiment.folder / "segmentation", to_json=asdict, from_json=_run_from_json
    )

    def run() -> SegmentationRun:
        folder = experiment.folder / arm.added / f"{cohort.name}-{digest_of(pool)[:12]}"
        datalist: Path | None = None
        if added:
            whole = _added_slices(arm, cohort, folder, experiment, count=largest)
            datalist = _draw_entries(whole, added, seed=cohort.seed).absolute()
        return _train_and_evaluate(arm, cohort, experiment, datalist, added=added)

    return store.get(f"{cohort.name}-{arm.name}", run, identity=identity)


def segmentation_table(result: SegmentationResult) -> PatientTable:
    """Hits and Dice of a run by patient, category and size, at the threshold of one false positive per composite."""
    point = Froc(result.composites).threshold_at(1.0) if result.composites else 1.0
    items: list[tuple[str, dict[str, float]]] = []
    groups: dict[str, list[str]] = {}
    for kind, cases in (("off_centre", result.crops.off_centre), ("composites", result.composites)):
        for nodule in (nodule for case in cases for nodule in case.nodules):
            groups[nodule.id] = _groups(nodule.category, nodule.diameter_mm)
            items.append((nodule.patient, _columns(kind, groups[nodule.id], float(nodule.is_found(point)))))
    for count in result.crops.pixels:
        items.append((count.patient, _columns("dice", groups.get(count.nodule, ["all"]), count.dice)))
    return share_table(items)


def _train_and_evaluate(
    arm: Arm, cohort: SubCohort, experiment: SegmentationExperiment, datalist: Path | None, *, added: int
) -> SegmentationRun:
    training, folder = experiment.training, experiment.folder / "trainings" / f"{cohort.name}-{arm.name}"
    shutil.rmtree(folder, ignore_errors=True)
    own = {"dataset_dir": str(cohort.folder.absolute()), "output_dir": str(folder.absolute()), "seed": cohort.seed}
    with _quiet():
        train_bundle(experiment.bundles, "lung_seg", overrides={**training.overrides(arm, datalist), **own})
    opened = partial(
        open_bundle,
        experiment.bundles,
        "lung_seg",
        component="detector",
        weights=folder / "model.pt",
        overrides={"amp": training.amp},
    )
    method = Method(name=arm.name, title=arm.title, open=opened, identity="")
    result = evaluate_detector(method, experiment.images, scans=False)
    value = (read_weights_file(folder / "model.pt").sidecar.get("validation") or {}).get("dice_nodule")
    shutil.rmtree(folder)
    return SegmentationRun(result=result, added=added, validation=None if value is None else float(value))


def _run_from_json(content: Mapping[str, Any]) -> SegmentationRun:
    return SegmentationRun(**{**content, "result": result_from_json(content["result"])})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of a training, which would bury the progress of them all."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _groups(category: str, diameter_mm: float) -> list[str]:
    sizes = [name for name, (low, high) in SIZES_MM.items() if low <= diameter_mm < high]
    return ["all", *([category] if category in CATEGORIES else []), *sizes]


def _columns(kind: str, groups: list[str], value: float) -> dict[str, float]:
    return {f"{kind}/{group}": value for group in groups} | {f"{kind}/{group}/n": 1.0 for group in groups}


# Added slices


def _added_slices(arm: Arm, cohort: SubCohort, out: Path, experiment: SegmentationExperiment, *, count: int) -> Path:
    """The data list of the slices from which an arm adds some, made once for all its doses."""
    if arm.added == "copied":
        return _copy_paste(cohort, out, count=count, bundles=experiment.bundles)
    datalist = out / "datalist.json"
    if not datalist.is_file():
        # Nothing real, and not ranked: the feature network learnt from more patients than a sub-cohort has.
        config = GenerateConfig(
            out=out,
            count=count,
            seed=cohort.seed,
            bundles=experiment.bundles,
            cohort=cohort.folder,
            selection=SelectionConfig(strategy="none"),
            placement=PlacementConfig(lungs=min(_LUNGS, count), real_share=0.0),
            enhancement=EnhancementConfig(enabled=experiment.enhance),
        )
        generate(config, tracking_uri=experiment.tracking_uri)
    return datalist


def _copy_paste(cohort: SubCohort, out: Path, *, count: int, bundles: Path) -> Path:
    """Composites real nodules on real lungs of the few patients, or goes on with them; returns the data list."""
    datalist = out / "datalist.json"
    if datalist.is_file():
        return datalist
    library, training = AssetLibrary(out), Cohort.open(cohort.folder).split("training").nonempty()
    _add_real_assets(library, training, seed=cohort.seed)
    config = GenerateConfig(
        out=out,
        count=count,
        seed=cohort.seed,
        bundles=bundles,
        cohort=cohort.folder,
        placement=PlacementConfig(),
    )
    plan_catalogue(library, config, training)
    entries = []
    for recipe in tqdm(list(read_catalogue(config.catalogue_path)), desc="copy-paste", unit="slice", leave=False):
        sample = render(recipe, library)
        pair = {"image": f"images/{recipe.id}.nii.gz", "label": f"masks/{recipe.id}.nii.gz"}
        note = f"composited: lungsynth {recipe.id}"
        write_plane(out / pair["label"], sample.label, sample.affine, descrip=note)
        write_plane(out / pair["image"], sample.image, sample.affine, descrip=note)
        entries.append(pair)
    write_json(datalist, {"training": entries})
    return datalist


def _add_real_assets(library: AssetLibrary, training: CohortSplit, *, seed: int) -> None:
    for category in CATEGORIES:
        for nodule in training.read_nodules(category, seed=seed):
            library.add_nodule(nodule.hu, nodule.alpha, category=category, source="real", origin=nodule.origin)
    lungs = list(training.read_lungs(seed=seed))
    for lung in lungs:
        library.add_lung(lung.hu, lung.mask, affine=lung.affine, source="real", origin=lung.origin)
    if not lungs:
        raise InputError(
            f"{training.folder}: has no normal slice to composite nodules on. Give `lung_patients` at least 1, and a "
            "cohort with scans beside crops."
        )
    library.save_table()


def _draw_entries(datalist: Path, count: int, *, seed: int) -> Path:
    """A data list of `count` of the samples, beside the whole one; fewer are the first of more."""
    listed = objects({"training": lists(mappings(anything))}, {part: lists(mappings(anything)) for part in PARTS})
    content = read_json(datalist, listed, what="a data list of samples", remedy="Remove it and run again.")
    entries: Sequence[dict[str, str]] = [entry for part in PARTS for entry in content.get(part) or []]
    if count > len(entries):
        raise InputError(f"{datalist}: {count} samples are needed, it lists {len(entries)}. Remove it and run again.")
    order = np.random.default_rng(seed).permutation(len(entries))[:count]
    path = datalist.with_name(f"first_{count}.json")
    write_json(path, {"training": [entries[index] for index in order]})
    return path
