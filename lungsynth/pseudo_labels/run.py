"""Cohort in, pseudo-labelled cohort out: the detector runs on scans without expert marks.

Series with an expert's nodule masks are taken over as they are. In the others the detector's candidates become
nodules, and slices near one are normal no longer. The split, the slices and the label maps stay. Each series is
finished on its own, so that a run that was stopped goes on; `cohort.json` is written last. The picture beside it shows
slices removed from the normal set and why, nodules added, and slices kept.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw
from tqdm import tqdm

from lungsynth.bundles import read_weights
from lungsynth.cohort.datalists import Datalist, build_datalists
from lungsynth.cohort.montage import Tile, lung_tile, nodule_tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.prepare import claim_cohort_folder, cohort_folder
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.report import (
    cohort_page,
    count_splits,
    markdown_report,
    rows_text,
    summarise,
    write_rows,
)
from lungsynth.cohort.schema import CLASSES, SliceRow, slice_id
from lungsynth.cohort.series_rows import CohortRows, SeriesRows
from lungsynth.ct.series import Problem
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError, StorageError, reason
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import AIR_HU, Label
from lungsynth.io.atomic import link_or_copy, write_json, write_picture, write_text
from lungsynth.io.running import FolderLock
from lungsynth.io.tables import markdown_table
from lungsynth.pseudo_labels.candidates import (
    CandidateRow,
    CandidateStatus,
    TriageRules,
    open_detector,
    operating_point,
)
from lungsynth.pseudo_labels.series import (
    CANDIDATES,
    NETWORK,
    SeriesJob,
    drop_missing,
    pseudo_label_series,
    read_candidates,
)
from lungsynth.tracking import DEFAULT_URI, open_tracker

__all__ = [
    "MONTAGE",
    "PseudoLabelConfig",
    "PseudoLabelResult",
    "pseudo_label_cohort",
    "pseudo_label_facts",
    "pseudo_label_montage",
    "pseudo_label_section",
    "relabel",
]

_logger = logging.getLogger(__name__)

MONTAGE = "montage_pseudo_labels.png"
_NORMAL_GAP_MM = 10.0  # where cohort.json does not tell


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """What to pseudo-label, and how.

    Args:
        cohort: folder that `prepare` wrote.
        out: the pseudo-labelled cohort; a new folder, or one that the same call left unfinished.
        bundles: folder that holds `lung_seg_bundle`.
        threshold: see `TriageRules`; the operating point of the network when None.
        min_diameter_mm: see `TriageRules`.
    """

    cohort: Path
    out: Path
    bundles: Path
    threshold: float | None = None
    min_diameter_mm: float = 3.0


@dataclass(frozen=True, kw_only=True)
class PseudoLabelResult:
    """The content of `cohort.json`, and the problems met on the way."""

    cohort: dict[str, Any]
    problems: tuple[Problem, ...]


def pseudo_label_cohort(settings: PseudoLabelConfig, *, tracking_uri: str | None = DEFAULT_URI) -> PseudoLabelResult:
    """Pseudo-labels a cohort.

    Args:
        settings: see `PseudoLabelConfig`.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: before anything is written, when an input cannot be used or `out` holds something else.
    """
    source = Cohort.open(settings.cohort)
    if "pseudo_labels" in source.described:
        raise InputError(
            f"{settings.cohort}: is pseudo-labelled already. Give the cohort that `prepare` wrote as `cohort`."
        )
    weights = read_weights(settings.bundles, "lung_seg")
    detector = open_detector(settings.bundles)
    threshold = operating_point(detector) if settings.threshold is None else settings.threshold
    rules = TriageRules(threshold=threshold, min_diameter_mm=settings.min_diameter_mm)
    facts = {
        "threshold": rules.threshold,
        "min_diameter_mm": rules.min_diameter_mm,
        "weights_lung_seg": weights.sha256,
    }
    folder = cohort_folder(settings.out, [settings.cohort], {**facts, "cohort": source.digest})
    folder.check()
    job = SeriesJob(
        cohort=settings.cohort,
        out=settings.out,
        detector=detector,
        rules=rules,
        gap_mm=float(source.settings.get("nodule_gap_mm", _NORMAL_GAP_MM)),
    )
    pieces = source.pieces  # looks at them before anything is written
    tracker = open_tracker(tracking_uri)
    name, tags = f"pseudo-label {settings.out.name}", {"command": "pseudo-label"}
    with FolderLock(settings.out), tracker.resumable_run(settings.out, name, tags=tags) as run:
        claim_cohort_folder(folder)
        for name in (NETWORK, CANDIDATES):
            (settings.out / name).mkdir(exist_ok=True)
        run.log_params(folder.identity)
        labelled, problems = _label_pieces(pieces, job)
        cohort = _write_cohort(source, CohortRows(pieces=labelled, splits=source.splits), problems, job, facts)
        run.log_metrics(_metrics(cohort["pseudo_labels"]))
        run.log_file(settings.out / MONTAGE)
    return PseudoLabelResult(cohort=cohort, problems=problems)


def _needs_network(rows: SeriesRows) -> bool:
    """Whether these are the rows of a scan in which no expert has looked for nodules."""
    return bool(rows.slices) and any(row.nodule_mask == "none" for row in rows.series)


def _label_pieces(pieces: Sequence[SeriesRows], job: SeriesJob) -> tuple[tuple[SeriesRows, ...], tuple[Problem, ...]]:
    """The rows of all pieces, in the order of their ids; a series that failed has no slices."""
    present = [drop_missing(rows, job.cohort) for rows in pieces]
    labelled = {rows.task_id: rows for rows, _ in present}
    problems = [problem for _, missing in present for problem in missing]
    waiting = [rows for rows in labelled.values() if _needs_network(rows)]
    for rows in labelled.values():
        if not _needs_network(rows):
            _take_over(rows, job)
    for rows in tqdm(waiting, desc="pseudo-labels", unit="series"):
        finished = SeriesRows.load(job.out, rows.task_id, fingerprint=rows.fingerprint)
        try:
            labelled[rows.task_id] = finished or pseudo_label_series(rows, job)
        except StorageError:
            raise
        except Exception as error:  # one bad series must not cost the others
            _logger.debug("%s", rows.task_id, exc_info=True)
            known = isinstance(error, InputError)
            message = str(error) if known else f"{rows.task_id}: the network failed ({reason(error)})."
            problems.append(Problem(job.cohort / rows.task_id, f"{message} None of its slices counts as normal."))
            labelled[rows.task_id] = _without_slices(rows, job)
    return tuple(labelled.values()), tuple(problems)


def _take_over(rows: SeriesRows, job: SeriesJob) -> None:
    if SeriesRows.load(job.out, rows.task_id, fingerprint=rows.fingerprint) is not None:
        return
    for name in rows.files():
        link_or_copy(job.cohort / name, job.out / name)
    rows.save(job.out)


def _without_slices(rows: SeriesRows, job: SeriesJob) -> SeriesRows:
    """What is left of a series that could not be analysed: the nodules that were marked before."""
    left = replace(rows, slices=(), series=tuple(replace(row, slices=0) for row in rows.series))
    for name in left.files():
        link_or_copy(job.cohort / name, job.out / name)
    return left


def _write_cohort(
    source: Cohort, rows: CohortRows, problems: Sequence[Problem], job: SeriesJob, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Tables, lists, pictures, report; `cohort.json` last."""
    detected = [row for row in rows.series if row.nodule_mask == NETWORK]
    candidates = [row for series in detected for row in read_candidates(job.out, series)]
    candidates.sort(key=lambda row: row.candidate_id)
    lists = build_datalists(rows)
    drawn = {path.name.removesuffix(".nii.gz") for path in (job.out / NETWORK).glob("*.nii.gz")}
    write_rows(rows, job.out, {**lists, "enhancement": relabel(lists["enhancement"], drawn)})
    write_text(job.out / "candidates.csv", rows_text(candidates, CandidateRow))
    ids = {row.series_id for row in detected}
    kept = [row for row in rows.slices if row.normal and row.series_id in ids]
    write_picture(job.out / MONTAGE, pseudo_label_montage(candidates, kept, job.out))
    cohort = summarise(rows, settings=source.settings, problems=problems)
    cohort["problems"] = [*source.described.get("problems", ()), *cohort["problems"]]
    facts = pseudo_label_facts(
        {**settings, "series": len(detected)},
        candidates,
        before=count_splits(CohortRows(pieces=source.pieces, splits=source.splits)),
        after=count_splits(rows),
    )
    write_text(job.out / "report.md", markdown_report(cohort, rows) + pseudo_label_section(facts))
    write_text(job.out / "report.html", cohort_page(cohort, rows, job.out))
    cohort["pseudo_labels"] = facts
    write_json(job.out / "cohort.json", cohort)
    return cohort


