"""The largest errors of a method: `errors/` with a picture and a sentence of each, made from the records.

In a picture the readers' outline is yellow, the method's blue, and what the sentence is about is in the middle, in a
red circle.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Literal
from uuid import uuid4

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from evaluation.cohort_subsets import Subset
from evaluation.composites import Composites
from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule, Vector3
from evaluation.segmentation.crops import Crop
from evaluation.segmentation.detectors import detect
from evaluation.segmentation.records import SegmentationResult
from evaluation.segmentation.scans import read_labelled_scan
from evaluation.segmentation.windows import NoduleView
from evaluation.tables import markdown_table
from lungsynth.hounsfield import DISPLAY_WINDOW, Label
from lungsynth.types import CandidateDetector, HuPlane, MaskPlane

__all__ = ["SegmentationError", "SegmentationImages", "largest_errors", "write_errors"]

ImageKind = Literal["crop", "composite", "scan", "lung"]

_SHOWN = {"crop": 6, "outline": 6, "composite": 4, "scan": 4, "false_positive": 4, "lung": 2}  # pictures of each kind
_MIN_OUTLINE_MM = 6.0  # one pixel more or less decides the Dice of smaller nodules
_GOOD_DICE = 0.8  # readers agree no better; better outlines are no errors
_SAME_PLACE_PX = 8  # false positives of composites that are nearer than this are one
_TEXTURES = {
    "ground_glass": "ground-glass nodule",
    "part_solid": "part-solid nodule",
    "solid": "solid nodule",
    "unknown": "nodule of unknown texture",
}

# The pictures.
_FIELD_MM = 100.0  # width shown of a whole slice
_SIDE_PX, _LINE_PX = 448, 16
_CAPTION_LETTERS = 62  # in a line
_READERS_COLOUR, _METHOD_COLOUR, _CIRCLE_COLOUR = (255, 200, 0), (60, 170, 255), (255, 60, 60)
_CIRCLE_MARGIN_MM = 2.0


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationImages:
    """All images that a method is evaluated on, and what could not be read of them."""

    subset: Subset
    windows: Sequence[NoduleView]
    crops: Sequence[Crop]
    composites: Composites
    problems: tuple[str, ...]
    identity: str


@dataclass(frozen=True, kw_only=True)
class SegmentationError:
    """One error.

    Args:
        image: kind of image that shows it.
        case: id of the crop, composite or series.
        sentence: what happened, without any id.
        centre: (slice, row, column) to look at, in the image's voxels.
        diameter_mm: of what is there; 0 for a whole slice.
    """

    image: ImageKind
    case: str
    sentence: str
    centre: Vector3
    diameter_mm: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ErrorView:
    """A slice with outlines.

    Args:
        hu: (H, W).
        readers: (H, W).
        method: (H, W); None where it is not known.
        spacing_mm: (row, column).
        centre: (row, column) to look at; the middle of the slice when None.
        field_mm: width of what is shown; the whole slice when None.
        diameter_mm: of the circle; none when 0.
    """

    hu: HuPlane
    readers: MaskPlane
    method: MaskPlane | None
    spacing_mm: tuple[float, float]
    centre: tuple[float, float] | None = None
    field_mm: float | None = None
    diameter_mm: float = 0.0

    @property
    def pixel_mm(self) -> float:
        """Size of a pixel of the picture."""
        whole = max(size * mm for size, mm in zip(self.hu.shape, self.spacing_mm, strict=True))
        return (self.field_mm or whole) / _SIDE_PX


def largest_errors(result: SegmentationResult) -> list[SegmentationError]:
    """The largest nodules missed, the worst outlines, the most probable false positives, and the worst lungs."""
    point = result.operating_point
    return [
        *_largest(_missed(result.crops.cases, "crop", point), _SHOWN["crop"]),
        *_bad_outlines(result)[: _SHOWN["outline"]],
        *_largest(_missed(result.composites, "composite", point), _SHOWN["composite"]),
        *_largest(_missed(result.scans.cases, "scan", point), _SHOWN["scan"]),
        *_distinct_places(_largest(_false_positives(result.composites, "composite", point), None))[
            : _SHOWN["false_positive"]
        ],
        *_largest(_false_positives(result.scans.cases, "scan", point), _SHOWN["false_positive"]),
        *_bad_lungs(result)[: _SHOWN["lung"]],
    ]


def write_errors(
    folder: Path,
    title: str,
    result: SegmentationResult | None,
    detector: CandidateDetector | None,
    images: SegmentationImages,
) -> tuple[Path, ...]:
    """Writes the pictures of a method's largest errors, and `errors.md`; replaces what an earlier run wrote.

    Args:
        folder: of the pictures.
        title: of the method.
        result: its records; no pictures when None.
        detector: the method, for its outlines.
        images: that it was evaluated on.

    Returns:
        The pictures; their names tell no patient.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    names, rows = [], []
    for number, error in enumerate(largest_errors(result) if result else [], start=1):
        name = f"{number:02d}_{error.image}.png"
        _draw(_view(error, images, detector), error.sentence).save(temporary / name)
        names.append(name)
        rows.append([f"[{name}]({name})", error.sentence, error.case])
    heading = f"# Largest errors: {title}\n\n" if result else "# No method was evaluated\n\n"
    legend = "Yellow: the readers' outline (or the composite's mask). Blue: the method's, where it has one.\n\n"
    (temporary / "errors.md").write_text(
        heading + legend + markdown_table(["picture", "what happened", "image"], rows), encoding="utf-8"
    )
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return tuple(folder / name for name in names)


