"""Makes a cohort for the trainings out of chest CT in any mix of layouts.

python scripts/prepare.py SOURCE [SOURCE ...] --out COHORT
"""

import argparse
import logging
import sys
from pathlib import Path

from lungsynth.cohort.prepare import PrepareResult, PrepareSettings, prepare_cohort
from lungsynth.cohort.series import SliceExtraction
from lungsynth.cohort.slices import LUNG_SIZES_PX
from lungsynth.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder, zip or file, any of: DICOM, NIfTI, MetaImage/LUNA16, LIDC XML, Pascal-VOC boxes, LIDC crops",
    )
    parser.add_argument("--out", type=Path, required=True, help="the cohort: a new folder, or one left unfinished")
    parser.add_argument("--split", choices=("auto", "test"), default="auto", help="test: all patients test")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        help="0 to 4: another fifth of the patients tests, for cross-validation (default: 0)",
    )
    parser.add_argument(
        "--lung-size",
        type=int,
        choices=LUNG_SIZES_PX,
        default=LUNG_SIZES_PX[0],
        help="the lung generator's grid in pixels: 256 at 1.4 mm (default) or 512 at 0.7 mm",
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="the sources are parts of their collections (a subset of LUNA16): ignore annotations of other series",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    return parser.parse_args(argv)


def report(outcome: PrepareResult, out: Path) -> None:
    """Prints what came of it; problems go to stderr."""
    counts = outcome.cohort["counts"]
    for split, n in counts.items():
        nodules = sum(n["nodules"].values())
        print(f"{split:10}  {n['patients']:5} patients  {n['slices']:6} slices  {nodules:5} nodules")
    print(f"Cohort: {out}. Look at {out / 'report.md'} and {out / 'montage_nodules.png'}.")
    if outcome.problems:
        print(f"{len(outcome.problems)} could not be used:", file=sys.stderr)
        for problem in outcome.problems:
            print(f"  {problem.message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Prepares a cohort; status 2 with one sentence when nothing could be used."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_args(argv)
    slices = SliceExtraction(lung_size_px=args.lung_size)
    settings = PrepareSettings(split=args.split, seed=args.seed, fold=args.fold, slices=slices, subset=args.subset)
    try:
        outcome = prepare_cohort(args.sources, args.out, settings=settings, workers=args.workers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    report(outcome, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
