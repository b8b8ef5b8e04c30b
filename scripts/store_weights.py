#!/usr/bin/env python
"""Copies a method's weights and their sidecar to where tables read them; from 3 MB on in half precision.

scripts/train_tables.sh does it after each training: store_weights.py OUT/training/METHOD/model.pt OUT/METHOD.pt
"""

import argparse
import sys
from pathlib import Path

from evaluation.methods import store_weights
from lungsynth.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 when there are no weights that their sidecar describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a state dict, with its sidecar beside it")
    parser.add_argument("to", type=Path, help="the file to write")
    options = parser.parse_args(arguments)
    try:
        size = store_weights(options.weights, options.to)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.to}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
