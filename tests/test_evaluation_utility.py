"""Laws of the utility experiment: whose data train, what is added, and when a difference is one."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_bundles import write_fake_bundles
from interfaces import documented
from utility_toys import small_settings

from evaluation.cohort_subsets import open_subset
from evaluation.metrics.bootstrap import Estimate
from evaluation.utility.arms import Arm, classifier_arms
from evaluation.utility.classification import (
    ClassifierTraining,
    balanced_accuracy,
    mean_hu_rule,
    train_classifier,
)
from evaluation.utility.estimates import compare, share_table
from evaluation.utility.patches import (
    NoduleExamples,
    copy_examples,
    generate_examples,
    join_examples,
    read_examples,
    read_held_out,
)
from evaluation.utility.report import ArmResult, best_dose, sentences
from evaluation.utility.run import UtilityConfig, evaluate_utility
from evaluation.utility.subcohort import CATEGORIES, choose_patients, make_subcohort
from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError


@pytest.fixture(scope="module")
def cohort(rated_cohort) -> Path:
    return rated_cohort


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "utility")


@pytest.fixture(scope="module")
def evaluated(cohort, bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    settings = small_settings(cohort, folder / "out", bundles)
    return settings, evaluate_utility(settings, tracking_uri="none")


# Few patients


def entries(categories: dict[str, list[str]]) -> list[dict[str, str]]:
    return [{"patient_id": patient, "category": name} for patient, names in categories.items() for name in names]


def test_few_patients_have_each_category_and_more_begin_with_them():
    known = {f"s{index}": ["solid"] for index in range(20)}
    known |= {"rare": ["ground_glass", "solid"], "mixed": ["part_solid"], "unrated": ["unknown"]}
    chosen = choose_patients(entries(known), 12, seed=1)
    assert len(set(chosen)) == 12
    assert {"rare", "mixed"} <= set(chosen[:3])
    assert choose_patients(entries(known), 5, seed=1) == chosen[:5]
    assert choose_patients(entries(known), 12, seed=2) != chosen
    for count in (1, 23):
        with pytest.raises(InputError, match=r"`patients`: \d+ training patients"):
            choose_patients(entries(known), count, seed=1)


def test_a_subcohort_knows_no_other_training_patient(cohort, tmp_path):
    made = make_subcohort(cohort, tmp_path / "p2-s0", patients=2, lung_patients=1, seed=0)
    chosen = set(
        choose_patients(json.loads((cohort / "nodules.json").read_text(encoding="utf-8"))["training"], 2, seed=0)
    )
    owners: dict[str, set[str]] = {}
    for name in ("segmentation", "nodules", "lungs", "enhancement"):
        whole, own = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for folder in (cohort, made.folder)
        )
        assert {part: own[part] for part in own if part != "training"} == {
            part: whole[part] for part in whole if part != "training"
        }
        owners[name] = {entry["patient_id"] for entry in own["training"]}
    assert owners["nodules"] == chosen
    donors = (owners["segmentation"] | owners["lungs"]) - chosen
    assert len(donors) <= 1
    assert made.lung_slices > 0
    series = pd.read_csv(made.folder / "series.csv")
    assert set(series[series["split"] == "training"]["patient_id"]) == chosen | donors
    assert set(series["split"]) == {"training", "validation", "test"}
    assert made.split_hash != json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))["split_hash"]
    assert open_subset(made.folder).nodules == open_subset(cohort).nodules


def test_a_subcohort_made_again_is_the_same(cohort, tmp_path):
    first = make_subcohort(cohort, tmp_path / "a", patients=2, lung_patients=1, seed=0)
    files = {path.name: path.read_bytes() for path in first.folder.glob("*.*")}
    again = make_subcohort(cohort, tmp_path / "a", patients=2, lung_patients=1, seed=0)
    assert again == first
    assert {path.name: path.read_bytes() for path in first.folder.glob("*.*")} == files


# What is added


def test_every_generated_dose_of_the_classifier_has_its_copies():
    arms = classifier_arms((0, 1, 3), per_category=200)
    doses = {
        kind: {(arm.dose, arm.per_category) for arm in arms if arm.added == kind and arm.real}
        for kind in ("generated", "copied")
    }
    assert doses["generated"] == doses["copied"] == {(1, None), (3, None), (0.0, 200)}
    assert [arm.count(20, categories=3) for arm in arms if arm.added == "copied"] == [20, 60, 600]
    assert len({arm.name for arm in arms}) == len(arms)


def test_fewer_generated_samples_are_the_first_of_more(bundles):
    sampler = open_bundle(bundles, "wcapsgan")
    few, many = (generate_examples(sampler, [count] * 3, seed=4) for count in (2, 5))
    for index, (some, more) in enumerate(zip(few, many, strict=True)):
        assert np.array_equal(some.hu, more.hu[:2])
        assert (more.category == index).all()
    assert not np.array_equal(generate_examples(sampler, [2] * 3, seed=5)[0].hu, few[0].hu)
    sampler.categories = ("solid",)
    with pytest.raises(InputError, match="lacks the categories"):
        generate_examples(sampler, [1] * 3, seed=0)


def test_copies_are_nodules_of_their_category_turned_and_scaled(cohort):
    real = read_examples(cohort, Cohort.open(cohort).split("training").nodules())
    for index, pool in enumerate(copy_examples(real, [3] * 3, seed=0)):
        own = real.take(np.flatnonzero(real.category == index).tolist())
        areas = (own.alpha >= 0.5).sum(axis=(1, 2))
        assert (pool.category == index).all()
        for hu, alpha in zip(pool.hu, pool.alpha, strict=True):
            assert 0.75 * areas.min() <= alpha.sum() <= 1.3 * areas.max()
            assert own.hu.min() <= hu.min() <= hu.max() <= own.hu.max()
    few, many = (copy_examples(real, [count] * 3, seed=0)[0] for count in (1, 3))
    assert np.array_equal(few.hu, many.hu[:1])


def test_the_slices_of_a_nodule_count_as_one(cohort):
    listed = Cohort.open(cohort).split("training").nodules()
    rated = [entry for entry in listed if entry.category in CATEGORIES]
    assert read_examples(cohort, listed).weight.sum() == pytest.approx(len(rated))


# The classifier


def discs(levels: list[int], each: int, *, seed: int = 0) -> NoduleExamples:
    """Discs of one HU level a category, with noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(64) - 31.5
    mask = np.hypot(axis[:, None], axis[None, :]) <= 14
    category = np.repeat(np.arange(3), each)
    hu = np.where(mask, np.array(levels)[category][:, None, None] + rng.integers(-20, 20, (3 * each, 64, 64)), -850)
    alpha = np.broadcast_to(mask, hu.shape).astype(np.float64)
    return NoduleExamples(hu=hu.astype(np.int16), alpha=alpha, category=category, weight=np.ones(3 * each))


