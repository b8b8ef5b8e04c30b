"""Trains the feature networks of the evaluation: `lungsynth-eval train-features`.

python scripts/train_features.py nodules|lungs --cohort COHORT --out FOLDER
"""

import sys
from functools import partial

from evaluation.cli import COMMANDS
from lungsynth.cli import run_command

main = partial(run_command, COMMANDS["train-features"])

if __name__ == "__main__":
    sys.exit(main())
