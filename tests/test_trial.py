"""Virtual trials: designs, places, any detector and its failures, what outcomes mean, reports that are the same."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from fake_bundles import write_fake_bundles
from placement_toys import add_lung, add_nodule
from scipy import ndimage

import lungsynth as ls
from lungsynth.cli import main
from lungsynth.errors import InputError
from lungsynth.geometry import axial_affine
from lungsynth.hounsfield import LUNG_HU
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.lung_shape import LungShape
from lungsynth.trial.design import TrialDesign, describe_power, parse_levels, read_design
from lungsynth.trial.detections import TrialImage, detection_of, read_detection
from lungsynth.trial.detectors import DetectorSpec, open_runner, parse_detector
from lungsynth.trial.outcomes import Place, Truth, judge, operating_point_at, record_of
from lungsynth.trial.samples import Host, add_noise, place_nodule, with_contrast
from lungsynth.trial.statistics import Trials, compare, holm

DESIGN = {"hosts": 2, "factors": {"diameter_mm": [14, 20], "texture": ["solid", "ground_glass"]}}


# Designs


def test_levels_are_numbers_names_and_ranges():
    assert parse_levels("diameter_mm", "4,6") == (4.0, 6.0)
    assert parse_levels("distance_mm", ["attached", "2:8", "10:", [1, None]]) == (
        "attached",
        (2.0, 8.0),
        (10.0, None),
        (1.0, None),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"factors": {"size": [4]}}, "unknown"),
        ({"factors": {"diameter_mm": [4, 4]}}, "differ"),
        ({"factors": {"diameter_mm": ["big"]}}, "number"),
        ({"factors": {"diameter_mm": [400]}}, "between"),
        ({"factors": {"vessel": ["near"]}}, "free, contact"),
        ({"factors": {"distance_mm": ["8:2"]}}, "LOW < HIGH"),
        ({"hosts": 0}, "at least 1"),
        ({"hosts": "many"}, "int"),
        ({"seed": 1}, "keys"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        TrialDesign.from_json(values)


def test_a_design_is_yaml_or_json(tmp_path):
    yaml, text = tmp_path / "d.yaml", tmp_path / "d.json"
    yaml.write_text("hosts: 3\nfactors:\n  distance_mm: [attached, '10:']\n", encoding="utf-8")
    text.write_text('{"hosts": 3, "factors": {"distance_mm": ["attached", [10, null]]}}', encoding="utf-8")
    assert read_design(yaml) == read_design(text)
    yaml.write_text("hosts: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"d\.yaml"):
        read_design(yaml)


def test_fractions_together_hold_all_cells_and_each_level_about_equally_often():
    design = TrialDesign.from_json(
        {"fraction": 3, "hosts": 3, "factors": {"diameter_mm": [4, 6, 8], "third": ["anterior", "posterior"]}}
    )
    parts = [design.cells_of(host) for host in range(3)]
    assert sorted(map(str, design.cells)) == sorted(str(cell) for part in parts for cell in part)
    assert all(len({cell["third"] for cell in part}) == 2 for part in parts)
    assert design.count == 6


def test_power_is_that_of_simulated_trials():
    """At the difference that is said to be seen, a paired test sees it in about 80 % of trials."""
    design = TrialDesign.from_json({"hosts": 100, "factors": {"vessel": ["free", "contact"]}})
    (line,) = describe_power(design)
    difference = float(line.split("difference of ")[1].split(" ")[0]) / 100
    rng = np.random.default_rng(0)
    # Answers on a host that correlate by 0.1: one in ten pairs of them shares a draw.
    seen = 0
    for _ in range(400):
        shared, own = rng.random((100, 1)), rng.random((100, 2))
        draws = np.where(rng.random((100, 2)) < 0.1**0.5, shared, own)
        found = draws < [0.7 + difference / 2, 0.7 - difference / 2]
        apart = found[:, 0].astype(float) - found[:, 1]
        seen += abs(apart.mean()) > 1.96 * apart.std() / 10
    assert 0.72 < seen / 400 < 0.9


# Places


@pytest.fixture
def host(tmp_path):
    library = AssetLibrary(tmp_path)
    lung = add_lung(library)
    hu, mask = library.load(lung.hash)
    shape = LungShape.from_mask(mask > 0, spacing_mm=lung.spacing_mm, hu=hu)
    return library, Host(name="h", patient="p", asset=lung, shape=shape)


@pytest.mark.parametrize(
    ("level", "low", "high"), [("attached", 0.0, 1.01), ((2.0, 6.0), 2.0, 6.01), ((10.0, None), 10.0, 99.0)]
)
def test_nodules_lie_as_far_from_the_pleura_as_their_level_says(host, level, low, high):
    library, slice_ = host
    nodule = add_nodule(library, 10.0)
    for seed in range(5):
        cell = {"diameter_mm": 10.0, "distance_mm": level}
        _, (placed,) = place_nodule(slice_, nodule, cell, seed=(seed,))
        assert placed.distance_mm - 5.0 <= high
        assert placed.distance_mm - 5.0 >= (low if level != "attached" else -2.0)


def test_nodules_lie_where_they_are_sent_and_nowhere_near_what_is_avoided(host):
    library, slice_ = host
    nodule = add_nodule(library, 8.0)
    cell = {"diameter_mm": 8.0, "side": "right", "third": "anterior"}
    avoid = np.zeros((200, 240), dtype=bool)
    avoid[:, :60] = True
    aside = Host(name="h", patient="p", asset=slice_.asset, shape=slice_.shape, avoid=avoid)
    for seed in range(5):
        _, (placed,) = place_nodule(slice_, nodule, cell, seed=(seed,))
        assert placed.col_px < 120
        assert placed.row_px < 84
        _, (placed,) = place_nodule(aside, nodule, {"diameter_mm": 8.0, "side": "right"}, seed=(seed,))
        assert placed.col_px * 0.7 >= 59 * 0.7 + 7


def test_what_has_no_place_has_none(host):
    library, slice_ = host
    nodule = add_nodule(library, 8.0)
    assert place_nodule(slice_, nodule, {"diameter_mm": 8.0, "distance_mm": (60.0, None)}, seed=(0,)) is None
    assert place_nodule(slice_, nodule, {"diameter_mm": 30.0}, seed=(0,)) is None, "no nodule is scaled so far"


def test_contrast_is_what_was_asked_for_and_leaves_the_outline_alone(host):
    library, _ = host
    nodule = add_nodule(library, 8.0)
    faint = with_contrast(library, nodule, 200.0)
    hu, alpha = library.load(faint.hash)
    assert hu[alpha >= alpha.max() // 2].mean() - LUNG_HU == pytest.approx(200, abs=2)
    assert np.array_equal(alpha, library.load(nodule.hash)[1])
    assert faint.diameter_mm == nodule.diameter_mm


def test_noise_grows_as_asked_and_keeps_its_covariance(host):
    library, slice_ = host
    noisy = add_noise(library, slice_.asset, 2.0, seed=0)
    hu, mask = library.load(slice_.asset.hash)
    more = library.load(noisy.hash)[0]
    inside = ndimage.binary_erosion(mask > 0, iterations=3)
    assert more[inside].std() / hu[inside].std() == pytest.approx(2.0, rel=0.1)
    added = (more - hu).astype(float)
    assert abs(np.corrcoef(added[:, 1:].ravel(), added[:, :-1].ravel())[0, 1]) < 0.1, "white as the toy's noise"


# What detectors give


@pytest.fixture
def image():
    affine = axial_affine(spacing_mm=(2.5, 0.7, 0.8), origin_lps_mm=(-90.0, -70.0, 12.5))
    return TrialImage(name="slice", hu=np.full((1, 50, 60), -850, np.int16), affine=affine)


def test_files_of_all_kinds_mean_the_same_candidate(image, tmp_path):
    x, y = -90 + 20 * 0.8, -70 + 10 * 0.7
    table = tmp_path / "a.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ,probability\nslice,{x},{y},12.5,0.75\n", encoding="utf-8")
    boxes = tmp_path / "a.json"
    content = {"validation": [{"image": "x/slice.nii.gz", "box": [[x, y, 12.5, 6, 6, 6]], "label_scores": [0.75]}]}
    boxes.write_text(json.dumps(content), encoding="utf-8")
    mask = np.zeros((60, 50, 1), np.float32)
    mask[19:22, 9:12] = 0.75
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "a.nii.gz")
    for file in (table, boxes, tmp_path / "a.nii.gz"):
        (candidate,) = read_detection(file, image).candidates
        assert candidate[[0, 1, 2, 4]] == pytest.approx([0, 10, 20, 0.75]), file


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "coordX,coordY\n1,2\n", "lacks the columns"),
        ("a.csv", "seriesuid,coordX,coordY,coordZ,probability\nother,1,2,3,0.5\n", "'other'"),
        ("a.csv", "seriesuid,coordX,coordY,coordZ,probability\nslice,-80,-60,12.5,7\n", "within 0..1"),
        ("a.csv", "seriesuid,coordX,coordY,coordZ,probability\nslice,10,20,12.5,0.5\n", "outside the image"),
        ("a.csv", "seriesuid,coordX,coordY,coordZ,probability\nslice,-80,-60,far,0.5\n", "finite"),
        ("a.json", '{"image": "slice"}', "no `box`"),
        ("a.json", '{"box": [[1, 2, 3]], "label_scores": [1]}', "shape"),
        ("a.json", "{", "cannot be read"),
        ("a.nii", "no image", "cannot be read"),
    ],
)
def test_nonsense_is_a_sentence_without_a_path(image, tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_detection(tmp_path / name, image)
    assert str(tmp_path) not in str(caught.value)


def test_what_a_callable_may_return(image):
    assert len(detection_of([], image).candidates) == 0
    assert len(detection_of({"candidates": np.zeros((0, 5))}, image).candidates) == 0
    mask = np.zeros(image.hu.shape)
    mask[0, 3:6, 3:6] = 1
    assert detection_of({"nodule": mask}, image).candidates[0, [1, 2]] == pytest.approx([4, 4])
    for nonsense in (None, "found", [1, 2], [[0, 1, 2, 3, np.nan]], {"nodule": mask[0]}):
        with pytest.raises(InputError):
            detection_of(nonsense, image)


TOY = """
import os, sys, time
mode, image, output = sys.argv[1:4]
if mode == "crash": sys.exit("no such layer")
if mode == "killed": os.kill(os.getpid(), 9)
if mode == "hang": time.sleep(60)
if mode == "nonsense": open(output + ".csv", "w").write("hello")
"""


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crash", "with status 1: no such layer"),
        ("killed", "by signal 9"),
        ("hang", "longer than"),
        ("nothing", "wrote nothing"),
        ("nonsense", "lacks the columns"),
    ],
)
def test_a_command_that_fails_is_a_sentence(image, tmp_path, mode, words):
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    spec = DetectorSpec(
        name="toy",
        kind="command",
        target=f"{sys.executable} {tmp_path / 'toy.py'} {mode} {{image}} {{output}}",
        time_limit_s=1.0 if mode == "hang" else 60,
    )
    (answer,) = open_runner(spec, tmp_path / "work")([image])
    assert words in answer
    assert str(tmp_path) not in answer
    assert not list((tmp_path / "work").iterdir())


def test_a_command_answers_in_batches_and_one_bad_image_costs_itself_alone(image, tmp_path):
    script = """
