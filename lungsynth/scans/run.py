"""Nodules into many scans: one scan after the other in memory, each sample written once, a stopped run continued.

Folder of a run:

| file | content |
|---|---|
| `images/`, `labels/`, `nodules/` (NIfTI) or the folders of the other formats | the scans, see `write` |
| `annotations.csv`, `detection.json`, `datalist.json`, `nodules.csv` | lists of all samples |
| `scans.csv` | which scan is whose: holds ids and paths, keep it |
| `run.json` | what decides the bytes of the run |
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from tqdm import tqdm

from lungsynth.cohort.series import LabelledScan, read_labelled_scan
from lungsynth.ct.discover import Discovery, find_series
from lungsynth.ct.series import Problem, SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text
from lungsynth.io.names import readable
from lungsynth.io.stored import anything, mappings, read_json
from lungsynth.io.tables import csv_text
from lungsynth.run_folder import RunFolder
from lungsynth.scans.enhance import ScanCheck, ScanEnhancement, open_scan_check, open_scan_enhancement
from lungsynth.scans.insert import insert_nodules
from lungsynth.scans.plan import InsertConfig, ScanPlan, plan_scan
from lungsynth.scans.rows import FROM_SCAN, inserted_rows, own_rows
from lungsynth.scans.shape import ScanShape
from lungsynth.scans.write import WrittenScan, write_lists, write_scan
from lungsynth.seeds import HashDomain, hash_words
from lungsynth.tracking import open_tracker

__all__ = ["InsertResult", "insert_into_scans"]

_logger = logging.getLogger(__name__)
_PARTS = ".parts"
_TAGS = {"command": "insert"}
_REMEDY = "Delete it, and run the same command again."
_MAX_THICKNESS_MM = 20.0  # of a slice; what is more is no thickness


@dataclass(frozen=True, kw_only=True)
class InsertResult:
    """What came of it.

    Args:
        scans: with nodules.
        samples: that were written, those of earlier runs included.
        nodules: inserted.
        found: of those, by `lung_seg_bundle`; None where it did not look.
        new_findings: what it found beside them and not before; likewise.
        problems: scans that were left out, and why.
    """

    scans: int
    samples: int
    nodules: int
    found: int | None
    new_findings: int | None
    problems: tuple[Problem, ...]

    def metrics(self) -> dict[str, float]:
        """The numbers."""
        names = ("scans", "samples", "nodules", "found", "new_findings")
        return {name: float(value) for name in names if (value := getattr(self, name)) is not None}


def insert_into_scans(config: InsertConfig, *, tracking_uri: str | None = None) -> InsertResult:
    """Inserts nodules into all scans of the sources, or goes on with it.

    Args:
        config: of the run.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: when there is no scan, none could be used, or the folder belongs to another run.
    """
    tracker = open_tracker(tracking_uri)
    with find_series(list(config.sources), config.files) as found:
        folder, is_new = RunFolder(path=config.out, identity=config.identity(found.series)), not config.out.exists()
        try:
            with folder.held(), tracker.resumable_run(config.out, f"insert {config.out.name}", tags=_TAGS) as run:
                run.log_params(_params(config))
                result = _all_scans(config, found)
                run.log_metrics(result.metrics())
                run.log_file(config.out / "nodules.csv")
        except InputError:
            if is_new:
                shutil.rmtree(config.out, ignore_errors=True)
            raise
    return result


def _params(config: InsertConfig) -> dict[str, Any]:
    """Settings of a run that name no file."""
    named = ("variants", "seed", "format", "policy", "pairs", "enhance", "check")
    requests = ", ".join(str(request) for request in config.nodules)
    return {"nodules": requests, **config.cubes.identity(), **{name: getattr(config, name) for name in named}}


def _all_scans(config: InsertConfig, found: Discovery) -> InsertResult:
    """Makes the samples, and writes the lists.

    Raises:
        InputError: when no scan could be used.
    """
    problems, samples, used = list(found.problems), list[Mapping[str, Any]](), list[dict[str, Any]]()
    after = _After(config=config)
    for number, files in enumerate(tqdm(found.series, desc="scans", unit="scan"), start=1):
        job = _ScanJob(config=config, files=files, subject=f"scan{number:04d}", after=after)
        try:
            samples += job.run()
            used.append(job.row)
        except InputError as error:
            problems.append(Problem(files.files[0], str(error)))
    if not samples:
        raise InputError(problems[0].message if len(problems) == 1 else _none_of(problems))
    write_lists(samples, config.out)
    write_text(config.out / "scans.csv", csv_text(pd.DataFrame(used)))
    inserted = [nodule for sample in samples for nodule in sample["nodules"] if nodule["source"] != FROM_SCAN]
    return InsertResult(
        scans=len(used),
        samples=len(samples),
        nodules=len(inserted),
        found=sum(nodule["found"] for nodule in inserted) if config.check else None,
        new_findings=sum(sample["new_findings"] for sample in samples) if config.check else None,
        problems=tuple(problems),
    )


def _none_of(problems: Sequence[Problem]) -> str:
    return f"No scan could be used: {len(problems)} problems, the first one: {problems[0].message}"


@dataclass(frozen=True, eq=False, kw_only=True)
class _After:
    """What comes after the nodules, opened when the first sample needs it."""

    config: InsertConfig

    @cached_property
    def enhancement(self) -> ScanEnhancement | None:
        """None where nodules stay as they are."""
        return open_scan_enhancement(self.config.bundles_dir) if self.config.enhance else None

    @cached_property
    def check(self) -> ScanCheck | None:
        """None where nobody asks what is found."""
        return open_scan_check(self.config.bundles_dir) if self.config.check else None


@dataclass(eq=False, kw_only=True)
class _ScanJob:
    """One scan of a run; it is read when the first of its samples is not there yet."""

    config: InsertConfig
    files: SeriesFiles
    subject: str
    after: "_After"

    def run(self) -> list[Mapping[str, Any]]:
        """The facts of its samples, which are made unless they are there."""
        names = [self._name(variant, day) for variant in range(self.config.variants) for day in self.config.days]
        names += [f"{self.subject}-without"] if self.config.pairs else []
        kept = {name: facts for name in names if (facts := self._kept(name)) is not None}
        if len(kept) < len(names):
            kept |= self._make(missing=set(names) - set(kept))
        return [kept[name] for name in names]

    @property
    def row(self) -> dict[str, Any]:
        """Of scans.csv."""
        return {
            "subject": self.subject,
            "series_id": self.files.series_id,
            "patient_id": self.files.patient_id,
            "path": readable(str(self.files.files[0])),
        }

    def _name(self, variant: int, day: int) -> str:
        name = self.subject if self.config.variants == 1 else f"{self.subject}-v{variant:04d}"
        return name if self.config.growth is None else f"{name}-day{day:04d}"

    def _kept(self, name: str) -> Mapping[str, Any] | None:
        path = self.config.out / _PARTS / f"{name}.json"
        return read_json(path, mappings(anything), what="a finished scan", remedy=_REMEDY) if path.is_file() else None

    def _make(self, *, missing: set[str]) -> dict[str, Mapping[str, Any]]:
        scan = read_labelled_scan(self.files)
        for note in scan.notes:
            _logger.warning("%s", note)
        volume, name = scan.volume, str(self.files.files[0])
        nodules = scan.findings.nodule | scan.findings.unlabelled
        shape = ScanShape.of(volume.hu, scan.lung, spacing_mm=volume.spacing_mm, nodules=nodules, name=name)
        made: dict[str, Mapping[str, Any]] = {}
        for variant in range(self.config.variants):
            if not missing.intersection(self._name(variant, day) for day in self.config.days):
                continue
            plan = self._plan(shape, variant, name)
            for day in self.config.days:
                if (sample := self._name(variant, day)) in missing:
                    made[sample] = self._save(sample, scan, plan.on_day(self.config.growth, day), day)
        if (without := f"{self.subject}-without") in missing:
            made[without] = self._save(without, scan, ScanPlan(wanted=(), cubes=(), places=(), seed=0), 0)
        return made

    def _plan(self, shape: ScanShape, variant: int, name: str) -> ScanPlan:
        key = int(hashlib.sha256(self.files.series_id.encode()).hexdigest()[:15], 16)
        seed = hash_words(HashDomain.SEED, self.config.seed, key, variant) >> 1
        return plan_scan(
            shape,
            self.config.nodules,
            self.config.cubes,
            self.config.placement_rules,
            seed=seed,
            farthest=self.config.policy == "farthest",
            largest_factor=self.config.largest_factor,
            name=name,
        )

    def _save(self, name: str, scan: LabelledScan, plan: ScanPlan, day: int) -> Mapping[str, Any]:
        inserted = insert_nodules(
            scan.volume, scan.labels, plan.placed, seed=plan.seed, thickness_mm=_thickness_mm(scan.volume)
        )
        enhanced, findings, new_findings = None, None, None
        if self.after.enhancement:
            inserted, enhanced = self.after.enhancement(scan.volume.hu, inserted)
        if self.after.check:
            findings, new_findings = self.after.check.findings(scan.volume.hu, inserted)
        written = WrittenScan(
            name=name,
            subject=self.subject,
            volume=inserted.volume,
            label=inserted.label,
            instances=inserted.instances,
            categories=tuple(nodule.texture for nodule in plan.wanted),
            day=day,
        )
        facts = {
            "name": name,
            "subject": self.subject,
            "day": day,
            "files": write_scan(written, self.config.out, format=self.config.format),
            "nodules": [*inserted_rows(plan, inserted, enhanced=enhanced, findings=findings), *own_rows(scan)],
            "new_findings": new_findings,
        }
        write_json(self.config.out / _PARTS / f"{name}.json", facts)
        return facts


def _thickness_mm(volume: Volume) -> float | None:
    """Of the slices, where the files tell."""
    try:
        thickness_mm = float(volume.modality_info.get("SliceThickness", "nan"))
    except ValueError:
        return None
    return thickness_mm if 0 < thickness_mm <= _MAX_THICKNESS_MM else None
