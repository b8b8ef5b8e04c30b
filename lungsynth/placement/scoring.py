"""Scoring: all nodule groups on one lung at once, by a rule that is the same for one pair and for all.

A member's (u, v) gives a pixel in the bounding box of the lungs; its centre lies on a quarter of a pixel there. Its
disc needs `clearance * diameter / 2` to the edge of the lung. Where it has less, it is moved straight away from the
nearest edge, in at most `_STEPS` steps and by at most `max_shift_mm` in all; if that does not clear it, the pair is
rejected. What else rejects a pair stands in `rules`. Positions and distances are integers (quarters of a pixel, 1/64
mm), and only correctly rounded arithmetic lies between, so that one pair gives the same numbers as many, on every
machine.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int16, UInt8

from lungsynth.placement.groups import PHASES, GroupArrays
from lungsynth.placement.lung_shape import MARGIN_PX, UNITS_PER_MM, LungShape
from lungsynth.placement.rules import PlacementRules, PlacementVerdict

__all__ = ["PairScores", "score"]

_STEPS = 3


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
    found = flat[bottom + right] - flat[top + right] - flat[bottom + left] + flat[top + left]
    return found / ((2 * half_row + 1) * (2 * half_col + 1))


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
