"""What leaves a cohort names nobody, and the privacy card of a generator tells one that remembers from one that not."""

import json
import re
import shutil

import numpy as np
import pytest
from fake_bundles import write_fake_bundles
from fake_cohort import write_fake_cohort
from stores import new_store

from evaluation.privacy import card_text, measure_privacy, true_positives
from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.report import _without_folders
from lungsynth.config import GenerateConfig, PlacementConfig
from lungsynth.ct.series import Problem
from lungsynth.errors import InputError
from lungsynth.export.labels import NO_PATIENT
from lungsynth.export.split import PARTS
from lungsynth.generate import generate
from lungsynth.placement.assets import AssetLibrary
from lungsynth.similarity.samples import Samples
from lungsynth.tracking import open_tracker

CANARY = "Canary"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort whose ids and file names are canaries."""
    folder = tmp_path_factory.mktemp("canaries")
    bundles = write_fake_bundles(folder / "bundles", "private")
    cohort = folder / "cohort"
    cohort.mkdir()
    write_fake_cohort(cohort, open_bundle(bundles, "wcapsgan"))
    for path in [*cohort.glob("*/t*"), *cohort.glob("*/x*")]:
        path.rename(path.with_name(f"{CANARY}_{path.name}"))
    for name in ("nodules", "lungs", "enhancement"):
        lists = json.loads((cohort / f"{name}.json").read_text(encoding="utf-8"))
        for entry in (entry for entries in lists.values() for entry in entries):
            for key, value in entry.items():
                if key in ("nodule_id", "patient_id"):
                    entry[key] = f"{CANARY}_{value}"
                elif key in ("nodule", "lung", "image", "label"):
                    parent, _, file = value.rpartition("/")
                    entry[key] = f"{parent}/{CANARY}_{file}"
        (cohort / f"{name}.json").write_text(json.dumps(lists), encoding="utf-8")
    return bundles, cohort


def test_no_id_or_name_leaves_the_cohort(cohort, tmp_path, caplog):
    bundles, folder = cohort
    store = new_store(tmp_path / "store")
    placement = PlacementConfig(real_share=0.5)
    out = tmp_path / "out"
    generate(GenerateConfig(out=out, count=12, bundles=bundles, cohort=folder, placement=placement), tracking_uri=store)
    lists = json.loads((out / "datalist.json").read_text(encoding="utf-8"))
    entries = [entry for part in PARTS for entry in lists[part]]
    origins = {asset.origin for asset in AssetLibrary(out) if asset.source == "real"}
    assert origins
    assert all(origin.startswith(("nodule-", "slice-")) for origin in origins)
    named = {name for entry in entries for name in entry["patient_id"].split(";")} - {NO_PATIENT}
    assert named
    assert named <= {asset.patient for asset in AssetLibrary(out)}
    assert all(name.startswith("patient-") for name in named)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert CANARY not in str(path)
        assert CANARY.encode() not in path.read_bytes(), path
    tracker = open_tracker(store)
    logged = tracker.client.search_runs([tracker.experiment_id])
    assert logged
    assert CANARY not in str([run.to_dictionary() for run in logged])
    assert CANARY not in caplog.text


def test_pseudonyms_are_numbered_and_map_back(cohort):
    names = Cohort.open(cohort[1]).pseudonyms
    name = names.patients[f"{CANARY}_p0"]
    assert re.fullmatch(r"patient-[0-9a-f]{12}", name)
    assert (len(names.nodules), len(names.slices)) == (24, 3)
    assert len({*names.nodules.values(), *names.slices.values()}) == 24 + 3
    assert f"patient,{name},{CANARY}_p0\n" in (cohort[1] / "pseudonyms.csv").read_text(encoding="utf-8")


def test_names_of_the_users_own_are_taken_and_bad_ones_refused(cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort[1], folder)
    path = folder / "pseudonyms.csv"
    text = Cohort.open(folder).pseudonyms.csv()
    name = Cohort.open(folder).pseudonyms.patients[f"{CANARY}_p0"]
    path.write_text(text.replace(name, "subject-7"), encoding="utf-8")
    assert Cohort.open(folder).pseudonyms.patients[f"{CANARY}_p0"] == "subject-7"
    for bad, told in (("../x", "names '../x'"), ("kind,id\n", "cannot be read")):
        path.write_text(text.replace(name, bad) if "/" in bad else bad, encoding="utf-8")
        with pytest.raises(InputError, match=rf"pseudonyms\.csv: {told}"):
            _ = Cohort.open(folder).pseudonyms


def test_messages_of_a_report_have_no_folders(tmp_path):
    path = tmp_path / "Mueller Hans" / "scan.nii"
    told = _without_folders(Problem(path, f"{path}: differs from {tmp_path}/other/mask.nii and /home/someone/x.dcm."))
    assert told == "scan.nii: differs from other/mask.nii and x.dcm."


def patches(seed: int, owners: list[str]) -> Samples:
    """Patches of a smooth random texture, one an owner."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 200, (len(owners), 16, 16))
    hu = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).astype(np.int16)
    mask = np.zeros((len(owners), 64, 64), np.float16)
    mask[:, 16:48, 16:48] = 1
    names = tuple(owners)
    return Samples(hu=hu, mask=mask, categories=("solid",) * len(names), owners=names, names=names, spacing_mm=0.7)


def test_a_generator_that_copies_is_told_from_one_that_does_not():
    training, held_out = (patches(seed, [f"{name}{i}" for i in range(40)]) for seed, name in ((1, "t"), (2, "h")))
    strangers = patches(3, [f"g{i}" for i in range(40)])
    noise = np.random.default_rng(4).integers(-9, 9, training.hu.shape).astype(np.int16)
    copies = Samples(**{**vars(strangers), "hu": training.hu + noise})
    honest, leaking = (measure_privacy(made, training, held_out, flips=False, seed=0) for made in (strangers, copies))
    assert leaking.copies["events"] == 40
    assert honest.copies["events"] <= 4
    assert leaking.nearer_to_training.value > 0.95
    assert 0.2 < honest.nearer_to_training.value < 0.8
    assert leaking.members_found.value > 0.95
    assert leaking.members_auc.value > 0.95
    assert 0.2 < honest.members_auc.value < 0.8
    page = card_text("nodules", leaking, "held_out", "ab" * 32)
    assert "40 of 40: 100.0 %" in page.replace("%", " %") or "40 of 40" in page
    assert "It needs 100 held-out patients or more" in page


def test_true_positives_allow_whole_strangers_only():
    members, strangers = np.array([0.1, 0.2, 0.6]), np.arange(1, 201) / 400
    assert true_positives(members, strangers, false_positives=0.01) == 0
    assert true_positives(members, strangers + 0.15, false_positives=0.01) == pytest.approx(1 / 3)
    assert true_positives(np.array([0.3]), np.array([0.5, 0.9]), false_positives=0.01) == 1
