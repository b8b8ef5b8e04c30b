"""`errors/`: the largest errors of a method as pictures, and `errors.md` with their sentences."""

import os
import shutil
from pathlib import Path

import numpy as np

from evaluation.metrics.matching import CandidateDetector
from evaluation.segmentation.crops import Crop
from evaluation.segmentation.detection import detect
from evaluation.segmentation.evaluate import Images
from evaluation.segmentation.failures import Failure, largest_failures
from evaluation.segmentation.pictures import View, draw_error
from evaluation.segmentation.scans import read_scan
from evaluation.segmentation.table import Entry
from evaluation.tables import markdown_table
from lungsynth.hounsfield import Label

__all__ = ["write_gallery"]

_FIELD_MM = 100.0  # shown of a whole slice around an error


def write_gallery(folder: Path, entry: Entry | None, images: Images) -> list[Path]:
    """Writes the pictures of a method's largest errors; what an earlier run left in the folder goes.

    Args:
        folder: `errors` of OUT.
        entry: the method; an empty gallery when None.
        images: that it was judged on.

    Returns:
        The pictures; their names tell no patient.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    failures = largest_failures(entry.outcome) if entry else []
    detector = entry.contestant.open() if entry and failures else None
    names, rows = [], []
    for number, failure in enumerate(failures, start=1):
        name = f"{number:02d}_{failure.image}.png"
        draw_error(_view(failure, images, detector), failure.sentence).save(part / name)
        names.append(name)
        rows.append([f"[{name}]({name})", failure.sentence, failure.case])
    title = f"# Largest errors: {entry.contestant.title}\n\n" if entry else "# No method was judged\n\n"
    legend = "Yellow: the readers' outline (or the composite's mask). Blue: the method's, where it has one.\n\n"
    (part / "errors.md").write_text(title + legend + markdown_table(["picture", "what happened", "image"], rows))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return [folder / name for name in names]


def _view(failure: Failure, images: Images, detector: CandidateDetector | None) -> View:
    if failure.image == "crop":
        return _crop_view(failure, next(crop for crop in images.crops if crop.nodule.id == failure.case), detector)
    if failure.image == "composite":
        return _composite_view(failure, images, detector)
    return _scan_view(failure, images)


def _crop_view(failure: Failure, crop: Crop, detector: CandidateDetector | None) -> View:
    index = int(crop.mask.sum(axis=(1, 2)).argmax())
    return View(
        hu=crop.hu[index],
        readers=crop.mask[index],
        method=_answer(detector, crop.hu, crop.spacing_mm, index),
        spacing_mm=crop.spacing_mm[1:],
    )


def _composite_view(failure: Failure, images: Images, detector: CandidateDetector | None) -> View:
    composite = next(image for image in images.composites if image.id == failure.case)
    spacing = (1.0, *composite.spacing_mm)
    return View(
        hu=composite.hu,
        readers=composite.label == Label.NODULE,
        method=_answer(detector, composite.hu[None], spacing, 0),
        spacing_mm=composite.spacing_mm,
        centre=failure.centre[1:],
        field_mm=_FIELD_MM,
        diameter_mm=failure.diameter_mm,
    )


def _scan_view(failure: Failure, images: Images) -> View:
    series = next(series for series in images.part.series if series.id == failure.case)
    scan = read_scan(images.part.folder, series)
    whole = failure.image == "lung"
    offset = scan.first if whole else 0
    index = int(np.clip(round(failure.centre[0]) - offset, 0, len(scan.hu) - 1))
    label = scan.label[index]
    return View(
        hu=scan.hu[index],
        readers=np.isin(label, (Label.LUNG, Label.NODULE)) if whole else label == Label.NODULE,
        method=None,
        spacing_mm=series.spacing_mm[1:],
        centre=None if whole else failure.centre[1:],
        field_mm=None if whole else _FIELD_MM,
        diameter_mm=failure.diameter_mm,
    )


def _answer(
    detector: CandidateDetector | None, hu: np.ndarray, spacing_mm: tuple[float, float, float], index: int
) -> np.ndarray | None:
    """The method's mask on one slice; None where it has no such map."""
    found = None if detector is None else detect(detector, hu, spacing_mm, name="gallery").nodule
    return None if found is None else found[index]
