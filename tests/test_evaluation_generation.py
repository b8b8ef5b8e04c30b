"""Laws of Table II: a memoriser copies, a set is at no distance of itself, nobody tells equal sets."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_bundles import linear_state, write_weights
from generation_toys import CATEGORIES, nodule, write_generator_bundle, write_toy_cohort
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from evaluation.cohort_subsets import open_subset
from evaluation.features import make_features, read_feature_data
from evaluation.generation.condition_fidelity import agreement, diameter_figures, fidelity_by_size, texture_figures
from evaluation.generation.ct_checks import compare_checks, measure_checks, nodule_measurements
from evaluation.generation.methods import (
    GeneratedSamples,
    SampleRequests,
    baselines,
    find_generators,
    generator_names,
)
from evaluation.generation.reference import MeasurementConfig, matched_requests, read_reference
from evaluation.generation.reference_distances import distances_by_category, run_two_sample_tests
from evaluation.generation.run import GenerationConfig, evaluate_generation
from evaluation.generation.table import minutes_notes
from evaluation.methods import Method, store_weights
from evaluation.metrics.bootstrap import estimate
from evaluation.metrics.c2st import balanced_accuracy, c2st_cnn, c2st_logistic
from evaluation.metrics.fid_kid import frechet_distance, inception_score, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from evaluation.metrics.ms_ssim import ms_ssim, pair_similarity
from evaluation.segmentation.figures import SIZES_MM
from lungsynth.errors import InputError
from lungsynth.similarity.copies import copy_threshold, find_copies
from lungsynth.similarity.features import load_feature_network, open_features
from lungsynth.similarity.folds import owner_folds, paired_folds
from lungsynth.similarity.samples import Samples, join, on_uniform_lung, read_lungs, read_nodules

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "method",
    "fid",
    "kid",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "ms_ssim",
    "c2st",
    "copies",
}


def nodules(seed: int, count: int = 24, *, noise: float = 0.0) -> Samples:
    rng = np.random.default_rng(seed)
    names = [CATEGORIES[i % 3] for i in range(count)]
    made = [nodule(rng, name, float(rng.uniform(6, 20))) for name in names]
    hu = np.stack([hu for hu, _ in made]) + np.rint(rng.normal(0, noise, (count, 64, 64))).astype(np.int16)
    owners = tuple(f"{seed}-{i // 2}" for i in range(count))
    mask = np.stack([alpha for _, alpha in made])
    return Samples(hu=hu, mask=mask, categories=tuple(names), owners=owners, names=owners, spacing_mm=0.7)


QUICK = MeasurementConfig(resamples=10, c2st_steps=4, pairs=40)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(0.5, 1.5, size=(50, 5))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_toy_cohort(tmp_path_factory.mktemp("toys") / "cohort")


# distances


def test_fid_is_the_formula_with_a_matrix_root_whichever_side_is_wider(vectors):
    x, y = vectors
    for a, b in ((x, y), (x[:4], y[:3])):
        covariances = [np.cov(side, rowvar=False) for side in (a, b)]
        root = linalg.sqrtm(covariances[0] @ covariances[1]).real
        formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(formula, rel=1e-4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_torchmetrics_has_the_same_fid_kid_and_inception_score(vectors):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.double()

    x, y = (torch.from_numpy(side[:50]) for side in vectors)
    fid = FrechetInceptionDistance(feature=Given(), normalize=True).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=50, normalize=True)
    score = InceptionScore(feature=Given(), splits=1, normalize=True)
    for metric in (fid, kid):
        metric.normalize = False
        metric.update(x, real=True)
        metric.update(y, real=False)
    score.normalize = False
    score.update(x)
    a, b = x.numpy(), y.numpy()
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-4)
    assert kernel_distance(kernel_matrices(a, b)) == pytest.approx(float(kid.compute()[0]), rel=1e-4)
    probabilities = torch.softmax(x, dim=1).numpy()
    assert inception_score(probabilities) == pytest.approx(float(score.compute()[0]), rel=1e-4)


def test_weights_are_repetitions_but_a_sample_is_no_neighbour_of_itself(vectors):
    x, y = vectors
    w = np.random.default_rng(1).integers(0, 3, len(x)).astype(float)
    repeated = np.repeat(x, w.astype(int), axis=0)
    assert frechet_distance(x, y, x_weights=w) == pytest.approx(frechet_distance(repeated, y))
    naive = kernel_distance(kernel_matrices(repeated, y))
    assert kernel_distance(kernel_matrices(x, y), x_weights=w) < naive
    probabilities = np.full((4, 2), 0.5)
    assert inception_score(probabilities, weights=np.array([1.0, 0, 2, 1])) == pytest.approx(1)


def test_inception_score_is_bounded_by_the_number_of_classes():
    assert inception_score(np.eye(3)) == pytest.approx(3)
    assert inception_score(np.eye(3), weights=np.array([1.0, 0, 0])) == pytest.approx(1)


def test_recentred_intervals_hold_their_figure(vectors):
    x, y = vectors
    groups = [[f"x{i}" for i in range(len(x))], [f"y{i}" for i in range(len(y))]]

    def fid(weights):
        w, v = np.split(weights, [len(x)])
        return [frechet_distance(x, y, x_weights=w, y_weights=v)]

    plain, moved = (
        estimate(groups, fid, n=[60], seed=0, resamples=60, recentre=recentre)[0] for recentre in (False, True)
    )
    assert moved.low < moved.value < moved.high
    assert plain.low > moved.low


def test_manifolds_are_those_of_the_papers_formulas(vectors):
    x, y = vectors
    across = cdist(x, y)
    within_x, within_y = (np.sort(cdist(side, side), axis=1) for side in (x, y))
    ones = np.ones(len(x)), np.ones(len(y))
    found = compare_manifolds(x, y).figures(*ones)
    wanted = (
        (across <= within_x[:, 3, None]).any(0).mean(),
        (across <= within_y[None, :, 3]).any(1).mean(),
        (across <= within_x[:, 5, None]).sum() / (5 * len(y)),
        (across.min(axis=1) <= within_x[:, 5]).mean(),
    )
    assert found == pytest.approx(wanted)
    assert compare_manifolds(x, x).figures(ones[0], ones[0])[:2] == (1, 1)
    assert compare_manifolds(x, y + 100).figures(*ones) == (0, 0, 0, 0)
    with pytest.raises(InputError, match="more than 5"):
        compare_manifolds(x[:5], y)


def test_ms_ssim_of_a_picture_with_itself_is_one_and_pairs_are_of_one_category_and_two_owners():
    picture = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ms_ssim(picture, picture) == pytest.approx(1)
    assert ms_ssim(picture, picture.flip(-1)).max() < 0.5
    samples = nodules(3)
    pairs = pair_similarity(samples, pairs=40, seed=0)
    assert len(pairs.values) == 40
    for i, j in zip(pairs.first, pairs.second, strict=True):
        assert samples.categories[i] == samples.categories[j]
        assert samples.owners[i] != samples.owners[j]
    assert np.isnan(pairs.mean(np.zeros(len(samples))))


# two-sample tests


def test_nobody_tells_equal_sets_and_everybody_tells_noise():
    real, same, noisy = nodules(1, 48), nodules(2, 48), nodules(2, 48, noise=150)
    ones = np.ones(48), np.ones(48)
    folds = owner_folds(real.owners, seed=0), owner_folds(same.owners, seed=0)
    assert balanced_accuracy(c2st_cnn(real, noisy, folds, seed=0, steps=60), *ones) > 0.9
    assert 0.3 < balanced_accuracy(c2st_cnn(real, same, folds, seed=0, steps=60), *ones) < 0.7
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 4)), rng.normal(size=(48, 4))
    assert balanced_accuracy(c2st_logistic(x, y + 3, folds), *ones) > 0.9
    assert 0.3 < balanced_accuracy(c2st_logistic(x, y, folds), *ones) < 0.7


def test_further_real_samples_teach_what_one_patient_cannot():
    rng = np.random.default_rng(3)
    real = np.concatenate([rng.normal((0, -4), 1, (20, 2)), rng.normal((0, 4), 1, (20, 2))])  # two unlike patients
    made = rng.normal((3, 0), 1, (40, 2))
    folds = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    known = np.concatenate([rng.normal((0, y), 1, (20, 2)) for y in (-4, -2, 0, 2, 4)])
    ones = np.ones(40), np.ones(40)
    assert balanced_accuracy(c2st_logistic(real, made, folds, further_real=known), *ones) > 0.85
    assert balanced_accuracy(c2st_logistic(real, made, folds), *ones) < 0.8


def test_an_owner_has_one_fold_and_one_owner_is_refused():
    folds = owner_folds(["a", "b", "a", "c"], seed=0)
    assert folds[0] == folds[2]
    assert len(set(folds)) == 3
    assert paired_folds(np.array([2, 0, 2, 1]), ["x", "x", "x", "y"]).tolist() == [2, 2, 2, 1]
    one = np.zeros(4, np.int64)
    with pytest.raises(InputError, match="two patients"):
        c2st_logistic(np.zeros((4, 2)), np.zeros((4, 2)), (one, one))


# copies


def test_a_copy_is_found_flipped_moved_and_brighter_and_a_strange_nodule_is_none():
    training = nodules(7, 30)
    rng = np.random.default_rng(0)
    bumpy = training.hu + rng.normal(0, 100, training.hu.shape).astype(np.int16)  # so that no two discs are alike
    training = replace(training, hu=bumpy)
    hu = np.roll(training.hu[:, ::-1], (2, -3), axis=(1, 2)) + np.int16(25)
    mask = np.roll(training.mask[:, ::-1], (2, -3), axis=(1, 2))
    copied = find_copies(replace(training, hu=hu, mask=mask), training)
    assert (copied.indices == np.arange(30)).all()
    assert copied.distances.max() < 0.01
    strange = find_copies(nodules(8, 30), training)
    assert strange.distances.min() > 0.1
    unflipped = find_copies(replace(training, hu=hu, mask=mask), training, flips=False)
    assert unflipped.distances.min() > 0.1


def test_the_threshold_leaves_one_percent_of_held_out_ones_whatever_their_size():
    held_out, training = nodules(9, 60), nodules(10, 60)
    near = find_copies(held_out, training)
    threshold = copy_threshold(near, held_out)
    assert threshold.copied(near, held_out).sum() == 1
    assert threshold.copied(find_copies(training, training), training).all()
    with pytest.raises(InputError, match="same grid"):
        find_copies(held_out, held_out.take([]))


# CT checks, asked and measured


def test_checks_measure_in_their_unit_and_a_set_is_at_no_distance_of_itself():
    real = nodules(11)
    moved = replace(real, hu=real.hu + np.int16(50))
    checks = measure_checks(real, "nodules"), measure_checks(moved, "nodules")
    ones = np.ones(len(real))
    found = {name: compare_checks(check, checks[1][name]).distance(ones, ones) for name, check in checks[0].items()}
    assert found["mean_hu"] == pytest.approx(50, abs=2)
    assert found["hu_nodule"] == pytest.approx(50, abs=4)
    for name in ("diameter_mm", "roundness", "power_spectrum", "noise_hu"):
        assert found[name] == pytest.approx(0, abs=0.05)
    values = checks[0]["spread_hu"].values.ravel(), measure_checks(nodules(12, noise=60), "nodules")["spread_hu"]
    ours = compare_checks(checks[0]["spread_hu"], values[1]).distance(ones, ones)
    assert ours == pytest.approx(stats.wasserstein_distance(values[0], values[1].values.ravel()), rel=0.05)


def test_outlines_of_discs_are_round_and_an_empty_mask_measures_nothing():
    real = nodules(13)
    measured = nodule_measurements(real)
    assert measured["roundness"].min() > 0.85
    assert measured["elongation"] == pytest.approx(1, abs=0.02)
    assert (measured["pieces"] == 1).all()
    empty = replace(real, mask=np.zeros_like(real.mask))
    assert np.isnan(nodule_measurements(empty)["roundness"]).all()
    ones = np.ones(len(real))
    gone = compare_checks(measure_checks(real, "nodules")["roundness"], measure_checks(empty, "nodules")["roundness"])
    assert np.isnan(gone.distance(ones, ones))


def test_requested_diameters_and_textures():
    samples = nodules(14)
    asked = samples.diameter_mm + np.where(np.arange(24) < 6, 2.0, 1.0)
    figures = diameter_figures(samples, asked, seed=0)
    assert figures["diameter_within"].value == pytest.approx(18 / 24)
    assert figures["diameter_bias_mm"].value == pytest.approx(-1.25)
    right = np.array(samples.categories) != "solid"
    assert agreement(samples.categories, right, np.ones(24)) == pytest.approx(2 / 3)
    found = texture_figures((samples, right), (samples, ~right), seed=0)
    assert found["texture_ratio"].value == pytest.approx(0.5)


# features


def test_features_are_learnt_from_training_patients_alone_and_read_back(cohort, tmp_path):
    path, validation = make_features(cohort, "nodules", tmp_path, epochs=2, seed=0)
    network, sidecar = load_feature_network(path)
    assert validation == {}  # no validation patient
    assert (sidecar["patients"], sidecar["samples"]) == (6, 18)
    assert [source["name"] for source in sidecar["data"]] == ["TOY"]
    owners = set(read_feature_data(cohort, "nodules", "training").owners)
    assert owners & set(read_nodules(cohort, "test").owners) == set()
    vectors, logits, targets = network(torch.zeros(2, 1, 64, 64))
    assert (vectors.shape, logits.shape, targets.shape) == ((2, 64), (2, 3), (2, 11))
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="features"):
        load_feature_network(path)


@pytest.mark.parametrize("kind", ["nodules", "lungs"])
def test_shipped_features_see_their_kind(cohort, kind):
    features = open_features("domain", kind)
    samples = read_nodules(cohort, "test") if kind == "nodules" else read_lungs(cohort, "test")
    found = features(samples.hu[:4])
    assert found.vectors.shape == (4, 64)
    assert found.probabilities.sum(axis=1) == pytest.approx(1)
    assert (ROOT / "lungsynth/similarity/weights" / f"{kind}_features.pt").stat().st_size < 1_500_000


def test_any_torchscript_file_serves_and_others_are_refused(tmp_path):
    torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())).save(tmp_path / "f.ts")
    found = open_features(str(tmp_path / "f.ts"), "nodules")(nodules(1, 3).hu)
    assert found.vectors.shape == (3, 16)
    assert found.probabilities is None
    torch.jit.script(torch.nn.AvgPool2d(16)).save(tmp_path / "maps.ts")
    with pytest.raises(InputError, match="N, F"):
        open_features(str(tmp_path / "maps.ts"), "nodules")(nodules(1, 3).hu)
    with pytest.raises(InputError, match="TorchScript"):
        open_features(str(tmp_path / "absent.ts"), "nodules")
    with pytest.raises(InputError, match="torch-fidelity"):
        open_features("inception", "nodules")


# samples and methods


def test_pasted_nodules_keep_their_inside_and_lie_on_a_level_lung():
    samples = nodules(1, 3)
    shown = on_uniform_lung(samples)
    inside = samples.mask == 1
    assert (shown.hu[inside] == samples.hu[inside]).all()
    assert (shown.hu[samples.mask == 0] == -850).all()


def test_samples_are_read_taken_and_joined(cohort, tmp_path):
    held_out = read_nodules(cohort, "test")
    assert len(held_out) == 18
    both = join([held_out.take([0, 3]), held_out])
    assert both.names[:2] == (held_out.names[0], held_out.names[3])
    with pytest.raises(InputError, match="rated samples"):
        read_nodules(cohort, "validation")
    with pytest.raises(InputError, match="as many"):
        replace(held_out, owners=())


def test_a_nodule_without_a_pixel_is_no_reference(cohort, tmp_path):
    folder = shutil.copytree(cohort, tmp_path / "cohort")
    name = json.loads((folder / "nodules.json").read_text())["test"][0]["nodule"]
    with np.load(folder / name) as file:
        np.savez(folder / name, **{**file, "alpha": np.zeros_like(file["alpha"])})
    assert (len(read_nodules(cohort, "test")), len(read_nodules(folder, "test"))) == (18, 17)


def test_unequal_training_times_are_said_under_the_table(evaluated):
    _, result, _ = evaluated
    assert "Not trained for equal times" not in result.markdown  # 20 minutes each
    one, other = (Method(name=n, title=n, open=dict, identity=n, train_minutes=m) for n, m in (("a", 7), ("b", 45)))
    (text,) = minutes_notes([one, other, replace(one, title="c", train_minutes=None)])
    assert "in minutes: a 7, b 45." in text
    assert not list(minutes_notes([one, replace(one, title="d", train_minutes=8.75)]))


@pytest.mark.parametrize("kind", ["nodules", "lungs"])
def test_the_own_method_at_the_others_budget_is_a_line(kind, cohort, tmp_path):
    bundles, part = ROOT / "bundles", open_subset(cohort)
    assert generator_names(bundles)[-2:] == ["w_capsulegan_equal", "w_capsulegan"]
    own = {"nodules": "model.pt", "lungs": "model_lung.pt"}[kind]
    stored = tmp_path / f"{kind}_w_capsulegan_equal.pt"
    assert store_weights(bundles / "wcapsgan_bundle" / "models" / own, stored) == stored.stat().st_size < 3_000_000
    assert json.loads(stored.with_suffix(".json").read_text())["stored"] == "half precision"
    line, shipped = (
        find_generators(kind, part, bundles, tmp_path, requested=[name])[0][0]
        for name in ("w_capsulegan_equal", "w_capsulegan")
    )
    assert line.title == "W-CapsuleGAN, same budget"
    assert line.parameters == shipped.parameters
    category = {"nodules": "solid", "lungs": "normal"}[kind]
    requests = SampleRequests(seeds=(1,), categories=(category,), diameters_mm=(9.0 if kind == "nodules" else None,))
    one, other = (each.open()(requests).samples.hu[0].astype(float) for each in (line, shipped))
    assert np.abs(one - other).mean() < 2


def test_weights_are_copied_as_they_are_below_three_megabytes(tmp_path):
    write_weights(tmp_path / "model.pt", linear_state(3))
    store_weights(tmp_path / "model.pt", tmp_path / "there" / "gan.pt")
    assert (tmp_path / "there" / "gan.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()
    assert "stored" not in json.loads((tmp_path / "there" / "gan.json").read_text())
    main = runpy.run_path(str(ROOT / "scripts" / "store_weights.py"))["main"]
    assert main([str(tmp_path / "none.pt"), str(tmp_path / "x.pt")]) == 2


def test_methods_are_configs_with_weights(cohort, tmp_path):
    bundles, weights = write_generator_bundle(tmp_path, "named")
    part = open_subset(cohort)
    assert generator_names(bundles) == ["gan", "dcgan", "wgan", "w_capsulegan"]
    found, left_out = find_generators("nodules", part, bundles, weights)
    assert [each.name for each in found] == ["gan", "dcgan", "w_capsulegan"]
    assert set(left_out) == {"wgan", "biggan", "capsulenets", "w_capsulegan_equal"}
    with pytest.raises(InputError, match="unknown"):
        find_generators("nodules", part, bundles, weights, requested=["stylegan"])
    with pytest.raises(InputError, match="wgan"):
        find_generators("nodules", part, bundles, weights, requested=["wgan"])


# by category and by size


def test_rare_categories_have_distances_of_their_own(cohort):
    reference = read_reference(
        open_subset(cohort), "nodules", open_features("domain", "nodules"), seed=0, measurement=QUICK
    )
    assert reference.held_out.categories.count("solid") == 6
    matched = baselines(reference.training, "toy")[0].open()(matched_requests(reference)).samples
    shown, vectors = on_uniform_lung(matched), reference.features(on_uniform_lung(matched).hu)
    tests = run_two_sample_tests(matched, vectors, reference)

    def groups_with(**limits):
        effort = replace(QUICK, **limits)
        return distances_by_category(shown, vectors, tests, replace(reference, measurement=effort))

    assert groups_with() == {}  # six samples are too few
    assert groups_with(min_group_samples=6) == {}  # so are six patients
    groups = groups_with(min_group_samples=6, min_group_patients=6)
    assert set(groups) == set(CATEGORIES)
    solid = groups["solid"]
    assert set(solid) == {"fid", "kid", "c2st", "c2st_features", "c2st_patch"}
    real, made = reference.held_out.of("solid"), matched.of("solid")
    expected = frechet_distance(reference.vectors.vectors[real], vectors.vectors[made])
    assert solid["fid"].value == pytest.approx(expected)
    assert (solid["fid"].n, solid["c2st"].n, solid["fid"].patients) == (6, 12, 6)
    assert solid["fid"].low <= solid["fid"].value <= solid["fid"].high
    right = tests["c2st"]
    assert solid["c2st"].value == pytest.approx((right[0][real].mean() + right[1][made].mean()) / 2)


def test_diameters_are_evaluated_by_the_requested_size():
    samples = nodules(1, 24)
    samples = replace(samples, owners=samples.names)
    asked = np.where(samples.diameter_mm > 10, samples.diameter_mm + 3.0, samples.diameter_mm)
    drawn = GeneratedSamples(samples=samples, requested_mm=asked)
    groups = fidelity_by_size((drawn, drawn), seed=0)
    assert list(groups) == [name for name in SIZES_MM if name in groups]
    assert groups["6-10 mm"]["diameter_within"].value == 1
    assert groups["10-20 mm"]["diameter_within"].value == 0
    assert groups["10-20 mm"]["diameter_bias_mm"].value == pytest.approx(-3)
    assert sum(group["diameter_within"].n for group in groups.values()) == 2 * len(samples)
    assert fidelity_by_size((GeneratedSamples(samples=samples),), seed=0) == {}


# the table


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table_2")
    bundles, weights = write_generator_bundle(folder, "table")
    settings = GenerationConfig(
        kind="nodules",
        cohort=cohort,
        out=folder / "out",
        bundles=bundles,
        weights=weights,
        count=4,
        measurement=QUICK,
    )
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return settings, evaluate_generation(settings, tracking_uri=uri), uri


def test_what_the_memoriser_returns_does_not_depend_on_the_process():
    program = """
