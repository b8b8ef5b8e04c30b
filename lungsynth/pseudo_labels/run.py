"""Cohort in, pseudo-labelled cohort out: the detector runs on scans without expert marks.

Series with an expert's nodule masks are taken over as they are. In the others the detector's candidates become
nodules, and slices near one are normal no longer. The split, the slices and the label maps stay. Each series is
finished on its own, so that a run that was stopped goes on; `cohort.json` is written last.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lungsynth.bundles import read_weights
from lungsynth.cohort.datalists import build_datalists
from lungsynth.cohort.output import check_output, cohort_identity, open_output
from lungsynth.cohort.records import SeriesRows
from lungsynth.cohort.report import (
    Contents,
    count_splits,
    markdown_report,
    summarise,
    write_contents,
    write_json,
)
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError
from lungsynth.io.atomic import link_or_copy, write_picture, write_text
from lungsynth.pseudo_labels.candidates import open_detector, operating_point
from lungsynth.pseudo_labels.montage import pseudo_label_montage
from lungsynth.pseudo_labels.report import candidate_table, pseudo_label_facts, pseudo_label_section, relabel
from lungsynth.pseudo_labels.series import CANDIDATES, NETWORK, SeriesJob, pseudo_label_series, read_candidates
from lungsynth.pseudo_labels.source import SourceCohort, drop_missing, part_files, read_source
from lungsynth.pseudo_labels.triage import CandidateRow, TriageRules
from lungsynth.tracking import DEFAULT_URI, open_tracker
from lungsynth.weights import WeightsInfo

__all__ = ["PseudoLabelConfig", "PseudoLabelResult", "pseudo_label_cohort"]

_logger = logging.getLogger(__name__)

_NORMAL_GAP_MM = 10.0  # where cohort.json does not tell


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """What to separate, and how.

    Args:
        cohort: folder that `prepare` wrote.
        out: the separated cohort; a new folder, or one that the same call left unfinished.
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
    """What came of it: the content of `cohort.json`, and the problems met on the way."""

    cohort: dict[str, Any]
    problems: tuple[Problem, ...]


def pseudo_label_cohort(settings: PseudoLabelConfig, *, tracking_uri: str | None = DEFAULT_URI) -> PseudoLabelResult:
    """Separates a cohort.

    Args:
        settings: see `PseudoLabelConfig`.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: before anything is written, when an input cannot be used or `out` holds something else.
    """
    source = read_source(settings.cohort)
    weights = read_weights(settings.bundles, "lung_seg")
    detector = open_detector(settings.bundles)
    threshold = operating_point(detector) if settings.threshold is None else settings.threshold
    rules = TriageRules(threshold=threshold, min_diameter_mm=settings.min_diameter_mm)
    identity = _identity(settings.cohort, rules, source, weights)
    check_output(settings.out, [settings.cohort], identity)
    job = SeriesJob(
        cohort=settings.cohort,
        out=settings.out,
        detector=detector,
        rules=rules,
        gap_mm=float(source.described.get("settings", {}).get("nodule_gap_mm", _NORMAL_GAP_MM)),
    )
    tracker = open_tracker(tracking_uri)
    open_output(settings.out, identity)
    for name in (NETWORK, CANDIDATES):
        (settings.out / name).mkdir(exist_ok=True)
    with tracker.resumable_run(settings.out, f"separate {settings.out.name}", tags={"chain": "separate"}) as run:
        run.log_params(identity["settings"])
        parts, problems = _separate_parts(source, job)
        cohort = _finish(source, parts, problems, job, weights)
        run.log_metrics(_metrics(cohort["separation"]))
        run.log_file(settings.out / "montage_separation.png")
    return PseudoLabelResult(cohort=cohort, problems=problems)


def _identity(cohort: Path, rules: TriageRules, source: SourceCohort, weights: WeightsInfo) -> dict[str, Any]:
    return cohort_identity(
        [cohort],
        {
            "separation_threshold": rules.threshold,
            "separation_min_diameter_mm": rules.min_diameter_mm,
            "weights_lung_seg": weights.sha256,
            "cohort": source.digest,
        },
    )


def _needs_network(part: SeriesRows) -> bool:
    """Whether a part is a scan in which no expert has looked for nodules."""
    return bool(part.slices) and any(row.nodule_mask == "none" for row in part.series)


