"""What a candidate of the network means for a cohort: nothing, a place that is marked already, or a new nodule."""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from lungsynth.cohort.patches import NodulePatches
from lungsynth.cohort.records import NoduleRow
from lungsynth.cohort.scan_nodules import cut_nodule, nodule_row
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.ct.volume import voxel_to_lps
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.pseudo_labels.candidates import LOWEST_PROBABILITY, Candidate
from lungsynth.pseudo_labels.stacks import SliceStack

__all__ = ["AssessedCandidate", "CandidateRow", "CandidateStatus", "TriageRules", "assess"]


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
    """One row of `separation.csv`.

    Args:
        candidate_id: also the id of the nodule that it became.
        series_id: whose.
        slice_index: of the slice that shows it largest.
        row_px, column_px: its centre.
        x_mm, y_mm, z_mm: likewise (LPS).
        diameter_mm, probability: as the detector gave them.
        outcome: see `CandidateStatus`.
        normal_slices_removed: slices that were normal and lie within the gap of it; candidates can share them.
    """

    candidate_id: str
    series_id: str
    slice_index: int
    row_px: float
    column_px: float
    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float
    probability: float
    outcome: CandidateStatus
    normal_slices_removed: int = 0


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
    near = candidate.slices(slice_mm=volume.spacing_mm[0], depth=len(stack.rows))
    reach = range(stack.first + near.start, stack.first + near.stop)
    outcome = _outcome(candidate, stack, rules)
    if outcome is not CandidateStatus.NODULE:
        return AssessedCandidate(row=_row(candidate, stack, candidate_id, outcome), reach=reach)
    nodule = ReadNodule(
        votes=candidate.mask.astype(np.uint8),
        offset=candidate.offset,
        readers=1,
        centre_lps_mm=mask_centre_lps(candidate.mask, candidate.offset, volume.affine),
    )
    patches = cut_nodule(volume, nodule, nodule_id=candidate_id, source=source)
    measured = nodule_row(volume, nodule, nodule_id=candidate_id, source=source, expert=False)
    measured = replace(measured, has_patch=patches is not None)
    outcome = CandidateStatus.TOO_LARGE if patches is None else CandidateStatus.NODULE
    return AssessedCandidate(
        row=_row(candidate, stack, candidate_id, outcome), reach=reach, nodule=measured, patches=patches
    )


def _outcome(candidate: Candidate, stack: SliceStack, rules: TriageRules) -> CandidateStatus:
    if candidate.probability < rules.threshold:
        return CandidateStatus.BELOW_THRESHOLD
    if not rules.counts(candidate):
        return CandidateStatus.TOO_SMALL
    marked = np.isin(stack.labels[candidate.box][candidate.mask], (Label.NODULE, Label.UNLABELLED))
    return CandidateStatus.KNOWN if marked.any() else CandidateStatus.NODULE


def _row(candidate: Candidate, stack: SliceStack, candidate_id: str, outcome: CandidateStatus) -> CandidateRow:
    x, y, z = voxel_to_lps(stack.volume.affine, np.asarray(candidate.centre)).tolist()
    return CandidateRow(
        candidate_id=candidate_id,
        series_id=stack.volume.series_id,
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
