"""Measures how visible the boundaries of a catalogue's nodules are: `lungsynth-eval boundary`.

python scripts/seam.py CATALOGUE --cohort COHORT --out OUT
"""

import sys
from functools import partial

from evaluation.cli import COMMANDS
from lungsynth.cli import run_command

main = partial(run_command, COMMANDS["boundary"])

if __name__ == "__main__":
    sys.exit(main())
