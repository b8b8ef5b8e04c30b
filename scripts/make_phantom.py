"""Draws a cohort of procedural chest CT with known nodules and writes it in three public layouts.

python scripts/make_phantom.py --out PHANTOM --patients 8 --seed 0 --size 128
"""

import argparse
import sys
from pathlib import Path

from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.errors import InputError


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Draw a phantom cohort: LIDC-IDRI, LUNA16 and Decathlon layouts.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; must be empty or absent")
    parser.add_argument("--patients", type=int, default=8, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="rows and columns (256: 1.4 mm)")
    parser.add_argument("--slices", type=int, default=40, help="axial slices of each patient")
    parser.add_argument("--spacing", type=float, default=5.0, metavar="MM", help="between slices")
    arguments = parser.parse_args()
    try:
        if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
            raise InputError(f"{arguments.out} is not an empty folder; give --out a new one.")
        make_phantom_cohort(
            arguments.out, patients=arguments.patients, seed=arguments.seed, size_px=arguments.size,
            slices=arguments.slices, slice_spacing_mm=arguments.spacing,
        )  # fmt: skip
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.patients} phantom patients in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
