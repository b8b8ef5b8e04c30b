"""Packages the bundles as clean folders and zips: `lungsynth package`."""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["package"])

if __name__ == "__main__":
    sys.exit(main())
