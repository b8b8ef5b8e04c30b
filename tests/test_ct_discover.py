import sys
import unicodedata
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from ct_files import SHARED, make_volume, save_nifti, write_dicom
from test_ct_lidc import BOX, nodule, roi, square, write_xml

from lungsynth.ct.annotations import read_nodules
from lungsynth.ct.discover import SortSettings, find_series
from lungsynth.ct.read import read_volume
from lungsynth.errors import InputError

HU = make_volume().hu.T
MASK = (HU > 0).astype(np.uint8)
TABLE = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def names(files):
    return tuple(path.name if path else None for path in (*files.files, files.lung_mask, files.nodule_mask))


def zipped(path, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_masks_are_found_beside_their_image(tmp_path):
    for number, (name, array) in enumerate(
        {
            "A_ct.nii.gz": HU,
            "A_lung.nii.gz": MASK,
            "A_nodule.nii.gz": MASK,
            "B.nii.gz": HU,
            "B_lungmask.nii.gz": MASK,
            "Q_nodule_votes4.nii.gz": MASK,
            "P-001/ct.nii.gz": HU,
            "P-001/nodule.nii.gz": MASK,
            "P-002/ct.nii.gz": HU,
        }.items()
    ):
        save_nifti(tmp_path / name, np.roll(array, number, axis=0))
    discovery = find_series(tmp_path)
    found = {files.series_id: files for files in discovery.series}
    (problem,) = discovery.problems
    assert "Q_nodule_votes4.nii.gz: a mask without an image" in problem.message
    assert {key: names(files) for key, files in found.items()} == {
        "A": ("A_ct.nii.gz", "A_lung.nii.gz", "A_nodule.nii.gz"),
        "B": ("B.nii.gz", "B_lungmask.nii.gz", None),
        "P-001": ("ct.nii.gz", None, "nodule.nii.gz"),
        "P-002": ("ct.nii.gz", None, None),
    }
    assert {key: files.patient_known for key, files in found.items()} == {
        "A": True,
        "B": False,
        "P-001": True,
        "P-002": True,
    }


def test_decathlon_layout(tmp_path):
    for number, name in enumerate(("imagesTr/lung_001", "imagesTr/lung_002_0000", "imagesTs/lung_009")):
        save_nifti(tmp_path / f"{name}.nii.gz", HU + number)
    for name in ("labelsTr/lung_001", "labelsTr/lung_002"):
        save_nifti(tmp_path / f"{name}.nii.gz", MASK)
    (tmp_path / "imagesTr" / "._lung_001.nii.gz").write_bytes(b"macOS")
    found = find_series(tmp_path)
    assert [(files.series_id, *names(files)[1:], files.patient_known) for files in found.series] == [
        ("lung_001", None, "lung_001.nii.gz", True),
        ("lung_002", None, "lung_002.nii.gz", True),
        ("lung_009", None, None, True),
    ]
    assert not found.problems
    assert read_nodules(found.series[0], read_volume(found.series[0]))[0].readers == 1


def test_luna16_layout(tmp_path):
    uid = "1.3.6.1.4.1"
    lungs = np.where(make_volume().hu > 0, 3, 5).astype(np.uint8)
    for folder, array in {"subset0": make_volume().hu, "seg-lungs-LUNA16": lungs}.items():
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{uid}.mhd"))
    (tmp_path / "annotations.csv").write_text(TABLE + f"{uid},1,2,3,4\n{uid},5,6,7,8.5\n", encoding="utf-8")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "annotations.csv").write_text(TABLE + f"{uid},1,2,3,4\n", encoding="utf-8")
    (tmp_path / "annotations_excluded.csv").write_text(TABLE + "another,1,2,3,-1\n", encoding="utf-8")
    (tmp_path / "candidates.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\nanother,1,2,3,0\n", encoding="utf-8"
    )
    (files,) = find_series(tmp_path).series
    assert (files.kind, files.series_id, files.patient_known) == ("metaimage", uid, False)
    assert files.lung_mask == tmp_path / "seg-lungs-LUNA16" / f"{uid}.mhd"
    assert [sphere.diameter_mm for sphere in files.annotations.spheres] == [4, 8.5]


