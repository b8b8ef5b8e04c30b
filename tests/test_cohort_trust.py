"""A cohort can be trusted: ids name no paths, values are HU, and one bad file costs itself."""

import json
import os
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import SHAPE, SPACING_MM, make_chest, make_chest_volume, write_chest
from ct_files import make_slice

from lungsynth.cohort.collections import recognise
from lungsynth.cohort.hu_check import check_lung_and_tissue, explain_missing_lung
from lungsynth.cohort.lidc_nodules import read_crops, read_cubes
from lungsynth.cohort.prepare import PrepareSettings, _Lanes, prepare_cohort
from lungsynth.cohort.scan_nodules import sphere_nodule
from lungsynth.cohort.schema import nodule_id, slice_id
from lungsynth.cohort.series import SeriesTask
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.ct.series import NoduleSphere, SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps

NODULE = (8, 32, 20, 12.0)
HOSTILE = ("../../x", "/tmp/lungsynth_x", "a\nb", "..", "x" * 300, "CON", "p/../../q", "bad\\name", "é|`x`", "")


# --- no text from an input names a path ----------------------------------------------------------------------------


def dicom_series(folder, series, patient, instance):
    """A chest as DICOM whose ids are hostile."""
    folder.mkdir(parents=True)
    hu, _, _ = make_chest()
    shown = Volume(hu=hu, affine=make_chest_volume().affine, series_id="1.2", patient_id="P")
    for index in range(len(hu)):
        ds = make_slice(shown, index)
        ds.ImagePositionPatient, ds.PixelSpacing = [-180, -160, 5 * index], [5, 5]
        ds.SeriesInstanceUID, ds.PatientID, ds.SOPInstanceUID = series, patient, f"{instance}{index}"
        ds.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return folder


def files_outside(folder, out):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and out not in path.parents}


@pytest.mark.filterwarnings("ignore")  # pydicom's, on ids that are no UIDs
@pytest.mark.parametrize("text", ["../../../escaped", "{tmp}/a\nb|c"])
def test_no_id_of_any_reader_names_a_path(tmp_path, text):
    text = text.format(tmp=tmp_path)
    data, out = tmp_path / "one" / "data", tmp_path / "one" / "two" / "C"
    dicom_series(data / "d", text, text, text)
    accent = "é" if sys.getfilesystemencoding() == "utf-8" else "e"  # other systems cannot name such a file
    write_chest(data / "n", "b" * 150 + f" (1) {accent}", nodule=NODULE)
    pd.DataFrame({"seriesuid": [text], "patient_id": [text]}).to_csv(data / "patients.csv", index=False)
    x, y, z = voxel_to_lps(make_chest_volume().affine, np.array(NODULE[:3])).tolist()
    row = {"seriesuid": text, "coordX": x, "coordY": y, "coordZ": z + 300, "diameter_mm": 12.0}
    pd.DataFrame([row]).to_csv(data / "annotations.csv", index=False)
    with zipfile.ZipFile(data / "z.zip", "w") as archive:
        archive.writestr(f"{text}/../../../zipped.txt", "x")
    write_crops(data / "crops", patient=text)
    before = files_outside(tmp_path, out)
    prepare_cohort([data], out, settings=PrepareSettings(subset=True), workers=1)
    assert files_outside(tmp_path, out) == before
    names = [path.name for path in out.rglob("*")]
    assert all(name.isascii() and len(name) <= 150 and not set(name) & set(" \\|\n()") for name in names)
    assert len(pd.read_csv(out / "series.csv")) == 3
    lists = [json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in ("lungs", "nodules")]
    entries = [entry for datalist in lists for split in datalist.values() for entry in split]
    assert all((out / entry.get("lung", entry.get("nodule"))).is_file() for entry in entries)


@pytest.mark.parametrize("text", HOSTILE)
def test_ids_of_slices_nodules_and_tasks_are_names(tmp_path, text):
    for name in (slice_id(text, 3), nodule_id(text, 3), SeriesRows.path(tmp_path, text).stem):
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name) <= 110
        assert name.isascii()
    assert SeriesRows(task_id=text, fingerprint="f").save(tmp_path).parent.parent == tmp_path
    assert SeriesRows.load(tmp_path, text, fingerprint="f").task_id == text


# --- crops and cubes -----------------------------------------------------------------------------------------------


def write_crops(folder, patient="LIDC-IDRI-0001", spacing=0.7, rating=3.0):
    folder.mkdir(parents=True)
    image = np.full((1, 64, 64), 20, np.uint8)
    image[:, 24:40, 24:40] = 130
    votes = np.zeros((1, 64, 64), np.uint8)
    votes[:, 24:40, 24:40] = 3
    np.savez(folder / "lidc_64.npz", image=image, votes=votes, row=np.array([0]))
    row = {"row": 0, "patient": patient, "nodule": 1, "slice": 0, "px_cut_by_64crop": 0, "pixel_spacing_mm": spacing}
    pd.DataFrame([row]).to_csv(folder / "index.csv", index=False)
    pd.DataFrame([{"patient": patient, "nodule": 1, "malignancy": rating, "texture": 5}]).to_csv(
        folder / "nodules.csv", index=False
    )
    return folder


@pytest.mark.parametrize("rating", [99, -3, 0, np.inf])
def test_ratings_outside_their_scale_are_left_out_and_said(tmp_path, rating):
    (nodule,) = read_crops(write_crops(tmp_path / "c", rating=rating))
    assert nodule.row.malignancy is None
    assert nodule.row.texture == 5
    assert "malignancy" in nodule.notes[0]
    assert "outside 1..5" in nodule.notes[0]


