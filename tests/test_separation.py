import csv
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from separation_toys import GRID, MIN_DIAMETER_MM, boxes, unread_patients, write_rigged_bundles
from stores import new_store

from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.io import atomic
from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort

ROOT = Path(__file__).resolve().parent.parent
GAP_MM = 10.0
LISTS = ("segmentation", "nodules", "cubes", "lungs", "enhancement")


@pytest.fixture(scope="module")
def made(half_read_cohort, tmp_path_factory):
    """Folder of a cohort and of rigged bundles, and the patients that nobody has looked at."""
    folder = tmp_path_factory.mktemp("separation")
    shutil.copytree(half_read_cohort, folder / "cohort")
    write_rigged_bundles(folder / "bundles", "separation")
    return folder, unread_patients()


def separate(folder, out, *, cohort=None, threshold=0.5, bundles=None):
    settings = PseudoLabelConfig(
        cohort=cohort or folder / "cohort",
        out=out,
        bundles=bundles or folder / "bundles",
        threshold=threshold,
        min_diameter_mm=MIN_DIAMETER_MM,
    )
    return pseudo_label_cohort(settings, tracking_uri=new_store(folder))


@pytest.fixture(scope="module")
def separated(made):
    folder, _ = made
    out = folder / "separated"
    return out, separate(folder, out)


def entries(cohort, name):
    return [
        entry for part in json.loads((cohort / f"{name}.json").read_text(encoding="utf-8")).values() for entry in part
    ]


def normal_of(cohort, series_id):
    return {int(Path(e["image"]).name[-11:-7]) for e in entries(cohort, "lungs") if e["series_id"] == series_id}


