"""A trial from slices to report: plan the pairs, ask each detector, judge, report. Each step goes on where it stopped.

`catalogue.parquet`, `assets/` and `pairs.csv` hold the pairs, `detections/NAME/*.json` what each detector answered.
The report is made of these files alone: a trial that was stopped and continued gives the same bytes.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lungsynth.bundles import nodule_rule, open_bundle, read_weights
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.compositing.render import Renderer
from lungsynth.config import default_bundles
from lungsynth.errors import InputError, naming_file
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import remove_temporary, write_json, write_text
from lungsynth.io.running import FolderLock
from lungsynth.io.stored import lists, numbers, objects, read_json, texts
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import SCHEMA, Catalogue, Recipe, TableWriter, read_catalogue
from lungsynth.run_folder import RunFolder
from lungsynth.trial.design import TrialDesign, describe_power
from lungsynth.trial.detections import TrialImage
from lungsynth.trial.detectors import DetectorRunner, DetectorSpec, open_runner
from lungsynth.trial.outcomes import DetectorAnswers, Pair, Place, Truth, record_of
from lungsynth.trial.report import write_reports
from lungsynth.trial.samples import GeneratedNodules, RealNodules, TrialSample, cohort_hosts, plan_samples

__all__ = ["TrialConfig", "TrialPlan", "TrialResult", "describe_trial", "plan_trial", "run_trial"]

_logger = logging.getLogger(__name__)

NODULES = ("generated", "real")
SPLITS = ("test", "validation", "training", "all")
_PAIRS, _CATALOGUE = "pairs.csv", "catalogue.parquet"
_WITHOUT = "without-"  # how the name of a slice without nodule begins
_RECORDS = lists(objects({"name": texts()}))
_POINT = objects({"operating_point": numbers(0, 1)})
_REMEDY = "Delete it, and repeat the command; what it held is asked again."
_FEW = 100  # images, for which it is not worth while to measure how long a detector takes
_PROBED = 3  # images that tell how long a detector takes; the first warms it up


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """A trial.

    Args:
        scans: a cohort that `prepare` wrote, or scans in any layout that it reads.
        out: folder of the trial; one of the same design is continued.
        design: what is varied.
        detectors: who is asked; the first two are compared.
        seed: of everything random.
        split: whose slices are hosts: `test`, `validation`, `training` or `all`.
        nodules: `generated` ones of wcapsgan_bundle, or `real` ones of the cohort's patients of the same split.
        bundles: folder of the bundles.
        workers: detectors that run at the same time.
        batch_size: images that are asked about together.
        false_positives: set each operating point where slices without nodules have so many candidates on average;
            None for the detectors' own.
        retry: ask again about images without an answer.

    Raises:
        InputError: when a value is out of its range.
    """

    scans: Path
    out: Path
    design: TrialDesign = field(default_factory=TrialDesign)
    detectors: tuple[DetectorSpec, ...] = ()
    seed: int = 0
    split: str = "test"
    nodules: str = "generated"
    bundles: Path = field(default_factory=default_bundles)
    workers: int = 1
    batch_size: int = 16
    false_positives: float | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        for name, known in (("split", SPLITS), ("nodules", NODULES)):
            if getattr(self, name) not in known:
                raise InputError(f"`{name}` is one of {', '.join(known)}, got {getattr(self, name)!r}.")
        for name, least in (("workers", 1), ("batch_size", 1), ("seed", 0), ("false_positives", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}.")
        names = [spec.name for spec in self.detectors]
        if len(set(names)) < len(names):
            raise InputError(f"`detector`: names must differ, got {names}. Write NAME=... before one of them.")


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialPlan:
    """The pairs of a trial, as they stand in its folder.

    Args:
        folder: of the trial.
        pairs: rows of `pairs.csv`.
        catalogue: their recipes, in the same order.
        renderer: of their images.
    """

    folder: Path
    pairs: tuple[Pair, ...]
    catalogue: Catalogue
    renderer: Renderer

    @cached_property
    def hosts(self) -> dict[str, Recipe]:
        """A recipe for each slice without nodules, by the name of its image."""
        return {_WITHOUT + recipe.lung: recipe for recipe in reversed(list(self.catalogue))}

    @property
    def names(self) -> list[str]:
        """Names of all images: the slices without nodules, then those with."""
        return [*sorted(self.hosts), *(pair.id for pair in self.pairs)]

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """By the id of the pair."""
        return {recipe.id: recipe for recipe in self.catalogue}

    def image(self, name: str) -> tuple[TrialImage, Truth | None]:
        """An image by its name, and the nodule on it."""
        if name in self.hosts:
            lung = self.renderer.lung(self.hosts[name])
            return TrialImage(name=name, hu=lung.image[None], affine=lung.affine), None
        recipe = self.recipes[name]
        made = self.renderer.render(recipe)
        nodule = recipe.nodules[0]
        truth = Truth(
            Place(centre=(0.0, nodule.row_px, nodule.col_px), diameter_mm=made.annotations[0].diameter_mm),
            (made.label == Label.NODULE)[None],
        )
        return TrialImage(name=name, hu=made.image[None], affine=made.affine), truth


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial left.

    Args:
        report: content of `report.json`.
        lines: what matters of it, in words.
        seconds: that each detector took for an image, in this call; none where nothing was asked.
    """

    report: Mapping[str, Any]
    lines: tuple[str, ...]
    seconds: Mapping[str, float]


