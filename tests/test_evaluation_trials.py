"""Trials against real nodules: what stands in for them, where it lies, and agreement."""

import numpy as np
import pytest
from placement_toys import add_nodule
from scipy import ndimage

from evaluation.segmentation.windows import SIDE_PX, NoduleView
from evaluation.trials.agreement import Agreement
from evaluation.trials.arms import ARMS, _Spot
from evaluation.trials.removal import without_nodule
from evaluation.utility.windows import lung_of
from lungsynth.cohort.schema import NoduleRow
from lungsynth.compositing.render import render
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe

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
    lung = lung_of(hu)
    assert lung[:, :60].mean() > 0.9
    assert not lung[:, 70:].any()


def test_a_nodule_is_painted_over_with_lung_and_nothing_else_changes():
    view = window()
    lung = lung_of(view.hu[0]) | view.mask
    cleared = without_nodule(view.hu[0], view.mask, lung, rng=np.random.default_rng(0))
    assert cleared[view.mask].max() < -780, "lung is -850 HU with noise of 15"
    assert 10 < cleared[view.mask].std() < 20, "its noise as well"
    rows, columns = np.nonzero(cleared != view.hu[0])
    assert np.hypot(rows - 30, columns - 30).max() <= 4 + 4
    assert view.hu[0][view.mask].min() == 30, "the view itself stays"


def test_a_nodule_that_is_most_of_the_lung_cannot_be_painted_over():
    view = window(radius=4)
    lung = np.hypot(*(np.indices((SIDE_PX, SIDE_PX)) - 30)) <= 6
    assert without_nodule(view.hu[0], view.mask, lung, rng=np.random.default_rng(0)) is None


def test_a_stand_in_lies_where_the_nodule_was_and_is_as_large(tmp_path):
    library = AssetLibrary(tmp_path)
    view = window()
    spot = _Spot.of(view, library, rng=np.random.default_rng(0))
    recipe = make_recipe(spot.host.asset, *spot.in_place(add_nodule(library, 6.0), seed=(0, 0)), seed=0)
    put_in = render(recipe, library).label == Label.NODULE
    assert ndimage.center_of_mass(put_in) == pytest.approx((30, 30), abs=1)
    assert put_in.sum() == pytest.approx(view.mask.sum(), rel=0.25)


def test_elsewhere_leaves_the_place_of_the_nodule_and_the_border_alone(tmp_path):
    library = AssetLibrary(tmp_path)
    spot = _Spot.of(window(), library, rng=np.random.default_rng(0))
    nodule = add_nodule(library, 6.0)
    assert spot.distance_mm == (5.0, None), "the nodule lies 28 mm from the wall"
    for seed in range(8):
        _, (placed,) = spot.elsewhere(nodule, seed=(seed, 0))
        assert np.hypot(placed.row_px - 30, placed.col_px - 30) * 0.7 > 3 + 4 * 0.7
        assert min(placed.row_px, placed.col_px) * 0.7 > 3


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
    agreement = Agreement.of(views, records, 0).figures
    assert agreement["own_rank_methods"].value == agreement["own_rank_cells"].value == pytest.approx(1.0)
    assert agreement["own_difference"].value == agreement["own_cell_error"].value == 0.0
    assert agreement["donor_cell_error"].value > 0.02


def test_what_other_patients_foretell_is_less_than_what_the_same_do(views):
    rng = np.random.default_rng(0)
    chances = {"a": 0.1, "b": 0.2, "c": 0.35, "d": 0.5}
    found = Agreement.of(views, {name: record(rng, views, chance) for name, chance in chances.items()}, 0)
    ceiling, trial = (found.halves[f"{arm}_rank_all"] for arm in ("real", "generated"))
    assert 0.5 < ceiling < 1
    assert trial == pytest.approx(ceiling, abs=0.15), "arms are drawn alike, so a trial is as good as other patients"


def test_a_trial_that_is_off_by_the_same_everywhere_is_corrected(views):
    rng = np.random.default_rng(1)
    records = {}
    for name, chance in (("a", 0.25), ("b", 0.35), ("c", 0.45)):
        own = record(rng, views, chance)
        own["own"] = [score if rng.random() < 0.6 else 0.0 for score in own["real"]]
        records[name] = own
    agreement = Agreement.of(views, records, 0).figures
    assert agreement["own_difference"].value < -0.1
    assert agreement["own_cell_error_calibrated"].value < agreement["own_cell_error"].value
