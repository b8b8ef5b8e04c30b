import numpy as np
import pytest
from cohort_toys import ellipse

from lungsynth.cohort.slices import label_volume, lung_area_cm2, lung_on_grid, normal_slices
from lungsynth.errors import InputError


def test_a_nodule_is_nodule_wherever_it_lies_and_doubt_is_unlabelled():
    rows = ([1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 1, 0, 0])
    lung, nodule, doubt = (np.array(row, bool)[None, None] for row in rows)
    assert label_volume(lung=lung, nodule=nodule, unlabelled=doubt)[0, 0].tolist() == [1, 2, 255, 2, 0]


def test_slices_within_the_gap_of_a_nodule_are_not_normal():
    diseased = np.zeros(9, bool)
    diseased[4] = True
    area = np.full(9, 100.0)
    area[0] = 5
    normal = normal_slices(diseased, area, slice_mm=5.0, gap_mm=10.0, min_cm2=60)
    assert normal.tolist() == [False, True, False, False, False, False, False, True, True]
    assert normal_slices(np.zeros(9, bool), area, slice_mm=5.0, gap_mm=10.0, min_cm2=60).sum() == 8


def test_area_is_in_square_centimetres():
    assert lung_area_cm2(np.ones((1, 10, 20), bool), spacing_mm=(3.0, 2.0, 1.0)).tolist() == [4.0]


@pytest.mark.parametrize(("size_px", "pixel_mm"), [(256, 1.4), (512, 0.7)])
@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (1.5, 0.9)])
def test_a_lung_keeps_its_area_and_hu_and_comes_to_the_centre(size_px, pixel_mm, spacing_mm):
    lung = ellipse((150, 220), (60 / spacing_mm[0], 90 / spacing_mm[1]), (300, 400))
    hu = np.where(lung, -850, 40).astype(np.int16)
    grid_hu, mask = lung_on_grid(hu, lung, spacing_mm=spacing_mm, size_px=size_px)
    assert mask.sum() * pixel_mm**2 == pytest.approx(lung.sum() * np.prod(spacing_mm), rel=0.01)
    rows, columns = np.nonzero(mask)
    assert rows.min() + rows.max() == pytest.approx(size_px - 1, abs=2)
    assert columns.min() + columns.max() == pytest.approx(size_px - 1, abs=2)
    centre = size_px // 2
    assert grid_hu[centre, centre] == -850
    assert np.median(grid_hu[mask == 0]) in (40, -1000)


def test_the_mirrored_slice_gives_the_mirrored_grid():
    hu = np.random.default_rng(0).integers(-900, 40, (60, 80)).astype(np.int16)
    lung = ellipse((25, 37), (12, 20), (60, 80))
    straight = lung_on_grid(hu, lung, spacing_mm=(3.1, 2.9), size_px=256)
    mirrored = lung_on_grid(hu[::-1, ::-1].copy(), lung[::-1, ::-1].copy(), spacing_mm=(3.1, 2.9), size_px=256)
    assert np.abs(straight[0] - mirrored[0][::-1, ::-1]).max() <= 1
    assert np.array_equal(straight[1], mirrored[1][::-1, ::-1])


def test_outside_the_scan_is_air():
    lung = ellipse((20, 20), (10, 10), (40, 40))
    grid_hu, mask = lung_on_grid(np.full((40, 40), 40, np.int16), lung, spacing_mm=(2.0, 2.0), size_px=256)
    assert grid_hu[0, 0] == -1000
    assert mask[0, 0] == 0


def test_an_empty_lung_has_no_centre():
    with pytest.raises(InputError, match="not empty"):
        lung_on_grid(np.zeros((4, 4), np.int16), np.zeros((4, 4), bool), spacing_mm=(1.0, 1.0), size_px=256)
