"""`lungsynth trial`: what a detector misses, asked with nodules that are put into slices by design."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungsynth.commands.command import Command, Report, add_bundles, add_seed, add_tracking, tracking_uri
from lungsynth.config import default_bundles
from lungsynth.errors import InputError

if TYPE_CHECKING:
    from lungsynth.trial.design import TrialDesign
    from lungsynth.trial.run import TrialConfig

__all__ = ["TRIAL"]


def _add_trial(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("scans", type=Path, metavar="COHORT_OR_SCANS", help="folder that `lungsynth prepare` wrote, or scans it reads")
    add("--out", type=Path, required=True, help="folder of the trial; one of the same design is continued")
    add("--design", type=Path, help="YAML or JSON; options below override it (docs/how_to/run_a_trial.md)")
    add(
        "--factor",
        action="append",
        default=[],
        metavar="NAME=LEVEL,...",
        help="vary diameter_mm, texture, distance_mm, vessel, contrast_hu, third, side or noise; may be repeated "
        "(default: diameter_mm=4,6,8,12,18 and texture=solid,part_solid,ground_glass)",
    )
    add("--hosts", type=int, help="slices that nodules are put into (default: 40)")
    add("--replicates", type=int, help="nodules of each cell on each slice, one at a time (default: 1)")
    add("--fraction", type=int, metavar="K", help="each slice carries one in K cells (default: 1, all)")
    add("--unpaired", action="store_true", help="slices need not carry all cells")
    add(
        "--nodules",
        choices=("generated", "real"),
        default="generated",
        help="of wcapsgan_bundle, or of the cohort's patients (default: generated)",
    )
    add(
        "--split",
        choices=("test", "validation", "training", "all"),
        default="test",
        help="whose slices carry nodules (default: test)",
    )
    _add_detectors(parser)
    add("--workers", type=int, default=1, help="detectors that run at the same time, a core each (default: 1)")
    add("--dry-run", action="store_true", help="plan, and print samples, power, and how long detectors will take")
    add_seed(parser)
    add_bundles(parser)
    add_tracking(parser)


def _add_detectors(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--detector",
        action="append",
        default=[],
        metavar="[NAME=]DETECTOR",
        help="a command with {image} or {images}, and {output}; python:MODULE:NAME; bundle:FOLDER; lung_seg or a "
        "method of its configs such as unet; repeat it to compare two (default: lung_seg)",
    )
    add(
        "--operating-point",
        action="append",
        type=float,
        metavar="P",
        help="probability from which on a candidate counts, one for each detector in turn (default: its own, else 0.5)",
    )
    add(
        "--false-positives",
        type=float,
        metavar="N",
        help="choose operating points so that slices without a nodule have N candidates on average",
    )
    add("--mask-label", type=int, help="id of nodules, where detectors write label maps (default: all but 0)")
    add("--time-limit", dest="time_limit_s", type=float, default=120.0, metavar="S", help="an image (default: 120)")
    add("--batch-size", type=int, default=16, help="images asked about together (default: 16)")
    add("--retry", action="store_true", help="ask again about images without an answer")
    add("--weights", type=Path, help="folder with the weights of methods: NAME.pt and NAME.json")


def _trial(options: argparse.Namespace) -> Report:
    from lungsynth.trial.run import describe_trial, plan_trial, run_trial

    config = _config(options)
    if options.dry_run:
        return Report(describe_trial(config, plan_trial(config)))
    result = run_trial(config, tracking_uri=tracking_uri(options))
    failed = sum(own["failed"] for own in result.report["detectors"].values())
    lines = [*result.lines, result.report["note"], f"Report: {options.out / 'report.html'} and report.json"]
    return Report(lines, [f"{failed} pairs have no answer; the report says why"] if failed else [])


def _config(options: argparse.Namespace) -> "TrialConfig":
    from lungsynth.trial.detectors import parse_detector
    from lungsynth.trial.run import TrialConfig

    bundles = options.bundles or default_bundles()
    texts = options.detector or ["lung_seg"]
    points = options.operating_point or []
    if len(points) not in (0, len(texts)):
        raise InputError(f"`operating_point`: one for each of {len(texts)} detectors is needed, got {len(points)}.")
    detectors = tuple(
        parse_detector(
            text,
            bundles=bundles,
            weights=options.weights,
            operating_point=point,
            mask_label=options.mask_label,
            time_limit_s=options.time_limit_s,
        )
        for text, point in zip(texts, points or [None] * len(texts), strict=True)
    )
    names = ("out", "seed", "split", "nodules", "workers", "batch_size", "false_positives", "retry", "scans")
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    return TrialConfig(**given, design=_design(options), detectors=detectors, bundles=bundles)


def _design(options: argparse.Namespace) -> "TrialDesign":
    from lungsynth.trial.design import TrialDesign, parse_levels, read_design

    design = read_design(options.design) if options.design else TrialDesign()
    given = {
        name: value for name in ("hosts", "replicates", "fraction") if (value := getattr(options, name)) is not None
    }
    factors = {}
    for text in options.factor:
        name, mark, levels = text.partition("=")
        if not mark or not levels:
            raise InputError(f"`factor` needs NAME=LEVEL,..., got {text!r}.")
        factors[name] = parse_levels(name, levels)
    if factors:
        given["factors"] = {**design.factors, **factors} if options.design else factors
    if options.unpaired:
        given["paired"] = False
    return replace(design, **given)


TRIAL = Command(
    "Puts known nodules into your slices by design, in pairs with and without, and asks your detector: what does it "
    "miss, and where?",
    _add_trial,
    _trial,
)
