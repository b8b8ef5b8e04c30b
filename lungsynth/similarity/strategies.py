"""Which of many generated samples are kept: rules on their distances to real ones, in a feature network's space.

`similar` is the paper's ("the 1000 with the highest similarity"): those whose fifth nearest real sample is nearest. It
keeps what is most ordinary and loses the rest (docs/results/selection.md has figures). `spread` lets the real samples
choose: one after the other, in a seeded order, each takes the free candidate most like it, round after round, so that
rare real ones have as many candidates kept as common ones have. `none` takes them as they come.

A candidate is unlike real ones when it lies in no real sample's ball, which reaches to that sample's fifth nearest of
other patients (the manifold of Naeem et al., 2020). Under `spread` and `similar` such candidates come last. Copies are
never kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from lungsynth.errors import InputError

__all__ = [
    "NEIGHBOURS",
    "RANKINGS",
    "Selection",
    "SelectionStrategy",
    "SimilarityScores",
    "preference",
    "select_by",
    "unranked",
]

SelectionStrategy = Literal["spread", "similar", "none"]
RANKINGS: tuple[SelectionStrategy, ...] = get_args(SelectionStrategy)
_CANDIDATES = 3  # docs/results/selection.md says what 1, 2 and 4 give
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How generated samples are chosen.

    Args:
        ranking: the rule.
        candidates: generated for each one kept.
        cohort: whose training part ranks them and says what a copy is; None where they are taken as they come.
    """

    ranking: SelectionStrategy
    candidates: int
    cohort: Path | None

    def to_json(self) -> dict[str, str | int]:
        """Without the path."""
        return {"ranking": self.ranking, "candidates": self.candidates}


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityScores:
    """What is known of N candidates of a category.

    Args:
        copied: whether it is a near-copy of a training sample.
        unlike: whether it is in no real sample's ball.
        distances: to R real samples of the category, R at least `NEIGHBOURS`; no column where nothing ranks them.
    """

    copied: Bool[np.ndarray, " n"]
    unlike: Bool[np.ndarray, " n"]
    distances: Float[np.ndarray, "n real"]


def select_by(cohort: Path | None, ranking: str | None, candidates: int | None) -> Selection:
    """What `--ranking` and `--candidates` of a command line mean.

    Args:
        cohort: of `--cohort`.
        ranking: None for `spread` with a cohort, `none` without.
        candidates: None for 3 where they are ranked, 1 where not.

    Raises:
        InputError: when nothing is there to rank by, or a value is out of its range.
    """
    if candidates is not None and candidates < 1:
        raise InputError(f"--candidates must be at least 1, got {candidates}.")
    known = next((name for name in RANKINGS if name == ranking), None)
    if ranking is not None and known is None:
        raise InputError(f"--ranking must be one of {', '.join(RANKINGS)}, got {ranking!r}.")
    if cohort is None and (known not in (None, "none") or candidates not in (None, 1)):
        raise InputError("--ranking and --candidates need --cohort, whose real samples rank the generated ones.")
    if known == "none" and candidates not in (None, 1):
        raise InputError(f"--ranking none takes what comes, so --candidates {candidates} would be made for nothing.")
    chosen: SelectionStrategy = known or ("spread" if cohort else "none")
    return Selection(ranking=chosen, candidates=candidates or (1 if chosen == "none" else _CANDIDATES), cohort=cohort)


def unranked(count: int) -> SimilarityScores:
    """Scores of candidates that nothing is known of."""
    nothing = np.zeros(count, np.bool_)
    return SimilarityScores(copied=nothing, unlike=nothing, distances=np.zeros((count, 0)))


def preference(scores: SimilarityScores, ranking: SelectionStrategy, *, seed: int) -> Int[np.ndarray, " kept"]:
    """Places of all candidates that are no copies, those to keep first.

    Args:
        scores: of the candidates.
        ranking: the rule; where nothing ranks them, they stay as they come.
        seed: of the order in which real samples choose.
    """
    free = ~scores.copied
    if ranking == "none" or not scores.distances.shape[1]:
        return np.flatnonzero(free)
    like, unlike = np.flatnonzero(free & ~scores.unlike), np.flatnonzero(free & scores.unlike)
    nearness = np.sort(scores.distances, axis=1)[:, NEIGHBOURS - 1]
    if ranking == "similar":
        first = _nearest_first(like, nearness)
    else:
        first = like[_in_turns(scores.distances[like], seed=seed)]
    return np.concatenate([first, _nearest_first(unlike, nearness)])


def _nearest_first(places: Int[np.ndarray, " n"], nearness: Float[np.ndarray, " all"]) -> Int[np.ndarray, " n"]:
    return places[np.argsort(nearness[places], kind="stable")]


def _in_turns(distances: Float[np.ndarray, "n real"], *, seed: int) -> Int[np.ndarray, " n"]:
    """Candidates in the order in which real samples, in rounds of a new random order, take the nearest that is left."""
    rng, left, taken = np.random.default_rng(seed), distances.copy(), list[int]()
    while len(taken) < len(left):
        for real in rng.permutation(left.shape[1])[: len(left) - len(taken)]:
            nearest = int(left[:, real].argmin())
            left[nearest] = np.inf
            taken.append(nearest)
    return np.array(taken, dtype=np.int64)
