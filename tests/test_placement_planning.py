"""Laws of planning at scale: explained pairs agree with the plan, policies reach their targets, order is no matter."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from placement_toys import add_nodule, disc, group_at, lung_hu, lung_mask, write_catalogue

from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import (
    PlanWeights,
    TableWriter,
    in_turn,
    make_recipe,
    read_catalogue,
    sample_id,
    sample_seeds,
    write_pairs,
)
from lungsynth.placement.explain import PairPlace, explain
from lungsynth.placement.groups import PHASES, GroupSettings, draw_groups
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.planning import Pairs, TopK, plan_pairs
from lungsynth.placement.policy import (
    DISTANCE_EDGES_MM,
    SIZE_EDGES_MM,
    TargetDistribution,
    balanced_target,
    distance_class,
    size_class,
)
from lungsynth.placement.presence import analytic_presence, expected_distances, lidc_nodules_per_slice, lidc_presence
from lungsynth.placement.rules import PlacementRules, PlacementVerdict, read_rules, resolve
from lungsynth.placement.spread import CategoryChoice, Uses, spread_plans
from lungsynth.seeds import HashDomain, hash_arrays, hash_words

ALL_TYPES = PlacementRules(types=("isolated", "juxta_pleural", "juxta_vascular"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = AssetLibrary(tmp_path_factory.mktemp("library"))
    for diameter in (4.5, 5.0, 7.0, 9.0, 12.0, 17.0):
        add_nodule(library, diameter, source="real" if diameter == 7.0 else "generated", weights="w")
    for seed, reach in enumerate((50, 45, 40, 48, 38)):
        mask = disc((200, 240), (100, 60), reach) | disc((200, 240), (100, 180), 50)
        hu = lung_hu(mask, seed)
        hu[disc((200, 240), (100, 60), 6)] = 0  # a vessel
        affine = np.diag([-0.7, -0.7, 1, 1.0])
        library.add_lung(hu, mask, affine=affine, source="generated", origin=str(seed))
    return library


@pytest.fixture(scope="module")
def lungs(library):
    return LibraryLungs.of(library)


@pytest.fixture(scope="module")
def groups(library):
    nodules = [asset for asset in library if asset.kind == "nodule"]
    return draw_groups(nodules, 400, seed=3, prior=analytic_presence())


def uneven() -> TargetDistribution:
    near = np.zeros(len(DISTANCE_EDGES_MM) + 1)
    near[1:6] = (1, 4, 3, 1, 1)
    sizes = np.zeros(len(SIZE_EDGES_MM) + 1)
    sizes[1:5] = (1, 2, 3, 2)
    return TargetDistribution(distance=near, size=sizes)


def counts(found, groups):
    """Nodules of each class of distance and of size among the pairs of a plan."""
    distances, sizes = [], []
    for index in range(len(found)):
        members = groups[found.pairs.group[index]].members
        distances += [d for _, _, d in found.pairs.positions(index, len(members))]
        sizes += [member.diameter_mm for member in members]
    return (
        np.bincount(distance_class(np.array(distances)), minlength=len(DISTANCE_EDGES_MM) + 1),
        np.bincount(size_class(np.array(sizes)), minlength=len(SIZE_EDGES_MM) + 1),
    )


@pytest.mark.parametrize(
    "rules",
    [
        PlacementRules(),
        ALL_TYPES,
        PlacementRules(types=("juxta_vascular",)),
        PlacementRules(min_distance_mm=8, max_distance_mm=14, regions=("right", (0.5, 0.8, 0.2, 0.9))),
        PlacementRules(max_vessel_share=0.05, max_airway_share=0.0, max_shift_mm=2.0, gap_mm=20.0),
    ],
)
@pytest.mark.parametrize("policy", ["farthest", "matched"])
def test_each_pair_is_explained_as_the_plan_decided(lungs, groups, rules, policy):
    groups = groups[:60]
    target = None if policy == "farthest" else uneven()
    found = plan_pairs(lungs, groups, keep=40, rules=rules, policy=policy, target=target, seed=4)
    kept, verdicts = set(found), dict.fromkeys(PlacementVerdict, 0)
    for lung, shape in enumerate(lungs):
        for index, group in enumerate(groups):
            place = PairPlace(lung=lung, lung_hash=lung, group=index, groups=len(groups))
            said = explain(shape, group, place, rules=rules, order=found.order, threshold=found.threshold)
            verdicts[said.verdict] += 1
            assert said.kept == ((lung, index) in kept)
            assert (said.verdict is PlacementVerdict.KEPT) == all(
                member.verdict == "KEPT" for member in said.members
            ) or (said.verdict is PlacementVerdict.OVERLAP and said.smallest_gap_mm < rules.gap_mm)
            for member in said.members:
                if member.verdict == "KEPT":
                    assert member.type in rules.types
                    assert member.distance_mm >= member.needed_mm
                    assert member.shift_mm <= rules.max_shift_mm
                    assert member.distance_mm <= (rules.max_distance_mm or np.inf)
    assert verdicts == found.verdicts


def test_each_rule_has_its_reason(lungs, library):
    nodule = next(asset for asset in library if asset.kind == "nodule" and asset.diameter_mm < 5)
    shape = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7))
    airway = np.where(disc((200, 240), (100, 60), 6), -1000, -850).astype(np.int16)
    hollow = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7), hu=airway)
    marked = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7), hu=airway, vessels=disc((200, 240), (100, 180), 6))
    right, left = group_at(nodule, (50.5 / 221, 0.5)), group_at(nodule, (170.5 / 221, 0.5))

    def verdict(lung, group, **rules):
        return resolve(lung, group, PlacementRules(**rules)).verdict

    assert verdict(shape, right) is PlacementVerdict.KEPT
    assert verdict(shape, right, max_distance_mm=20) is PlacementVerdict.TOO_FAR
    assert verdict(shape, right, min_distance_mm=40, max_shift_mm=3) in (
        PlacementVerdict.TOO_NEAR,
        PlacementVerdict.CROSSES_EDGE,
    )
    assert verdict(shape, right, regions=("left",)) is PlacementVerdict.OUTSIDE_REGION
    assert verdict(shape, left, regions=("left",)) is PlacementVerdict.KEPT
    assert verdict(hollow, right) is PlacementVerdict.ON_AIRWAY
    assert verdict(marked, right) is PlacementVerdict.KEPT  # a mask takes the place of the HU
    assert verdict(marked, left) is PlacementVerdict.ON_VESSEL
    assert verdict(marked, left, max_vessel_share=1.0) is PlacementVerdict.KEPT
    assert verdict(marked, left, max_vessel_share=1.0, types=("isolated",)) is PlacementVerdict.WRONG_TYPE
    assert verdict(shape, right, types=("juxta_pleural",)) is PlacementVerdict.WRONG_TYPE


def test_a_juxta_pleural_nodule_may_reach_into_the_wall(library):
    nodule = max((asset for asset in library if asset.kind == "nodule"), key=lambda asset: asset.diameter_mm)
    shape = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7))
    placed = resolve(shape, group_at(nodule, (0.02, 0.5)), ALL_TYPES).placements[0]
    radius = nodule.diameter_mm / 2
    assert 0.7 * radius <= placed.distance_mm < radius


@pytest.mark.parametrize("keep", [120, 400])
def test_matched_comes_out_as_the_target_says_where_there_is_a_choice(lungs, groups, keep):
    target = uneven()
    anyhow = plan_pairs(lungs, groups, keep=keep, rules=ALL_TYPES, policy="farthest")
    found = plan_pairs(lungs, groups, keep=keep, rules=ALL_TYPES, policy="matched", target=target, seed=1)
    assert len(found) == keep
    for counted, before, wanted in zip(
        counts(found, groups), counts(anyhow, groups), (target.distance, target.size), strict=True
    ):
        gap, gap_before = (abs(c / c.sum() - wanted).sum() / 2 for c in (counted, before))
        assert gap < 0.1
        assert gap < gap_before / 3


def test_matched_keeps_what_there_is_when_there_is_no_choice(lungs, groups):
    found = plan_pairs(lungs, groups[:20], keep=10_000, policy="matched", target=uneven())
    assert len(found) == found.verdicts[PlacementVerdict.KEPT]


def test_what_lacks_is_added_until_all_are_equal():
    real = TargetDistribution(distance=np.arange(1.0, len(DISTANCE_EDGES_MM) + 2), size=np.ones(len(SIZE_EDGES_MM) + 1))
    target = balanced_target(real, real_nodules=55, nodules=45)
    assert (real.distance * 55 + target.distance * 45).tolist() == pytest.approx([10.0] * 10)
    some = balanced_target(real, real_nodules=55, nodules=3)
    assert (real.distance * 55 + some.distance * 3)[:3].tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert some.distance[3:].sum() == 0


def test_the_best_do_not_depend_on_how_they_arrive():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 1 << 40, 500).astype(np.uint64)
    places = rng.integers(0, 99, (500, 2)).astype(np.int16)
    index = np.arange(500, dtype=np.int32)
    pairs = Pairs(
        rank=ranks, lung=index // 9, group=index, row=places, col=places, distance=places, min_distance=places[:, 0]
    )
    results = []
    for size in (500, 60, 7):
        best = TopK(40, 2)
        order = rng.permutation(500) if size == 60 else np.arange(500)
        for begin in range(0, 500, size):
            best.add(pairs.take(order[begin : begin + size]))
        results.append(best.sorted())
    for found in results:
        np.testing.assert_array_equal(found.rank, np.sort(ranks)[:40])
        np.testing.assert_array_equal(found.row, places[np.argsort(ranks)[:40]])


def test_one_of_each_in_turn():
    assert in_turn([2, 3]).tolist() == [0, 2, 1, 3, 4]


def test_words_mix_alike_one_by_one_and_in_arrays():
    words = [0, 1, 2**63 + 5, 2**64 - 1]
    mixed = hash_arrays(HashDomain.ID, np.array(words, dtype=np.uint64), 7)
    assert mixed.tolist() == [hash_words(HashDomain.ID, word, 7) for word in words]
    assert len({hash_words(HashDomain.ID, a, b) for a in range(50) for b in range(50)}) == 2500
    assert hash_words(HashDomain.ID, 1) != hash_words(HashDomain.SEED, 1)


def test_rows_made_by_the_million_are_those_of_recipes(tmp_path, library, lungs, groups):
    found = plan_pairs(lungs, groups, keep=200)
    with TableWriter(tmp_path / "rows.parquet", {"plan": {"a": 1}}) as writer:
        weights = PlanWeights(nodule="w", enhancer=None)
        write_pairs(writer, lungs.assets, [(found.pairs, groups)], seed=9, weights=weights)
    recipes = []
    for lung, index in found:
        asset, group = lungs.assets[lung], groups[index]
        hashes = (np.array([int(text, 16)], dtype=np.uint64) for text in (asset.hash, group.id))
        seed = int(sample_seeds(9, *hashes)[0])
        placed = resolve(lungs[lung], group, PlacementRules()).placements
        recipes.append(make_recipe(asset, group, placed, seed=seed, weights_nodule="w"))
        assert recipes[-1].id == sample_id(int(asset.hash, 16), int(group.id, 16), seed)
    catalogue = read_catalogue(tmp_path / "rows.parquet")
    assert list(catalogue) == recipes
    assert json.loads(catalogue.table.schema.metadata[b"lungsynth.plan"]) == {"a": 1}
    write_catalogue(recipes, tmp_path / "recipes.parquet")
    names = pq.read_schema(tmp_path / "recipes.parquet").names
    one, other = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("rows", "recipes"))
    assert one == other
    assert {"id", "category", "lung", "group", "row_px", "distance_mm", "seed"} <= set(names)
    assert catalogue.find(recipes[5].id) == 5
    assert catalogue.find("synth-0") is None
    assert 0 < sum(recipe.has_real_voxels for recipe in catalogue) < len(catalogue)


def test_the_table_of_lidc_favours_the_posterior_lung_and_not_the_middle(lungs):
    shapes = list(lungs)
    prior = lidc_presence(shapes)
    (front, back, middle) = prior.density(np.array([0.25, 0.25, 0.5]), np.array([0.2, 0.7, 0.5]))
    assert back > 1.5 * front > 0
    assert middle == 0
    assert sum(lidc_nodules_per_slice().values()) == pytest.approx(1, abs=1e-3)
    shares = expected_distances(prior, shapes)
    assert shares.sum() == pytest.approx(1)
    assert shares[-1] < shares[:3].min()  # few points of a lung are that far from its edge


def test_rules_are_a_file(tmp_path):
    rules = PlacementRules(types=("juxta_pleural",), regions=("right", (0.1, 0.2, 0.3, 0.4)), max_distance_mm=9.0)
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(rules.to_json()), encoding="utf-8")
    assert read_rules(path) == rules
    path.write_text('{"gap": 1}', encoding="utf-8")
    with pytest.raises(InputError, match=r"rules\.json: Unknown placement rules \['gap'\]"):
        read_rules(path)
    path.write_text('{"gap_mm": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"rules\.json"):
        read_rules(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gap_mm": -1.0}, "must not be negative"),
        ({"types": ("spiculated",)}, "need types among"),
        ({"regions": ("middle lobe",)}, "Unknown region"),
        ({"regions": ((0.5, 0.2, 0.0, 1.0),)}, "A region needs"),
        ({"min_distance_mm": 9.0, "max_distance_mm": 3.0}, "must not be below"),
        ({"pleural_clearance": 2.0}, "must not exceed"),
    ],
)
def test_rules_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        PlacementRules(**values)


def test_a_policy_without_its_target_is_refused(lungs, groups):
    with pytest.raises(InputError, match="needs a target"):
        plan_pairs(lungs, groups, keep=3, policy="balanced")


def test_nodules_are_dealt_like_cards(library):
    nodules = [asset for asset in library if asset.kind == "nodule"]
    settings = GroupSettings(count_probabilities={1: 0.5, 2: 0.5}, deal=True)
    dealt = draw_groups(nodules, 60, seed=1, prior=analytic_presence(), settings=settings)
    assert draw_groups(nodules, 20, seed=1, prior=analytic_presence(), settings=settings) == dealt[:20]
    hands = [[member.asset for member in group.members] for group in dealt]
    assert all(len(set(hand)) == len(hand) for hand in hands)
    uses = Counter(asset for hand in hands for asset in hand)
    assert len(uses) == len(nodules)
    assert max(uses.values()) - min(uses.values()) <= 1


def choice(plan, groups, wanted, target=None, nodules=40):
    return CategoryChoice(plan=plan, groups=groups, wanted=wanted, target=target, real_share=None, nodules=nodules)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A library of forty nodules and five lungs, and groups that are dealt."""
    library = AssetLibrary(tmp_path_factory.mktemp("many"))
    nodules = [add_nodule(library, 4.5 + 0.2 * index, weights="w") for index in range(40)]
    settings = GroupSettings(count_probabilities={1: 1.0}, deal=True)
    return draw_groups(nodules, 240, seed=2, prior=analytic_presence(), settings=settings)


