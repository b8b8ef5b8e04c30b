"""A set of labelled synthetic slices, in four stages: nodules and lungs, a plan, the files, a check.

`generate` runs them all; `lungsynth.plan` stops at the catalogue, and `export.writer` renders one. Everything that a
user can get wrong is checked before the first file is written. A stage whose result stands is not done again;
`run.json` says whose results they are.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lungsynth.bundles import WeightsInfo, lung_generator, open_bundle, read_weights, resolved_config
from lungsynth.cohort.reader import CohortSplit
from lungsynth.config import GenerateConfig
from lungsynth.contact_sheet import Tile, contact_sheet, pick_tiles
from lungsynth.ct.write import read_plane
from lungsynth.detectability import Segmenter, check_detectability
from lungsynth.enhancement.stage import EnhancementStage, enhancement_identity, open_stage
from lungsynth.export.writer import ENHANCED_LUNGS, ExportJob, ExportResult, ShardWriter, write_samples
from lungsynth.generate_assets import Samplers, make_assets, open_samplers
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import remove_temporary, write_picture
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue
from lungsynth.plan import assets_digest, category_rule, grows, lacks_assets, open_cohort, planned
from lungsynth.run_folder import FORMAT, RunFolder
from lungsynth.run_report import RunReport
from lungsynth.similarity.selection import selection_figures, selection_identity
from lungsynth.tracking import DEFAULT_URI, Run, Tracker, open_tracker
from lungsynth.variety import VarietyFigures, measure_variety

__all__ = ["GenerateResult", "Pipeline", "TrackedStages", "generate"]

_LOGGED_SAMPLES = 6
_MAY_GROW = ("count",)  # a finished run goes on to more samples
# Figures that differ from run to run and say how good one is; all others stand in figures.json.
_METRICS = frozenset(
    {
        "distinct_lungs",
        "distinct_nodules",
        "distinct_places",
        "enhanced_blended",
        "enhanced_labels_kept",
        "enhanced_lung_mean_hu",
        "enhanced_nodule_mean_hu",
        "lung_dice",
        "nearest_nodule_hu",
        "nearest_place_mm",
        "nodules_found",
        "other_findings_per_slice",
        "samples_per_second",
        "smallest_mm",
        "target_gap",
        "warnings",
        "within_10_mm",
    }
)
_OF_A_COHORT = frozenset(
    {"lungs_candidates_copies", "nodules_candidates_copies", "real_lungs", "real_nodules"}
)  # else always 0

_logger = logging.getLogger(__name__)

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """Where the results stand.

    Args:
        out: folder of the run.
        tracking_uri: of the store, absolute; `none` when nothing was tracked.
        figures: by stage, what it found.
        tracking_page: of the run in MLflow's UI; empty when nothing was tracked.
    """

    out: Path
    tracking_uri: str
    figures: dict[str, Figures]
    tracking_page: str = ""

    @classmethod
    def of(cls, stages: "TrackedStages", out: Path) -> "GenerateResult":
        """The result of stages that have run."""
        tracker = stages.tracker
        return cls(out=out, tracking_uri=tracker.uri, figures=stages.figures, tracking_page=tracker.page(stages.parent))

    @property
    def variety(self) -> VarietyFigures:
        """What repeats in the set, and how it is distributed."""
        return VarietyFigures.read(self.out)

    @property
    def images(self) -> Path:
        """Folder of the slices, NIfTI in HU."""
        return self.out / "images"

    @property
    def masks(self) -> Path:
        """Folder of the label maps, NIfTI of `hounsfield.Label` ids."""
        return self.out / "masks"

    @property
    def annotations(self) -> Path:
        """Centres and diameters of the nodules, as LUNA16 has them."""
        return self.out / "annotations.csv"

    @property
    def datalist(self) -> Path:
        """Pairs of image and label, as MONAI reads them."""
        return self.out / "datalist.json"

    @property
    def catalogue(self) -> Path:
        """The recipes of all samples."""
        return self.out / "catalogue.parquet"

    @property
    def contact_sheet(self) -> Path:
        """A picture of some samples."""
        return self.out / "contact_sheet.png"

    @property
    def report(self) -> Path:
        """A page about the run, for a browser."""
        return self.out / "report.html"


def generate(config: GenerateConfig, *, tracking_uri: str | None = DEFAULT_URI, command: str = "") -> GenerateResult:
    """Makes a set of synthetic slices, or goes on with one.

    Args:
        config: of the run.
        tracking_uri: MLflow store; None tracks nothing.
        command: that repeats the run, for its report.

    Raises:
        InputError: before anything is written, when an input cannot be used.
    """
    pipeline = Pipeline.open(config, command=command)
    with pipeline.tracked(tracking_uri) as stages:
        stages.run("assets", pipeline.make_assets)
        stages.run("plan", pipeline.plan)
        stages.run("export", pipeline.export)
        stages.run("check", pipeline.check)
    return GenerateResult.of(stages, config.out)


@dataclass(eq=False, kw_only=True)
class TrackedStages:
    """Runs stages one after the other, each tracked as a child of one run.

    Args:
        tracker: of the store.
        parent: the run.
        name: of the children, before that of the stage.
        metrics: names of the figures that are logged as such; all others stand in figures.json.
        figures: by stage, what it found.
    """

    tracker: Tracker
    parent: Run
    name: str
    metrics: frozenset[str] = _METRICS
    figures: dict[str, Figures] = field(default_factory=dict)

    def run(self, stage: str, work: Callable[[Run], Figures]) -> None:
        """Runs a stage and logs its figures and its time; those that matter with the parent, too."""
        started = time.monotonic()
        _logger.info("stage %s", stage)
        with self.tracker.run(f"{self.name}/{stage}", parent=self.parent, tags={"stage": stage}) as run:
            figures = work(run)
            seconds = run.previous.get("seconds", 0.0) + time.monotonic() - started
            self.figures[stage] = {**figures, "seconds": seconds}
            run.log_json(figures, "figures.json")
            metrics = {key: value for key, value in figures.items() if key in self.metrics}
            run.log_metrics(metrics | {"seconds": seconds})
        self.parent.log_metrics(metrics)
        _logger.info("stage %s done in %.1f s", stage, time.monotonic() - started)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
    """A run whose inputs have been looked at, with what its stages work with; made by `open`.

    A network is opened only for a stage that is still to be done. Each stage returns its figures, and logs its files
    to the run that it gets.

    Args:
        config: of the run.
        identity: what `run.json` says.
        cohort: lends real nodules and lungs.
        weights: of the networks, by name.
        samplers: draw nodules and lungs.
        enhancer: the last stage of a sample.
        segmenter: looks at finished samples.
        command: that repeats the run, for its report.
    """

    config: GenerateConfig
    identity: Mapping[str, Any]
    cohort: CohortSplit | None
    weights: Mapping[str, WeightsInfo]
    samplers: Samplers | None
    enhancer: EnhancementStage | None
    segmenter: Segmenter
    command: str = ""

    @classmethod
    def open(cls, config: GenerateConfig, *, command: str = "") -> "Pipeline":
        """Looks at every input, without writing anything.

        Args:
            config: of the run.
            command: that repeats it, for its report.

        Raises:
            InputError: when an input cannot be used, or the folder holds something else.
        """
        cohort, weights, bundles = open_cohort(config), _read_all_weights(config), config.bundles
        identity = _identity(config, cohort, weights)
        RunFolder(path=config.out, identity=identity, may_grow=_MAY_GROW).check()
        used = {"nodule_weights": weights["wcapsgan"].sha256, "lung_weights": weights["wcapsgan_lung"].sha256}
        finished = config.library is not None or not lacks_assets(config)
        enhancement = config.enhancement
        return cls(
            config=config,
            identity=identity,
            cohort=cohort,
            weights=weights,
            samplers=None
            if finished
            else open_samplers(bundles, lungs=lung_generator(config.lung_px), rule=category_rule(config), **used),
            enhancer=open_stage(bundles, label_check=enhancement.label_check, folder=config.out / ENHANCED_LUNGS)
            if enhancement.enabled
            else None,
            segmenter=open_bundle(bundles, "lung_seg", component="segmenter"),
            command=command,
        )

    @contextmanager
    def tracked(self, tracking_uri: str | None) -> Iterator[TrackedStages]:
        """Claims the folder and starts the run under which the stages are tracked.

        Args:
            tracking_uri: MLflow store; None tracks nothing.

        Raises:
            InputError: before anything is written, when the store cannot be used.
        """
        tracker, out = open_tracker(tracking_uri), self.config.out
        with RunFolder(path=out, identity=self.identity, may_grow=_MAY_GROW).held():
            remove_temporary(out, recursive=True)
            with tracker.resumable_run(out, f"generate {out.name}", tags={"command": "generate"}) as parent:
                self._log_inputs(parent)
                metrics = _METRICS | _OF_A_COHORT if self.cohort else _METRICS
                stages = TrackedStages(tracker=tracker, parent=parent, name=out.name, metrics=metrics)
                yield stages
                self._write_report(parent, stages.figures)

    @cached_property
    def library(self) -> AssetLibrary:
        """The nodules and lungs."""
        return AssetLibrary(self.config.library_folder)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The planned samples; there when `plan` has run."""
        return read_catalogue(self.config.catalogue_path)

    @cached_property
    def exported(self) -> ExportResult:
        """The samples as files; what is missing of them is rendered when it is first asked for."""
        writer = ShardWriter(self._job, library=self.library, catalogue=self.catalogue, stage=self.enhancer)
        return write_samples(self._job, writer, len(self.catalogue), workers=self.config.workers)

    def make_assets(self, run: Run) -> Figures:
        """wcapsgan_bundle draws nodules and lungs; with a cohort, the best are chosen and real ones join them."""
        if self.samplers:
            make_assets(self.library, self.samplers, self.config, cohort=self.cohort)
        figures: Figures = {}
        if (self.library.folder / "selection.json").is_file():  # a library of the user's own may have none
            run.log_file(self.library.folder / "selection.json")
            figures = selection_figures(self.library.folder)
        counts = Counter(f"{asset.kind}s_{asset.source}" for asset in self.library)
        counts.update(f"nodules_{asset.category}" for asset in self.library if asset.kind == "nodule")
        return figures | {key: float(value) for key, value in counts.items()}

    def plan(self, run: Run) -> Figures:
        """Nodules are placed on lungs: the catalogue says which, where and how turned, and nothing is rendered yet."""
        figures, previous = Figures(), planned(self.config)
        if previous is None or grows(self.config, previous):
            enhancer = self.weights["cyclegan"].sha256 if "cyclegan" in self.weights else None
            identity = {"settings": self.config.to_json(), "run": dict(self.identity)}
            record = plan_catalogue(
                self.library, self.config, self.cohort, enhancer=enhancer, identity=identity, previous=previous
            )
            figures = {key: float(value) for key, value in record.figures.items() if isinstance(value, int | float)}
        variety = measure_variety(self.catalogue, self.library)
        run.log_file(variety.write(self.config.out))
        return figures | variety.metrics()

    def export(self, run: Run) -> Figures:
        """Samples are composited, enhanced by cyclegan_bundle and written with their labels, and a picture of some."""
        started, missing = time.monotonic(), self._job.missing(0, len(self.catalogue))
        samples, out = self.exported.samples, self.config.out
        written = sum(shard.end - shard.begin for shard in missing)
        rate = written / (time.monotonic() - started)
        sheet = contact_sheet(list(self._tiles()))
        write_picture(out / "contact_sheet.png", sheet)
        run.show_image(sheet, "contact_sheet")
        for sample in samples[:_LOGGED_SAMPLES]:
            grey = DISPLAY_WINDOW.to_grey(read_plane(out / sample["image"])[0])
            run.log_image(Image.fromarray(grey), f"samples/{sample['name']}.png")
        nodules = Counter(f"nodules_{category}" for sample in samples for category in sample["categories"])
        return {
            **{f"enhanced_{key}": value for key, value in self.exported.enhancement.items() if value is not None},
            **{key: float(value) for key, value in nodules.items()},
            "samples_with_real_voxels": float(np.sum(self.catalogue.table["has_real_voxels"].to_numpy())),
            "samples_written": float(written),
            "samples_total": float(len(samples)),
            "samples_per_second": rate,
        }

    def check(self, run: Run) -> Figures:
        """lung_seg_bundle looks for the nodules of some samples: says how detectable they are, and changes nothing."""
        point = float(self.weights["lung_seg"].sidecar.get("operating_point", 0.5))
        return check_detectability(self.exported.samples, self.config.out, self.segmenter, operating_point=point)

    def _write_report(self, run: Run, figures: Mapping[str, Figures]) -> None:
        """`report.html` and the data set card `README.md`; the parent run gets the report and the contact sheet."""
        report = RunReport(
            config=self.config,
            catalogue=self.catalogue,
            library=self.library,
            samples=self.exported.samples,
            figures=figures,
            weights=self.weights,
            variety=VarietyFigures.read(self.config.out),
            cohort=self.cohort,
            command=self.command,
        )
        run.log_file(report.write())
        run.describe(report.summary)
        with Image.open(self.config.out / "contact_sheet.png") as sheet:
            run.show_image(sheet, "contact_sheet")

    @property
    def _job(self) -> ExportJob:
        enhancement = self.config.enhancement
        return ExportJob(
            catalogue=self.config.catalogue_path,
            out=self.config.out,
            format="nifti",
            library=self.config.library_folder,
            enhance=enhancement.enabled,
            bundles=self.config.bundles if enhancement.enabled else None,
            label_check=enhancement.label_check,
            shard_size=self.config.batch_size,
        )

    def _tiles(self) -> Iterator[Tile]:
        samples = {sample["name"]: sample for sample in self.exported.samples}
        for name in pick_tiles(list(samples)):
            hu, _ = read_plane(self.config.out / samples[name]["image"])
            mask, _ = read_plane(self.config.out / samples[name]["label"])
            yield Tile(hu=hu, mask=mask, title=name, category=samples[name]["categories"][0])

    def _log_inputs(self, run: Run) -> None:
        bundles = self.config.bundles
        run.log_params({**self.identity, "batch_size": self.config.batch_size})
        run.log_file(self.config.out / "run.json")
        for name, weights in self.weights.items():
            lungs = lung_generator(self.config.lung_px).configs
            configs = lungs if name == "wcapsgan_lung" else lungs[:1]
            bundle = name.removesuffix("_lung")
            run.log_json(resolved_config(bundles, bundle, configs=configs), f"configs/{name}.json")
            run.log_json(weights.sidecar, f"weights/{name}.json")
        if self.cohort:
            cohort = self.cohort.cohort
            about = {"collections": list(cohort.sources), "split": cohort.split_hash}
            digest = cohort.identity["datalists"]
            run.log_dataset("cohort", digest=digest, context="real nodules and lungs", about=about)
        for name, weights in self.weights.items():
            about = {"collections": weights.sidecar.get("data", [])}
            digest = str(weights.sidecar.get("split_hash") or weights.sha256)
            run.log_dataset(f"training data of {name}", digest=digest, context="weights", about=about)


