"""Draws procedural chest CT with known nodules: `lungsynth phantom`.

python scripts/make_phantom.py --out PHANTOM --patients 8 --seed 0 --size 128
"""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["phantom"])

if __name__ == "__main__":
    sys.exit(main())
