"""Nodules in three dimensions from their slices: what is between two of them, and what nobody knows."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lungsynth.cohort.lidc_nodules import nodule_folders, read_slices
from lungsynth.cohort.patches import NodulePlanes
from lungsynth.cohort.stacks import interpolate_masks, stack_cube

SPACING_MM = (0.6, 0.6)
LUNG, SOFT = -850, 40


def ellipsoid(step_mm: float, *, radii_mm=(7.0, 5.0, 9.0), lean: float = 0.0, phase: float = 0.3, size: int = 110):
    """Slices that show an ellipsoid: HU, mask, positions. It goes `lean` mm to the right for each mm upwards."""
    z_mm = np.arange(-radii_mm[0] + phase * step_mm, radii_mm[0], step_mm)
    y, x = (np.indices((size, size)) - (size - 1) / 2) * SPACING_MM[0]
    mask = np.stack(
        [(z / radii_mm[0]) ** 2 + (y / radii_mm[1]) ** 2 + ((x - lean * z) / radii_mm[2]) ** 2 <= 1 for z in z_mm]
    )
    return np.where(mask, SOFT, LUNG).astype(np.int16), mask, z_mm


def stacked(hu, mask, z_mm, *, readers: int = 2):
    return stack_cube(NodulePlanes(hu=hu, votes=mask.astype(np.uint8) * readers, spacing_mm=SPACING_MM), z_mm)


@pytest.mark.parametrize("step_mm", [0.6, 1.25, 2.5, 3.0])
@pytest.mark.parametrize("phase", [0.1, 0.5, 0.9])
def test_an_ellipsoid_has_its_volume_axes_and_place(step_mm, phase):
    cube = stacked(*ellipsoid(step_mm, phase=phase))
    inside = cube.alpha >= 0.5
    assert np.cbrt(inside.sum() * 0.7**3 / (7 * 5 * 9 * np.pi * 4 / 3)) == pytest.approx(1, abs=0.04)  # of a diameter
    points = np.argwhere(inside) * 0.7
    np.testing.assert_allclose(points.mean(axis=0), 31.5 * 0.7, atol=0.35)
    error = np.abs(np.sqrt(5 * points.var(axis=0)) - (7, 5, 9))
    assert error[0] <= max(0.5, 0.35 * step_mm)  # along the slices, whose ends nobody sees
    assert error[1:].max() <= 0.5
    assert np.median(cube.hu[cube.alpha > 0.95]) == SOFT
    assert np.abs(cube.hu[ndimage.distance_transform_edt(~inside) > 3] - float(LUNG)).max() <= 3


def test_an_outline_moves_from_slice_to_slice_and_does_not_fade():
    cube = stacked(*ellipsoid(3.0, lean=1.0))
    z, _, x = np.argwhere(cube.alpha >= 0.5).T * 0.7
    assert np.polyfit(z, x, 1)[0] == pytest.approx(1, abs=0.12)
    left, right = np.zeros((2, 20, 20), bool)
    left[8:12, 4:10] = right[8:12, 10:16] = True
    between = interpolate_masks(np.stack([left, left | right, right]), spacing_mm=(1.0, 1.0), fine=5)
    assert between.any(axis=(1, 2)).all()


def test_the_last_slice_closes_within_half_a_step():
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 5:15, 5:15] = True
    areas = interpolate_masks(mask, spacing_mm=(1.0, 1.0), fine=5).sum(axis=(1, 2))
    assert areas.tolist() == [0] * 5 + [36, 64, 100, 64, 36] + [0] * 5


def test_what_no_slice_shows_is_not_taught():
    hu, mask, z_mm = ellipsoid(2.5)
    hu[-1] = SOFT  # beyond the last slice nobody knows whether this goes on
    cube = stacked(hu, mask, z_mm)
    assert np.abs(cube.hu[:20] - float(LUNG)).max() <= 3
    assert np.abs(cube.hu[-20:] - float(LUNG)).max() <= 3


def test_stacks_that_tell_no_shape_have_no_cube():
    hu, mask, z_mm = ellipsoid(2.5)
    assert stacked(hu, mask, z_mm) is not None
    assert stacked(hu[2:4], mask[2:4], z_mm[2:4]) is None  # two slices
    keep = [0, 1, 2, 4, 5]
    assert stacked(hu[keep], mask[keep], z_mm[keep]) is None  # one is missing
    undrawn = mask.copy()
    undrawn[2] = False
    assert stacked(hu, undrawn, z_mm) is None  # in two parts
    assert stacked(*ellipsoid(2.5, radii_mm=(25.0, 5.0, 5.0))) is None  # beyond the cube


def test_a_folder_of_slices_gives_cubes_where_its_table_tells_the_spacing(tmp_path):
    _, mask, _ = ellipsoid(2.5)
    for patient in ("LIDC-IDRI-0001", "LIDC-IDRI-0002"):
        for index, drawn in enumerate(mask):
            grey = np.where(drawn, 200, 40).astype(np.uint8)
            grey[:12] = 0  # air
            for name, pixels in (
                ("images", grey),
                ("mask-0", drawn * np.uint8(255)),
                ("mask-1", drawn * np.uint8(255)),
            ):
                path = tmp_path / patient / "nodule-0" / name / f"slice-{2 * index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    table = tmp_path / "index.csv"
    table.write_text(
        "patient,nodule,slice,pixel_spacing_mm,slice_spacing_mm\nLIDC-IDRI-0001,0,0,0.6,1.25\n", encoding="utf-8"
    )
    known, assumed = read_slices(nodule_folders(tmp_path), tables=[table])
    assert known.row.has_cube
    assert not assumed.row.has_cube
    inside = known.patches.cube.alpha >= 0.5
    assert np.cbrt(6 * inside.sum() / np.pi) * 0.7 == pytest.approx(2 * np.cbrt(7 * 5 * 9), rel=0.03)
