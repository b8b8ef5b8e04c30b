import numpy as np
import pydicom
import pytest
from scipy import ndimage

from lungsynth.cohort.phantom.anatomy import grow_tree
from lungsynth.cohort.phantom.files import (
    edge_contour,
    make_phantom_cohort,
    series_uid,
    write_dicom,
    write_luna16,
    write_msd,
)
from lungsynth.cohort.phantom.nodules import NoduleSpec
from lungsynth.cohort.phantom.patient import draw_patient
from lungsynth.ct.annotations import read_lungs, read_nodules
from lungsynth.ct.discover import find_series
from lungsynth.ct.read import read_volume
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM, lps_to_voxel

SPECS = (
    NoduleSpec(texture_class="solid", diameter_mm=20),
    NoduleSpec(texture_class="part_solid", diameter_mm=22, juxtapleural=True),
    NoduleSpec(texture_class="ground_glass", diameter_mm=18),
)
GRID = {"size_px": 96, "slices": 24, "slice_spacing_mm": 4.0}


@pytest.fixture(scope="module")
def patient():
    return draw_patient(5, **GRID, nodules=SPECS)


def files_below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_back(folder):
    with find_series(folder) as found:
        assert not found.problems
        (files,) = found.series
        volume = read_volume(files)
        return files, volume, read_lungs(files, volume), read_nodules(files, volume)


def test_the_same_seed_gives_the_same_patient_and_another_seed_other_lungs(patient):
    again, other = draw_patient(5, **GRID, nodules=SPECS), draw_patient(6, **GRID, nodules=SPECS)
    np.testing.assert_array_equal(again.volume.hu, patient.volume.hu)
    overlap = 2 * (other.lung_mask & patient.lung_mask).sum() / (other.lung_mask.sum() + patient.lung_mask.sum())
    assert 0.6 < overlap < 0.97


def test_anatomy_does_not_depend_on_the_nodules(patient):
    plain = draw_patient(5, **GRID, nodules=())
    away = ~ndimage.binary_dilation(patient.nodule_mask > 0, iterations=4)
    assert plain.nodules == ()
    assert np.abs(plain.volume.hu[away].astype(int) - patient.volume.hu[away]).max() <= 1


def test_tissues_have_their_hu_and_lie_on_their_side(patient):
    hu, lung = patient.volume.hu, patient.lung_mask == 1
    assert hu.dtype == np.int16
    assert -910 < np.median(hu[lung]) < -790
    back, front = (np.median(hu[:, rows][lung[:, rows]]) for rows in (slice(56, 96), slice(0, 40)))
    assert back > front  # lung is denser at the back
    bone = hu > 300
    assert bone.any(axis=(1, 2)).all()
    spine = np.argwhere(bone & (np.abs(np.arange(96) - 48) < 5)[None, None, :])
    assert np.median(spine[:, 1]) > 48  # posterior is down
    plane = hu[3]  # low slices cut the heart, which lies to the patient's left: at higher columns
    centre = ndimage.center_of_mass((plane > 0) & (plane < 200) & np.pad(np.ones((32, 48), bool), ((24, 40), (24, 24))))
    assert centre[1] > 48
    left, right = lung[:12, :, 48:].sum(), lung[:12, :, :48].sum()
    assert left < right  # and takes room from the left lung
    assert np.median(hu[patient.airway_mask == 1]) < -900
    assert not (patient.airway_mask & patient.lung_mask).any()


def test_nodules_are_what_was_asked_for(patient):
    hu, lung = patient.volume.hu, patient.lung_mask == 1
    voxel_mm3 = np.prod(patient.volume.spacing_mm)
    assert sum(n.mask.sum() for n in patient.nodules) == patient.nodule_mask.sum()  # none overlap
    for nodule, spec in zip(patient.nodules, SPECS, strict=True):
        mask = nodule.mask == 1
        assert nodule.diameter_mm == pytest.approx((6 * mask.sum() * voxel_mm3 / np.pi) ** (1 / 3))
        assert nodule.diameter_mm == pytest.approx(spec.diameter_mm, rel=0.25)
        assert lung[mask].all()
        outside_next = ndimage.binary_dilation(mask, np.ones((1, 3, 3))) & ~lung
        assert outside_next.any() == spec.juxtapleural
        centre = lps_to_voxel(patient.volume.affine, np.array(nodule.centre_lps_mm))
        np.testing.assert_allclose(centre, np.argwhere(mask).mean(axis=0), atol=1e-6)
    solid, part, glass = (hu[n.mask == 1] for n in patient.nodules)
    assert -20 < np.percentile(solid, 75) < 90  # the rim is half lung
    assert -650 < np.median(glass) < -400
    assert 0.05 < (part > -200).mean() < 0.6
    assert (part < -400).mean() > 0.2


