"""Laws of the choice among generated samples: copies never, what is unlike last, N kept, the same however it is run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import write_fake_bundles
from generation_toys import CATEGORIES, nodule, write_toy_cohort
from stores import new_store

import lungsynth.similarity.selection
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig, Selection, SelectionConfig
from lungsynth.errors import InputError
from lungsynth.generate import generate
from lungsynth.placement.assets import AssetLibrary
from lungsynth.similarity.reference import open_reference_set
from lungsynth.similarity.selection import (
    NEIGHBOURS,
    CandidateCounts,
    CandidateSource,
    SimilarityScores,
    kept_assets,
    preference,
    selection_figures,
    unranked,
    write_selection,
)
from lungsynth.tracking import open_tracker


def scores(points, real, *, copied=(), unlike=()) -> SimilarityScores:
    """Of candidates and real samples on a line."""
    flags = np.arange(len(points))
    distances = np.abs(np.subtract.outer(points, real))
    return SimilarityScores(copied=np.isin(flags, copied), unlike=np.isin(flags, unlike), distances=distances)


def select(cohort, strategy, candidates) -> Selection:
    return SelectionConfig(strategy=strategy, candidates=candidates).resolve(cohort)


REAL = np.array([0.0] * 10 + [9.0] * 10)


@pytest.mark.parametrize("strategy", ["coverage", "nearest", "none"])
def test_copies_are_in_no_order_and_all_others_once(strategy):
    found = scores(np.linspace(0, 9, 30), REAL, copied=(0, 7), unlike=(3,))
    order = preference(found, strategy, seed=1)
    assert sorted(order) == [place for place in range(30) if place not in (0, 7)]


@pytest.mark.parametrize("strategy", ["coverage", "nearest"])
def test_a_planted_outlier_goes_first_and_what_is_unlike_last(strategy):
    points = np.array([0.1, 40.0, 8.9, 0.2, 9.1, 25.0])
    order = preference(scores(points, REAL, unlike=(1, 5)), strategy, seed=0)
    assert order[-2:].tolist() == [5, 1]


def test_unranked_samples_stay_as_they_come():
    assert preference(unranked(4), "coverage", seed=0).tolist() == [0, 1, 2, 3]
    assert preference(scores(np.array([5.0, 0.0]), REAL, unlike=(0,)), "none", seed=0).tolist() == [0, 1]


def test_nearest_keeps_the_ordinary_and_coverage_keeps_both_ends():
    real = np.array([0.0] * 8 + [9.0] * 6)
    points = np.concatenate([np.linspace(0, 0.5, 20), np.linspace(7, 8, 20)])
    nearest, coverage = (preference(scores(points, real), name, seed=0)[:20] for name in ("nearest", "coverage"))
    assert (points[nearest] < 5).mean() == 1
    assert 0.4 <= (points[coverage] > 5).mean() <= 0.6, "six of fourteen real ones are at that end"


def test_the_order_of_real_samples_follows_the_seed():
    found = scores(np.random.default_rng(0).normal(size=40), np.random.default_rng(1).normal(size=12))
    orders = [preference(found, "coverage", seed=seed).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ((None, None, None), ("none", 1)),
        ((Path("c"), None, None), ("coverage", 3)),
        ((Path("c"), "nearest", 2), ("nearest", 2)),
        ((Path("c"), "none", None), ("none", 1)),
        ((None, "none", 1), ("none", 1)),
    ],
)
def test_what_the_options_mean(given, meant):
    selection = select(*given)
    assert (selection.strategy, selection.candidates) == meant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, "coverage", None), "need a `cohort`"),
        ((None, None, 2), "need a `cohort`"),
        ((Path("c"), None, 0), "`candidates` must be at least 1"),
        ((Path("c"), "best", None), "must be one of coverage, nearest, none, got 'best'"),
        ((Path("c"), "none", 3), "3 `candidates` would be made for nothing"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        select(*given)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "ranked")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """24 patients, of whom 12 train: as many nodules a category."""
    folder = write_toy_cohort(tmp_path_factory.mktemp("cohort") / "toy", patients=24)
    (folder / "enhancement.json").write_text(json.dumps({"training": []}), encoding="utf-8")
    return folder


class PlantedSampler:
    """Noisy discs; seed 1 copies a training nodule, turned and brighter; seed 2 is a checkerboard."""

    categories, spacing_mm = CATEGORIES, 0.7

    def __init__(self, cohort: Path) -> None:
        with np.load(cohort / "nodules" / "P00_solid.npz") as patch:
            self.copied = patch["hu"][0], patch["alpha"][0]

    def __call__(self, seeds, categories, diameters_mm):
        made = [self.one(int(seed), category) for seed, category in zip(seeds, categories, strict=True)]
        hu, alpha = (np.stack(planes) for planes in zip(*made, strict=True))
        return {"hu": hu, "alpha": alpha, "diameter_mm": np.zeros(len(seeds)), "seed": np.int64(seeds)}

    def one(self, seed, category):
        if seed == 1:
            return self.copied[0][:, ::-1] + np.int16(25), self.copied[1][:, ::-1]
        rng = np.random.default_rng(seed)
        hu, alpha = nodule(rng, category, float(rng.uniform(6, 20)))
        if seed == 2:
            alpha[2:-2, 2:-2] = 1
            hu = np.where(np.add.outer(np.arange(64) // 8, np.arange(64) // 8) % 2, 3000, -1000).astype(np.int16)
        return hu, alpha


def chosen(cohort, folder, *, strategy="coverage", candidates=2, wanted=10, first=1):
    """Origins of the kept of `TRIES` rounds of seeds, and the counts."""
    selection = Selection(strategy=strategy, candidates=candidates, cohort=cohort)
    source = CandidateSource(
        sampler=PlantedSampler(cohort), kind="nodules", selection=selection, real=open_reference_set(cohort, "nodules")
    )
    library = AssetLibrary(folder)

    def store(hu, alpha, *, category, origin):
        return library.add_nodule(hu, alpha, category=category, source="generated", origin=origin)

    found, counts = kept_assets(source, "solid", wanted, range(first, first + 4 * candidates * wanted), store)
    return {asset.origin for asset in found}, counts


@pytest.mark.parametrize("strategy", ["coverage", "nearest", "none"])
def test_a_planted_copy_is_refused_and_as_many_are_kept(cohort, tmp_path, strategy):
    origins, counts = chosen(cohort, tmp_path, strategy=strategy, candidates=1 if strategy == "none" else 2)
    assert "1" not in origins
    assert len(origins) == counts.kept == 10
    assert counts.copies >= 1
    parts = counts.kept + counts.copies + counts.unlike + counts.surplus + counts.unusable
    assert counts.generated == parts
    assert len(list((tmp_path / "assets").iterdir())) == 10, "nothing is stored but what is kept"


@pytest.mark.parametrize("strategy", ["coverage", "nearest"])
def test_a_checkerboard_is_unlike_and_goes(cohort, tmp_path, strategy):
    origins, counts = chosen(cohort, tmp_path, strategy=strategy)
    assert "2" not in origins
    assert counts.unlike >= 1
    everything, counts = chosen(cohort, tmp_path / "all", strategy=strategy, candidates=1, first=2)
    assert "2" in everything, "kept when there is no other"
    assert counts.kept_unlike >= 1


def test_batches_of_the_sampler_and_the_judge_decide_nothing(cohort, tmp_path, monkeypatch):
    whole = chosen(cohort, tmp_path / "whole")
    monkeypatch.setattr(lungsynth.similarity.selection, "_CHUNK", 3)
    monkeypatch.setattr("lungsynth.similarity.features._BATCH", 7)
    monkeypatch.setattr("lungsynth.similarity.copies._CHUNK", 5)
    assert chosen(cohort, tmp_path / "parts") == whole


def test_only_the_training_part_is_read(cohort, tmp_path, monkeypatch):
    read = []
    work = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: read.append(Path(path).stem) or work(path, **options))
    real = open_reference_set(cohort, "nodules")
    lists = json.loads((cohort / "nodules.json").read_text(encoding="utf-8"))
    assert set(read) == {entry["nodule_id"] for entry in lists["training"]}
    assert {len(category.vectors) for category in real.categories.values()} == {12}
    assert set(real.slices.owners) == {entry["patient_id"] for entry in lists["training"]}


def test_few_real_samples_rank_nothing_but_refuse_copies(tmp_path):
    cohort = write_toy_cohort(tmp_path / "few", patients=2 * NEIGHBOURS)
    assert open_reference_set(cohort, "nodules").categories == {}, "each has four others"
    origins, counts = chosen(cohort, tmp_path / "out")
    assert counts.real == 0
    assert counts.copies >= 1
    assert len(origins) == 10


def test_what_is_begun_again_counts_its_candidates_once(tmp_path):
    def generated(count, assets):
        counts = {"nodules": {"solid": CandidateCounts(generated=count)}, "lungs": {}}
        write_selection(tmp_path, select(None, "none", 1), counts, assets=assets)
        return selection_figures(tmp_path)["nodules_solid_generated"]

    assert [generated(5, 0), generated(5, 0)] == [5, 5], "stopped before the table of the library was written"
    assert [generated(3, 5), generated(3, 5), generated(2, 8)] == [8, 8, 10]


def test_a_run_with_a_cohort_ranks_logs_and_ends_in_the_same_bytes(bundles, cohort, tmp_path, monkeypatch):
    store = new_store(tmp_path)
    settings = GenerateConfig(
        out=tmp_path / "a",
        count=4,
        seed=5,
        bundles=bundles,
        cohort=cohort,
        selection=SelectionConfig(candidates=2),
        placement=PlacementConfig(real_share=0),
        enhancement=EnhancementConfig(enabled=False),
    )
    figures = generate(settings, tracking_uri=store).figures["assets"]
    told = json.loads((settings.out / "selection.json").read_text(encoding="utf-8"))
    assert (told["strategy"], told["candidates"]) == ("coverage", 2)
    solid = told["nodules"]["solid"]
    assert figures["nodules_solid_generated"] == solid["generated"] >= 2 * solid["kept"]
    assert figures["nodules_candidates_kept"] == sum(asset.kind == "nodule" for asset in AssetLibrary(settings.out))
    assert told["lungs"]["normal"]["real"] == 24
    tracker = open_tracker(store)
    runs = tracker.client.search_runs([tracker.experiment_id])
    logged = next(run for run in runs if run.data.tags.get("stage") == "assets")
    copies = sum(category["copies"] for category in told["nodules"].values())
    assert logged.data.metrics["nodules_candidates_copies"] == figures["nodules_candidates_copies"] == copies
    assert "selection.json" in [item.path for item in tracker.client.list_artifacts(logged.info.run_id)]

    again = replace(settings, out=tmp_path / "b")
    work, left = AssetLibrary.add_nodule, [4]

    def breaks(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("the plug was pulled")
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AssetLibrary, "add_nodule", breaks)
        with pytest.raises(RuntimeError, match="the plug was pulled"):
            generate(again, tracking_uri=store)
    generate(again, tracking_uri=store)
    first, second = (
        {
            str(path.relative_to(out)): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file() and path.name != "mlflow_run"
        }
        for out in (settings.out, again.out)
    )
    assert first == second
    with pytest.raises(InputError, match='strategy is "coverage" there and "nearest" here'):
        generate(replace(settings, selection=SelectionConfig(strategy="nearest", candidates=2)), tracking_uri=store)


def test_a_missing_selection_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"selection\.json: expected counts of generated samples"):
        selection_figures(tmp_path)
