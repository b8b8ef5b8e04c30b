"""What choosing among generated samples does to them: similarity, diversity and copies, for each rule and number.

python benchmarks/ranking.py --cohort COHORT [--kind nodules|lungs] [--json FILE] [--features NAME|FILE.ts] [--pixels]

Samples are made and chosen as the chain does, by the training part alone, and then held against the patients of
another part (default: validation): three kept for each held-out one, category for category, so that the mixes are
equal. Figures are the judge's, intervals draw patients and generated samples again. The lines:

- `training`: training samples in the generated ones' place, the best that can be expected, and all copies;
- `as they come`: the first that the generator makes, copies among them;
- the rules of `lungsynth/similarity/selection.py`, for 1, 2, 3 and 4 candidates for each one kept.

The domain's feature network ranks, so that by its own measures any ranking looks good: `--features` measures with
another one, `--pixels` adds the two-sample test of a CNN on pixels (half a minute a line), and `diameter_gap_mm` and
MS-SSIM know nothing of features. Seconds are those of one thread's processor time.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from evaluation.generation.methods import TABLE_LUNG_PX
from evaluation.metrics.bootstrap import Estimate, estimate, estimate_ratio, patient_index
from evaluation.metrics.c2st import balanced_accuracy, c2st_cnn, c2st_logistic
from evaluation.metrics.fid_kid import frechet_distance, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from evaluation.metrics.ms_ssim import pair_similarity
from evaluation.tables import format_estimate
from lungsynth.bundles import lung_generator, open_bundle, read_weights
from lungsynth.cohort.reader import Cohort
from lungsynth.config import SELECTION_STRATEGIES, Selection
from lungsynth.errors import InputError
from lungsynth.similarity.features import Features, open_features
from lungsynth.similarity.reference import ReferenceSet, open_reference_set
from lungsynth.similarity.samples import Samples, as_shown, join, owner_folds, read_lungs, read_nodules
from lungsynth.similarity.selection import CandidateSource, SimilarityScores, preference

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
KEPT_PER_REAL = 3
CANDIDATES = (1, 2, 3, 4)
RESAMPLES, PAIRS = 200, 600
BOUNDS = {  # of the figures against the held-out ones; intervals were moved to be centred, some beyond them
    "fid": (0.0, np.inf),
    "kid": (-np.inf, np.inf),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, np.inf),
    "coverage": (0.0, 1.0),
}
COLUMNS = (*BOUNDS, "ms_ssim", "c2st_features", "c2st", "diameter_gap_mm", "copies")
SHOWN = {"nodules": (1000, "nodules, the paper's number"), "lungs": (450, "lungs, the paper's number")}


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """All candidates of a category, and how many are kept."""

    samples: Samples
    scores: SimilarityScores
    wanted: int

    def first(self, count: int) -> SimilarityScores:
        """Scores of the first ones."""
        return SimilarityScores(**{name: values[:count] for name, values in vars(self.scores).items()})

    def kept(self, ranking: str, candidates: int, *, seed: int) -> np.ndarray:
        """Places that a rule keeps."""
        scores = self.first(candidates * self.wanted)
        return preference(scores, ranking, seed=seed)[: self.wanted]  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, kw_only=True)
class Judge:
    """The held-out side."""

    held_out: Samples
    shown: Samples
    vectors: np.ndarray
    features: Features
    kind: str
    seed: int
    pixels: bool

    def figures(self, kept: Samples, copied: np.ndarray) -> dict[str, Estimate | float | int]:
        """All columns of a set of samples."""
        shown = as_shown(kept, self.kind)
        vectors = self.features(shown.hu).vectors
        found: dict[str, Estimate | float | int] = {**self._against(kept, vectors)}
        found["ms_ssim"] = pair_similarity(shown, pairs=PAIRS, seed=self.seed).mean(np.ones(len(kept)))
        found["c2st_features"] = self._told(vectors, kept)
        if self.pixels:
            found["c2st"] = self._told_by_pixels(shown)
        found["diameter_gap_mm"] = float(wasserstein_distance(self.held_out.diameter_mm, kept.diameter_mm))
        found["copies"] = int(copied.sum())
        found["copy_share"] = estimate_ratio(kept.owners, copied.tolist(), [1.0] * len(copied), seed=self.seed)
        return found

    def _against(self, kept: Samples, made: np.ndarray) -> dict[str, Estimate]:
        real = self.vectors
        kernels, manifolds = kernel_matrices(real, made), compare_manifolds(real, made)
        sides = [[f"{side}:{name}" for name in part.owners] for side, part in enumerate((self.held_out, kept))]
        groups = [sorted(set(names)) for names in sides]
        places = [patient_index(names, group) for names, group in zip(sides, groups, strict=True)]

        def statistic(weights: np.ndarray) -> list[float]:
            w, v = (drawn[place] for drawn, place in zip(np.split(weights, [len(groups[0])]), places, strict=True))
            fid = frechet_distance(real, made, x_weights=w, y_weights=v)
            return [fid, kernel_distance(kernels, x_weights=w, y_weights=v), *manifolds.figures(w, v)]

        n = [len(kept)] * len(BOUNDS)
        found = estimate(groups, statistic, n=n, seed=self.seed, resamples=RESAMPLES, recentre=True)
        bounded = zip(BOUNDS.items(), found, strict=True)
        return {name: clipped(figure, *ends, patients=len(groups[0])) for (name, ends), figure in bounded}

    def _told(self, vectors: np.ndarray, kept: Samples) -> float:
        folds = (owner_folds(self.held_out.owners, seed=self.seed), owner_folds(kept.owners, seed=self.seed))
        right = c2st_logistic(self.vectors, vectors, folds)
        return balanced_accuracy(right, np.ones(len(self.vectors)), np.ones(len(vectors)))

    def _told_by_pixels(self, shown: Samples) -> float:
        folds = (owner_folds(self.shown.owners, seed=self.seed), owner_folds(shown.owners, seed=self.seed))
        right = c2st_cnn(self.shown, shown, folds, seed=self.seed)
        return balanced_accuracy(right, np.ones(len(self.shown)), np.ones(len(shown)))


def clipped(figure: Estimate, low: float, high: float, *, patients: int) -> Estimate:
    ends = [None if end is None else float(np.clip(end, low, high)) for end in (figure.low, figure.high)]
    return replace(figure, low=ends[0], high=ends[1], patients=patients)


def main() -> None:
    """Measures, prints one table, and writes it when asked."""
    args = parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    real = open_reference_set(args.cohort, args.kind)
    if real is None:
        raise InputError(f"{args.cohort}: its training part has no {args.kind} to rank by.")
    seconds = {"open": time.process_time() - started}
    read = read_lungs if args.kind == "lungs" else read_nodules
    held_out = read(args.cohort, args.part)
    judge = make_judge(held_out, args)
    pools = make_candidates(real, held_out, args, seconds)
    rows = []
    print(f"{len(held_out)} held-out {args.kind} of {len(set(held_out.owners))} patients; {args.part} part")
    print("\t".join(("kept", "candidates", "n", *COLUMNS)))
    for name, candidates, kept, copied in lines(pools, real, held_out, args.seed):
        rows.append({"rule": name, "candidates": candidates, "n": len(kept), **judge.figures(kept, copied)})
        told = (format_estimate(rows[-1].get(column)) for column in COLUMNS)
        print("\t".join((name, str(candidates), str(len(kept)), *told)), flush=True)
    wanted, what = SHOWN[args.kind]
    for candidates in CANDIDATES:
        total = seconds["open"] + wanted * candidates * (seconds["draw_each"] + seconds["rank_each"])
        made = wanted * candidates * seconds["draw_each"]
        print(f"{wanted} {what}, {candidates} candidates: {total:.0f} s of one core, {made:.0f} s of it to make them")
        seconds[f"paper_{candidates}"] = total
    if args.json:
        args.json.write_text(json.dumps(as_json(rows, seconds, args), indent=1) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--kind", choices=("nodules", "lungs"), default="nodules")
    parser.add_argument("--part", choices=("validation", "test"), default="validation", help="who is held out")
    parser.add_argument("--features", default="domain", help="network that measures; the domain's ranks")
    parser.add_argument("--pixels", action="store_true", help="train a CNN a line to tell kept from held-out")
    parser.add_argument("--bundles", type=Path, default=BUNDLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def make_judge(held_out: Samples, args: argparse.Namespace) -> Judge:
    features, shown = open_features(args.features, args.kind), as_shown(held_out, args.kind)
    return Judge(
        held_out=held_out,
        shown=shown,
        vectors=features(shown.hu).vectors,
        features=features,
        kind=args.kind,
        seed=args.seed,
        pixels=args.pixels,
    )


def make_candidates(
    real: ReferenceSet, held_out: Samples, args: argparse.Namespace, seconds: dict[str, float]
) -> dict[str, Candidates]:
    """Of each category as many as the largest number of candidates needs; notes the time of making and ranking."""
    layer: dict[str, Any] = lung_generator(TABLE_LUNG_PX)._asdict() if args.kind == "lungs" else {}
    sampler = open_bundle(args.bundles, "wcapsgan", **layer)
    selection = Selection(strategy="coverage", candidates=max(CANDIDATES), cohort=args.cohort)
    source = CandidateSource(sampler=sampler, kind=args.kind, selection=selection, real=real)
    pools, made, times = {}, 0, np.zeros(2)
    for index, category in enumerate(sampler.categories):
        wanted = KEPT_PER_REAL * len(held_out.of(category))
        if not wanted:
            continue
        first = (args.seed * len(sampler.categories) + index) * 1_000_000
        begun = time.process_time()
        samples = source.draw(range(first, first + max(CANDIDATES) * wanted), category)
        drawn = time.process_time()
        scores = source.score(samples, category)
        times += (drawn - begun, time.process_time() - drawn)
        made += len(samples)
        pools[category] = Candidates(samples=samples, scores=scores, wanted=wanted)
    seconds["draw_each"], seconds["rank_each"] = (times / made).tolist()
    return pools


def lines(
    pools: dict[str, Candidates], real: ReferenceSet, held_out: Samples, seed: int
) -> Iterator[tuple[str, int, Samples, np.ndarray]]:
    """Name, number of candidates, samples kept, and which are copies."""
    training = real.largest
    rng = np.random.default_rng(seed)
    own = [rng.permutation(training.of(name))[: pool.wanted] for name, pool in pools.items()]
    known = training.take(np.concatenate(own))
    yield "training", 1, known, np.ones(len(known), np.bool_)
    first = {name: np.arange(pool.wanted) for name, pool in pools.items()}
    yield "as they come", 1, *chosen(pools, first)
    for ranking in SELECTION_STRATEGIES:
        for candidates in (1,) if ranking == "none" else CANDIDATES[1:]:
            kept = {name: pool.kept(ranking, candidates, seed=seed) for name, pool in pools.items()}
            yield ranking, candidates, *chosen(pools, kept)


def chosen(pools: dict[str, Candidates], places: dict[str, np.ndarray]) -> tuple[Samples, np.ndarray]:
    kept = join([pool.samples.take(places[name]) for name, pool in pools.items()])
    return kept, np.concatenate([pool.scores.copied[places[name]] for name, pool in pools.items()])


def as_json(rows: list[dict[str, Any]], seconds: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    plain = [{k: asdict(v) if isinstance(v, Estimate) else v for k, v in row.items()} for row in rows]
    split_hash = Cohort.open(args.cohort).split_hash
    weights = read_weights(
        args.bundles, "wcapsgan", **({"file": lung_generator(TABLE_LUNG_PX).weights} if args.kind == "lungs" else {})
    )
    facts = {name: getattr(args, name) for name in ("kind", "part", "features", "seed")}
    return {**facts, "split_hash": split_hash, "weights": weights.sha256, "seconds": seconds, "rows": plain}


if __name__ == "__main__":
    main()
