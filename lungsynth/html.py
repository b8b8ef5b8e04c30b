"""Pages to look at: one self-contained HTML file that needs no network, with its pictures and charts inside.

Every function gives a piece of HTML; what comes from outside is escaped here. Equal input gives equal bytes, so a page
holds no time and no path.
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["bars", "code", "curves", "facts", "page", "paragraph", "pictures", "section", "table", "warnings"]

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee4; --fill: #f5f7f9; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1040px; padding: 24px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 8px; border-top: 1px solid var(--line);
padding-top: 16px; } p { max-width: 76ch; margin: 6px 0; } .soft, figcaption, th { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 10px; margin: 12px 0; }
.facts div { background: var(--fill); border-radius: 6px; padding: 10px 12px; } .facts b { display: block;
font-size: 21px; font-weight: 600; } table { border-collapse: collapse; margin: 10px 0; } td, th { text-align: left;
padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; } th { font-weight: 500; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; } figure { margin: 0; }
figure img { display: block; max-width: 100%; background: #000; } figcaption { font-size: 13px; margin-top: 3px; }
.warnings { background: #fff6e0; border-left: 4px solid #d99a00; padding: 8px 14px; margin: 14px 0; }
.warnings ul { margin: 4px 0; padding-left: 20px; } .charts { display: flex; flex-wrap: wrap; gap: 20px; }
pre { background: var(--fill); padding: 10px 12px; border-radius: 6px; overflow-x: auto; font-size: 13px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
"""
_COLOURS = ("#2f6fdb", "#9aa5b1", "#2a9d6f")
_CHART_HEIGHT, _BAR, _GAP = 130, 15, 14  # pixels
_TOP, _BOTTOM, _LEFT = 30, 34, 6
_AXIS, _PLOT_WIDTH, _PLOT_POINTS = 40, 460, 61
_LINE_COLOURS = ("#1b1f24", "#2f6fdb", "#2a9d6f", "#d97a00", "#9a4fd0")
_LETTER, _LEGEND = 6, 130  # widths of a letter, and of a name under the chart


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: also of the browser's tab.
        subtitle: a sentence under it.
        sections: pieces of HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>\n' + "\n".join(sections) + "</body></html>\n"
    )


