import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import SHAPE, votes_of, write_chest, write_slices

from lungsynth.cohort.collections import UNKNOWN_LICENCE, recognise
from lungsynth.cohort.montage import lung_tile, nodule_tile
from lungsynth.cohort.not_normal import check_names, listed_slices, read_names
from lungsynth.cohort.prepare import PrepareSettings, look_at_sources, prepare_cohort
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import NoduleRow, SeriesRow, columns
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.write import read_plane, write_nifti
from lungsynth.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
NODULE = (8, 32, 20, 12.0)
TUMOUR = (8, 32, 20, 30.0)


def load_script():
    spec = importlib.util.spec_from_file_location("prepare_script", ROOT / "scripts" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(sources, out, **settings):
    return prepare_cohort(list(sources), out, settings=PrepareSettings(**settings), workers=1)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Four patients with lung masks, one with a nodule mask, one with a tumour larger than a patch."""
    lungs, tumours = tmp_path_factory.mktemp("data") / "lctsc", tmp_path_factory.mktemp("data") / "other"
    for number in range(4):
        write_chest(lungs, f"Case_00{number}", seed=number)
    write_chest(tumours, "T-001", seed=7, nodule=NODULE, with_lung=False)
    write_chest(tumours, "T-002", seed=8, nodule=TUMOUR, with_lung=False)
    return lungs, tumours


@pytest.fixture(scope="module")
def cohort(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort") / "C"
    return out, prepare(sources, out)


def test_a_cohort_has_its_files_tables_and_counts(cohort):
    out, outcome = cohort
    series, nodules = pd.read_csv(out / "series.csv"), pd.read_csv(out / "nodules.csv")
    assert list(series.columns) == [column.name for column in columns(SeriesRow)]
    assert list(nodules.columns) == [column.name for column in columns(NoduleRow)]
    assert not outcome.problems
    assert series["lung_mask"].tolist() == ["data"] * 4 + ["threshold"] * 2
    assert series["nodule_mask"].tolist() == ["none"] * 4 + ["data"] * 2
    assert len(list((out / "slices").iterdir())) == len(list((out / "labels").iterdir())) == series["slices"].sum()
    described = json.loads((out / "cohort.json").read_text(encoding="utf-8"))
    assert described == outcome.cohort
    assert [source["name"] for source in described["sources"]] == ["LCTSC", "other"]
    assert described["sources"][1]["licence"].startswith("unknown")
    assert described["counts"]["training"]["patients"] == 4, "two of LCTSC, and the two of the small group"
    assert "larger than" not in (out / "report.md").read_text(encoding="utf-8").split("## Problems")[1]
    assert {path.name for path in out.iterdir()} >= {"montage_nodules.png", "montage_lungs.png", "report.md"}


@pytest.mark.parametrize(("tile", "folder"), [(nodule_tile, "nodules"), (lung_tile, "lungs")])
def test_a_picture_of_a_damaged_file_is_one_sentence(cohort, tmp_path, tile, folder):
    whole = sorted((cohort[0] / folder).glob("*.npz"))[0]
    assert tile(whole).shape[2] == 3
    damaged = tmp_path / whole.name
    damaged.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(InputError, match=rf"{whole.name}: cannot be read as a file of a cohort"):
        tile(damaged)


def test_what_a_small_cohort_lacks_is_told(cohort):
    out, outcome = cohort
    lacks = " ".join(outcome.cohort["lacks"])
    assert "training: 1 of 2 nodules do not fit a patch of 44.8 mm" in lacks
    assert "test: no nodule, so nothing of nodules can be measured here" in lacks
    normal = outcome.cohort["counts"]["training"]["normal_slices"]
    assert normal > 0
    assert "normal slices are normal: nobody searched their scans" in lacks
    assert "the texture of 2 of 2 nodules" in lacks
    assert all(text in (out / "report.md").read_text(encoding="utf-8") for text in outcome.cohort["lacks"])


def test_a_look_at_sources_counts_and_writes_nothing(sources, tmp_path):
    write_slices(tmp_path / "crops", votes_of(6, 6))
    before = contents(tmp_path)
    lines, problems = look_at_sources([*sources, tmp_path / "crops"], PrepareSettings().files)
    assert lines[:2] == ["Scans      6 of 6 patients, about 96 slices", "Nodules    1 without their scans in crops"]
    assert lines[2].startswith("Time       about ")
    assert "Nothing was written." in lines
    assert not problems
    assert contents(tmp_path) == before


def test_what_is_said_of_many_is_said_once(sources, tmp_path):
    for patient in range(7):
        write_slices(tmp_path / "crops", votes_of(6, 6), patient=f"LIDC-IDRI-000{patient}")
    outcome = prepare([*sources, tmp_path / "crops"], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.count("no table tells its spacing") == 1
    assert "LIDC-IDRI-0004_n00 and 2 more: no table tells its spacing" in report
    assert any("the pixel size of 7 of 9 nodules" in text for text in outcome.cohort["lacks"])


def test_the_licence_of_a_table_stands_beside_the_source(sources, tmp_path):
    table = tmp_path / "table" / "patients.csv"
    table.parent.mkdir()
    table.write_text("file,patient,licence\nT-001.nii.gz,T,CC BY 4.0\n", encoding="utf-8")
    outcome = prepare([*sources, table.parent], tmp_path / "out")
    licences = {source["name"]: source["licence"] for source in outcome.cohort["sources"]}
    assert licences == {"LCTSC": "CC BY 3.0", "other": f"CC BY 4.0; {UNKNOWN_LICENCE}"}


def test_labels_and_slices_lie_on_one_grid(cohort):
    out, _ = cohort
    hu, affine = read_plane(out / "slices" / "T-001_0008.nii.gz")
    labels, label_affine = read_plane(out / "labels" / "T-001_0008.nii.gz")
    assert hu.shape == labels.shape == SHAPE[1:]
    assert np.array_equal(affine, label_affine)
    assert labels[32, 20] == 2
    assert hu[labels == 2].mean() > -50
    assert labels[32, 52] == 1
    assert labels[0, 0] == 0


def test_lists_say_who_drew_what_and_normal_slices_keep_their_distance(cohort):
    out, _ = cohort
    names = ("segmentation", "lungs", "nodules", "enhancement")
    lists = {name: json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    assert all(list(datalist) == ["training", "validation", "test"] for datalist in lists.values())
    entries = {name: [e for split in datalist.values() for e in split] for name, datalist in lists.items()}
    assert {(e["series_id"][0], *e["labelled"]) for e in entries["segmentation"]} == {("C", "lung"), ("T", "nodule")}
    shown = {e["image"] for e in entries["enhancement"] if e["series_id"] == "T-001"}
    normal = {e["image"] for e in entries["lungs"] if e["series_id"] == "T-001"}
    numbers = [{int(name[-11:-7]) for name in images} for images in (shown, normal)]
    assert min(abs(a - b) for a in numbers[0] for b in numbers[1]) * 5 > 10
    assert [e["nodule_id"] for e in entries["nodules"]] == ["T-001_n00"], "the tumour does not fit"
    for e in [e for group in entries.values() for e in group]:
        assert all((out / e[key]).is_file() for key in ("image", "label", "lung", "nodule") if key in e)
        assert {"patient_id", "series_id", "source"} <= set(e)


def test_a_cohort_gives_back_the_rows_that_it_was_made_of(cohort):
    out, outcome = cohort
    read = Cohort.open(out)
    assert read.split_hash == outcome.cohort["split_hash"]
    written = {row.nodule_id: row for piece in read.pieces for row in piece.nodules}
    assert set(written) == {row.nodule_id for row in read.nodules} == {"T-001_n00", "T-002_n00"}
    for row in read.nodules:
        known = written[row.nodule_id]
        assert row.diameter_mm == pytest.approx(known.diameter_mm, abs=1e-4)
        assert (row.votes, row.has_patch, row.expert_mask, row.sphere) == (
            known.votes,
            known.has_patch,
            known.expert_mask,
            known.sphere,
        )
    for split in ("training", "validation", "test"):
        assert {row.split for row in read.split(split).series()} == {split}
    (series,) = (row for row in read.series if row.series_id == "T-001")
    scan = read.read_scan(series)
    assert len(scan) == series.slices
    assert scan.volume.spacing_mm == pytest.approx(series.spacing_mm)


def test_no_patient_stands_in_two_splits(cohort):
    out, _ = cohort
    series = pd.read_csv(out / "series.csv")
    assert (series.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(series["split"]) == {"training", "validation", "test"}


def test_lungs_have_the_generators_size(cohort):
    out, _ = cohort
    with np.load(next((out / "lungs").glob("Case_*.npz"))) as arrays:
        assert (arrays["hu"].dtype, arrays["hu"].shape) == (np.int16, (256, 256))
        assert (arrays["mask"].dtype, set(np.unique(arrays["mask"]))) == (np.uint8, {0, 1})
        assert arrays["hu"][arrays["mask"] == 1].mean() == pytest.approx(-850, abs=30)


def test_a_run_that_was_stopped_ends_in_the_same_bytes(cohort, sources, tmp_path, monkeypatch):
    out, _ = cohort
    calls = []
    original = SeriesRows.save

    def stop_after_three(rows, folder):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(rows.task_id)
        return original(rows, folder)

    monkeypatch.setattr(SeriesRows, "save", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tmp_path / "C")
    assert not (tmp_path / "C" / "cohort.json").exists()
    monkeypatch.setattr(SeriesRows, "save", lambda rows, folder: (calls.append(rows.task_id), original(rows, folder)))
    prepare(sources, tmp_path / "C")
    assert len(calls) == len(set(calls)) == 6, "finished series are not prepared again"
    assert contents(tmp_path / "C") == contents(out)


def test_workers_change_the_time_not_the_files(cohort, sources, tmp_path):
    out, _ = cohort
    prepare_cohort(list(sources), tmp_path / "C", settings=PrepareSettings(), workers=2)
    assert contents(tmp_path / "C") == contents(out)


def test_for_a_test_cohort_all_patients_test(sources, tmp_path):
    outcome = prepare(sources[:1], tmp_path / "C", split="test")
    assert outcome.cohort["counts"]["test"]["patients"] == 4
    assert outcome.cohort["counts"]["training"]["patients"] == 0


def test_one_bad_patient_among_many_is_reported(sources, tmp_path, capsys):
    data = tmp_path / "data"
    write_chest(data, "A-001")
    write_chest(data, "B-001", seed=1)
    bad = data / "B-001_ct.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    assert load_script().main([str(data), "--out", str(tmp_path / "C"), "--workers", "1"]) == 0
    assert "B-001_ct.nii.gz" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "C" / "cohort.json").read_text(encoding="utf-8"))["problems"][0]["file"]
        == "B-001_ct.nii.gz"
    )
    assert "B-001_ct.nii.gz" in (tmp_path / "C" / "report.md").read_text(encoding="utf-8")
    assert pd.read_csv(tmp_path / "C" / "series.csv")["series_id"].tolist() == ["A-001"]
    write_chest(data, "B-001", seed=1)
    outcome = prepare([data], tmp_path / "C")
    assert not outcome.problems, "mended and run again, it joins"


@pytest.mark.parametrize("case", ["empty", "no_ct", "bad"])
def test_nothing_usable_is_one_sentence_status_2_and_no_folder(case, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    if case == "no_ct":
        (data / "notes.txt").write_text("no scan here", encoding="utf-8")
    if case == "bad":
        write_chest(data, "A-001")
        image = data / "A-001_ct.nii.gz"
        image.write_bytes(image.read_bytes()[:2000])
    assert load_script().main([str(data), "--out", str(tmp_path / "C")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(data) in error
    assert not (tmp_path / "C").exists()


def test_the_output_of_another_run_is_refused(cohort, sources, tmp_path):
    out, _ = cohort
    with pytest.raises(InputError, match="seed is 0 there and 1 here"):
        prepare(sources, out, seed=1)
    with pytest.raises(InputError, match=r"sources is .* there and .* here"):
        prepare(sources[:1], out)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match="holds other files"):
        prepare(sources, tmp_path)
    with pytest.raises(InputError, match="inside its source"):
        prepare(sources, sources[0] / "C")


def test_what_is_no_longer_there_is_forgotten(tmp_path):
    data = tmp_path / "data"
    write_chest(data, "A-001", nodule=NODULE)
    write_chest(data, "B-001", seed=1, nodule=NODULE)
    prepare([data], tmp_path / "C")
    for path in data.glob("B-001*"):
        path.unlink()
    prepare([data], tmp_path / "C")
    assert not [name for name in contents(tmp_path / "C") if "B-001" in str(name)]


def test_a_scan_found_twice_is_prepared_once(tmp_path):
    for folder in "ab":
        write_chest(tmp_path / folder, "A-001")
    outcome = prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "C")
    assert "a copy of a/A-001_ct.nii.gz" in (tmp_path / "C" / "report.md").read_text(encoding="utf-8")
    assert outcome.cohort["counts"]["training"]["series"] == 1


def test_a_scan_without_lung_is_refused(tmp_path):
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    solid = np.full((6, 40, 40), 40, np.int16)
    solid[:, :2] = -1000
    write_nifti(tmp_path / "data" / "A-001_ct.nii.gz", solid, affine)
    with pytest.raises(InputError, match="no lung was found"):
        prepare([tmp_path / "data"], tmp_path / "C")


@pytest.mark.parametrize(
    ("ids", "folder", "name"),
    [
        (("LIDC-IDRI-0001",), "x", "LIDC-IDRI"),
        (("1.3.6.1.4.1.14519.5.2.1.6279.6001.1", "LIDC-IDRI-0001"), "x", "LUNA16"),
        (("QIN-LSC-0014",), "x", "QIN-LUNG-CT"),
        (("Lung_Dx-A0002",), "x", "Lung-PET-CT-Dx"),
        (("Case_000",), "lctsc", "LCTSC"),
        (("lung_001",), "Task06_Lung", "MSD-Lung"),
        (("P7",), "ours", "ours"),
    ],
)
def test_collections_are_recognised_and_their_names_too(ids, folder, name):
    found = recognise(ids, folder=folder)
    assert found.name == name
    assert recognise([name], folder=name) == found


def test_what_a_user_lists_is_not_normal(cohort, tmp_path):
    write_chest(tmp_path / "lctsc", "Case_000", seed=0)
    before = {path.name for path in (cohort[0] / "lungs").glob("Case_000_*.npz")}
    listed = sorted(before)[1].removesuffix(".npz").lower()
    outcome = prepare([tmp_path / "lctsc"], tmp_path / "C", not_normal=(listed,))
    after = {path.name for path in (tmp_path / "C" / "lungs").glob("*.npz")}
    assert len(before) > 2
    assert after == before - {sorted(before)[1]}
    assert (tmp_path / "C" / "slices" / sorted(before)[1].replace(".npz", ".nii.gz")).exists()
    assert outcome.cohort["settings"]["not_normal"] == [listed]
    assert "not_normal" not in cohort[1].cohort["settings"]
    with pytest.raises(InputError, match="`not_normal` names nobody: no file"):
        prepare([tmp_path / "lctsc"], tmp_path / "D", not_normal=("nobody",))


def test_a_list_names_files_series_patients_and_slices(tmp_path):
    lines = ["name,what it shows", "lctsc/Case_000_ct.nii.gz,tumour", "P1  # effusion", "lungs/Case_002_0008.npz;tube"]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = read_names(tmp_path / "list.csv")
    assert names == ("case_000_ct", "case_002_0008", "p1")
    whole, patient, part = (
        SeriesFiles(
            kind="nifti", series_id=name, patient_id=who, patient_known=True, files=(Path(f"{name}_ct.nii.gz"),)
        )
        for name, who in (("Case_000", "P0"), ("Case_001", "P1"), ("Case_002", "P2"))
    )
    check_names(names, [whole, patient, part])
    assert listed_slices(names, whole, "Case_000", 3).all()
    assert listed_slices(names, patient, "Case_001", 3).all()
    assert np.flatnonzero(listed_slices(names, part, "Case_002", 12)).tolist() == [8]
    with pytest.raises(InputError, match="`not_normal` names case_002_0008, p1: no file"):
        check_names(names, [whole])
    (tmp_path / "list.txt").write_text("file\n# nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected a file, series, patient or slice"):
        read_names(tmp_path / "list.txt")
