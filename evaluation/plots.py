"""Plots as PNG files, whole or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lungsynth.io.atomic import replacing

__all__ = ["plot_file"]

_DPI = 110


@contextmanager
def plot_file(
    path: Path, *, rows: int = 1, columns: int = 1, panel_inches: tuple[float, float] = (7, 5)
) -> Iterator[list[Any]]:
    """Yields the axes of a figure, row after row, which is written when the block ends without an error.

    Args:
        path: of the PNG.
        rows: of panels.
        columns: of panels.
        panel_inches: width and height of each.
    """
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    width, height = panel_inches
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    yield list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
