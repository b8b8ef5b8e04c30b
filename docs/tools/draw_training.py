"""Draws bundles/wcapsgan_bundle/docs/curves.png: what the logs of generators' trainings say, a row a layer.

python docs/draw_training.py OUT.png --row NAME STEPS_PER_EPOCH LOG [LOG ...] [--row ...]

Logs of one row follow each other, as a training that was resumed or grown does.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

LINE = re.compile(r"Epoch\[(\d+)\] Metrics -- (.*)")
FIGURES = (
    ("wasserstein", "critic's Wasserstein distance"),
    ("energy", "energy distance of batches"),
    ("swd", "swd to validation samples"),
)
Curve = tuple[list[float], list[float]]


def main() -> None:
    """Reads the logs and draws one panel a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--row", nargs="+", action="append", required=True, metavar="NAME STEPS LOG")
    args = parser.parse_args()
    figure, axes = plt.subplots(len(args.row), len(FIGURES), figsize=(12, 2.8 * len(args.row)), squeeze=False)
    for row, (name, steps, *logs) in zip(axes, args.row, strict=True):
        curves, joints = read(logs, int(steps))
        for panel, (key, title) in zip(row, FIGURES, strict=True):
            x, y = curves[key]
            panel.plot(x, y, marker="o" if key == "swd" else "", markersize=3, linewidth=1)
            for joint in joints:
                panel.axvline(joint, color="0.7", linewidth=0.8, linestyle=":")
            if key == "wasserstein":
                panel.set_yscale("symlog", linthresh=0.1)
            panel.set_title(f"{name}: {title}", fontsize=9)
            panel.set_xlabel("generator steps", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.target, dpi=100)


def read(logs: Sequence[str], steps: int) -> tuple[dict[str, Curve], list[float]]:
    """Curves by figure, over generator steps, and where one log follows another."""
    curves: dict[str, Curve] = {key: ([], []) for key, _ in FIGURES}
    joints, done = [], 0.0
    for log in logs:
        for _, found in LINE.findall(Path(log).read_text(encoding="utf-8")):
            values = dict(re.findall(r"(\w+): (-?[\d.]+)", found))
            done += steps * ("wasserstein" in values)  # the others are validations
            for key, (x, y) in curves.items():
                if key in values:
                    x.append(done)
                    y.append(float(values[key]))
        joints.append(done)
    return curves, joints[:-1]


if __name__ == "__main__":
    main()
