"""Lets the network look for nodules in the series of a cohort that no expert has looked at, and purges its normal set.

python scripts/separate.py --cohort COHORT --out SEPARATED
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument(
        "--out", type=Path, required=True, help="the separated cohort: a new folder, or one left unfinished"
    )
    parser.add_argument(
        "--bundles", type=Path, default=BUNDLES, help="folder with lung_seg_bundle (default: this repository's)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="probability from which on a candidate counts, 0.05 to 1; lower: purer, smaller normal set (default: the "
        "network's operating point)",
    )
    parser.add_argument(
        "--min-diameter-mm", type=float, default=3.0, metavar="MM", help="smaller candidates are ignored (default: 3)"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)"
    )
    return parser.parse_args(argv)


def report(cohort: dict[str, Any], problems: list[str], out: Path) -> None:
    """Prints what came of it; problems go to stderr."""
    facts = cohort["separation"]
    if not facts["series"]:
        print("No series needed the network: experts have looked at all of them.")
    for split, after in facts["after"].items():
        before = facts["before"][split]
        nodules = [sum(counts["nodules"].values()) for counts in (before, after)]
        print(
            f"{split:10}  normal slices {before['normal_slices']:6} -> {after['normal_slices']:6}   "
            f"nodules {nodules[0]:5} -> {nodules[1]:5}"
        )
    print(f"Separated cohort: {out}. Look at {out / 'montage_separation.png'} and {out / 'report.md'}.")
    if problems:
        print(f"{len(problems)} series could not be looked at:", file=sys.stderr)
        for message in problems:
            print(f"  {message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Separates a cohort.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # Imported here, because torch, MONAI and MLflow take seconds that --help need not wait for.
    from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort
    from lungsynth.tracking import DEFAULT_URI

    uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    try:
        settings = PseudoLabelConfig(
            cohort=args.cohort,
            out=args.out,
            bundles=args.bundles,
            threshold=args.threshold,
            min_diameter_mm=args.min_diameter_mm,
        )
        result = pseudo_label_cohort(settings, tracking_uri=uri)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    report(result.cohort, [problem.message for problem in result.problems], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
