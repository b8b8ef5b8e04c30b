"""Laws of Table II: samples and methods, categories and sizes, the table itself."""

import json
import logging
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import linear_state, write_weights
from generated_sets import KEYS, QUICK, ROOT, make_cohort, make_vectors, nodules
from generation_toys import CATEGORIES, write_generator_bundle
from stores import new_store

from evaluation.cohort_subsets import open_subset
from evaluation.generation.condition_fidelity import fidelity_by_size
from evaluation.generation.methods import (
    GeneratedSamples,
    SampleRequests,
    baselines,
    find_generators,
    generator_names,
)
from evaluation.generation.reference import matched_requests, read_reference
from evaluation.generation.reference_distances import distances_by_category, run_two_sample_tests
from evaluation.generation.run import GenerationConfig, evaluate_generation
from evaluation.generation.table import minutes_notes
from evaluation.methods import Method, store_weights
from evaluation.metrics.fid_kid import frechet_distance
from evaluation.segmentation.figures import SIZES_MM
from lungsynth.errors import InputError
from lungsynth.similarity.features import open_features
from lungsynth.similarity.samples import Samples, join, on_uniform_lung, read_nodules

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def vectors():
    return make_vectors()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_cohort(tmp_path_factory)


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
    name = json.loads((folder / "nodules.json").read_text(encoding="utf-8"))["test"][0]["nodule"]
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
    assert json.loads(stored.with_suffix(".json").read_text(encoding="utf-8"))["stored"] == "half precision"
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
    assert "stored" not in json.loads((tmp_path / "there" / "gan.json").read_text(encoding="utf-8"))
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
    uri = new_store(folder)
    return settings, evaluate_generation(settings, tracking_uri=uri), uri


MEMORISED = ("12", "4", "5", "24", "1", "11")


def test_what_the_memoriser_returns_does_not_depend_on_the_process():
    """Each process of Python hashes texts in its own way: what depended on that would give other names today."""
    names = tuple(str(i) for i in range(30))
    categories = tuple(CATEGORIES[i % 3] for i in range(30))
    hu = np.zeros((30, 8, 8), np.int16)
    whose = {"categories": categories, "owners": names, "names": names}
    training = Samples(hu=hu, mask=hu.astype(np.float16), spacing_mm=0.7, **whose)
    requests = SampleRequests(seeds=(1,) * 6, categories=categories[:6], diameters_mm=(None,) * 6)
    assert baselines(training, "toy")[0].open()(requests).samples.names == MEMORISED


def test_table_2_has_its_keys_and_the_memoriser_is_all_copies(evaluated):
    settings, result, _ = evaluated
    table = json.loads((settings.out / "table_2.json").read_text(encoding="utf-8"))
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
    assert table["anatomy"]["missing"]  # toys have no scans at full resolution
    assert all(row["anatomy"] is None for row in table["rows"])
    with pytest.raises(InputError, match="`require_held_out`"):
        evaluate_generation(replace(lungs, require_held_out=True), tracking_uri=uri)
    with pytest.raises(InputError, match="`count`"):
        replace(lungs, count=0)
    main = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["main"]
    caplog.set_level(logging.ERROR)
    options = ["nodules", "--cohort", str(tmp_path), "--out", str(tmp_path / "out"), "--tracking-uri", uri]
    assert main(options) == 2
    assert "cohort" in capsys.readouterr().err
