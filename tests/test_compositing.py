import math

import numpy as np
import pytest
from placement_toys import NODULE_HU, add_nodule, lung_hu, lung_mask, soft_disc
from scipy import ndimage

from lungsynth.compositing.nodule import NoduleMatch, NodulePatch, match_noise_and_edge, resample_nodule
from lungsynth.compositing.noise import measure_noise
from lungsynth.compositing.overlay import LungBackground, overlay
from lungsynth.compositing.render import render
from lungsynth.errors import InputError
from lungsynth.geometry import axial_affine, lps_to_voxel
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe
from lungsynth.placement.groups import Member, NoduleGroup, NodulePlacement


def patch(hu: np.ndarray, alpha: np.ndarray) -> NodulePatch:
    return NodulePatch.from_asset(np.stack([hu, np.rint(alpha * 16384)]).astype(np.int16))


def placement(row_px: float, col_px: float, **settings: object) -> NodulePlacement:
    values = {"asset": "a", "category": "solid", "source": "real", "diameter_mm": 10.0, "distance_mm": 20.0}
    return NodulePlacement(row_px=row_px, col_px=col_px, **(values | settings))


def lay(base, mask, placed, nodule, *, spacing_mm=(0.7, 0.7), matched=False, seed=0):
    lung = LungBackground.of(base, mask, spacing_mm=spacing_mm, matched=matched)
    return overlay(lung, [(placed, resample_nodule(placed, nodule, spacing_mm))], seed=seed)


FLAT = patch(np.full((64, 64), NODULE_HU), soft_disc(10.0))


@pytest.mark.parametrize("matched", [False, True])
def test_an_overlay_changes_only_the_blend_zone_bit_for_bit(matched):
    mask = lung_mask()
    base = lung_hu(mask)
    before = base.copy()
    result = lay(base, mask, placement(100.5, 60.5), FLAT, matched=matched)
    alpha = np.zeros(mask.shape)
    alpha[69:133, 29:93] = soft_disc(10.0)
    np.testing.assert_array_equal(base, before)
    zone = result.image != base
    assert not zone[ndimage.distance_transform_edt(alpha == 0) > 2].any()
    np.testing.assert_array_equal(result.label, np.where(alpha >= 0.5, 2, mask))
    if not matched:
        np.testing.assert_array_equal(result.image[alpha == 0], base[alpha == 0])
        assert (result.image[alpha == 1] == NODULE_HU).all()
        weight = np.minimum(1, 4 * alpha)
        np.testing.assert_allclose(result.image, weight * NODULE_HU + (1 - weight) * base, atol=0.6)


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
        return lay(base, mask, placement(31.5, 31.5, **settings), patch(hu, alpha)).image

    np.testing.assert_array_equal(image(), np.where(alpha == 1, hu, base))
    np.testing.assert_array_equal(image(flip=True), image()[:, ::-1])
    # Columns turn towards rows: clockwise on the screen.
    np.testing.assert_allclose(image(rotation_deg=90.0), np.rot90(image(), -1), atol=1)
    np.testing.assert_allclose(image(rotation_deg=90.0, flip=True), np.rot90(image()[:, ::-1], -1), atol=1)


def test_surroundings_of_the_patch_do_not_leak_in():
    alpha = soft_disc(10.0)
    hu = np.where(alpha > 0, NODULE_HU, 3000)
    base, mask = np.full((80, 80), -850, dtype=np.int16), np.ones((80, 80), dtype=bool)
    placed = placement(40.3, 39.8, rotation_deg=30.0)
    result = lay(base, mask, placed, patch(hu, alpha), spacing_mm=(0.9, 0.9))
    assert result.image.max() <= NODULE_HU


