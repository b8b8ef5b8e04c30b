import numpy as np
import pytest
from layers_toys import NODULE_HU, add_nodule, lung_hu, lung_mask, soft_disc

from lungsynth.ct.volume import axial_affine, lps_to_voxel
from lungsynth.layers import (
    AssetLibrary,
    NodulePatch,
    NodulePlacement,
    make_recipe,
    overlay,
    render,
)
from lungsynth.layers.groups import Member, NoduleGroup


def patch(hu: np.ndarray, alpha: np.ndarray) -> NodulePatch:
    return NodulePatch.from_asset(np.stack([hu, np.rint(alpha * 16384)]).astype(np.int16))


def placement(row_px: float, col_px: float, **settings: object) -> NodulePlacement:
    values = {"asset": "a", "category": "solid", "source": "real", "diameter_mm": 10.0, "distance_mm": 20.0}
    return NodulePlacement(row_px=row_px, col_px=col_px, **(values | settings))


FLAT = patch(np.full((64, 64), NODULE_HU), soft_disc(10.0))


def test_an_overlay_changes_only_the_nodule_bit_for_bit():
    mask = lung_mask()
    base = lung_hu(mask)
    before = base.copy()
    result = overlay(base, mask, [(placement(100.5, 60.5), FLAT)], spacing_mm=(0.7, 0.7))
    alpha = np.zeros(mask.shape)
    alpha[69:133, 29:93] = soft_disc(10.0)
    np.testing.assert_array_equal(base, before)
    np.testing.assert_array_equal(result.image[alpha == 0], base[alpha == 0])
    assert (result.image[alpha == 1] == NODULE_HU).all()
    np.testing.assert_allclose(result.image, alpha * NODULE_HU + (1 - alpha) * base, atol=0.6)
    np.testing.assert_array_equal(result.label, np.where(alpha >= 0.5, 2, mask))


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (1.4, 1.4), (0.9, 0.6), (0.5, 1.25)])
@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_a_nodule_of_10_mm_lands_where_it_should_with_its_size(tmp_path, spacing_mm, scale):
    library = AssetLibrary(tmp_path)
    shape = (int(140 / spacing_mm[0]), int(160 / spacing_mm[1]))
    mask = np.ones(shape, dtype=bool)
    affine = axial_affine(spacing_mm=(2.0, *spacing_mm), origin_lps_mm=(-80.0, -70.0, 33.0))
    lung = library.add_lung(np.full(shape, -850, dtype=np.int16), mask, affine=affine, source="generated", origin="l")
    nodule = add_nodule(library, 10.0)
    _, row, column = lps_to_voxel(affine, np.array([12.3, -8.1, 33.0]))
    placed = placement(float(row), float(column), asset=nodule.hash, rotation_deg=37.0, flip=True, scale=scale)
    group = NoduleGroup((Member(asset=nodule.hash, category="solid", source="real", diameter_mm=10.0, u=0.5, v=0.5),))
    sample = render(make_recipe(lung, group, (placed,), seed=0), library)
    x, y, z, diameter = sample.annotations[0]
    assert (x, y, z) == pytest.approx((12.3, -8.1, 33.0), abs=1e-4)
    assert diameter == pytest.approx(10.0 * scale, rel=0.05)
    rows, columns = np.nonzero(sample.label == 2)
    assert rows.mean() * spacing_mm[0] - 70 == pytest.approx(-8.1, abs=0.15)
    assert columns.mean() * spacing_mm[1] - 80 == pytest.approx(12.3, abs=0.15)
    box = sample.boxes[0]
    assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    np.testing.assert_array_equal(sample.affine, affine)


def test_a_quarter_turn_and_a_mirror_are_those_of_the_array():
    rng = np.random.default_rng(0)
    alpha = np.zeros((64, 64))
    alpha[24:40, 24:40] = 1  # symmetric, so that its centroid is the centre
    hu = rng.integers(-500, 100, (64, 64))
    base, mask = np.full((64, 64), -850, dtype=np.int16), np.ones((64, 64), dtype=bool)

    def image(**settings: object) -> np.ndarray:
        nodules = [(placement(31.5, 31.5, **settings), patch(hu, alpha))]
        return overlay(base, mask, nodules, spacing_mm=(0.7, 0.7)).image

    np.testing.assert_array_equal(image(), np.where(alpha == 1, hu, base))
    np.testing.assert_array_equal(image(flip=True), image()[:, ::-1])
    # Columns turn towards rows: clockwise on the screen.
    np.testing.assert_allclose(image(rotation_deg=90.0), np.rot90(image(), -1), atol=1)
    np.testing.assert_allclose(image(rotation_deg=90.0, flip=True), np.rot90(image()[:, ::-1], -1), atol=1)


def test_surroundings_of_the_patch_do_not_leak_in():
    alpha = soft_disc(10.0)
    hu = np.where(alpha > 0, NODULE_HU, 3000)
    base, mask = np.full((80, 80), -850, dtype=np.int16), np.ones((80, 80), dtype=bool)
    result = overlay(base, mask, [(placement(40.3, 39.8, rotation_deg=30.0), patch(hu, alpha))], spacing_mm=(0.9, 0.9))
    assert result.image.max() <= NODULE_HU


def test_a_nodule_off_the_centre_of_its_patch_still_lands_on_its_placement():
    off = patch(np.full((64, 64), NODULE_HU), soft_disc(10.0, centre=(28.0, 35.0)))
    base, mask = np.full((80, 80), -850, dtype=np.int16), np.ones((80, 80), dtype=bool)
    label = overlay(base, mask, [(placement(40.0, 42.0, rotation_deg=70.0), off)], spacing_mm=(0.7, 0.7)).label
    np.testing.assert_allclose(np.argwhere(label == 2).mean(axis=0), (40.0, 42.0), atol=0.1)


def test_a_nodule_smaller_than_a_pixel_has_a_label_and_one_at_the_border_is_cut():
    tiny = patch(np.full((64, 64), NODULE_HU), soft_disc(1.4))
    base, mask = np.full((40, 40), -850, dtype=np.int16), np.ones((40, 40), dtype=bool)
    assert (overlay(base, mask, [(placement(20.5, 20.5), tiny)], spacing_mm=(3.0, 3.0)).label == 2).sum() == 1
    cut = overlay(base, mask, [(placement(0.0, 0.0), FLAT)], spacing_mm=(0.7, 0.7))
    assert cut.findings[0].box[:2] == (0, 0)