import numpy as np
from evaluation.generation.methods import SampleRequests, baselines
from lungsynth.similarity.samples import Samples

names = tuple(str(i) for i in range(30))
categories = tuple(("ground_glass", "part_solid", "solid")[i % 3] for i in range(30))
hu = np.zeros((30, 8, 8), np.int16)
training = Samples(hu=hu, mask=hu.astype(np.float16), categories=categories, owners=names, names=names, spacing_mm=0.7)
requests = SampleRequests(seeds=(1,) * 6, categories=categories[:6], diameters_mm=(None,) * 6)
print(baselines(training, "toy")[0].open()(requests).samples.names)
"""
    handed_out = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(handed_out) == 1


def test_table_2_has_its_keys_and_the_memoriser_is_all_copies(evaluated):
    settings, result, _ = evaluated
    table = json.loads((settings.out / "table_2.json").read_text())
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["memoriser", "average", "dcgan", "w_capsulegan"]
    assert all(set(row) >= KEYS for row in rows.values())
    assert rows["memoriser"]["copies"] == table["n"] == 18
    assert {"fid", "kid", "c2st"} <= set(table["floor"])
    assert table["floor"]["fid"] == rows["memoriser"]["fid"] < rows["average"]["fid"]
    assert rows["w_capsulegan"]["diameter_within"] == 1  # the toy's discs are as asked
    assert rows["w_capsulegan"]["paper"]["inception_score"] == 7.9
    assert rows["w_capsulegan"]["by_size"]["6-10 mm"]["diameter_within"]["value"] == 1
    assert "## By requested diameter" in result.markdown
    assert rows["dcgan"]["fid"] == rows["w_capsulegan"]["fid"]  # the same sampler, the same seeds
    assert "no memory left" in table["left_out"]["gan"]
    assert "7.9" in result.markdown.replace("7.90", "7.9")
    for name in ("montage.png", "mixed.png", "mixed_key.md", "nearest.png", "fid_by_n.png", "distributions.png"):
        assert (settings.out / name).is_file()


def test_a_second_evaluation_goes_on_from_the_first_and_says_the_same(evaluated, caplog):
    config, first, uri = evaluated
    with caplog.at_level(logging.INFO, logger="evaluation"):
        again = evaluate_generation(replace(config, methods=("dcgan", "w_capsulegan")), tracking_uri=uri)
    kept = [record.message.partition(":")[0] for record in caplog.records if "taken from" in record.message]
    names = ("memoriser", "average", "dcgan", "w_capsulegan")
    assert sorted(kept) == sorted([*names, *names]), "samples and figures of each"
    assert again.table["rows"] == first.table["rows"]


def test_lungs_and_refusals(evaluated, cohort, tmp_path, capsys, caplog):
    settings, _, uri = evaluated
    lungs = replace(settings, kind="lungs", out=tmp_path / "lungs", methods=("w_capsulegan",), count=3)
    table = evaluate_generation(lungs, tracking_uri=uri).table
    assert [row["method"] for row in table["rows"]] == ["memoriser", "average", "w_capsulegan"]
    assert (table["n"], table["n_patients"]) == (12, 6)
    with pytest.raises(InputError, match="`require_held_out`"):
        evaluate_generation(replace(lungs, require_held_out=True), tracking_uri=uri)
    with pytest.raises(InputError, match="`count`"):
        replace(lungs, count=0)
    main = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["main"]
    caplog.set_level(logging.ERROR)
    options = ["nodules", "--cohort", str(tmp_path), "--out", str(tmp_path / "out"), "--tracking-uri", uri]
    assert main(options) == 2
    assert "cohort" in capsys.readouterr().err
