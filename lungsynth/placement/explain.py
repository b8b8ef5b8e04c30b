"""Why a pair of a lung and a group is a sample of a plan, or is none, with its numbers.

The pair is scored again by the functions that planned it, so what is said is what happened. `PlanExplainer` finds the
pair that a user names, by sample id or as LUNG:GROUP, in a finished catalogue.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import ID_PREFIX, read_catalogue, sample_id, sample_seeds
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.plan_catalogue import PlanRecord, read_groups
from lungsynth.placement.planning import PairOrder, farthest_rank
from lungsynth.placement.policy import classes_of, order_rank, shuffled
from lungsynth.placement.presence import PresencePrior
from lungsynth.placement.rules import PairScores, PlacementRules, PlacementVerdict, score
from lungsynth.seeds import HashDomain, hash_arrays

__all__ = ["Explanation", "MemberFacts", "PairPlace", "PlanExplainer", "explain"]

_HASH_DIGITS = 16  # of assets, groups and samples
_REASONS = {
    PlacementVerdict.KEPT: "the rules accept it",
    PlacementVerdict.OUTSIDE_LUNG: "a nodule was drawn outside the lungs and no permitted shift brings it in",
    PlacementVerdict.CROSSES_EDGE: "a nodule would cross the edge of the lung",
    PlacementVerdict.TOO_NEAR: "a nodule is nearer to the edge than min_distance_mm",
    PlacementVerdict.TOO_FAR: "a nodule is farther from the edge than max_distance_mm",
    PlacementVerdict.OUTSIDE_REGION: "a nodule is outside the regions",
    PlacementVerdict.ON_VESSEL: "a nodule lies on a vessel",
    PlacementVerdict.ON_AIRWAY: "a nodule lies on an airway",
    PlacementVerdict.WRONG_TYPE: "a nodule is of a type that the rules do not allow",
    PlacementVerdict.OVERLAP: "two nodules are closer than gap_mm",
    PlacementVerdict.TOO_SMALL: "a nodule is smaller than min_diameter_mm, or than the lung's pixels can show",
}


@dataclass(frozen=True, kw_only=True)
class PairPlace:
    """Where a pair stands in its plan.

    Args:
        lung: index of the lung.
        lung_hash: its number in random orders.
        group: index of the group in its category.
        groups: groups of the category.
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

    verdict: PlacementVerdict
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
    order: PairOrder,
    threshold: int,
    prior: PresencePrior | None = None,
    kept: bool | None = None,
) -> Explanation:
    """Scores one pair again and says what came of it.

    Args:
        shape: of the lung.
        group: of nodules.
        place: of the pair in its plan.
        rules: of the plan.
        order: of the pairs of the plan's category.
        threshold: likewise.
        prior: to say how probable nodules are at each place.
        kept: whether the catalogue has it; by its rank and the threshold when None.
    """
    arrays = GroupArrays.of([group])
    scores = score(shape, arrays, rules)
    verdict = PlacementVerdict(int(scores.verdict[0]))
    rank = _rank(scores, arrays, group, place, order) if verdict is PlacementVerdict.KEPT else None
    if kept is None:
        kept = rank is not None and rank <= threshold
    reason = _REASONS[verdict]
    if rank is not None and not kept:
        reason += ", but others come first, or its nodules, lung or place were used already"
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


def _rank(scores: PairScores, arrays: GroupArrays, group: NoduleGroup, place: PairPlace, order: PairOrder) -> int:
    only = np.zeros(1, dtype=np.int64)
    if order.weights is None:
        return int(farthest_rank(scores, only, place.lung * place.groups + place.group)[0])
    numbers = shuffled(order.seed, place.lung_hash, np.array([int(group.id, 16)], dtype=np.uint64))
    return int(order_rank(numbers, order.weights.of(classes_of(arrays, scores.distance[arrays.places], only)))[0])