# Sentences


def _largest(errors: Iterable[tuple[float, SegmentationError]], count: int | None) -> list[SegmentationError]:
    return [error for _, error in sorted(errors, key=lambda item: -item[0])[:count]]


def _distinct_places(errors: Sequence[SegmentationError]) -> list[SegmentationError]:
    """One of those at the same place: a lung carries several composites, and its false positive is in each."""
    places: dict[tuple[int, int], SegmentationError] = {}
    for error in errors:
        _, row, column = error.centre
        places.setdefault((round(row / _SAME_PLACE_PX), round(column / _SAME_PLACE_PX)), error)
    return list(places.values())


def _missed(cases: Sequence[Case], image: ImageKind, point: float) -> Iterator[tuple[float, SegmentationError]]:
    """(diameter, error) of the lesions that no candidate at the operating point hits."""
    for case in cases:
        for nodule in case.nodules:
            if not nodule.is_found(point):
                sentence = f"Missed on a {image}: a {_describe(nodule)}; {_why_missed(nodule, point)}."
                yield nodule.diameter_mm, _error_at(nodule, image, case, sentence)


def _why_missed(nodule: ReferenceNodule, point: float) -> str:
    if nodule.score is not None:
        return f"a candidate lies on it, but its probability {nodule.score:.2f} is below {point:.2f}"
    if nodule.nearest_mm is None:
        return "there is no candidate at all"
    return (
        f"the nearest candidate lies {nodule.nearest_mm:.1f} mm from its centre, with probability "
        f"{nodule.nearest_probability or 0:.2f}"
    )


def _bad_outlines(result: SegmentationResult) -> list[SegmentationError]:
    """Nodules that were found but outlined badly, the worst first."""
    counts: dict[str, list[PixelCounts]] = {}
    for count in result.crops.pixels:
        counts.setdefault(count.nodule, []).append(count)
    errors = []
    for case in result.crops.cases:
        nodule = case.nodules[0]
        if case.id in counts and nodule.is_found(result.operating_point) and nodule.diameter_mm >= _MIN_OUTLINE_MM:
            errors.append(_outline(case, nodule, counts[case.id]))
    return [error for dice, error in sorted(errors, key=lambda item: item[0]) if dice < _GOOD_DICE]


def _outline(case: Case, nodule: ReferenceNodule, counts: Sequence[PixelCounts]) -> tuple[float, SegmentationError]:
    """(Dice, error)."""
    true, false, lost = (
        sum(getattr(count, name) for count in counts) for name in ("true_positive", "false_positive", "false_negative")
    )
    dice = 2 * true / (2 * true + false + lost)
    sentence = (
        f"Dice {dice:.2f} on a crop: of a {_describe(nodule)}, {lost / (true + lost):.0%} of the pixels are missed, "
        f"and {false / (true + lost):.0%} as many lie outside."
    )
    return dice, _error_at(nodule, "crop", case, sentence)


def _false_positives(
    cases: Sequence[Case], image: ImageKind, point: float
) -> Iterator[tuple[float, SegmentationError]]:
    """(probability, error) of the most probable false positive of each image."""
    for case in cases:
        if case.false_positives and case.false_positives[0].probability >= point:
            worst = case.false_positives[0]
            distance = "" if worst.nearest_mm is None else f", {worst.nearest_mm:.0f} mm from the nearest nodule"
            what = f"probability {worst.probability:.2f}, {worst.diameter_mm:.1f} mm{distance}"
            sentence = f"False positive on a {image}: {what}."
            yield worst.probability, _error_at(worst, image, case, sentence)


def _bad_lungs(result: SegmentationResult) -> list[SegmentationError]:
    return [
        SegmentationError(
            image="lung",
            case=score.series,
            sentence=f"Lungs: Dice {score.worst_dice:.3f} on the worst slice of a scan of Dice {score.dice:.3f}.",
            centre=(float(score.worst_slice), 0.0, 0.0),
            diameter_mm=0.0,
        )
        for score in sorted(result.scans.lungs, key=lambda score: score.worst_dice)
    ]


def _error_at(
    finding: ReferenceNodule | FalsePositive, image: ImageKind, case: Case, sentence: str
) -> SegmentationError:
    return SegmentationError(
        image=image, case=case.id, sentence=sentence, centre=finding.centre, diameter_mm=finding.diameter_mm
    )


