"""Pictures of the judge: an error with its sentence, and FROC curves.

In a picture of an error the readers' outline is yellow, the method's blue, and what is spoken of stands in the middle,
in a red circle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import replacing
from lungsynth.types import HuPlane, MaskPlane

__all__ = ["View", "draw_error", "save_froc"]

_SIDE_PX = 448
_LINE_PX = 16
_READERS, _METHOD, _SPOKEN_OF = (255, 200, 0), (60, 170, 255), (255, 60, 60)
_LETTERS = 62  # a line of the sentence
_LEFT = 1 / 16  # of the FROC's axis

Curve = tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """A slice with what is known of it.

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


def draw_error(view: View, sentence: str) -> Image.Image:
    """A square picture in the lung window with outlines, circle and sentence."""
    grey = _cut(view, DISPLAY_WINDOW.to_grey(view.hu).astype(np.float32), order=1)
    pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    for mask, colour in ((view.readers, _READERS), (view.method, _METHOD)):
        if mask is not None:
            inside = _cut(view, mask.astype(np.float32), order=1) >= 0.5
            pixels[ndimage.binary_dilation(inside) & ~inside] = colour
    picture = Image.fromarray(pixels)
    if view.diameter_mm:
        radius = (view.diameter_mm / 2 + 2) / _step_mm(view)
        middle = _SIDE_PX / 2
        box = (middle - radius, middle - radius, middle + radius, middle + radius)
        ImageDraw.Draw(picture).ellipse(box, outline=_SPOKEN_OF)
    return _captioned(picture, sentence)


def save_froc(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Writes a PNG with FROC curves (false alarms an image, sensitivity).

    Args:
        panels: curves by method, by title of the panel.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    figure = Figure(figsize=(7 * max(1, len(panels)), 5), layout="constrained")
    for axes, (title, curves) in zip(
        np.atleast_1d(figure.subplots(1, max(1, len(panels)))), panels.items(), strict=False
    ):
        _draw_curves(axes, curves, title)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _draw_curves(axes: Any, curves: Mapping[str, Curve], title: str) -> None:
    for index, (name, (rates, found)) in enumerate(curves.items()):
        axes.step(np.maximum(rates, _LEFT), found, where="post", label=name, color=f"C{index % 10}")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**power for power in range(-3, 4)], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlim=(_LEFT, 16), ylim=(-0.02, 1.02), title=title, xlabel="false alarms an image", ylabel="sensitivity")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _step_mm(view: View) -> float:
    """Millimetres of a pixel of the picture."""
    whole = max(size * mm for size, mm in zip(view.hu.shape, view.spacing_mm, strict=True))
    return (view.field_mm or whole) / _SIDE_PX


def _cut(view: View, plane: np.ndarray, *, order: int) -> np.ndarray:
    centre = view.centre or tuple((size - 1) / 2 for size in plane.shape)
    scale = _step_mm(view) / np.asarray(view.spacing_mm)
    offset = np.asarray(centre) - scale * (_SIDE_PX - 1) / 2
    return np.asarray(
        ndimage.affine_transform(plane, scale, offset, output_shape=(_SIDE_PX, _SIDE_PX), order=order, cval=0)
    )


def _captioned(picture: Image.Image, sentence: str) -> Image.Image:
    lines = wrap(sentence, _LETTERS)
    framed = Image.new("RGB", (_SIDE_PX, _SIDE_PX + _LINE_PX * len(lines) + 6))
    framed.paste(picture, (0, 0))
    drawing, font = ImageDraw.Draw(framed), ImageFont.load_default(size=13)
    for number, line in enumerate(lines):
        drawing.text((4, _SIDE_PX + 2 + _LINE_PX * number), line, fill=(255, 255, 255), font=font)
    return framed
