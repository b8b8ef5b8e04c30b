"""Trains the feature network that the judge of generated samples measures distances with, on training patients alone.

python scripts/train_features.py nodules|lungs --cohort COHORT --out lungsynth/similarity/weights
"""

import argparse
import logging
import sys
from pathlib import Path

from lungsynth.errors import InputError

EPOCHS = {"nodules": 16, "lungs": 60}


def main(arguments: list[str] | None = None) -> int:
    """Trains and writes `<kind>_features.pt` with its sidecar.

    Returns:
        0, or 2 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("nodules", "lungs"))
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--epochs", type=int, help=f"(default: {EPOCHS})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # Imported here, because torch and MONAI take seconds that --help need not wait for.
    from evaluation.features.training import make_features

    try:
        path, validation = make_features(
            args.cohort, args.kind, args.out, epochs=args.epochs or EPOCHS[args.kind], seed=args.seed
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")
    for name, figure in validation.items():
        print(f"{name}: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
