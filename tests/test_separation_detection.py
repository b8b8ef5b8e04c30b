import numpy as np
import pytest
from separation_toys import write_rigged_bundles

from lungsynth.cohort.schema import SeriesRow, SliceRow
from lungsynth.cohort.slices import read_stacks
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.geometry import axial_affine
from lungsynth.pseudo_labels.candidates import find_candidates, open_detector, operating_point
from lungsynth.pseudo_labels.series import still_normal

SPACING_MM = (2.0, 1.0, 1.0)
SHAPE = (12, 48, 48)


def volume(shape=SHAPE, spacing_mm=SPACING_MM):
    affine = axial_affine(spacing_mm=spacing_mm, origin_lps_mm=(-20.0, -20.0, -100.0))
    return Volume(hu=np.full(shape, -850, np.int16), affine=affine, series_id="s", patient_id="p")


def distance(centre, shape=SHAPE, spacing_mm=SPACING_MM):
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    return np.sqrt(sum(((a - c) * mm) ** 2 for a, c, mm in zip(axes, centre, spacing_mm, strict=True)))


def candidates(rows, nodule):
    found = {"candidates": np.array(rows, np.float32).reshape(-1, 5), "nodule": nodule.astype(np.float16)}
    return find_candidates(lambda hu, spacing_mm: found, volume(nodule.shape))


def full(candidate, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[candidate.box] = candidate.mask
    return mask


def test_a_candidate_gets_what_lies_above_half_of_its_peak_and_no_more_than_half():
    for peak in (1.0, 0.3):
        nodule = peak * np.clip(1 - distance((6, 24, 20)) / 8, 0, 1)
        (found,) = candidates([[6, 24, 20, 10, peak]], nodule)
        assert np.array_equal(full(found), nodule.astype(np.float16) >= peak / 2)
        assert found.largest_slice == 6


def test_a_faint_bridge_to_a_vessel_does_not_leak_into_the_mask():
    nodule = np.where(distance((6, 24, 20)) <= 4, 0.9, 0.0)
    nodule[6, 24, :] = np.maximum(nodule[6, 24, :], 0.6)
    (found,) = candidates([[6, 24, 20, 8, 0.9]], nodule)
    columns = np.flatnonzero(full(found).any(axis=(0, 1)))
    assert columns.min() >= 20 - 8
    assert columns.max() <= 20 + 8


def test_two_that_touch_share_no_voxel_and_the_less_probable_never_changes_the_other():
    nodule = np.maximum(np.where(distance((6, 24, 16)) <= 5, 0.9, 0.0), np.where(distance((6, 24, 27)) <= 5, 0.4, 0.0))
    nodule[6, 24, 20:24] = 0.45
    rows = [[6, 24, 27, 10, 0.4], [6, 24, 16, 10, 0.9]]
    first, second = candidates(rows, nodule)
    assert (first.probability, second.probability) == pytest.approx((0.9, 0.4))
    assert not (full(first) & full(second)).any()
    (alone,) = candidates(rows[1:], nodule)
    assert np.array_equal(full(alone), full(first))


def test_a_repetition_is_left_out():
    nodule = np.where(distance((6, 24, 20)) <= 4, 0.9, 0.0)
    assert len(candidates([[6, 24, 20, 8, 0.9], [6, 25, 20, 8, 0.5]], nodule)) == 1


@pytest.mark.parametrize("centre", [(0, 0, 0), (11.4, 47.4, 47.4), (-0.4, 30, 30)])
def test_a_candidate_on_the_border_without_a_map_is_its_ball(centre):
    (found,) = candidates([[*centre, 6, 0.7]], np.zeros(SHAPE))
    assert full(found).sum() >= 1
    assert (distance(centre)[full(found)] <= max(3, distance(centre).min() + 1e-5)).all()


def test_a_single_slice_has_candidates_too():
    shape = (1, 48, 48)
    nodule = np.where(distance((0, 24, 20), shape) <= 4, 0.9, 0.0)
    (found,) = candidates([[0, 24, 20, 8, 0.9]], nodule)
    assert list(found.slices(slice_mm=2.0, depth=1)) == [0]


def test_slices_that_a_candidate_reaches_are_those_of_its_mask_and_of_its_diameter():
    nodule = np.where(distance((6, 24, 20)) <= 1, 0.9, 0.0)
    (found,) = candidates([[6, 24, 20, 8, 0.9]], nodule)
    assert list(found.slices(slice_mm=2.0, depth=12)) == [4, 5, 6, 7, 8]
    assert list(found.slices(slice_mm=2.0, depth=7)) == [4, 5, 6]


def test_no_candidate_is_no_trouble_and_a_broken_detector_is_named():
    assert candidates([], np.zeros(SHAPE)) == []
    with pytest.raises(InputError, match="promises finite candidates"):
        candidates([[1, 2, 3, np.nan, 0.5]], np.zeros(SHAPE))
    with pytest.raises(InputError, match="states no operating point: give `threshold`"):
        operating_point(lambda hu, spacing_mm: {})
    with pytest.raises(InputError, match="gave no 'nodule'"):
        find_candidates(lambda hu, spacing_mm: {"candidates": np.zeros((0, 5))}, volume())


def test_a_bundle_without_a_detector_is_refused(tmp_path):
    root = write_rigged_bundles(tmp_path, "detectorless") / "lung_seg_bundle"
    assert callable(open_detector(tmp_path))
    (root / "configs" / "inference.json").write_text('{"bundle_root": "."}', encoding="utf-8")
    with pytest.raises(InputError, match="expected an entry `detector`"):
        open_detector(tmp_path)


def test_scans_come_back_from_slices_in_runs(tmp_path):
    scan = volume((9, 6, 7))
    scan.hu[:] = np.arange(9)[:, None, None]
    series = SeriesRow(
        series_id="s", patient_id="p", patient_known=True, source="x", family="x", folder="x", slices=8,
        spacing_slice_mm=2.0, lung_mask="data", nodule_mask="none",
    )  # fmt: skip
    rows = [SliceRow(slice_id=f"s_{k:04d}", series_id="s", shows_nodule=False, normal=True) for k in range(9) if k != 4]
    for row, index in zip(rows, [0, 1, 2, 3, 5, 6, 7, 8], strict=True):
        for folder, plane in (("slices", scan.hu[index]), ("labels", np.zeros((6, 7), np.uint8))):
            write_plane(tmp_path / folder / f"{row.slice_id}.nii.gz", plane, scan.plane_affine(index))
    low, high = read_stacks(tmp_path, series, [row.index for row in rows[::-1]])
    assert (low.first, high.first) == (0, 5)
    assert np.array_equal(high.volume.hu, scan.hu[5:])
    assert np.allclose(high.volume.affine, scan.affine @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]])
    kept = still_normal(rows, [range(6, 7)], slice_mm=2.0, gap_mm=3.0)
    assert kept.tolist() == [True, True, True, True, False, False, False, True]
