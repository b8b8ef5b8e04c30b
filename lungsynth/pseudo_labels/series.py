"""One series that no expert has looked at: what the network finds in it, and what is left of its normal slices.

Nothing is written before the whole series has been analysed, and its rows come last. Slices, label maps and lungs stay
those of the cohort; new are nodules, and label maps of the slices that show them (`network/`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.schema import SeriesRow, SliceRow, from_mapping
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.cohort.slices import SliceStack, far_from, read_stacks
from lungsynth.ct.series import Problem
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import link_or_copy, write_json
from lungsynth.io.names import file_stem
from lungsynth.io.stored import lists, objects, one_of, read_json
from lungsynth.pseudo_labels.candidates import (
    AssessedCandidate,
    Candidate,
    CandidateRow,
    CandidateStatus,
    TriageRules,
    assess,
    find_candidates,
)
from lungsynth.types import Affine, CandidateDetector, LabelPlane

__all__ = [
    "CANDIDATES",
    "NETWORK",
    "SeriesJob",
    "drop_missing",
    "pseudo_label_series",
    "read_candidates",
    "still_normal",
]

NETWORK = "network"  # `nodule_mask` of a series that the network has looked at; folder of its label maps
CANDIDATES = ".candidates"  # folder of the rows of `candidates.csv`, a file a series

_CANDIDATES = lists(objects({"outcome": one_of(*map(str, CandidateStatus))}))

_Drawn = dict[str, tuple[LabelPlane, Affine]]  # label maps by slice id


@dataclass(frozen=True, kw_only=True)
class SeriesJob:
    """How a series is pseudo-labelled.

    Args:
        cohort: folder that holds it.
        out: folder of the pseudo-labelled cohort.
        detector: of `lung_seg_bundle`.
        rules: which candidates count.
        gap_mm: a normal slice is farther than this from each candidate that counts.
    """

    cohort: Path
    out: Path
    detector: CandidateDetector
    rules: TriageRules
    gap_mm: float


def pseudo_label_series(rows: SeriesRows, job: SeriesJob) -> SeriesRows:
    """Runs the detector on a series, and writes its nodules and what is left of its normal slices.

    Args:
        rows: of one series whose nodules no expert drew.
        job: see `SeriesJob`.

    Returns:
        The new rows.

    Raises:
        InputError: when a file of the series cannot be used, or the detector does not keep its contract.
    """
    (series,) = rows.series
    findings: list[AssessedCandidate] = []
    drawn: _Drawn = {}
    for stack in read_stacks(job.cohort, series, [row.index for row in rows.slices]):
        candidates = find_candidates(job.detector, stack.volume)
        for number, candidate in enumerate(candidates, start=len(findings)):
            candidate_id = f"{file_stem(series.series_id)}_c{number:03d}"
            finding = assess(candidate, stack, candidate_id=candidate_id, source=series.source, rules=job.rules)
            findings.append(finding)
            if finding.nodule is not None:
                _draw(candidate, stack, drawn)
    spacing_mm = series.spacing_slice_mm or 0.0
    kept = still_normal(rows.slices, [f.reach for f in findings if f.counts], slice_mm=spacing_mm, gap_mm=job.gap_mm)
    new = replace(
        rows,
        series=(replace(series, nodule_mask=NETWORK),),
        slices=tuple(
            replace(row, normal=bool(normal), shows_nodule=row.shows_nodule or row.slice_id in drawn)
            for row, normal in zip(rows.slices, kept, strict=True)
        ),
        nodules=(*rows.nodules, *(f.nodule for f in findings if f.nodule is not None)),
        notes=(*rows.notes, *_notes(findings)),
    )
    counted = [_count_removed(finding, rows.slices, spacing_mm, job.gap_mm) for finding in findings]
    _write(rows, new, counted, drawn, job)
    return new


def drop_missing(rows: SeriesRows, folder: Path) -> tuple[SeriesRows, list[Problem]]:
    """Rows without the slices and patches whose files are not in their cohort, and a problem for each such file."""
    missing = {name for name in rows.files() if not (folder / name).is_file()}
    if not missing:
        return rows, []
    slices = tuple(
        row for row in rows.slices if not missing & {row.image, row.label, *([row.lung] if row.normal else [])}
    )
    nodules = tuple(
        replace(
            row,
            has_patch=row.has_patch and row.patch not in missing,
            has_cube=row.has_cube and row.cube not in missing,
        )
        for row in rows.nodules
    )
    series = tuple(replace(row, slices=len(slices)) if rows.slices else row for row in rows.series)
    problems = [
        Problem(folder / name, f"{folder / name}: is missing, so it is left out; prepare the cohort again.")
        for name in sorted(missing)
    ]
    return replace(rows, series=series, slices=slices, nodules=nodules), problems


def still_normal(
    rows: Sequence[SliceRow], reaches: Sequence[range], *, slice_mm: float, gap_mm: float
) -> Bool[np.ndarray, " rows"]:
    """Which slices stay normal, in the order of `rows`.

    Args:
        rows: slices of one series.
        reaches: indices in the series that candidates keep from being normal.
        slice_mm: from slice to slice.
        gap_mm: a normal slice is farther than this from each of them.
    """
    indices = np.array([row.index for row in rows], dtype=int)
    length = max([*indices.tolist(), *(reach.stop - 1 for reach in reaches)], default=-1) + 1
    diseased = np.zeros(length, bool)
    for reach in reaches:
        diseased[reach.start : reach.stop] = True
    far = far_from(diseased, slice_mm=slice_mm, gap_mm=gap_mm)
    return far[indices] & np.array([row.normal for row in rows], dtype=bool)


def read_candidates(out: Path, series: SeriesRow) -> list[CandidateRow]:
    """The candidates of a finished series."""
    path = out / CANDIDATES / f"{file_stem(series.series_id)}.json"
    remedy = "Remove the folder's `.parts` and repeat the command."
    stored = read_json(path, _CANDIDATES, what="the candidates of a series", remedy=remedy)
    owner = {"patient_id": series.patient_id, "source": series.source, "split": series.split}
    try:
        return [
            from_mapping(CandidateRow, {**row, **owner, "outcome": CandidateStatus(row["outcome"])}) for row in stored
        ]
    except InputError as error:
        raise InputError(f"{path}: {error}. {remedy}") from error


def _draw(candidate: Candidate, stack: SliceStack, drawn: _Drawn) -> None:
    """Adds a new nodule to the label maps of the slices that show it."""
    for k in np.flatnonzero(candidate.mask.any(axis=(1, 2))).tolist():
        place = candidate.offset[0] + k
        slice_id = stack.slice_id(place)
        label, _ = drawn.setdefault(slice_id, (stack.labels[place].copy(), stack.volume.plane_affine(place)))
        label[candidate.box[1:]][candidate.mask[k]] = Label.NODULE


def _count_removed(
    finding: AssessedCandidate, rows: Sequence[SliceRow], slice_mm: float, gap_mm: float
) -> AssessedCandidate:
    """The finding with the number of normal slices near it in its row."""
    if not finding.counts:
        return finding
    kept = still_normal(rows, [finding.reach], slice_mm=slice_mm, gap_mm=gap_mm)
    removed = sum(row.normal for row in rows) - int(kept.sum())
    return replace(finding, row=replace(finding.row, normal_slices_removed=removed))


def _notes(findings: Sequence[AssessedCandidate]) -> list[str]:
    return [
        f"{f.nodule.nodule_id} ({f.nodule.diameter_mm:.1f} mm, found by the network) reaches beyond a patch of "
        "44.8 mm: it has a row, but no patch"
        for f in findings
        if f.nodule is not None and f.patches is None
    ]


def _write(
    old: SeriesRows, new: SeriesRows, findings: Sequence[AssessedCandidate], drawn: _Drawn, job: SeriesJob
) -> None:
    for name in replace(new, nodules=old.nodules).files():
        link_or_copy(job.cohort / name, job.out / name)
    for finding in findings:
        if finding.patches is not None:
            finding.patches.save(job.out, finding.row.candidate_id)
    for slice_id, (label, affine) in drawn.items():
        write_plane(job.out / NETWORK / f"{slice_id}.nii.gz", label, affine)
    write_json(job.out / CANDIDATES / f"{file_stem(new.task_id)}.json", [asdict(finding.row) for finding in findings])
    new.save(job.out)
