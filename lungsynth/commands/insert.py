"""`lungsynth insert`: nodules in three dimensions into your own scans."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lungsynth.commands.command import (
    Command,
    Report,
    add_bundles,
    add_device,
    add_dry_run,
    add_seed,
    add_tracking,
    counted,
    tracking_uri,
)
from lungsynth.config import SCAN_FORMATS, default_bundles

if TYPE_CHECKING:
    from lungsynth.scans.plan import InsertConfig

__all__ = ["INSERT"]

_LISTED = 5  # scans of a dry run that are named
# Seconds of one core (AVX2) and megabytes of a slice of 512 x 512: a run of 133 slices, one and two samples.
_START_S, _READ_S, _NODULE_S, _LOOK_S = 6.0, 0.07, 0.3, 2.0
_WRITE = {"nifti": (0.055, 0.26), "luna16": (0.005, 1.25), "dicom": (0.005, 0.54)}


def _add_insert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help="chest CT: a file, a folder of one or many scans, or an archive, as for prepare; lung masks and nodules "
        "that lie beside a scan are used",
    )
    add("--out", type=Path, required=True, help="a new folder, or one left unfinished")
    add(
        "--nodules",
        required=True,
        metavar="LIST",
        help="of each scan: 'TEXTURE LOW-HIGHmm xCOUNT, ...', such as 'part_solid 8-12mm x3, ground_glass 6mm'; any: "
        "any texture",
    )
    add("--variants", type=int, default=1, help="samples of each scan, with other nodules at other places (default: 1)")
    add("--format", choices=SCAN_FORMATS, default="nifti", help="of the files (default: nifti)")
    add("--policy", choices=("varied", "farthest"), default="varied", help="where they lie (default: where nodules do)")
    add("--rules", type=Path, help="JSON file of placement rules, see docs/how_to/plan_at_scale.md")
    add("--nodule-cohort", type=Path, help="insert real nodules of a cohort's training patients, not generated ones")
    add("--pairs", action="store_true", help="write each scan without inserted nodules, too")
    add("--growth", type=_days, metavar="DAY,DAY,...", help="write each sample on these days, its nodules grown")
    add("--doubling-days", type=float, default=150.0, help="volume-doubling time (default: 150)")
    add(
        "--enhance",
        action="store_true",
        help="send the nodules through the CycleGAN, slice by slice; one that the label check loses stays as it was",
    )
    add("--check", action="store_true", help="look which nodules lung_seg_bundle finds, and what else is new to it")
    add("--labels", metavar="VALUE=NAME,...", help="what values of label files mean, such as 1=lung,2=nodule")
    add_seed(parser)
    add_bundles(parser)
    add_device(parser)
    add_tracking(parser)
    add_dry_run(parser)


def _days(text: str) -> tuple[int, ...]:
    return tuple(int(day) for day in text.split(","))


def _config(options: argparse.Namespace) -> "InsertConfig":
    from lungsynth.cohort.reader import Cohort
    from lungsynth.ct.discover import SortSettings
    from lungsynth.ct.file_kinds import labels_from_text
    from lungsynth.export.growth import Growth
    from lungsynth.placement.rules import read_rules
    from lungsynth.scans.cubes import CohortCubes, CubeSource, GeneratedCubes
    from lungsynth.scans.plan import InsertConfig
    from lungsynth.scans.request import parse_requests

    cubes: CubeSource = GeneratedCubes(bundles=options.bundles or default_bundles())
    if options.nodule_cohort:
        cubes = CohortCubes(cohort=Cohort.open(options.nodule_cohort))
    return InsertConfig(
        sources=tuple(options.sources),
        out=options.out,
        nodules=parse_requests(options.nodules),
        cubes=cubes,
        variants=options.variants,
        seed=options.seed,
        format=options.format,
        policy=options.policy,
        rules=read_rules(options.rules) if options.rules else None,
        pairs=options.pairs,
        enhance=options.enhance,
        check=options.check,
        bundles=options.bundles,
        growth=Growth(days=options.growth, doubling_days=options.doubling_days) if options.growth else None,
        files=SortSettings(labels=labels_from_text(options.labels) if options.labels else {}),
    )


def _insert(options: argparse.Namespace) -> Report:
    from lungsynth.scans.run import insert_into_scans

    config = _config(options)
    if options.dry_run:
        return _dry_run(config)
    result = insert_into_scans(config, tracking_uri=tracking_uri(options))
    lines = [
        f"{result.samples} samples of {result.scans} scans with {result.nodules} inserted nodules: {config.out}",
        f"Each nodule: {config.out / 'nodules.csv'}; whose scan each is: {config.out / 'scans.csv'}",
    ]
    if result.found is not None:
        lines.append(
            f"lung_seg_bundle finds {result.found} of the {result.nodules}, and {result.new_findings} spots beside "
            "them that it did not find before. Labels do not depend on it."
        )
    return Report(lines, counted([problem.message for problem in result.problems], "could not be used"))


def _dry_run(config: "InsertConfig") -> Report:
    from lungsynth.ct.discover import find_series
    from lungsynth.ct.read import count_slices
    from lungsynth.io.tables import duration

    with find_series(list(config.sources), config.files) as found:
        each = config.variants * len(config.days) + config.pairs
        samples = len(found.series) * each
        asked = sum(request.count for request in config.nodules)
        slices = sum(count_slices(files) for files in found.series)
        write_s, write_mb = _WRITE[config.format]
        seconds = _START_S + slices * (_READ_S + each * write_s) + samples * asked * _NODULE_S
        if config.enhance or config.check:
            seconds += samples * asked * _LOOK_S
        lines = [
            f"{len(found.series)} scans, {samples} samples with {asked} nodules each, as {config.format}",
            f"About {duration(seconds)} of one core and {slices * each * write_mb:,.0f} MB, for slices of 512 x 512",
        ]
        lines += [f"  {files.series_id}: {files.files[0]}" for files in found.series[:_LISTED]]
        if (more := len(found.series) - _LISTED) > 0:
            lines.append(f"  and {more} more")
        return Report(lines, counted([problem.message for problem in found.problems], "could not be used"))


INSERT = Command(
    "Inserts nodules into your own scans in three dimensions, and writes them as scans with masks and lists.",
    _add_insert,
    _insert,
)
