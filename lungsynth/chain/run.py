"""The chain: assets -> plan -> render -> report -> check, each stage a child run of one MLflow run, each able to go on.

Everything that a user can get wrong is looked at before the first file is written. A stage whose result stands is not
done again; `run.json` says whose results they are.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lungsynth.bundles import nodule_rule, open_bundle, read_weights, resolved_config
from lungsynth.chain.asset_stage import LUNG_CONFIGS, LUNG_WEIGHTS, Samplers, make_assets, open_samplers
from lungsynth.chain.check_stage import Segmenter, check_samples
from lungsynth.chain.cohort_source import CohortSource, open_cohort
from lungsynth.chain.plan_stage import make_catalogue, presence
from lungsynth.chain.render_stage import remove_leftovers, render_samples
from lungsynth.chain.report_stage import read_tile, write_reports
from lungsynth.chain.settings import ChainSettings, check_folder, write_run_file
from lungsynth.enhancement.changes import Changes, change_summary
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import PlanWeights, read_catalogue
from lungsynth.similarity.reference import selection_identity
from lungsynth.similarity.selection import selection_figures
from lungsynth.tracking import DEFAULT_URI, Run, Tracker, open_tracker
from lungsynth.weights import WeightsInfo

__all__ = ["ChainResult", "run_chain"]

_FORMAT = 1
_LOGGED_SAMPLES = 6
_NETWORKS = ("lung_seg", "wcapsgan", "wcapsgan_lung", "cyclegan")
_RUN_MARK = ".mlflow_run"  # id of the run in progress, so that a killed one can be closed

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Where the results stand.

    Args:
        out: folder of the run.
        tracking_uri: of the store, absolute.
        figures: by stage, what was logged.
    """

    out: Path
    tracking_uri: str
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class _Tools:
    """What the stages work with; a network is opened only for a stage that is still to be done."""

    cohort: CohortSource | None
    weights: dict[str, WeightsInfo]
    samplers: Samplers | None
    stage: EnhancementStage | None
    segmenter: Segmenter
    configs: dict[str, dict[str, Any]]


def run_chain(settings: ChainSettings, *, tracking_uri: str = DEFAULT_URI) -> ChainResult:
    """Makes a set of synthetic slices, or goes on with one.

    Args:
        settings: of the run.
        tracking_uri: MLflow store.

    Raises:
        InputError: before anything is written, when an input cannot be used.
    """
    tools, identity = _prepare(settings)
    tracker = open_tracker(tracking_uri)
    settings.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(settings.out)
    write_run_file(settings.out, identity)
    mark = settings.out / _RUN_MARK
    if mark.exists():
        tracker.close_stale(mark.read_text())
    with tracker.run(f"synthesize {settings.out.name}", tags={"chain": "synthesize"}) as parent:
        mark.write_text(parent.run_id)
        _log_run(parent, settings, identity, tools)
        figures = _run_stages(settings, tools, tracker, parent)
        parent.log_metrics({f"{stage}_seconds": numbers["seconds"] for stage, numbers in figures.items()})
    mark.unlink()
    return ChainResult(out=settings.out, tracking_uri=tracker.uri, figures=figures)


def _prepare(settings: ChainSettings) -> tuple[_Tools, dict[str, Any]]:
    """Looks at every input: returns the tools, and what `run.json` says."""
    cohort = open_cohort(settings.cohort, rule=nodule_rule(settings.bundles)) if settings.cohort else None
    cohort = cohort.without_diseased() if cohort and settings.spare_diseased else cohort
    weights = _weights(settings)
    identity = _identity(settings, cohort, weights)
    check_folder(settings.out, identity)
    has_assets = (settings.out / "assets.parquet").exists()
    used = {"nodule_weights": weights["wcapsgan"].sha256, "lung_weights": weights["wcapsgan_lung"].sha256}
    tools = _Tools(
        cohort=cohort,
        weights=weights,
        samplers=None if has_assets else open_samplers(settings.bundles, **used),
        stage=open_stage(settings.bundles, gate=settings.gate) if settings.enhance else None,
        segmenter=open_bundle(settings.bundles, "lung_seg", component="segmenter"),
        configs=_configs(settings),
    )
    return tools, identity


def _weights(settings: ChainSettings) -> dict[str, WeightsInfo]:
    weights = {
        "lung_seg": read_weights(settings.bundles, "lung_seg"),
        "wcapsgan": read_weights(settings.bundles, "wcapsgan"),
        "wcapsgan_lung": read_weights(settings.bundles, "wcapsgan", file=LUNG_WEIGHTS),
    }
    if settings.enhance:
        weights["cyclegan"] = read_weights(settings.bundles, "cyclegan")
    for known in weights.values():
        if not known.sidecar:
            _logger.warning("%s: no sidecar, so nothing is known of their data and licences", known.path.name)
    return weights


def _identity(
    settings: ChainSettings, cohort: CohortSource | None, weights: Mapping[str, WeightsInfo]
) -> dict[str, Any]:
    hashes = {name: weights[name].sha256 if name in weights else None for name in _NETWORKS}
    last = enhancement_identity(settings.bundles if settings.enhance else None, gate=settings.gate)
    return {
        "format": _FORMAT,
        "lungsynth": version("lungsynth"),
        "count": settings.count,
        "seed": settings.seed,
        "enhance": settings.enhance,
        "gate": settings.enhance and settings.gate,
        "lungs": settings.lungs,
        "groups": settings.groups,
        "real_share": settings.real_share,
        "spare_diseased": settings.spare_diseased,
        **selection_identity(settings.selection),
        **{f"cohort_{key}": cohort.identity[key] if cohort else None for key in ("split_hash", "datalists")},
        **{f"weights_{name}": value for name, value in hashes.items()},
        **{key: last[key] for key in ("enhancer_settings", "gate_settings")},
    }