def run_trial(config: TrialConfig, *, tracking_uri: str | None = None) -> TrialResult:
    """Runs a trial, or goes on with one that was stopped.

    Args:
        config: what to do.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: when an input cannot be used; a detector that fails is no such error.
    """
    from lungsynth.tracking import open_tracker

    if not config.detectors:
        raise InputError("`detector` is missing: whom to ask? For example lung_seg.")
    tracker = open_tracker(tracking_uri)
    name = f"trial {config.out.name}"
    with FolderLock(config.out), tracker.resumable_run(config.out, name, tags={"command": "trial"}) as run:
        plan = _planned(config)
        run.log_params(_parameters(config))
        for line in describe_trial(config, plan):
            _logger.info("%s", line)
        seconds, answers = {}, []
        for spec in config.detectors:
            answered, took = _ask(spec, plan, config)
            answers.append(answered)
            if took is not None:
                seconds[spec.name] = took
        report, lines = write_reports(
            plan.folder, plan.pairs, answers, config.design, plan.image, seed=config.seed, rate=config.false_positives
        )
        run.log_metrics({**_metrics(report), **{f"{name}_seconds_an_image": took for name, took in seconds.items()}})
        for name in ("report.json", "report.html"):
            run.log_file(plan.folder / name)
    return TrialResult(report=report, lines=tuple(lines), seconds=seconds)


def plan_trial(config: TrialConfig) -> TrialPlan:
    """The pairs of a trial: planned now, or read where its folder has them.

    Raises:
        InputError: when the scans have no usable slices, or these cannot carry the design.
    """
    with FolderLock(config.out):
        return _planned(config)


def _planned(config: TrialConfig) -> TrialPlan:
    cohort = _cohort(config)
    identity = {
        "design": config.design.to_json(),
        "seed": config.seed,
        "split": config.split,
        "nodules": config.nodules,
        "cohort": cohort.identity,
        "weights": read_weights(config.bundles, "wcapsgan").sha256 if config.nodules == "generated" else None,
    }
    RunFolder(path=config.out, identity=identity).claim()
    library = AssetLibrary(config.out)
    if not (config.out / _PAIRS).is_file():
        splits = _splits(cohort, config.split)
        pool = _pool(library, config, splits)
        hosts = cohort_hosts(library, splits, seed=config.seed)
        samples, failed = plan_samples(library, hosts, pool, config.design, seed=config.seed)
        for cell, times in failed.most_common(3):
            _logger.info("no place for %s on %d slices, which were left out", cell, times)
        _write_plan(config.out, library, samples)
    with naming_file(config.out / _PAIRS, remedy="delete it, and repeat the command; it is planned again"):
        table = pd.read_csv(config.out / _PAIRS, dtype=dict.fromkeys(config.design.factors, str) | {"host": str})
        pairs = tuple(Pair.of(row, config.design) for row in table.to_dict("records"))
    catalogue = read_catalogue(config.out / _CATALOGUE)
    return TrialPlan(folder=config.out, pairs=pairs, catalogue=catalogue, renderer=Renderer(library))


