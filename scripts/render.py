"""Renders a catalogue to files: `lungsynth export`."""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["export"])

if __name__ == "__main__":
    sys.exit(main())
