"""Plans a catalogue of synthetic samples, or explains a pair of one: `lungsynth plan`.

python scripts/plan.py --cohort COHORT --lungs 500 --groups 5000 --keep 1000000 --out OUT/catalogue.parquet
python scripts/plan.py --out OUT/catalogue.parquet --explain synth-0123456789abcdef
"""

import sys
from functools import partial

from lungsynth.cli import COMMANDS, run_command

main = partial(run_command, COMMANDS["plan"])

if __name__ == "__main__":
    sys.exit(main())
