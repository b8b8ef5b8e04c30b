"""Draws what the enhancer does, at nodule scale and at slice scale: composite, enhanced, difference.

python docs/draw_enhancement.py OUT/catalogue.parquet --out bundles/cyclegan_bundle/docs/before_after.png

OUT must come from scripts/synthesize.py without --cohort: no patient's voxels may stand in the repository.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lungsynth.compositing.render import Renderer
from lungsynth.enhancement.stage import open_stage
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import read_catalogue

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
NODULE_PX = 48
LIMIT_HU = 100
COLUMNS = ("composite", "enhanced", f"difference, ±{LIMIT_HU} HU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundles", type=Path, default=BUNDLES)
    parser.add_argument("--slices", type=int, default=3)
    args = parser.parse_args()
    recipes = [recipe for recipe in read_catalogue(args.catalogue) if not recipe.has_real_voxels]
    renderer, stage = Renderer(AssetLibrary(args.catalogue.parent)), open_stage(args.bundles, label_check=True)
    figure = Figure(figsize=(12, 2.05 * args.slices), layout="constrained")
    axes = figure.subplots(args.slices, 6)
    for row, recipe in zip(axes, recipes[: args.slices], strict=True):
        sample = renderer.render(recipe)
        image, outcome = stage(sample, recipe.lung, renderer.background(recipe))
        box = sample.boxes[0]
        middle = [(box.row_from + box.row_to) // 2, (box.column_from + box.column_to) // 2]
        starts = [min(max(m - NODULE_PX // 2, 0), s - NODULE_PX) for m, s in zip(middle, image.shape, strict=True)]
        near = tuple(slice(start, start + NODULE_PX) for start in starts)
        for axis, part, scale in ((row[:3], (slice(None), slice(None)), "slice"), (row[3:], near, "nodule")):
            show(axis, sample.image[part], image[part], f"{scale}, {outcome.verdict}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90, metadata={"Software": None})


def show(axes: np.ndarray, before: np.ndarray, after: np.ndarray, title: str) -> None:
    """Three pictures side by side."""
    change = after.astype(int) - before
    for axis, plane, name in zip(axes, (before, after, change), COLUMNS, strict=True):
        if plane is change:
            axis.imshow(change, cmap="coolwarm", vmin=-LIMIT_HU, vmax=LIMIT_HU, interpolation="nearest")
        else:
            axis.imshow(DISPLAY_WINDOW.to_grey(plane), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{title}: {name}" if plane is before else name, fontsize=7)
        axis.axis("off")


if __name__ == "__main__":
    main()