def test_the_classifier_learns_what_is_easy_and_repeats_with_its_seed():
    levels = [-600, -250, 40]
    train, other = discs(levels, 8), discs(levels, 3, seed=1)
    settings = ClassifierTraining(steps=60, batch_size=8, validations=4)
    first, again = (train_classifier(train, other, other, seed=3, training=settings) for _ in range(2))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert first.validation == balanced_accuracy(first.probabilities.argmax(axis=1), other.category) == 1.0
    assert balanced_accuracy(mean_hu_rule(train, other).argmax(axis=1), other.category) == 1.0
    assert balanced_accuracy(np.zeros(9, dtype=np.int64), other.category) == pytest.approx(1 / 3)


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="needs examples, got none"):
        join_examples([])


# Figures


def table(shares: dict[str, tuple[float, float]]):
    return share_table([(patient, {"hit": hits, "n": n}) for patient, (hits, n) in shares.items()])


SHARE = {"share": (("hit", "n"),), "absent": (("nothing", "nothing/n"),)}


def test_figures_are_means_over_seeds_and_an_arm_does_not_differ_from_itself():
    runs = {seed: table({f"p{i}": (float((i + seed) % 3 == 0), 1.0) for i in range(12)}) for seed in range(3)}
    figures, differences = compare(runs, runs, SHARE, seed=0)
    assert figures["share"].value == pytest.approx(1 / 3)
    assert figures["share"].low < 1 / 3 < figures["share"].high
    assert (figures["share"].n, figures["share"].patients) == (12, 12)
    assert figures["absent"].value is None
    assert (differences["share"].value, differences["share"].low, differences["share"].high) == (0, 0, 0)


