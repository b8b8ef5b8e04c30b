"""Laws of planning: a seed gives its bytes, a plan answers for its pairs, bad input leaves nothing."""

import importlib.util
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import write_fake_bundles
from fake_cohort import write_fake_cohort

from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.compositing.render import render
from lungsynth.config import PAPER, EnhancementConfig, GenerateConfig, PlacementConfig
from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.explain import PlanExplainer
from lungsynth.placement.plan_catalogue import PlanRecord, groups_path
from lungsynth.placement.policy import shares_of_samples
from lungsynth.placement.presence import measure_nodules
from lungsynth.placement.rules import PlacementRules
from lungsynth.plan import plan


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "planned")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, bundles) -> Path:
    return write_fake_cohort(tmp_path_factory.mktemp("cohort"), open_bundle(bundles, "wcapsgan"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory, bundles, cohort) -> GenerateConfig:
    config = GenerateConfig(
        out=tmp_path_factory.mktemp("plan"),
        count=100,
        seed=3,
        bundles=bundles,
        cohort=cohort,
        placement=PlacementConfig.at_scale(lungs=12, groups=30, nodules=24),
        enhancement=EnhancementConfig(enabled=False),
    )
    plan(config)
    return config


def placed(config: GenerateConfig, **changes: object) -> GenerateConfig:
    """The same with other placement."""
    return replace(config, placement=replace(config.placement, **changes))


def script(*arguments: object) -> int:
    path = Path(__file__).parents[1] / "scripts" / "plan.py"
    spec = importlib.util.spec_from_file_location("plan_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([*(str(argument) for argument in arguments), "--tracking-uri", "none"])


def test_a_plan_keeps_what_was_asked_for_and_its_samples_can_be_rendered(planned):
    catalogue = read_catalogue(planned.catalogue_path)
    assert Counter(recipe.category for recipe in catalogue) == dict.fromkeys(catalogue.categories(), 100)
    assert len({recipe.id for recipe in catalogue}) == 300
    assert {recipe.category for recipe in catalogue[:3]} == set(catalogue.categories())
    library = AssetLibrary(planned.out)
    assert (render(catalogue[7], library).label == 2).any()
    kinds = Counter((asset.kind, asset.source) for asset in library)
    assert kinds["nodule", "real"] == 12  # 200 : 1000
    assert kinds["lung", "real"] == 1  # 50 : 450


def test_the_same_settings_give_the_same_bytes_and_are_not_done_twice(planned, tmp_path):
    again = replace(planned, out=tmp_path)
    first, second = plan(again), plan(again)
    assert again.catalogue_path.read_bytes() == planned.catalogue_path.read_bytes()
    groups = [groups_path(config.catalogue_path).read_bytes() for config in (again, planned)]
    assert groups[0] == groups[1]
    assert first.plan_seconds > second.plan_seconds == 0
    assert second.record.to_json() == first.record.to_json()


def test_another_plan_is_not_written_over(planned):
    with pytest.raises(InputError, match="holds another plan"):
        plan(replace(planned, count=90))
    with pytest.raises(InputError, match=r"assets\.json: the assets beside `out` were made with other seed"):
        plan(replace(planned, seed=4))


def test_every_pair_answers_under_its_id_and_its_names(planned):
    explainer = PlanExplainer(planned.catalogue_path)
    record, kept, verdicts = PlanRecord.read(explainer.catalogue), 0, Counter()
    for group in (0, 29, 30, 75):
        for lung, asset in enumerate(explainer.lungs.assets):
            sample, said = explainer.explain(f"{lung}:{group}")
            assert (explainer.catalogue.find(sample) is not None) == said.kept
            assert explainer.explain(sample) == (sample, said)
            assert explainer.explain(f"{asset.hash}:{explainer._groups[group][1]}") == (sample, said)
            kept += said.kept
            verdicts[said.verdict.name] += 1
    assert kept > 0
    for part in record.parts.values():
        assert sum(part.verdicts.values()) == part.candidates == 12 * 30


def test_nonsense_has_no_explanation(planned):
    explainer = PlanExplainer(planned.catalogue_path)
    for query, message in (("synth-12", "Expected a sample id"), ("99:0", "No lung 99"), ("0:zz", "No group zz")):
        with pytest.raises(InputError, match=message):
            explainer.explain(query)
    with pytest.raises(InputError, match="no pair of 12 lungs"):
        explainer.explain("synth-0123456789abcdef")


def test_without_real_voxels_there_are_none(planned, tmp_path):
    generated = placed(replace(planned, out=tmp_path / "a"), real_voxels=False)
    other = replace(generated, out=tmp_path / "b", library=planned.out)
    for config in (generated, other):
        plan(config)
        assert not any(recipe.has_real_voxels for recipe in read_catalogue(config.catalogue_path))


@pytest.mark.parametrize("policy", ["matched", "balanced"])
def test_the_policies_of_real_data_run_from_a_cohort(planned, tmp_path, policy):
    config = placed(replace(planned, out=tmp_path, library=planned.out), policy=policy)
    outcome = plan(config)
    assert set(outcome.record.parts) == {"ground_glass", "part_solid", "solid"}
    explainer = PlanExplainer(config.catalogue_path, library=planned.out)
    for group in (3, 40):
        for lung in range(len(explainer.lungs)):
            sample, said = explainer.explain(f"{lung}:{group}")
            assert (explainer.catalogue.find(sample) is not None) == said.kept


def test_categories_get_their_shares(cohort):
    real = measure_nodules(Cohort.open(cohort).split("training"))
    real = replace(real, diameters_mm={"solid": [8.0] * 60, "part_solid": [6.0] * 15, "ground_glass": [7.0] * 20})
    categories = ("ground_glass", "part_solid", "solid")
    assert list(shares_of_samples("farthest", 90, real, categories).values()) == [90, 90, 90]
    assert list(shares_of_samples("matched", 90, real, categories).values()) == [30, 22, 90]
    assert list(shares_of_samples("balanced", 90, real, categories).values()) == [85, 90, 45]


def test_a_cohort_is_measured(cohort):
    real = measure_nodules(Cohort.open(cohort).split("training"))
    assert real.points.shape == (1, 2)
    assert real.points[0] == pytest.approx((12 / 85, 12 / 50), abs=0.02)
    assert real.distance_mm[0] == pytest.approx(24, abs=1.5)  # 12 pixels of 2 mm
    assert sum(real.counts().values()) == pytest.approx(1, abs=1e-3)
    assert set(real.diameters_mm) == {"ground_glass", "part_solid", "solid"}


def test_the_paper_is_a_preset_and_its_numbers_stand():
    assert dict(PAPER) == {"lungs": 500, "groups": 5000, "keep": 1_000_000, "nodules": 1200}


def test_the_script_tells_what_was_kept_and_why(planned, bundles, cohort, tmp_path, capsys):
    rules = tmp_path / "rules.json"
    rules.write_text('{"min_distance_mm": 12, "max_shift_mm": 4}', encoding="utf-8")
    out = tmp_path / "plan" / "c.parquet"
    options = ["--out", out, "--lungs", 6, "--groups", 20, "--preset", "paper", "--nodules", 12]
    assert script(*options, "--cohort", cohort, "--bundles", bundles, "--rules", rules) == 0
    told = capsys.readouterr().out
    assert "too_near" in told
    assert "images out for each of 7 real images in" in told
    assert script("--out", out, "--explain", "0:0") == 0
    assert capsys.readouterr().out.startswith("synth-")
    recipes = read_catalogue(out)
    assert min(recipe.min_distance_mm for recipe in recipes) >= 12
    assert np.all(np.diff([recipe.min_distance_mm for recipe in recipes if recipe.category == "solid"]) <= 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "`count` must be at least 1"),
        ({"cohort": None, "placement": {"policy": "matched"}}, "needs a `cohort`"),
        ({"placement": {"policy": "matched", "categories": {"solid": 1}}}, "asks for shares"),
        ({"placement": {"categories": {"solid": -1}}}, "`categories` needs names with shares"),
        ({"placement": {"diameters_mm": (2.0, 9.0)}}, "`diameters_mm` needs 3 <= low < high"),
        ({"placement": {"max_reuse": None}}, "`max_reuse` None is for the paper's `crossing`"),
        ({"placement": {"vessel_masks": Path("nowhere")}}, "`vessel_masks`: expected a folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(planned, change, message):
    with pytest.raises(InputError, match=message):
        replace(placed(planned, **change.pop("placement", {})), **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--groups", 3), "Give --count, the number of samples, or --keep, that of each category"),
        (("--count", 3, "--keep", 3), "Give --count, samples of all categories together, or --keep"),
        (("--preset", "paper", "--lungs", 0), "--lungs must"),
    ],
)
def test_the_script_names_flags(options, message, tmp_path, capsys):
    assert script("--out", tmp_path / "c.parquet", *options) == 2
    assert message in capsys.readouterr().err


def test_assets_that_no_plan_made_are_not_taken_unasked(planned, tmp_path):
    shutil.copytree(planned.out, tmp_path / "copy")
    (tmp_path / "copy" / "assets.json").unlink()
    (tmp_path / "copy" / "catalogue.parquet").unlink()
    with pytest.raises(InputError, match="holds assets that no plan made"):
        plan(replace(planned, out=tmp_path / "copy"))


def test_vessels_of_a_file_count(planned, tmp_path):
    library = AssetLibrary(planned.out)
    real = next(asset for asset in library if asset.kind == "lung" and asset.source == "real")
    from lungsynth.ct.write import write_plane

    (tmp_path / "masks").mkdir()
    everywhere = np.ones(library.load(real.hash).shape[1:], np.uint8)
    write_plane(tmp_path / "masks" / f"{real.origin}.nii.gz", everywhere, real.affine_matrix)
    config = replace(planned, out=tmp_path, library=planned.out)
    config = placed(config, vessel_masks=tmp_path / "masks", rules=PlacementRules())
    outcome = plan(config)
    assert all(part.verdicts["ON_VESSEL"] > 20 for part in outcome.record.parts.values())
    assert real.hash not in {recipe.lung for recipe in read_catalogue(config.catalogue_path)}
