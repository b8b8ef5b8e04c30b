import itertools

import numpy as np
import pytest
from placement_toys import add_nodule, disc, group_at, lung_mask

from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.groups import PHASES, GroupArrays, GroupSettings, NoduleGroup, draw_groups
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.planning import plan_pairs
from lungsynth.placement.presence import PresencePrior, analytic_presence, fit_presence
from lungsynth.placement.rules import PlacementRules, PlacementVerdict, resolve, score

RULES = PlacementRules()


@pytest.fixture
def nodules(tmp_path):
    library = AssetLibrary(tmp_path)
    return [add_nodule(library, diameter) for diameter in (4.0, 6.0, 9.0, 14.0)]


@pytest.fixture
def groups(nodules):
    return draw_groups(nodules, 120, seed=3, prior=analytic_presence())


def shapes():
    """Three lungs, one of them on anisotropic pixels."""
    small = disc((200, 240), (90, 70), 40) | disc((200, 240), (110, 170), 45)
    masks = ((lung_mask(), (0.7, 0.7)), (small, (0.9, 0.9)), (lung_mask(), (1.4, 0.7)))
    return [LungShape.from_mask(mask, spacing_mm=spacing) for mask, spacing in masks]


def test_samples_follow_the_density():
    prior = PresencePrior(np.array([[1.0, 3.0], [0.0, 4.0]]))
    points = prior.sample(np.random.default_rng(0), 4000)
    left = points[:, 0] >= 0.5
    assert left.mean() == pytest.approx(7 / 8, abs=0.02)
    assert not (~left & (points[:, 1] >= 0.5)).any()
    np.testing.assert_allclose(prior.density(np.array([0.1, 0.9, 1.1]), np.array([0.1, 0.9, 0.9])), [0.5, 2.0, 0.0])


def test_the_analytic_prior_favours_back_and_rim():
    prior = analytic_presence()
    (front, back), (middle, rim) = (
        prior.density(np.array([0.22, 0.22]), np.array([0.2, 0.8])),
        prior.density(np.array([0.22, 0.05]), np.array([0.5, 0.5])),
    )
    assert back > front
    assert rim > middle
    assert prior.density(np.array([0.5]), np.array([0.5])) == 0


def test_a_fitted_prior_moves_towards_the_points():
    points = np.full((500, 2), (0.2, 0.7))
    at = np.array([0.2]), np.array([0.7])
    assert fit_presence(points).density(*at) > 5 * fit_presence(np.empty((0, 2))).density(*at)


def test_a_group_is_its_json_and_a_longer_draw_begins_with_the_shorter(nodules, groups):
    assert [NoduleGroup.from_json(group.json) for group in groups] == groups
    assert draw_groups(nodules, 10, seed=3, prior=analytic_presence()) == groups[:10]
    assert len({group.id for group in groups}) == len(groups)
    assert {len(group.members) for group in groups} == {1, 2, 3}
    with pytest.raises(InputError, match="the JSON of a nodule group"):
        NoduleGroup.from_json("{")


def test_groups_need_nodules_and_counts():
    with pytest.raises(InputError, match="at least one nodule"):
        draw_groups([], 1, seed=0, prior=analytic_presence())
    with pytest.raises(InputError, match="counts >= 1"):
        GroupSettings(count_probabilities={0: 1.0})


def test_the_signed_distance_is_that_of_a_disc_and_small_holes_are_no_edge():
    mask = disc((121, 121), (60, 60), 50)
    mask[58:62, 58:62] = False
    shape = LungShape.from_mask(mask, spacing_mm=(0.7, 0.7))
    rows, columns = np.array([60.0, 60.0, 95.0, 12.0]), np.array([60.0, 90.0, 60.0, 12.0])
    expected = 0.7 * (50 - np.hypot(rows - 60, columns - 60))
    np.testing.assert_allclose(shape.distance_mm(rows, columns), expected, atol=0.5)


