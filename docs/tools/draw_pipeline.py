"""Draws docs/images/pipeline.png from an output folder: one sample, from its assets to its label.

python docs/tools/draw_pipeline.py OUT docs/images/pipeline.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lungsynth.compositing.render import render
from lungsynth.ct.write import read_plane
from lungsynth.hounsfield import DISPLAY_WINDOW, Label
from lungsynth.placement.assets import ALPHA_SCALE, AssetLibrary
from lungsynth.placement.catalogue import Recipe, read_catalogue

TILE_PX = 256
GAP_PX = 54
INK, PAPER, SOFT = (30, 34, 40), (255, 255, 255), (110, 118, 128)
NODULE_COLOUR = np.array([255, 170, 60])


def main(out: Path, target: Path) -> None:
    """Chooses the sample without real voxels whose solid nodules are largest, and draws it."""
    catalogue = read_catalogue(out / "catalogue.parquet")
    recipes = [r for r in catalogue if not r.has_real_voxels and all(n.category == "solid" for n in r.nodules)]
    recipe = max(recipes, key=lambda r: min(n.diameter_mm for n in r.nodules))
    tiles = list(stages(recipe, AssetLibrary(out), out))
    width, height = len(tiles) * (TILE_PX + GAP_PX) - GAP_PX + 40, TILE_PX + 92
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(17), ImageFont.load_default(13)
    for index, (name, by, picture) in enumerate(tiles):
        left = 20 + index * (TILE_PX + GAP_PX)
        sheet.paste(picture.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC), (left, 20))
        draw.text((left, TILE_PX + 28), name, INK, font=title)
        draw.text((left, TILE_PX + 52), by, SOFT, font=small)
        if index + 1 < len(tiles):
            link(draw, left + TILE_PX + GAP_PX // 2, 20 + TILE_PX // 2, plus=index == 0)
    sheet.save(target)


def link(draw: ImageDraw.ImageDraw, x: int, y: int, *, plus: bool) -> None:
    """A plus or an arrow between two tiles."""
    draw.line([(x - 11, y), (x + 11, y)], INK, width=3)
    draw.line([(x, y - 11), (x, y + 11)] if plus else [(x + 3, y - 8), (x + 11, y), (x + 3, y + 8)], INK, width=3)


def stages(recipe: Recipe, library: AssetLibrary, out: Path) -> list[tuple[str, str, Image.Image]]:
    """Name, maker and picture of each stage."""
    nodule = library.load(recipe.nodules[0].asset)
    lung = library.load(recipe.lung)[0]
    composite = render(recipe, library)
    enhanced, _ = read_plane(out / "images" / f"{recipe.id}.nii.gz")
    return [
        ("nodule and soft mask", "W-CapsuleGAN: nodules", pair(nodule)),
        ("normal lung", "W-CapsuleGAN: lungs", grey(lung)),
        ("composite", "placed and blended in HU", grey(composite.image)),
        ("enhanced", "CycleGAN, bounded residual", grey(enhanced)),
        ("label", "mask, box, LPS coordinates", outlined(enhanced, composite.label == Label.NODULE)),
    ]


def grey(hu: np.ndarray) -> Image.Image:
    """HU through the lung window, squared."""
    side = max(hu.shape)
    square = np.full((side, side), hu.min(), hu.dtype)
    top, left = (side - hu.shape[0]) // 2, (side - hu.shape[1]) // 2
    square[top : top + hu.shape[0], left : left + hu.shape[1]] = hu
    return Image.fromarray(DISPLAY_WINDOW.to_grey(square)).convert("RGB")


def pair(nodule: np.ndarray) -> Image.Image:
    """The nodule's HU above its soft mask, each twice as wide as high."""
    hu, alpha = DISPLAY_WINDOW.to_grey(nodule[0]), np.rint(nodule[1] / ALPHA_SCALE * 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([hu[16:48], alpha[16:48]])).convert("RGB")


def outlined(hu: np.ndarray, mask: np.ndarray) -> Image.Image:
    """HU with the nodules coloured."""
    colour = np.asarray(grey(hu)).copy()
    colour[mask] = (0.35 * colour[mask] + 0.65 * NODULE_COLOUR).astype(np.uint8)
    return Image.fromarray(colour)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
