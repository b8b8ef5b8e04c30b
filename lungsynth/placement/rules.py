"""Which nodules may lie where: the rules of placement, and the verdicts they give on all groups and a lung at once.

Rules are a JSON file or a dataclass. Distances are in mm from a nodule's centre to the edge of the lung (the pleura, in
a slice). Shares are of the pixels of a square as wide as the nodule around its centre.

A member's (u, v) gives a pixel in the bounding box of the lungs; its centre lies on a quarter of a pixel there. Its
disc needs `clearance * diameter / 2` to the edge of the lung. Where it has less, it is moved straight away from the
nearest edge, in at most `_STEPS` steps and by at most `max_shift_mm` in all; if that does not clear it, the pair is
rejected. Positions and distances are integers (quarters of a pixel, 1/64 mm), and only correctly rounded arithmetic
lies between, so that one pair gives the same numbers as many, on every machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int, Int16, UInt8

from lungsynth.config import MIN_DIAMETER_MM
from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM, disc_diameter
from lungsynth.io.stored import lists, numbers, objects, read_json, texts
from lungsynth.placement.groups import PHASES, GroupArrays, NoduleGroup, NodulePlacement, place
from lungsynth.placement.lung_shape import MARGIN_PX, LungShape

__all__ = [
    "REGIONS",
    "NoduleType",
    "PairScores",
    "PlacementRules",
    "PlacementVerdict",
    "Region",
    "Resolution",
    "read_rules",
    "resolve",
    "score",
]

NoduleType = Literal["isolated", "juxta_pleural", "juxta_vascular"]
Region = tuple[float, float, float, float]  # (u from, u to, v from, v to) in the bounding box of both lungs

_NUMBERS = ["clearance", "pleural_clearance", "min_distance_mm", "gap_mm", "max_shift_mm", "max_vessel_share"]
_NUMBERS += ["max_airway_share", "juxta_vascular_share", "max_distance_mm"]


def _regions(value: Any) -> None:
    """A name, or four numbers."""
    texts()(value) if isinstance(value, str) else lists(numbers(), length=4)(value)


_RULES = objects(
    {},
    {**{name: numbers(0) for name in _NUMBERS}, "types": lists(texts()), "regions": lists(_regions)},
)

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
    TOO_SMALL = 10  # smaller than min_diameter_mm, or than the lung's pixels can show


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
        min_diameter_mm: of a nodule.
        min_pixels: of the lung's grid that a nodule's disc covers: on 1.4 mm, 6 pixels are 3.9 mm.
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
    min_diameter_mm: float = MIN_DIAMETER_MM
    min_pixels: float = 6.0
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

    def smallest_mm(self, spacing_mm: tuple[float, float]) -> float:
        """The smallest diameter that is placed on a lung of this spacing (row, column)."""
        return max(self.min_diameter_mm, float(disc_diameter(self.min_pixels * spacing_mm[0] * spacing_mm[1])))

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
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise InputError(f"Unknown placement rules {unknown}; there are {names}.")
        given = {key: value for key, value in values.items() if value is not None}  # null is the default
        whole: dict[str, Any] = {key: float(value) for key, value in given.items() if type(value) is int}
        tuples: dict[str, Any] = {
            key: tuple(_hashable(v) for v in given[key]) for key in ("types", "regions") if key in given
        }
        try:
            return cls(**{**given, **whole, **tuples})
        except TypeError as error:
            raise InputError(f"Expected numbers and lists of names in the placement rules, got {error}.") from error


def read_rules(path: Path) -> PlacementRules:
    """Reads a JSON object of rules.

    Raises:
        InputError: when the file is missing or is not one.
    """
    values = read_json(path, _RULES, what="a JSON object of placement rules", remedy="Mend it, or leave it out.")
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


_STEPS = 3  # of a nodule away from the edge; a concave edge may need a second, more than three hardly ever help


@dataclass(frozen=True, eq=False)
class PairScores:
    """What came of groups on one lung.

    Args:
        row, col: centres after the shift, in quarters of a pixel.
        distance: from the centres to the edge, in 1/64 mm.
        start_distance: from where the members were drawn, likewise.
        shift_mm: how far they were moved.
        vessel_share, airway_share: of the members' squares.
        member_verdict: `PlacementVerdict` of each member alone.
        verdict: `PlacementVerdict` of each group.
        min_distance: the smallest of a group's members, in 1/64 mm.
    """

    row: Int16[np.ndarray, " members"]
    col: Int16[np.ndarray, " members"]
    distance: Int16[np.ndarray, " members"]
    start_distance: Int16[np.ndarray, " members"]
    shift_mm: np.ndarray
    vessel_share: np.ndarray
    airway_share: np.ndarray
    member_verdict: UInt8[np.ndarray, " members"]
    verdict: UInt8[np.ndarray, " groups"]
    min_distance: Int16[np.ndarray, " groups"]


def score(shape: LungShape, groups: GroupArrays, rules: PlacementRules) -> PairScores:
    """Resolves all groups on one lung at once."""
    needed_mm = np.maximum(groups.diameter_mm * (rules.edge_clearance / 2), rules.min_distance_mm)
    needed = np.ceil(needed_mm * UNITS_PER_MM).astype(np.int64)
    start_row, start_col = _start(shape, groups)
    start_distance = _distance(shape, groups, start_row, start_col)
    row, col, distance = _settle(shape, groups, start_row, start_col, start_distance, needed)
    shift = _length((row - start_row) * shape.spacing_mm[0], (col - start_col) * shape.spacing_mm[1])
    vessels, airways = (_share(shape, sums, groups, row, col) for sums in (shape.vessel_sums, shape.airway_sums))
    # From the weakest reason to the strongest, each writes over what was there.
    member = np.zeros(len(row), dtype=np.uint8)
    member[_wrong_type(groups, rules, distance, vessels)] = PlacementVerdict.WRONG_TYPE
    member[airways > rules.max_airway_share] = PlacementVerdict.ON_AIRWAY
    member[vessels > rules.max_vessel_share] = PlacementVerdict.ON_VESSEL
    if rules.regions:
        member[_outside_regions(shape, groups, rules, row, col)] = PlacementVerdict.OUTSIDE_REGION
    if rules.max_distance_mm is not None:
        member[distance > rules.max_distance_mm * UNITS_PER_MM] = PlacementVerdict.TOO_FAR
    edge = groups.diameter_mm * (rules.edge_clearance / 2 * UNITS_PER_MM)
    far_moved = shift > rules.max_shift_mm
    member[(distance < rules.min_distance_mm * UNITS_PER_MM) | far_moved] = PlacementVerdict.TOO_NEAR
    misplaced = (distance < edge) | (distance <= 0) | (far_moved & (start_distance < edge))
    member[misplaced] = np.where(start_distance < 0, PlacementVerdict.OUTSIDE_LUNG, PlacementVerdict.CROSSES_EDGE)[
        misplaced
    ]
    member[groups.diameter_mm < rules.smallest_mm(shape.spacing_mm)] = PlacementVerdict.TOO_SMALL
    row_quarters, col_quarters = row * PHASES + groups.row_phase, col * PHASES + groups.col_phase
    return PairScores(
        row=row_quarters.astype(np.int16),
        col=col_quarters.astype(np.int16),
        distance=distance.astype(np.int16),
        start_distance=start_distance.astype(np.int16),
        shift_mm=shift,
        vessel_share=vessels,
        airway_share=airways,
        member_verdict=member,
        verdict=_group_verdicts(member, groups, _overlaps(row_quarters, col_quarters, groups, shape, rules.gap_mm)),
        min_distance=np.minimum.reduceat(distance, groups.starts).astype(np.int16),
    )


def _start(shape: LungShape, groups: GroupArrays) -> tuple[np.ndarray, np.ndarray]:
    """Whole pixels of the drawn positions on the lung's grid; the phase comes on top."""
    row, col = shape.to_pixels(groups.u, groups.v)
    row, col = np.rint(row - groups.row_phase / PHASES), np.rint(col - groups.col_phase / PHASES)
    return row.astype(np.int64), col.astype(np.int64)