def _metrics(facts: dict[str, Any]) -> dict[str, float]:
    normal = {
        f"normal_slices_{when}": sum(counts["normal_slices"] for counts in facts[when].values())
        for when in ("before", "after")
    }
    return {"series": facts["series"], **normal, **{f"candidates_{k}": n for k, n in facts["candidates"].items()}}


def relabel(enhancement: Datalist, drawn: set[str]) -> Datalist:
    """Lets slices on which the network drew nodules (`drawn`, their ids) point to its label maps."""
    return {
        split: [
            {**entry, "label": entry["label"].replace("labels/", f"{NETWORK}/")}
            if entry["image"].removeprefix("slices/").removesuffix(".nii.gz") in drawn
            else entry
            for entry in entries
        ]
        for split, entries in enhancement.items()
    }


def pseudo_label_facts(
    settings: Mapping[str, Any],
    rows: Sequence[CandidateRow],
    *,
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `cohort.json` says of pseudo-labelling.

    Args:
        settings: threshold, smallest diameter, hash of the weights, number of series that the detector ran on.
        rows: all candidates.
        before: `counts` of the source.
        after: of the pseudo-labelled cohort.
    """
    outcomes = Counter(row.outcome.value for row in rows)
    names = ("normal_slices", "nodules")
    return {
        **settings,
        "candidates": {outcome.value: outcomes[outcome.value] for outcome in CandidateStatus},
        "before": {split: {name: counts[name] for name in names} for split, counts in before.items()},
        "after": {split: {name: counts[name] for name in names} for split, counts in after.items()},
    }


def pseudo_label_section(facts: Mapping[str, Any]) -> str:
    """The section of `report.md` on pseudo-labels; `facts` are those of `pseudo_label_facts`."""
    rows = []
    for split, after in facts["after"].items():
        before = facts["before"][split]
        counts = [f"{before['nodules'].get(name, 0)} -> {after['nodules'].get(name, 0)}" for name in CLASSES]
        rows.append((split, f"{before['normal_slices']} -> {after['normal_slices']}", *counts))
    lines = [
        "",
        "## Pseudo-labels",
        "",
        f"{facts['series']} series without expert marks; candidates count from a probability of "
        f"{facts['threshold']:g} and a diameter of {facts['min_diameter_mm']:g} mm on. "
        f"Weights of lung_seg_bundle: `{facts['weights_lung_seg'][:16]}`.",
        "",
        *markdown_table(("split", "normal slices", *CLASSES), rows),
        "",
        *markdown_table(("candidates", "n"), facts["candidates"].items()),
    ]
    return "\n".join(lines) + "\n"


_WIDE_PX = 256  # a whole slice, and its enlarged part beside it: 3 pairs, 12 nodules or 8 lungs make one width
_PAIRS = 3
_REMOVED = 12
_NODULES = 24
_LUNGS = 16
_CROP_MM = PATCH_PX * PATCH_SPACING_MM
_FRAME = (90, 170, 255)


def pseudo_label_montage(rows: Sequence[CandidateRow], kept: Sequence[SliceRow], out: Path) -> Image.Image:
    """Draws the montage of a pseudo-labelled cohort from its files.

    Args:
        rows: all candidates.
        kept: slices that stayed normal, of the series that the detector ran on.
        out: the pseudo-labelled cohort.
    """
    new = [row for row in rows if row.outcome in (CandidateStatus.NODULE, CandidateStatus.TOO_LARGE)]
    removing = sorted((row for row in new if row.normal_slices_removed), key=lambda row: -row.probability)
    nodules = [out / "nodules" / f"{row.candidate_id}.npz" for row in new if row.outcome is CandidateStatus.NODULE]
    lungs = [out / row.lung for row in kept]
    groups = (
        (
            "slices near these are normal no longer",
            [_pair(row, out) for row in spread(removing, _REMOVED)],
            removing,
            _PAIRS,
        ),
        ("nodules added", [nodule_tile(path) for path in spread(nodules, _NODULES)], nodules, 12),
        ("kept as normal", [lung_tile(path) for path in spread(lungs, _LUNGS)], lungs, 8),
    )
    return stack_blocks(
        [
            tile_block(f"{name}: {len(tiles)} of {len(of)}", tiles, columns=columns)
            for name, tiles, of, columns in groups
            if tiles
        ]
    )


def _pair(row: CandidateRow, out: Path) -> Tile:
    """The slice that shows a candidate largest, and 44.8 mm of it enlarged, network's nodules outlined."""
    name = f"{slice_id(row.series_id, row.slice_index)}.nii.gz"
    hu, affine = read_plane(out / "slices" / name)
    mask = _square(read_plane(out / NETWORK / name)[0] == Label.NODULE, False)
    hu = _square(hu, AIR_HU)
    column_mm, row_mm = np.abs(np.diag(affine)[:2])
    half = [max(1, round(_CROP_MM / 2 / mm)) for mm in (row_mm, column_mm)]
    top, left = round(row.row_px) - half[0], round(row.column_px) - half[1]
    crops = [_crop(plane, top, left, half, fill) for plane, fill in ((hu, AIR_HU), (mask, False))]
    pair = np.stack([outlined(hu, mask, _WIDE_PX), outlined(crops[0], crops[1], _WIDE_PX)])
    picture = Image.fromarray(rearrange(pair, "part h w c -> h (part w) c"))
    draw = ImageDraw.Draw(picture)
    scale = [_WIDE_PX / size for size in hu.shape]
    draw.rectangle(
        (left * scale[1], top * scale[0], (left + 2 * half[1]) * scale[1], (top + 2 * half[0]) * scale[0]),
        outline=_FRAME,
    )
    text = f"p {row.probability:.2f}, {row.diameter_mm:.1f} mm: {row.normal_slices_removed} slices out"
    draw.rectangle(draw.textbbox((_WIDE_PX + 4, 2), text), fill=(0, 0, 0))
    draw.text((_WIDE_PX + 4, 2), text, fill=(255, 255, 255))
    return np.asarray(picture)


def _square(plane: np.ndarray, fill: int | bool) -> np.ndarray:
    """Rows or columns added at the end, so that a picture of equal sides does not distort."""
    side = max(plane.shape)
    return np.pad(plane, [(0, side - size) for size in plane.shape], constant_values=fill)


def _crop(plane: np.ndarray, top: int, left: int, half: list[int], fill: int | bool) -> np.ndarray:
    """`2 * half` pixels from (top, left), filled beyond the slice's border."""
    padded = np.pad(plane, [(2 * half[0],) * 2, (2 * half[1],) * 2], constant_values=fill)
    row, column = top + 2 * half[0], left + 2 * half[1]
    return padded[row : row + 2 * half[0], column : column + 2 * half[1]]
