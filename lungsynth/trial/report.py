"""The report of a trial: `report.json` with every figure, and `report.html`, which shows them with pictures.

Both follow from the pairs and the answers alone, and hold no time and no path, so that equal trials give equal bytes.
Patients are numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from lungsynth import html
from lungsynth.hounsfield import AIR_HU, DISPLAY_WINDOW
from lungsynth.io.atomic import write_json, write_text
from lungsynth.trial.design import FACTORS, TrialDesign, in_words, level_label
from lungsynth.trial.detections import TrialImage
from lungsynth.trial.outcomes import DetectorAnswers, JudgedDetector, Pair, Truth, compare_detectors
from lungsynth.trial.statistics import Curve, Interval

__all__ = ["NO_EVIDENCE", "write_reports"]

NO_EVIDENCE = (
    "A virtual trial is no clinical evidence: it tells how a detector answers to synthetic nodules on these slices, "
    "not how it performs on patients."
)
_WORST = 6  # cells that are shown
_PICTURES = 3  # of missed nodules in each
_FEW_PATIENTS = 10
_CROP_MM = 45.0  # width of a picture
_PICTURE_PX = 180
_OUTLINE = (255, 196, 0)
_NAMED_ERRORS = 200  # samples without an answer that are listed one by one

Images = Callable[[str], tuple[TrialImage, Truth | None]]


def write_reports(
    folder: Path,
    pairs: Sequence[Pair],
    answers: Sequence[DetectorAnswers],
    design: TrialDesign,
    images: Images,
    *,
    seed: int,
    rate: float | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Writes `report.json` and `report.html`.

    Args:
        folder: of the trial.
        pairs: all.
        answers: of each detector; the first two are compared.
        design: of the trial.
        images: gives an image by its name.
        seed: of the draws.
        rate: candidates on a slice without nodules that decide the operating points; None for the detectors' own.

    Returns:
        The content of `report.json`, and what matters of it in lines.
    """
    detectors = [JudgedDetector(answers=own, pairs=pairs, design=design, seed=seed, rate=rate) for own in answers]
    report = {
        "design": design.to_json(),
        "seed": seed,
        "pairs": len(pairs),
        "hosts": len({pair.host for pair in pairs}),
        "patients": len({pair.patient for pair in pairs}),
        "candidates_a_slice": rate,
        "detectors": {own.name: own.figures for own in detectors},
        "comparison": compare_detectors(detectors[:2], design, seed=seed) if len(detectors) > 1 else None,
        "note": NO_EVIDENCE,
    }
    write_json(folder / "report.json", report, indent=1)
    write_text(folder / "report.html", _page(report, detectors, design, images))
    return report, [line for own in detectors for line in _lines(own)]


# In lines


def _lines(own: JudgedDetector) -> list[str]:
    """What matters, in words."""
    figures = own.figures
    lines = [
        f"{own.name}: finds {_percent(own.trials.sensitivity())} of {len(own.pairs)} nodules at "
        f"{own.point:.2f}; {figures['failed']} without an answer"
    ]
    caused = own.caused
    if caused.value is not None:
        lines.append(f"  candidates that an insertion caused elsewhere: in {_percent(caused)} of the pairs")
    for name, fit in own.curves.items():
        for key, curve in fit.items():
            halves = ", ".join(f"{level:.0%} at {_stimulus(point, curve)}" for level, point in curve.points.items())
            lines.append(f"  {FACTORS[name].title}, {key}: {halves}")
    if own.cells:
        levels, worst = own.cells[0]
        lines.append(f"  worst: {in_words(levels)}: {_percent(worst)}")
    return lines


# The page


def _page(report: Mapping[str, Any], detectors: Sequence[JudgedDetector], design: TrialDesign, images: Images) -> str:
    subtitle = (
        f"{report['pairs']} pairs of slices with and without a nodule, on {report['hosts']} slices of "
        f"{report['patients']} patients. {NO_EVIDENCE}"
    )
    sections = [html.warnings(list(_warnings(report, detectors))), *_design_section(report, design)]
    if report["comparison"]:
        sections.append(_comparison_section(report["comparison"]))
    for own in detectors:
        sections += _detector_sections(own, images)
    return html.page("Virtual trial", subtitle, sections)


