"""Candidates of the segmentation network: where it sees a nodule, which voxels it means, and what that is to a cohort.

The detector of `lung_seg_bundle` gives centres and a probability map. Each candidate gets its own voxels: those
connected to its peak above half of that peak (at most 0.5) that lie within 1.5 radii plus 2 mm. Candidates are served
from the most probable down, so that what a threshold cuts off never changes the others; one whose place is already
taken is a repetition and is left out. To a cohort a candidate is nothing, a place that is marked already, or a new
nodule.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from lungsynth.bundles import open_bundle
from lungsynth.cohort.patches import NodulePatches
from lungsynth.cohort.scan_nodules import cut_nodule, nodule_row
from lungsynth.cohort.schema import NoduleRow, about
from lungsynth.cohort.slices import SliceStack
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps
from lungsynth.hounsfield import Label
from lungsynth.types import CandidateDetector

__all__ = [
    "LOWEST_PROBABILITY",
    "AssessedCandidate",
    "Candidate",
    "CandidateRow",
    "CandidateStatus",
    "TriageRules",
    "assess",
    "find_candidates",
    "open_detector",
    "operating_point",
]

LOWEST_PROBABILITY = 0.05  # lowest probability at which candidates are kept, whatever the threshold
# A candidate's mask ends 1.5 radii plus 2 mm from its centre: irregular nodules fit, attached vessels are cut off.
_REACH_RADII = 1.5
_REACH_MORE_MM = 2.0
_HIGHEST_LEVEL = 0.5  # probability that always belongs to the mask
_CONNECTIVITY = np.ones((3, 3, 3))  # 26 neighbours


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """Something that may be a nodule.

    Args:
        centre: (slice, row, column), fractional, in the volume that was looked at.
        diameter_mm: as the detector measured it.
        probability: in [0, 1].
        mask: its voxels, cut to their box; not empty.
        offset: (slice, row, column) of the box.
    """

    centre: tuple[float, float, float]
    diameter_mm: float
    probability: float
    mask: Bool[np.ndarray, "d h w"]
    offset: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where the mask lies in the volume."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.mask.shape, strict=True))

    @property
    def largest_slice(self) -> int:
        """The slice in which its mask is largest."""
        return self.offset[0] + int(self.mask.sum(axis=(1, 2)).argmax())

    def slices(self, *, slice_mm: float, depth: int) -> range:
        """The slices of a volume of this depth that show it: those of its mask, and those its diameter reaches."""
        half = self.diameter_mm / 2 / slice_mm
        first = min(self.offset[0], math.ceil(self.centre[0] - half))
        last = max(self.offset[0] + len(self.mask) - 1, math.floor(self.centre[0] + half))
        return range(max(0, first), min(depth - 1, last) + 1)


def open_detector(bundles: Path) -> CandidateDetector:
    """The detector of `lung_seg_bundle` in a folder of bundles, listing all down to `LOWEST_PROBABILITY`.

    Raises:
        InputError: when the bundle, its weights or its `detector` are missing.
    """
    lowest = {"candidate_threshold": LOWEST_PROBABILITY}
    detector: CandidateDetector = open_bundle(bundles, "lung_seg", component="detector", overrides=lowest)
    return detector


def operating_point(detector: CandidateDetector) -> float:
    """The probability from which on a detector reports a nodule.

    Raises:
        InputError: when it does not tell.
    """
    point = getattr(detector, "operating_point", None)
    if point is None:
        raise InputError("The detector of lung_seg_bundle states no operating point: give `threshold`.")
    return float(point)


def find_candidates(detector: CandidateDetector, volume: Volume) -> list[Candidate]:
    """All candidates of a volume, whatever their probability, the most probable first.

    Raises:
        InputError: when the detector gives something else than `CandidateDetector` states.
    """
    maps = detector(volume.hu, volume.spacing_mm)
    rows, nodule = _checked(maps, volume)
    return list(_with_masks(rows[np.argsort(-rows[:, 4], kind="stable")], nodule, volume.spacing_mm))


def _checked(maps: Mapping[str, np.ndarray], volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    if missing := sorted({"candidates", "nodule"} - set(maps)):
        raise InputError(
            f"The detector of lung_seg_bundle gave no {missing[0]!r} but {sorted(maps)}; update the bundle."
        )
    rows, nodule = np.asarray(maps["candidates"], dtype=np.float64), np.asarray(maps["nodule"])
    if rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all() or nodule.shape != volume.hu.shape:
        raise InputError(
            "The detector of lung_seg_bundle promises finite candidates (n, 5) and a map of the volume's shape "
            f"{volume.hu.shape}, got {rows.shape} and {nodule.shape}; update the bundle."
        )
    return rows, nodule


def _with_masks(rows: np.ndarray, nodule: np.ndarray, spacing_mm: tuple[float, float, float]) -> Iterator[Candidate]:
    taken = np.zeros(nodule.shape, bool)
    for z, y, x, diameter_mm, probability in rows.tolist():
        piece = _voxels(nodule, taken, (z, y, x), diameter_mm, spacing_mm)
        if piece is None:
            continue
        mask, offset = piece
        candidate = Candidate(
            centre=(z, y, x), diameter_mm=diameter_mm, probability=probability, mask=mask, offset=offset
        )
        taken[candidate.box] |= mask
        yield candidate


def _voxels(
    nodule: np.ndarray,
    taken: np.ndarray,
    centre: tuple[float, float, float],
    diameter_mm: float,
    spacing_mm: tuple[float, float, float],
) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """The mask of a candidate and the offset of its box; None when its place is taken."""
    reach_mm = _REACH_RADII * diameter_mm / 2 + _REACH_MORE_MM
    box, distance_mm = _surroundings(nodule.shape, centre, reach_mm, spacing_mm)
    free = ~taken[box]
    near = free & (distance_mm <= max(diameter_mm / 2, float(distance_mm.min()) + 1e-6))
    if not near.any() or not free[np.unravel_index(distance_mm.argmin(), distance_mm.shape)]:
        return None
    probability = np.where(free, nodule[box], 0).astype(np.float32)
    peak = np.unravel_index(np.where(near, probability, -1).argmax(), near.shape)
    mask = near
    if probability[peak] > 0:
        level = min(_HIGHEST_LEVEL, float(probability[peak]) / 2)
        regions, _ = ndimage.label(
            (probability >= level) & (distance_mm <= reach_mm) | _only(peak, near), _CONNECTIVITY
        )
        mask = regions == regions[peak]
    (tight,) = ndimage.find_objects(mask.astype(np.uint8))
    z, y, x = (part.start + inner.start for part, inner in zip(box, tight, strict=True))
    return mask[tight], (z, y, x)


def _only(voxel: tuple[np.intp, ...], like: np.ndarray) -> np.ndarray:
    alone = np.zeros_like(like)
    alone[voxel] = True
    return alone


def _surroundings(
    shape: tuple[int, ...], centre: tuple[float, ...], reach_mm: float, spacing_mm: tuple[float, ...]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box within reach of a point, never empty, and the distance of its voxels from the point in mm."""
    box, squares = [], []
    for axis, (size, middle, mm) in enumerate(zip(shape, centre, spacing_mm, strict=True)):
        nearest = min(max(round(middle), 0), size - 1)
        low = min(max(0, math.floor(middle - reach_mm / mm)), nearest)
        high = max(min(size, math.ceil(middle + reach_mm / mm) + 1), nearest + 1)
        box.append(slice(low, high))
        steps = ((np.arange(low, high) - middle) * mm) ** 2
        squares.append(np.expand_dims(steps, tuple(other for other in range(3) if other != axis)))
    return tuple(box), np.sqrt(squares[0] + squares[1] + squares[2])