def section(title: str, *pieces: str) -> str:
    """A heading and what stands under it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(pieces)


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """A command or file as it stands."""
    return f"<pre>{escape(text)}</pre>"


def facts(values: Mapping[str, Any]) -> str:
    """Figures with what they count, side by side."""
    cells = (f"<div><b>{escape(str(value))}</b>{escape(name)}</div>" for name, value in values.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def warnings(texts: Sequence[str]) -> str:
    """What a reader should know before using the data; nothing where there is nothing."""
    if not texts:
        return ""
    return f'<div class="warnings"><ul>{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul></div>'


def pictures(shown: Iterable[tuple[Image.Image, str]], *, photo: bool = False) -> str:
    """Pictures with captions, side by side.

    Args:
        shown: picture and caption of each.
        photo: as JPEG, a fifth of the size; else as they are, bit for bit.
    """
    figures = (
        f'<figure style="width:{image.width}px"><img src="{_data(image, photo=photo)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in shown
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """A chart of shares: a group of bars for each class, a bar for each series.

    Args:
        title: what is counted, with its unit.
        names: of the classes.
        series: by name, a count or share for each class; scaled to a sum of 1. One without any is left out.
    """
    shares = {name: [value / sum(values) for value in values] for name, values in series.items() if sum(values) > 0}
    group = max(_BAR * max(len(shares), 1), _LETTER * max(map(len, names))) + _GAP
    width, height = max(_LEFT + group * len(names), _LEGEND * len(shares)), _TOP + _CHART_HEIGHT + _BOTTOM
    inset = (group - _GAP - _BAR * len(shares)) / 2
    highest = max((share for values in shares.values() for share in values), default=1.0)
    pieces = [f'<text x="0" y="12" font-weight="600">{escape(title)}</text>']
    for number, (name, values) in enumerate(shares.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        pieces.append(f'<rect x="{number * _LEGEND}" y="{height - 12}" width="9" height="9" fill="{colour}"/>')
        pieces.append(f'<text x="{number * _LEGEND + 13}" y="{height - 4}">{escape(name)}</text>')
        for index, share in enumerate(values):
            tall = _CHART_HEIGHT * share / highest
            x, y = _LEFT + index * group + inset + number * _BAR, _TOP + _CHART_HEIGHT - tall
            pieces.append(f'<rect x="{x}" y="{y:.1f}" width="{_BAR - 2}" height="{tall:.1f}" fill="{colour}"/>')
            if share:
                pieces.append(f'<text x="{x - 1}" y="{y - 3:.1f}" font-size="9">{100 * share:.0f}</text>')
    for index, name in enumerate(names):
        middle = _LEFT + index * group + (group - _GAP) / 2
        text = f'<text x="{middle:.1f}" y="{_TOP + _CHART_HEIGHT + 13}" text-anchor="middle">{escape(name)}</text>'
        pieces.append(text)
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(title)}">{"".join(pieces)}</svg>'


def curves(
    title: str,
    levels: Sequence[float],
    fits: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    seen: Mapping[str, Sequence[float | None]],
    *,
    log: bool,
) -> str:
    """A chart of probabilities over a number.

    Args:
        title: the number, with its unit.
        levels: that were seen, in any order.
        fits: by name, the probability at an array of numbers.
        seen: by name of a fit, the share at each level, shown as dots; None where unknown.
        log: show the numbers on a scale of ratios.
    """
    low, high = min(levels), max(levels)

    def x_of(number: Any) -> Any:
        share = np.log(number / low) / np.log(high / low) if log else (number - low) / (high - low)
        return _AXIS + share * _PLOT_WIDTH

    def y_of(share: Any) -> Any:
        return _TOP + _CHART_HEIGHT * (1 - share)

    along = np.geomspace(low, high, _PLOT_POINTS) if log else np.linspace(low, high, _PLOT_POINTS)
    pieces = [f'<text x="0" y="12" font-weight="600">{escape(title)}</text>']
    for share in (0.0, 0.5, 0.8, 1.0):
        y = y_of(share)
        pieces.append(f'<path d="M{_AXIS} {y:.1f}h{_PLOT_WIDTH}" stroke="#d9dee4"/>')
        pieces.append(f'<text x="{_AXIS - 4}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for level in sorted(levels):
        middle = f'x="{x_of(level):.1f}" y="{_TOP + _CHART_HEIGHT + 13}" text-anchor="middle"'
        pieces.append(f"<text {middle}>{level:g}</text>")
    height = _TOP + _CHART_HEIGHT + _BOTTOM
    for number, (name, fit) in enumerate(fits.items()):
        colour = _LINE_COLOURS[number % len(_LINE_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_of(along), y_of(fit(along)), strict=True))
        pieces.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for level, found in zip(levels, seen.get(name, ()), strict=False):
            if found is not None:
                pieces.append(f'<circle cx="{x_of(level):.1f}" cy="{y_of(found):.1f}" r="3.5" fill="{colour}"/>')
        pieces.append(f'<rect x="{number * _LEGEND}" y="{height - 12}" width="9" height="9" fill="{colour}"/>')
        pieces.append(f'<text x="{number * _LEGEND + 13}" y="{height - 4}">{escape(name)}</text>')
    width = max(_AXIS + _PLOT_WIDTH + 16, _LEGEND * len(fits))
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(title)}">{"".join(pieces)}</svg>'


def _data(image: Image.Image, *, photo: bool) -> str:
    """A picture as the address that holds it."""
    buffer = io.BytesIO()
    if photo:
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    else:
        image.save(buffer, format="PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
