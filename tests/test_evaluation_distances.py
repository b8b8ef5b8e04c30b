"""Laws of distances between sets: metrics, two-sample tests, copies, CT checks, features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_sets import ROOT, make_cohort, make_vectors, nodules
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from evaluation.features import make_features, read_feature_data
from evaluation.generation.condition_fidelity import agreement, diameter_figures, texture_figures
from evaluation.generation.ct_checks import compare_checks, measure_checks, nodule_measurements
from evaluation.metrics.bootstrap import estimate
from evaluation.metrics.c2st import balanced_accuracy, c2st_cnn, c2st_logistic
from evaluation.metrics.fid_kid import frechet_distance, inception_score, kernel_distance, kernel_matrices
from evaluation.metrics.manifold import compare_manifolds
from evaluation.metrics.ms_ssim import ms_ssim, pair_similarity
from lungsynth.errors import InputError
from lungsynth.similarity.copies import copy_threshold, find_copies
from lungsynth.similarity.features import load_feature_network, open_features
from lungsynth.similarity.samples import owner_folds, paired_folds, read_lungs, read_nodules


@pytest.fixture(scope="module")
def vectors():
    return make_vectors()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_cohort(tmp_path_factory)


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
