"""The command line: `lungsynth COMMAND`, and what all commands share.

A command has its arguments and its work here; the scripts of the same jobs call it. Messages of the library name
parameters (`count`), which become flags (`--count`) here. Heavy packages are imported when a command works, so that
`--help` need not wait for them.

Status: 0; 2 after bad input, with one sentence; 130 after Ctrl-C.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from lungsynth.config import (
    EXPORT_ENGINES,
    EXPORT_FORMATS,
    PAPER,
    SELECTION_STRATEGIES,
    EnhancementConfig,
    GenerateConfig,
    PlacementConfig,
    Policy,
    SelectionConfig,
    default_bundles,
)
from lungsynth.errors import InputError

if TYPE_CHECKING:
    from lungsynth.cohort.prepare import PrepareResult
    from lungsynth.generate import GenerateResult, PlanResult

__all__ = [
    "COMMANDS",
    "Command",
    "add_bundles",
    "add_tracking",
    "generate_config",
    "main",
    "report_generated",
    "run_command",
    "run_commands",
    "tracking_uri",
]

_OLD_STRATEGIES = {"spread": "coverage", "similar": "nearest"}
_LUNG_SIZES_PX = (256, 512)


class Command(NamedTuple):
    """A command.

    Args:
        description: what it does.
        add_arguments: to its parser.
        work: does it.
        stopped: what to say after Ctrl-C.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], None]
    stopped: str = "Stopped. The same command goes on from here."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lungsynth COMMAND ...` and returns its status."""
    return run_commands(COMMANDS, arguments, prog="lungsynth", description="Labelled synthetic lung CT.")


def run_commands(
    commands: Mapping[str, Command], arguments: Sequence[str] | None, *, prog: str, description: str
) -> int:
    """Runs the command that the arguments name, and returns its status.

    Args:
        commands: by name.
        arguments: those of the process when None.
        prog: name of the program.
        description: of the program.
    """
    parser = make_parser(commands, prog=prog, description=description)
    options = parser.parse_args(arguments)
    return _work(options.command, options, options.parser)


def make_parser(commands: Mapping[str, Command], *, prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with a sub-command for each command; `options.command` and `options.parser` are those that are named."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=version("lungsynth"))
    names = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        own = names.add_parser(name, help=command.description, description=command.description)
        command.add_arguments(own)
        own.set_defaults(command=command, parser=own)
    return parser


def run_command(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Reads the arguments of one command, for a script of its own, works, and returns the status.

    Args:
        command: what to do.
        arguments: those of the process when None.
    """
    parser = argparse.ArgumentParser(description=command.description)
    command.add_arguments(parser)
    return _work(command, parser.parse_args(arguments), parser)


def _work(command: Command, options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        command.work(options)
    except InputError as error:
        print(_with_flags(str(error), parser), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(command.stopped, file=sys.stderr)
        return 130
    return 0


def tracking_uri(options: argparse.Namespace) -> str:
    """The MLflow store that the options, else the environment, else the default name."""
    from lungsynth.tracking import DEFAULT_URI

    return options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def add_bundles(parser: argparse.ArgumentParser) -> None:
    """Adds `--bundles`."""
    parser.add_argument("--bundles", type=Path, help="folder of the bundles (default: those of this installation)")


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Adds `--tracking-uri`."""
    parser.add_argument(
        "--tracking-uri",
        help="MLflow store, or none (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)",
    )


def _with_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """A message in which parameters of the library are the flags that set them."""
    flags = {action.dest: action.option_strings[0] for action in reversed(parser._actions) if action.option_strings}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), message)


# generate


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run; one with the same settings is continued")
    add("--count", type=int, default=64, help="samples to end with (default: 64)")
    _add_seed(parser)
    _add_cohort(parser, "folder written by `lungsynth prepare`, to mix in real nodules and lungs")
    add_bundles(parser)
    add("--no-enhance", dest="enhance", action="store_false", help="leave out the CycleGAN")
    _add_label_check(parser)
    add("--batch-size", type=int, default=16, help="samples that are written together (default: 16)")
    add_tracking(parser)
    add("--lungs", type=int, help="distinct lungs (default: the root of 2.5 COUNT, at most 500)")
    add("--groups", type=int, help="nodule groups (default: 2.5 COUNT / LUNGS, more when too few fit)")
    add(
        "--real-share", type=float, help="share of real lungs, and of real nodules (default: the paper's, 1/10 and 1/6)"
    )
    add(
        "--exclude-enhancer-patients",
        "--spare-diseased",
        action="store_true",
        help="use nothing of the patients in enhancement.json: for composites that the CycleGAN is trained on",
    )
    _add_selection(parser)


def generate_config(options: argparse.Namespace) -> GenerateConfig:
    """The configuration that the options of `generate` describe."""
    return GenerateConfig(
        out=options.out,
        count=options.count,
        seed=options.seed,
        bundles=options.bundles or default_bundles(),
        cohort=options.cohort,
        exclude_enhancer_patients=options.exclude_enhancer_patients,
        batch_size=options.batch_size,
        selection=SelectionConfig(strategy=options.strategy, candidates=options.candidates),
        placement=PlacementConfig(lungs=options.lungs, groups=options.groups, real_share=options.real_share),
        enhancement=EnhancementConfig(enabled=options.enhance, label_check=options.label_check),
    )


def _generate(options: argparse.Namespace) -> None:
    from lungsynth.generate import generate

    report_generated(generate(generate_config(options), tracking_uri=tracking_uri(options)), options)


def report_generated(result: "GenerateResult", options: argparse.Namespace) -> None:
    """Prints what came of a run, and where it stands."""
    from lungsynth.detectability import describe_detectability
    from lungsynth.similarity.selection import describe_selection
    from lungsynth.tracking import ui_command

    print(describe_detectability(result.figures["check"]))
    print(describe_selection(result.figures["assets"], ranked=options.cohort is not None))
    print(f"Contact sheet    {result.contact_sheet}")
    print(f"Images           {result.images}")
    print(f"Labels           {result.masks} and {result.annotations}")
    print(f"Catalogue        {result.catalogue}")
    if result.tracking_uri != "none":
        print(f"MLflow database  {result.tracking_uri}")
        print(f"Open the UI with {ui_command(result.tracking_uri)}")


# plan


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the catalogue, .parquet; its assets are made beside it")
    add("--explain", metavar="ID|LUNG:GROUP", help="say why a pair of a finished plan is kept or not, and stop")
    add("--lungs", type=int, help="distinct lungs, for all categories")
    add("--groups", type=int, help="nodule groups a category")
    add("--keep", dest="count", type=int, help="samples a category (matched, balanced: of the one that gets most)")
    add("--preset", choices=("paper",), help="500 lungs, 5,000 groups, 1,000,000 kept, where not given otherwise")
    add("--policy", choices=get_args(Policy), default="farthest", help="which pairs are kept (default: farthest)")
    add("--rules", type=Path, help="JSON file of placement rules, see docs/how_to/plan_at_scale.md")
    _add_cohort(parser, "folder written by `lungsynth prepare`, to lend real lungs and nodules, and to match")
    add("--no-real-voxels", dest="real_voxels", action="store_false", help="no voxel of a patient in any sample")
    add("--nodules", type=int, default=PAPER["nodules"], help="distinct nodules a category (default: 1200)")
    add_bundles(parser)
    add("--library", type=Path, help="folder with assets to use instead of making some")
    add("--vessel-masks", type=Path, help="folder with SLICE_ID.nii.gz of vessels and airways of real lungs")
    add("--enhance", action="store_true", help="note in the recipes that the CycleGAN is to be applied")
    _add_selection(parser)
    _add_seed(parser)


def _plan(options: argparse.Namespace) -> None:
    if options.explain:
        _explain(options)
        return
    from lungsynth.generate import plan
    from lungsynth.placement.rules import read_rules

    numbers = {"lungs": options.lungs, "groups": options.groups, "keep": options.count}
    missing = [f"--{name}" for name, value in numbers.items() if value is None]
    if missing and not options.preset:
        raise InputError(f"Give {', '.join(missing)}, or --preset paper.")
    numbers = {name: PAPER[name] if value is None else value for name, value in numbers.items()}
    placement = PlacementConfig.at_scale(
        lungs=numbers["lungs"],
        groups=numbers["groups"],
        nodules=options.nodules,
        policy=options.policy,
        rules=read_rules(options.rules) if options.rules else None,
        real_voxels=options.real_voxels,
        vessel_masks=options.vessel_masks,
    )
    config = GenerateConfig(
        out=options.out.parent,
        catalogue=options.out.name,
        count=numbers["keep"],
        seed=options.seed,
        bundles=options.bundles or default_bundles(),
        cohort=options.cohort,
        library=options.library,
        selection=SelectionConfig(strategy=options.strategy, candidates=options.candidates),
        placement=placement,
        enhancement=EnhancementConfig(enabled=options.enhance),
    )
    _report_plan(plan(config))


def _explain(options: argparse.Namespace) -> None:
    from lungsynth.placement.explain import PlanExplainer

    explainer = PlanExplainer(options.out, library=options.library, vessel_masks=options.vessel_masks)
    sample, explanation = explainer.explain(options.explain)
    print(sample)
    for line in explanation.lines():
        print(line)


def _report_plan(result: "PlanResult") -> None:
    figures = result.record.figures
    for category, part in result.record.parts.items():
        rejected = ", ".join(f"{n:,} {name.lower()}" for name, n in part.verdicts.items() if n and name != "KEPT")
        tried, accepted = f"{part.candidates:,} pairs of {part.groups:,} groups", part.verdicts["KEPT"]
        print(f"{category}: {tried}, {accepted:,} accepted, {part.kept:,} kept")
        print(f"  rejected: {rejected or 'none'}")
        if part.gaps:
            print(f"  off target: {part.gaps[0]:.1%} of the nodules by distance, {part.gaps[1]:.1%} by size")
    size_mb = result.catalogue.stat().st_size / 1e6
    print(f"Lungs      {figures['lungs']:,}, of them {figures['real_lungs']:,} real")
    print(f"Nodules    {figures['nodules']:,}, of them {figures['real_nodules']:,} real")
    print(f"Samples    {figures['samples']:,} in {result.catalogue} ({size_mb:.1f} MB)")
    if figures["expansion"]:
        print(f"Expansion  {figures['expansion']:,.0f} images out for each of {figures['images_in']:,} real images in")
    print(f"Time       {result.asset_seconds:.1f} s for assets, {result.plan_seconds:.1f} s for the plan")


# export


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("catalogue", type=Path, help="catalogue.parquet of `lungsynth plan` or `lungsynth generate`")
    add("--out", type=Path, required=True, help="folder to fill; one with the same settings is continued")
    add("--format", required=True, choices=EXPORT_FORMATS, help="of the samples")
    add("--library", type=Path, help="folder with assets/ (default: the catalogue's)")
    add("--range", type=_range, default=(0, None), metavar="A:B", help="samples A to B - 1 (default: all)")
    add("--engine", default="local", choices=EXPORT_ENGINES, help="ray: on several machines (default: local)")
    add("--workers", type=int, default=1, help="processes, or Ray actors; no byte depends on it (default: 1)")
    add("--pairs", action="store_true", help="write each slice without its nodules too")
    add("--growth", type=_days, metavar="DAYS,DAYS", help="the nodules on these days, e.g. 0,90,180")
    add("--doubling-days", type=float, default=150.0, help="volume-doubling time (default: 150)")
    add("--enhance", action="store_true", help="send the composites through the CycleGAN")
    _add_label_check(parser)
    add_bundles(parser)


def _export(options: argparse.Namespace) -> None:
    from lungsynth.export.sample import Growth
    from lungsynth.export.writer import ExportJob, export_catalogue

    growth = Growth(days=options.growth, doubling_days=options.doubling_days) if options.growth else None
    job = ExportJob(
        catalogue=options.catalogue.absolute(),
        out=options.out.absolute(),
        format=options.format,
        library=options.library and options.library.absolute(),
        pairs=options.pairs,
        growth=growth,
        bundles=(options.bundles or default_bundles()).absolute() if options.enhance else None,
        label_check=options.label_check,
    )
    begin, end = options.range
    result = export_catalogue(job, begin=begin, end=end, engine=options.engine, workers=options.workers)
    print(f"Samples    {len(result.samples)} in {result.files} files under {options.out}")
    if result.left_out:
        print(f"Left out   {result.left_out} recipes whose nodules would outgrow their lung")
    print(f"Labels     {options.out / 'annotations.csv'}, detection.json, coco.json")
    if options.enhance:
        print(f"Enhanced   {options.out / 'enhanced.json'}: what became of labels and HU")
    print(f"Checksums  {options.out / 'checksums.sha256'}")


def _range(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    try:
        if colon:
            return int(first or 0), int(last) if last else None
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected A:B, two numbers of samples, got {text!r}")


def _days(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(day) for day in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole days with commas between them, got {text!r}") from None


# prepare


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder, zip or file, any of: DICOM, NIfTI, MetaImage/LUNA16, LIDC XML, Pascal-VOC boxes, LIDC crops",
    )
    add("--out", type=Path, required=True, help="the cohort: a new folder, or one left unfinished")
    add("--split", choices=("auto", "test"), default="auto", help="test: all patients test (default: auto)")
    _add_seed(parser)
    add(
        "--fold",
        type=int,
        default=0,
        help="0 to 4: another fifth of the patients tests, for cross-validation (default: 0)",
    )
    add(
        "--lung-size",
        type=int,
        choices=_LUNG_SIZES_PX,
        default=_LUNG_SIZES_PX[0],
        help="the lung generator's grid in pixels: 256 at 1.4 mm (default) or 512 at 0.7 mm",
    )
    add(
        "--subset",
        action="store_true",
        help="the sources are parts of their collections (a subset of LUNA16): ignore annotations of other series",
    )
    add("--workers", type=int, default=2, help="processes (default: 2)")


def _prepare(options: argparse.Namespace) -> None:
    from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
    from lungsynth.cohort.series import SliceExtraction

    slices = SliceExtraction(lung_size_px=options.lung_size)
    settings = PrepareSettings(
        split=options.split, seed=options.seed, fold=options.fold, slices=slices, subset=options.subset
    )
    _report_cohort(
        prepare_cohort(options.sources, options.out, settings=settings, workers=options.workers), options.out
    )


def _report_cohort(result: "PrepareResult", out: Path) -> None:
    for split, counts in result.cohort["counts"].items():
        nodules = sum(counts["nodules"].values())
        print(f"{split:10}  {counts['patients']:5} patients  {counts['slices']:6} slices  {nodules:5} nodules")
    print(f"Cohort: {out}. Look at {out / 'report.md'} and {out / 'montage_nodules.png'}.")
    _print_problems([problem.message for problem in result.problems], "could not be used")


def _print_problems(messages: Sequence[str], what: str) -> None:
    if messages:
        print(f"{len(messages)} {what}:", file=sys.stderr)
    for message in messages:
        print(f"  {message}", file=sys.stderr)


# pseudo-label


def _add_pseudo_label(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`")
    add("--out", type=Path, required=True, help="the cohort with pseudo-labels: a new folder, or one left unfinished")
    add_bundles(parser)
    add(
        "--threshold",
        type=float,
        help="probability from which on a candidate counts, 0.05 to 1; lower: purer, smaller normal set (default: the "
        "network's operating point)",
    )
    add("--min-diameter-mm", type=float, default=3.0, metavar="MM", help="smaller candidates are ignored (default: 3)")
    add_tracking(parser)