def _distance(shape: LungShape, groups: GroupArrays, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Distance at centres, linear between pixels, in 1/64 mm."""
    at, columns = _flat(shape, row, col), shape.signed.shape[1]
    signed, right, down = shape.signed.ravel(), groups.col_phase, groups.row_phase
    upper = (PHASES - right) * signed[at] + right * signed[at + 1]
    lower = (PHASES - right) * signed[at + columns] + right * signed[at + columns + 1]
    return ((PHASES - down) * upper + down * lower + PHASES * PHASES // 2) // (PHASES * PHASES)


def _flat(shape: LungShape, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Indices into `shape.signed`, kept a pixel away from its border."""
    rows, columns = shape.signed.shape
    row = np.clip(row - (shape.box.row_from - MARGIN_PX), 1, rows - 2)
    return row * columns + np.clip(col - (shape.box.column_from - MARGIN_PX), 1, columns - 2)


def _settle(
    shape: LungShape, groups: GroupArrays, row: np.ndarray, col: np.ndarray, distance: np.ndarray, needed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, col, distance = row.copy(), col.copy(), distance.copy()
    signed, columns, (row_mm, col_mm) = shape.signed.ravel(), shape.signed.shape[1], shape.spacing_mm
    for _ in range(_STEPS):
        near = np.flatnonzero(distance < needed)
        at = _flat(shape, row[near], col[near])
        along_row = (signed[at + columns].astype(np.int32) - signed[at - columns]) / row_mm
        along_col = (signed[at + 1].astype(np.int32) - signed[at - 1]) / col_mm
        length = np.maximum(_length(along_row, along_col), 1e-6)  # no step on a ridge
        along_row, along_col = along_row / length, along_col / length
        # Half a pixel more, so that rounding to whole ones does not undo a step.
        step = (needed[near] - distance[near]) / UNITS_PER_MM + (abs(along_row) * row_mm + abs(along_col) * col_mm) / 2
        row[near] += np.rint(step * along_row / row_mm).astype(np.int64)
        col[near] += np.rint(step * along_col / col_mm).astype(np.int64)
        distance[near] = _distance(shape, groups.take(near), row[near], col[near])
    return row, col, distance


def _share(
    shape: LungShape, sums: np.ndarray | None, groups: GroupArrays, row: np.ndarray, col: np.ndarray
) -> np.ndarray:
    """Share of the pixels of a square of a member's diameter; 0 when nothing is known."""
    if sums is None:
        return np.zeros(len(row))
    rows, columns = sums.shape
    half_row = np.rint(groups.diameter_mm * (0.5 / shape.spacing_mm[0])).astype(np.int64)
    half_col = np.rint(groups.diameter_mm * (0.5 / shape.spacing_mm[1])).astype(np.int64)
    row, col = row - (shape.box.row_from - MARGIN_PX), col - (shape.box.column_from - MARGIN_PX)
    top, bottom = np.clip(row - half_row, 0, rows - 2), np.clip(row + half_row + 1, 1, rows - 1)
    left, right = np.clip(col - half_col, 0, columns - 2), np.clip(col + half_col + 1, 1, columns - 1)
    flat = sums.ravel()
    top, bottom = top * columns, bottom * columns
    pixels = flat[bottom + right] - flat[top + right] - flat[bottom + left] + flat[top + left]
    return pixels / ((2 * half_row + 1) * (2 * half_col + 1))


def _wrong_type(
    groups: GroupArrays, rules: PlacementRules, distance: np.ndarray, vessels: np.ndarray
) -> Bool[np.ndarray, " members"]:
    pleural = distance < groups.diameter_mm * (rules.clearance / 2 * UNITS_PER_MM)
    vascular = ~pleural & (vessels >= rules.juxta_vascular_share)
    allowed = [name in rules.types for name in ("juxta_pleural", "juxta_vascular", "isolated")]
    return ~np.select([pleural, vascular], allowed[:2], default=allowed[2])


def _outside_regions(
    shape: LungShape, groups: GroupArrays, rules: PlacementRules, row: np.ndarray, col: np.ndarray
) -> Bool[np.ndarray, " members"]:
    u, v = shape.to_unit(row + groups.row_phase / PHASES, col + groups.col_phase / PHASES)
    inside = [(u >= u0) & (u <= u1) & (v >= v0) & (v <= v1) for u0, u1, v0, v1 in rules.boxes]
    return ~np.logical_or.reduce(inside)


def _overlaps(
    row: Int[np.ndarray, " members"],
    col: Int[np.ndarray, " members"],
    groups: GroupArrays,
    shape: LungShape,
    gap_mm: float,
) -> Bool[np.ndarray, " groups"]:
    first, second = groups.pairs
    row_mm, col_mm = (spacing / PHASES for spacing in shape.spacing_mm)
    apart = _length((row[first] - row[second]) * row_mm, (col[first] - col[second]) * col_mm)
    close = apart < (groups.diameter_mm[first] + groups.diameter_mm[second]) / 2 + gap_mm
    overlap = np.zeros(len(groups), dtype=bool)
    overlap[groups.group[first[close]]] = True
    return overlap


def _group_verdicts(member: np.ndarray, groups: GroupArrays, overlap: np.ndarray) -> np.ndarray:
    # One less, so that KEPT becomes the largest of a byte and the minimum the first reason.
    first = np.minimum.reduceat(member - np.uint8(1), groups.starts) + np.uint8(1)
    return np.where((first == PlacementVerdict.KEPT) & overlap, np.uint8(PlacementVerdict.OVERLAP), first)


def _length(row_mm: np.ndarray, col_mm: np.ndarray) -> np.ndarray:
    return np.sqrt(row_mm * row_mm + col_mm * col_mm)  # not hypot: its last bit may depend on the array's size


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
