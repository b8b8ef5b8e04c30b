"""One picture of the experiment: each figure by dose, with the controls beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.utility.report import ArmResult
from lungsynth.io.atomic import replacing

__all__ = ["save_plot"]

_PANELS = (
    ("classification", "balanced_accuracy", "classifier: balanced accuracy"),
    ("segmentation", "dice", "segmentation: Dice on crops"),
    ("segmentation", "sensitivity, composites", "segmentation: sensitivity, composites"),
)
_WIDTH = 0.8  # of the space between two arms, for the numbers of patients beside one another


def save_plot(lines: Sequence[ArmResult], path: Path) -> None:
    """Writes a PNG: a panel a figure, an arm a place, a colour a number of patients, bars are 95 % intervals.

    Args:
        lines: of both experiments.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    panels = [panel for panel in _PANELS if any(line.experiment == panel[0] for line in lines)]
    figure = Figure(figsize=(6 * max(1, len(panels)), 5), layout="constrained")
    for place, (experiment, name, title) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        _draw(axes, [line for line in lines if line.experiment == experiment], name, title)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _draw(axes: Any, lines: Sequence[ArmResult], name: str, title: str) -> None:
    arms = list(dict.fromkeys(line.arm for line in lines))
    numbers = sorted({line.patients for line in lines})
    for index, patients in enumerate(numbers):
        shift = _WIDTH * ((index + 0.5) / len(numbers) - 0.5)
        for line in (line for line in lines if line.patients == patients):
            found = line.figures.get(name)
            if found is None or found.value is None:
                continue
            low, high = (found.value if end is None else end for end in (found.low, found.high))
            bars = [[max(0.0, found.value - low)], [max(0.0, high - found.value)]]
            label = f"{patients} patients" if line.arm == arms[0] else None
            style = {"color": f"C{index}", "fmt": "o", "capsize": 2, "label": label}
            axes.errorbar([arms.index(line.arm) + shift], [found.value], yerr=bars, **style)
    axes.set_xticks(range(len(arms)), [arm.name.replace("_", " ") for arm in arms], rotation=60, ha="right")
    axes.set(title=title)
    axes.grid(alpha=0.3, axis="y")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
