"""Laws of judging on windows: what is found, what is false, and at which rate."""

import numpy as np
import pytest

from evaluation.segmentation.windows import (
    RATES_PER_100_CM2,
    SIDE_PX,
    NoduleView,
    evaluate_windows,
    found_at,
    reader_sensitivity,
    window_estimates,
)
from lungsynth.cohort.schema import NoduleRow

NODULE, VESSEL, DOUBT = (40, 60), (70, 20), (20, 20)


def view(index: int) -> NoduleView:
    """A nodule of two readers, a spot of one reader, and a bright vessel; a slice above without any of them."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]

    def disc(place: tuple[int, int]) -> np.ndarray:
        return np.hypot(rows - place[0], columns - place[1]) < 4

    hu = np.full((2, SIDE_PX, SIDE_PX), -850, np.int16)
    for place in (NODULE, VESSEL, DOUBT):
        hu[0][disc(place)] = 30
    votes = (3 * disc(NODULE) + disc(DOUBT)).astype(np.uint8)
    row = NoduleRow(
        nodule_id=f"n{index}", patient_id=f"p{index}", series_id="s", source="", texture_class="solid", diameter_mm=5.6
    )
    readers = (0b0111 * disc(NODULE) + 0b1000 * disc(DOUBT)).astype(np.uint8)
    return NoduleView(nodule=row, hu=hu, slice_mm=2.5, index=0, votes=votes, readers=readers)


class Bright:
    """Takes what is dense for nodule: probability 0.9 at some places, 0.4 at the others."""

    def __init__(self, *sure: tuple[int, int]) -> None:
        self.sure = sure

    def __call__(self, hu, spacing_mm):
        probability = np.where(hu > -400, 0.4, 0.0).astype(np.float16)
        for row, column in self.sure:
            near = probability[:, row - 6 : row + 7, column - 6 : column + 7]
            near[near > 0] = 0.9
        return {"candidates": np.zeros((0, 5), np.float32), "nodule": probability}


def test_hits_false_positives_and_what_is_neither():
    records = evaluate_windows([view(index) for index in range(6)], Bright(NODULE), name="bright")
    for case in records.cases:
        (nodule,) = case.nodules
        assert nodule.score == pytest.approx(0.9, abs=0.01)
        assert [round(item.centre[1]) for item in case.false_positives] == [VESSEL[0]], "the doubtful spot is no error"
    figures = window_estimates(records, seed=0)
    assert [figures[f"sensitivity_at_{rate:g}"].value for rate in RATES_PER_100_CM2] == [1, 1, 1]
    assert figures["dice"].value == 1.0, "pixels below one half are not marked, those of one reader do not count"
    assert all(hit for _, hit in found_at(records, 1.0))


def test_a_nodule_less_sure_than_every_vessel_is_not_found():
    figures = window_estimates(evaluate_windows([view(0), view(1)], Bright(VESSEL), name="bright"), seed=0)
    assert figures["sensitivity_at_1"].value == 0.0
    assert figures["dice"].value == 0.0


def test_readers_are_judged_against_the_other_three():
    estimate = reader_sensitivity([view(0)], seed=0)
    assert estimate.value == 0.75, "three of four drew it"
    assert estimate.n == 4
