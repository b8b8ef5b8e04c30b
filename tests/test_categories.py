"""Laws of categories: one rule in training and use, weights under their own names, any generator in what follows."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_bundles import write_fake_bundles, write_weights
from fake_cohort import write_fake_cohort
from generation_toys import write_toy_cohort
from monai.bundle import ConfigParser
from wcapsgan_toys import make_generator

from evaluation.cohort_subsets import open_subset
from evaluation.generation.methods import find_generators
from evaluation.generation.pipeline_slices import find_pipeline
from evaluation.generation.reference import matched_requests
from evaluation.generation.run import GenerationConfig, open_inputs
from lungsynth.bundles import nodule_rule, open_bundle, resolved_config
from lungsynth.categories import ANY, CategoryRule
from lungsynth.cohort.reader import Cohort
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig
from lungsynth.errors import InputError
from lungsynth.generate import generate
from lungsynth.package_bundles import package_bundles
from lungsynth.placement.assets import AssetLibrary
from lungsynth.plan import plan
from lungsynth.similarity.features import open_features

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "wcapsgan_bundle"
sys.path.insert(0, str(BUNDLE))

from stores import new_store
from wcapsgan.categories import CategoryRule as TrainingRule
from wcapsgan.data import CohortSamples
from wcapsgan.weights import load_generator

LEVELS = ("low", "middle", "high")
MALIGNANCY = {"categories": list(LEVELS), "category_key": "malignancy", "category_edges": [2.5, 3.5]}
UNCONDITIONAL = {"categories": [], "category_key": "category", "category_edges": []}
RULE = CategoryRule(names=LEVELS, key="malignancy", edges=(2.5, 3.5))


def rated(values: list) -> list[dict]:
    return [{"category": "solid", "malignancy": value} for value in values]


def test_training_and_use_have_one_rule() -> None:
    entries = rated([1.0, 2.4999, 2.5, 2.75, 3.5, 5, None])
    expected = ["low", "low", "middle", "middle", "high", "high"]
    assert TrainingRule(LEVELS, key="malignancy", edges=(2.5, 3.5)).categories_of(entries) == [*expected, None]
    assert [entry["category"] for entry in RULE.relabelled(entries)] == [*expected, "unknown"]
    sources = [{"category": "solid", "source": name} for name in "ABC"]
    assert TrainingRule("AB", key="source").categories_of(sources) == ["A", "B", None]
    by_source = CategoryRule(names=("A", "B"), key="source").relabelled(sources)
    assert [entry["category"] for entry in by_source] == ["A", "B", "unknown"]
    assert {entry["category"] for entry in CategoryRule(names=()).relabelled(entries)} == {ANY}
    textures = CategoryRule.of_config({"categories": ["ground_glass", "part_solid", "solid"]})
    assert textures.identity == "", "what was made before stays what it is"
    assert textures.relabelled(entries) == entries


@pytest.mark.parametrize(
    ("entries", "key", "names", "edges", "message"),
    [
        ([1.0], "malignancy", LEVELS, (2.5,), r"\[2\.5\] make 2 bins, but categories .*'high'\]"),
        ([1.0], "malignancy", LEVELS, (3.5, 2.5), r"must grow, got \[3\.5, 2\.5\]"),
        (["high"], "malignancy", LEVELS, (2.5, 3.5), "need numbers, but 'malignancy' .*has 'high'"),
        ([1.0], "spiculation", LEVELS, (2.5, 3.5), "'spiculation'.*[Pp]repare the\\s+(COHORT|cohort) again"),
    ],
)
def test_what_makes_no_categories_is_named(entries, key, names, edges, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingRule(names, key=key, edges=edges).categories_of(rated(entries))
    with pytest.raises(InputError, match=message):
        CategoryRule(names=names, key=key, edges=edges).relabelled(rated(entries))


def test_mean_ratings_train_in_bins(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", hu=np.zeros((1, 16, 16)), alpha=np.ones((1, 16, 16)), largest=0)
    data = [{**entry, "nodule": str(tmp_path / "a.npz")} for entry in rated([1.25, 2.75, 4.75, 5.0, None])]
    shared = {"sample_type": "nodule", "size": 16, "spacing_mm": 0.7}
    rule = TrainingRule(LEVELS, key="malignancy", edges=[2.5, 3.5])
    samples = CohortSamples(data, categories=rule, **shared)
    assert samples.category.tolist() == [0, 1, 2, 2]
    assert len(CohortSamples(data, categories=TrainingRule([]), **shared)) == 5, "one category takes all, rated or not"
    with pytest.raises(ValueError, match=r"none of \['low'\].* or `category_edges` to make bins"):
        CohortSamples(data, categories=TrainingRule(["low"], key="malignancy"), **shared)


def run_of(folder: Path, network: torch.nn.Module, /, *, file: str = "model.pt", **facts) -> Path:
    """What a training leaves behind."""
    folder.mkdir()
    write_weights(folder / file, network.state_dict())
    sidecar = (folder / file).with_suffix(".json")
    told = {"network": "wcapsgan.network.Generator", "spacing_mm": 0.7, "split_hash": None, **facts}
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text(encoding="utf-8")) | told), encoding="utf-8")
    return folder


def opened(folder: Path, **options):
    """The exported bundle's sampler, with the package that this process has already."""
    root = folder / "wcapsgan_bundle"
    shutil.rmtree(root / "wcapsgan")
    (root / "wcapsgan").symlink_to(BUNDLE / "wcapsgan")
    return open_bundle(folder, "wcapsgan", **options)