def _warnings(report: Mapping[str, Any], detectors: Sequence[JudgedDetector]) -> Iterator[str]:
    if report["patients"] < _FEW_PATIENTS:
        yield (
            f"The slices are of {report['patients']} patients: the intervals, which are over patients, say little of "
            "others."
        )
    for own in detectors:
        if own.figures["failed"]:
            yield f"{own.name} gave no answer to {own.figures['failed']} pairs, which count nowhere below."
        if (caused := own.caused.value) is not None and caused > 0.01:
            yield (
                f"{own.name}: in {caused:.1%} of the pairs the insertion caused a candidate elsewhere, more than 1 %: "
                "composites may disturb it."
            )


def _design_section(report: Mapping[str, Any], design: TrialDesign) -> Iterator[str]:
    rows = [(FACTORS[name].title, ", ".join(map(level_label, levels))) for name, levels in design.factors.items()]
    yield html.section("Design", html.table(("factor", "levels"), rows))


def _comparison_section(comparison: Mapping[str, Any]) -> str:
    rows = [("all", "", *_comparison_cells(comparison["all"]))]
    for name, levels in comparison["factors"].items():
        rows += [(FACTORS[name].title, level, *_comparison_cells(own)) for level, own in levels.items()]
    head = ("", "", "difference", "only the first", "only the second", "p (patients)", "p (McNemar)")
    text = (
        f"{comparison['first']} less {comparison['second']}, on pairs that both answered. p over patients swaps them "
        "within whole patients; McNemar's takes all pairs for independent."
    )
    return html.section("Side by side", html.paragraph(text), html.table(head, rows))


def _comparison_cells(own: Mapping[str, Any] | None) -> tuple[str, ...]:
    if own is None:
        return ("no pair that both answered", "", "", "", "")
    difference = Interval(**own["difference"])
    counts = str(own["only_first"]), str(own["only_second"])
    return (_points(difference), *counts, _p(own["p_patients"]), _p(own["p_mcnemar"]))


def _detector_sections(own: JudgedDetector, images: Images) -> Iterator[str]:
    figures = own.figures
    facts = {
        "of the nodules found": _percent(own.trials.sensitivity()),
        "operating point": f"{own.point:.3g}",
        "candidates a slice without nodule": _number(figures["candidates_a_slice_without"]),
        "pairs with a candidate caused elsewhere": _percent(own.caused),
        "places marked without the nodule, too": _share(figures["marked_without_share"]),
        "pairs without an answer": figures["failed"],
    }
    yield html.section(own.name, html.facts(facts), *_factor_tables(own))
    if own.curves:
        yield html.section(f"{own.name}: from which stimulus on", *_curve_pieces(own))
    if own.interactions:
        yield html.section(f"{own.name}: what does not add up", *_interaction_pieces(own))
    yield html.section(f"{own.name}: worst cells", *_worst_pieces(own, images))
    if figures["errors"] or figures["failed_without"]:
        yield html.section(f"{own.name}: without an answer", *_error_pieces(own))


def _factor_tables(own: JudgedDetector) -> Iterator[str]:
    for name in own.design.varied:
        rows = [(level, _percent(interval), interval.n) for level, interval in own.trials.by_level(name).items()]
        p = own.trials.effect_p(name)
        yield html.paragraph(f"{FACTORS[name].title}: levels differ with p {_p(p)}.")
        yield html.table(("level", "found (95 % over patients)", "pairs"), rows)


def _curve_pieces(own: JudgedDetector) -> Iterator[str]:
    for name, fit in own.curves.items():
        levels = [float(level) for level in own.design.factors[name]]  # type: ignore[arg-type]
        seen = {"all": list(own.trials.by_level(name).values())}
        series = {key: curve.at for key, curve in fit.items()}
        points = {key: [interval.value for interval in values] for key, values in seen.items()}
        yield html.curves(FACTORS[name].title, levels, series, points, log=fit["all"].log)
        rows = [(key, *(_stimulus(point, curve) for point in curve.points.values())) for key, curve in fit.items()]
        yield html.table((FACTORS[name].title, "50 % found", "80 % found"), rows)


def _interaction_pieces(own: JudgedDetector) -> Iterator[str]:
    yield html.paragraph(
        "Cells whose sensitivity differs from what the two factors give each by itself. p is over patients and for all "
        "pairs of factors together (Holm)."
    )
    rows = [
        (
            " x ".join(FACTORS[name].title for name in item.factors),
            in_words(dict(zip(item.factors, item.levels, strict=True))),
            f"{item.sensitivity:.0%}",
            f"{max(0.0, min(1.0, item.expected)):.0%}",
            _p(p),
        )
        for item, p in own.interactions
    ]
    yield html.table(("factors", "cell that deviates most", "found", "expected", "p"), rows)


