"""What more data would buy for layer II: lungs generated after training on few patients, and on more.

python benchmarks/lungs_by_patients.py --cohort COHORT --out OUT [--patients 2 4 9] [--draws 2] [--minutes 4]

For each number of training patients and each draw of them, a generator of normal lungs is trained from the beginning
for the same processor time, at 64 pixels of 5.6 mm, the first stage of the growing that makes the shipped weights:
outlines, mediastinum and spine, no vessels. Its slices are held against those of the patients of the validation and
test parts, one for each, in the judge's features (images enlarged, on both sides). The line `real` of a number hands
out the training slices of the same patients in their place: what a generator that has learnt them by heart would have,
and what the patients alone are worth. Draws differ in patients and seed; with all patients in the seed alone.

A training that was stopped begins again, finished ones are kept in OUT.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.metrics.fid_kid import frechet_distance, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from evaluation.tables import markdown_table
from lungsynth.bundles import open_bundle, train_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.split import SPLITS
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes, write_json
from lungsynth.similarity.features import Features, open_features
from lungsynth.similarity.samples import join, read_lungs
from lungsynth.types import HuPlanes

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SIZE, SPACING_MM, ENLARGED = 64, 5.6, 4
NETWORK = {"size": SIZE, "spacing_mm": SPACING_MM, "network_def#channels": 64, "network_def#max_width_multiplier": 2}
TRAINING = {
    "critic_def#channels": 32,
    "critic_def#scales": [{"downsampling": 1, "extra_convolutions": 0}],
    "batch_size": 16,
    "epoch_length": 50,
}
ENDLESS = {"max_epochs": 100_000, "patience": 100_000, "val_interval": 5}  # the minutes alone end a training
FIGURES = ("fid", "kid", "precision", "recall", "coverage")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    held_out = join([read_lungs(args.cohort, part) for part in ("validation", "test")])
    features, rows = open_features("domain", "lungs"), []
    real = features(_small(held_out.hu)).vectors
    training = read_lungs(args.cohort, "training")
    runs = [(count, draw) for count in args.patients for draw in range(args.draws)]
    for count, draw in tqdm(runs, desc="trainings"):
        patients = choose_patients(training.owners, count, seed=draw)
        folder = args.out / f"patients_{count}_draw_{draw}"
        weights = train(args.cohort, folder, patients, seed=draw, minutes=args.minutes)
        own = training.take([i for i, owner in enumerate(training.owners) if owner in patients])
        lent = own.take(np.random.default_rng(draw).integers(len(own), size=len(held_out)))
        made = {"real": _small(lent.hu), "generated": generate(weights, len(held_out))}
        rows += [
            {"patients": count, "draw": draw, "slices": len(own), "line": line} | compare(real, features, hu)
            for line, hu in made.items()
        ]
    print(table(rows))
    if args.json:
        facts = {"held_out": len(held_out), "held_out_patients": len(set(held_out.owners)), "minutes": args.minutes}
        write_json(args.json, {**facts, "rows": rows}, indent=2)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--patients", type=int, nargs="+", default=[2, 4, 9], help="numbers of training patients")
    parser.add_argument("--draws", type=int, default=2, help="trainings a number (default: 2)")
    parser.add_argument("--minutes", type=float, default=4, help="processor time of a training (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser.parse_args(argv)


def choose_patients(owners: Sequence[str], count: int, *, seed: int) -> set[str]:
    """That many of the patients, drawn by the seed.

    Raises:
        InputError: when there are fewer.
    """
    names = sorted(set(owners))
    if not 1 <= count <= len(names):
        raise InputError(f"--patients: expected numbers from 1 to {len(names)}, the training patients; got {count}.")
    return set(np.random.default_rng(seed).permutation(names)[:count].tolist())


def train(cohort: Path, folder: Path, patients: set[str], *, seed: int, minutes: float) -> Path:
    """Trains on the normal lungs of some patients; returns the weights, or those of a finished training."""
    weights = folder / "model_lung.pt"
    if not (folder / "finished").is_file():
        whole = Cohort.open(cohort)
        lists = {split: whole.entries("lungs", split) for split in SPLITS}
        kept = [entry for entry in lists["training"] if entry["patient_id"] in patients]
        write_json(folder / "lungs.json", {**lists, "training": kept})
        write_json(folder / "cohort.json", {**whole.described, "lung_patients": sorted(patients)})
        if not (folder / "lungs").exists():
            (folder / "lungs").symlink_to((cohort / "lungs").resolve(), target_is_directory=True)
        settings = {"dataset_dir": str(folder), "output_dir": str(folder), "seed": seed, "max_minutes": minutes}
        train_bundle(
            BUNDLES,
            "wcapsgan",
            configs=("train.json", "train_lung.json"),
            overrides={**NETWORK, **TRAINING, **ENDLESS, **settings},
        )
        write_bytes(folder / "finished", b"")
    return weights


def generate(weights: Path, count: int) -> HuPlanes:
    """Slices (count, 64, 64) in HU by the seeds 0, 1, ..."""
    sampler = open_bundle(
        BUNDLES,
        "wcapsgan",
        configs=("inference.json", "inference_lung.json"),
        weights=weights,
        overrides=NETWORK,
    )
    hu: HuPlanes = sampler(list(range(count)), ["normal"] * count, [None] * count)["hu"]
    return hu


def compare(real: np.ndarray, features: Features, hu: HuPlanes) -> dict[str, float]:
    """Distances of images to the features (N, F) of as many real ones."""
    made = features(np.repeat(np.repeat(hu, ENLARGED, axis=1), ENLARGED, axis=2)).vectors
    even = np.ones(len(real)), np.ones(len(made))
    precision, recall, _, coverage = compare_manifolds(real, made).figures(*even)
    distances = frechet_distance(real, made), kernel_distance(kernel_matrices(real, made))
    return dict(zip(FIGURES, map(float, (*distances, precision, recall, coverage)), strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each number of patients: means over the draws, their range in brackets."""
    lines = []
    for count, line in sorted({(row["patients"], row["line"]) for row in rows}):
        found = [row for row in rows if (row["patients"], row["line"]) == (count, line)]
        cells = []
        for name in FIGURES:
            values = [row[name] for row in found]
            cells.append(f"{np.mean(values):.3g} ({min(values):.3g}-{max(values):.3g})")
        lines.append([str(count), line, str(len(found)), *cells])
    return markdown_table(["patients", "line", "draws", *FIGURES], lines)


def _small(hu: HuPlanes) -> HuPlanes:
    """Means over squares, (N, 64, 64)."""
    scale = hu.shape[-1] // SIZE
    means = hu.astype(np.float32).reshape(len(hu), SIZE, scale, SIZE, scale).mean(axis=(2, 4))
    return np.rint(means).astype(np.int16)


if __name__ == "__main__":
    main()
