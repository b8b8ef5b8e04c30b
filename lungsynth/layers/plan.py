"""Planning: which pairs of a lung and a nodule group become samples, without rendering any.

The paper overlays 5,000 groups on 500 lungs and keeps, of 2,500,000 pairs, the 1,000,000 farthest from the edge of
the lung parenchyma (Chi et al., 2023). A pair's distance is that of its nodule nearest to the edge. Lungs are seen
once, one after the other; only the best pairs so far are in memory. Equal distances: the earlier lung first, then the
earlier group.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt64

from lungsynth.errors import InputError
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.lung_shape import LungShape
from lungsynth.layers.placement import GroupArrays, PlacementRules, Scores, Verdict, score

__all__ = ["Plan", "Policy", "plan"]

Policy = Literal["farthest"]

_PAIR_BITS = np.uint64(32)
_PAIR_MASK = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """The pairs kept, the farthest first.

    Args:
        lung: index of the lung.
        group: index of the group.
        min_distance_mm: of the nodule nearest to the edge.
        candidates: pairs looked at.
        verdicts: pairs of each verdict; `KEPT` are those that may be used, of which the farthest stand here.
    """

    lung: Int64[np.ndarray, " pairs"]
    group: Int64[np.ndarray, " pairs"]
    min_distance_mm: Float32[np.ndarray, " pairs"]
    candidates: int
    verdicts: dict[Verdict, int]

    def __len__(self) -> int:
        return len(self.lung)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.lung.tolist(), self.group.tolist(), strict=True)


def plan(
    lungs: Iterable[LungShape],
    groups: Sequence[NoduleGroup],
    *,
    keep: int,
    rules: PlacementRules | None = None,
    policy: Policy = "farthest",
    max_per_lung: int | None = None,
) -> Plan:
    """Scores all pairs and keeps the best.

    Args:
        lungs: one shape a lung; may be a generator.
        groups: all of them are tried on each lung.
        keep: at most so many pairs.
        rules: of placement.
        policy: `farthest` is the paper's.
        max_per_lung: at most so many pairs of one lung; for short lists, which the widest lung would fill alone.

    Raises:
        InputError: when the policy is unknown, a number is below 1, or there are more than 2**32 pairs.
    """
    if policy not in get_args(Policy) or keep < 1 or (max_per_lung is not None and max_per_lung < 1):
        raise InputError(
            f"A plan needs a policy of {get_args(Policy)}, keep >= 1 and max_per_lung >= 1, "
            f"got {policy!r}, {keep} and {max_per_lung}."
        )
    arrays, best = GroupArrays.of(groups), np.empty(0, dtype=np.uint64)
    counts, seen = np.zeros(len(Verdict), dtype=np.int64), 0
    for index, shape in enumerate(lungs):
        scores = score(shape, arrays, rules or PlacementRules())
        counts += np.bincount(scores.verdict, minlength=len(Verdict))
        keys = _smallest(_keys(scores, first_pair=index * len(groups)), max_per_lung or len(groups))
        best, seen = np.concatenate([best, keys]), index + 1
        if len(best) > 2 * keep:
            best = _smallest(best, keep)
    return _unpack(np.sort(_smallest(best, keep)), groups=len(groups), lungs=seen, counts=counts)


def _keys(scores: Scores, *, first_pair: int) -> UInt64[np.ndarray, " kept"]:
    """Sortable keys of the pairs that may be used: farther first, then the earlier pair.

    The bits of a positive float32 sort as the number does; inverted they stand above the pair's number.
    """
    usable = np.flatnonzero(scores.verdict == Verdict.KEPT)
    if first_pair + len(scores.verdict) > int(_PAIR_MASK):
        raise InputError(
            "A plan holds at most 2**32 pairs of a lung and a group; plan fewer lungs or groups at a time."
        )
    nearer = ~scores.min_distance_mm[usable].view(np.uint32)
    return (nearer.astype(np.uint64) << _PAIR_BITS) | (usable + first_pair).astype(np.uint64)


def _smallest(keys: Shaped[np.ndarray, " keys"], count: int) -> Shaped[np.ndarray, " kept"]:
    return keys if len(keys) <= count else np.partition(keys, count - 1)[:count]


def _unpack(
    keys: UInt64[np.ndarray, " pairs"], *, groups: int, lungs: int, counts: Int64[np.ndarray, " verdicts"]
) -> Plan:
    lung, group = np.divmod((keys & _PAIR_MASK).astype(np.int64), max(groups, 1))
    return Plan(
        lung=lung,
        group=group,
        min_distance_mm=(~(keys >> _PAIR_BITS).astype(np.uint32)).view(np.float32),
        candidates=lungs * groups,
        verdicts={verdict: int(counts[verdict]) for verdict in Verdict},
    )