def contents(folder):
    """All files but the note of the MLflow run, whose id is drawn."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "mlflow_run")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_slices_near_a_candidate_are_normal_no_longer(made, separated):
    folder, patients = made
    out, _ = separated
    first, last = boxes(patients[0].nodules[0].mask)
    before, after = (normal_of(cohort, "PHANTOM-0001") for cohort in (folder / "cohort", out))
    reach = GAP_MM / GRID["slice_spacing_mm"]
    assert after == {k for k in before if k < first - reach or k > last + reach}
    assert before - after, "something was taken out"
    assert normal_of(out, "PHANTOM-0002") == normal_of(folder / "cohort", "PHANTOM-0002"), "nothing was found"
    assert normal_of(out, "PHANTOM-0004") == normal_of(folder / "cohort", "PHANTOM-0004"), "a speck is too small"


def test_nodules_found_have_patches_and_rows_but_no_expert(made, separated):
    _, patients = made
    out, _ = separated
    nodules = pd.read_csv(out / "nodules.csv").set_index("nodule_id")
    found = nodules.loc["PHANTOM-0001_c000"]
    assert (found["votes"], found["texture_class"]) == (0, "unknown")
    truth = patients[0].nodules[0]
    assert found[["x_mm", "y_mm", "z_mm"]].to_numpy(float) == pytest.approx(truth.centre_lps_mm, abs=0.01)
    assert found["diameter_mm"] == pytest.approx(truth.diameter_mm, abs=0.01)
    assert (found["mean_hu"], found["solid_fraction"]) == (2090, 1)
    with np.load(out / "nodules" / "PHANTOM-0001_c000.npz") as patch:
        assert patch["hu"].shape[1:] == (64, 64)
        assert patch["alpha"].max() > 0.9
        assert set(np.unique(patch["votes"])) == {0, 1}
    listed = {entry["nodule_id"] for entry in entries(out, "nodules")}
    assert "PHANTOM-0001_c000" in listed
    assert not [e for e in entries(out, "segmentation") if "_c0" in e["image"]], "no expert drew it"
    assert nodules.loc["PHANTOM-0003_c000", "diameter_mm"] > 60
    assert "PHANTOM-0003_c000" not in listed, "it does not fit into a patch"


def test_every_candidate_has_a_row_that_says_what_became_of_it(separated):
    out, result = separated
    with (out / "candidates.csv").open() as file:
        rows = {row["candidate_id"]: row for row in csv.DictReader(file)}
    outcomes = {name: row["outcome"] for name, row in rows.items() if name.startswith("PHANTOM")}
    assert outcomes == {
        "PHANTOM-0001_c000": "nodule",
        "PHANTOM-0001_c001": "below_threshold",
        "PHANTOM-0003_c000": "too_large",
        "PHANTOM-0004_c000": "too_small",
    }
    (known,) = (row for name, row in rows.items() if not name.startswith("PHANTOM"))
    assert (known["outcome"], known["patient_id"]) == ("known", "PHANTOM-0007"), "LUNA16 gives its centre"
    facts = result.cohort["pseudo_labels"]
    assert facts["candidates"] == {"below_threshold": 1, "too_small": 1, "known": 1, "too_large": 1, "nodule": 1}
    assert int(rows["PHANTOM-0001_c000"]["normal_slices_removed"]) > 0
    assert int(rows["PHANTOM-0001_c001"]["normal_slices_removed"]) == 0


def test_slices_with_a_new_nodule_get_a_label_map_of_their_own(made, separated):
    folder, patients = made
    out, _ = separated
    shown = [e for e in entries(out, "enhancement") if e["series_id"] == "PHANTOM-0001"]
    first, last = boxes(patients[0].nodules[0].mask)
    assert [int(e["image"][-11:-7]) for e in shown] == list(range(first, last + 1))
    for entry in shown:
        index = int(entry["image"][-11:-7])
        label, affine = read_plane(out / entry["label"])
        assert np.array_equal(label == 2, patients[0].nodules[0].mask[index] > 0)
        old, old_affine = read_plane(folder / "cohort" / "labels" / Path(entry["label"]).name)
        assert np.array_equal(label[label != 2], old[label != 2])
        assert np.allclose(affine, old_affine)
        assert not (old == 2).any()
    assert {e["label"].split("/")[0] for e in entries(out, "segmentation") if e["kind"] == "slice"} == {"labels"}


def test_files_are_shared_and_the_split_stays(made, separated):
    folder, _ = made
    out, result = separated
    described = json.loads((folder / "cohort" / "cohort.json").read_text(encoding="utf-8"))
    assert result.cohort["split_hash"] == described["split_hash"]
    before, after = (pd.read_csv(cohort / "series.csv") for cohort in (folder / "cohort", out))
    assert before.drop(columns="nodule_mask").equals(after.drop(columns="nodule_mask"))
    looked_at = before["nodule_mask"] == "none"
    assert looked_at.sum() == 5
    assert (after.loc[looked_at, "nodule_mask"] == "network").all()
    assert (after.loc[~looked_at, "nodule_mask"] == "data").all()
    for name in LISTS:
        for entry in entries(out, name):
            for path in (entry[key] for key in ("image", "label", "nodule", "cube", "lung") if key in entry):
                assert (out / path).is_file()
                twin = folder / "cohort" / path
                assert not twin.exists() or twin.samefile(out / path), "a link, not a copy"
    lungs = {f"lungs/{path.name}" for path in (out / "lungs").iterdir()}
    assert lungs == {entry["lung"] for entry in entries(out, "lungs")}


def test_it_is_a_cohort_for_the_chain_and_says_what_it_did(made, separated):
    folder, _ = made
    out, result = separated
    assert Cohort.open(out).identity["split_hash"] == result.cohort["split_hash"]
    facts = result.cohort["pseudo_labels"]
    for when, cohort in (("before", folder / "cohort"), ("after", out)):
        assert sum(counts["normal_slices"] for counts in facts[when].values()) == len(entries(cohort, "lungs"))
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## Pseudo-labels" in report
    assert "5 series" in report
    assert (out / "montage_pseudo_labels.png").stat().st_size > 10_000


def test_a_lower_threshold_gives_a_purer_and_smaller_normal_set(made, separated, tmp_path):
    folder, patients = made
    low = separate(folder, tmp_path / "low", threshold=0.25)
    high, _ = separated
    few, many = (normal_of(cohort, "PHANTOM-0001") for cohort in (tmp_path / "low", high))
    first, last = boxes(patients[0].nodules[1].mask)
    assert few < many
    assert not few & set(range(first, last + 1))
    assert low.cohort["pseudo_labels"]["candidates"]["nodule"] == 2


def test_a_run_that_was_stopped_ends_in_the_same_bytes(made, separated, tmp_path, monkeypatch):
    folder, _ = made
    out, _ = separated
    saved = []
    original = SeriesRows.save

    def save(self, where):
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(self.task_id)
        return original(self, where)

    monkeypatch.setattr(SeriesRows, "save", save)
    with pytest.raises(KeyboardInterrupt):
        separate(folder, tmp_path / "again")
    monkeypatch.undo()
    assert not (tmp_path / "again" / "cohort.json").exists()
    separate(folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)
    separate(folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out), "once more changes nothing"


def test_copies_serve_where_links_are_not_possible(made, separated, tmp_path, monkeypatch):
    folder, _ = made
    out, _ = separated

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(atomic.os, "link", refuse)
    separate(folder, tmp_path / "copied")
    assert contents(tmp_path / "copied") == contents(out)


def test_a_bad_series_is_reported_and_none_of_its_slices_is_normal(made, tmp_path):
    folder, _ = made
    shutil.copytree(folder / "cohort", tmp_path / "cohort")
    damaged = tmp_path / "cohort" / "slices" / "PHANTOM-0002_0008.nii.gz"
    damaged.write_bytes(b"no slice")
    (tmp_path / "cohort" / "slices" / "PHANTOM-0001_0004.nii.gz").unlink()
    result = separate(folder, tmp_path / "out", cohort=tmp_path / "cohort")
    messages = [problem.message for problem in result.problems]
    assert len(messages) == 2
    assert "PHANTOM-0001_0004.nii.gz: is missing" in messages[0]
    assert damaged.name in messages[1]
    assert not normal_of(tmp_path / "out", "PHANTOM-0002")
    assert normal_of(tmp_path / "out", "PHANTOM-0001")
    assert len(result.cohort["problems"]) == 2
    assert not [
        e
        for name in LISTS
        for e in entries(tmp_path / "out", name)
        if "0001_0004" in next(e[key] for key in ("image", "nodule", "cube") if key in e)
    ]


def test_what_cannot_be_separated_is_refused_with_the_way_out(made, separated, tmp_path):
    folder, _ = made
    out, _ = separated
    with pytest.raises(InputError, match="pseudo-labelled already"):
        separate(folder, tmp_path / "x", cohort=out)
    with pytest.raises(InputError, match=r"\(threshold is 0.5 there and 0.7 here\)"):
        separate(folder, out, threshold=0.7)
    with pytest.raises(InputError, match="must not lie inside its source"):
        separate(folder, folder / "cohort" / "x")
    with pytest.raises(InputError, match="`lungsynth prepare` wrote"):
        separate(folder, tmp_path / "x", cohort=tmp_path)
    with pytest.raises(InputError, match=r"lies in \[0.05, 1\]"):
        separate(folder, tmp_path / "x", threshold=0)
    shutil.copytree(folder / "cohort", tmp_path / "cohort")
    shutil.rmtree(tmp_path / "cohort" / ".parts")
    with pytest.raises(InputError, match=r"hidden folder .parts"):
        separate(folder, tmp_path / "x", cohort=tmp_path / "cohort")
    assert not (tmp_path / "x").exists()


def test_the_command_prints_counts_and_answers_bad_input_with_one_sentence(made, tmp_path, capsys):
    folder, _ = made
    spec = importlib.util.spec_from_file_location("separate_script", ROOT / "scripts" / "separate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    common = ["--bundles", str(folder / "bundles"), "--tracking-uri", new_store(tmp_path)]
    out = ["--out", str(tmp_path / "out")]
    assert script.main(["--cohort", str(folder / "cohort"), *out, "--threshold", "0.8", *common]) == 0
    assert "normal slices" in capsys.readouterr().out
    assert script.main(["--cohort", str(tmp_path), *out, *common]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_packages_that_come_before_do_not_know_the_bundles():
    for package in ("ct", "cohort"):
        for path in (ROOT / "lungsynth" / package).rglob("*.py"):
            assert not re.search(r"lungsynth\.bundles", path.read_text(encoding="utf-8")), path