def _facts(
    shape: LungShape,
    group: NoduleGroup,
    arrays: GroupArrays,
    scores: PairScores,
    rules: PlacementRules,
    prior: PresencePrior | None,
) -> Iterator[MemberFacts]:
    row, col = scores.row / PHASES, scores.col / PHASES
    u, v = shape.to_unit(row, col)
    density = None if prior is None else prior.density(arrays.u, arrays.v)
    for index, member in enumerate(group.members):
        distance_mm = float(scores.distance[index]) / UNITS_PER_MM
        yield MemberFacts(
            verdict=PlacementVerdict(int(scores.member_verdict[index])).name,
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


def _smallest_gap_mm(shape: LungShape, arrays: GroupArrays, scores: PairScores) -> float | None:
    first, second = arrays.pairs
    if not len(first):
        return None
    row, col = scores.row * (shape.spacing_mm[0] / PHASES), scores.col * (shape.spacing_mm[1] / PHASES)
    apart = np.sqrt((row[first] - row[second]) ** 2 + (col[first] - col[second]) ** 2)
    return float((apart - (arrays.diameter_mm[first] + arrays.diameter_mm[second]) / 2).min())


@dataclass(frozen=True)
class _Pair:
    lung: int
    group: int  # among all groups of all categories


class PlanExplainer:
    """A finished plan that answers for its pairs.

    Args:
        path: the catalogue.
        library: folder of its library; the catalogue's own when None.
        vessel_masks: the folder that the plan was made with.

    Raises:
        InputError: when a file of the plan is missing.
    """

    def __init__(self, path: Path, *, library: Path | None = None, vessel_masks: Path | None = None) -> None:
        self.catalogue = read_catalogue(path)
        self.record = PlanRecord.read(self.catalogue)
        settings = self.record.identity.get("settings") or {}
        if lacking := [name for name in ("rules", "real_voxels") if settings.get(name) is None]:
            raise InputError(f"{path}: its plan does not say {', '.join(lacking)}. Plan it again.")
        folder = AssetLibrary(library or path.parent)
        self.lungs = LibraryLungs.of(folder, real_voxels=bool(settings["real_voxels"]), vessel_masks=vessel_masks)
        self.lungs = self.lungs.first(settings.get("lungs") or len(self.lungs))
        self._groups = list(read_groups(path))

    def explain(self, query: str) -> tuple[str, Explanation]:
        """The sample id of a pair, and what is to be said of it.

        Args:
            query: a sample id, of a kept pair or of any other; or LUNG:GROUP, each a hash or an index.

        Raises:
            InputError: when there is no such pair.
        """
        pair = self._by_names(query) if ":" in query else self._by_id(query)
        category, group_id, text = self._groups[pair.group]
        part = self.record.parts[category]
        lung_hash = self.lungs.hashes[pair.lung]
        first = next(index for index, (name, _, _) in enumerate(self._groups) if name == category)
        place = PairPlace(lung=pair.lung, lung_hash=lung_hash, group=pair.group - first, groups=part.groups)
        hashes = (np.array([number], dtype=np.uint64) for number in (lung_hash, int(group_id, 16)))
        seed = int(sample_seeds(self.record.sample_seed, *hashes)[0])
        sample = sample_id(lung_hash, int(group_id, 16), seed)
        explanation = explain(
            self.lungs[pair.lung],
            NoduleGroup.from_json(text),
            place,
            rules=self.record.rules,
            order=part.order,
            threshold=part.threshold,
            prior=self.record.prior,
            kept=self.catalogue.find(sample) is not None,
        )
        return sample, explanation

    @cached_property
    def _group_hashes(self) -> np.ndarray:
        return np.array([int(group_id, 16) for _, group_id, _ in self._groups], dtype=np.uint64)

    def _by_id(self, sample: str) -> _Pair:
        wanted = _number(sample.removeprefix(ID_PREFIX), sample)
        for index, lung in enumerate(self.lungs.hashes):
            lungs = np.uint64(lung)
            seeds = sample_seeds(self.record.sample_seed, lungs, self._group_hashes)
            ids = hash_arrays(HashDomain.ID, lungs, self._group_hashes, seeds)
            groups = np.flatnonzero(ids == np.uint64(wanted))
            if len(groups):
                return _Pair(index, int(groups[0]))
        raise InputError(
            f"{sample}: no pair of {len(self.lungs)} lungs and {len(self._groups)} groups of {self.catalogue.path} has "
            "this id. Look it up in the catalogue that it comes from."
        )

    def _by_names(self, query: str) -> _Pair:
        lung, group = query.split(":", 1)
        return _Pair(
            _index(lung, [asset.hash for asset in self.lungs.assets], "lung"),
            _index(group, [group_id for _, group_id, _ in self._groups], "group"),
        )


def _number(digits: str, text: str) -> int:
    try:
        return int(digits, 16) if len(digits) == _HASH_DIGITS else int("")
    except ValueError:
        raise InputError(f"Expected a sample id (synth- and 16 hex digits) or LUNG:GROUP, got {text!r}.") from None


def _index(name: str, names: Sequence[str], what: str) -> int:
    if len(name) < _HASH_DIGITS and name.isdecimal() and int(name) < len(names):
        return int(name)
    if name in names:
        return names.index(name)
    raise InputError(f"No {what} {name}; give the hash of one of the {len(names)}, or its index from 0.")