@pytest.mark.parametrize("names", ["new", "former"])
def test_an_exported_generator_keeps_its_names_and_sizes(names, tmp_path) -> None:
    sizes = {"latent_dim": 8, "channels": 4, "max_width_multiplier": 2}
    frame = {"use_canvas": True, "flat_background": True, "edge_px": 0.8}
    network = make_generator(n_categories=3, size=32, **sizes, **frame)
    former = {"latent_dim": 8, "size": 32, "channels": 4, "widest": 2, "spatial_dims": 2}
    former |= {"flat_background": True, "zoomed": True, "edge_px": 0.8}
    facts = {
        "new": {"sample_type": "nodule", "settings": {"size": 32, "network_def": sizes, "frame": frame}},
        "former": {"layer": "nodule", "settings": former},
    }
    run = run_of(tmp_path / "run", network, **facts[names], **MALIGNANCY)
    package_bundles(tmp_path / "out", weights=[f"wcapsgan={run}"])
    sampler = opened(tmp_path / "out")
    assert sampler.categories == LEVELS
    assert sampler([1], ["high"], [8.0])["hu"].shape == (1, 32, 32)
    assert nodule_rule(tmp_path / "out") == RULE
    shipped, exported = (
        resolved_config(folder, "wcapsgan", configs=("inference.json", "inference_lung.json"))
        for folder in (ROOT / "bundles", tmp_path / "out")
    )
    assert {key for key in shipped if shipped[key] != exported[key]} <= {"_meta_"}, "lungs inherit nothing new"
    cubes = ("inference.json", "inference_cube.json")
    assert resolved_config(tmp_path / "out", "wcapsgan", configs=cubes)["categories"][0] == "ground_glass"
    facts = json.loads((tmp_path / "out" / "wcapsgan_bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert facts["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [32, 32]


def test_an_unconditional_generator_and_large_lungs_are_exported(tmp_path) -> None:
    frame = {"use_canvas": False, "flat_background": False, "edge_px": 0.0}
    nodule = {"latent_dim": 128, "channels": 2, "max_width_multiplier": 2}
    nodules = run_of(
        tmp_path / "nodules",
        make_generator(n_categories=1, size=64, **nodule),
        sample_type="nodule",
        settings={"size": 64, "network_def": nodule, "frame": frame},
        **UNCONDITIONAL,
    )
    lung = {"latent_dim": 128, "channels": 1, "max_width_multiplier": 2}
    facts = {"settings": {"size": 512, "network_def": lung, "frame": frame}, "spacing_mm": 0.7}
    facts |= {**UNCONDITIONAL, "categories": ["normal"], "sample_type": "lung"}
    network = make_generator(n_categories=1, size=512, **lung)
    lungs = run_of(tmp_path / "lungs", network, file="model_lung.pt", **facts)
    package_bundles(tmp_path / "out", weights=[f"wcapsgan={nodules}", f"wcapsgan={lungs}"])
    assert opened(tmp_path / "out").categories == (ANY,)
    configs = ("inference.json", "inference_lung.json")
    sampler = open_bundle(tmp_path / "out", "wcapsgan", configs=configs, weights="model_lung.pt")
    assert (sampler.categories, sampler.spacing_mm, sampler.network.size) == (("normal",), 0.7, 512)


def test_an_export_of_the_shipped_weights_is_the_bundle(tmp_path) -> None:
    package_bundles(tmp_path / "out", weights=[f"wcapsgan={BUNDLE / 'models'}"])
    for path in (BUNDLE / "configs").iterdir():
        assert (tmp_path / "out" / "wcapsgan_bundle" / "configs" / path.name).read_bytes() == path.read_bytes()


def test_weights_that_no_layer_opens_are_refused(tmp_path) -> None:
    network = "wcapsgan.baselines.plain.PlainGenerator"
    run = run_of(
        tmp_path / "a",
        make_generator(latent_dim=8, n_categories=3, channels=4),
        sample_type="nodule",
        network=network,
        **MALIGNANCY,
    )
    with pytest.raises(InputError, match=r"PlainGenerator, a method to compare with.*evaluate\.py --weights"):
        package_bundles(tmp_path / "out", weights=[f"wcapsgan={run}"], overwrite=True)
    run = run_of(
        tmp_path / "b", make_generator(latent_dim=8, n_categories=3, channels=4), sample_type="lung", **MALIGNANCY
    )
    with pytest.raises(InputError, match=r"weights of sample_type lung are model_lung\.pt, got model\.pt"):
        package_bundles(tmp_path / "out", weights=[f"wcapsgan={run}"], overwrite=True)


def rename(bundles: Path, facts: dict, *, package: str) -> None:
    """Turns a fake generator of three texture classes into one with other categories."""
    root = bundles / "wcapsgan_bundle"
    config = root / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | facts), encoding="utf-8")
    code = root / package / "sampling.py"
    levels = dict(zip(facts["categories"] or [ANY], (-500, -250, 30), strict=False))
    before = 'LEVELS = {"ground_glass": -500, "part_solid": -250, "solid": 30}'
    assert before in code.read_text(encoding="utf-8")
    renamed = (
        code.read_text(encoding="utf-8")
        .replace(before, f"LEVELS = {levels}")
        .replace('CATEGORIES = ("ground_glass", "part_solid", "solid")', f"CATEGORIES = {tuple(levels)}")
    )
    code.write_text(renamed, encoding="utf-8")


