"""What a file is, whose it is, and what is said of it: values first, then names, then folders, over all sources."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ct_files import make_volume, save_nifti, write_dicom

from lungsynth.ct.annotations import read_lungs, read_nodules
from lungsynth.ct.discover import SortSettings, find_series
from lungsynth.ct.file_kinds import explain_labels, labels_from_text, mask_of, structure_of
from lungsynth.ct.nodule import nodules_from_mask
from lungsynth.ct.read import read_volume
from lungsynth.ct.values import look_at
from lungsynth.ct.write import write_nifti
from lungsynth.errors import InputError

HU = make_volume().hu.T
MASK = (HU > 0).astype(np.uint8)
LUNGS = np.where(np.arange(HU.shape[0])[:, None, None] < 8, 1, 2) * np.ones(HU.shape, np.uint8)
THREE = np.where(HU > 200, 3, LUNGS).astype(np.uint8)


def scans(*sources, **settings):
    with find_series(list(sources), SortSettings(**settings)) as found:
        return {files.series_id: files for files in found.series}, [problem.message for problem in found.problems]


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            save_nifti(path.with_name(f"{path.name}.nii.gz"), content)
    return folder


def kinds(files):
    return {mask.path.name.removesuffix(".nii.gz"): (mask.lung, mask.nodule, mask.finding) for mask in files.masks}


@pytest.mark.parametrize(
    ("array", "labels", "in_hu"),
    [
        (HU, None, True),
        (MASK, (1,), False),
        (MASK * 0.9999999998, (1,), False),
        (MASK * 0, (), False),
        (MASK.astype(np.int16) * 1000, (1000,), False),
        (((HU + 1000) / 6).astype(np.uint8), None, False),
        (MASK * 0.5, None, False),
    ],
)
def test_values_tell_images_from_labels(tmp_path, array, labels, in_hu):
    values = look_at(save_nifti(tmp_path / "v.nii.gz", array))
    assert (values.labels, values.in_hu) == (labels, in_hu)


def test_values_go_before_names_and_names_before_folders(tmp_path):
    write(
        tmp_path,
        lung_segmentation_study__case7=HU,
        lung_segmentation_study__case7_tumor_seg=MASK,
        b__P1=HU[::-1],
        b__lungs__P1=MASK,
        b__lungs__P1_nodule=MASK,
        c__ct=HU[:, ::-1],
        c__segmentations__lung_upper_lobe_left=MASK,
        c__segmentations__lung_lower_lobe_left=1 - MASK,
        c__segmentations__heart=MASK,
        c__segmentations__infection=MASK,
    )
    found, problems = scans(tmp_path)
    assert not problems
    assert kinds(found["case7"]) == {"case7_tumor_seg": ((), (1,), ())}
    assert kinds(found["P1"]) == {"P1": ((1,), (), ()), "P1_nodule": ((), (1,), ())}
    assert kinds(found["c"])["infection"] == ((), (), (1,))
    assert read_lungs(found["c"], read_volume(found["c"])).all(), "lobes are one lung"


def test_sources_are_one_whole_in_any_order(tmp_path):
    uid = "1.2.3.4"
    write(tmp_path, imagesTr__lung_001=HU, labelsTr__lung_001=MASK, scans__s=HU[:, ::-1])
    save_nifti(tmp_path / "scans" / f"{uid}.nii.gz", HU[::-1])
    write(tmp_path, tables__a=f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{uid},1,2,3,4\n,,,,\n")
    (tmp_path / "tables" / "a").rename(tmp_path / "tables" / "annotations.csv")
    sources = [tmp_path / name for name in ("imagesTr", "labelsTr", "scans", "tables")]
    there, back = scans(*sources)[0], scans(*reversed(sources))[0]
    assert there["lung_001"].nodule_mask == back["lung_001"].nodule_mask == tmp_path / "labelsTr" / "lung_001.nii.gz"
    assert len(there[uid].annotations.spheres) == len(back[uid].annotations.spheres) == 1


def test_what_belongs_to_nothing_is_a_problem(tmp_path):
    write(tmp_path, a_ct=HU, b_nodule=MASK, a_mask=MASK, c__lungs=MASK)
    write(tmp_path, **{"boxes.csv": "image,xmin,ymin\na_ct.nii.gz,1,2\n", "notes.txt": "x", "x.bin": "?"})
    found, problems = scans(tmp_path)
    assert {path.name for path in found["a"].unread} == {"a_mask.nii.gz", "boxes.csv"}
    for name in ("b_nodule", "a_mask", "boxes.csv", "x.bin", "c/lungs"):
        assert sum(name in problem for problem in problems) == 1, name
    assert not any("notes" in problem for problem in problems)


def test_a_mask_of_grey_levels_is_no_mask(tmp_path):
    write(tmp_path, a_ct=HU, a_nodule=MASK * 0.5)
    found, problems = scans(tmp_path)
    assert "no labels" in problems[0]
    assert len(found["a"].unread) == 1


def test_several_values_need_a_word(tmp_path):
    write(tmp_path, imagesTr__x_0000=HU, labelsTr__x=THREE, imagesTr__y_0000=HU[::-1], labelsTr__y=MASK)
    found, problems = scans(tmp_path)
    assert list(found) == ["y"], "the scan without a word is left out"
    assert "the values 1, 2, 3" in problems[0]
    found, _ = scans(tmp_path, labels=labels_from_text("1=left lung,2=right lung,3=cancer"))
    assert kinds(found["x"]) == {"x": ((1, 2), (3,), ())}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "lung", "2": "lung", "3": "GGO"}})
    )
    found, _ = scans(tmp_path)
    assert kinds(found["x"]) == {"x": ((1, 2), (), (3,))}
    assert kinds(found["y"]) == {"y": ((1,), (), ())}, "dataset.json goes before the folder labelsTr"
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lung": [1, 2]}}))
    _, problems = scans(tmp_path)
    assert any("the value 3" in problem for problem in problems)


@pytest.mark.parametrize(
    ("structure", "values", "used"),
    [
        ("lung", (1, 2), (1, 2)),
        ("lung", (3, 4, 5), (3, 4)),
        ("lung", (1, 2, 3), None),
        ("nodule", (1, 2), (1, 2)),
        ("nodule", (1, 3), None),
    ],
)
def test_values_that_are_understood_without_a_word(tmp_path, structure, values, used):
    if used is None:
        with pytest.raises(InputError, match="nothing says what they mean"):
            mask_of(tmp_path / "m.nii.gz", values, structure)
    else:
        assert getattr(mask_of(tmp_path / "m.nii.gz", values, structure), structure) == used


def test_words():
    said = {
        name: structure_of(name)
        for name in ("lung nodule", "lung vessels", "LungMask", "GTV-1", "mask", "massachusetts")
    }
    assert said == {
        "lung nodule": "nodule", "lung vessels": "anatomy", "LungMask": "lung", "GTV-1": "nodule", "mask": None,
        "massachusetts": None,
    }  # fmt: skip
    with pytest.raises(InputError, match="written like 1=lung"):
        labels_from_text("lung")
    with pytest.raises(InputError, match=r"value 5, which dataset\.json does not name"):
        explain_labels(Path("x"), (1, 5), {1: "nodule"}, source="dataset.json")


def test_numbers_and_votes_in_nodule_masks():
    mask = np.zeros((1, 6, 12), np.uint8)
    mask[0, 1:3, 1:3], mask[0, 1:3, 3:5], mask[0, 4, 10] = 1, 2, 2
    numbered = nodules_from_mask(mask, np.eye(4), values=(1, 2))
    assert [int(nodule.votes.sum()) for nodule in numbered] == [5, 4], "a number is one nodule, however many pieces"
    voted = nodules_from_mask(mask, np.eye(4), values=(1, 2), votes=True)
    assert [(nodule.readers, int(nodule.votes.sum())) for nodule in voted] == [(2, 12), (2, 2)]


def test_masks_of_several_readers_vote(tmp_path):
    wide, narrow = np.zeros(HU.shape, np.uint8), np.zeros(HU.shape, np.uint8)
    wide[4:8, 4:8, 2:4] = 1
    narrow[5:8, 4:8, 2:4] = 1
    write(tmp_path, a_ct=HU, a_nodule_r1=wide, a_nodule_r2=narrow)
    found, _ = scans(tmp_path)
    (nodule,) = read_nodules(found["a"], read_volume(found["a"]))
    assert (nodule.readers, int((nodule.votes == 2).sum())) == (2, 24)


def test_copies_and_links_are_read_once(tmp_path):
    write(tmp_path, one_ct=HU, one_nodule=MASK)
    shutil.copy(tmp_path / "one_ct.nii.gz", tmp_path / "another_ct.nii.gz")
    write_dicom(tmp_path / "d" / "s", make_volume())
    shutil.copytree(tmp_path / "d" / "s", tmp_path / "d" / "backup of s")
    (tmp_path / "d" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "linked").symlink_to("d", target_is_directory=True)
    with find_series(tmp_path) as found:
        assert [len(files.files) for files in found.series] == [6, 1]
        assert found.series[1].nodule_mask.name == "one_nodule.nii.gz", "the mask of the copy that is left"
        assert sum("copy of" in report.why or "copies of" in report.why for report in found.reports) == 2


def test_a_tar_is_read_like_a_zip_and_writes_nothing_outside(tmp_path):
    write_dicom(tmp_path / "s", make_volume())
    with tarfile.open(tmp_path / "scans.tar.gz", "w:gz") as archive:
        for path in sorted((tmp_path / "s").iterdir()):
            archive.add(path, f"s/{path.name}")
        archive.add(path, "../outside.dcm")
    with find_series(tmp_path / "scans.tar.gz") as found:
        assert len(found.series[0].files) == 6
        (problem,) = found.problems
    assert (
        "1 of its entries are links, devices, or lie outside of it, and were left out, first ../out" in problem.message
    )
    assert not (tmp_path.parent / "outside.dcm").exists()


def test_own_slices_are_no_patients_unless_asked(tmp_path):
    volume = make_volume()
    write_nifti(tmp_path / "images" / "synth-1.nii.gz", volume, descrip="synthetic: lungsynth paper")
    labels = np.where(THREE.T == 3, 255, THREE.T).astype(np.uint8)
    write_nifti(tmp_path / "masks" / "synth-1.nii.gz", labels, volume.affine, descrip="synthetic: lungsynth paper")
    with pytest.raises(InputError, match="synthetic slice that this project made"):
        find_series(tmp_path)
    found, _ = scans(tmp_path, synthetic=True)
    assert kinds(found["synth-1"]) == {"synth-1": ((1,), (2,), (255,))}