def test_seeds_that_disagree_widen_the_interval_and_pairs_narrow_that_of_a_difference():
    def runs(*shifts: float):
        return {
            seed: table({f"p{i}": (float(i % 2) * 0.4 + shift, 1.0) for i in range(30)})
            for seed, shift in enumerate(shifts)
        }

    alike, apart = (compare(run, {}, SHARE, seed=0)[0]["share"] for run in (runs(0.3, 0.3), runs(0.0, 0.6)))
    assert alike.value == pytest.approx(apart.value)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    better = compare(runs(0.1, 0.4), runs(0.0, 0.3), SHARE, seed=0)[1]["share"]
    assert (better.low, better.high) == (pytest.approx(0.1), pytest.approx(0.1))


def line(arm: Arm, validation: float, low: float, high: float, **changes) -> ArmResult:
    found = Estimate(value=(low + high) / 2, low=low, high=high, n=9, patients=3)
    facts = {"patients": 10, "added": arm.dose, "seeds": (0,), "own_generator": False}
    figures = {"figures": {"balanced_accuracy": found}, "differences": {"balanced_accuracy": found}}
    return ArmResult(arm=arm, validation=validation, **{**facts, **figures, **changes})


def test_the_dose_is_chosen_by_validation_and_a_difference_needs_its_interval():
    one, ten = (Arm(name=f"g{dose}", title=f"{dose}x generated", added="generated", dose=dose) for dose in (1, 10))
    alone = Arm(name="only", title="nothing real", added="generated", dose=1, real=False)
    copy = Arm(name="c1", title="1x copied", added="copied", dose=1)
    lines = [line(one, 0.7, -0.01, 0.2), line(ten, 0.6, 0.1, 0.3), line(alone, 0.9, 0, 1), line(copy, 0.5, -0.3, -0.1)]
    assert best_dose(lines).arm == one
    (said,) = sentences(lines)
    assert "1x generated (chosen on validation data) makes no difference that this test can see" in said
    assert "1x copied harms: -0.200" in said
    (said,) = sentences([line(one, 0.7, 0.01, 0.2)])
    assert "helps: +0.105 (+0.010 to +0.200)" in said


# The whole


