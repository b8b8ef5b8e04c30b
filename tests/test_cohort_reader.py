import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lungsynth.categories import CategoryRule
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import (
    CubeEntry,
    DiseasedEntry,
    LungEntry,
    NoduleEntry,
    NoduleRow,
    SegmentationEntry,
    SeriesRow,
    SliceRow,
    columns,
    from_format_1,
    from_mapping,
    to_json,
)
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.cohort.slices import read_scan, read_stacks
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.geometry import axial_affine
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_arrays, write_json

SPACING_MM = (5.0, 2.0, 2.0)
LEVELS = (-700, -710, -720, -740)  # of the slices 3, 4, 5 and 7
INDICES = (3, 4, 5, 7)
OWNERS = {"training": ("NA", "1.2"), "validation": ("007", "1.3"), "test": ("P3", "1.4")}


def write_cohort(folder, *, kind="sphere", array="sphere", version=2):
    """A series a split; that of training has four slices, a drawn nodule, a sphere, and one that is too large."""
    series, nodules = [], []
    lists = {name: {split: [] for split in OWNERS} for name in ("nodules", "lungs", "segmentation", "enhancement")}
    for split, (patient_id, series_id) in OWNERS.items():
        who = {"patient_id": patient_id, "series_id": series_id, "source": "TOY"}
        spacing = dict(zip(("spacing_slice_mm", "spacing_row_mm", "spacing_column_mm"), SPACING_MM, strict=True))
        series.append({**who, "patient_known": True, "split": split, "slices": 4, **spacing})
        series[-1] |= {"lung_mask": "data", "nodule_mask": "data"}
        for name, votes in (("drawn", 2), ("given", 0), ("huge", 1)):
            nodule_id = f"{series_id}_{name}"
            row = {"nodule_id": nodule_id, **who, "split": split, "texture_class": "solid", "diameter_mm": 8.5}
            nodules.append({**row, "votes": votes, "malignancy": 4.5 if votes else None, "x_mm": 1.0, "y_mm": -2.0})
            nodules[-1] |= {"z_mm": None if name == "huge" else 3.5}
            if name == "huge":
                continue
            file = f"nodules/{nodule_id}.npz"
            entry = {"nodule": file, "nodule_id": nodule_id, "category": "solid", "diameter_mm": 8.5, "votes": votes}
            lists["nodules"][split].append({**entry, "mean_hu": 20.0, "malignancy": 4.5 if votes else None, **who})
            labels = {"labelled": ["nodule"], "kind": "nodule"} if votes else {"labelled": [], "kind": kind}
            lists["segmentation"][split].append({"image": file, "label": file, **labels, **who})
        slices = [{part: f"{part}s/{series_id}_{index:04d}.nii.gz" for part in ("label",)} for index in INDICES]
        slices = [{"image": entry["label"].replace("labels", "slices"), **entry} for entry in slices]
        lists["segmentation"][split] += [{**entry, "labelled": ["lung"], "kind": "slice", **who} for entry in slices]
        lung = {"lung": f"lungs/{series_id}_0003.npz", **slices[0], "category": "normal"}
        lists["lungs"][split].append({**lung, **who})
        lists["enhancement"][split].append({**slices[1], **who})
    write_files(folder, array)
    pd.DataFrame(series).to_csv(folder / "series.csv", index=False)
    pd.DataFrame(nodules).to_csv(folder / "nodules.csv", index=False)
    for name, content in lists.items():
        write_json(folder / f"{name}.json", content)
    described = {"format": version, "settings": {"seed": 3}, "sources": [{"name": "TOY"}], "split_hash": "ab"}
    write_json(folder / "cohort.json", described)
    return folder


