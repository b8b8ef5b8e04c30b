"""Composes whole diseased slices of patients: real nodules on real normal slices of the same part of a cohort.

python scripts/make_slices.py --cohort COHORT --out SLICES

SLICES is what generators that make such slices in one piece are trained on, as --dataset_dir of wcapsgan_bundle with
configs/train_slice.json on top, and what Table III is measured against (scripts/evaluate.py slices).
"""

import argparse
import logging
import sys
from pathlib import Path

from lungsynth.errors import InputError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the slices; one left unfinished goes on")
    parser.add_argument("--count", type=int, default=400, help="training slices a category (default: 400)")
    parser.add_argument(
        "--held-out", type=int, default=50, help="validation and test slices a category, each (default: 50)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Makes the slices and says how many there are.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    options = vars(parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from evaluation.composed_slices.compose import ComposedSliceConfig, compose_slices

    try:
        counts = compose_slices(ComposedSliceConfig(**options))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    for part, found in counts.items():
        print(f"{part:16} " + ", ".join(f"{count} {name}" for name, count in found.items()))
    print(f"Slices           {options['out'] / 'slices.json'}, real ones {options['out'] / 'diseased.json'}")
    print(f"To look at       {options['out'] / 'montage.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
