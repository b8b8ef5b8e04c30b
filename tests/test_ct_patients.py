"""Whose a scan is: tables, DICOM, names, in this order; doubts are said."""

from pathlib import Path

import numpy as np
import pytest
from ct_files import make_volume, save_nifti, write_dicom

from lungsynth.ct.discover import find_series
from lungsynth.ct.patients import name_patient
from lungsynth.errors import InputError

HU = make_volume().hu.T
ROOT = Path("/data")


@pytest.mark.parametrize(
    ("path", "says_ct", "patient"),
    [
        ("sub-01/ses-2/ct/sub-01_ses-2_ct.nii.gz", True, "sub-01"),
        ("TCGA-05-4244-01A.nii.gz", False, "TCGA-05-4244"),
        ("LIDC-IDRI-0001/x/IM001", False, "LIDC-IDRI-0001"),
        ("P017_s2.nii.gz", False, "P017"),
        ("subj12_visit1_ct.nii.gz", True, "subj12"),
        ("subj12_baseline.nii.gz", False, "subj12"),
        ("ACRIN-FLT-Breast_001_s3.nii.gz", False, "ACRIN-FLT-Breast_001"),
        ("P7_scan_2_20200131.nii.gz", False, "P7"),
        ("covid_scan_12.nii.gz", False, None),
        ("imagesTr/lung_001_0000.nii.gz", True, "lung_001"),
        ("patient-0007/ct.nii.gz", True, "patient-0007"),
        ("scan7.nii.gz", False, None),
    ],
)
def test_names_tell_the_patient(path, says_ct, patient):
    assert name_patient(ROOT / path, [ROOT], says_ct=says_ct)[0] == patient


def patients(folder):
    with find_series(folder) as found:
        told = {files.series_id: files.patient_id for files in found.series}
        return told, [problem.message for problem in found.problems]


@pytest.mark.parametrize(
    "table",
    [
        "series_uid,patient\nA_s1,Mona\nB,Mona\n",
        "file;Patient_ID\nA_s1.nii.gz;Mona\nscans/B_ct.nii.gz;Mona\n",
        "subject\twhat\nMona\tA_s1\nMona\tB\n",
    ],
)
def test_a_table_wins_over_names(tmp_path, table):
    save_nifti(tmp_path / "A_s1.nii.gz", HU)
    save_nifti(tmp_path / "B_ct.nii.gz", HU[::-1])
    (tmp_path / ("p.tsv" if "\t" in table else "patients.csv")).write_text(table, encoding="utf-8")
    told, problems = patients(tmp_path)
    assert told == {"A_s1": "Mona", "B": "Mona"}
    assert not problems


def test_a_table_tells_the_licence_of_each_scan(tmp_path):
    save_nifti(tmp_path / "A_s1.nii.gz", HU)
    save_nifti(tmp_path / "B_ct.nii.gz", HU[::-1])
    (tmp_path / "patients.csv").write_text(
        "file,patient,Licence\nA_s1.nii.gz,Mona,CC BY\t4.0\nB,Lisa,\n", encoding="utf-8"
    )
    with find_series(tmp_path) as found:
        assert {files.series_id: files.licence for files in found.series} == {"A_s1": "CC BY 4.0", "B": ""}


def test_a_table_that_names_no_scan_is_said(tmp_path):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)
    (tmp_path / "patients.csv").write_text("series_uid,patient\nB,1\n", encoding="utf-8")
    (problem,) = find_series(tmp_path).problems
    assert problem.message.endswith(
        "patients.csv: a table of patients that names no scan of the sources; it is not used."
    )


def test_a_table_that_contradicts_itself_is_said_and_not_used(tmp_path):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)
    (tmp_path / "patients.csv").write_text("series,patient\nA,P1\nA,P2\n", encoding="utf-8")
    told, problems = patients(tmp_path)
    assert told == {"A": "A"}
    assert "a has two patients" in problems[0]


def series(folder, name, *, seed, **tags):
    def edit(ds, index):
        for tag, value in tags.items():
            setattr(ds, tag, value)

    write_dicom(folder / name, make_volume(seed=seed, series_id=tags.pop("series", f"1.2.{seed}")), edit)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"PatientID": "ANON", "PatientSex": "F"}, {"PatientID": "ANON", "PatientSex": "M"}, "PatientSex: F and M"),
        ({"PatientID": "0", "StudyInstanceUID": "1.1"}, {"PatientID": "0", "StudyInstanceUID": "1.2"}, "it is no id"),
        ({"PatientID": "A", "StudyInstanceUID": "1.1"}, {"PatientID": "B", "StudyInstanceUID": "1.1"}, "One StudyInst"),
    ],
)
def test_ids_that_do_not_tell_people_apart_are_said(tmp_path, one, other, said):
    series(tmp_path, "a", seed=1, **one)
    series(tmp_path, "b", seed=2, **other)
    told, problems = patients(tmp_path)
    assert len(told) == 2
    assert any(said in problem for problem in problems)


def test_one_person_under_two_ids_is_one_patient(tmp_path):
    for seed, patient in ((1, "A"), (2, "B")):
        series(tmp_path, patient, seed=seed, PatientID=patient, PatientName="Doe^J", PatientBirthDate="19500101")
    told, problems = patients(tmp_path)
    assert set(told.values()) == {"A"}
    assert "one person" in problems[0]


def test_two_people_under_one_series_uid_are_refused(tmp_path):
    series(tmp_path, "a", seed=1, series="1.9", PatientID="A")
    series(tmp_path, "b", seed=2, series="1.9", PatientID="B")
    with pytest.raises(InputError, match=r"Series 1\.9: its 12 slices have 2 values of PatientID"):
        find_series(tmp_path)


def test_series_without_uid_are_one_a_folder(tmp_path):
    for name in "ab":
        series(tmp_path / name, "ct", seed=ord(name), SeriesInstanceUID="", PatientID="")
    told, _ = patients(tmp_path)
    assert len(told) == 2
    assert np.all([len(found) for found in told])
