"""Labels the scans of a cohort that no expert has read, by the detector: `lungsynth pseudo-label`.

python scripts/separate.py --cohort COHORT --out LABELLED
"""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["pseudo-label"])

if __name__ == "__main__":
    sys.exit(main())
