"""Evaluates the stages of the product on held-out patients, beside baselines and the paper: `lungsynth-eval`.

python scripts/evaluate.py segmentation|nodules|lungs|slices|enhancement|utility --cohort COHORT --out OUT
python scripts/evaluate.py folds OUT [OUT ...] --out POOLED
"""

import sys

from evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
