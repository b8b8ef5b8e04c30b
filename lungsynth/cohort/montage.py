"""Pictures of a cohort to look at: nodules by class with the outline of their mask, and normal lungs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from lungsynth.cohort.files import read_arrays
from lungsynth.hounsfield import DISPLAY_WINDOW

__all__ = [
    "Block",
    "Tile",
    "lung_montage",
    "lung_tile",
    "nodule_montage",
    "nodule_tile",
    "outlined",
    "spread",
    "stack_blocks",
    "tile_block",
]

_NODULE_PX = 128  # a 64 pixel patch, doubled
_LUNG_PX = 192
_NODULES_A_CLASS = 24
_COLUMNS_NODULES = 12
_LUNGS = 24
_COLUMNS_LUNGS = 6
_CAPTION_PX = 16
_OUTLINE = (255, 170, 0)

Item = TypeVar("Item")

Tile = UInt8[np.ndarray, "tile_height tile_width 3"]
Block = UInt8[np.ndarray, "block_height block_width 3"]


def nodule_montage(paths_by_class: Mapping[str, Sequence[Path]]) -> Image.Image:
    """A block of rows for each class: for each nodule its largest slice as measured, alpha >= 0.5 outlined."""
    blocks = []
    for name, paths in paths_by_class.items():
        tiles = [nodule_tile(path) for path in spread(paths, _NODULES_A_CLASS)]
        if tiles:
            blocks.append(tile_block(f"{name}: {len(tiles)} of {len(paths)}", tiles, columns=_COLUMNS_NODULES))
    return stack_blocks(blocks)


def lung_montage(paths: Sequence[Path]) -> Image.Image:
    """Lungs on the generator's grid, their mask outlined."""
    tiles = [lung_tile(path) for path in spread(paths, _LUNGS)]
    return stack_blocks(
        [tile_block(f"normal: {len(tiles)} of {len(paths)}", tiles, columns=_COLUMNS_LUNGS)] if tiles else []
    )


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, count)]


def nodule_tile(path: Path) -> Tile:
    """The largest slice of a nodule's npz, as measured; InputError when the file is damaged."""
    largest, context, alpha = read_arrays(path, "largest", "context", "alpha")
    index = int(largest)
    return outlined(context[index], alpha[index] >= 0.5, _NODULE_PX)


def lung_tile(path: Path) -> Tile:
    """A lung's npz; InputError when the file is damaged."""
    hu, mask = read_arrays(path, "hu", "mask")
    return outlined(hu, mask > 0, _LUNG_PX)


def outlined(hu: np.ndarray, mask: np.ndarray, size_px: int) -> Tile:
    """Grey picture of size `size_px`, the mask's outer border one pixel wide in colour."""
    grey = Image.fromarray(DISPLAY_WINDOW.to_grey(hu)).resize((size_px, size_px), Image.Resampling.BILINEAR)
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize((size_px, size_px), Image.Resampling.BILINEAR)
    inside = np.asarray(large) >= 128
    tile = repeat(np.asarray(grey), "h w -> h w c", c=3).copy()
    tile[ndimage.binary_dilation(inside) & ~inside] = _OUTLINE
    return tile


def tile_block(caption: str, tiles: Sequence[Tile], *, columns: int) -> Block:
    """Tiles in rows under a caption."""
    missing = -len(tiles) % columns
    grid = np.stack([*tiles, *[np.zeros_like(tiles[0])] * missing])
    picture = rearrange(grid, "(row column) h w c -> (row h) (column w) c", column=columns)
    head = Image.new("RGB", (picture.shape[1], _CAPTION_PX))
    ImageDraw.Draw(head).text((4, 2), caption, fill=(255, 255, 255))
    return np.concatenate([np.asarray(head), picture])


def stack_blocks(blocks: Sequence[np.ndarray]) -> Image.Image:
    """Blocks of equal width below each other; without any, an empty strip."""
    if not blocks:
        return Image.new("RGB", (_LUNG_PX, _CAPTION_PX))
    return Image.fromarray(np.concatenate(blocks))
