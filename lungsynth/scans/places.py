"""Where the nodules of a scan come to lie: drawn where nodules occur, by the rules of placement, in three dimensions.

The rules are those of slices (`lungsynth.placement.rules`): distances are from a nodule's centre to the pleura, shares
are of the ball around it. A nodule is tried at places of the scan's own lungs, the largest first, and takes the first
that fits (`varied`), or of those that fit the one farthest from the pleura (`farthest`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungsynth.errors import InputError
from lungsynth.placement.rules import NoduleType, PlacementRules
from lungsynth.scans.request import WantedNodule
from lungsynth.scans.shape import ScanShape

__all__ = ["PHASES", "NoRoomError", "NodulePlace", "find_places"]

PHASES = 4  # centres lie on quarters of a voxel
_TRIES = 400  # places for a nodule; where none of them does, there is no room for it
_FAR_TRIES = 64  # that fit, of which `farthest` takes the best
_DIGITS = 3


class NoRoomError(InputError):
    """A nodule that finds no place in a scan."""


@dataclass(frozen=True, kw_only=True)
class NodulePlace:
    """A place in a scan.

    Args:
        voxel: (slice, row, column) of the centre, multiples of 1/4.
        distance_mm: from the centre to the pleura, to about a millimetre.
        type: isolated, juxta-pleural or juxta-vascular.
        vessel_share: of the ball around it.
        rotation_deg: turns the nodule in its slices, its column axis towards its row axis.
        flip: mirrors its columns, before turning.
        mirror: mirrors its slices.
    """

    voxel: tuple[float, float, float]
    distance_mm: float
    type: NoduleType
    vessel_share: float
    rotation_deg: float
    flip: bool
    mirror: bool


def find_places(
    shape: ScanShape,
    wanted: Sequence[WantedNodule],
    rules: PlacementRules,
    *,
    seed: int,
    farthest: bool = False,
    name: str = "The scan",
) -> list[NodulePlace]:
    """Finds a place for each nodule.

    Args:
        shape: of the scan.
        wanted: the nodules.
        rules: where they may lie.
        seed: nodule i depends on it, i, and the places of larger ones.
        farthest: take the places farthest from the pleura.
        name: of the scan, for the message.

    Returns:
        Places in the order of the nodules.

    Raises:
        NoRoomError: when there is no room for all; it says for which, and why.
    """
    search = _Search(shape, rules)
    found: dict[int, NodulePlace] = {}
    for index in sorted(range(len(wanted)), key=lambda i: (-wanted[i].diameter_mm, i)):
        rng = np.random.default_rng([seed, index])
        place = search.find(wanted[index].diameter_mm, rng, farthest=farthest)
        if place is None:
            nodule = wanted[index]
            raise NoRoomError(
                f"{name}: {len(wanted)} nodules were asked for, and there is no room for the {nodule.texture} one of "
                f"{nodule.diameter_mm:g} mm beside {len(found)} others ({search.reasons()}). Ask for fewer or smaller "
                "ones, or relax the rules of placement."
            )
        found[index] = place
    return [found[index] for index in range(len(wanted))]


class _Search:
    """Places of one scan, with the nodules that have one already."""

    def __init__(self, shape: ScanShape, rules: PlacementRules) -> None:
        self.shape, self.rules = shape, rules
        self.placed: list[tuple[np.ndarray, float]] = []  # centre in mm, radius in mm
        self.refused: Counter[str] = Counter()

    def find(self, diameter_mm: float, rng: np.random.Generator, *, farthest: bool) -> NodulePlace | None:
        """The first place that fits, or the farthest of some."""
        self.refused.clear()
        fitting: list[tuple[float, NodulePlace, np.ndarray]] = []
        for block in self._candidates(diameter_mm, rng):
            jitter = (rng.random(3) - 0.5) * np.asarray(self.shape.factors)
            if (place := self._judge(block, diameter_mm, rng, jitter)) is None:
                continue
            fitting.append((place.distance_mm, place, block))
            if not farthest or len(fitting) == _FAR_TRIES:
                break
        if not fitting:
            return None
        _, place, _ = max(fitting, key=lambda item: item[0])
        self.placed.append((self._millimetres(place), diameter_mm / 2))
        return place

    def reasons(self) -> str:
        """Why the last nodule found none."""
        return ", ".join(f"{count} places {reason}" for reason, count in self.refused.most_common()) or "no place"

    def _candidates(self, diameter_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Blocks to try, drawn by how likely they have a nodule among those far enough from the pleura."""
        needed_mm = max(diameter_mm / 2 * self.rules.edge_clearance, self.rules.min_distance_mm)
        allowed = self.shape.block_distance_mm >= needed_mm
        if self.rules.max_distance_mm is not None:
            allowed &= self.shape.block_distance_mm <= self.rules.max_distance_mm
        weights = np.cumsum(np.where(allowed, self.shape.presence, 0))
        if weights[-1] <= 0:  # nowhere usual; anywhere then
            weights = np.cumsum(allowed.astype(np.float64))
        if weights[-1] <= 0:
            self.refused["too near the pleura"] += _TRIES
            return np.empty((0, 3), dtype=np.int64)
        drawn = np.searchsorted(weights, rng.random(_TRIES) * weights[-1], side="right")
        return self.shape.blocks[np.minimum(drawn, len(weights) - 1)]

    def _judge(
        self, block: np.ndarray, diameter_mm: float, rng: np.random.Generator, jitter: np.ndarray
    ) -> NodulePlace | None:
        """The place in a block, or none and why."""
        rotation, flip, mirror = rng.random(3).tolist()
        box, ball = self.shape.window(block, diameter_mm / 2)
        distance_mm = float(self.shape.distance_mm[tuple(block)])
        vessels, airways = (float((plane[box] & ball).sum() / ball.sum()) for plane in self._obstacles)
        kind = self.rules.type_of(distance_mm, diameter_mm, vessels)
        voxel = np.rint((self.shape.to_voxels(block) + jitter) * PHASES) / PHASES
        place = NodulePlace(
            voxel=(float(voxel[0]), float(voxel[1]), float(voxel[2])),
            distance_mm=round(distance_mm, _DIGITS),
            type=kind,
            vessel_share=round(vessels, _DIGITS),
            rotation_deg=round(rotation * 360, 1),
            flip=flip < 0.5,
            mirror=mirror < 0.5,
        )
        reasons = (
            ("on a vessel", vessels > self.rules.max_vessel_share),
            ("on an airway", airways > self.rules.max_airway_share),
            (f"{kind}, which the rules exclude", kind not in self.rules.types),
            ("beside another nodule", self._is_near_others(place, block, diameter_mm)),
            ("outside the regions", not self._in_regions(block)),
        )
        for reason, applies in reasons:
            if applies:
                self.refused[reason] += 1
                return None
        return place

    @property
    def _obstacles(self) -> tuple[np.ndarray, np.ndarray]:
        return self.shape.vessel, self.shape.airway

    def _is_near_others(self, place: NodulePlace, block: np.ndarray, diameter_mm: float) -> bool:
        centre, radius_mm = self._millimetres(place), diameter_mm / 2
        gap_mm = self.rules.gap_mm
        if any(np.linalg.norm(centre - other) < radius_mm + own + gap_mm for other, own in self.placed):
            return True
        if not self.shape.taken.any():
            return False
        box, ball = self.shape.window(block, radius_mm + gap_mm)
        return bool((self.shape.taken[box] & ball).any())

    def _in_regions(self, block: np.ndarray) -> bool:
        if not self.rules.boxes:
            return True
        lung = self.shape.blocks
        v, u = ((block[axis] - lung[:, axis].min() + 0.5) / (np.ptp(lung[:, axis]) + 1) for axis in (1, 2))
        return any(left <= u <= right and top <= v <= bottom for left, right, top, bottom in self.rules.boxes)

    def _millimetres(self, place: NodulePlace) -> np.ndarray:
        return np.asarray(place.voxel) * np.asarray(self.shape.spacing_mm)
