"""Composes whole diseased slices of patients for Table III: `lungsynth-eval compose-slices`.

python scripts/make_slices.py --cohort COHORT --out SLICES
"""

import sys
from functools import partial

from evaluation.cli import COMMANDS
from lungsynth.cli import run_command

main = partial(run_command, COMMANDS["compose-slices"])

if __name__ == "__main__":
    sys.exit(main())