def test_weights_under_other_names_are_refused(tmp_path) -> None:
    bundles = write_fake_bundles(tmp_path, "renamed")
    sidecar = bundles / "wcapsgan_bundle" / "models" / "model.json"
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    rename(bundles, {"categories": ["ground_glass", "part_solid", "solid"]}, package="renamed_wcapsgan")
    assert open_bundle(bundles, "wcapsgan").categories[0] == "ground_glass", "a sidecar may say nothing"
    sidecar.write_text(json.dumps(facts | MALIGNANCY), encoding="utf-8")
    with pytest.raises(InputError, match=r"trained with categories \['low', .*config says \['ground_glass', "):
        open_bundle(bundles, "wcapsgan")
    sidecar.write_text(json.dumps(facts | {"categories": []}), encoding="utf-8")
    with pytest.raises(InputError, match=r"trained with categories \[\], but .*'solid'\].*lungsynth package"):
        open_bundle(bundles, "wcapsgan")


def test_a_bundle_alone_refuses_other_names_too(tmp_path) -> None:
    network = make_generator(n_categories=3, channels=4)
    run = run_of(tmp_path / "run", network, **MALIGNANCY)
    load_generator(network, run / "model.pt", categories=list(LEVELS))
    with pytest.raises(ValueError, match=r"trained with the categories \['low', .* names \['a', 'b', 'c'\]"):
        load_generator(network, run / "model.pt", categories=["a", "b", "c"])


