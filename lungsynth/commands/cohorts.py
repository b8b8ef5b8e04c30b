"""`lungsynth prepare`, `lungsynth pseudo-label` and `lungsynth phantom`: from CT to cohorts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lungsynth.commands.command import (
    Command,
    Report,
    add_bundles,
    add_device,
    add_seed,
    add_tracking,
    counted,
    tracking_uri,
)
from lungsynth.config import default_bundles
from lungsynth.errors import InputError

if TYPE_CHECKING:
    from lungsynth.cohort.prepare import PrepareResult

__all__ = ["PHANTOM", "PREPARE", "PSEUDO_LABEL"]

_LUNG_SIZES_PX = (256, 512)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder, archive or file, any of: DICOM, NIfTI, MetaImage/LUNA16, LIDC XML, Pascal-VOC boxes, LIDC crops",
    )
    add("--out", type=Path, help="the cohort: a new folder, or one left unfinished; not needed with --dry-run")
    _add_reading(parser)
    add("--split", choices=("auto", "test"), default="auto", help="test: all patients test (default: auto)")
    add_seed(parser)
    add(
        "--fold",
        type=int,
        default=0,
        help="0 to 4: another fifth of the patients tests, for cross-validation (default: 0)",
    )
    add(
        "--lung-size",
        type=int,
        choices=_LUNG_SIZES_PX,
        default=_LUNG_SIZES_PX[0],
        help="the lung generator's grid in pixels: 256 at 1.4 mm (default) or 512 at 0.7 mm",
    )
    add(
        "--min-lung-area",
        type=float,
        metavar="CM2",
        help="a normal slice shows at least so much lung (default: 120 for an adult, less the smaller the patient)",
    )
    add(
        "--not-normal",
        type=Path,
        metavar="LIST",
        help="text or CSV: files, series, patients or slices, one a line, that show disease though no annotation says "
        "so; they train no normal lungs",
    )
    add("--workers", type=int, default=2, help="processes (default: 2)")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How the files of the sources are understood."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print what each file is taken for and why, and write nothing")
    add("--strict", action="store_true", help="any problem is an error: nothing is left out, or nothing is written")
    add(
        "--labels",
        metavar="VALUE=NAME,...",
        help="what values of label files mean, such as 1=lung,2=nodule, where no dataset.json says so",
    )
    add(
        "--subset",
        action="store_true",
        help="the sources are parts of their collections (a subset of LUNA16): ignore annotations of other series",
    )
    add("--synthetic", action="store_true", help="take slices that this project made for scans of patients")


def _prepare(options: argparse.Namespace) -> Report:
    from lungsynth.cohort.not_normal import read_names
    from lungsynth.cohort.prepare import PrepareSettings, look_at_sources, prepare_cohort
    from lungsynth.cohort.series import SliceExtraction
    from lungsynth.ct.file_kinds import labels_from_text

    settings = PrepareSettings(
        split=options.split,
        seed=options.seed,
        fold=options.fold,
        slices=SliceExtraction(lung_size_px=options.lung_size, min_normal_cm2=options.min_lung_area),
        subset=options.subset,
        labels=labels_from_text(options.labels) if options.labels else {},
        synthetic=options.synthetic,
        strict=options.strict,
        not_normal=read_names(options.not_normal) if options.not_normal else (),
    )
    if options.dry_run:
        lines, problems = look_at_sources(options.sources, settings.files)
        if problems and options.strict:
            raise InputError(problems[0].message)
        return Report(lines, counted([problem.message for problem in problems], "could not be used"))
    if options.out is None:
        raise InputError("`--out` is missing: name the cohort's folder, or look first with --dry-run.")
    return _report_cohort(
        prepare_cohort(options.sources, options.out, settings=settings, workers=options.workers), options.out
    )


def _report_cohort(result: "PrepareResult", out: Path) -> Report:
    lines = []
    for split, counts in result.cohort["counts"].items():
        nodules = sum(counts["nodules"].values())
        lines.append(f"{split:10}  {counts['patients']:5} patients  {counts['slices']:6} slices  {nodules:5} nodules")
    lines += [f"Missing     {text}" for text in result.cohort.get("lacks", [])]
    lines.append(f"Cohort: {out}. Look at {out / 'report.html'}.")
    return Report(lines, counted([problem.message for problem in result.problems], "could not be used"))


def _add_pseudo_label(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`")
    add("--out", type=Path, required=True, help="the cohort with pseudo-labels: a new folder, or one left unfinished")
    add_bundles(parser)
    add_device(parser)
    add(
        "--threshold",
        type=float,
        help="probability from which on a candidate counts, 0.05 to 1; lower: purer, smaller normal set (default: the "
        "network's operating point)",
    )
    add("--min-diameter-mm", type=float, default=3.0, metavar="MM", help="smaller candidates are ignored (default: 3)")
    add_tracking(parser)


def _pseudo_label(options: argparse.Namespace) -> Report:
    from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort

    config = PseudoLabelConfig(
        cohort=options.cohort,
        out=options.out,
        bundles=options.bundles or default_bundles(),
        threshold=options.threshold,
        min_diameter_mm=options.min_diameter_mm,
    )
    result = pseudo_label_cohort(config, tracking_uri=tracking_uri(options))
    facts = result.cohort["pseudo_labels"]
    lines = []
    if not facts["series"]:
        lines.append("No series needed the network: experts have looked at all of them.")
    for split, after in facts["after"].items():
        before = facts["before"][split]
        nodules = [sum(counts["nodules"].values()) for counts in (before, after)]
        lines.append(
            f"{split:10}  normal slices {before['normal_slices']:6} -> {after['normal_slices']:6}   "
            f"nodules {nodules[0]:5} -> {nodules[1]:5}"
        )
    out = options.out
    lines.append(
        f"Pseudo-labelled cohort: {out}. Look at {out / 'report.html'} and {out / 'montage_pseudo_labels.png'}."
    )
    return Report(lines, counted([problem.message for problem in result.problems], "series could not be analysed"))


def _add_phantom(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to; must be empty or absent")
    add("--patients", type=int, default=8, help="how many (default: 8)")
    add("--seed", type=int, default=0, help="another seed, other patients (default: 0)")
    add("--size", type=int, default=128, metavar="PX", help="rows and columns, 256: 1.4 mm (default: 128)")
    add("--slices", type=int, default=40, help="axial slices of each patient (default: 40)")
    add("--spacing", type=float, default=5.0, metavar="MM", help="between slices (default: 5)")


def _phantom(options: argparse.Namespace) -> Report:
    from lungsynth.cohort.phantom.files import make_phantom_cohort

    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; give `out` a new one.")
    make_phantom_cohort(
        out,
        patients=options.patients,
        seed=options.seed,
        size_px=options.size,
        slices=options.slices,
        slice_spacing_mm=options.spacing,
    )
    return Report([f"{options.patients} phantom patients in {out}"])


PREPARE = Command("Makes a cohort for the trainings out of chest CT in any mix of layouts.", _add_prepare, _prepare)
PSEUDO_LABEL = Command(
    "Runs the detector on the scans of a cohort without expert marks: candidates become nodules, and slices near "
    "them are normal no longer.",
    _add_pseudo_label,
    _pseudo_label,
)
PHANTOM = Command(
    "Draws procedural chest CT with known nodules, in the layouts of LIDC-IDRI, LUNA16 and the Decathlon.",
    _add_phantom,
    _phantom,
)
