"""Plans a catalogue of synthetic samples, millions if asked, without rendering any; or explains a pair of one.

python scripts/plan.py --cohort COHORT --lungs 500 --groups 5000 --keep 1000000 --out OUT/catalogue.parquet
python scripts/plan.py --out OUT/catalogue.parquet --explain synth-0123456789abcdef
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
NUMBERS = ("lungs", "groups", "keep")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the catalogue, .parquet; its assets are made beside it")
    add("--explain", metavar="ID|LUNG:GROUP", help="say why a pair of a finished plan is kept or not, and stop")
    add("--lungs", type=int, help="distinct lungs, for all categories")
    add("--groups", type=int, help="nodule groups a category")
    add("--keep", type=int, help="samples a category (matched, balanced: of the category that gets most)")
    add("--preset", choices=("paper",), help="500 lungs, 5,000 groups, 1,000,000 kept, where not given otherwise")
    add("--policy", choices=("farthest", "matched", "balanced"), default="farthest", help="default: farthest")
    add("--rules", type=Path, help="JSON file of placement rules, see docs/how_to/plan_at_scale.md")
    add("--cohort", type=Path, help="folder of scripts/prepare.py, to lend real lungs and nodules, and to match")
    add("--no-real-voxels", dest="real_voxels", action="store_false", help="no voxel of a patient in any sample")
    add("--nodules", type=int, default=1200, help="distinct nodules a category (default: 1200, a sixth of them real)")
    add("--bundles", type=Path, default=BUNDLES, help="folder of the bundles (default: this repository's)")
    add("--library", type=Path, help="folder with assets to use instead of making some")
    add("--vessel-masks", type=Path, help="folder with SLICE_ID.nii.gz of vessels and airways of real lungs")
    add("--enhance", action="store_true", help="note in the recipes that the CycleGAN is to be applied")
    add("--ranking", help="how generated assets are chosen: spread, similar or none, see docs/how_to/select_samples.md")
    add("--candidates", type=int, help="generated for each one kept (default: 3 with a cohort)")
    add("--seed", type=int, default=0, help="of everything random; same seed, same bytes (default: 0)")
    args = parser.parse_args(arguments)
    missing = [f"--{name}" for name in NUMBERS if getattr(args, name) is None]
    if missing and not args.preset and not args.explain:
        parser.error(f"give {', '.join(missing)}, or --preset paper")
    return args


def run(args: argparse.Namespace) -> None:
    """Plans, and prints what came of it."""
    from lungsynth.chain.plan_run import run_plan
    from lungsynth.chain.plan_settings import PAPER, PlanSettings
    from lungsynth.placement.rules import read_rules

    options: dict[str, Any] = {key: value for key, value in vars(args).items() if key not in ("explain", "preset")}
    options["rules"] = read_rules(args.rules) if args.rules else None
    options.update({name: PAPER[name] for name in NUMBERS if options[name] is None})
    outcome = run_plan(PlanSettings(**options))
    figures = outcome.record.figures
    for category, part in outcome.record.parts.items():
        rejected = ", ".join(f"{n:,} {name.lower()}" for name, n in part.verdicts.items() if n and name != "KEPT")
        tried, accepted = f"{part.candidates:,} pairs of {part.groups:,} groups", part.verdicts["KEPT"]
        print(f"{category}: {tried}, {accepted:,} accepted, {part.kept:,} kept")
        print(f"  rejected: {rejected or 'none'}")
        if part.gaps:
            print(f"  off target: {part.gaps[0]:.1%} of the nodules by distance, {part.gaps[1]:.1%} by size")
    print(f"Lungs      {figures['lungs']:,}, of them {figures['real_lungs']:,} real")
    print(f"Nodules    {figures['nodules']:,}, of them {figures['real_nodules']:,} real")
    print(f"Samples    {figures['samples']:,} in {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
    if figures["expansion"]:
        print(f"Expansion  {figures['expansion']:,.0f} images out for each of {figures['images_in']:,} real images in")
    print(f"Time       {outcome.asset_seconds:.1f} s for assets, {outcome.plan_seconds:.1f} s for the plan")


def explain(args: argparse.Namespace) -> None:
    """Prints why a pair is kept or not."""
    from lungsynth.placement.explain import PlanExplainer

    sample, found = PlanExplainer(args.out, library=args.library, vessel_masks=args.vessel_masks).explain(args.explain)
    print(sample)
    for line in found.lines():
        print(line)


def main(arguments: list[str] | None = None) -> int:
    """Plans or explains.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    args = parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        explain(args) if args.explain else run(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command begins the unfinished part again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
