"""What a candidate of the network means for a cohort: nothing, a place that is marked already, or a new nodule."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from lungsynth.cohort.patches import NodulePatches
from lungsynth.cohort.scan_nodules import cut_nodule, nodule_row
from lungsynth.cohort.scans import SliceStack
from lungsynth.cohort.schema import NoduleRow, about
from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps
from lungsynth.hounsfield import Label
from lungsynth.pseudo_labels.candidates import LOWEST_PROBABILITY, Candidate

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