def _configs(settings: ChainSettings) -> dict[str, dict[str, Any]]:
    configs = {
        "lung_seg": resolved_config(settings.bundles, "lung_seg"),
        "wcapsgan": resolved_config(settings.bundles, "wcapsgan"),
        "wcapsgan_lung": resolved_config(settings.bundles, "wcapsgan", configs=LUNG_CONFIGS),
    }
    if settings.enhance:
        configs["cyclegan"] = resolved_config(settings.bundles, "cyclegan")
    return configs


def _run_stages(settings: ChainSettings, tools: _Tools, tracker: Tracker, parent: Run) -> dict[str, dict[str, float]]:
    stages: dict[str, Callable[[ChainSettings, _Tools, Run], dict[str, float]]] = {
        "assets": _assets,
        "plan": _plan,
        "render": _render,
        "report": _report,
        "check": _check,
    }
    figures = {}
    for name, stage in stages.items():
        started = time.monotonic()
        with tracker.run(f"{settings.out.name}/{name}", parent=parent, tags={"stage": name}) as run:
            numbers = stage(settings, tools, run)
            seconds = time.monotonic() - started
            figures[name] = {**numbers, "seconds": seconds}
            run.log_metrics(figures[name])
        _logger.info("stage %s: %.1f s", name, seconds)
    return figures


def _assets(settings: ChainSettings, tools: _Tools, run: Run) -> dict[str, float]:
    library = AssetLibrary(settings.out)
    if tools.samplers:
        sizes, seed, cohort = settings.sizes, settings.seed, tools.cohort
        make_assets(library, tools.samplers, sizes, selection=settings.selection, seed=seed, cohort=cohort)
    run.log_file(settings.out / "selection.json")
    counts = Counter(f"{asset.kind}s_{asset.source}" for asset in library)
    counts.update(f"nodules_{asset.category}" for asset in library if asset.kind == "nodule")
    return selection_figures(settings.out) | {key: float(value) for key, value in counts.items()}


def _plan(settings: ChainSettings, tools: _Tools, run: Run) -> dict[str, float]:
    path = settings.out / "catalogue.parquet"
    figures: dict[str, int] = {}
    if not path.exists():
        enhancer = tools.weights["cyclegan"].sha256 if settings.enhance else None
        weights = PlanWeights(nodule=tools.weights["wcapsgan"].sha256, enhancer=enhancer)
        library = AssetLibrary(settings.out)
        figures = make_catalogue(library, path, settings, found=presence(library, tools.cohort), weights=weights)
    distances = read_catalogue(path).table["min_distance_mm"].to_numpy()
    return {**figures, "samples": len(distances), "mean_distance_mm": float(np.mean(distances))}


def _render(settings: ChainSettings, tools: _Tools, run: Run) -> dict[str, float]:
    started = time.monotonic()
    recipes = list(read_catalogue(settings.out / "catalogue.parquet"))
    library = AssetLibrary(settings.out)
    outcomes = render_samples(recipes, library, settings.out, stage=tools.stage, batch_size=settings.batch_size)
    rate = len(outcomes) / (time.monotonic() - started)
    for recipe in recipes[:_LOGGED_SAMPLES]:
        grey = DISPLAY_WINDOW.to_grey(read_tile(recipe, settings.out).hu)
        run.log_image(Image.fromarray(grey), f"samples/{recipe.id}.png")
    done = [outcome for outcome in outcomes if outcome]
    figures = change_summary([o.facts() for o in done], Changes.total(o.changes for o in done)) if done else {}
    known = {f"enhanced_{key}": float(value) for key, value in figures.items() if value is not None}
    counts = {"samples_written": float(len(outcomes)), "samples_total": float(len(recipes))}
    return {**known, **counts, "samples_per_second": rate}


def _report(settings: ChainSettings, tools: _Tools, run: Run) -> dict[str, float]:
    recipes = list(read_catalogue(settings.out / "catalogue.parquet"))
    patients = tools.cohort.patients if tools.cohort else {}
    write_reports(recipes, AssetLibrary(settings.out), settings.out, patients=patients)
    run.log_file(settings.out / "contact_sheet.png")
    nodules = Counter(f"nodules_{nodule.category}" for recipe in recipes for nodule in recipe.nodules)
    real = sum(recipe.has_real_voxels for recipe in recipes)
    return {**{key: float(value) for key, value in nodules.items()}, "samples_with_real_voxels": float(real)}


def _check(settings: ChainSettings, tools: _Tools, run: Run) -> dict[str, float]:
    recipes = list(read_catalogue(settings.out / "catalogue.parquet"))
    return check_samples(recipes, settings.out, tools.segmenter)


def _log_run(parent: Run, settings: ChainSettings, identity: dict[str, Any], tools: _Tools) -> None:
    sizes = {f"begin_{key}": getattr(settings.sizes, key) for key in ("lungs", "groups", "nodules")}
    parent.log_params({**identity, **sizes, "batch_size": settings.batch_size})
    parent.log_file(settings.out / "run.json")
    for name, config in tools.configs.items():
        parent.log_json(config, f"configs/{name}.json")
    for name, known in tools.weights.items():
        parent.log_json(known.sidecar, f"weights/{name}.json")