def describe_trial(config: TrialConfig, plan: TrialPlan) -> list[str]:
    """What will be asked and what it can show, in lines; with detectors, also how long it will take."""
    design = config.design
    patients = len({pair.patient for pair in plan.pairs})
    hosts = len({pair.host for pair in plan.pairs})
    lines = [
        f"{len(plan.pairs)} pairs: {len(design.cells)} cells on {hosts} slices of {patients} patients, "
        f"{design.replicates} in each"
        + (f", each slice with one in {design.fraction} cells" if design.fraction > 1 else ""),
        *describe_power(design),
    ]
    for spec in config.detectors:
        stored = _stored(_folder(plan, spec), retry=config.retry)
        missing = [name for name in plan.names if name not in stored]
        if not missing:
            lines.append(f"{spec.name}: has answered all")
            continue
        if len(missing) < _FEW:
            lines.append(f"{spec.name}: {len(missing)} images")
            continue
        each = _probe(spec, plan, missing)
        minutes = each * len(missing) / min(config.workers, len(missing)) / 60
        lines.append(f"{spec.name}: {len(missing)} images at {each:.2f} s, about {minutes:.1f} minutes")
    return lines


def _cohort(config: TrialConfig) -> Cohort:
    rule = nodule_rule(config.bundles)
    if (config.scans / "cohort.json").is_file():
        return Cohort.open(config.scans, rule=rule)
    folder = config.out.with_name(f"{config.out.name}-cohort")
    if not (folder / "cohort.json").is_file():
        prepare_cohort([config.scans], folder, settings=PrepareSettings(split="test"), workers=config.workers)
    return Cohort.open(folder, rule=rule)


def _splits(cohort: Cohort, name: str) -> list[CohortSplit]:
    splits = [cohort.split(own) for own in (SPLITS[:-1] if name == "all" else (name,))]
    if not any(split.lungs() for split in splits):
        has = {own: len(cohort.split(own).lungs()) for own in SPLITS[:-1]}
        raise InputError(
            f"{cohort.folder}: its {name} split has no normal slices to put nodules into; there are {has}. Name "
            "another `split`."
        )
    return splits


def _pool(library: AssetLibrary, config: TrialConfig, splits: list[CohortSplit]) -> GeneratedNodules | RealNodules:
    if config.nodules == "real":
        return RealNodules(library, splits, seed=config.seed)
    weights = read_weights(config.bundles, "wcapsgan").sha256
    return GeneratedNodules(library, open_bundle(config.bundles, "wcapsgan"), weights=weights, seed=config.seed)


def _write_plan(out: Path, library: AssetLibrary, samples: Sequence[TrialSample]) -> None:
    """`pairs.csv` last: where it is, the others are whole."""
    library.save_table()
    places = ("row_px", "col_px", "distance_mm")
    with TableWriter(out / _CATALOGUE) as writer:
        writer.write(
            [
                {name: getattr(sample.recipe, name) for name in SCHEMA.names if name not in places}
                | {name: [getattr(nodule, name) for nodule in sample.recipe.nodules] for name in places}
                for sample in samples
            ]
        )
    patients = {name: number for number, name in enumerate(sorted({sample.patient for sample in samples}), start=1)}
    renderer = Renderer(library)
    rows = [
        Pair.measured(sample, renderer, patient=patients[sample.patient])
        for sample in tqdm(samples, desc="measuring", unit="pair", disable=len(samples) < 200 or None)
    ]
    table = pd.DataFrame([row.to_row() for row in rows])
    write_text(out / _PAIRS, table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))


# Asking


def _ask(spec: DetectorSpec, plan: TrialPlan, config: TrialConfig) -> tuple[DetectorAnswers, float | None]:
    """All answers of a detector, and how many seconds each of those took that are new."""
    folder = _folder(plan, spec)
    RunFolder(path=folder, identity=spec.identity).claim()
    stored = _stored(folder, retry=config.retry)
    missing = [name for name in plan.names if name not in stored]
    took = None
    if missing:
        begin = time.perf_counter()
        with _Asking(spec, plan, config, folder) as asking:
            for batch in asking.batches(missing):
                stored.update({record["name"]: record for record in batch})
        took = (time.perf_counter() - begin) / len(missing)
    point = read_json(folder / "operating_point.json", _POINT, what="an operating point", remedy=_REMEDY)
    chosen = point["operating_point"] if spec.operating_point is None else spec.operating_point
    records = {name: stored[name] for name in plan.names}
    without = {pair.id: _WITHOUT + plan.recipes[pair.id].lung for pair in plan.pairs}
    return DetectorAnswers(name=spec.name, records=records, without=without, operating_point=chosen), took