def test_the_body_fits_into_the_field(patient):
    body = ndimage.binary_opening(patient.volume.hu > -300, np.ones((1, 5, 5)))
    extent = [np.ptp(np.flatnonzero(body.any(axis=axes))) * LUNG_FIELD_MM / 96 for axes in ((0, 2), (0, 1))]
    assert 190 < extent[0] < 270
    assert 290 < extent[1] < LUNG_FIELD_MM - 4


def test_dicom_and_readers_give_back_the_patient(patient, tmp_path):
    folder = write_dicom(tmp_path, patient)
    first = pydicom.dcmread(folder / "1-001.dcm")
    assert (first.SyntheticData, first.Modality, first.PatientID) == ("YES", "CT", "PHANTOM-0005")
    files, volume, _, nodules = read_back(tmp_path)
    assert (files.patient_id, files.series_id) == ("PHANTOM-0005", series_uid(patient))
    np.testing.assert_array_equal(volume.hu, patient.volume.hu)
    np.testing.assert_allclose(volume.affine, patient.volume.affine, atol=1e-4)
    texture = {"solid": 4.75, "part_solid": 2.75, "ground_glass": 1.25}
    votes = [nodule.full_votes(volume.hu.shape) for nodule in nodules]
    for nodule in patient.nodules:
        (found,) = [n for n, v in zip(nodules, votes, strict=True) if v[nodule.mask == 1].any()]
        np.testing.assert_array_equal(found.full_votes(volume.hu.shape) >= 2, nodule.mask == 1)
        assert found.readers == 4
        assert found.attributes["texture"] == texture[nodule.texture_class]


def test_luna16_gives_back_lungs_and_spheres(patient, tmp_path):
    write_luna16(tmp_path, [patient])
    files, volume, lung, _ = read_back(tmp_path)
    np.testing.assert_array_equal(volume.hu, patient.volume.hu)
    np.testing.assert_array_equal(lung, patient.lung_mask == 1)
    for sphere, nodule in zip(files.annotations.spheres, patient.nodules, strict=True):
        np.testing.assert_allclose(sphere.centre_lps_mm, nodule.centre_lps_mm, atol=1e-3)
        assert sphere.diameter_mm == pytest.approx(nodule.diameter_mm, abs=1e-3)
    assert (tmp_path / "patients.csv").read_text(encoding="utf-8").splitlines()[
        1
    ] == f"{series_uid(patient)},PHANTOM-0005"


def test_decathlon_gives_back_the_nodules(patient, tmp_path):
    write_msd(tmp_path, [patient])
    _, volume, _, nodules = read_back(tmp_path)
    np.testing.assert_array_equal(volume.hu, patient.volume.hu)
    found = sum(nodule.full_votes(volume.hu.shape) for nodule in nodules)
    np.testing.assert_array_equal(found, patient.nodule_mask)


def test_a_cohort_has_all_layouts_and_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_phantom_cohort(tmp_path / name, patients=3, seed=1, size_px=48, slices=12, slice_spacing_mm=10)
    made = files_below(tmp_path / "a")
    assert made == files_below(tmp_path / "b")
    assert {name.split("/")[0] for name in made} == {"phantom-lidc", "phantom-luna16", "phantom-msd"}
    assert not [name for name in made if "tmp" in name]


@pytest.mark.parametrize("seed", range(3))
def test_a_traced_edge_filled_is_the_mask(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((24, 24)), 2) > 0.05
    pieces, _ = ndimage.label(np.pad(noise, 1), np.ones((3, 3)))
    mask = ndimage.binary_fill_holes(pieces == 1)
    edge = edge_contour(mask)
    drawn = np.zeros_like(mask)
    drawn[tuple(np.array(edge).T)] = True
    np.testing.assert_array_equal(ndimage.binary_fill_holes(drawn), mask)
    assert edge[0] == edge[-1]
    assert np.abs(np.diff(edge, axis=0)).max() == 1


def test_vessels_follow_murrays_law():
    rng = np.random.default_rng(0)
    tree = grow_tree(np.zeros(3), rng.uniform(-50, 50, (40, 3)), leaf_radius_mm=0.5)
    for node in range(41):
        children = np.flatnonzero((tree.parents == node) & (np.arange(41) > 0))
        flow = (tree.radii_mm / 0.5) ** 2.6
        assert flow[node] == pytest.approx(max(1, flow[children].sum()))


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(InputError, match=r"No room .* solid nodule of 40 mm"):
        draw_patient(0, size_px=48, slices=6, nodules=[NoduleSpec(diameter_mm=40) for _ in range(9)])
    with pytest.raises(InputError, match="diameter of 5 to 40 mm, got 'solid' and 3 mm"):
        NoduleSpec(diameter_mm=3.0)
    with pytest.raises(InputError, match="size_px >= 32"):
        draw_patient(0, size_px=16)
