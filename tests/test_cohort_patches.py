"""Laws of nodule patches and of the calibration that brings 8-bit crops back to HU."""

import numpy as np
import pytest

from lungsynth.cohort.calibration import Calibration, estimate_calibration
from lungsynth.cohort.lidc_nodules import read_crops, read_cubes
from lungsynth.cohort.patches import NodulePlanes, cut_cube, cut_patches, sphere_diameter_mm, texture_class
from lungsynth.errors import InputError
from lungsynth.geometry import disc_diameter


def disc(size: int, radius_px: float, centre: tuple[float, float]) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius_px


def nodule_plane(*, spacing_mm: float, diameter_mm: float = 14, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A solid disc at +40 HU in lung at -850 HU, beside a chest wall, and its two votes."""
    mask = disc(size, diameter_mm / 2 / spacing_mm, (size / 2 + 3, size / 2 - 2))
    plane = np.full((size, size), -850, np.int16)
    plane[:, : size // 5] = 50
    plane[mask] = 40
    return plane[None], 2 * mask[None].astype(np.uint8)


def cut(planes, votes, spacing_mm):
    return cut_patches(NodulePlanes(hu=planes, votes=votes, spacing_mm=spacing_mm))


@pytest.mark.parametrize("spacing_mm", [0.5, 0.7, 0.98])
def test_patch_is_centred_and_keeps_its_size_in_mm(spacing_mm):
    planes, votes = nodule_plane(spacing_mm=spacing_mm)
    nodule = cut(planes, votes, (spacing_mm, spacing_mm))
    inside = nodule.alpha[0] >= 0.5
    assert np.argwhere(inside).mean(axis=0) == pytest.approx([31.5, 31.5], abs=0.6)
    assert disc_diameter(int(inside.sum()) * 0.49) == pytest.approx(14, abs=0.5)
    assert nodule.disc_diameter_mm == pytest.approx(14, abs=0.3)
    assert nodule.mean_hu == 40
    assert nodule.solid_fraction == 1


def test_isolated_patch_shows_no_rim_and_no_wall():
    planes, votes = nodule_plane(spacing_mm=0.7, size=96)
    nodule = cut(planes, votes, (0.7, 0.7))
    far = nodule.alpha[0] == 0
    assert (nodule.context[0][far] > 0).any()  # the wall is in the context
    assert np.abs(nodule.hu[0][far].astype(int) + 850).max() <= 1
    assert nodule.hu[0].max() <= 60
    assert not nodule.alpha[0][[0, -1]].any()


def test_what_the_source_did_not_cover_is_marked():
    planes, votes = nodule_plane(spacing_mm=0.5, size=64)  # 32 mm wide, narrower than a patch
    nodule = cut(planes, votes, (0.5, 0.5))
    assert 0.4 < nodule.valid.mean() < 0.6
    assert not nodule.alpha[~nodule.valid].any()
    assert (nodule.context[~nodule.valid] == -850).all()


def test_single_reader_is_no_consensus():
    planes, votes = nodule_plane(spacing_mm=0.7)
    assert cut(planes, votes, (0.7, 0.7)).mask_votes == 2
    assert cut(planes, votes // 2, (0.7, 0.7)).mask_votes == 1
    with pytest.raises(ValueError, match="no slice shows the nodule"):
        cut(planes, votes * 0, (0.7, 0.7))


@pytest.mark.parametrize(
    ("rating", "name"),
    [
        (1, "ground_glass"),
        (2, "ground_glass"),
        (2.1, "part_solid"),
        (3.99, "part_solid"),
        (4, "solid"),
        (None, "unknown"),
    ],
)
def test_texture_class(rating, name):
    assert texture_class(rating) == name


def test_equal_size_diameters():
    assert disc_diameter(np.pi * 25) == pytest.approx(10)
    assert sphere_diameter_mm(np.pi / 6 * 1000, voxel_volume_mm3=1) == pytest.approx(10)


@pytest.mark.parametrize("truth", [Calibration(-1000, 8.0), Calibration(-1000, 6.0), Calibration(-2048, 11.0)])
def test_calibration_finds_lung_and_soft_tissue(truth):
    rng = np.random.default_rng(0)
    hu = np.where(disc(64, 12, (32, 32)), 30, -860) + rng.normal(0, 25, (64, 64))
    grey = np.clip(np.rint((hu - truth.low_hu) / truth.gain), 0, 255).astype(np.uint8)
    error = estimate_calibration(grey).to_hu(grey) - hu
    assert np.abs(np.median(error)) < 40
    assert np.abs(np.median(error[disc(64, 8, (32, 32))])) < 90


def write_crops(folder, **changes):
    planes, votes = nodule_plane(spacing_mm=0.7, size=64, diameter_mm=10)
    arrays = {"image": ((planes + 1000) / 8).astype(np.uint8), "votes": votes, "row": np.array([0], np.int32)} | changes
    np.savez(folder / "x_64.npz", **arrays)
    (folder / "index.csv").write_text(
        "row,patient,nodule,slice,px_cut_by_64crop,pixel_spacing_mm\n0,LIDC-IDRI-0001,0,0,0,0.7\n", encoding="utf-8"
    )
    (folder / "nodules.csv").write_text(
        "patient,nodule,texture,mean_diameter_mm\nLIDC-IDRI-0001,0,5.0,11.5\n", encoding="utf-8"
    )


def test_crops_come_in_with_their_ratings(tmp_path):
    write_crops(tmp_path)
    (nodule,) = read_crops(tmp_path)
    assert nodule.row.texture_class == "solid"
    assert (nodule.row.texture, nodule.row.reader_diameter_mm) == (5.0, 11.5)
    assert nodule.row.diameter_mm == pytest.approx(10, abs=0.4)
    assert np.load(nodule.patches.save(tmp_path, nodule.row.nodule_id))["hu"].dtype == np.int16


def test_crops_without_spacing_are_left_out(tmp_path):
    write_crops(tmp_path)
    index = (tmp_path / "index.csv").read_text(encoding="utf-8")
    (tmp_path / "index.csv").write_text(index.replace(",0.7\n", ",\n"), encoding="utf-8")
    assert list(read_crops(tmp_path)) == []


def test_crops_that_are_not_crops_are_refused(tmp_path):
    write_crops(tmp_path, image=np.zeros((1, 32, 32), np.uint8))
    with pytest.raises(InputError, match=r"x_64.npz: needs uint8 images and votes of \(N, 64, 64\)"):
        list(read_crops(tmp_path))
    (tmp_path / "index.csv").write_text("row,patient\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"index.csv: needs the columns"):
        list(read_crops(tmp_path))


def test_cube_without_patient_is_marked(tmp_path):
    mask = np.zeros((2, 51, 51, 51), np.uint8)
    mask[:, 20:31, 20:31, 20:31] = 1
    np.savez(tmp_path / "cubes.npz", hu=np.where(mask, 20, -850).astype(np.int16), mask=mask)
    (tmp_path / "index.csv").write_text(
        "row,name,texture,lidc_patient\n0,a,1.0,LIDC-IDRI-0003\n1,b,5.0,\n", encoding="utf-8"
    )
    known, unknown = read_cubes(tmp_path)
    assert (known.patient_known, unknown.patient_known) == (True, False)
    assert known.row.diameter_mm == pytest.approx(sphere_diameter_mm(11**3, voxel_volume_mm3=1))
    assert known.row.texture_class == "ground_glass"
    assert known.patches.cube is not None
    assert known.patches.cube.alpha[32, 32, 32] > 0.9


def leaning_rod(spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """A rod 20 mm long and 8 mm thick in the middle of a volume, that goes 1 mm to the left for each mm upwards."""
    places = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*places, indexing="ij")
    return (np.hypot(y, x - z) <= 4) & (np.abs(z) <= 10)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.6, 0.6)])
def test_a_cube_keeps_the_size_and_the_lean_of_a_nodule(spacing_mm):
    shape = tuple(round(60 / mm) for mm in spacing_mm)
    mask = leaning_rod(spacing_mm, shape)
    hu = np.where(mask, 40, -850).astype(np.int16)
    hu[:, : shape[1] // 8] = 50  # a chest wall
    cube = cut_cube(hu, mask, spacing_mm=spacing_mm)
    inside = cube.alpha >= 0.5
    volume_mm3 = mask.sum() * np.prod(spacing_mm)
    assert inside.sum() * 0.7**3 == pytest.approx(volume_mm3, rel=0.08)
    z, y, x = np.argwhere(inside).T * 0.7
    assert np.polyfit(z, x, 1)[0] == pytest.approx(1, abs=0.1)
    assert np.polyfit(z, y, 1)[0] == pytest.approx(0, abs=0.05)
    assert np.abs(cube.hu[cube.alpha == 0].astype(int) + 850).max() <= 3  # no wall
    assert np.median(cube.hu[cube.alpha > 0.95]) == 40


def test_what_a_cube_cannot_hold_has_none():
    mask = leaning_rod((1.0, 1.0, 1.0), (60, 60, 60))
    hu = np.where(mask, 40, -850).astype(np.int16)
    assert cut_cube(hu, mask, spacing_mm=(1.0, 1.0, 1.0)) is not None
    assert cut_cube(hu[10:], mask[10:], spacing_mm=(1.0, 1.0, 1.0)) is None  # the scan ends too near
    assert cut_cube(hu[:, 15:], mask[:, 15:], spacing_mm=(1.0, 1.0, 1.0)) is not None
    assert cut_cube(hu, mask, spacing_mm=(2.2, 2.2, 2.2)) is None  # too large
    thin = mask & (np.abs(np.arange(60) - 29.5) < 1)[:, None, None]
    assert cut_cube(hu, thin, spacing_mm=(2.0, 1.0, 1.0)) is None  # two slices