class _Asking:
    """Detectors at work, one in each thread; leaving the block ends them."""

    def __init__(self, spec: DetectorSpec, plan: TrialPlan, config: TrialConfig, folder: Path) -> None:
        self.spec, self.plan, self.config, self.folder = spec, plan, config, folder
        self._own = threading.local()
        self._runners: list[DetectorRunner] = []
        self._rendering = threading.Lock()  # of one renderer with its caches

    def __enter__(self) -> "_Asking":
        remove_temporary(self.folder)
        shutil.rmtree(self._work, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners:
            runner.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def batches(self, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Asks about images and keeps the answers of each batch in a file."""
        size = self.config.batch_size
        parts = [names[start : start + size] for start in range(0, len(names), size)]
        first = 1 + max((int(path.stem) for path in self.folder.glob("[0-9]*.json")), default=-1)
        threads = ThreadPoolExecutor(min(self.config.workers, len(parts)))
        try:
            jobs = [threads.submit(self._batch, part, first + number) for number, part in enumerate(parts)]
            with tqdm(total=len(names), desc=self.spec.name, unit="image") as progress:
                for job in as_completed(jobs):
                    records = job.result()
                    progress.update(len(records))
                    yield records
        finally:
            for runner in self._runners:
                runner.close()  # so that no thread waits for an answer
            threads.shutdown(cancel_futures=True)

    @property
    def _work(self) -> Path:
        return self.folder / ".work"

    def _batch(self, names: Sequence[str], number: int) -> list[dict[str, Any]]:
        runner = self._runner()
        with self._rendering:
            asked = [self.plan.image(name) for name in names]
        answers = runner([image for image, _ in asked])
        records = [record_of(image, answer, truth) for (image, truth), answer in zip(asked, answers, strict=True)]
        write_json(self.folder / f"{number:06d}.json", records, indent=None)
        return records

    def _runner(self) -> DetectorRunner:
        if not hasattr(self._own, "runner"):
            self._own.runner = open_runner(self.spec, self._work)
            self._runners.append(self._own.runner)
            write_json(self.folder / "operating_point.json", {"operating_point": self._own.runner.operating_point})
        runner: DetectorRunner = self._own.runner
        return runner


def _folder(plan: TrialPlan, spec: DetectorSpec) -> Path:
    return plan.folder / "detections" / spec.name


def _stored(folder: Path, *, retry: bool) -> dict[str, dict[str, Any]]:
    """Records by the name of their image; those of later files hold."""
    stored: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        stored.update(
            {
                record["name"]: record
                for record in read_json(path, _RECORDS, what="a detector's answers", remedy=_REMEDY)
            }
        )
    return {name: record for name, record in stored.items() if not (retry and "error" in record)}


def _probe(spec: DetectorSpec, plan: TrialPlan, names: Sequence[str]) -> float:
    """Seconds an image, of a few; the answers are thrown away."""
    images = [plan.image(name)[0] for name in names[:_PROBED]]
    work = plan.folder / "detections" / f".probe-{spec.name}"
    runner = open_runner(spec, work)
    try:
        runner(images[:1])
        begin = time.perf_counter()
        runner(images[1:] or images)
        return (time.perf_counter() - begin) / len(images[1:] or images)
    finally:
        runner.close()
        shutil.rmtree(work, ignore_errors=True)


def _parameters(config: TrialConfig) -> dict[str, Any]:
    design = config.design.to_json()
    factors = {f"factor_{name}": levels for name, levels in design.pop("factors").items()}
    own = {"seed": config.seed, "split": config.split, "nodules": config.nodules}
    return {**design, **factors, **own, "detectors": ", ".join(spec.name for spec in config.detectors)}


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, own in report["detectors"].items():
        for key in ("sensitivity", "caused_share"):
            if own[key]["value"] is not None:
                metrics[f"{name}_{key}"] = own[key]["value"]
        metrics[f"{name}_failed"] = float(own["failed"])
    return metrics
