"""Runs of the detector's experiment: patients, what an arm adds, a training, and its records on held-out windows.

A run is kept as soon as it is finished. The added windows of a kind are made once for all doses.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from evaluation.methods import digest_of
from evaluation.metrics.froc import Froc
from evaluation.runner import RecordStore
from evaluation.segmentation.records import windows_from_json
from evaluation.segmentation.windows import (
    FreeView,
    NoduleView,
    WindowRecords,
    evaluate_free_windows,
    evaluate_windows,
    rate_per_window,
)
from evaluation.utility.arms import AddedKind, Hosts, WindowArm
from evaluation.utility.classification import NoduleSource
from evaluation.utility.detection import DetectionTraining, WindowDetector, train_detector
from evaluation.utility.insertion import copied_library, generated_library, insert_nodules
from evaluation.utility.subcohort import choose_patients
from evaluation.utility.windows import TrainingWindows, join_windows, read_training_windows
from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import CohortSplit
from lungsynth.placement.assets import AssetLibrary

__all__ = ["CHOOSING_RATE", "DetectionExperiment", "DetectionRun", "FewPatients", "run_detection"]

_FORMAT = 1  # of the records
CHOOSING_RATE = 0.5  # false positives per 100 cm2 at which validation patients choose a dose


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionExperiment:
    """What all runs share.

    Args:
        patients: the training split of the cohort.
        evaluated: windows that are judged.
        validation: windows that choose doses.
        free: windows without a nodule, of the patients of both, judged with them.
        folder: for records and libraries.
        bundles: folder of the bundles.
        training: the budget.
        windows: with inserted nodules, of each kind of an arm.
        per_category: generated nodules of each category.
        generated_hosts: windows of generated lungs, when first needed.
    """

    patients: CohortSplit
    evaluated: Sequence[NoduleView]
    validation: Sequence[NoduleView]
    free: tuple[Sequence[FreeView], Sequence[FreeView]]
    folder: Path
    bundles: Path
    training: DetectionTraining
    windows: int
    per_category: int
    generated_hosts: Callable[[], TrainingWindows]

    def network(self) -> nn.Module | None:
        """An untrained network of the budget's kind; None for MONAI's."""
        if self.training.network != "dense_unet":
            return None
        overrides = {"network_def::in_channels": 1, "network_def::out_channels": 1}
        network: nn.Module = open_bundle(
            self.bundles, "lung_seg", configs=("train.json",), component="network_def", overrides=overrides
        )
        return network


@dataclass(frozen=True, kw_only=True)
class DetectionRun:
    """A finished run.

    Args:
        patients: how many trained.
        seed: of their choice and of the training.
        arm: what was added.
        records: on the evaluated windows.
        validation: sensitivity at `CHOOSING_RATE` on the validation windows.
        own_generator: whether the generator was trained on these patients alone; None where nothing is generated.
    """

    patients: int
    seed: int
    arm: WindowArm
    records: WindowRecords
    validation: float
    own_generator: bool | None = None


@dataclass(eq=False, kw_only=True)
class FewPatients:
    """Some patients of the cohort, their windows, and what is made of them when first needed.

    Args:
        experiment: what all runs share.
        count: of patients; all of the split when 0.
        seed: of their choice; more patients begin with the fewer ones.
        generator: of nodules.
    """

    experiment: DetectionExperiment
    count: int
    seed: int
    generator: NoduleSource
    _real: TrainingWindows | None = None
    _added: dict[tuple[AddedKind, Hosts], TrainingWindows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        split = self.experiment.patients
        everybody = sorted({nodule.patient_id for nodule in split.nodules() if nodule.patient_id})
        entries = split.cohort.entries("nodules", split.name)
        self.ids = choose_patients(entries, self.count, seed=self.seed) if self.count else everybody

    @property
    def name(self) -> str:
        """Of files."""
        return f"p{len(self.ids)}-s{self.seed}"

    @property
    def real(self) -> TrainingWindows:
        """Their windows."""
        if self._real is None:
            self._real = read_training_windows(self.experiment.patients, set(self.ids))
        return self._real

    def added(self, arm: WindowArm) -> TrainingWindows:
        """Windows with an inserted nodule, as many of each kind of the arm."""
        return join_windows([self._windows(kind, hosts) for kind in arm.nodules for hosts in arm.hosts])

    def _windows(self, kind: AddedKind, hosts: Hosts) -> TrainingWindows:
        if (kind, hosts) not in self._added:
            windows = self.real if hosts == "own" else self.experiment.generated_hosts()
            self._added[kind, hosts] = insert_nodules(
                windows, self._library(kind), self.experiment.windows, seed=self.seed
            )
        return self._added[kind, hosts]

    def _library(self, kind: AddedKind) -> AssetLibrary:
        folder = self.experiment.folder / "libraries"
        if kind == "copied":
            return copied_library(self.experiment.patients, set(self.ids), folder / f"copied-{self.name}")
        name = f"generated-{digest_of([self.generator.sha256, self.seed, self.experiment.per_category])[:12]}"
        if (folder / name / "assets.parquet").is_file():
            return AssetLibrary(folder / name)
        return generated_library(
            self.generator.open(),
            folder / name,
            weights=self.generator.sha256,
            per_category=self.experiment.per_category,
            seed=self.seed,
        )


def run_detection(arm: WindowArm, few: FewPatients, *, identity: str, train: bool = True) -> DetectionRun | None:
    """A run, kept or made; None where it is not kept and none may be made.

    Args:
        arm: what is added.
        few: who trains.
        identity: changes with what is evaluated on.
        train: whether to make it.

    Raises:
        InputError: when the patients have no windows, or nodules fit nowhere.
    """
    experiment = few.experiment
    training = replace(experiment.training, augment=arm.augment)
    facts: list[Any] = [_FORMAT, identity, few.ids, few.seed, asdict(arm), asdict(training)]
    facts += [experiment.windows, experiment.per_category] if arm.nodules else []
    facts += [few.generator.sha256] if "generated" in arm.nodules else []
    store: RecordStore[Mapping[str, Any]] = RecordStore(
        folder=experiment.folder / "detection" / training.network, to_json=dict, from_json=_checked
    )

    def run() -> Mapping[str, Any]:
        added = few.added(arm) if arm.nodules else None
        detector = train_detector(
            few.real, training, seed=few.seed, added=added, share=arm.dose, network=experiment.network()
        )
        views = zip((experiment.evaluated, experiment.validation), experiment.free, strict=True)
        judged, chosen_by = (_judged(detector, *both, name=arm.name) for both in views)
        score = float(Froc(chosen_by.cases).sensitivity_at([rate_per_window(CHOOSING_RATE)])[0])
        return json.loads(json.dumps({"records": asdict(judged), "validation": score}))

    name = f"{few.name}-{arm.name.replace('@', '_')}"
    digest = digest_of(facts)
    record = store.get(name, run, identity=digest) if train else store.load(name, identity=digest)
    if record is None:
        return None
    return DetectionRun(
        patients=len(few.ids),
        seed=few.seed,
        arm=arm,
        records=windows_from_json(record["records"]),
        validation=float(np.nan_to_num(record["validation"])),
        own_generator=few.generator.own if "generated" in arm.nodules else None,
    )


def _judged(
    detector: WindowDetector, nodules: Sequence[NoduleView], free: Sequence[FreeView], *, name: str
) -> WindowRecords:
    """Records on both kinds of windows; the network looks at one slice, so it is given no other."""
    slices = [replace(view, hu=view.hu[view.index : view.index + 1], index=0) for view in nodules]
    records = evaluate_windows(slices, detector, name=name)
    return replace(records, cases=(*records.cases, *evaluate_free_windows(free, detector, name=name)))


def _checked(content: Mapping[str, Any]) -> Mapping[str, Any]:
    windows_from_json(content["records"])
    return content