def test_dicom_in_zips_with_annotations(tmp_path):
    inside = tmp_path / "inside"
    paths = write_dicom(inside / "a", make_volume(shape=(6, 24, 24)))
    write_dicom(inside / "b", make_volume(series_id="4.5.6"))
    write_xml(inside / "a" / "069.xml", nodule(roi(square(4, 8), 2)))
    (inside / "a" / "068.xml").write_text(
        "<IdriReadMessage><SeriesInstanceUid>1.2.3</SeriesInstanceUid></IdriReadMessage>", encoding="utf-8"
    )
    uid = pydicom.dcmread(paths[0]).SOPInstanceUID
    (inside / "Annotation").mkdir()
    (inside / "Annotation" / f"{uid}.xml").write_text(BOX, encoding="utf-8")
    source = tmp_path / "source"
    source.mkdir()
    zipped(source / "scan.zip", inside)
    save_nifti(source / "LIDC_nodule_votes4.nii.gz", MASK)
    (source / "table_luna16_style.csv").write_text(TABLE + "4.5.6,1,2,3,4\n", encoding="utf-8")
    for given in (source, source / "scan.zip"):
        with find_series(given) as found:
            first, second = found.series
            assert (first.series_id, first.patient_id, len(first.files)) == ("1.2.3", "P1", 6)
            assert first.annotations.lidc_xml.name == "069.xml"
            assert [path.stem for path in first.annotations.voc_xml] == [uid]
            assert len(second.annotations.spheres) == (given == source)
            assert len(read_nodules(first, read_volume(first))) == 1
            messages = [problem.message for problem in found.problems]
            assert len(messages) == (given == source)
            assert all("LIDC_nodule_votes4.nii.gz: a mask without an image" in message for message in messages)
        assert not first.files[0].exists()  # the unpacked files are gone


def test_a_series_of_a_zip_outlives_the_discovery(tmp_path):
    write_dicom(tmp_path / "a", make_volume())
    (files,) = find_series(zipped(tmp_path / "a.zip", tmp_path / "a")).series
    assert read_volume(files).hu.shape == (6, 12, 16)


def test_one_bad_file_among_many_is_a_problem(tmp_path):
    write_dicom(tmp_path / "a", make_volume())
    (tmp_path / "b.zip").write_bytes(b"PK not a zip")
    (tmp_path / "c.dcm").write_bytes(b"")
    (tmp_path / "d.xml").write_text("<LidcReadMessage><", encoding="utf-8")
    found = find_series(tmp_path)
    assert len(found.series) == 1
    messages = sorted(problem.message for problem in found.problems)
    assert len(messages) == 3
    for message, expected in zip(messages, ("unpacked", "not a DICOM file", "not well-formed"), strict=True):
        assert expected in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder is empty; put CT series"),
        ({"notes.txt": "x", "scan.png": "x"}, "no CT series found"),
        ({"scan.dcm": "x"}, "no CT series found.*First problem: .*scan.dcm"),
    ],
)
def test_nothing_to_read_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        find_series(tmp_path)


def test_no_source_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        find_series(tmp_path / "absent")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("seriesuid,x,y\nA,1,2\n", r"annotations\.csv: missing columns coordX, coordY, coordZ, diameter_mm"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, table, message):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)
    (tmp_path / "annotations.csv").write_text(table, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        find_series(tmp_path)


def test_annotations_of_absent_scans_are_a_problem(tmp_path):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)

    def found(rows):
        (tmp_path / "annotations.csv").write_text(TABLE + rows, encoding="utf-8")
        discovery = find_series(tmp_path)
        return discovery.series, discovery.problems[0].message

    (files,), told = found("A_ct.nii.gz,1,2,3,4\nB,1,2,3,4\n")
    assert [sphere.series_id for sphere in files.annotations.spheres] == ["A"]
    assert "1 of its series are not in the sources, first B. Add the scans" in told
    assert files.unread == ()
    (files,), told = found("B,1,2,3,4\n")
    assert "none is, so no slice of the 1 scans beside it counts as normal" in told
    assert [path.name for path in files.unread] == ["annotations.csv"]
    for shift, folder in enumerate(("P", "Q"), 1):
        save_nifti(tmp_path / folder / "ct.nii.gz", np.roll(HU, shift, axis=0))
    series, told = found("A,1,2,3,4\nct.nii.gz,1,2,3,4\n")
    assert [len(files.annotations.spheres) for files in series] == [1, 0, 0], "two scans are called ct.nii.gz"
    assert "first ct.nii.gz" in told


