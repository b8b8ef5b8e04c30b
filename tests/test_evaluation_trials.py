"""Trials against real nodules: lungs of windows, places that leave real nodules alone, and agreement."""

import numpy as np
import pytest

from evaluation.segmentation.windows import SIDE_PX, NoduleView
from evaluation.trials import ARMS, _Comparison, _host, _lung
from lungsynth.cohort.schema import NoduleRow
from lungsynth.placement.assets import AssetLibrary
from lungsynth.trial.samples import place_nodule

pytestmark = pytest.mark.usefixtures("few_resamples")


def window(patient="p", name="n", texture="solid", radius=4):
    """Lung on the left, chest wall on the right, a nodule in the lung."""
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 15, (SIDE_PX, SIDE_PX)).astype(np.int16)
    hu[:, 70:] = 40
    rows, columns = np.ogrid[:SIDE_PX, :SIDE_PX]
    votes = np.where(np.hypot(rows - 30, columns - 30) <= radius, 2, 0).astype(np.uint8)
    hu[votes > 0] = 30
    nodule = NoduleRow(
        nodule_id=name, patient_id=patient, series_id="s", source="", texture_class=texture, diameter_mm=1.4 * radius
    )
    return NoduleView(nodule=nodule, hu=hu[None], slice_mm=1.0, index=0, votes=votes, readers=None)


def test_air_outside_the_body_is_no_lung():
    hu = window().hu[0].copy()
    hu[:, 80:] = -1000
    lung = _lung(hu)
    assert lung[:, :60].mean() > 0.9
    assert not lung[:, 70:].any()


def test_what_is_put_in_leaves_the_nodule_and_the_border_alone(tmp_path):
    from placement_toys import add_nodule

    library = AssetLibrary(tmp_path)
    host, level = _host(window(), library)
    nodule = add_nodule(library, 8.0)
    assert level == (5.0, None), "the nodule lies 28 mm from the wall"
    for seed in range(8):
        _, (placed,) = place_nodule(host, nodule, {"diameter_mm": 8.0}, seed=(seed,))
        assert np.hypot(placed.row_px - 30, placed.col_px - 30) * 0.7 > 4 + 4 * 0.7
        assert min(placed.row_px, placed.col_px) * 0.7 > 4


@pytest.fixture
def views():
    sizes = [3, 3, 4, 4, 6, 6, 9, 9] * 12
    return [window(patient=str(k % 20), name=str(k), radius=size) for k, size in enumerate(sizes)]


def record(rng, views, chance):
    scores = {
        arm: [float(rng.random() < chance * (v.votes > 0).sum() ** 0.2) for v in views] for arm in ("real", *ARMS)
    }
    return {**scores, "threshold": 0.5}


def test_arms_that_answer_alike_agree_and_others_do_not(views):
    rng = np.random.default_rng(0)
    records = {name: record(rng, views, chance) for name, chance in (("a", 0.2), ("b", 0.3), ("c", 0.4), ("d", 0.45))}
    for own in records.values():
        own["own"] = own["real"]
    agreement = _Comparison.of(views, records, 0).agreement
    assert agreement["own_rank_methods"].value == agreement["own_rank_cells"].value == pytest.approx(1.0)
    assert agreement["own_difference"].value == agreement["own_cell_error"].value == 0.0
    assert agreement["donor_cell_error"].value > 0.02


def test_a_trial_that_is_off_by_the_same_everywhere_is_corrected(views):
    rng = np.random.default_rng(1)
    records = {}
    for name, chance in (("a", 0.25), ("b", 0.35), ("c", 0.45)):
        own = record(rng, views, chance)
        own["own"] = [score if rng.random() < 0.6 else 0.0 for score in own["real"]]
        records[name] = own
    agreement = _Comparison.of(views, records, 0).agreement
    assert agreement["own_difference"].value < -0.1
    assert agreement["own_cell_error_calibrated"].value < agreement["own_cell_error"].value