def write_files(folder, array):
    affine = axial_affine(spacing_mm=SPACING_MM, origin_lps_mm=(-10.0, -20.0, 30.0))
    for index, level in zip(INDICES, LEVELS, strict=True):
        here = affine.copy()
        here[2, 3] += index * SPACING_MM[0]
        label = np.full((6, 8), Label.LUNG, np.uint8)
        label[0, 0] = Label.NODULE
        write_plane(folder / "slices" / f"1.2_{index:04d}.nii.gz", np.full((6, 8), level, np.int16), here)
        write_plane(folder / "labels" / f"1.2_{index:04d}.nii.gz", label, here)
    for name, level in (("drawn", 10), ("given", 20)):
        hu = np.stack([np.full((64, 64), level + k, np.int16) for k in range(3)])
        flags = np.zeros(hu.shape, bool)
        alpha = np.ones(hu.shape, np.float16)
        write_arrays(folder / f"nodules/1.2_{name}.npz", hu=hu, alpha=alpha, largest=np.int64(1), **{array: flags})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def training(folder):
    return Cohort.open(folder).split("training")


@pytest.mark.parametrize(
    "row_type", [SeriesRow, NoduleRow, NoduleEntry, CubeEntry, LungEntry, SegmentationEntry, DiseasedEntry, SliceRow]
)
def test_every_column_says_what_it_means(row_type):
    assert all(column.description for column in columns(row_type))
    units = {column.name: column.unit for column in columns(row_type)}
    assert all(unit == "mm" for name, unit in units.items() if name.endswith("_mm"))


def test_rows_come_back_from_what_stands_in_a_file():
    entry = LungEntry(lung="a.npz", image="slices/1.2_0003.nii.gz", label="b", patient_id="p", series_id="1.2")
    assert list(to_json(entry)) == ["lung", "image", "label", "category", "patient_id", "series_id", "source"]
    assert from_mapping(LungEntry, {**to_json(entry), "unknown key": 1}) == entry
    assert entry.slice_id == "1.2_0003"
    labelled = SegmentationEntry(image="a", label="b", labelled=("lung",), kind="slice")
    assert from_mapping(SegmentationEntry, json.loads(json.dumps(to_json(labelled)))) == labelled
    with pytest.raises(InputError, match="expected image, label in each row or entry"):
        from_mapping(DiseasedEntry, {"patient_id": "p"})


def test_rows_know_their_files():
    row = SliceRow(slice_id="1.2_0003", series_id="1.2", shows_nodule=False, normal=True)
    assert (row.index, row.image, row.label, row.lung) == (
        3,
        "slices/1.2_0003.nii.gz",
        "labels/1.2_0003.nii.gz",
        "lungs/1.2_0003.npz",
    )


def test_a_split_has_the_rows_of_its_patients(training):
    nodules = training.nodules()
    assert [nodule.nodule_id for nodule in nodules] == ["1.2_drawn", "1.2_given"]
    assert (nodules[0].diameter_mm, nodules[0].malignancy, nodules[1].malignancy) == (8.5, 4.5, None)
    assert [lung.slice_id for lung in training.lungs()] == ["1.2_0003"]
    assert [entry.slice_id for entry in training.diseased()] == ["1.2_0004"]
    assert len(training.slices()) == 4
    assert training.patients == ("NA",)
    names = training.cohort.pseudonyms
    parts = (names.nodules["1.2_drawn"], names.nodules["1.2_given"], names.slices["1.2_0003"])
    assert training.patient_of == dict.fromkeys(parts, names.patients["NA"])


def test_tables_have_types_whatever_ids_look_like(folder):
    cohort = Cohort.open(folder)
    (series,) = cohort.split("validation").series()
    assert (series.patient_id, series.series_id, series.patient_known, series.slices) == ("007", "1.3", True, 4)
    assert series.spacing_mm == SPACING_MM
    (series,) = cohort.split("training").series()
    assert (series.patient_id, series.series_id) == ("NA", "1.2")


def test_all_nodules_know_what_the_lists_say(training):
    drawn, given, huge = training.all_nodules()
    assert (drawn.has_patch, drawn.expert_mask, drawn.sphere) == (True, True, False)
    assert (given.has_patch, given.expert_mask, given.sphere) == (True, False, True)
    assert (huge.has_patch, huge.expert_mask, huge.sphere) == (False, True, False)
    assert (drawn.centre_lps_mm, huge.centre_lps_mm) == ((1.0, -2.0, 3.5), None)
    assert (drawn.votes, type(drawn.votes), given.malignancy) == (2, int, None)
    assert drawn.patch == "nodules/1.2_drawn.npz"


