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

from lungsynth.bundles import open_bundle, read_weights, resolved_config
from lungsynth.cohort.reader import CohortSplit
from lungsynth.config import GenerateConfig
from lungsynth.contact_sheet import Tile, contact_sheet, pick_tiles
from lungsynth.ct.write import read_plane
from lungsynth.detectability import Segmenter, check_detectability
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.export.writer import ENHANCED_LUNGS, ExportJob, ExportResult, ShardWriter, write_samples
from lungsynth.generate_assets import LUNG_CONFIGS, LUNG_WEIGHTS, Samplers, make_assets, open_samplers
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import remove_temporary, write_picture
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue
from lungsynth.plan import assets_digest, category_rule, grows, lacks_assets, open_cohort, planned
from lungsynth.run_folder import FORMAT, RunFolder
from lungsynth.similarity.selection import selection_figures, selection_identity
from lungsynth.tracking import DEFAULT_URI, Run, Tracker, open_tracker
from lungsynth.variety import VarietyFigures, measure_variety
from lungsynth.weights import WeightsInfo

__all__ = ["GenerateResult", "Pipeline", "TrackedStages", "generate"]

_LOGGED_SAMPLES = 6
_MAY_GROW = ("count",)  # a finished run goes on to more samples

_logger = logging.getLogger(__name__)

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """Where the results stand.

    Args:
        out: folder of the run.
        tracking_uri: of the store, absolute; `none` when nothing was tracked.
        figures: by stage, what was logged.
    """

    out: Path
    tracking_uri: str
    figures: dict[str, Figures]

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


def generate(config: GenerateConfig, *, tracking_uri: str | None = DEFAULT_URI) -> GenerateResult:
    """Makes a set of synthetic slices, or goes on with one.

    Args:
        config: of the run.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: before anything is written, when an input cannot be used.
    """
    pipeline = Pipeline.open(config)
    with pipeline.tracked(tracking_uri) as stages:
        stages.run("assets", pipeline.make_assets)
        stages.run("plan", pipeline.plan)
        stages.run("export", pipeline.export)
        stages.run("check", pipeline.check)
    return GenerateResult(out=config.out, tracking_uri=stages.tracker.uri, figures=stages.figures)


@dataclass(eq=False, kw_only=True)
class TrackedStages:
    """Runs stages one after the other, each tracked as a child of one run."""

    tracker: Tracker
    parent: Run
    name: str
    figures: dict[str, Figures] = field(default_factory=dict)

    def run(self, stage: str, work: Callable[[Run], Figures]) -> None:
        """Runs a stage and logs its figures and its time."""
        started = time.monotonic()
        with self.tracker.run(f"{self.name}/{stage}", parent=self.parent, tags={"stage": stage}) as run:
            figures = work(run)
            self.figures[stage] = {**figures, "seconds": time.monotonic() - started}
            run.log_metrics(self.figures[stage])
        _logger.info("stage %s: %.1f s", stage, self.figures[stage]["seconds"])


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
    """

    config: GenerateConfig
    identity: Mapping[str, Any]
    cohort: CohortSplit | None
    weights: Mapping[str, WeightsInfo]
    samplers: Samplers | None
    enhancer: EnhancementStage | None
    segmenter: Segmenter

    @classmethod
    def open(cls, config: GenerateConfig) -> "Pipeline":
        """Looks at every input, without writing anything.

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
            samplers=None if finished else open_samplers(bundles, rule=category_rule(config), **used),
            enhancer=open_stage(bundles, label_check=enhancement.label_check, folder=config.out / ENHANCED_LUNGS)
            if enhancement.enabled
            else None,
            segmenter=open_bundle(bundles, "lung_seg", component="segmenter"),
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
        RunFolder(path=out, identity=self.identity, may_grow=_MAY_GROW).claim()
        remove_temporary(out, recursive=True)
        with tracker.resumable_run(out, f"generate {out.name}", tags={"command": "generate"}) as parent:
            self._log_inputs(parent)
            stages = TrackedStages(tracker=tracker, parent=parent, name=out.name)
            yield stages
            parent.log_metrics({f"{stage}_seconds": found["seconds"] for stage, found in stages.figures.items()})

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
        write_picture(out / "contact_sheet.png", contact_sheet(list(self._tiles())))
        run.log_file(out / "contact_sheet.png")
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
        return check_detectability(self.exported.samples, self.config.out, self.segmenter)

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
            configs = LUNG_CONFIGS if name == "wcapsgan_lung" else LUNG_CONFIGS[:1]
            bundle = name.removesuffix("_lung")
            run.log_json(resolved_config(bundles, bundle, configs=configs), f"configs/{name}.json")
            run.log_json(weights.sidecar, f"weights/{name}.json")


def _read_all_weights(config: GenerateConfig) -> dict[str, WeightsInfo]:
    bundles = config.bundles
    weights = {
        "lung_seg": read_weights(bundles, "lung_seg"),
        "wcapsgan": read_weights(bundles, "wcapsgan"),
        "wcapsgan_lung": read_weights(bundles, "wcapsgan", file=LUNG_WEIGHTS),
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
