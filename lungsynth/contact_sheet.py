"""The contact sheet: samples in the lung window, plain in the first row, then with their nodules outlined and named.

An outline runs along the outside of the nodule, one pixel wide, so it does not cover what it shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.hounsfield import DISPLAY_WINDOW, Label
from lungsynth.types import HuPlane, LabelPlane

__all__ = ["MAX_TILES", "Tile", "contact_sheet", "draw_tile", "pick_tiles", "tile_colours"]

MAX_TILES = 64  # eight rows of outlined samples
_TILE_PX = 192  # width of a tile
_COLUMNS = 8  # a sheet is at most 1,536 pixels wide
_LINE_PX = 14  # height of a caption
_COLOURS = ((255, 196, 0), (0, 214, 255), (255, 105, 180), (120, 230, 90), (255, 130, 60), (170, 150, 255))


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One sample as the sheet shows it.

    Args:
        hu: int16 (H, W).
        mask: label map (H, W), see `hounsfield.Label`.
        title: the sample's id.
        category: of its nodules; gives the colour.
    """

    hu: HuPlane
    mask: LabelPlane
    title: str
    category: str


def pick_tiles(ids: Sequence[str]) -> list[str]:
    """At most `MAX_TILES` of the ids, in order; always the same random ones, because categories may take turns."""
    places = np.random.default_rng(0).permutation(len(ids))[:MAX_TILES]
    return [ids[index] for index in np.sort(places)]


def draw_tile(tile: Tile, *, colour: tuple[int, int, int] | None) -> Image.Image:
    """A square RGB tile in the lung window; without a colour nothing is drawn over the image."""
    grey = _fit(Image.fromarray(DISPLAY_WINDOW.to_grey(tile.hu)), Image.Resampling.BILINEAR)
    picture = Image.merge("RGB", [grey] * 3)
    if colour is None:
        return picture
    nodule = Image.fromarray((tile.mask == Label.NODULE).astype(np.uint8) * 255)
    inside = np.asarray(_fit(nodule, Image.Resampling.BILINEAR)) >= 128
    pixels = np.array(picture)
    pixels[ndimage.binary_dilation(inside) & ~inside] = colour
    return Image.fromarray(pixels)


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Draws at most `MAX_TILES` tiles: one plain row of the first ones, then all with outlines and captions.

    Raises:
        InputError: when there is nothing to show.
    """
    if not tiles:
        raise InputError("A contact sheet needs at least one sample, got none.")
    tiles = tiles[:MAX_TILES]
    columns = min(_COLUMNS, len(tiles))
    colours = tile_colours(tile.category for tile in tiles)
    plain = [_captioned(draw_tile(tile, colour=None), tile.title, (255, 255, 255)) for tile in tiles[:columns]]
    outlined = [
        _captioned(draw_tile(tile, colour=colours[tile.category]), _caption(tile), colours[tile.category])
        for tile in tiles
    ]
    bands = [
        _band("synthetic, as it is", columns),
        _grid(plain, columns),
        _band("nodules outlined", columns),
        _grid(outlined, columns),
    ]
    return Image.fromarray(np.concatenate([np.asarray(band) for band in bands]))


def _caption(tile: Tile) -> str:
    """The category whole and the end of the id, so that both fit under the tile."""
    return f"{tile.category}  {tile.title[-8:]}"


def tile_colours(categories: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """A colour for each category; the same for the same categories."""
    names = sorted(set(categories))
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def _fit(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    scale = _TILE_PX / max(image.size)
    resized = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
    square = Image.new("L", (_TILE_PX, _TILE_PX))
    square.paste(resized, ((_TILE_PX - resized.width) // 2, (_TILE_PX - resized.height) // 2))
    return square


def _captioned(tile: Image.Image, text: str, colour: tuple[int, int, int]) -> Image.Image:
    framed = Image.new("RGB", (_TILE_PX, _TILE_PX + _LINE_PX))
    framed.paste(tile, (0, 0))
    ImageDraw.Draw(framed).text((3, _TILE_PX), text, fill=colour, font=ImageFont.load_default(size=11))
    return framed


def _band(text: str, columns: int) -> Image.Image:
    band = Image.new("RGB", (columns * _TILE_PX, _LINE_PX + 6), (40, 40, 40))
    ImageDraw.Draw(band).text((4, 2), text, fill=(255, 255, 255), font=ImageFont.load_default(size=12))
    return band


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    blank = np.zeros_like(np.asarray(tiles[0]))
    cells = [np.asarray(tile) for tile in tiles]
    cells += [blank] * (ceil(len(cells) / columns) * columns - len(cells))
    return Image.fromarray(
        rearrange(np.stack(cells), "(rows columns) h w c -> (rows h) (columns w) c", columns=columns)
    )
