"""Placement: resolving nodule groups on a lung, by a rule that is the same for one pair and for all.

A member's (u, v) gives a pixel in the bounding box of the lungs. Its disc needs `clearance * diameter / 2` to the
edge of the lung. Where it has less, it is moved straight away from the nearest edge, in at most `_STEPS` steps and by
at most `max_shift_mm` in all; if that does not clear it, the pair is rejected. Members that come too close to each
other, or lie on a vessel, reject the pair too. Nothing is random here, and no trigonometry is used, so one pair gives
the same numbers as many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

from lungsynth.errors import InputError
from lungsynth.layers.assets import Source
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.lung_shape import LungShape

__all__ = ["GroupArrays", "NodulePlacement", "PlacementRules", "Resolution", "Scores", "Verdict", "resolve", "score"]

_STEPS = 3
_OVERSHOOT_MM = 0.1  # so that rounding does not undo a step
_FRACTIONS_PX = 64  # positions and distances are multiples of 1/64, exact in float32


class Verdict(IntEnum):
    """Why a pair is kept or not; the first that applies."""

    KEPT = 0
    OUTSIDE_LUNG = 1  # a centre outside the lungs that a permitted shift does not bring in
    CROSSES_EDGE = 2  # a disc that would cross the edge of the lung
    ON_VESSEL = 3
    OVERLAP = 4  # two members closer than the gap


@dataclass(frozen=True, kw_only=True)
class PlacementRules:
    """Rules of a plan.

    Args:
        clearance: distance of a centre to the edge, in radii; more than 1 because nodules are no discs.
        gap_mm: between the discs of two members.
        max_shift_mm: how far a member may be moved.
        max_vessel_share: of the pixels around a centre.

    Raises:
        InputError: when a value is negative.
    """

    clearance: float = 1.3
    gap_mm: float = 3.0
    max_shift_mm: float = 15.0
    max_vessel_share: float = 0.6

    def __post_init__(self) -> None:
        if min(self.clearance, self.gap_mm, self.max_shift_mm, self.max_vessel_share) < 0:
            raise InputError(f"Placement rules must not be negative, got {self}.")


@dataclass(frozen=True, kw_only=True)
class NodulePlacement:
    """A nodule on a lung.

    Args:
        asset: hash of the nodule.
        category: its class.
        source: real or generated.
        row_px: of its centre (the centroid of alpha >= 0.5), on the lung's grid.
        col_px: likewise.
        diameter_mm: after scaling.
        distance_mm: from its centre to the edge of the lung.
        rotation_deg: see `groups.Member`.
        flip: likewise.
        scale: likewise.

    Raises:
        InputError: when diameter, scale or distance are not positive.
    """

    asset: str
    category: str
    source: Source
    row_px: float
    col_px: float
    diameter_mm: float
    distance_mm: float
    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.diameter_mm > 0 and self.scale > 0 and self.distance_mm > 0):
            raise InputError(
                f"A placed nodule needs a positive diameter_mm, scale and distance_mm, got {self.diameter_mm:g}, "
                f"{self.scale:g} and {self.distance_mm:g}."
            )


@dataclass(frozen=True, eq=False)
class GroupArrays:
    """Groups as arrays (group, member); groups with fewer members are padded, `present` tells."""

    u: Float[np.ndarray, "groups members"]
    v: Float[np.ndarray, "groups members"]
    diameter_mm: Float[np.ndarray, "groups members"]
    present: Bool[np.ndarray, "groups members"]

    @classmethod
    def of(cls, groups: Sequence[NoduleGroup]) -> "GroupArrays":
        """Arrays of a list of groups."""
        widest = max((len(group.members) for group in groups), default=1)
        u, v, diameter = (np.full((len(groups), widest), fill) for fill in (0.5, 0.5, 0.0))
        present = np.zeros((len(groups), widest), dtype=bool)
        for index, group in enumerate(groups):
            for place, member in enumerate(group.members):
                u[index, place], v[index, place], diameter[index, place] = member.u, member.v, member.diameter_mm
                present[index, place] = True
        return cls(u, v, diameter, present)


@dataclass(frozen=True, eq=False)
class Scores:
    """What came of groups on one lung; values of padded members mean nothing.

    Args:
        row_px, col_px: centres after the shift.
        distance_mm: from the centres to the edge.
        min_distance_mm: the smallest of a group's members.
        member_verdict: `Verdict` of each member alone.
        verdict: `Verdict` of each group.
    """

    row_px: Float32[np.ndarray, "groups members"]
    col_px: Float32[np.ndarray, "groups members"]
    distance_mm: Float32[np.ndarray, "groups members"]
    min_distance_mm: Float32[np.ndarray, " groups"]
    member_verdict: UInt8[np.ndarray, "groups members"]
    verdict: UInt8[np.ndarray, " groups"]


def score(shape: LungShape, groups: GroupArrays, rules: PlacementRules) -> Scores:
    """Resolves all groups on one lung at once."""
    needed = groups.diameter_mm * (rules.clearance / 2)
    start_row, start_col = shape.to_pixels(groups.u, groups.v)
    row, col = _settle(shape, start_row, start_col, needed)
    distance = shape.distance_mm(row, col)
    shift = _length((row - start_row) * shape.spacing_mm[0], (col - start_col) * shape.spacing_mm[1])
    misplaced = (distance < needed) | (distance <= 0) | (shift > rules.max_shift_mm)
    member = np.where(shape.vessels(row, col) > rules.max_vessel_share, Verdict.ON_VESSEL, Verdict.KEPT)
    started_outside = shape.distance_mm(start_row, start_col) < 0
    member = np.where(misplaced, np.where(started_outside, Verdict.OUTSIDE_LUNG, Verdict.CROSSES_EDGE), member)
    member = np.where(groups.present, member, Verdict.KEPT)
    row, col, distance = (_round_to_fractions(value) for value in (row, col, distance))
    return Scores(
        row_px=row,
        col_px=col,
        distance_mm=distance,
        min_distance_mm=np.where(groups.present, distance, np.float32(np.inf)).min(axis=1),
        member_verdict=member.astype(np.uint8),
        verdict=_group_verdicts(member, _overlaps(row, col, groups, shape.spacing_mm, rules.gap_mm)),
    )


@dataclass(frozen=True)
class Resolution:
    """One group on one lung: the verdict, and the placements of all members when it is `KEPT`, else none."""

    verdict: Verdict
    placements: tuple[NodulePlacement, ...]


def resolve(shape: LungShape, group: NoduleGroup, rules: PlacementRules) -> Resolution:
    """Resolves one group, with the same numbers as `score`."""
    scores = score(shape, GroupArrays.of([group]), rules)
    verdict = Verdict(int(scores.verdict[0]))
    if verdict is not Verdict.KEPT:
        return Resolution(verdict, ())
    placements = [
        NodulePlacement(
            asset=member.asset,
            category=member.category,
            source=member.source,
            row_px=float(scores.row_px[0, place]),
            col_px=float(scores.col_px[0, place]),
            diameter_mm=member.diameter_mm,
            distance_mm=float(scores.distance_mm[0, place]),
            rotation_deg=member.rotation_deg,
            flip=member.flip,
            scale=member.scale,
        )
        for place, member in enumerate(group.members)
    ]
    return Resolution(verdict, tuple(placements))


def _settle(shape: LungShape, row: np.ndarray, col: np.ndarray, needed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row, col = row.copy(), col.copy()
    for _ in range(_STEPS):
        lack = needed - shape.distance_mm(row, col)
        near = lack > 0
        along_row, along_col = shape.inward(row[near], col[near])
        step = lack[near] + _OVERSHOOT_MM
        row[near] += step * along_row / shape.spacing_mm[0]
        col[near] += step * along_col / shape.spacing_mm[1]
    return np.rint(row * _FRACTIONS_PX) / _FRACTIONS_PX, np.rint(col * _FRACTIONS_PX) / _FRACTIONS_PX


def _overlaps(
    row: np.ndarray, col: np.ndarray, groups: GroupArrays, spacing_mm: tuple[float, float], gap_mm: float
) -> Bool[np.ndarray, " groups"]:
    overlap = np.zeros(len(row), dtype=bool)
    for first in range(row.shape[1]):
        for second in range(first):
            apart = _length(
                (row[:, first] - row[:, second]) * spacing_mm[0], (col[:, first] - col[:, second]) * spacing_mm[1]
            )
            needed = (groups.diameter_mm[:, first] + groups.diameter_mm[:, second]) / 2 + gap_mm
            overlap |= (apart < needed) & groups.present[:, first] & groups.present[:, second]
    return overlap


def _group_verdicts(member: Shaped[np.ndarray, "groups members"], overlap: Bool[np.ndarray, " groups"]) -> np.ndarray:
    lowest = np.where(member == Verdict.KEPT, len(Verdict), member).min(axis=1)
    kept = np.where(overlap, Verdict.OVERLAP, Verdict.KEPT)
    return np.where(lowest == len(Verdict), kept, lowest).astype(np.uint8)


def _length(row_mm: np.ndarray, col_mm: np.ndarray) -> np.ndarray:
    return np.sqrt(row_mm * row_mm + col_mm * col_mm)  # not hypot: its last bit may depend on the array's size


def _round_to_fractions(values: np.ndarray) -> np.ndarray:
    return (np.rint(values * _FRACTIONS_PX) / _FRACTIONS_PX).astype(np.float32)
