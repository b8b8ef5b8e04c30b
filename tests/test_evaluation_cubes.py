"""Nodules in three dimensions as they are compared, and as they are generated for scans."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated_sets import QUICK, ROOT, make_cohort
from generation_toys import CATEGORIES

from evaluation.cohort_subsets import open_subset
from evaluation.cube_sets import SHAPES, CubeSet, Nodule, describe_cubes, read_cubes
from evaluation.cubes import CubesConfig, evaluate_cubes
from evaluation.cubes_in_place import evaluate_in_place
from lungsynth.categories import AS_LISTED
from lungsynth.cohort.patches import NoduleCube
from lungsynth.cohort.resampling import soft_mask
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.scans.generated_cubes import generate_cubes, weights_sha256

BUNDLES = ROOT / "bundles"
pytestmark = pytest.mark.usefixtures("few_resamples")
INSIDE_HU = dict(zip(CATEGORIES, (-600, -300, 20), strict=True))


def ellipsoid(radii_mm: tuple[float, float, float], hu: int = 20) -> NoduleCube:
    places = (np.indices((64, 64, 64)) - 31.5) * 0.7 / np.array(radii_mm)[:, None, None, None]
    inside = (places**2).sum(axis=0) <= 1
    return NoduleCube(
        hu=np.where(inside, hu, -850).astype(np.int16), alpha=soft_mask(inside, valid=np.ones(inside.shape, bool))
    )


def stretched(diameter_mm: float, ratio: float, hu: int) -> NoduleCube:
    radius = diameter_mm / 2 / np.cbrt(ratio)
    return ellipsoid((radius * ratio, radius, radius), hu)


def described(*cubes: NoduleCube) -> CubeSet:
    return describe_cubes((Nodule(str(k), str(k), "solid"), cube) for k, cube in enumerate(cubes))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A COHORT with a stretched ball for each of its nodules."""
    folder = make_cohort(tmp_path_factory)
    lists = json.loads((folder / "nodules.json").read_text(encoding="utf-8"))
    rng, cubes = np.random.default_rng(0), {}
    for split, entries in lists.items():
        cubes[split] = []
        for entry in entries:
            name = f"cubes/{entry['nodule_id']}.npz"
            cube = stretched(rng.uniform(6, 14), rng.uniform(1, 1.6), INSIDE_HU[entry["category"]])
            cube.save(folder / name)
            cubes[split].append({"cube": name, **{key: value for key, value in entry.items() if key != "nodule"}})
    (folder / "cubes.json").write_text(json.dumps(cubes), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def with_windows(cohort, tmp_path_factory) -> Path:
    """The same, with a window around each nodule: noise of lung, and a ball on five slices."""
    folder = tmp_path_factory.mktemp("windows") / "cohort"
    shutil.copytree(cohort, folder)
    (folder / "windows").mkdir(exist_ok=True)
    (folder / "enhancement.json").write_text(json.dumps({"training": [], "test": []}), encoding="utf-8")
    lists = json.loads((folder / "nodules.json").read_text(encoding="utf-8"))
    for number, entry in enumerate([*lists["training"], *lists["test"][::3]]):
        rng, radius_mm = np.random.default_rng(number), entry["diameter_mm"] / 2
        places = (np.indices((9, 128, 128)) - [[[[4]]], [[[64]]], [[[64]]]]) * np.array([2.5, 0.7, 0.7])[
            :, None, None, None
        ]
        inside = (places**2).sum(axis=0) <= radius_mm**2
        inside[4, 62:67, 62:67] = True
        level = np.where(inside, INSIDE_HU[entry["category"]], -850)
        arrays = {
            "hu": np.rint(level + rng.normal(0, 20, level.shape)).astype(np.int16),
            "label": np.where(inside, np.uint8(2), np.uint8(0)),
            "votes": inside.astype(np.uint8) * np.uint8(2),
            "z_mm": np.arange(9) * 2.5,
            "largest": np.int64(4),
        }
        np.savez_compressed(folder / "windows" / f"{entry['nodule_id']}.npz", **arrays)
    return folder


def test_nodules_are_inserted_beside_held_out_ones(cohort, with_windows, monkeypatch):
    monkeypatch.setattr("evaluation.boundary._MIN_REAL", 10)
    figures, n = evaluate_in_place(open_subset(with_windows), BUNDLES, seed=0, steps=1)
    assert n > 3
    assert list(figures) == ["training", "inserted", "generated", "even", "held_out"]
    for name, row in figures.items():
        assert set(row) == ({"boundary"} if name == "held_out" else {"c2st", "boundary"})
        assert all(figure.value is not None for figure in row.values())
        if "c2st" in row:
            assert row["c2st"].n == 2 * n
    with pytest.raises(NoSamplesError, match="0 windows of its test split have room"):
        evaluate_in_place(open_subset(cohort), BUNDLES, seed=0)


def test_shape_is_measured_in_three_dimensions():
    cubes = described(ellipsoid((6, 6, 6)), ellipsoid((12, 6, 6)), ellipsoid((6, 6, 12)), ellipsoid((6, 4, 12)))
    elongation, sphericity = cubes.shapes["elongation"], cubes.shapes["sphericity"]
    np.testing.assert_allclose(elongation, [1, 2, 2, 3], rtol=0.05)
    assert sphericity[0] == pytest.approx(1, abs=0.06)
    assert sphericity[0] > sphericity[1] > sphericity[3]
    assert sphericity[1] == pytest.approx(sphericity[2], rel=1e-3)
    np.testing.assert_allclose(cubes.diameter_mm, 2 * np.cbrt([216, 432, 432, 288]), rtol=0.03)
    np.testing.assert_allclose(cubes.shapes["mean_hu"], 20)


def test_planes_are_those_through_the_middle():
    cubes = described(ellipsoid((10, 8, 6)), ellipsoid((5, 5, 5)))
    for plane, radii in zip(cubes.planes, ((8, 6), (10, 6), (10, 8)), strict=True):
        assert plane.diameter_mm[0] == pytest.approx(2 * np.sqrt(np.prod(radii)), rel=0.05)
    assert len(cubes.all_planes) == 6
    assert cubes.take([1]).all_planes.names == ("1", "1", "1")


def test_cubes_without_a_category_or_a_nodule_are_left_out(cohort):
    assert len(read_cubes(cohort, "test", rule=AS_LISTED)) == 18
    with pytest.raises(InputError, match=r"cubes\.json: expected rated nodules in `validation`, got none"):
        read_cubes(cohort, "validation", rule=AS_LISTED)


def test_a_table_beside_the_floor(cohort, tmp_path, monkeypatch):
    asked = []

    def generate(bundles, categories, diameters_mm, *, seed):
        asked.append((bundles, seed))
        return [stretched(mm, 3.0, INSIDE_HU[name]) for name, mm in zip(categories, diameters_mm, strict=True)]

    monkeypatch.setattr("evaluation.cubes.generate_cubes", generate)
    config = CubesConfig(cohort=cohort, out=tmp_path, bundles=BUNDLES, seed=3, measurement=QUICK)
    result = evaluate_cubes(config, tracking_uri="none")
    assert asked == [(BUNDLES, 3)]
    table = json.loads((tmp_path / "cubes.json").read_text(encoding="utf-8"))
    floor, made, real = table["rows"]
    assert (floor["method"], made["method"], real["method"]) == ("training", "generated", "held_out")
    assert (table["n"], table["weights"]) == (18, weights_sha256(BUNDLES))
    assert floor["copies"] > made["copies"]
    assert made["diameter_error_mm"] < 0.3 < floor["diameter_error_mm"]
    assert made["elongation"] > 2.5 > real["elongation"]
    assert made["elongation_spread"] < real["elongation_spread"]
    assert made["n"]["c2st"] == 2 * 3 * 18
    densities = [row["solid"] for row in table["mean_hu"]]
    np.testing.assert_allclose(densities, INSIDE_HU["solid"], atol=1)
    assert "training patients' nodules (floor)" in result.markdown
    with pytest.raises(InputError, match="`seed` must not be negative"):
        replace(config, seed=-1)


def test_a_cube_follows_from_its_request_alone():
    three = generate_cubes(BUNDLES, ["solid", "ground_glass", "solid"], [6.0, 9.0, 12.0], seed=5)
    two = generate_cubes(BUNDLES, ["part_solid", "ground_glass"], [8.0, 9.0], seed=5)
    assert np.array_equal(three[1].hu, two[1].hu)
    assert not np.array_equal(three[0].hu, generate_cubes(BUNDLES, ["solid"], [6.0], seed=6)[0].hu)
    np.testing.assert_allclose(described(*three).diameter_mm, [6, 9, 12], atol=0.1)
    assert three[0].hu.shape == (64, 64, 64)
    assert described(*three).shapes["mean_hu"][1] < described(*three).shapes["mean_hu"][0]
    assert len(SHAPES) == 3


def test_what_cannot_be_generated_is_said(tmp_path):
    with pytest.raises(InputError, match=r"above 2\.1 and up to 32\.5 mm, which a cube of 64 voxels"):
        generate_cubes(BUNDLES, ["solid"], [40.0], seed=0)
    with pytest.raises(InputError, match=r"categories out of .*'part_solid'.*got \['hard'\]"):
        generate_cubes(BUNDLES, ["hard"], [9.0], seed=0)
    (tmp_path / "wcapsgan_bundle" / "configs").mkdir(parents=True)
    (tmp_path / "wcapsgan_bundle" / "configs" / "inference.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"model_cube\.pt: expected weights.*train_cube\.json"):
        weights_sha256(tmp_path)
