"""Draws docs/images/trial.png: a trial's curves over the diameter, and pairs of slices as its report shows them.

python docs/tools/draw_trial.py TRIAL docs/images/trial.png
"""

import argparse
import base64
import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.plots import plot_file

PICTURES = 3
COLOURS = {"all": "0.1", "solid": "C0", "part_solid": "C1", "ground_glass": "C2"}


def main() -> None:
    """Reads a trial's report and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    report = json.loads((args.trial / "report.json").read_text(encoding="utf-8"))
    with plot_file(args.target, columns=len(report["detectors"])) as axes:
        for panel, (name, own) in zip(axes, report["detectors"].items(), strict=False):
            draw_curves(panel, name, own, report["design"]["factors"]["diameter_mm"])
    curves = Image.open(args.target).convert("RGB")
    strip = pictures((args.trial / "report.html").read_text(encoding="utf-8"))
    scale = min(1.0, curves.width / strip.width)
    strip = strip.resize((round(strip.width * scale), round(strip.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (curves.width, curves.height + strip.height + 8), (255, 255, 255))
    sheet.paste(curves, (0, 0))
    sheet.paste(strip, ((curves.width - strip.width) // 2, curves.height + 4))
    sheet.quantize(128).save(args.target, optimize=True)


def draw_curves(panel: object, name: str, own: dict, diameters: list[float]) -> None:
    """A detector's curves, and what was found at each diameter."""
    along = np.geomspace(min(diameters), max(diameters), 60)
    for texture, curve in own["curves"]["diameter_mm"].items():
        found = 1 / (1 + np.exp(-(curve["offset"] + curve["slope"] * np.log(along))))
        panel.plot(along, found, color=COLOURS[texture], label=texture.replace("_", " "))
    levels = own["factors"]["diameter_mm"]["levels"].values()
    values = np.array([[level["value"], level["low"], level["high"]] for level in levels], dtype=float)
    reach = np.abs(values[:, 1:] - values[:, :1]).T
    panel.errorbar(diameters, values[:, 0], reach, fmt="o", color=COLOURS["all"], markersize=4, capsize=2)
    panel.set_xscale("log")
    panel.set_xticks(diameters, [f"{mm:g}" for mm in diameters])
    panel.minorticks_off()
    panel.set(ylim=(-0.03, 1.03), xlabel="diameter, mm", ylabel="found", title=name)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right", fontsize="small")


def pictures(page: str) -> Image.Image:
    """The first pictures of missed nodules of different cells, one under the other in two columns."""
    found = re.findall(r'data:image/png;base64,([^"]+)', page)[::PICTURES][:4]
    tiles = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (2 * width + 12, (len(tiles) + 1) // 2 * (height + 8)), (255, 255, 255))
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % 2 * (width + 12), index // 2 * (height + 8)))
    return sheet


if __name__ == "__main__":
    main()
