"""Renders a catalogue to files, or goes on with an export that was stopped."""

import argparse
import sys
from pathlib import Path

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="catalogue.parquet of scripts/plan.py or scripts/synthesize.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; one of the same settings is continued")
    parser.add_argument("--format", required=True, help="nifti, dicom, png, webdataset or zarr")
    parser.add_argument("--library", type=Path, help="folder with assets/ (default: the catalogue's)")
    parser.add_argument(
        "--range", type=_range, default=(0, None), metavar="A:B", help="samples A to B - 1 (default: all)"
    )
    parser.add_argument("--engine", default="local", help="local, or ray for several machines (default: local)")
    parser.add_argument("--workers", type=int, default=1, help="processes, or Ray actors; no byte depends on it")
    parser.add_argument("--pairs", action="store_true", help="write each slice without its nodules too")
    parser.add_argument("--growth", type=_days, metavar="DAYS,DAYS", help="the nodules on these days, e.g. 0,90,180")
    parser.add_argument("--doubling-days", type=float, default=150.0, help="volume-doubling time (default: 150)")
    parser.add_argument("--enhance", action="store_true", help="send the composites through the CycleGAN")
    parser.add_argument(
        "--no-gate",
        dest="gate",
        action="store_false",
        help="with --enhance: do not ask lung_seg_bundle whether it still finds the nodules that it found",
    )
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="folder of the bundles, for --enhance")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Renders and says where the results stand.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    args = parse_args(arguments)
    # Imported here, because it takes seconds that --help need not wait for.
    from lungsynth.export.shards import ExportJob
    from lungsynth.export.writer import export_catalogue
    from lungsynth.placement.growth import Growth

    try:
        growth = Growth(days=args.growth, doubling_days=args.doubling_days) if args.growth else None
        job = ExportJob(
            catalogue=args.catalogue.absolute(),
            out=args.out.absolute(),
            format=args.format,
            library=args.library and args.library.absolute(),
            pairs=args.pairs,
            growth=growth,
            bundles=args.bundles.absolute() if args.enhance else None,
            gate=args.gate,
        )
        begin, end = args.range
        totals = export_catalogue(job, begin=begin, end=end, engine=args.engine, workers=args.workers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    print(f"Samples    {totals.samples} in {totals.files} files under {args.out}")
    if totals.left_out:
        print(f"Left out   {totals.left_out} recipes whose nodules would outgrow their lung")
    print(f"Labels     {args.out / 'annotations.csv'}, detection.json, coco.json")
    if args.enhance:
        print(f"Enhanced   {args.out / 'enhanced.json'}: what became of labels and HU")
    print(f"Checksums  {args.out / 'checksums.sha256'}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
