"""Placement: a nodule group resolved on a lung, with the numbers of `scoring`."""

from collections.abc import Sequence
from dataclasses import dataclass

from lungsynth.errors import InputError
from lungsynth.placement.assets import Origin
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup
from lungsynth.placement.lung_shape import UNITS_PER_MM, LungShape
from lungsynth.placement.rules import PlacementRules, PlacementVerdict
from lungsynth.placement.scoring import score

__all__ = ["NodulePlacement", "Resolution", "place", "resolve"]


@dataclass(frozen=True, kw_only=True)
class NodulePlacement:
    """A nodule on a lung.

    Args:
        asset: hash of the nodule.
        category: its class.
        source: real or generated.
        row_px: of its centre (the centroid of alpha >= 0.5), on the lung's grid, a multiple of 1/4.
        col_px: likewise.
        diameter_mm: after scaling.
        distance_mm: from its centre to the edge of the lung, a multiple of 1/64.
        rotation_deg: see `groups.Member`.
        flip: likewise.
        scale: likewise.

    Raises:
        InputError: when diameter, scale or distance are not positive.
    """

    asset: str
    category: str
    source: Origin
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


@dataclass(frozen=True)
class Resolution:
    """One group on one lung: the verdict, and the placements of all members when it is `KEPT`, else none."""

    verdict: PlacementVerdict
    placements: tuple[NodulePlacement, ...]


def resolve(shape: LungShape, group: NoduleGroup, rules: PlacementRules) -> Resolution:
    """Resolves one group, with the same numbers as `score`."""
    scores = score(shape, GroupArrays.of([group]), rules)
    verdict = PlacementVerdict(int(scores.verdict[0]))
    if verdict is not PlacementVerdict.KEPT:
        return Resolution(verdict, ())
    positions = zip(scores.row.tolist(), scores.col.tolist(), scores.distance.tolist(), strict=True)
    return Resolution(verdict, place(group, [(r / PHASES, c / PHASES, d / UNITS_PER_MM) for r, c, d in positions]))


def place(group: NoduleGroup, positions: Sequence[tuple[float, float, float]]) -> tuple[NodulePlacement, ...]:
    """The members of a group at (row_px, col_px, distance_mm)."""
    return tuple(
        NodulePlacement(
            asset=member.asset,
            category=member.category,
            source=member.source,
            row_px=row_px,
            col_px=col_px,
            diameter_mm=member.diameter_mm,
            distance_mm=distance_mm,
            rotation_deg=member.rotation_deg,
            flip=member.flip,
            scale=member.scale,
        )
        for member, (row_px, col_px, distance_mm) in zip(group.members, positions, strict=True)
    )