class CandidateStatus(StrEnum):
    """What became of a candidate; the last three lie at or above threshold and smallest diameter."""

    BELOW_THRESHOLD = "below_threshold"
    TOO_SMALL = "too_small"
    KNOWN = "known"  # the data mark the place themselves (a centre with diameter, a box)
    TOO_LARGE = "too_large"  # a row in nodules.csv, but no patch
    NODULE = "nodule"


@dataclass(frozen=True, kw_only=True)
class TriageRules:
    """Which candidates count.

    Args:
        threshold: least probability.
        min_diameter_mm: least diameter.

    Raises:
        InputError: when the threshold is no probability from `LOWEST_PROBABILITY` on, or the diameter is negative.
    """

    threshold: float
    min_diameter_mm: float = 3.0

    def __post_init__(self) -> None:
        if not LOWEST_PROBABILITY <= self.threshold <= 1 or self.min_diameter_mm < 0:
            raise InputError(
                f"The threshold lies in [{LOWEST_PROBABILITY:g}, 1] and the smallest diameter is not negative, got "
                f"{self.threshold:g} and {self.min_diameter_mm:g} mm."
            )

    def counts(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps its slices from being normal."""
        return candidate.probability >= self.threshold and candidate.diameter_mm >= self.min_diameter_mm


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A row of `candidates.csv`: a candidate of any probability."""

    candidate_id: str = field(metadata=about("also the id of the nodule that it became"))
    patient_id: str = field(metadata=about("of the series"))
    series_id: str = field(metadata=about("where it is"))
    source: str = field(metadata=about("name of the collection"))
    split: str = field(default="", metadata=about("of its patient"))
    slice_index: int = field(metadata=about("index in the series of the slice that shows it largest"))
    row_px: float = field(metadata=about("centre on the slice", unit="px"))
    column_px: float = field(metadata=about("centre on the slice", unit="px"))
    x_mm: float = field(metadata=about("centre, LPS", unit="mm"))
    y_mm: float = field(metadata=about("centre, LPS", unit="mm"))
    z_mm: float = field(metadata=about("centre, LPS", unit="mm"))
    diameter_mm: float = field(metadata=about("as the detector gave it", unit="mm"))
    probability: float = field(metadata=about("as the detector gave it"))
    outcome: CandidateStatus = field(
        metadata=about(
            "`below_threshold`, `too_small`, `known` (marked by the data), `too_large` (for a patch) or `nodule`; the "
            "last two are in `nodules.csv` under `candidate_id`"
        )
    )
    normal_slices_removed: int = field(
        default=0, metadata=about("normal slices within the gap of it, which candidates can share")
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class AssessedCandidate:
    """A candidate that has been judged.

    Args:
        row: its row.
        reach: indices in the series of the slices that show it.
        nodule: its row in `nodules.csv`, when it is a new nodule.
        patches: None when it is none, or does not fit.
    """

    row: CandidateRow
    reach: range
    nodule: NoduleRow | None = None
    patches: NodulePatches | None = None

    @property
    def counts(self) -> bool:
        """Whether it keeps its slices from being normal."""
        return self.row.outcome in (CandidateStatus.KNOWN, CandidateStatus.TOO_LARGE, CandidateStatus.NODULE)


def assess(
    candidate: Candidate, stack: SliceStack, *, candidate_id: str, source: str, rules: TriageRules
) -> AssessedCandidate:
    """Judges a candidate of a stack, and cuts its patches when it is a new nodule.

    Args:
        candidate: in `stack.volume`.
        stack: the slices, with what the data know of nodules in them.
        candidate_id: its id.
        source: name of the collection.
        rules: which candidates count.
    """
    volume = stack.volume
    near = candidate.slices(slice_mm=volume.spacing_mm[0], depth=len(stack))
    reach = range(stack.first + near.start, stack.first + near.stop)
    outcome = _outcome(candidate, stack, rules)
    if outcome is not CandidateStatus.NODULE:
        return AssessedCandidate(row=_row(candidate, stack, candidate_id, source, outcome), reach=reach)
    nodule = ReadNodule(
        votes=candidate.mask.astype(np.uint8),
        offset=candidate.offset,
        readers=1,
        centre_lps_mm=mask_centre_lps(candidate.mask, candidate.offset, volume.affine),
    )
    patches = cut_nodule(volume, nodule)
    measured = nodule_row(volume, nodule, nodule_id=candidate_id, source=source, expert=False)
    measured = replace(measured, has_patch=patches is not None)
    outcome = CandidateStatus.TOO_LARGE if patches is None else CandidateStatus.NODULE
    return AssessedCandidate(
        row=_row(candidate, stack, candidate_id, source, outcome), reach=reach, nodule=measured, patches=patches
    )


def _outcome(candidate: Candidate, stack: SliceStack, rules: TriageRules) -> CandidateStatus:
    if candidate.probability < rules.threshold:
        return CandidateStatus.BELOW_THRESHOLD
    if not rules.counts(candidate):
        return CandidateStatus.TOO_SMALL
    marked = np.isin(stack.labels[candidate.box][candidate.mask], (Label.NODULE, Label.UNLABELLED))
    return CandidateStatus.KNOWN if marked.any() else CandidateStatus.NODULE


def _row(
    candidate: Candidate, stack: SliceStack, candidate_id: str, source: str, outcome: CandidateStatus
) -> CandidateRow:
    x, y, z = voxel_to_lps(stack.volume.affine, np.asarray(candidate.centre)).tolist()
    return CandidateRow(
        candidate_id=candidate_id,
        patient_id=stack.volume.patient_id,
        series_id=stack.volume.series_id,
        source=source,
        slice_index=stack.first + candidate.largest_slice,
        row_px=candidate.centre[1],
        column_px=candidate.centre[2],
        x_mm=x,
        y_mm=y,
        z_mm=z,
        diameter_mm=candidate.diameter_mm,
        probability=candidate.probability,
        outcome=outcome,
    )