def test_nodules_are_read_in_the_order_of_the_seed(training):
    found = {nodule.origin: nodule for nodule in training.read_nodules("solid", seed=0)}
    drawn, given = (training.cohort.pseudonyms.nodules[name] for name in ("1.2_drawn", "1.2_given"))
    assert set(found) == {drawn, given}
    assert set(np.unique(found[drawn].hu)) == {11}
    orders = {tuple(nodule.origin for nodule in training.read_nodules("solid", seed=seed)) for seed in range(8)}
    assert len(orders) == 2
    assert list(training.read_nodules("part_solid", seed=0)) == []


def test_lungs_are_read_with_their_mask(training):
    (lung,) = training.read_lungs(seed=0)
    name = training.cohort.pseudonyms.slices["1.2_0003"]
    assert (lung.origin, int(lung.mask.sum()), lung.mask[0, 0], int(lung.hu[0, 0])) == (name, 47, False, -700)


def test_scans_are_put_together_with_the_gaps_unlabelled(training):
    ((series, scan),) = training.scans()
    assert (series.series_id, scan.first, len(scan)) == ("1.2", 3, 5)
    assert scan.volume.hu[:, 0, 1].tolist() == [-700, -710, -720, -720, -740]
    assert scan.labels[:, 0, 1].tolist() == [1, 1, 1, 255, 1]
    assert scan.volume.spacing_mm == SPACING_MM
    assert scan.slice_id(4) == "1.2_0007"


def test_stacks_end_at_the_gaps(folder, training):
    (series,) = training.series()
    stacks = list(read_stacks(folder, series, [7, 5, 4, 3]))
    assert [(stack.first, len(stack)) for stack in stacks] == [(3, 3), (7, 1)]
    np.testing.assert_array_equal(read_scan(folder, series, [5, 3, 4]).volume.hu, stacks[0].volume.hu)
    with pytest.raises(InputError, match=r"say a spacing of 5 mm, series\.csv says 4 mm"):
        list(read_stacks(folder, replace(series, spacing_slice_mm=4.0), [3]))
    with pytest.raises(InputError, match=r"1\.2_0006\.nii\.gz: could not be read as a slice"):
        list(read_stacks(folder, series, [6]))


def test_a_rule_gives_nodules_other_categories(folder):
    rule = CategoryRule(names=("low", "high"), key="malignancy", edges=(3.0,))
    cohort = Cohort.open(folder, rule=rule)
    assert [nodule.category for nodule in cohort.split("training").nodules()] == ["high", "unknown"]
    assert cohort.identity != Cohort.open(folder).identity
    missing = CategoryRule(names=("a",), key="no such key")
    with pytest.raises(InputError, match="no nodule of the cohort has"):
        Cohort.open(folder, rule=missing).split("training").nonempty()


def test_the_identity_is_that_of_the_content(folder, tmp_path):
    assert Cohort.open(write_cohort(tmp_path / "a")).identity == Cohort.open(folder).identity
    other = write_cohort(tmp_path / "b")
    lists = json.loads((other / "lungs.json").read_text(encoding="utf-8"))
    write_json(other / "lungs.json", {**lists, "test": []})
    assert Cohort.open(other).identity != Cohort.open(folder).identity


def test_format_1_is_read_in_the_words_of_today(folder, tmp_path):
    old = Cohort.open(write_cohort(tmp_path, kind="ball", array="ball", version=1))
    new = Cohort.open(folder)
    assert old.nodules == new.nodules
    assert old.split("training").nodules() == new.split("training").nodules()
    assert old.identity == new.identity
    (sphere,) = read_arrays(tmp_path / "nodules" / "1.2_given.npz", "sphere")
    assert sphere.dtype == bool
    stored = {"part_id": "a", "nodules": [{"attributes": {"texture": 5.0}, "centre_lps_mm": [1, 2, 3], "ball": True}]}
    now = {"task_id": "a", "nodules": [{"sphere": True, "texture": 5.0, "x_mm": 1, "y_mm": 2, "z_mm": 3}]}
    assert from_format_1(stored) == now


