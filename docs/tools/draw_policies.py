"""Draws docs/images/policies.png: where the nodules of three policies lie, and how far from the pleura.

python docs/draw_policies.py --library DIR FARTHEST.parquet MATCHED.parquet BALANCED.parquet docs/images/policies.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, read_catalogue
from lungsynth.placement.lung_shape import LibraryLungs
from lungsynth.placement.plan_catalogue import PlanRecord
from lungsynth.placement.policy import DISTANCE_EDGES_MM, distance_class
from lungsynth.placement.presence import expected_distances

SAMPLES = 60_000
CELLS = 64
PANEL_PX, BAR_PX, GAP_PX = 230, 110, 24
INK, SOFT, PAPER = (30, 34, 40), (110, 118, 128), (255, 255, 255)
HOT = np.array([[255, 255, 255], [255, 214, 140], [236, 120, 50], [140, 20, 40], [40, 0, 30]], dtype=np.float64)
BAR = (70, 110, 160)


def main() -> None:
    """Reads the catalogues and draws four columns: what is expected, and the three policies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogues", nargs=3, type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    args = parser.parse_args()
    lungs = LibraryLungs.of(AssetLibrary(args.library))
    catalogues = [read_catalogue(path) for path in args.catalogues]
    prior = PlanRecord.read(catalogues[0]).prior
    columns = [("expected: LIDC-IDRI on these lungs", prior.grid, expected_distances(prior, lungs.sample()))]
    shapes = {asset.hash: shape for asset, shape in zip(lungs.assets, lungs, strict=True)}
    for name, catalogue in zip(("farthest", "matched", "balanced"), catalogues, strict=True):
        columns.append((name, *locations(catalogue, shapes)))
    draw(columns).save(args.target)


def locations(catalogue: Catalogue, shapes: dict) -> tuple[np.ndarray, np.ndarray]:
    """Nodules a cell of the lungs' bounding box, and the share of each class of distance, of samples spread evenly."""
    grid, distances = np.zeros((CELLS, CELLS)), []
    for index in np.unique(np.linspace(0, len(catalogue) - 1, SAMPLES).astype(int)).tolist():
        recipe = catalogue[index]
        for nodule in recipe.nodules:
            u, v = shapes[recipe.lung].to_unit(np.array(nodule.row_px), np.array(nodule.col_px))
            grid[min(int(v * CELLS), CELLS - 1), min(int(u * CELLS), CELLS - 1)] += 1
            distances.append(nodule.distance_mm)
    shares = np.bincount(distance_class(np.array(distances)), minlength=len(DISTANCE_EDGES_MM) + 1)
    return grid, shares / shares.sum()


def draw(columns: list[tuple[str, np.ndarray, np.ndarray]]) -> Image.Image:
    """The figure."""
    width, height = len(columns) * (PANEL_PX + GAP_PX) + GAP_PX, PANEL_PX * 3 // 4 + BAR_PX + 108
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, title, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    highest = max(float(shares.max()) for _, _, shares in columns)
    for index, (name, grid, shares) in enumerate(columns):
        left, top = GAP_PX + index * (PANEL_PX + GAP_PX), 34
        pen.text((left, 10), name, INK, font=title)
        sheet.paste(heat(grid), (left, top))
        base = top + PANEL_PX * 3 // 4 + 16 + BAR_PX
        step = PANEL_PX / len(shares)
        for place, share in enumerate(shares):
            x, y = left + place * step, base - share / highest * BAR_PX
            pen.rectangle((x + 1, min(y, base - 1), x + step - 2, base), BAR)
            if place and place % 2 == 0:
                pen.text((x, base + 3), f"{DISTANCE_EDGES_MM[place - 1]:g}", SOFT, font=small, anchor="ma")
        pen.line((left, base, left + PANEL_PX, base), SOFT)
        pen.text((left, base + 18), "mm from the pleura", SOFT, font=small)
    pen.text((GAP_PX, height - 18), "above: patient's right on the left, anterior on top", SOFT, font=small)
    return sheet


def heat(grid: np.ndarray) -> Image.Image:
    """Densities as colours, up to their 99.5th percentile."""
    level = np.clip(grid / np.percentile(grid[grid > 0], 99.5), 0, 1) * (len(HOT) - 1)
    low = np.minimum(level.astype(int), len(HOT) - 2)
    share = (level - low)[..., None]
    colours = HOT[low] * (1 - share) + HOT[low + 1] * share
    return Image.fromarray(colours.astype(np.uint8)).resize((PANEL_PX, PANEL_PX * 3 // 4), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
