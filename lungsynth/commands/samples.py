"""`lungsynth generate`, `lungsynth plan` and `lungsynth export`: from bundles to samples in files."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lungsynth.commands.command import (
    Command,
    Report,
    add_bundles,
    add_cohort,
    add_device,
    add_dry_run,
    add_label_check,
    add_own_grids,
    add_seed,
    add_selection,
    add_tracking,
    repeat_command,
    tracking_uri,
)
from lungsynth.config import (
    EXPORT_ENGINES,
    EXPORT_FORMATS,
    PAPER,
    EnhancementConfig,
    GenerateConfig,
    PlacementConfig,
    Policy,
    SelectionConfig,
    default_bundles,
)
from lungsynth.errors import InputError

if TYPE_CHECKING:
    from lungsynth.export.writer import ExportResult
    from lungsynth.generate import GenerateResult
    from lungsynth.placement.catalogue import Catalogue
    from lungsynth.plan import PlanResult
    from lungsynth.variety import VarietyFigures

__all__ = ["EXPORT", "GENERATE", "PLAN", "generate_config", "report_estimate", "report_generated"]

_FEW = 20  # samples of which shares are noise


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run; one with the same settings is continued")
    add("--count", type=int, default=64, help="samples to end with (default: 64)")
    add_seed(parser)
    add_cohort(parser, "folder written by `lungsynth prepare`, to mix in real nodules and lungs")
    add_bundles(parser)
    add_device(parser)
    add("--no-enhance", dest="enhance", action="store_false", help="leave out the CycleGAN")
    add_label_check(parser)
    add("--batch-size", type=int, default=16, help="samples that are written together (default: 16)")
    add("--workers", type=int, default=1, help="processes that render; no byte depends on it (default: 1)")
    add_tracking(parser)
    _add_placement(parser)
    add(
        "--real-share", type=float, help="share of real lungs, and of real nodules (default: the paper's, 1/10 and 1/6)"
    )
    add_own_grids(parser)
    add(
        "--exclude-enhancer-patients",
        "--spare-diseased",
        action="store_true",
        help="use nothing of the patients in enhancement.json: for composites that the CycleGAN is trained on",
    )
    add_selection(parser)
    add_dry_run(parser)


def _add_placement(parser: argparse.ArgumentParser) -> None:
    """Adds what decides which nodules come to lie where; the same for sets that are rendered and for plans."""
    add = parser.add_argument
    add("--preset", choices=("paper",), help="the paper's crossing of lungs and groups, farthest from the pleura")
    add("--policy", choices=get_args(Policy), help="which placements become samples (default: varied)")
    add("--categories", type=_categories, metavar="NAME[=SHARE],...", help="of nodules (default: all, evenly)")
    add(
        "--sizes",
        dest="diameters_mm",
        type=_sizes,
        metavar="LOW:HIGH",
        help="diameters in mm, spread evenly on a scale of ratios (default: 4:30; matched: as real ones)",
    )
    add("--lungs", type=int, help="distinct lungs (default: half as many as samples, at most 500)")
    add(
        "--lung-px",
        type=int,
        choices=(256, 512),
        default=512,
        help="grid of generated lungs: 512 at 0.7 mm (default), or 256 at 1.4 mm in half the time",
    )
    add("--groups", type=int, help="nodule groups that are tried (default: 6 a sample, at most 5000)")
    add("--nodules", type=int, help="distinct nodules (default: 1.35 a sample, at most 1200)")
    add("--rules", type=Path, help="JSON file of placement rules, see docs/how_to/plan_at_scale.md")


def _placement(options: argparse.Namespace, *, per_category: bool = False, **settings: Any) -> PlacementConfig:
    from lungsynth.placement.rules import read_rules

    names = ("lungs", "groups", "nodules", "policy", "categories", "diameters_mm")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.rules:
        given["rules"] = read_rules(options.rules)
    presets: dict[tuple[bool, bool], Callable[..., PlacementConfig]] = {
        (False, False): PlacementConfig,
        (False, True): PlacementConfig.at_scale,
        (True, False): PlacementConfig.paper,
        (True, True): PlacementConfig.paper_at_scale,
    }
    return presets[options.preset is not None, per_category](**settings, **given)


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
        workers=options.workers,
        lung_px=options.lung_px,
        selection=SelectionConfig(strategy=options.strategy, candidates=options.candidates),
        placement=_placement(options, real_share=options.real_share, own_grids=options.own_grids),
        enhancement=EnhancementConfig(enabled=options.enhance, label_check=options.label_check),
    )


def _generate(options: argparse.Namespace) -> Report:
    if options.dry_run:
        return report_estimate(options)
    from lungsynth.generate import generate

    command = repeat_command("generate", _add_generate, options)
    result = generate(generate_config(options), tracking_uri=tracking_uri(options), command=command)
    return report_generated(result, options)


def report_estimate(options: argparse.Namespace) -> Report:
    """What the options of `generate` would make; nothing is written."""
    from lungsynth.plan import estimate

    return Report(estimate(generate_config(options), rendered=True).lines())


def report_generated(result: "GenerateResult", options: argparse.Namespace) -> Report:
    """What came of a run, and where it stands."""
    from lungsynth.detectability import describe_detectability
    from lungsynth.similarity.selection import describe_selection
    from lungsynth.tracking import ui_address, ui_command

    lines = [
        *result.variety.lines(),
        f"{describe_detectability(result.figures['check'])}.",
        f"{describe_selection(result.figures['assets'], ranked=options.cohort is not None)}.",
        f"Report           {result.report}",
        f"Contact sheet    {result.contact_sheet}",
        f"Images           {result.images}",
        f"Labels           {result.masks} and {result.annotations}",
        f"Data list        {_parts(result.datalist)}",
        f"Catalogue        {result.catalogue}",
    ]
    if result.tracking_uri != "none":
        command, address = ui_command(result.tracking_uri), ui_address(result.tracking_uri, result.tracking_page)
        lines += [f"MLflow           {command}", f"                 then open {address}"]
    return Report(lines, _warnings(result.variety))


def _warnings(variety: "VarietyFigures") -> list[str]:
    return [f"WARNING {text}" for text in variety.warnings]


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the catalogue, .parquet; its assets are made beside it")
    add("--explain", metavar="ID|LUNG:GROUP", help="say why a pair of a finished plan is kept or not, and stop")
    add("--count", type=int, help="samples of all categories together; numbers below are of all together, too")
    add(
        "--keep",
        type=int,
        help="samples a category (matched, balanced: of the one that gets most), instead of --count; groups and "
        "nodules are of a category, too",
    )
    _add_placement(parser)
    add_cohort(parser, "folder written by `lungsynth prepare`, to lend real lungs and nodules, and to match")
    add("--no-real-voxels", dest="real_voxels", action="store_false", help="no voxel of a patient in any sample")
    add_own_grids(parser)
    add_bundles(parser)
    add_device(parser)
    add("--library", type=Path, help="folder with assets to use instead of making some")
    add(
        "--vessel-masks",
        type=Path,
        help="folder with .nii.gz of vessels and airways of real lungs, see pseudonyms.csv",
    )
    add("--enhance", action="store_true", help="note in the recipes that the CycleGAN is to be applied")
    add_selection(parser)
    add_seed(parser)
    add_tracking(parser)
    add_dry_run(parser)


def _plan(options: argparse.Namespace) -> Report:
    if options.explain:
        return _explain(options)
    from lungsynth.plan import estimate, plan

    if options.count is not None and options.keep is not None:
        raise InputError("Give `count`, samples of all categories together, or `keep`, samples of each; not both.")
    if options.count is None and options.keep is None and not options.preset:
        raise InputError("Give `count`, the number of samples, or `keep`, that of each category.")
    per_category = options.count is None
    if options.preset and per_category:
        for name in ("lungs", "groups"):
            setattr(options, name, PAPER[name] if getattr(options, name) is None else getattr(options, name))
    config = GenerateConfig(
        out=options.out.parent,
        catalogue=options.out.name,
        count=_samples(options),
        seed=options.seed,
        bundles=options.bundles or default_bundles(),
        lung_px=options.lung_px,
        cohort=options.cohort,
        library=options.library,
        selection=SelectionConfig(strategy=options.strategy, candidates=options.candidates),
        placement=_placement(
            options,
            per_category=per_category,
            real_voxels=options.real_voxels,
            own_grids=options.own_grids,
            vessel_masks=options.vessel_masks,
        ),
        enhancement=EnhancementConfig(enabled=options.enhance),
    )
    if options.dry_run:
        return Report(estimate(config, rendered=False).lines())
    return _report_plan(plan(config, tracking_uri=tracking_uri(options)))


def _samples(options: argparse.Namespace) -> int:
    """Samples that a plan ends with, in all or of each category."""
    asked = next((number for number in (options.count, options.keep) if number is not None), None)
    return PAPER["keep"] if asked is None else int(asked)


def _explain(options: argparse.Namespace) -> Report:
    from lungsynth.placement.explain import PlanExplainer

    explainer = PlanExplainer(options.out, library=options.library, vessel_masks=options.vessel_masks)
    sample, explanation = explainer.explain(options.explain)
    return Report([sample, *explanation.lines()])


def _report_plan(result: "PlanResult") -> Report:
    figures, lines = result.record.figures, []
    for category, part in result.record.parts.items():
        rejected = ", ".join(f"{n:,} {name.lower()}" for name, n in part.verdicts.items() if n and name != "KEPT")
        tried, accepted = f"{part.candidates:,} pairs of {part.groups:,} groups", part.verdicts["KEPT"]
        lines.append(f"{category}: {tried}, {accepted:,} accepted, {part.kept:,} kept")
        lines.append(f"  rejected: {rejected or 'none'}")
        if part.gaps and part.kept >= _FEW:
            lines.append(f"  off target: {part.gaps[0]:.1%} of the nodules by distance, {part.gaps[1]:.1%} by size")
    size_mb = result.catalogue.stat().st_size / 1e6
    lines.append(f"Lungs      {figures['lungs']:,}, of them {figures['real_lungs']:,} real")
    lines.append(f"Nodules    {figures['nodules']:,}, of them {figures['real_nodules']:,} real")
    lines.append(f"Samples    {figures['samples']:,} in {result.catalogue} ({size_mb:.1f} MB)")
    if figures["expansion"]:
        lines.append(
            f"Expansion  {figures['expansion']:,.0f} images out for each of {figures['images_in']:,} real images in"
        )
    lines.append(f"Time       {result.asset_seconds:.1f} s for assets, {result.plan_seconds:.1f} s for the plan")
    return Report([*lines, *result.variety.lines()], _warnings(result.variety))


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
    add(
        "--enhance",
        action=argparse.BooleanOptionalAction,
        help="send the composites through the CycleGAN, or leave it out (default: as the catalogue notes)",
    )
    add_label_check(parser)
    parser.set_defaults(label_check=None)
    add_bundles(parser)
    add_device(parser)
    add_tracking(parser)


def _export(options: argparse.Namespace) -> Report:
    from lungsynth.export.growth import Growth
    from lungsynth.export.writer import ExportJob, export_catalogue
    from lungsynth.placement.catalogue import read_catalogue

    growth = Growth(days=options.growth, doubling_days=options.doubling_days) if options.growth else None
    job = ExportJob(
        catalogue=options.catalogue.absolute(),
        out=options.out.absolute(),
        format=options.format,
        library=options.library and options.library.absolute(),
        pairs=options.pairs,
        growth=growth,
        enhance=options.enhance,
        bundles=options.bundles and options.bundles.absolute(),
        label_check=options.label_check,
    )
    begin, end = options.range
    how = {"engine": options.engine, "workers": options.workers, "tracking_uri": tracking_uri(options)}
    result = export_catalogue(job, begin=begin, end=end, **how)
    lines = [f"Samples    {len(result.samples)} in {result.files} files under {options.out}"]
    if result.left_out:
        lines.append(f"Left out   {result.left_out} recipes whose nodules would outgrow their lung")
    lines.append(f"Labels     {options.out / 'annotations.csv'}, detection.json, coco.json")
    lines.append(f"Data list  {_parts(options.out / 'datalist.json')}")
    lines.append(_what_was_rendered(result, read_catalogue(options.catalogue), options.out))
    lines.append(f"Checksums  {options.out / 'checksums.sha256'}")
    return Report(lines)


def _parts(datalist: Path) -> str:
    """The list and how many samples its parts have."""
    counts = {part: len(entries) for part, entries in json.loads(datalist.read_text(encoding="utf-8")).items()}
    unused = f", {counts['unused']} unused (they share a lung or nodules with both)" if counts["unused"] else ""
    return f"{datalist}: {counts['training']} for training, {counts['validation']} for validation{unused}"


def _what_was_rendered(result: "ExportResult", catalogue: "Catalogue", out: Path) -> str:
    if result.enhancement:
        return f"Enhanced   as {out / 'enhanced.json'} says: what became of labels and HU"
    left_out = "left out by --no-enhance" if catalogue.enhancement else "the catalogue notes none"
    return f"Composites without the CycleGAN: {left_out}"


def _range(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    try:
        if colon:
            return int(first or 0), int(last) if last else None
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected A:B, two numbers of samples, got {text!r}")


def _sizes(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW:HIGH, two diameters in mm, got {text!r}") from None


def _categories(text: str) -> dict[str, float]:
    try:
        parts = [part.partition("=") for part in text.split(",")]
        return {name.strip(): float(share) if equals else 1.0 for name, equals, share in parts}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected names, or NAME=SHARE, with commas between, got {text!r}") from None


def _days(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(day) for day in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole days with commas between them, got {text!r}") from None


GENERATE = Command(
    "Makes labelled synthetic lung CT slices, or goes on with a run that was stopped.", _add_generate, _generate
)
PLAN = Command(
    "Plans a catalogue of synthetic samples, millions if asked, without rendering any; or explains a pair of one.",
    _add_plan,
    _plan,
    "Stopped. The same command begins the unfinished part again.",
    out_is_file=True,
)
EXPORT = Command("Renders a catalogue to files, or goes on with an export that was stopped.", _add_export, _export)
