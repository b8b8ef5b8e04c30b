import hashlib

import pytest

from lungsynth.cohort.schema import EXCLUDED, SeriesRow
from lungsynth.cohort.split import FOLDS, assign_splits, split_hash, split_patients


def row(series, patient, *, known=True, folder="a", family="F"):
    return SeriesRow(
        series_id=series,
        patient_id=patient,
        patient_known=known,
        source=family,
        family=family,
        folder=folder,
        slices=1,
        lung_mask="data",
        nodule_mask="none",
    )


def test_ten_patients_give_two_tests_and_one_validation_in_any_order():
    patients = {f"p{k}": {"a"} for k in range(10)}
    split = split_patients(patients, seed=0)
    assert sorted(split.values()) == ["test"] * 2 + ["training"] * 7 + ["validation"]
    assert split_patients(dict(reversed(patients.items())), seed=0) == split
    assert len({str(sorted(split_patients(patients, seed=seed).items())) for seed in range(5)}) > 2


def test_each_group_of_sources_is_divided_on_its_own():
    groups = {f"{letter}{k}": {folder} for letter, folder, count in ("pa4", "qb4", "rc3") for k in range(int(count))}
    split = split_patients(groups, seed=0)
    for letter in "pq":
        assert sorted(v for k, v in split.items() if k[0] == letter) == ["test", "training", "training", "validation"]
    assert {v for k, v in split.items() if k[0] == "r"} == {"training"}, "a group below four patients only trains"


@pytest.mark.parametrize("count", [1, 3, 4, 5, 6, 8, 11, 13])
def test_in_all_folds_every_patient_tests_once(count):
    patients = {f"p{k}": {"a"} for k in range(count)}
    folds = [split_patients(patients, seed=0, fold=fold) for fold in range(FOLDS)]
    assert {sum(split[patient] == "test" for split in folds) for patient in patients} == {1}
    assert folds[0] == split_patients(patients, seed=0)
    assert all("training" in split.values() for split in folds if count > 1)


def test_a_patient_of_two_sources_has_one_split():
    rows = [row(f"{folder}{k}", f"p{k}", folder=folder) for folder in "ab" for k in range(12)]
    splits = assign_splits(rows, mode="auto", seed=0)
    assert all(splits[f"a{k}"] == splits[f"b{k}"] for k in range(12))
    assert "test" in splits.values()


def test_series_without_patient_never_meet_a_test_with_possible_twins():
    known = [row(f"k{k}", f"p{k}") for k in range(8)]
    twin, stranger = row("t", "t", known=False), row("s", "s", known=False, family="other", folder="b")
    splits = assign_splits([*known, twin, stranger], mode="auto", seed=0)
    assert splits["t"] == EXCLUDED
    assert splits["s"] == "training", "a family of unknown patients only is split as if each series were one"
    assert assign_splits([*known, twin], mode="test", seed=0)["t"] == EXCLUDED
    assert assign_splits([*known[:2], twin], mode="auto", seed=0)["t"] == "training", "nobody of its family tests"


def test_series_without_any_known_patient_are_their_own_patients():
    rows = [row(f"s{k}", f"s{k}", known=False) for k in range(10)]
    assert sorted(assign_splits(rows, mode="auto", seed=0).values()).count("test") == 2
    assert set(assign_splits(rows, mode="test", seed=0).values()) == {"test"}


def test_split_hash_depends_on_the_division_only():
    pairs = [("p0", "training"), ("p1", "test"), ("p2", "training")]
    assert split_hash(pairs) == split_hash(pairs[::-1] + pairs[:1])
    assert split_hash(pairs) != split_hash([("p0", EXCLUDED), *pairs[1:]])
    assert split_hash([("p", "test")]) == hashlib.sha256(b"p,test\n").hexdigest()