def test_a_spread_repeats_no_nodule_and_no_place_while_there_are_others(lungs, many):
    shapes, frames = list(lungs), lungs.frames()
    hashes = [asset.hash for asset in lungs.assets]
    plan = plan_pairs(shapes, many, keep=len(shapes) * len(many), rules=ALL_TYPES)
    spread = spread_plans({"": choice(plan, many, 30)}, lung_hashes=hashes, frames=frames, max_reuse=1.0)[""]
    uses = Counter(many[group].members[0].asset for _, group in spread)
    assert len(spread) == len(uses) == 30
    assert set(Counter(lung for lung, _ in spread).values()) == {6}
    pairs = spread.pairs
    places = frames.places_mm(pairs.lung, pairs.row[:, :1] / PHASES, pairs.col[:, :1] / PHASES)[:, 0]
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + np.eye(30) * 1e9
    height, width = frames.size_mm
    assert apart.min() >= 0.5 * (height * width * 0.5 / 30) ** 0.5
    more = spread_plans({"": choice(plan, many, 100)}, lung_hashes=hashes, frames=frames, max_reuse=1.0)[""]
    assert max(Counter(many[group].members[0].asset for _, group in more).values()) <= 3
    assert len(set(more)) == 100


def test_a_spread_meets_its_target(lungs, many):
    shapes = list(lungs)
    near = np.array([1, 2, 2, 2, 1, 1, 0, 0, 0, 0], dtype=float)
    target = TargetDistribution(distance=near, size=np.array([0, 1, 1, 1, 1, 0, 0, 0], dtype=float))
    settings = {"policy": "varied", "target": target, "rules": ALL_TYPES}
    plan = plan_pairs(shapes, many, keep=len(shapes) * len(many), **settings)
    hashes = [asset.hash for asset in lungs.assets]
    choices = {"": choice(plan, many, 20, target)}
    spread = spread_plans(choices, lung_hashes=hashes, frames=lungs.frames(), max_reuse=1.0)[""]
    assert spread.gaps[0] <= 0.15
    assert spread.gaps[1] <= 0.15