def _describe(nodule: ReferenceNodule) -> str:
    return f"{_TEXTURES.get(nodule.category, nodule.category)} of {nodule.diameter_mm:.1f} mm"


# Views


def _view(error: SegmentationError, images: SegmentationImages, detector: CandidateDetector | None) -> ErrorView:
    if error.image == "crop":
        return _crop_view(next(crop for crop in images.crops if crop.nodule.nodule_id == error.case), detector)
    if error.image == "composite":
        return _composite_view(error, images, detector)
    return _scan_view(error, images)


def _crop_view(crop: Crop, detector: CandidateDetector | None) -> ErrorView:
    index = int(crop.mask.sum(axis=(1, 2)).argmax())
    return ErrorView(
        hu=crop.hu[index],
        readers=crop.mask[index],
        method=_predicted_mask(detector, crop.hu, crop.spacing_mm, index),
        spacing_mm=crop.spacing_mm[1:],
    )


def _composite_view(
    error: SegmentationError, images: SegmentationImages, detector: CandidateDetector | None
) -> ErrorView:
    composite = next(image for image in images.composites if image.id == error.case)
    return ErrorView(
        hu=composite.hu,
        readers=composite.label == Label.NODULE,
        method=_predicted_mask(detector, composite.hu[None], (1.0, *composite.spacing_mm), 0),
        spacing_mm=composite.spacing_mm,
        centre=error.centre[1:],
        field_mm=_FIELD_MM,
        diameter_mm=error.diameter_mm,
    )


def _scan_view(error: SegmentationError, images: SegmentationImages) -> ErrorView:
    series = next(series for series in images.subset.series if series.series_id == error.case)
    scan = read_labelled_scan(images.subset, series)
    is_lung = error.image == "lung"
    offset = scan.first if is_lung else 0
    index = int(np.clip(round(error.centre[0]) - offset, 0, len(scan.hu) - 1))
    label = scan.label[index]
    return ErrorView(
        hu=scan.hu[index],
        readers=np.isin(label, (Label.LUNG, Label.NODULE)) if is_lung else label == Label.NODULE,
        method=None,
        spacing_mm=series.spacing_mm[1:],
        centre=None if is_lung else error.centre[1:],
        field_mm=None if is_lung else _FIELD_MM,
        diameter_mm=error.diameter_mm,
    )


def _predicted_mask(
    detector: CandidateDetector | None, hu: np.ndarray, spacing_mm: Vector3, index: int
) -> np.ndarray | None:
    """The method's mask on one slice; None where it has no such map."""
    mask = None if detector is None else detect(detector, hu, spacing_mm, name="errors").nodule
    return None if mask is None else mask[index]


# Pictures


def _draw(view: ErrorView, sentence: str) -> Image.Image:
    """A square picture in the lung window with outlines, circle and sentence."""
    grey = _resample(view, DISPLAY_WINDOW.to_grey(view.hu).astype(np.float32))
    pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    for mask, colour in ((view.readers, _READERS_COLOUR), (view.method, _METHOD_COLOUR)):
        if mask is not None:
            inside = _resample(view, mask.astype(np.float32)) >= 0.5
            pixels[ndimage.binary_dilation(inside) & ~inside] = colour
    picture = Image.fromarray(pixels)
    if view.diameter_mm:
        radius, middle = (view.diameter_mm / 2 + _CIRCLE_MARGIN_MM) / view.pixel_mm, _SIDE_PX / 2
        box = (middle - radius, middle - radius, middle + radius, middle + radius)
        ImageDraw.Draw(picture).ellipse(box, outline=_CIRCLE_COLOUR)
    return _captioned(picture, sentence)


def _resample(view: ErrorView, plane: np.ndarray) -> np.ndarray:
    """A plane on the picture's pixels, linearly interpolated; 0 outside the slice."""
    centre = view.centre or tuple((size - 1) / 2 for size in plane.shape)
    scale = view.pixel_mm / np.asarray(view.spacing_mm)
    offset = np.asarray(centre) - scale * (_SIDE_PX - 1) / 2
    return np.asarray(
        ndimage.affine_transform(plane, scale, offset, output_shape=(_SIDE_PX, _SIDE_PX), order=1, cval=0)
    )


def _captioned(picture: Image.Image, sentence: str) -> Image.Image:
    lines = wrap(sentence, _CAPTION_LETTERS)
    framed = Image.new("RGB", (_SIDE_PX, _SIDE_PX + _LINE_PX * len(lines) + 6))
    framed.paste(picture, (0, 0))
    drawing, font = ImageDraw.Draw(framed), ImageFont.load_default(size=13)
    for number, line in enumerate(lines):
        drawing.text((4, _SIDE_PX + 2 + _LINE_PX * number), line, fill=(255, 255, 255), font=font)
    return framed
