"""Experiment (a): the segmentation bundle, trained from scratch on few patients with and without added slices.

Each run trains `lung_seg_bundle` by its own `train.json` with `--extra_datalist`, as a user would, and its detector is
judged on the crops and composites of Table I. The bundle's composites of real nodules while training are switched off
in all arms but one. Crops of real nodules are shown equally often in all arms, and added slices take the place of half
of the slices with lungs, whatever the dose: a larger dose means other slices, not more of them in a step.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.composites import Composites, evaluate_composites
from evaluation.metrics.froc import Froc
from evaluation.segmentation.crops import Crop, evaluate_crops
from evaluation.segmentation.figures import SIZES_MM
from evaluation.segmentation.records import SegmentationResult, load_result, save_result
from evaluation.utility.arms import Arm
from evaluation.utility.copy_paste import choose_entries, paste_real
from evaluation.utility.estimates import Shares, Table, share_table
from evaluation.utility.subcohort import CATEGORIES, SubCohort
from lungsynth.bundles import open_bundle, train_bundle
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig, SelectionConfig
from lungsynth.generate import generate
from lungsynth.io.atomic import write_bytes

__all__ = ["SHARES", "EvaluationImages", "SegmentationTraining", "run_segmentation", "segmentation_table"]

_FORMAT = 2
_VALIDATIONS = 4
_LUNGS = 200  # generated for the largest dose; each of its slices has a group of nodules of its own
_GROUPS = ("all", *CATEGORIES, *SIZES_MM)

_NAMES = {"dice": "dice", "off_centre": "sensitivity, off the centre", "composites": "sensitivity, composites"}
SHARES: Shares = {
    _NAMES[kind] if group == "all" else f"{_NAMES[kind]}, {group}": ((f"{kind}/{group}", f"{kind}/{group}/n"),)
    for kind in _NAMES
    for group in _GROUPS
}


@dataclass(frozen=True, kw_only=True)
class SegmentationTraining:
    """The budget of a run, the same for all arms.

    Args:
        steps: of the optimiser.
        batch_size: of a step.
        size_px: side of the squares.
        tiles: crops in a row of a square.
        learning_rate: at its highest.
        amp: bfloat16.
        validation_samples: that choose the weights.
        crop_share: of crops of real nodules in what is shown, in all arms with real samples.
        added_share: of added slices, in these arms; slices with lungs are the rest.
        own_composites: shares of 0, 1, 2, ... nodules that the bundle pastes itself, in the arm that has it.
    """

    steps: int = 300
    batch_size: int = 8
    size_px: int = 128
    tiles: int = 2
    learning_rate: float = 2e-3
    amp: bool = True
    validation_samples: int = 24
    crop_share: float = 0.35
    added_share: float = 0.325
    own_composites: tuple[float, ...] = (0.1, 0.3, 0.3, 0.3)

    def overrides(self, arm: Arm, datalist: Path | None) -> dict[str, Any]:
        """Ids of `train.json` for an arm, whose added slices `datalist` names."""
        validations = min(_VALIDATIONS, self.steps)
        added = self.added_share if datalist else 0.0
        return {
            "max_epochs": validations,
            "epoch_length": self.steps // validations,
            "val_interval": 1,
            "val_limit": self.validation_samples,
            "patience": validations + 1,
            "batch_size": self.batch_size,
            "size_px": self.size_px,
            "tiles_per_side": self.tiles,
            "learning_rate": self.learning_rate,
            "amp": self.amp,
            "train::dataset::progress": False,
            "validate::dataset::progress": False,
            "nodule_crop_share": self.crop_share / (1 - added),
            "extra_share": added if arm.real else 1.0,
            "extra_datalist": str(datalist) if datalist else None,
            "nodules_per_crop_probs": [*self.own_composites] if arm.plain else [1.0],
            "context_patches_probs": [1.0],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationImages:
    """What all runs are judged on; `identity` changes with it."""

    crops: list[Crop]
    composites: Composites
    identity: str


def run_segmentation(
    arm: Arm,
    cohort: SubCohort,
    judged: EvaluationImages,
    folder: Path,
    *,
    training: SegmentationTraining,
    bundles: Path,
    enhance: bool,
    made_by: Mapping[str, Any],
    largest: int,
    tracking_uri: str,
) -> tuple[SegmentationResult, int, float | None]:
    """The records of one run, kept or made, how many slices were added, and the validation Dice of nodules.

    Args:
        arm: of the experiment.
        cohort: few patients.
        judged: what is looked at.
        folder: for records, synthetic sets and trainings.
        training: the budget.
        bundles: folder of the bundles.
        enhance: send added composites through the CycleGAN.
        made_by: what decides over the runs beside the arguments: weights and settings of the bundles.
        largest: slices of the largest dose; the smaller ones are drawn of them.
        tracking_uri: of the generated slices.

    Raises:
        InputError: when a bundle refuses what it gets.
    """
    added = arm.count(cohort.crops, categories=len(CATEGORIES))
    pool = [_FORMAT, cohort.split_hash, cohort.seed, largest, dict(made_by)]
    identity = _digest([*pool, judged.identity, asdict(arm), added, asdict(training)])
    record = folder / "segmentation" / f"{cohort.name}-{arm.name}.json"
    sidecar = record.with_suffix(".training.json")
    if sidecar.is_file() and (kept := load_result(record, identity=identity)):
        return kept, added, _validation(sidecar)
    made = folder / arm.added / f"{cohort.name}-{_digest(pool)[:12]}"
    datalist: Path | None = None
    if added:
        whole = _pool(arm, cohort, made, bundles=bundles, enhance=enhance, count=largest, tracking_uri=tracking_uri)
        datalist = choose_entries(whole, added, seed=cohort.seed).absolute()
    run = folder / "trainings" / f"{cohort.name}-{arm.name}"
    shutil.rmtree(run, ignore_errors=True)
    own = {"dataset_dir": str(cohort.folder.absolute()), "output_dir": str(run.absolute()), "seed": cohort.seed}
    with _quiet():
        train_bundle(bundles, "lung_seg", overrides={**training.overrides(arm, datalist), **own})
    detector = open_bundle(
        bundles, "lung_seg", component="detector", weights=run / "model.pt", overrides={"amp": training.amp}
    )
    outcome = SegmentationResult(
        operating_point=float(detector.operating_point),
        crops=evaluate_crops(judged.crops, detector, name=arm.name),
        composites=evaluate_composites(judged.composites, detector, name=arm.name),
    )
    write_bytes(sidecar, (run / "model.json").read_bytes())
    save_result(record, outcome, identity=identity)
    shutil.rmtree(run)
    return outcome, added, _validation(sidecar)


def segmentation_table(outcome: SegmentationResult) -> Table:
    """Hits and Dice of a run by patient, category and size; found is what one false positive a slice leaves."""
    point = Froc(outcome.composites).threshold_at(1.0) if outcome.composites else 1.0
    items: list[tuple[str, dict[str, float]]] = []
    groups: dict[str, list[str]] = {}
    for kind, cases in (("off_centre", outcome.crops.off_centre), ("composites", outcome.composites)):
        for target in (target for case in cases for target in case.targets):
            groups[target.id] = _groups(target.category, target.diameter_mm)
            hit = float(target.score is not None and target.score >= point)
            items.append((target.patient, _counted(kind, groups[target.id], hit)))
    for count in outcome.crops.pixels:
        items.append((count.patient, _counted("dice", groups.get(count.nodule, ["all"]), count.dice)))
    return share_table(items)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of a training, which would bury the progress of them all."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _validation(sidecar: Path) -> float | None:
    value = json.loads(sidecar.read_text()).get("validation", {}).get("dice_nodule")
    return None if value is None else float(value)


def _groups(category: str, diameter_mm: float) -> list[str]:
    sizes = [name for name, (low, high) in SIZES_MM.items() if low <= diameter_mm < high]
    return ["all", *([category] if category in CATEGORIES else []), *sizes]


def _counted(kind: str, groups: list[str], value: float) -> dict[str, float]:
    return {f"{kind}/{group}": value for group in groups} | {f"{kind}/{group}/n": 1.0 for group in groups}


def _digest(known: object) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _pool(
    arm: Arm, cohort: SubCohort, out: Path, *, bundles: Path, enhance: bool, count: int, tracking_uri: str
) -> Path:
    """The data list of the slices from which an arm adds some, made once for all its doses."""
    if arm.added == "copied":
        return paste_real(cohort.folder, out, count=count, seed=cohort.seed, bundles=bundles)
    datalist = out / "datalist.json"
    if not datalist.is_file():
        # Nothing real, and not ranked: the feature network learnt from more patients than a sub-cohort has.
        config = GenerateConfig(
            out=out,
            count=count,
            seed=cohort.seed,
            bundles=bundles,
            cohort=cohort.folder,
            selection=SelectionConfig(strategy="none"),
            placement=PlacementConfig(groups=count, lungs=min(_LUNGS, count), real_share=0.0),
            enhancement=EnhancementConfig(enabled=enhance),
        )
        generate(config, tracking_uri=tracking_uri)
    return datalist
