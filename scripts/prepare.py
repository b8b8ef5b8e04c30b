"""Makes a cohort for the trainings out of chest CT in any mix of layouts: `lungsynth prepare`.

python scripts/prepare.py SOURCE [SOURCE ...] --out COHORT
"""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["prepare"])

if __name__ == "__main__":
    sys.exit(main())
