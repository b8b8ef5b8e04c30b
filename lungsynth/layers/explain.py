"""Why a pair of a lung and a group is a sample of a plan, or is none, with its numbers.

The pair is scored again by the functions that planned it, so what is said is what happened.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from lungsynth.layers.groups import PHASES, NoduleGroup
from lungsynth.layers.lung_shape import UNITS_PER_MM, LungShape
from lungsynth.layers.members import GroupArrays
from lungsynth.layers.plan import Ranking
from lungsynth.layers.policy import classes_of, farthest_rank, order_rank, shuffled
from lungsynth.layers.presence import PresencePrior
from lungsynth.layers.rules import PlacementRules, Verdict
from lungsynth.layers.scoring import Scores, score

__all__ = ["Explanation", "MemberFacts", "PairPlace", "explain"]

_REASONS = {
    Verdict.KEPT: "the rules accept it",
    Verdict.OUTSIDE_LUNG: "a nodule was drawn outside the lungs and no permitted shift brings it in",
    Verdict.CROSSES_EDGE: "a nodule would cross the edge of the lung",
    Verdict.TOO_NEAR: "a nodule is nearer to the edge than min_distance_mm",
    Verdict.TOO_FAR: "a nodule is farther from the edge than max_distance_mm",
    Verdict.OUTSIDE_REGION: "a nodule is outside the regions",
    Verdict.ON_VESSEL: "a nodule lies on a vessel",
    Verdict.ON_AIRWAY: "a nodule lies on an airway",
    Verdict.WRONG_TYPE: "a nodule is of a type that the rules do not allow",
    Verdict.OVERLAP: "two nodules are closer than gap_mm",
}


@dataclass(frozen=True, kw_only=True)
class PairPlace:
    """Where a pair stands in its plan.

    Args:
        lung: index of the lung.
        lung_hash: its number in random orders.
        group: index of the group in its part.
        groups: groups of the part.
    """

    lung: int
    lung_hash: int
    group: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """The numbers of one nodule of a pair.

    Args:
        verdict: of the nodule alone.
        type: isolated, juxta_pleural or juxta_vascular.
        u, v: where its centre came to lie, in the bounding box of the lungs.
        row_px, col_px: likewise, on the lung's grid.
        diameter_mm: after scaling.
        drawn_distance_mm: from where it was drawn to the edge; negative outside the lung.
        distance_mm: from where it came to lie.
        needed_mm: distance that the rules ask for.
        shift_mm: how far it was moved.
        vessel_share, airway_share: of its square.
        presence: probability density of nodules where it was drawn, 1 on average; None when the prior is not given.
    """

    verdict: str
    type: str
    u: float
    v: float
    row_px: float
    col_px: float
    diameter_mm: float
    drawn_distance_mm: float
    distance_mm: float
    needed_mm: float
    shift_mm: float
    vessel_share: float
    airway_share: float
    presence: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is to be said of a pair.

    Args:
        verdict: of the rules.
        kept: whether it is a sample.
        reason: one sentence.
        rank: in its policy, lower is better; None when the rules reject it.
        threshold: the highest rank that was kept.
        members: numbers of each nodule.
        smallest_gap_mm: between the discs of two nodules; None for one nodule.
    """

    verdict: Verdict
    kept: bool
    reason: str
    rank: int | None
    threshold: int
    members: tuple[MemberFacts, ...]
    smallest_gap_mm: float | None

    def lines(self) -> Iterator[str]:
        """The explanation as text."""
        yield f"{'kept' if self.kept else 'not kept'}: {self.reason} ({self.verdict.name})"
        if self.smallest_gap_mm is not None:
            yield f"smallest gap between two nodules: {self.smallest_gap_mm:.2f} mm"
        for index, member in enumerate(self.members):
            facts = {
                name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(member).items()
            }
            yield f"nodule {index}: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def explain(
    shape: LungShape,
    group: NoduleGroup,
    place: PairPlace,
    *,
    rules: PlacementRules,
    ranking: Ranking,
    threshold: int,
    prior: PresencePrior | None = None,
) -> Explanation:
    """Scores one pair again and says what came of it.

    Args:
        shape: of the lung.
        group: of nodules.
        place: of the pair in its plan.
        rules: of the plan.
        ranking: of the plan's part.
        threshold: likewise.
        prior: to say how probable nodules are at each place.
    """
    arrays = GroupArrays.of([group])
    scores = score(shape, arrays, rules)
    verdict = Verdict(int(scores.verdict[0]))
    rank = _rank(scores, arrays, group, place, ranking) if verdict is Verdict.KEPT else None
    kept = rank is not None and rank <= threshold
    reason = _REASONS[verdict]
    if rank is not None and not kept:
        reason += ", but the policy keeps others first"
    elif kept:
        reason += ", and the policy keeps it"
    return Explanation(
        verdict=verdict,
        kept=kept,
        reason=reason,
        rank=rank,
        threshold=threshold,
        members=tuple(_facts(shape, group, arrays, scores, rules, prior)),
        smallest_gap_mm=_smallest_gap_mm(shape, arrays, scores),
    )


def _rank(scores: Scores, arrays: GroupArrays, group: NoduleGroup, place: PairPlace, ranking: Ranking) -> int:
    only = np.zeros(1, dtype=np.int64)
    if ranking.weights is None:
        return int(farthest_rank(scores, only, place.lung * place.groups + place.group)[0])
    numbers = shuffled(ranking.seed, place.lung_hash, np.array([int(group.id, 16)], dtype=np.uint64))
    return int(order_rank(numbers, ranking.weights.of(classes_of(arrays, scores.distance[arrays.places], only)))[0])


def _facts(
    shape: LungShape,
    group: NoduleGroup,
    arrays: GroupArrays,
    scores: Scores,
    rules: PlacementRules,
    prior: PresencePrior | None,
) -> Iterator[MemberFacts]:
    row, col = scores.row / PHASES, scores.col / PHASES
    u, v = shape.to_unit(row, col)
    density = None if prior is None else prior.density(arrays.u, arrays.v)
    for index, member in enumerate(group.members):
        distance_mm = float(scores.distance[index]) / UNITS_PER_MM
        yield MemberFacts(
            verdict=Verdict(int(scores.member_verdict[index])).name,
            type=rules.type_of(distance_mm, member.diameter_mm, float(scores.vessel_share[index])),
            u=float(u[index]),
            v=float(v[index]),
            row_px=float(row[index]),
            col_px=float(col[index]),
            diameter_mm=member.diameter_mm,
            drawn_distance_mm=float(scores.start_distance[index]) / UNITS_PER_MM,
            distance_mm=distance_mm,
            needed_mm=max(member.diameter_mm * rules.edge_clearance / 2, rules.min_distance_mm),
            shift_mm=float(scores.shift_mm[index]),
            vessel_share=float(scores.vessel_share[index]),
            airway_share=float(scores.airway_share[index]),
            presence=None if density is None else float(density[index]),
        )


def _smallest_gap_mm(shape: LungShape, arrays: GroupArrays, scores: Scores) -> float | None:
    first, second = arrays.pairs
    if not len(first):
        return None
    row, col = scores.row * (shape.spacing_mm[0] / PHASES), scores.col * (shape.spacing_mm[1] / PHASES)
    apart = np.sqrt((row[first] - row[second]) ** 2 + (col[first] - col[second]) ** 2)
    return float((apart - (arrays.diameter_mm[first] + arrays.diameter_mm[second]) / 2).min())