def test_a_nodule_off_the_centre_of_its_patch_still_lands_on_its_placement():
    off = patch(np.full((64, 64), NODULE_HU), soft_disc(10.0, centre=(28.0, 35.0)))
    base, mask = np.full((80, 80), -850, dtype=np.int16), np.ones((80, 80), dtype=bool)
    label = lay(base, mask, placement(40.0, 42.0, rotation_deg=70.0), off).label
    np.testing.assert_allclose(np.argwhere(label == 2).mean(axis=0), (40.0, 42.0), atol=0.1)


def test_a_nodule_smaller_than_a_pixel_has_a_label_and_one_at_the_border_is_cut():
    tiny = patch(np.full((64, 64), NODULE_HU), soft_disc(1.4))
    base, mask = np.full((40, 40), -850, dtype=np.int16), np.ones((40, 40), dtype=bool)
    assert (lay(base, mask, placement(20.5, 20.5), tiny, spacing_mm=(3.0, 3.0)).label == 2).sum() == 1
    cut = lay(base, mask, placement(0.0, 0.0), FLAT)
    assert cut.nodules[0].box[:2] == (0, 0)


def test_a_nodule_outside_its_slice_is_refused():
    base, mask = np.full((40, 40), -850, dtype=np.int16), np.ones((40, 40), dtype=bool)
    with pytest.raises(InputError, match="outside its slice of \\(40, 40\\)"):
        lay(base, mask, placement(90.0, 20.0), FLAT)


def noisy_lung(sigma_hu: float, grain_px: float) -> tuple[np.ndarray, np.ndarray]:
    """One large lung with tissue around, both with Gaussian noise of this grain."""
    mask = np.zeros((240, 320), dtype=bool)
    mask[30:210, 40:280] = True
    noise = np.random.default_rng(3).normal(0, 1, mask.shape)
    noise = ndimage.gaussian_filter(noise, grain_px) if grain_px else noise
    return np.rint(np.where(mask, -850, 40) + sigma_hu * noise / noise.std()).astype(np.int16), mask


def grain(values: np.ndarray) -> float:
    """Correlation of neighbours."""
    values = values - values.mean()
    return float((values[:, 1:] * values[:, :-1]).mean() / values.var())


@pytest.mark.parametrize(("sigma_hu", "grain_px"), [(20.0, 0.0), (40.0, 0.6)])
def test_a_flat_nodule_gets_the_noise_of_its_lung(sigma_hu, grain_px):
    base, mask = noisy_lung(sigma_hu, grain_px)
    large = patch(np.full((64, 64), NODULE_HU), soft_disc(30.0))
    image = lay(base, mask, placement(120.0, 160.0), large, matched=True).image
    inside, outside = image[108:133, 148:173].astype(float), base[108:133, 148:173].astype(float)
    assert inside.mean() == pytest.approx(NODULE_HU, abs=sigma_hu / 4)
    assert inside.std() == pytest.approx(outside.std(), rel=0.2)
    assert grain(inside) == pytest.approx(grain(outside), abs=0.2)


def test_noise_is_not_added_twice_and_a_silent_lung_stays_silent():
    base, mask = noisy_lung(30.0, 0.0)
    own = np.rint(NODULE_HU + np.random.default_rng(4).normal(0, 30, (64, 64)))
    image = lay(base, mask, placement(120.0, 160.0), patch(own, soft_disc(30.0)), matched=True).image
    assert image[110:130, 150:170].std() == pytest.approx(30, rel=0.2)
    silent, mask = noisy_lung(0.0, 0.0)
    image = lay(
        silent, mask, placement(120.0, 160.0), patch(np.full((64, 64), 40), soft_disc(30.0)), matched=True
    ).image
    assert (image[110:130, 150:170] == 40).all()