@pytest.fixture(scope="module", params=["unconditional", "malignancy"])
def other(request, tmp_path_factory):
    """Bundles whose nodules have other categories, and a cohort of texture classes with ratings."""
    facts = MALIGNANCY if request.param == "malignancy" else UNCONDITIONAL
    bundles = write_fake_bundles(tmp_path_factory.mktemp("bundles"), request.param)
    textures = write_fake_bundles(tmp_path_factory.mktemp("textures"), f"{request.param}_textures")
    rename(bundles, facts, package=f"{request.param}_wcapsgan")
    cohort = write_fake_cohort(tmp_path_factory.mktemp("cohort"), open_bundle(textures, "wcapsgan"))
    lists = json.loads((cohort / "nodules.json").read_text(encoding="utf-8"))
    for entries in lists.values():
        for index, entry in enumerate(entries):
            entry["malignancy"] = (1.25, 2.75, 4.5)[index // 6 % 3]
    (cohort / "nodules.json").write_text(json.dumps(lists), encoding="utf-8")
    return bundles, cohort, facts["categories"] or [ANY]


def test_the_chain_mixes_real_nodules_into_any_categories(other, tmp_path) -> None:
    bundles, cohort, names = other
    settings = GenerateConfig(
        out=tmp_path / "out",
        count=6,
        seed=1,
        bundles=bundles,
        cohort=cohort,
        placement=PlacementConfig(real_share=0.5),
        enhancement=EnhancementConfig(enabled=False),
    )
    generate(settings, tracking_uri=new_store(tmp_path))
    nodules = [asset for asset in AssetLibrary(settings.out) if asset.kind == "nodule"]
    for source in ("real", "generated"):
        assert {asset.category for asset in nodules if asset.source == source} == set(names)
    assert {
        nodule.category for nodule in Cohort.open(cohort, rule=nodule_rule(bundles)).split("test").nodules()
    } <= set(names)
    selection = json.loads((settings.out / "selection.json").read_text(encoding="utf-8"))
    assert set(selection["nodules"]) == set(names)
    assert all(count["real"] for count in selection["nodules"].values()), "they were ranked by real ones"


def test_a_plan_matches_real_nodules_of_any_categories(other, tmp_path) -> None:
    bundles, cohort, names = other
    settings = GenerateConfig(
        out=tmp_path / "plan",
        count=4,
        bundles=bundles,
        cohort=cohort,
        placement=PlacementConfig.at_scale(lungs=3, groups=6, nodules=6, policy="matched"),
        enhancement=EnhancementConfig(enabled=False),
    )
    assert set(plan(settings).record.parts) == set(names)
    again = replace(settings, out=tmp_path / "again", library=tmp_path / "plan")
    assert set(plan(again).record.parts) == set(names), "a library's categories are known again"


def test_the_evaluation_requests_the_generators_categories(other, tmp_path) -> None:
    bundles, _, names = other
    cohort = write_toy_cohort(tmp_path / "cohort")
    lists = json.loads((cohort / "nodules.json").read_text(encoding="utf-8"))
    for entries in lists.values():
        for index, entry in enumerate(entries):
            entry["malignancy"] = (1.25, 2.75, 4.5)[index % 3]
    (cohort / "nodules.json").write_text(json.dumps(lists), encoding="utf-8")
    config = GenerationConfig(
        kind="nodules", cohort=cohort, out=tmp_path / "out", bundles=bundles, weights=tmp_path, count=2
    )
    subset = open_subset(cohort, "test")
    trained, _ = find_generators("nodules", subset, bundles, tmp_path)
    inputs = open_inputs(config, subset, open_features("domain", "nodules"), trained)
    reference = inputs.reference
    assert set(reference.held_out.categories) == set(names)
    assert len(reference.held_out) == 18, "six patients, three nodules each"
    generate = inputs.methods[-1].open()
    assert generate(matched_requests(reference)).samples.categories == reference.held_out.categories
    assert reference.correct is None, "nobody asked for a texture"
    with pytest.raises(
        InputError, match=r"Table III compares slices composed by texture class.*Evaluate it as `nodules`"
    ):
        find_pipeline(subset, bundles, tmp_path, seed=0, requested=["first_stage"])


def test_lungs_of_512_pixels_start_from_the_shipped_ones() -> None:
    """The recipe of the card."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "train_lung.json")])
    weights = BUNDLE / "models" / "model_lung.pt"
    scales = [{"downsampling": 8, "extra_convolutions": 1}, {"downsampling": 1, "extra_convolutions": 0}]
    recipe = {"size": 512, "spacing_mm": 0.7, "network_def#channels": 8, "network_def#max_width_multiplier": 16}
    recipe |= {"critic_def#scales": scales, "pretrained": str(weights), "device": "cpu"}
    parser.update(recipe)
    parser.get_parsed_content("pretrained_weights")
    large, critic = parser.get_parsed_content("network"), parser.get_parsed_content("critic")
    config = resolved_config(ROOT / "bundles", "wcapsgan", configs=("inference.json", "inference_lung.json"))
    same = {name: config["network_def"][name] for name in ("latent_dim", "channels", "max_width_multiplier")}
    same |= {name: config["frame"][name] for name in ("flat_background", "use_canvas", "edge_px")}
    small = load_generator(make_generator(n_categories=1, size=256, spacing_mm=1.4, **same), weights)
    latent = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    category, none = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    with torch.no_grad():
        coarse, fine = (network(latent, category, none) for network in (small, large))
        assert critic(fine, category, none).shape == (1,)
    assert fine.shape == (1, 2, 512, 512)
    averaged = torch.nn.functional.avg_pool2d(fine, 2)
    assert (averaged - coarse).abs().mean() < 0.1 * coarse.std(), "it begins as its smaller self"