def _read_all_weights(config: GenerateConfig) -> dict[str, WeightsInfo]:
    bundles = config.bundles
    weights = {
        "lung_seg": read_weights(bundles, "lung_seg"),
        "wcapsgan": read_weights(bundles, "wcapsgan"),
        "wcapsgan_lung": read_weights(bundles, "wcapsgan", file=lung_generator(config.lung_px).weights),
    }
    if config.enhancement.enabled:
        weights["cyclegan"] = read_weights(bundles, "cyclegan")
    for info in weights.values():
        if not info.sidecar:
            _logger.warning("%s: no sidecar, so nothing is known of their data and licences", info.path.name)
    return weights


def _identity(config: GenerateConfig, cohort: CohortSplit | None, weights: Mapping[str, WeightsInfo]) -> dict[str, Any]:
    names = ("lung_seg", "wcapsgan", "wcapsgan_lung", "cyclegan")
    enhancement = config.enhancement
    last = enhancement_identity(config.bundles if enhancement.enabled else None, label_check=enhancement.label_check)
    return {
        "format": FORMAT,
        "lungsynth": version("lungsynth"),
        **config.to_json(),
        **selection_identity(config.chosen),
        **{f"cohort_{key}": cohort.cohort.identity[key] if cohort else None for key in ("split_hash", "datalists")},
        **{f"weights_{name}": weights[name].sha256 if name in weights else None for name in names},
        **{key: last[key] for key in ("enhancer_settings", "label_check_settings")},
        "library": assets_digest(AssetLibrary(config.library)) if config.library else None,
    }