def test_a_nodule_noisier_than_its_lung_is_smoothed_and_keeps_its_size():
    base, mask = noisy_lung(10.0, 0.6)
    lung = LungBackground.of(base, mask, spacing_mm=(0.7, 0.7))
    stored = np.stack([40 + np.random.default_rng(4).normal(0, 120, (64, 64)), np.rint(soft_disc(30.0) * 16384)])
    placed, patches = placement(120.0, 160.0), []

    def patch_of(blur_steps: int, smoothing_steps: int) -> NodulePatch:
        patches.append(smoothing_steps)
        return NodulePatch.from_asset(stored.astype(np.int16), blur_steps=blur_steps, smoothing_steps=smoothing_steps)

    match = NoduleMatch.of(lung.noise, 1.0)._replace(blur_steps=2)
    nodule = match_noise_and_edge(placed, patch_of, lung.spacing_mm, match)
    image = overlay(lung, [(placed, nodule)]).image
    fine = np.diff(np.diff(image.astype(float), 2, axis=0), 2, axis=1)
    assert patches[0] == 0
    assert len(patches) > 1
    assert fine[110:128, 150:168].std() < 2 * fine[110:128, 60:78].std()
    assert nodule.nodule.sum() == resample_nodule(placed, patch_of(2, 0), lung.spacing_mm).nodule.sum()


def test_noise_follows_the_seed():
    base, mask = noisy_lung(30.0, 0.0)
    first, again, other = (
        lay(base, mask, placement(120.0, 160.0), FLAT, matched=True, seed=seed).image for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_vessel_runs_on_through_ground_glass_and_the_wall_is_not_painted_over():
    base, mask = np.full((120, 120), -850, dtype=np.int16), np.ones((120, 120), dtype=bool)
    base[58:62] = 20
    base[70:] = 60
    glass = patch(np.full((64, 64), -600), soft_disc(14.0))
    image = lay(base, mask, placement(59.5, 59.5), glass).image
    assert (image[58:62] == 20).all()
    assert (image[70:] == 60).all()
    assert (image[53:57, 56:64] == -600).all()


def test_a_blurred_lung_gives_a_softer_edge():
    base, mask = noisy_lung(0.0, 0.0)
    soft = np.rint(ndimage.gaussian_filter(base.astype(float), 1.5)).astype(np.int16)
    sharp, blurred = (measure_noise(hu, mask, spacing_mm=(0.7, 0.7)) for hu in (base, soft))
    assert blurred.edge_mm == pytest.approx(1.05, rel=0.15)
    assert NoduleMatch.of(sharp, 1.0).blur_steps < NoduleMatch.of(blurred, 1.0).blur_steps


def test_one_resampled_nodule_serves_all_places_of_one_fraction():
    first, same, other = (
        resample_nodule(placement(row, 40.75, rotation_deg=12.3), FLAT, (0.8, 0.8)) for row in (33.25, 71.25, 71.5)
    )
    np.testing.assert_array_equal(first.weight, same.weight)
    assert first.weight.tobytes() != other.weight.tobytes()


def test_cosines_leave_room_for_the_libm_of_any_machine():
    """Rounded to 24 bits, no angle of a recipe (multiples of 0.1 degree) comes near a tie."""
    for tenth in range(3600):
        for value in (math.cos(math.radians(tenth / 10)), math.sin(math.radians(tenth / 10))):
            part = value * (1 << 24) % 1
            assert abs(part - 0.5) > 1e-6


def test_a_nodule_at_the_pleura_ends_there():
    mask = lung_mask()
    base = np.where(mask, -850, -100).astype(np.int16)  # a wall of fat, darker than the nodule
    centre = 60.5 - 48  # two pixels from the edge of a lung of radius 50
    result = lay(base, mask, placement(100.5, centre), FLAT)
    nodule = result.label == 2
    assert nodule.any()
    assert not (nodule & ~mask).any()
    changed = result.image != base
    assert not changed[~ndimage.binary_dilation(mask)].any(), "the wall stays, but for the pixel that borders on lung"
    whole = lay(base, mask, placement(100.5, 60.5), FLAT)
    assert 0.4 < nodule.sum() / (whole.label == 2).sum() < 0.8
    assert result.nodules[0].diameter_mm < whole.nodules[0].diameter_mm
