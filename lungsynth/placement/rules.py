"""Rules of placement, as a JSON file or a dataclass, and the verdicts they give.

Distances are in mm from a nodule's centre to the edge of the lung (the pleura, in a slice). Shares are of the pixels of
a square as wide as the nodule around its centre.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

from lungsynth.errors import InputError

__all__ = ["REGIONS", "NoduleType", "PlacementRules", "PlacementVerdict", "Policy", "Region", "read_rules"]

Policy = Literal["farthest", "matched", "balanced"]  # which accepted pairs become samples, see `placement.policy`
NoduleType = Literal["isolated", "juxta_pleural", "juxta_vascular"]
Region = tuple[float, float, float, float]  # (u from, u to, v from, v to) in the bounding box of both lungs

REGIONS: Mapping[str, Region] = {
    "right": (0.0, 0.5, 0.0, 1.0),
    "left": (0.5, 1.0, 0.0, 1.0),
    "anterior": (0.0, 1.0, 0.0, 0.3333),
    "middle": (0.0, 1.0, 0.3333, 0.6667),
    "posterior": (0.0, 1.0, 0.6667, 1.0),
}


class PlacementVerdict(IntEnum):
    """Why a pair may be used or not; the first that applies to one of its nodules, then `OVERLAP`."""

    KEPT = 0
    OUTSIDE_LUNG = 1  # a centre outside the lungs that a permitted shift does not bring in
    CROSSES_EDGE = 2  # a disc that would cross the edge of the lung more than its type may
    TOO_NEAR = 3  # nearer to the edge than min_distance_mm, which a permitted shift does not mend
    TOO_FAR = 4  # farther than max_distance_mm
    OUTSIDE_REGION = 5
    ON_VESSEL = 6
    ON_AIRWAY = 7
    WRONG_TYPE = 8
    OVERLAP = 9  # two nodules closer than the gap


@dataclass(frozen=True, kw_only=True)
class PlacementRules:
    """Rules of a plan.

    A nodule nearer to the edge than `clearance` radii is juxta-pleural, else one on `juxta_vascular_share` of vessels
    or more is juxta-vascular, else it is isolated.

    Args:
        types: which nodules may be used.
        clearance: distance of a centre to the edge, in radii; more than 1 because nodules are no discs.
        pleural_clearance: likewise for juxta-pleural nodules, which may reach into the wall.
        min_distance_mm: of a centre to the edge.
        max_distance_mm: likewise; None for any.
        gap_mm: between the discs of two nodules.
        max_shift_mm: how far a nodule may be moved from where it was drawn.
        max_vessel_share: of a nodule's square that is vessel.
        max_airway_share: likewise of airway.
        juxta_vascular_share: see above.
        regions: names of `REGIONS`, or (u from, u to, v from, v to); a centre lies in one of them. All when empty.

    Raises:
        InputError: when a value is out of its range.
    """

    types: tuple[str, ...] = ("isolated", "juxta_vascular")
    clearance: float = 1.3
    pleural_clearance: float = 0.7
    min_distance_mm: float = 0.0
    max_distance_mm: float | None = None
    gap_mm: float = 3.0
    max_shift_mm: float = 15.0
    max_vessel_share: float = 0.5
    max_airway_share: float = 0.5
    juxta_vascular_share: float = 0.1
    regions: tuple[str | Region, ...] = ()

    def __post_init__(self) -> None:
        negative = [f.name for f in fields(self) if isinstance(v := getattr(self, f.name), int | float) and v < 0]
        if negative:
            raise InputError(f"Placement rules must not be negative, got {negative} in {self}.")
        if not self.types or set(self.types) - set(get_args(NoduleType)):
            raise InputError(f"Placement rules need types among {get_args(NoduleType)}, got {self.types}.")
        if self.pleural_clearance > self.clearance:
            raise InputError(
                f"pleural_clearance must not exceed clearance, got {self.pleural_clearance:g} and {self.clearance:g}."
            )
        if self.max_distance_mm is not None and self.max_distance_mm < self.min_distance_mm:
            raise InputError(
                f"max_distance_mm must not be below min_distance_mm, got {self.max_distance_mm:g} and "
                f"{self.min_distance_mm:g}."
            )
        for region in self.regions:
            _check_region(region)

    @property
    def boxes(self) -> tuple[Region, ...]:
        """The regions as (u from, u to, v from, v to); none when all is allowed."""
        return tuple(REGIONS[region] if isinstance(region, str) else region for region in self.regions)

    @property
    def edge_clearance(self) -> float:
        """Radii that the centre of an allowed nodule keeps from the edge at least."""
        return self.pleural_clearance if "juxta_pleural" in self.types else self.clearance

    def type_of(self, distance_mm: float, diameter_mm: float, vessel_share: float) -> NoduleType:
        """The type of a nodule at a distance from the edge, with a share of vessels in its square."""
        if distance_mm < diameter_mm * self.clearance / 2:
            return "juxta_pleural"
        return "juxta_vascular" if vessel_share >= self.juxta_vascular_share else "isolated"

    def to_json(self) -> dict[str, Any]:
        """All values, as they stand in a file of rules."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PlacementRules":
        """Rules from the values of a file; what is not named keeps its default.

        Raises:
            InputError: when a name is unknown or a value is of another kind.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"Unknown placement rules {unknown}; there are {known}.")
        numbers = {key: float(value) for key, value in values.items() if type(value) is int}
        tuples = {key: tuple(_hashable(v) for v in values[key]) for key in ("types", "regions") if key in values}
        try:
            return cls(**{**values, **numbers, **tuples})
        except TypeError as error:
            raise InputError(f"Expected numbers and lists of names in the placement rules, got {error}.") from error


def read_rules(path: Path) -> PlacementRules:
    """Reads a JSON object of rules.

    Raises:
        InputError: when the file is missing or is not one.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object of placement rules, got {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object of placement rules, got {type(values).__name__}.")
    try:
        return PlacementRules.from_json(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_region(region: str | Region) -> None:
    if isinstance(region, str):
        if region not in REGIONS:
            raise InputError(f"Unknown region {region!r}; there are {sorted(REGIONS)}, or give four numbers.")
    elif len(region) != 4 or not (0 <= region[0] < region[1] <= 1 and 0 <= region[2] < region[3] <= 1):
        raise InputError(f"A region needs 0 <= u from < u to <= 1 and the same of v, got {region}.")


def _hashable(value: Any) -> Any:
    return tuple(float(number) for number in value) if isinstance(value, list) else value