def test_the_whole_experiment_and_its_report(evaluated):
    settings, result = evaluated
    content = json.loads((settings.out / "utility.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(result.table))
    arms = [row["arm"] for row in content["classification"]]
    assert arms[:2] == ["mean_hu", "real"]
    assert {"generated_x1", "copied_x1", "generated_2", "only_generated_2"} <= set(arms)
    for row in content["classification"]:
        assert 0 <= row["balanced_accuracy"] <= 1
    detectors = {(row["patients"], row["arm"], row["dose"]) for row in content["rows"]}
    assert detectors == {(2, "real", 0), (7, "real", 0), (2, "copied", 0.5), (2, "generated", 0.5)}
    assert {row["own_generator"] for row in content["rows"] if row["arm"] == "generated"} == {False}
    for title in ("# Classifier of nodules", "# How many patients are synthetic nodules worth?"):
        assert title in result.markdown
    assert any("trained on other patients than these few" in note for note in content["notes"])
    for name in ("utility.png", "worth.png"):
        assert (settings.out / name).stat().st_size > 1000


def test_a_subcohort_is_a_cohort_of_few_training_patients(evaluated):
    out = evaluated[0].out
    told = json.loads((out / "utility.json").read_text(encoding="utf-8"))
    for about in told["cohorts"]:
        folder = out / ".parts" / "cohorts" / about["name"]
        described = json.loads((folder / "cohort.json").read_text(encoding="utf-8"))
        assert described["split_hash"] == about["split_hash"] != described["subcohort"]["split_hash_of_all"]
        assert described["subcohort"]["split_hash_of_all"] == told["split_hash"]
        series = pd.read_csv(folder / "series.csv")
        lines = sorted({f"{patient},{split}\n" for patient, split in series[["patient_id", "split"]].to_numpy()})
        assert about["split_hash"] == hashlib.sha256("".join(lines).encode()).hexdigest()
        lists = json.loads((folder / "nodules.json").read_text(encoding="utf-8"))
        assert len({entry["patient_id"] for entry in lists["training"]}) == about["patients"]
        assert all((folder / entry["nodule"]).is_file() for own in lists.values() for entry in own)


def test_what_the_experiment_writes(evaluated):
    out = evaluated[0].out
    told = json.loads((out / "utility.json").read_text(encoding="utf-8"))
    promised = documented("evaluation_files.md", "Utility")
    assert set(told) <= promised
    assert all(set(row) <= promised for row in (*told["cohorts"], *told["rows"]))
    for row in told["classification"]:
        assert set(row) - set(row["intervals"]) <= promised
        assert set(row["intervals"]) == set(row["n"]) == {"balanced_accuracy", *(f"recall, {c}" for c in CATEGORIES)}
        assert (row["added"] > 0) == (row["added_kind"] != "nothing")
        assert (row["difference_to_real"] == {}) == (row["arm"] == "real")
    for name in ("utility.md", "utility.png", ".parts/classification/p2-s0-real.json"):
        assert (out / name).is_file()


def test_a_finished_run_is_not_done_again(evaluated, caplog, tmp_path):
    config, result = evaluated
    runs = sum(len(row["seeds"]) for row in result.table["classification"])
    runs += len({(row["patients"], row["arm"]) for row in result.table["rows"]})
    with caplog.at_level(logging.INFO, logger="evaluation"):
        again = evaluate_utility(config, tracking_uri="none")
        assert again.markdown == result.markdown
        assert sum("taken from" in record.message for record in caplog.records) == runs
        caplog.clear()
        longer = {"steps": config.steps + 1, "doses": (0,), "per_category": 0, "experiments": ("classification",)}
        longer |= {"out": tmp_path / "longer"}
        shutil.copytree(config.out, tmp_path / "longer", symlinks=True)
        evaluate_utility(UtilityConfig(**{**vars(config), **longer}), tracking_uri="none")
    assert not [record for record in caplog.records if "taken from" in record.message], "trained for longer"


def test_a_generator_of_the_few_patients_is_taken_and_known(evaluated, bundles, tmp_path):
    settings, _ = evaluated
    generators = tmp_path / "generators"
    generators.mkdir()
    made = json.loads((settings.out / "utility.json").read_text(encoding="utf-8"))["cohorts"][0]
    shutil.copy(bundles / "wcapsgan_bundle" / "models" / "model.pt", generators / f"{made['name']}.pt")
    sidecar = json.loads((bundles / "wcapsgan_bundle" / "models" / "model.json").read_text(encoding="utf-8"))
    (generators / f"{made['name']}.json").write_text(
        json.dumps({**sidecar, "split_hash": made["split_hash"]}), encoding="utf-8"
    )
    one = {"experiments": ("classification",), "doses": (1,), "per_category": 0, "generators": generators}
    one |= {"out": tmp_path / "out"}
    content = evaluate_utility(UtilityConfig(**{**vars(settings), **one}), tracking_uri="none").table
    known = {row["arm"]: row["own_generator"] for row in content["classification"]}
    assert known["generated_x1"] is True
    assert known["real"] is known["copied_x1"] is None
    assert any("Trained on the patients of each sub-cohort alone" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "`seeds` must be at least 1"),
        ({"doses": (-1,)}, "`doses`.*must not be negative"),
        ({"experiments": ("magic",)}, "`experiments`.*unknown"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        small_settings(tmp_path, tmp_path, tmp_path, **changes)


def test_the_evaluated_split_must_show_nodules_with_a_texture(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "plain", ignore=shutil.ignore_patterns(".parts"))
    nodules = pd.read_csv(tmp_path / "plain" / "nodules.csv").assign(texture_class="unknown")
    nodules.to_csv(tmp_path / "plain" / "nodules.csv", index=False)
    with pytest.raises(InputError, match="has no nodule of"):
        read_held_out(open_subset(tmp_path / "plain"))