def _pseudo_label(options: argparse.Namespace) -> None:
    from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort

    config = PseudoLabelConfig(
        cohort=options.cohort,
        out=options.out,
        bundles=options.bundles or default_bundles(),
        threshold=options.threshold,
        min_diameter_mm=options.min_diameter_mm,
    )
    result = pseudo_label_cohort(config, tracking_uri=tracking_uri(options))
    facts = result.cohort["pseudo_labels"]
    if not facts["series"]:
        print("No series needed the network: experts have looked at all of them.")
    for split, after in facts["after"].items():
        before = facts["before"][split]
        nodules = [sum(counts["nodules"].values()) for counts in (before, after)]
        print(
            f"{split:10}  normal slices {before['normal_slices']:6} -> {after['normal_slices']:6}   "
            f"nodules {nodules[0]:5} -> {nodules[1]:5}"
        )
    out = options.out
    print(f"Pseudo-labelled cohort: {out}. Look at {out / 'montage_pseudo_labels.png'} and {out / 'report.md'}.")
    _print_problems([problem.message for problem in result.problems], "series could not be looked at")


# phantom and package


def _add_phantom(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to; must be empty or absent")
    add("--patients", type=int, default=8, help="how many (default: 8)")
    add("--seed", type=int, default=0, help="another seed, other patients (default: 0)")
    add("--size", type=int, default=128, metavar="PX", help="rows and columns, 256: 1.4 mm (default: 128)")
    add("--slices", type=int, default=40, help="axial slices of each patient (default: 40)")
    add("--spacing", type=float, default=5.0, metavar="MM", help="between slices (default: 5)")


def _phantom(options: argparse.Namespace) -> None:
    from lungsynth.cohort.phantom.files import make_phantom_cohort

    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; give `out` a new one.")
    make_phantom_cohort(
        out,
        patients=options.patients,
        seed=options.seed,
        size_px=options.size,
        slices=options.slices,
        slice_spacing_mm=options.spacing,
    )
    print(f"{options.patients} phantom patients in {out}")


def _add_package(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the packaged bundles")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="take the weights of bundle NAME (lung_seg, wcapsgan, cyclegan) from RUN, a training's output_dir",
    )
    add_bundles(parser)
    add("--zip", action="store_true", help="also write <bundle>_v<version>.zip")
    add("--overwrite", action="store_true", help="replace bundles that are already in --out")


def _package(options: argparse.Namespace) -> None:
    from lungsynth.package_bundles import package_bundles, zip_bundle

    for folder in package_bundles(
        options.out, bundles=options.bundles, weights=options.weights, overwrite=options.overwrite
    ):
        print(zip_bundle(folder) if options.zip else folder)


# arguments that several commands have


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of everything random; same seed, same bytes (default: 0)")


def _add_cohort(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--cohort", type=Path, help=text)


def _add_label_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-label-check",
        "--no-gate",
        dest="label_check",
        action="store_false",
        help="do not ask lung_seg_bundle whether it still finds the nodules that it found before the CycleGAN",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--selection",
        dest="strategy",
        choices=SELECTION_STRATEGIES,
        help="which generated nodules and lungs are kept: each real one in turn takes the most similar (coverage, the "
        "default with a cohort), the paper's most similar of all (nearest), or all (none); copies of training samples "
        "never are",
    )
    add(
        "--ranking",
        dest="strategy",
        type=lambda text: _OLD_STRATEGIES.get(text, text),
        choices=SELECTION_STRATEGIES,
        help=argparse.SUPPRESS,
    )
    add("--candidates", type=int, help="generated for each one kept (default: 3 where they are ranked)")


COMMANDS = {
    "prepare": Command(
        "Makes a cohort for the trainings out of chest CT in any mix of layouts.", _add_prepare, _prepare
    ),
    "generate": Command(
        "Makes labelled synthetic lung CT slices, or goes on with a run that was stopped.", _add_generate, _generate
    ),
    "plan": Command(
        "Plans a catalogue of synthetic samples, millions if asked, without rendering any; or explains a pair of one.",
        _add_plan,
        _plan,
        "Stopped. The same command begins the unfinished part again.",
    ),
    "export": Command(
        "Renders a catalogue to files, or goes on with an export that was stopped.", _add_export, _export
    ),
    "pseudo-label": Command(
        "Runs the detector on the scans of a cohort without expert marks: candidates become nodules, and slices near "
        "them are normal no longer.",
        _add_pseudo_label,
        _pseudo_label,
    ),
    "phantom": Command(
        "Draws procedural chest CT with known nodules, in the layouts of LIDC-IDRI, LUNA16 and the Decathlon.",
        _add_phantom,
        _phantom,
    ),
    "package": Command(
        "Copies the bundles as clean folders and zips, with the weights of the repository or of a training.",
        _add_package,
        _package,
    ),
}