import csv, pathlib, sys
folder, out = map(pathlib.Path, sys.argv[1:])
names = sorted(path.name.removesuffix(".nii.gz") for path in folder.iterdir())
(out / "log").write_text(str(len(names)))
if "bad" in names: sys.exit("bad image")
rows = [f"{name},-80,-60,12.5,0.5" for name in names]
(out / "all.csv").write_text("\\n".join(["seriesuid,coordX,coordY,coordZ,probability", *rows]))
"""
    (tmp_path / "toy.py").write_text(script, encoding="utf-8")
    spec = parse_detector(f"{sys.executable} {tmp_path / 'toy.py'} {{images}} {{output}}", bundles=tmp_path)
    names = ("one", "bad", "two")
    images = [TrialImage(name=name, hu=image.hu, affine=image.affine) for name in names]
    first, second, third = open_runner(spec, tmp_path / "work")(images)
    assert len(first.candidates) == len(third.candidates) == 1
    assert "bad image" in second


def test_a_callable_of_another_process_may_crash_hang_and_raise(image, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "def ask(hu, spacing_mm):\n"
        "    what = int(hu[0, 0, 0])\n"
        "    if what == 1: os._exit(3)\n"
        "    if what == 2: time.sleep(60)\n"
        "    if what == 3: raise ValueError('no lung')\n"
        "    return [[0, 1, 2, 5, 0.5]]\n"
        "ask.operating_point = 0.25\n",
        encoding="utf-8",
    )
    spec = parse_detector(f"mine=python:{tmp_path / 'mine.py'}:ask", bundles=tmp_path, time_limit_s=1.5)
    images = [TrialImage(name=str(k), hu=np.full((1, 9, 9), k, np.int16), affine=image.affine) for k in (4, 3, 1, 2)]
    runner = open_runner(spec, tmp_path)
    fine, raised, crashed, hung = runner(images)
    runner.close()
    assert runner.operating_point == 0.25
    assert (crashed, raised) == ("its process ended", "it raised ValueError: no lung")
    assert "longer than" in hung
    assert len(fine.candidates) == 1


def test_detectors_that_do_not_exist_are_refused(tmp_path):
    for text in ("nobody", "bundle:nowhere", "unet"):
        with pytest.raises(InputError):
            parse_detector(text, bundles=tmp_path)
    with pytest.raises(InputError, match="no program"):
        open_runner(parse_detector("no-such-program {image} {output}", bundles=tmp_path), tmp_path)
    with pytest.raises(InputError, match="could not be opened"):
        open_runner(parse_detector("python:no_such_module:f", bundles=tmp_path), tmp_path)


# What outcomes mean


def test_a_pair_tells_what_was_found_and_what_was_caused(image):
    mask = np.zeros(image.hu.shape, dtype=bool)
    mask[0, 8:13, 18:23] = True
    truth = Truth(Place(centre=(0.0, 10.0, 20.0), diameter_mm=4.0), mask)
    both = detection_of([[0, 10, 21, 4, 0.9], [0, 40, 40, 4, 0.8], [0, 40, 10, 4, 0.7], [0, 30, 30, 4, 0.2]], image)
    before = detection_of([[0, 41, 40, 4, 0.6], [0, 5, 50, 4, 0.6]], image)
    records = record_of(image, both, truth), record_of(image, before, None)
    outcome = judge(*records, truth.place, image.spacing_mm, point=0.5)
    assert (outcome.score, outcome.found, outcome.marked_without) == (0.9, True, False)
    assert (outcome.caused, outcome.lost) == (1, 1)
    assert judge({"error": "it hung"}, None, truth.place, image.spacing_mm, point=0.5).error == "it hung"
    assert judge(records[0], None, truth.place, image.spacing_mm, point=0.5).caused is None


def test_a_piece_of_a_mask_hits_where_it_touches_the_nodule(image):
    mask = np.zeros(image.hu.shape, dtype=bool)
    mask[0, 10, 20] = True
    piece = np.zeros(image.hu.shape)
    piece[0, 10, 20:50] = 1  # a vessel with the nodule at its end
    truth = Truth(Place(centre=(0.0, 10.0, 20.0), diameter_mm=1.0), mask)
    assert record_of(image, detection_of({"nodule": piece}, image), truth)["candidates"][0][5] == 1


def test_an_operating_point_leaves_so_many_candidates_a_slice():
    records = [{"candidates": [[0, 0, 0, 0, p, 0] for p in own]} for own in ((0.9, 0.5), (0.7,), (), (0.6,))]
    point = operating_point_at(records, 0.5)
    assert sum(row[4] >= point for record in records for row in record["candidates"]) == 2


def _trials(found, levels, patients=None, **settings):
    patients = patients or [str(k % 40) for k in range(len(found))]
    order = {name: sorted(set(own), key=float) for name, own in levels.items()}
    return Trials([float(value) for value in found], patients, levels, order, seed=0, **settings)


def test_a_curve_finds_the_point_that_answers_were_drawn_from():
    rng = np.random.default_rng(0)
    diameters = np.repeat([4.0, 6, 8, 12, 18], 400)
    p = 1 / (1 + np.exp(-(np.log(diameters) - np.log(7.0)) * 4))
    trials = _trials(rng.random(len(p)) < p, {"diameter_mm": [f"{d:g}" for d in diameters]})
    curve = trials.curve("diameter_mm", [4, 6, 8, 12, 18], log=True)
    at = curve.points[0.5]
    assert at.low < 7.0 < at.high
    assert at.high - at.low < 1.0
    assert curve.points[0.8].value == pytest.approx(7 * 4 ** (1 / 4), rel=0.08)


def test_intervals_widen_where_patients_differ():
    """Two hundred answers of twenty patients who always agree with themselves are worth twenty."""
    rng = np.random.default_rng(1)
    patients = [str(k // 10) for k in range(200)]
    alike = np.repeat(rng.random(20) < 0.5, 10).astype(float)
    apart = (rng.random(200) < 0.5).astype(float)
    widths = [own.high - own.low for own in (_trials(values, {}, patients).sensitivity() for values in (alike, apart))]
    assert widths[0] > 2 * widths[1]


def test_none_found_is_not_known_to_be_none():
    patients = [str(k % 10) for k in range(100)]
    none, one = (_trials([float(k < n) for k in range(100)], {}, patients).sensitivity() for n in (0, 1))
    assert none.low == 0.0 < none.high < 0.1
    assert one.low == 0.0


def test_interactions_are_told_from_effects_that_add_up():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=2000), rng.integers(2, size=2000)
    levels = {"a": [str(k) for k in a], "b": [str(k) for k in b]}
    adding = _trials(rng.random(2000) < 0.3 + 0.2 * a + 0.2 * b, levels).interaction("a", "b")
    apart = _trials(rng.random(2000) < 0.3 + 0.5 * a * b, levels).interaction("a", "b")
    assert adding.p > 0.05 > 0.01 > apart.p


def test_two_detectors_are_compared_on_what_both_answered():
    first = [1.0] * 30 + [0.0] * 10 + [np.nan]
    second = [0.0] * 12 + [1.0] * 18 + [0.0] * 10 + [1.0]
    patients = [str(k) for k in range(41)]
    compared = compare(first, second, patients, seed=0)
    assert (compared.only_first, compared.only_second) == (12, 0)
    assert compared.p_mcnemar == pytest.approx(2 * 0.5**12)
    assert compared.p_patients < 0.01
    same = compare(first, first, patients, seed=0)
    assert same.p_patients == same.p_mcnemar == 1.0
    assert compare([np.nan], [1.0], ["a"], seed=0) is None


def test_several_p_are_adjusted_in_their_order():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


# Whole trials


def bright(hu, spacing_mm):
    """Marks what is dense and round, and fails on one slice in five."""
    if int(hu.astype(int).sum()) % 5 == 0:
        raise RuntimeError("one in five")
    pieces, count = ndimage.label(hu > -650, np.ones((3, 3, 3)))
    centres = ndimage.center_of_mass(pieces > 0, pieces, range(1, count + 1))
    return [[*centre, 5.0, 0.9] for centre in centres]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "trial")


def run(cohort, out, bundles, **settings):
    detectors = settings.pop("detectors", {"bright": bright, "nothing": lambda hu, mm: []})
    return ls.trial(cohort, out, detectors=detectors, design=DESIGN, bundles=bundles, split="all", **settings)


@pytest.fixture(scope="module")
def trial(phantom_cohort, tmp_path_factory, bundles):
    out = tmp_path_factory.mktemp("trial") / "out"
    return out, run(phantom_cohort, out, bundles)


def test_a_trial_reports_each_detector_and_their_difference(trial):
    out, result = trial
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["pairs"] == 8
    assert report["detectors"]["nothing"]["sensitivity"]["value"] == 0.0
    assert set(report["detectors"]["bright"]["factors"]) == {"diameter_mm", "texture"}
    assert report["comparison"]["first"] == "bright"
    assert any(line.startswith("bright: finds") for line in result.lines)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no clinical evidence" in page
    assert "data:image/png" in page
    assert str(out) not in page


def test_failures_are_counted_and_stand_in_the_report(trial):
    out, result = trial
    own = result.report["detectors"]["bright"]
    errors = sum(
        "error" in record
        for file in (out / "detections/bright").glob("0*.json")
        for record in json.loads(file.read_text(encoding="utf-8"))
    )
    assert own["failed"] + own["failed_without"] == errors
    if own["failed"]:
        assert own["errors"] == {"it raised RuntimeError: one in five": own["failed"]}


def test_a_trial_that_was_stopped_gives_the_same_bytes(trial, phantom_cohort, tmp_path, bundles):
    out, _ = trial
    asked = 0

    def stops(hu, spacing_mm):
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt
        return bright(hu, spacing_mm)

    again = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(phantom_cohort, again, bundles, detectors={"bright": stops}, batch_size=2)
    kept = sorted((again / "detections/bright").glob("0*.json"))
    assert kept
    run(phantom_cohort, again, bundles, batch_size=3)
    for name in ("report.json", "report.html", "pairs.csv", "catalogue.parquet"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_another_design_is_refused_in_the_folder(trial, phantom_cohort, bundles):
    out, _ = trial
    with pytest.raises(InputError, match="another run"):
        ls.trial(phantom_cohort, out, detectors={"n": bright}, design={"hosts": 3}, bundles=bundles, split="all")


def test_pairs_are_equal_away_from_the_nodule(trial, phantom_cohort, bundles):
    from lungsynth.compositing.render import Renderer
    from lungsynth.placement.catalogue import read_catalogue

    out, _ = trial
    renderer = Renderer(AssetLibrary(out))
    for recipe in read_catalogue(out / "catalogue.parquet"):
        made, lung = renderer.render(recipe), renderer.lung(recipe)
        changed = made.image != lung.image
        changed[made.windows[0].pixels] = False
        assert not changed.any()


def test_the_command_plans_without_asking_and_takes_a_design(phantom_cohort, tmp_path, bundles, capsys):
    design = tmp_path / "design.json"
    design.write_text(json.dumps(DESIGN), encoding="utf-8")
    arguments = [
        "trial", str(phantom_cohort), "--design", str(design), "--factor", "texture=solid", "--hosts", "1",
        "--bundles", str(bundles), "--split", "all", "--out", str(tmp_path / "out"), "--tracking-uri", "none",
        "--detector", "toy=true {image} {output}",
    ]  # fmt: skip
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 pairs" in capsys.readouterr().out
    assert not (tmp_path / "out/detections").exists()
    assert main(arguments) == 0
    assert "0 without" not in capsys.readouterr().out, "true writes nothing"


def test_hosts_that_cannot_carry_the_design_name_the_cell(phantom_cohort, tmp_path, bundles):
    with pytest.raises(InputError, match=r"no place for 14 mm, 90\+ mm from the pleura"):
        ls.trial(
            phantom_cohort,
            tmp_path / "out",
            detectors={"n": bright},
            design={"hosts": 1, "factors": {"diameter_mm": [14], "distance_mm": ["90:"]}},
            bundles=bundles,
            split="all",
        )
