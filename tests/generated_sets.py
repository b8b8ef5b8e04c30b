"""Sets of nodules made by hand for the tests of Table II."""

from pathlib import Path

import numpy as np
from generation_toys import CATEGORIES, nodule, write_toy_cohort

from evaluation.generation.reference import MeasurementConfig
from lungsynth.similarity.samples import Samples

ROOT = Path(__file__).resolve().parent.parent


KEYS = {
    "method",
    "fid",
    "kid",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "ms_ssim",
    "c2st",
    "copies",
}


def nodules(seed: int, count: int = 24, *, noise: float = 0.0) -> Samples:
    rng = np.random.default_rng(seed)
    names = [CATEGORIES[i % 3] for i in range(count)]
    made = [nodule(rng, name, float(rng.uniform(6, 20))) for name in names]
    hu = np.stack([hu for hu, _ in made]) + np.rint(rng.normal(0, noise, (count, 64, 64))).astype(np.int16)
    owners = tuple(f"{seed}-{i // 2}" for i in range(count))
    mask = np.stack([alpha for _, alpha in made])
    return Samples(hu=hu, mask=mask, categories=tuple(names), owners=owners, names=owners, spacing_mm=0.7)


QUICK = MeasurementConfig(resamples=10, c2st_steps=4, pairs=40)


def make_vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(0.5, 1.5, size=(50, 5))


def make_cohort(tmp_path_factory) -> Path:
    return write_toy_cohort(tmp_path_factory.mktemp("toys") / "cohort")