def _worst_pieces(own: JudgedDetector, images: Images) -> Iterator[str]:
    for levels, interval in own.cells[:_WORST]:
        yield html.paragraph(f"{in_words(levels) or 'all'}: {_percent(interval)} of {interval.n} found.")
        shown = []
        for pair in _missed(own, levels):
            shown.append((_picture(own, pair, images), f"patient {pair.patient}: with, without, outlined"))
        yield html.pictures(shown)


def _missed(own: JudgedDetector, levels: Mapping[str, str]) -> list[Pair]:
    """Missed pairs of a cell, at most as many as are shown, of different hosts first."""
    missed = [
        (pair, outcome)
        for pair, outcome in zip(own.pairs, own.outcomes, strict=True)
        if outcome.found is False and all(pair.levels[name] == level for name, level in levels.items())
    ]
    missed.sort(key=lambda item: (item[1].score or 0.0, item[0].id))
    return [pair for pair, _ in missed[:_PICTURES]]


def _picture(own: JudgedDetector, pair: Pair, images: Images) -> Image.Image:
    """The place of a nodule: with it, without it, and with its outline."""
    with_nodule, truth = images(pair.id)
    without, _ = images(own.answers.without[pair.id])
    row_mm, column_mm = with_nodule.spacing_mm[1:]
    half = int(_CROP_MM / 2 / row_mm), int(_CROP_MM / 2 / column_mm)
    top, left = int(pair.row_px), int(pair.col_px)  # of the crop, once the planes are padded by half of it
    window = slice(top, top + 2 * half[0]), slice(left, left + 2 * half[1])
    margin = (half[0], half[0]), (half[1], half[1])
    planes = [np.pad(image.hu[0], margin, constant_values=AIR_HU)[window] for image in (with_nodule, without)]
    tiles = [_tile(plane) for plane in planes]
    if truth is not None:
        tiles.append(_tile(planes[0], np.pad(truth.mask[0], margin)[window]))
    joined = Image.new("RGB", (_PICTURE_PX * len(tiles) + 2 * (len(tiles) - 1), _PICTURE_PX), (255, 255, 255))
    for index, tile in enumerate(tiles):
        joined.paste(tile, (index * (_PICTURE_PX + 2), 0))
    return joined


def _tile(hu: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    size = (_PICTURE_PX, _PICTURE_PX)
    grey = Image.fromarray(DISPLAY_WINDOW.to_grey(hu)).resize(size, Image.Resampling.BILINEAR)
    pixels = np.stack([np.asarray(grey)] * 3, axis=-1).copy()
    if mask is not None:
        shown = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(shown) >= 128
        pixels[ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_dilation(inside)] = _OUTLINE
    return Image.fromarray(pixels)


def _error_pieces(own: JudgedDetector) -> Iterator[str]:
    yield html.table(("what happened", "pairs"), sorted(own.figures["errors"].items()))
    if own.figures["failed_without"]:
        yield html.paragraph(f"{own.figures['failed_without']} slices without a nodule have no answer, either.")
    rows = [
        (pair.id, in_words(pair.levels), outcome.error)
        for pair, outcome in zip(own.pairs, own.outcomes, strict=True)
        if outcome.error
    ]
    yield html.table(("pair", "cell", "what happened"), rows[:_NAMED_ERRORS])
    if len(rows) > _NAMED_ERRORS:
        yield html.paragraph(f"And {len(rows) - _NAMED_ERRORS} more; detections/{own.name} has them.")


# Words


def _percent(interval: Interval) -> str:
    if interval.value is None:
        return "unknown"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.1%}"
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _points(interval: Interval) -> str:
    if interval.value is None:
        return "unknown"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:+.1f} points"
    return f"{100 * interval.value:+.1f} points ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _stimulus(point: Interval, curve: Curve) -> str:
    low, high = curve.tested
    if point.value is None:
        return "not reached"
    if point.value < low:
        return f"below {low:g}"
    if point.value > high:
        return f"above {high:g}"
    lower = f"{point.low:.1f}" if point.low is not None and point.low >= low else f"<{low:g}"
    upper = f"{point.high:.1f}" if point.high is not None and point.high <= high else f">{high:g}"
    return f"{point.value:.1f} ({lower} to {upper})"


def _p(value: float | None) -> str:
    return "unknown" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