def test_crops_of_impossible_pixels_are_left_out(tmp_path):
    assert not list(read_crops(write_crops(tmp_path / "c", spacing=1e9)))
    crops = write_crops(tmp_path / "d")
    (crops / "index.csv").write_text((crops / "index.csv").read_text(encoding="utf-8") + "x,p,1,0,0,0.7\n")
    with pytest.raises(InputError, match=r"index\.csv: line 3 has no number as row or nodule"):
        list(read_crops(crops))
    (crops / "lidc_64.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match=r"index\.csv|lidc_64\.npz"):
        list(read_crops(crops))


def write_cubes(folder, edit=lambda hu: hu):
    folder.mkdir(parents=True)
    hu = np.full((1, 51, 51, 51), -850, np.int16)
    hu[:, 20:30, 20:30, 20:30] = 30
    mask = (hu > 0).astype(np.uint8)
    np.savez(folder / "cubes.npz", hu=edit(hu), mask=mask)
    (folder / "index.csv").write_text("row,name,lidc_patient\n0,a,LIDC-IDRI-0001\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda hu: (hu // 8 + 128).astype(np.uint8), "8 bits"),
        (lambda hu: np.where(hu > 0, np.nan, hu), "NaN"),
        (lambda hu: (hu + 1000) / 2000, "scaled to 0..1"),
        (lambda hu: hu[:, 1:], "hu and mask of one shape"),
        (lambda hu: np.array(["text"]), "hu and mask of one shape"),
    ],
)
def test_cubes_are_hu(tmp_path, edit, message):
    assert len(list(read_cubes(write_cubes(tmp_path / "good")))) == 1
    with pytest.raises(InputError, match=rf"cubes\.npz.*{message}"):
        list(read_cubes(write_cubes(tmp_path / "bad", edit)))


# --- HU are judged in the lung and in the body ---------------------------------------------------------------------


def check(hu, lung=None, drawn=False, spacing_mm=SPACING_MM):
    hu = np.clip(hu, -1024, 3071).astype(np.int16)
    true = make_chest()[1] if lung is None else lung
    check_lung_and_tissue(hu, true, spacing_mm=spacing_mm, drawn=drawn, name="f")


def test_a_chest_in_hu_passes():
    hu, lung, _ = make_chest()
    check(hu)
    check(np.where(lung, -980, hu))  # emphysema
    check(np.where(lung, -400, hu))  # consolidated
    check(np.where(hu > -300, hu + 100, hu))  # contrast agent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: hu + 1024, "look 1024 too high: RescaleIntercept was not applied"),
        (lambda hu: hu - 1024, "look 1024 too low: RescaleIntercept was applied twice"),
        (lambda hu: -hu, "wrong sign"),
        (lambda hu: 2 * (hu + 1024) - 1024, r"lung at -\d+ and tissue at 1\d\d\d HU"),
        (lambda hu: (hu + 1024) // 6 * 6 - 1020, "grey values of 8 bits that were stretched"),
    ],
)
def test_each_usual_mistake_has_its_own_sentence(change, message):
    hu = make_chest()[0].astype(np.int32)
    if "8 bits" in message:
        hu += np.linspace(0, 400, hu.size).astype(int).reshape(hu.shape)
    with pytest.raises(InputError, match=f"^f: .*{message}"):
        check(change(hu))
    if "1024" in message:
        values = np.clip(change(hu), -1024, 3071).astype(np.int16)
        assert message in explain_missing_lung(values, spacing_mm=SPACING_MM, name="f")


def test_masks_of_other_scans_and_impossible_pixels_are_refused():
    hu, lung, _ = make_chest()
    elsewhere = np.zeros(SHAPE, bool)
    elsewhere[4:12, 10:14, 30:42] = True  # tissue in front
    with pytest.raises(InputError, match="its lung mask does not lie on its lungs"):
        check(hu, elsewhere, drawn=True)
    with pytest.raises(InputError, match="or is flipped or inverted"):
        check(hu, ~lung, drawn=True)
    for spacing in (50.0, 0.3):
        with pytest.raises(InputError, match=r"its lungs are .* mm wide at a pixel spacing of"):
            check(hu, lung, spacing_mm=(5.0, spacing, spacing))
    assert "no lung was found (no air" in explain_missing_lung(
        np.full(SHAPE, 40, np.int16), spacing_mm=SPACING_MM, name="f"
    )


def test_a_nodule_outside_the_scan_is_refused():
    volume = make_chest_volume()
    for centre in ((0.0, 0.0, 5000.0), (1e300, 0.0, 0.0)):
        with pytest.raises(InputError, match=r"P-001: the nodule at .* lies outside the scan"):
            sphere_nodule(volume, NoduleSphere(series_id="P-001", centre_lps_mm=centre, diameter_mm=5))


# --- one bad file costs itself -------------------------------------------------------------------------------------


def task(name):
    files = SeriesFiles(
        kind="nifti", series_id=name, patient_id=name, patient_known=True, files=(Path(f"{name}.nii.gz"),)
    )
    return SeriesTask(files=files, collection=recognise([], folder="f"), folder="", task_id=name, fingerprint="")


def prepare_or_die(given):
    if given.task_id == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return SeriesRows(task_id=given.task_id, fingerprint=str(os.getpid()))


def test_a_process_that_dies_costs_its_file():
    lanes = _Lanes(prepare_or_die, "fork")
    try:
        first = lanes.run(task("a"))
        with pytest.raises(InputError, match=r"deadly\.nii\.gz: the process that read it died"):
            lanes.run(task("deadly"))
        second = lanes.run(task("b"))
    finally:
        lanes.close()
    assert [first.task_id, second.task_id] == ["a", "b"]
    assert first.fingerprint != second.fingerprint
