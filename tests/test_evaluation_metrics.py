"""Laws of the metrics: who hits what, FROC, pixels, and intervals over patients."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.bootstrap import estimate, estimate_ratio
from evaluation.metrics.dice import PixelCounts, dice, pixel_estimates
from evaluation.metrics.froc import CPM_RATES, Froc
from evaluation.metrics.matching import Case, FalsePositive, Lesion, ReferenceNodule, match
from evaluation.tables import Column, TableRow, json_rows, paper_table
from lungsynth.errors import InputError

SPACING = (2.0, 0.5, 0.5)


def lesion(**changes) -> Lesion:
    facts = {"id": "n", "patient": "p", "centre": (5.0, 20.0, 20.0), "diameter_mm": 10.0}
    return Lesion(**{**facts, **changes})


def candidates(*rows) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 5)


def case(scores=(), false=(), *, patient="a", owner=None) -> Case:
    nodules = tuple(
        ReferenceNodule(
            id=str(index),
            patient=owner or patient,
            centre=(0, 0, 0),
            diameter_mm=5,
            category="solid",
            score=score,
            nearest_mm=None,
            nearest_probability=None,
        )
        for index, score in enumerate(scores)
    )
    false_positives = tuple(
        FalsePositive(centre=(0, 0, 0), diameter_mm=4, probability=p, nearest_mm=None) for p in sorted(false)[::-1]
    )
    return Case(
        id="x", patient=patient, slices=1, seconds=1.0, marked=0, nodules=nodules, false_positives=false_positives
    )


# Matching


@pytest.mark.parametrize(
    ("place", "hit"),
    [((5, 20, 29.8), True), ((5, 20, 30.2), False), ((7, 20, 20), True), ((8, 20, 20), False)],
)
def test_a_candidate_hits_within_the_radius_in_millimetres(place, hit):
    targets, alarms = match(candidates((*place, 9, 0.7)), [lesion()], spacing_mm=SPACING)
    assert (targets[0].score == 0.7, len(alarms)) == (hit, not hit)


def test_small_lesions_are_hit_within_two_millimetres():
    targets, _ = match(candidates((5, 20, 23.9, 3, 0.7)), [lesion(diameter_mm=3)], spacing_mm=SPACING)
    assert targets[0].score == 0.7


@pytest.mark.parametrize(("place", "hit"), [(7.4, True), (7.6, False), (2.5, True)])
def test_slices_of_the_mask_count_instead_of_the_distance_along_the_body(place, hit):
    targets, _ = match(candidates((place, 20, 20, 9, 0.7)), [lesion(slices=(3, 7))], spacing_mm=SPACING)
    assert (targets[0].score is not None) == hit


def test_the_most_probable_hit_counts_and_no_further_hit_is_an_alarm():
    found = candidates((5, 20, 20, 9, 0.4), (5, 21, 20, 9, 0.8), (5, 90, 20, 9, 0.3), (5, 95, 20, 9, 0.6))
    targets, alarms = match(found, [lesion()], spacing_mm=SPACING)
    assert targets[0].score == 0.8
    assert [alarm.probability for alarm in alarms] == [0.6, 0.3]
    assert alarms[0].nearest_mm == pytest.approx(37.5)


def test_what_does_not_count_is_neither_found_nor_false():
    found = candidates((5, 20, 20, 9, 0.4), (5, 90, 20, 9, 0.3))
    targets, alarms = match(found, [lesion(counts=False)], spacing_mm=SPACING, ignored=np.array([False, True]))
    assert not targets
    assert not alarms


def test_nothing_found_and_nothing_there():
    targets, alarms = match(candidates(), [lesion()], spacing_mm=SPACING)
    assert (targets[0].score, targets[0].nearest_mm, alarms) == (None, None, ())
    targets, alarms = match(candidates((1, 2, 3, 4, 0.5)), [], spacing_mm=SPACING)
    assert (targets, alarms[0].nearest_mm) == ((), None)


# FROC


def test_froc_of_a_small_example_by_hand():
    froc = Froc([case([0.9, None], [0.8]), case([0.5], [0.7, 0.2], patient="b")])
    assert froc.sensitivity(0.5) == pytest.approx(2 / 3)
    assert froc.false_positives(0.5) == 1.0
    assert froc.sensitivity_at([0.25, 0.5, 1.0, 1.5]).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert froc.threshold_at(0.5) == pytest.approx(0.7)
    assert froc.false_positives(froc.threshold_at(0.5)) <= 0.5
    rates, found = froc.curve()
    assert (rates[-1], found[-1]) == (1.5, pytest.approx(2 / 3))
    assert (np.diff(rates) >= 0).all()


def test_no_threshold_is_left_where_the_surest_alarms_are_too_many():
    froc = Froc([case([1.0], [1.0, 1.0])])
    assert froc.threshold_at(1.0) > 1
    assert froc.false_positives(froc.threshold_at(1.0)) == 0
    assert froc.threshold_at(2.0) == 0.0


def test_equal_scores_come_all_together():
    froc = Froc([case([0.5], [0.5, 0.5])])
    assert froc.sensitivity_at([1.0, 2.0]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "alarms", "cpm"), [([0.1, 0.2], [], 1.0), ([None, None], [], 0.0), ([0.1], [0.2], 4 / 7)]
)
def test_cpm_of_perfection_of_nothing_and_of_one_alarm_above(scores, alarms, cpm):
    assert Froc([case(scores, alarms)]).estimates(0.5, seed=0)["cpm"].value == pytest.approx(cpm)
    assert len(CPM_RATES) == 7


def test_sensitivity_at_a_rate_is_the_best_threshold_that_keeps_to_the_rate():
    rng = np.random.default_rng(0)
    cases = [
        case(rng.random(2).round(1), rng.random(4).round(1), patient=str(index % 3), owner=f"o{index % 4}")
        for index in range(12)
    ]
    froc, levels = Froc(cases), np.linspace(0, 1.1, 111)
    for rate, found in zip(CPM_RATES, froc.sensitivity_at(CPM_RATES), strict=True):
        best = max(froc.sensitivity(level) for level in levels if froc.false_positives(level) <= rate)
        assert found == pytest.approx(best)


def test_a_weight_of_two_is_a_patient_there_twice():
    one, two = case([0.9, None], [0.8]), case([0.5], [0.7, 0.2], patient="b")
    weighted = Froc([one, two]).sensitivity_at(CPM_RATES, np.array([1.0, 2.0]))
    assert weighted.tolist() == Froc([one, two, two]).sensitivity_at(CPM_RATES).tolist()


def test_lesions_of_composites_are_drawn_by_their_own_patients():
    cases = [case([0.9], [0.6], patient="lung", owner=f"n{index}") for index in range(5)]
    found = Froc(cases).estimates(0.5, seed=0)
    assert (found["sensitivity"].patients, found["false_positives"].patients) == (5, 1)
    assert found["false_positives"].low == found["false_positives"].high == 1.0


# Intervals


def test_an_interval_holds_the_figure_and_is_that_of_the_seed():
    rng = np.random.default_rng(1)
    owners, values = [f"p{index // 3}" for index in range(60)], rng.random(60).tolist()
    first, again, other = (estimate_ratio(owners, values, [1] * 60, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.value == pytest.approx(np.mean(values))
    assert first.low < first.value < first.high
    assert (first.n, first.patients) == (60, 20)


def test_images_of_one_patient_are_not_independent():
    values = [0.0, 1.0] * 20
    together = estimate_ratio(["a"] * 20 + ["b"] * 20, sorted(values), [1] * 40, seed=0)
    apart = estimate_ratio([str(index) for index in range(40)], values, [1] * 40, seed=0)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_one_patient_has_no_interval_and_none_no_figure():
    alone = estimate_ratio(["a", "a"], [1, 0], [1, 1], seed=0)
    assert (alone.value, alone.low) == (0.5, None)
    assert estimate_ratio([], [], [], seed=0).value is None


def test_a_patient_in_two_groups_is_refused():
    with pytest.raises(InputError, match="some are in two"):
        estimate([["a"], ["a"]], lambda weights: [0.0], n=[1], seed=0)


# Pixels


def counts(answer, reference, **who) -> PixelCounts:
    return PixelCounts.of(answer, reference, np.ones_like(reference), **{"patient": "p", "nodule": "n", **who})


def test_finding_nothing_is_accurate_but_not_balanced():
    reference = np.zeros((10, 10), bool)
    reference[:2, :2] = True
    found = pixel_estimates([counts(np.zeros_like(reference), reference)], seed=0)
    assert found["accuracy"].value == 0.96
    assert found["balanced_accuracy"].value == 0.5
    assert found["dice"].value == 0.0
    same = pixel_estimates([counts(reference, reference)], seed=0)
    assert {figure.value for figure in same.values()} == {1.0}


def test_dice_is_a_mean_over_slices_and_over_nodules():
    full, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    rows = [counts(full, full), counts(full, full), counts(empty, full, nodule="m", patient="q")]
    found = pixel_estimates(rows, seed=0)
    assert found["dice"].value == pytest.approx(2 / 3)
    assert found["dice_per_nodule"].value == pytest.approx(1 / 2)
    assert dice(empty, empty) == 1.0


def test_pixels_not_looked_at_do_not_count():
    reference, looked_at = np.array([[True, False]]), np.array([[True, False]])
    found = PixelCounts.of(np.array([[True, True]]), reference, looked_at, patient="p", nodule="n")
    assert (found.true_positive, found.false_positive, found.true_negative) == (1, 0, 0)


# Tables


def test_the_papers_column_stands_beside_ours_and_what_is_missing_is_null():
    columns = [Column(key="a", title="A", unit="nodules", in_paper=True), Column(key="b", title="B", digits=0)]
    known = estimate_ratio(["p", "q"], [1, 0], [1, 1], seed=0)
    rows = [
        TableRow(name="x", title="X", figures={"a": known, "b": 1234}, paper={"a": 0.9}),
        TableRow(name="y", title="Y", figures={"a": None}),
    ]
    text = paper_table("Method", columns, rows)
    assert "| Method | A | paper | B |" in text
    assert "| *n* | 2 nodules, 2 patients |  |  |" in text
    assert "| X | 0.500 (0.000-1.000) | 0.900 | 1,234 |" in text
    assert "| Y | - | - | - |" in text
    first, second = json_rows(columns, rows)
    assert (first["a"], first["b"], first["intervals"]["a"], first["paper"]) == (0.5, 1234, [0.0, 1.0], {"a": 0.9})
    assert (second["a"], second["b"], second["intervals"]) == (None, None, {})
    assert replace(known, low=None, high=None).value == 0.5
