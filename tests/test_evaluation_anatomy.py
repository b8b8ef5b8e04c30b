import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from evaluation.anatomy.compare import anatomy_floor, judge_anatomy, moments
from evaluation.anatomy.lungs import at_full_resolution, read_images, read_native_lungs
from evaluation.anatomy.measures import MEASURES, AnatomySet, measure_lung, measure_lungs
from evaluation.anatomy.reference import AnatomyReference
from evaluation.anatomy.run import AnatomyConfig
from evaluation.anatomy.table import anatomy_json, anatomy_markdown
from evaluation.anatomy.two_sample import even_weights
from evaluation.generation.figures import ANATOMY_FIGURES, GenerationFigures
from lungsynth.cohort.schema import SeriesRow, columns
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.geometry import axial_affine
from lungsynth.similarity.samples import Samples

MM = 0.7
KEYS = [measure.key for measure in MEASURES]


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr("evaluation.anatomy.two_sample._TREES", 12)


def phantom(*, vessels=6, width=2.0, ribs=8, noise=10.0, seed=0):
    """A slice of 200 x 300 pixels: two lungs of 1 cm2 for each 14 x 14, straight vessels of 40 mm, round ribs."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:200, :300]
    mask = np.zeros((200, 300), bool)
    mask[40:160, 50:140] = mask[40:160, 160:250] = True
    hu = np.where(mask, -850.0, 40.0)
    for index in range(vessels):  # profiles of Gaussians, 300 HU above the lung
        row, left = 60 + 15 * (index % 6), 66 if index < 6 else 176
        along = (cols >= left) & (cols < left + round(40 / MM))
        hu += 300 * np.exp(-((rows - row) ** 2) / 2 / (width / 2) ** 2) * along * mask
    for index in range(ribs):
        centre = (20 if index < ribs // 2 else 180, 60 + 24 * (index % max(ribs // 2, 1)))
        hu[np.hypot(rows - centre[0], cols - centre[1]) < 6] = 600
    return hu + rng.normal(0, noise, hu.shape), mask


def test_a_phantom_has_the_vessels_ribs_and_noise_that_were_drawn():
    hu, mask = phantom(vessels=6, ribs=8, noise=12)
    values, patches = measure_lung(hu, mask)
    area_cm2 = 2 * (120 * MM - 6) * (90 * MM - 6) / 100
    assert values["vessels"] == pytest.approx(6 * 40 / area_cm2, rel=0.1)
    assert values["long_share"] == 1
    assert values["loops"] == 0
    assert values["ribs"] == 8
    assert values["noise"] == pytest.approx(12, rel=0.1)
    assert patches.shape[1:] == (48, 48)
    assert len(patches) == 12


def test_blur_and_noise_are_noticed_in_their_measures():
    hu, mask = phantom()
    (sharp, _), (blurred, _) = measure_lung(hu, mask), measure_lung(ndimage.gaussian_filter(hu, 1.0), mask)
    noisy, _ = measure_lung(hu + np.random.default_rng(1).normal(0, 20, hu.shape), mask)
    assert blurred["pleura"] < 0.85 * sharp["pleura"]
    assert blurred["noise"] < 0.5 * sharp["noise"]
    assert noisy["noise"] == pytest.approx(np.hypot(10, 20), rel=0.1)
    assert blurred["fine_structure"] < sharp["fine_structure"] - 5 < noisy["fine_structure"]
    assert blurred["spectrum_slope"] < sharp["spectrum_slope"] < noisy["spectrum_slope"]


def test_webs_have_loops_dots_are_specks_and_merged_ribs_are_one():
    hu, mask = phantom(vessels=0, ribs=0, noise=4)
    rows, cols = np.mgrid[:200, :300]
    ring = np.abs(np.hypot(rows - 100, cols - 95) - 20) < 1.5
    for column in range(180, 240, 15):
        hu[np.hypot(rows - 100, cols - column) < 1.6] = -500
    hu[ring] = -500
    hu[12:22, 60:240] = 600
    values, _ = measure_lung(hu, mask)
    length_mm = 2 * np.pi * 20 * MM
    assert values["loops"] == pytest.approx(100 / length_mm, rel=0.15)
    assert values["specks"] * 2 * (120 * MM - 6) * (90 * MM - 6) / 100 == pytest.approx(4, rel=0.1)
    assert values["ribs"] == 1


def test_vessels_that_thin_out_have_a_calibre_above_one():
    hu, mask = phantom(vessels=0, ribs=0, noise=2)
    mask[40:160, 140:160] = True  # one lung, wide enough for a core
    hu[40:160, 140:160] = -850
    hu[97:103, 100:200], hu[99:101, 55:70], hu[99:101, 230:245] = -500, -500, -500
    assert measure_lung(hu, mask)[0]["taper"] > 1.5


def test_a_slice_without_lung_measures_nothing():
    values, patches = measure_lung(np.full((64, 64), 40), np.zeros((64, 64), bool))
    assert list(values) == KEYS
    assert np.isnan(list(values.values())).all()
    assert len(patches) == 0


def samples(count=3, *, spacing_mm=MM, owners=None):
    planes = [phantom(seed=seed) for seed in range(count)]
    names = tuple(f"s{index}" for index in range(count))
    return Samples(
        hu=np.stack([np.pad(hu, ((50, 50), (0, 0)), constant_values=-1000) for hu, _ in planes]).astype(np.int16),
        mask=np.stack([np.pad(mask, ((50, 50), (0, 0))) for _, mask in planes]).astype(np.float16),
        categories=("normal",) * count,
        owners=owners or names,
        names=names,
        spacing_mm=spacing_mm,
    )


def test_sets_are_measured_on_one_grid_and_taken_by_owner():
    measured = measure_lungs(samples(owners=("a", "b", "a")))
    part = measured.of_owners({"a"})
    assert len(part) == 2
    assert part.n_owners == 1
    assert np.array_equal(part.values, measured.values[[0, 2]], equal_nan=True)
    assert len(part.features) == (np.isin(measured.patch_of, [0, 2])).sum()
    assert set(part.patch_of) == {0, 1}
    assert len(part.join(measured)) == 5
    assert part.join(measured).patch_of.max() == 4
    with pytest.raises(InputError, match=r"0\.7 mm, got 3 at 1\.4"):
        measure_lungs(samples(spacing_mm=1.4))


def test_coarser_lungs_are_enlarged_and_lose_their_fine_structure():
    fine = samples(1)
    coarse = replace(fine, hu=fine.hu[:, ::2, ::2], mask=fine.mask[:, ::2, ::2], spacing_mm=1.4)
    enlarged = at_full_resolution(coarse)
    assert enlarged.hu.shape == fine.hu.shape
    assert enlarged.spacing_mm == MM
    assert at_full_resolution(fine) is fine
    before, after = (dict(zip(KEYS, measure_lungs(one).values[0], strict=True)) for one in (fine, enlarged))
    assert after["fine_structure"] < before["fine_structure"] - 3


# Comparison: values by hand, as if they were measured


def made(seed, *, patients=12, each=3, shift=0.0, name="p"):
    """Patients who differ by half a standard deviation of their slices."""
    rng = np.random.default_rng(seed)
    count = patients * each
    values = rng.normal(size=(count, len(KEYS))) + np.repeat(0.5 * rng.normal(size=(patients, len(KEYS))), each, axis=0)
    patch_of = np.repeat(np.arange(count), 4)
    features = rng.normal(size=(len(patch_of), 6)) + 0.3 * values[patch_of, :6]
    owners = tuple(f"{name}{index // each}" for index in range(count))
    return AnatomySet(values=values + shift, features=features + shift, patch_of=patch_of, owners=owners)


def test_real_against_real_is_at_the_floor_and_another_set_is_not():
    real, held_out, other = made(0), made(1, name="q"), made(2, shift=2.0, patients=24, each=1, name="g")
    floor = anatomy_floor(real.join(held_out), judges=12, draws=8, test_draws=1)
    same, far = judge_anatomy(real, held_out), judge_anatomy(other, held_out, further=real)
    assert same.mean_distance < floor.mean_distance.high + 0.2
    assert floor.mean_distance.mean < 0.5
    assert abs(same.forest - 0.5) < 0.2
    assert abs(same.patches - 0.5) < 0.15
    assert floor.forest.mean < 0.65
    assert far.forest > 0.95
    assert far.patches > 0.9
    assert far.mean_distance > 1.3 > floor.mean_distance.high
    assert far.worst >= far.mean_distance
    assert abs(far.distances[far.worst_measure]) == far.worst
    assert (floor.patients, floor.judges, far.n, far.owners) == (24, 12, 24, 24)


def test_no_patient_is_on_both_sides_and_few_patients_are_refused():
    real = made(0)
    with pytest.raises(InputError, match="12 patients are on both sides"):
        judge_anatomy(real, real)
    with pytest.raises(InputError, match="needs 4 patients or more"):
        anatomy_floor(made(0, patients=3), judges=2)
    judged = judge_anatomy(real.of_owners({"p0", "p1", "p2"}), made(1, name="q", patients=4), further=real)
    assert judged.n == 9


def test_patients_count_evenly_and_what_is_undefined_is_left_out():
    assert even_weights(("a", "a", "b")).tolist() == [0.25, 0.25, 0.5]
    side = made(0, patients=2, each=1)
    values = side.values.copy()
    values[0, 0], values[:, 1] = np.nan, np.nan
    mean, _ = moments(replace(side, values=values))
    assert mean[KEYS[0]] == values[1, 0]
    assert mean[KEYS[1]] is None
    judged = judge_anatomy(replace(side, values=values), made(1, name="q"))
    assert judged.means[KEYS[1]] is None
    assert judged.mean_distance is not None


def test_tables_show_figures_beside_the_floor():
    real, training = made(0), made(1, name="t")
    floor = anatomy_floor(real.join(training), judges=12, draws=3, test_draws=1)
    reference = AnatomyReference(judging=real, training=training, floor=floor, seed=0)
    judged = judge_anatomy(made(2, shift=2.0, name="g"), real)
    text = anatomy_markdown([("generated", judged), ("failed", None)], reference)
    content = json.loads(json.dumps(anatomy_json(reference)))
    assert "| generated |" in text
    assert "failed" not in text
    assert "*floor: 12 patients against 12*" in text
    assert all(measure.title in text for measure in MEASURES)
    assert content["floor"]["judges"] == 12
    assert set(content["real_mean"]) == set(KEYS)
    assert content["training_patients"]["n"] == 36


def test_figures_of_a_row_of_table_2_hold_a_judgement():
    judged = judge_anatomy(made(2, shift=2.0, name="g"), made(0))
    figures = GenerationFigures(anatomy=judged)
    assert GenerationFigures.from_json(json.loads(json.dumps(figures.to_json()))).anatomy == judged
    assert set(ANATOMY_FIGURES.values()) <= set(judged.to_json())


# Files


def test_images_are_read_from_files_folders_and_lists(tmp_path):
    hu, mask = np.full((3, 64, 64), -800, np.int16), np.ones((3, 64, 64), np.uint8)
    np.savez(tmp_path / "stack.npz", hu=hu, mask=mask)
    assert len(read_images(tmp_path / "stack.npz", count=2)) == 2
    assert read_images(tmp_path / "stack.npz", count=64).spacing_mm == pytest.approx(358.4 / 64)
    (tmp_path / "each").mkdir()
    for index in range(2):
        np.savez(tmp_path / "each" / f"{index}.npz", hu=hu[index], mask=mask[index])
    assert len(read_images(tmp_path / "each", count=64)) == 2
    affine = axial_affine(spacing_mm=(5.0, 1.4, 1.4), origin_lps_mm=(0.0, 0.0, 0.0))
    write_plane(tmp_path / "image.nii.gz", hu[0], affine)
    write_plane(tmp_path / "label.nii.gz", mask[0], affine)
    pairs = {"training": [{"image": "image.nii.gz", "label": "label.nii.gz"}], "validation": []}
    (tmp_path / "datalist.json").write_text(json.dumps(pairs), encoding="utf-8")
    listed = read_images(tmp_path, count=64)
    assert listed.hu.shape == (1, 512, 512)
    assert 125**2 < np.count_nonzero(listed.mask) <= 128**2
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="got 0 images"):
        read_images(tmp_path / "nothing", count=64)
    np.savez(tmp_path / "bad.npz", hu=hu, mask=mask[:2])
    with pytest.raises(InputError, match="its arrays differ in shape"):
        read_images(tmp_path / "bad.npz", count=64)


def test_patients_are_read_from_their_own_grids_when_those_are_fine_enough(tmp_path):
    folder = tmp_path / "cohort"
    for name in ("", "slices", "labels"):
        (folder / name).mkdir()
    lists = {"training": [], "validation": [], "test": []}
    head = [column.name for column in columns(SeriesRow)]
    lines = [",".join(head)]
    for who, pixel_mm, count in (("a", 0.7, 6), ("b", 0.9, 1), ("c", 1.5, 1)):
        affine = axial_affine(spacing_mm=(5.0, pixel_mm, pixel_mm), origin_lps_mm=(0.0, 0.0, 0.0))
        for index in range(count):
            hu, label = np.full((64, 64), -800, np.int16), np.ones((64, 64), np.uint8)
            for kind, plane in (("slices", hu), ("labels", label)):
                write_plane(folder / kind / f"{who}_{index:04d}.nii.gz", plane, affine)
            place = f"{who}_{index:04d}.nii.gz"
            entry = {"image": f"slices/{place}", "label": f"labels/{place}", "category": "normal", "patient_id": who}
            lists["test"].append({**entry, "series_id": who, "lung": f"lungs/{who}_{index:04d}.npz", "source": "x"})
        row = dict.fromkeys(head, "") | {
            "series_id": who, "patient_id": who, "patient_known": "True", "source": "x", "split": "test",
            "slices": str(count), "spacing_slice_mm": "5", "spacing_row_mm": str(pixel_mm),
            "spacing_column_mm": str(pixel_mm), "lung_mask": "data", "nodule_mask": "none",
        }  # fmt: skip
        lines.append(",".join(row[name] for name in head))
    (folder / "series.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "lungs.json").write_text(json.dumps(lists), encoding="utf-8")
    (folder / "cohort.json").write_text(json.dumps({"format": 2, "split_hash": "ab" * 32}), encoding="utf-8")
    real = read_native_lungs(folder, ("test",))
    assert real.owners == ("a", "a", "a", "a", "b")
    assert real.hu.shape == (5, 512, 512)
    assert real.spacing_mm == MM
    assert np.count_nonzero(real.mask[0]) == pytest.approx(64**2, rel=0.08)
    assert np.count_nonzero(real.mask[4]) == pytest.approx((64 * 0.9 / 0.7) ** 2, rel=0.08)
    with pytest.raises(InputError, match="no normal slice of its training patients"):
        read_native_lungs(folder, ("training",))


def test_what_cannot_be_judged_is_said(tmp_path):
    with pytest.raises(InputError, match="`count`"):
        AnatomyConfig(cohort=tmp_path, out=tmp_path, bundles=tmp_path, count=65)
    with pytest.raises(InputError, match="Nothing is to be judged"):
        AnatomyConfig(cohort=tmp_path, out=tmp_path, bundles=tmp_path, generator=False)
    assert AnatomyConfig(cohort=tmp_path, out=tmp_path, bundles=tmp_path).splits == ("validation", "test")
