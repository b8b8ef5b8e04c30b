from pathlib import Path

import numpy as np
import pytest
from cohort_toys import SPACING_MM, ball, ellipse, make_chest
from scipy import ndimage

from lungsynth.cohort.lung_mask import threshold_lung_mask

LCTSC = Path(__file__).resolve().parents[2] / "shared" / "data" / "lctsc"


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def fine_chest():
    """The toy chest at 2.5 mm in the slices."""
    hu, lung, _ = make_chest()
    spacing = (SPACING_MM[0], SPACING_MM[1] / 2, SPACING_MM[2] / 2)
    return np.kron(hu, np.ones((1, 2, 2), np.int16)), np.kron(lung, np.ones((1, 2, 2), bool)), spacing


def test_lungs_are_found_without_trachea_and_outside_air(fine_chest):
    hu, lung, spacing_mm = fine_chest
    found = threshold_lung_mask(hu, spacing_mm=spacing_mm)
    assert dice(found, lung) > 0.97
    assert not found[8, 52, 72], "the trachea"
    assert not found[:, :4].any(), "the air around the patient"


def test_vessels_and_nodules_at_the_pleura_belong_to_the_lung(fine_chest):
    hu, lung, spacing_mm = fine_chest
    vessel = ball((8, 64, 40), 5, hu.shape, spacing_mm)
    at_pleura = ball((8, 64, 25), 8, hu.shape, spacing_mm) & lung
    hu = hu.copy()
    hu[vessel | at_pleura] = 40
    found = threshold_lung_mask(hu, spacing_mm=spacing_mm)
    assert found[vessel].mean() > 0.95
    assert found[at_pleura].mean() > 0.6, "all but its outermost voxels"


def test_foam_in_a_table_that_the_body_lies_on_is_no_lung(fine_chest):
    hu, lung, spacing_mm = fine_chest
    hu = hu.copy()
    hu[:, 117:126, 20:120][hu[:, 117:126, 20:120] < -900] = -920
    hu[:, 116, 20:120], hu[:, 126, 20:120], hu[:, 116:127, [20, 119]] = 0, 0, 0
    found = threshold_lung_mask(hu, spacing_mm=spacing_mm)
    assert dice(found, lung) > 0.97
    assert not found[:, 118:].any()


def test_one_slice_is_enough(fine_chest):
    hu, lung, spacing_mm = fine_chest
    found = threshold_lung_mask(hu[8:9], spacing_mm=spacing_mm)
    assert found[lung[8:9]].mean() > 0.95


@pytest.mark.parametrize("value", [-1000, 40])
def test_without_a_body_or_without_air_there_is_no_lung(value):
    assert not threshold_lung_mask(np.full((3, 40, 40), value, np.int16), spacing_mm=(5.0, 2.0, 2.0)).any()


def test_a_body_that_fills_the_picture_is_filled_all_the_same():
    hu = np.full((4, 100, 100), 40, np.int16)
    hu[:, ellipse((50, 50), (30, 30), (100, 100))] = -850
    found = threshold_lung_mask(hu, spacing_mm=(5.0, 2.0, 2.0))
    assert ndimage.label(found)[1] == 1
    assert found[2, 50, 50]


@pytest.mark.skipif(not LCTSC.is_dir(), reason="needs the development data")
def test_experts_would_agree():
    nib = pytest.importorskip("nibabel")
    image = nib.load(LCTSC / "Case_005_ct.nii.gz")
    hu = np.ascontiguousarray(np.asarray(image.dataobj, np.int16).transpose(2, 1, 0))
    expert = np.asarray(nib.load(LCTSC / "Case_005_lung.nii.gz").dataobj).transpose(2, 1, 0) > 0
    column, row, depth = (float(mm) for mm in image.header.get_zooms()[:3])
    assert dice(threshold_lung_mask(hu, spacing_mm=(depth, row, column)), expert) > 0.965