def test_unit_positions_and_pixels_are_inverse():
    shape = shapes()[2]
    u, v = np.array([0.0, 0.3, 1.0]), np.array([1.0, 0.2, 0.0])
    np.testing.assert_allclose(shape.to_unit(*shape.to_pixels(u, v)), (u, v), atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_kept_nodules_lie_in_the_lung_whole_and_apart(groups, index):
    shape, mask = shapes()[index], lung_mask() if index != 1 else None
    kept = [placed for group in groups if (placed := resolve(shape, group, RULES)).verdict is PlacementVerdict.KEPT]
    assert len(kept) > len(groups) / 3
    for nodule in itertools.chain.from_iterable(placed.placements for placed in kept):
        assert nodule.distance_mm >= RULES.clearance * nodule.diameter_mm / 2 - 0.02
        if mask is not None:
            rows, columns = np.indices(mask.shape)
            down, left = (rows - nodule.row_px) * shape.spacing_mm[0], (columns - nodule.col_px) * shape.spacing_mm[1]
            assert mask[np.hypot(down, left) <= nodule.diameter_mm / 2].all()
    for first, second in ((a, b) for placed in kept for a, b in itertools.combinations(placed.placements, 2)):
        apart = np.hypot(
            (first.row_px - second.row_px) * shape.spacing_mm[0], (first.col_px - second.col_px) * shape.spacing_mm[1]
        )
        assert apart >= (first.diameter_mm + second.diameter_mm) / 2 + RULES.gap_mm - 0.03


def test_each_rejection_has_its_reason(nodules):
    shape = shapes()[0]
    vessels = np.where(disc((200, 240), (100, 60), 8), 0, -850).astype(np.int16)
    bloody = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7), hu=vessels)
    small, large = nodules[0], nodules[-1]
    still = PlacementRules(max_shift_mm=1.0)
    middle = (50 / 221, 0.5)
    assert resolve(shape, group_at(small, (0.5, 0.5)), still).verdict is PlacementVerdict.OUTSIDE_LUNG
    assert resolve(shape, group_at(large, (0.03, 0.5)), still).verdict is PlacementVerdict.CROSSES_EDGE
    assert resolve(shape, group_at(small, middle, middle), still).verdict is PlacementVerdict.OVERLAP
    assert resolve(bloody, group_at(small, middle), still).verdict is PlacementVerdict.ON_VESSEL
    assert resolve(shape, group_at(small, middle), still).verdict is PlacementVerdict.KEPT
    assert resolve(shape, group_at(small, (0.5, 0.5)), still).placements == ()


def test_a_nodule_near_the_edge_is_moved_straight_inwards(nodules):
    shape = shapes()[0]
    large = nodules[-1]
    placed = resolve(shape, group_at(large, (0.03, 0.5)), RULES).placements[0]
    assert placed.distance_mm == pytest.approx(RULES.clearance * large.diameter_mm / 2 + 0.35, abs=0.36)
    assert placed.row_px == pytest.approx(100, abs=0.5)


def test_one_pair_scores_as_it_does_among_all(groups):
    arrays = GroupArrays.of(groups)
    for shape in shapes():
        scores = score(shape, arrays, RULES)
        for index, group in enumerate(groups):
            alone = resolve(shape, group, RULES)
            assert alone.verdict == scores.verdict[index]
            for place, nodule in zip(arrays.places[index], alone.placements, strict=False):
                assert nodule.row_px == scores.row[place] / PHASES
                assert nodule.distance_mm == scores.distance[place] / UNITS_PER_MM


@pytest.mark.parametrize("keep", [1, 40, 10_000])
def test_the_plan_keeps_the_farthest_as_brute_force_does(groups, keep):
    lungs = [*shapes(), shapes()[0]]  # the first lung twice, for ties
    ranked = []
    for (lung, shape), (index, group) in itertools.product(enumerate(lungs), enumerate(groups)):
        placed = resolve(shape, group, RULES).placements
        if placed:
            ranked.append((-min(nodule.distance_mm for nodule in placed), lung, index))
    ranked.sort()
    found = plan_pairs(lungs, groups, keep=keep)
    assert list(found) == [(lung, index) for _, lung, index in ranked[:keep]]
    np.testing.assert_array_equal(found.pairs.min_distance_mm, [-entry[0] for entry in ranked[:keep]])
    assert found.candidates == sum(found.verdicts.values()) == len(lungs) * len(groups)
    assert found.verdicts[PlacementVerdict.KEPT] == len(ranked)


def test_a_plan_refuses_an_unknown_policy(groups):
    with pytest.raises(InputError, match="keep >= 1"):
        plan_pairs(shapes(), groups, keep=0)


def test_a_shift_is_perpendicular_to_the_edge_in_mm_on_anisotropic_pixels(nodules):
    rows, columns = np.indices((120, 240))
    depth_mm = 0.6 * 1.4 * rows + 0.8 * 0.7 * columns - 90  # a straight edge with the normal (0.6, 0.8) in mm
    shape = LungShape.from_mask(depth_mm > 0, spacing_mm=(1.4, 0.7))
    start = shape.to_unit(np.array([60.0]), np.array([80.0]))  # 5.2 mm from the edge
    large = nodules[-1]
    placed = resolve(shape, group_at(large, (start[0].item(), start[1].item())), RULES).placements[0]
    moved_mm = np.array([(placed.row_px - 60) * 1.4, (placed.col_px - 80) * 0.7])
    assert np.linalg.norm(moved_mm) == pytest.approx(RULES.clearance * large.diameter_mm / 2 - 5.2 + 0.7, abs=0.7)
    np.testing.assert_allclose(moved_mm / np.linalg.norm(moved_mm), (0.6, 0.8), atol=0.15)  # the edge is a staircase


def test_a_lung_too_narrow_for_a_nodule_is_refused_however_far_it_may_be_moved(nodules):
    shape = LungShape.from_mask(disc((60, 60), (30, 30), 10), spacing_mm=(0.7, 0.7))
    assert resolve(shape, group_at(nodules[-1], (0.4, 0.5)), RULES).verdict is PlacementVerdict.CROSSES_EDGE