def test_what_is_there_already_counts(lungs, many):
    plan = plan_pairs(list(lungs), many, keep=len(lungs) * len(many), rules=ALL_TYPES)
    hashes = [asset.hash for asset in lungs.assets]
    uses = Uses(nodules=Counter({many[0].members[0].asset: 1}), lungs=Counter({hashes[0]: 4}))
    options = {"lung_hashes": hashes, "frames": lungs.frames(), "max_reuse": 1.0, "uses": uses}
    spread = spread_plans({"": choice(plan, many, 16)}, **options)[""]
    assert many[0].members[0].asset not in {many[group].members[0].asset for _, group in spread}
    assert Counter(lung for lung, _ in spread)[0] == 0


def test_what_the_grid_cannot_show_is_not_placed(lungs, library):
    rules = PlacementRules(min_pixels=40)  # of 0.7 mm: 5 mm
    small = min((asset for asset in library if asset.kind == "nodule"), key=lambda asset: asset.diameter_mm)
    assert rules.smallest_mm((0.7, 0.7)) == pytest.approx(5.0, abs=0.01)
    assert PlacementRules().smallest_mm((1.4, 1.4)) == pytest.approx(3.87, abs=0.01)
    assert PlacementRules().smallest_mm((0.5, 0.5)) == 3.0
    assert resolve(lungs[0], group_at(small, (0.2, 0.5)), rules).verdict is PlacementVerdict.TOO_SMALL