def test_marks_of_formats_that_are_not_read_keep_their_scan_from_being_normal(tmp_path):
    for name in ("A", "B"):
        save_nifti(tmp_path / f"{name}_ct.nii.gz", np.roll(HU, len(name) + ord(name), axis=0))
    (tmp_path / "A_nodule.nrrd").write_bytes(b"NRRD0004\n")
    np.save(tmp_path / "B_mask.npy", MASK)
    (tmp_path / "atlas.img").write_bytes(b"\0" * 10)
    found = find_series(tmp_path)
    assert {files.series_id: [path.name for path in files.unread] for files in found.series} == {
        "A": ["A_nodule.nrrd"],
        "B": ["B_mask.npy"],
    }
    told = {problem.path.name: problem.message for problem in found.problems}
    assert "NRRD, which is not read; save it as NIfTI (.nii.gz); it is called a mask" in told["A_nodule.nrrd"]
    assert told["atlas.img"].endswith("which is not read; convert it to one .nii.gz.")


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="this system cannot name such files")
def test_names_are_matched_as_people_read_them(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "M\u00fcller") for form in ("NFC", "NFD"))
    for number, name in enumerate((decomposed, "M\u00e4ller", "\u4e00", "\u4e8c")):
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", np.roll(HU, number, axis=0))
    for name in (composed, "\u4e8c"):
        save_nifti(tmp_path / "nodules" / f"{name}.nii.gz", MASK)
    found = find_series(tmp_path)
    assert found.problems == ()
    masked = {unicodedata.normalize("NFC", files.series_id) for files in found.series if files.masks}
    assert masked == {composed, "\u4e8c"}


def test_folders_above_the_source_name_no_patient(tmp_path):
    source = tmp_path / "project-2024" / "data"
    save_nifti(source / "patient-0007" / "scan.nii.gz", HU)
    save_nifti(source / "scan2.nii.gz", HU[::-1])
    patients = {files.patient_known: files.patient_id for files in find_series(source).series}
    assert patients == {True: "patient-0007", False: "scan2"}


def test_an_empty_table_of_nodules_is_a_problem_and_its_scans_are_not_normal(tmp_path):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)
    (tmp_path / "annotations.csv").write_text("", encoding="utf-8")
    found = find_series(tmp_path)
    assert [files.unread[0].name for files in found.series] == ["annotations.csv"]
    assert "is empty" in found.problems[0].message


def test_a_subset_of_a_collection_may_come_with_the_whole_table(tmp_path):
    save_nifti(tmp_path / "A_ct.nii.gz", HU)
    (tmp_path / "annotations.csv").write_text(TABLE + "A,1,2,3,4\nunknown,1,2,3,4\n", encoding="utf-8")
    (files,) = find_series(tmp_path, SortSettings(subset=True)).series
    assert {sphere.series_id for sphere in files.annotations.spheres} == {"A"}


@pytest.mark.skipif(not SHARED.exists(), reason="development data")
@pytest.mark.parametrize(
    ("folder", "count"),
    [("lctsc", 8), ("qin-lung-ct", 5), ("lidc-idri-0001-dicom", 1), ("lung-pet-ct-dx", 2)],
)
def test_real_folders(folder, count):
    with find_series(SHARED / folder) as found:
        assert len(found.series) == count
        assert all(files.patient_known for files in found.series)
        assert not found.problems