def _separate_parts(source: SourceCohort, job: SeriesJob) -> tuple[list[SeriesRows], tuple[Problem, ...]]:
    """All parts, in the order of their ids; a series that failed has no slices."""
    whole = [drop_missing(part, source.folder) for part in source.parts]
    parts = {part.part_id: part for part, _ in whole}
    problems = [problem for _, missing in whole for problem in missing]
    waiting = [part for part in parts.values() if _needs_network(part)]
    for part in parts.values():
        if not _needs_network(part):
            _take_over(part, job)
    for part in tqdm(waiting, desc="separate", unit="series"):
        finished = SeriesRows.load(job.out / ".parts", part.part_id, fingerprint=part.fingerprint)
        try:
            parts[part.part_id] = finished or pseudo_label_series(part, job)
        except Exception as error:  # one bad series must not cost the others
            _logger.debug("%s", part.part_id, exc_info=True)
            known = isinstance(error, InputError)
            message = str(error) if known else f"{part.part_id}: the network failed ({type(error).__name__}: {error})"
            problems.append(Problem(job.cohort / part.part_id, f"{message} None of its slices counts as normal."))
            parts[part.part_id] = _without_slices(part, job)
    return list(parts.values()), tuple(problems)


def _take_over(part: SeriesRows, job: SeriesJob) -> None:
    if SeriesRows.load(job.out / ".parts", part.part_id, fingerprint=part.fingerprint) is not None:
        return
    for name in part_files(part):
        link_or_copy(job.cohort / name, job.out / name)
    part.save(job.out / ".parts")


def _without_slices(part: SeriesRows, job: SeriesJob) -> SeriesRows:
    """What is left of a series that could not be analysed: the nodules that were marked before."""
    left = replace(part, slices=(), series=tuple(replace(row, slices=0) for row in part.series))
    for name in part_files(left):
        link_or_copy(job.cohort / name, job.out / name)
    return left


def _finish(
    source: SourceCohort, parts: Sequence[SeriesRows], problems: Sequence[Problem], job: SeriesJob, weights: WeightsInfo
) -> dict[str, Any]:
    """Tables, lists, pictures, report; `cohort.json` last."""
    contents = Contents(parts=tuple(parts), splits=source.splits)
    looked_at = [row for row in contents.series if row.nodule_mask == NETWORK]
    candidates = [row for series in looked_at for row in read_candidates(job.out, series.series_id)]
    lists = build_datalists(contents.series, contents.slices, contents.nodules, contents.splits)
    drawn = {path.name.removesuffix(".nii.gz") for path in (job.out / NETWORK).glob("*.nii.gz")}
    write_contents(contents, job.out, {**lists, "enhancement": relabel(lists["enhancement"], drawn)})
    write_text(job.out / "separation.csv", candidate_table(candidates, contents))
    ids = {row.series_id for row in looked_at}
    kept = [row for row in contents.slices if row.normal and row.series_id in ids]
    write_picture(job.out / "montage_separation.png", pseudo_label_montage(candidates, kept, job.out))
    cohort = summarise(contents, settings=source.described["settings"], problems=problems)
    cohort["problems"] = [*source.described["problems"], *cohort["problems"]]
    facts = _facts(source, contents, candidates, job.rules, weights)
    write_text(job.out / "report.md", markdown_report(cohort, contents) + pseudo_label_section(facts))
    cohort["separation"] = facts
    write_json(job.out / "cohort.json", cohort)
    return cohort


def _facts(
    source: SourceCohort,
    contents: Contents,
    candidates: Sequence[CandidateRow],
    rules: TriageRules,
    weights: WeightsInfo,
) -> dict[str, Any]:
    settings = {
        "threshold": rules.threshold,
        "min_diameter_mm": rules.min_diameter_mm,
        "weights_lung_seg": weights.sha256,
        "series": sum(row.nodule_mask == NETWORK for row in contents.series),
    }
    return pseudo_label_facts(settings, candidates, before=source.described["counts"], after=count_splits(contents))


def _metrics(facts: dict[str, Any]) -> dict[str, float]:
    normal = {
        f"normal_slices_{when}": sum(counts["normal_slices"] for counts in facts[when].values())
        for when in ("before", "after")
    }
    return {"series": facts["series"], **normal, **{f"candidates_{k}": n for k, n in facts["candidates"].items()}}