def test_a_folder_that_is_no_cohort_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"cohort\.json: expected this file of a cohort, found none. Give `cohort`"):
        Cohort.open(tmp_path)
    (tmp_path / ".parts").mkdir()
    with pytest.raises(InputError, match=r"is not finished: .*Repeat the command"):
        Cohort.open(tmp_path)
    write_json(tmp_path / "cohort.json", {"format": 3})
    with pytest.raises(InputError, match="is of format 3, this version reads up to 2"):
        Cohort.open(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "cohort.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"cohort\.json: (cannot be read as|expected) a file of a cohort"):
            Cohort.open(tmp_path)
    with pytest.raises(InputError, match="A split is one of training, validation, test, got 'train'"):
        Cohort.open(folder).split("train")


def test_a_damaged_or_missing_file_is_named(tmp_path):
    cohort = Cohort.open(write_cohort(tmp_path))
    name = Cohort.open(tmp_path).pseudonyms.nodules["1.2_given"]
    (tmp_path / "lungs.json").unlink()
    write_json(tmp_path / "enhancement.json", {"training": [{"image": "a"}]})
    (tmp_path / "series.csv").write_text("series_id\n1.2\n", encoding="utf-8")
    training = cohort.split("training")
    for read, told in (
        (training.lungs, "lungs.json: expected this file"),
        (training.diseased, "enhancement.json: cannot be read as a file of a cohort .*expected label"),
        (training.series, "series.csv: cannot be read as a file of a cohort .*expected patient_id"),
    ):
        with pytest.raises(InputError, match=told):
            read()
    (tmp_path / "nodules" / "1.2_drawn.npz").write_bytes(b"PK")
    assert [nodule.origin for nodule in training.read_nodules("solid", seed=0)] == [name]
    with pytest.raises(InputError, match=r"1\.2_drawn\.npz: cannot be read"):
        read_arrays(tmp_path / "nodules" / "1.2_drawn.npz", "hu")
    with pytest.raises(InputError, match=r"1\.2_given\.npz: cannot be read .*context"):
        read_arrays(tmp_path / "nodules" / "1.2_given.npz", "context")
    with pytest.raises(InputError, match=r"absent\.npz: expected this file"):
        read_arrays(tmp_path / "nodules" / "absent.npz", "context")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("validation", "NaN", 'split of a row or entry should be one of .*training, .*one is "NaN"'),
        ("validation", "", r"1\.3 has no split"),
        ("1.3,", "1.2,", "it has a series twice"),
    ],
)
def test_a_series_has_one_split(tmp_path, old, new, told):
    table = write_cohort(tmp_path) / "series.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=rf"series\.csv: cannot be read as a file of a cohort .*{told}"):
        _ = Cohort.open(tmp_path).splits


def test_finished_rows_are_of_their_own_series(tmp_path):
    row = {"slice_id": "b_0001", "series_id": "b", "shows_nodule": False, "normal": True}
    path = SeriesRows(task_id="a", fingerprint="f", slices=(SliceRow(**row),)).save(tmp_path)
    with pytest.raises(InputError, match=r"a\.json: has rows of the series 'b', which it lacks. Remove the file"):
        SeriesRows.read(path)


def test_patients_of_the_enhancer_can_be_left_out(tmp_path):
    training = Cohort.open(write_cohort(tmp_path)).split("training")
    with pytest.raises(InputError, match="`exclude_enhancer_patients` leaves none"):
        training.without_diseased()
    lists = json.loads((tmp_path / "lungs.json").read_text(encoding="utf-8"))
    other = {**lists["training"][0], "patient_id": "P9", "image": "slices/1.9_0001.nii.gz"}
    write_json(tmp_path / "lungs.json", {**lists, "training": [*lists["training"], other]})
    left = Cohort.open(tmp_path).split("training").without_diseased()
    assert ([lung.slice_id for lung in left.lungs()], left.nodules()) == (["1.9_0001"], ())


def test_an_empty_split_is_told(tmp_path):
    write_cohort(tmp_path)
    for name in ("nodules", "lungs"):
        write_json(tmp_path / f"{name}.json", {"training": []})
    with pytest.raises(InputError, match="its training split has neither nodules nor normal slices"):
        Cohort.open(tmp_path).split("training").nonempty()
