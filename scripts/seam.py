"""Measures how well a catalogue's nodules sit in their lungs, against real ones of a cohort's unused patients."""

import argparse
import sys
from pathlib import Path

from lungsynth.errors import InputError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="catalogue.parquet")
    parser.add_argument("--cohort", type=Path, required=True, help="its validation and test patients are the reference")
    parser.add_argument("--out", type=Path, required=True, help="folder for seam.csv, seam.json and worst.png")
    parser.add_argument("--library", type=Path, help="folder with assets/ (default: the catalogue's)")
    parser.add_argument("--samples", type=int, default=400, help="samples to render (default: 400)")
    parser.add_argument("--unmatched", action="store_true", help="without noise and edge of the lung, for comparison")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints a table.

    Returns:
        0, or 2 after bad input.
    """
    args = parse_args(arguments)
    from evaluation.boundary.report import measure_catalogue, real_patches, write_boundary_report
    from evaluation.boundary.score import BoundaryReference
    from lungsynth.compositing.render import Renderer
    from lungsynth.placement.assets import AssetLibrary
    from lungsynth.placement.catalogue import read_catalogue

    try:
        reference = BoundaryReference.of(real_patches(args.cohort))
        renderer = Renderer(AssetLibrary(args.library or args.catalogue.parent), matched=not args.unmatched)
        report = measure_catalogue(read_catalogue(args.catalogue), renderer, reference, samples=args.samples)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_boundary_report(report, args.out)
    scores = report.nodules["score"]
    print(f"{len(scores)} composed nodules against {len(reference.real)} real ones")
    print(f"seam score: median {scores.median():.2f}, at most 1 in {(scores <= 1).mean():.0%}")
    print(f"{'':14}{'real':>8}{'composed':>10}{'in middle 90 %':>16}{'larger than real':>18}")
    for name, row in report.features.items():
        print(
            f"{name:14}{row['real_median']:8.2f}{row['composed_median']:10.2f}{row['within_middle_90']:16.0%}"
            f"{row['larger_than_real']:18.2f}"
        )
    print(f"Worst      {args.out / 'worst.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
