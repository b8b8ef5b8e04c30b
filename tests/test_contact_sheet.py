"""Laws of the contact sheet: the plain row stays plain, outlines run outside of nodules, few tiles stand for many."""

import numpy as np
import pytest
from scipy import ndimage

from lungsynth.contact_sheet import MAX_TILES, Tile, contact_sheet, draw_tile, pick_tiles
from lungsynth.errors import InputError

RED = (255, 0, 0)


def make_tile(category: str = "solid") -> Tile:
    hu = np.full((64, 64), -850, np.int16)
    mask = np.ones((64, 64), np.uint8)
    mask[20:40, 24:30] = 2
    return Tile(hu=hu, mask=mask, title="synth-1", category=category)


def test_a_plain_tile_is_grey_only():
    pixels = np.asarray(draw_tile(make_tile(), colour=None))
    assert np.ptp(pixels, axis=2).max() == 0


def test_an_outline_is_a_thin_ring_around_the_nodule():
    tile = make_tile()
    outlined = np.all(np.asarray(draw_tile(tile, colour=RED)) == RED, axis=2)
    scale = outlined.shape[0] // 64
    inside = np.kron(tile.mask == 2, np.ones((scale, scale), bool))
    core = ndimage.binary_erosion(
        inside, iterations=scale // 2
    )  # the mask is enlarged smoothly, so its corners give a little
    assert outlined.any()
    assert not (outlined & core).any()
    assert outlined.sum() < 0.25 * inside.sum()


def test_the_sheet_has_a_plain_row_and_a_colour_a_category():
    sheet = np.asarray(contact_sheet([make_tile("solid"), make_tile("part_solid")]))
    coloured = np.ptp(sheet, axis=2).max(axis=1) > 0
    assert not coloured[: len(coloured) // 2].any()
    assert len({tuple(pixel) for pixel in sheet[np.ptp(sheet, axis=2) > 0] if max(pixel) == 255}) >= 2


def test_few_tiles_stand_for_many_and_keep_their_order():
    ids = [f"{index:04d}" for index in range(300)]
    chosen = pick_tiles(ids)
    assert len(chosen) == MAX_TILES
    assert chosen == sorted(chosen)
    assert pick_tiles(ids[:5]) == ids[:5]


def test_an_empty_sheet_is_refused():
    with pytest.raises(InputError, match="at least one sample"):
        contact_sheet([])
