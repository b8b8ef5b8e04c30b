import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from separation_toys import draw, paint, write_rigged_bundles, write_unlabelled

from lungsynth.cohort.phantom.files import write_msd
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmark():
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("separation_benchmark", ROOT / "benchmarks" / "separation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def result(benchmark, tmp_path_factory):
    """Experts' nodules are painted at 90 %, and one normal slice of the patient that tests at 30 %."""
    folder = tmp_path_factory.mktemp("benchmark")
    drawn = [draw(seed, nodules=1) for seed in range(20, 25)]
    for patient in drawn:
        object.__setattr__(patient.volume, "hu", paint(patient, 90))
    write_msd(folder / "msd", drawn)
    for seed in range(30, 34):
        patient = draw(seed, nodules=0)
        hu = patient.volume.hu.copy()
        hu[12, 45:50, 25:30] = 2030
        write_unlabelled(folder / "open", patient, hu)
    prepare_cohort([folder / "msd", folder / "open"], folder / "cohort", settings=PrepareSettings(), workers=1)
    bundles = write_rigged_bundles(folder / "bundles", "benchmark")
    file = folder / "figures.json"
    arguments = ["--cohort", str(folder / "cohort"), "--bundles", str(bundles), "--rounds", "2", "--json", str(file)]
    assert benchmark.main(arguments) == 0
    return json.loads(file.read_text(encoding="utf-8"))


def at(result, threshold, group):
    (row,) = (row for row in result["thresholds"] if row["threshold"] == threshold)
    return row[group]["value"]


def test_what_the_detector_sees_does_not_slip_and_what_it_does_not_see_does(result):
    assert at(result, 0.5, "impurity_expert") == 0
    assert at(result, 0.95, "impurity_expert") == 1
    assert at(result, 0.5, "impurity_composites") == 0
    assert at(result, 0.95, "impurity_composites") == 1
    assert result["n"]["impurity_composites"]["nodules"] >= 2


def test_false_alarms_cost_normal_slices_below_their_probability_only(result):
    assert at(result, 0.5, "discarded_unseen") == 0
    assert 0 < at(result, 0.3, "discarded_unseen") < 0.5
    assert at(result, 0.3, "discarded_expert") == 0


def test_shares_are_monotone_in_the_threshold(result):
    for group, sign in (("impurity_composites", 1), ("impurity_expert", 1), ("discarded_unseen", -1)):
        values = [row[group]["value"] for row in result["thresholds"]]
        assert (sign * np.diff(values) >= 0).all()
    assert len(result["thresholds"]) == 13


def test_other_weights_are_told_and_few_patients_get_no_interval(result):
    assert not result["same_split"]
    assert result["n"]["impurity_expert"]["patients"] < 5
    assert all(row["impurity_expert"]["low"] is None for row in result["thresholds"])


def test_the_interval_of_a_share_holds_it_and_is_wider_when_patients_differ(benchmark):
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{k}" for k in range(20)], 10)
    mixed = (rng.random(200) < 0.5).astype(float)
    sorted_by_patient = np.sort(mixed)
    even, uneven = (benchmark.share(hits, patients, np.random.default_rng(0)) for hits in (mixed, sorted_by_patient))
    assert even["low"] < even["value"] < even["high"]
    assert uneven["high"] - uneven["low"] > 2 * (even["high"] - even["low"])


@pytest.mark.parametrize(("threshold", "blocks"), [(0.5, 2), (0.05, 1)])
def test_the_montage_shows_normal_slices_lost_and_nodule_slices_kept(benchmark, tmp_path, threshold, blocks):
    tile = np.full((benchmark.TILE_PX, benchmark.TILE_PX, 3), 90, np.uint8)
    taken_out = {"discarded_unseen": (0.9, 0.0), "impurity_expert": (0.2, 0.99)}
    seen = [benchmark.Seen(group, "p", "", np.nan, at, tile) for group, pair in taken_out.items() for at in pair]
    benchmark.write_montage(tmp_path / "montage.png", seen, threshold)
    picture = np.asarray(Image.open(tmp_path / "montage.png"))
    tiles = (picture == 90).all(axis=-1).sum() / benchmark.TILE_PX**2
    assert tiles == blocks
    assert picture.shape[1] == benchmark.COLUMNS * benchmark.TILE_PX
