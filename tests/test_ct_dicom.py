import logging
from importlib.util import find_spec

import numpy as np
import pytest
from ct_files import SHARED, dicom_files, make_volume, write_dicom
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, generate_uid

from lungsynth.ct.dicom import read_slice_frames
from lungsynth.ct.discover import find_series
from lungsynth.ct.read import read_volume
from lungsynth.errors import InputError
from lungsynth.geometry import lps_to_voxel

TILT = np.radians(12)


def test_series_is_read_in_hu_and_in_order_whatever_the_file_names(tmp_path):
    volume = make_volume()
    paths = write_dicom(tmp_path, volume, slope=1, intercept=-1024)
    read = read_volume(dicom_files(paths[::-1]))
    np.testing.assert_array_equal(read.hu, volume.hu)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-6)
    assert read.hu.dtype == np.int16


def test_rescale_slope_is_applied(tmp_path):
    volume = make_volume()
    volume.hu[:] = volume.hu // 2 * 2
    read = read_volume(dicom_files(write_dicom(tmp_path, volume, slope=2, intercept=-1000)))
    np.testing.assert_array_equal(read.hu, volume.hu)


@pytest.mark.parametrize("stored", [-2048, 2000])
@pytest.mark.parametrize("kind", ["SS", "US"])  # writers disagree on the sign of the tag
def test_padding_is_air(tmp_path, stored, kind):
    volume = make_volume()

    def pad(ds, index):
        pixels = np.frombuffer(ds.PixelData, np.int16).copy()
        pixels[:7] = stored
        ds.PixelData = pixels.tobytes()
        ds.add_new(0x00280120, kind, stored % 65536 if kind == "US" else stored)

    read = read_volume(dicom_files(write_dicom(tmp_path, volume, pad)))
    assert (read.hu[:, 0, :7] == -1024).all()
    np.testing.assert_array_equal(read.hu[:, 1:], volume.hu[:, 1:])


@pytest.mark.parametrize(
    ("orientation", "flips"), [([-1, 0, 0, 0, -1, 0], (1, 2)), ([-1, 0, 0, 0, 1, 0], (2,)), ([1, 0, 0, 0, -1, 0], (1,))]
)
def test_turned_patients_are_flipped_back_exactly(tmp_path, orientation, flips):
    volume = make_volume()
    paths = write_dicom(tmp_path, volume, lambda ds, i: setattr(ds, "ImageOrientationPatient", orientation))
    read = read_volume(dicom_files(paths))
    np.testing.assert_array_equal(read.hu, np.flip(volume.hu, flips))
    frames = read_slice_frames(dicom_files(paths))
    first = frames[min(frames, key=lambda uid: frames[uid].position_lps_mm[2])]
    voxel = lps_to_voxel(read.affine, first.to_lps(np.array([3]), np.array([4])))[0].round().astype(int)
    assert read.hu[tuple(voxel)] == volume.hu[0, 4, 3]


def test_missing_tags_do_not_matter(tmp_path):
    def strip(ds, index):
        del ds.Modality, ds.PatientID, ds.SliceThickness

    write_dicom(tmp_path, make_volume(), strip)
    (files,) = find_series(tmp_path).series
    assert not files.patient_known
    assert files.patient_id == files.series_id == "1.2.3"
    assert read_volume(files).hu.shape == (6, 12, 16)


def _tilted(ds, index):
    ds.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(TILT)), float(np.sin(TILT))]


def _oblique(ds, index):
    _tilted(ds, index)
    along = index * 2.5 * np.array([0, -np.sin(TILT), np.cos(TILT)])
    ds.ImagePositionPatient = [float(value) for value in along.round(6)]


def _sheared(ds, index):
    ds.ImagePositionPatient = [-30, -40 + index * 0.5, -100 + index * 2.5]


def _two_orientations(ds, index):
    ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1] if index == 3 else [1, 0, 0, 0, 1, 0]


def _two_shapes(ds, index):
    if index == 2:
        ds.Rows, ds.Columns = 16, 12


def _uneven(ds, index):
    ds.ImagePositionPatient = [-30, -40, -100 + index * 2.5 + 0.6 * (index == 3)]


def _duplicate(ds, index):
    ds.ImagePositionPatient = [-30, -40, -100 + (index - (index == 4)) * 2.5]


def _no_pixels(ds, index):
    if index == 1:
        del ds.PixelData


def _no_position(ds, index):
    del ds.ImagePositionPatient


def _multi_frame(ds, index):
    ds.NumberOfFrames = 2


def _not_hu(ds, index):
    ds.RescaleIntercept = 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_tilted, "gantry tilt, 12.0 degrees.*Correct it by resampling"),
        (_oblique, "oblique .*12.00 degrees.*Resample it"),
        (_sheared, "shift sideways by 2.50 mm.*gantry tilt, 11.3 degrees"),
        (_two_orientations, "1 missing slices"),
        (_two_shapes, r"\(12, 16\) and \(16, 12\) pixels"),
        (_uneven, "uneven slice spacing"),
        (_duplicate, "1 duplicate slices, first .* Keep one of each"),
        (_no_pixels, r"_1.dcm: no pixel data"),
        (_no_position, "needs ImagePositionPatient"),
        (_multi_frame, "multi-frame"),
        (_not_hu, "expected CT in HU"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, edit, message):
    paths = write_dicom(tmp_path, make_volume(), edit)
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        read_volume(dicom_files(paths))
    assert str(tmp_path) in str(caught.value)


def test_missing_slice_is_refused(tmp_path):
    paths = write_dicom(tmp_path, make_volume())
    with pytest.raises(InputError, match=r"1 missing slices, first between .* \(5 mm apart, the others 2.5 mm\)"):
        read_volume(dicom_files([*paths[:2], *paths[3:]]))


def test_rounded_positions_only_warn(tmp_path, caplog):
    def jitter(ds, index):
        ds.ImagePositionPatient = [-30, -40, -100 + index * 2.5 + 0.05 * (index == 3)]

    with caplog.at_level(logging.WARNING):
        read = read_volume(dicom_files(write_dicom(tmp_path, make_volume(), jitter)))
    assert "spacing varies by 2.0 %" in caplog.text
    assert read.spacing_mm == pytest.approx((2.5, 0.7, 0.8))


@pytest.mark.parametrize("kept", [300, -20])
def test_truncated_file_is_named(tmp_path, kept):
    path = write_dicom(tmp_path, make_volume())[2]
    path.write_bytes(path.read_bytes()[:kept])
    found = find_series(tmp_path)
    if kept == 300:  # ends in its header: known at once
        assert f"{path.name}: truncated DICOM file" in found.problems[0].message
        return
    with pytest.raises(InputError, match=rf"{path.name}: truncated or damaged DICOM pixels.*copy it again"):
        read_volume(found.series[0])


def test_what_no_decoder_takes_is_one_sentence(tmp_path, caplog):
    def compress(ds, index):
        ds.file_meta.TransferSyntaxUID = JPEGLSLossless
        ds["PixelData"].is_undefined_length = True
        ds.PixelData = encapsulate([b"abcd"])

    paths = write_dicom(tmp_path, make_volume(), compress)
    decoder = any(map(find_spec, ("jpeg_ls", "libjpeg", "gdcm")))
    says = r"damaged DICOM pixels .*copy it again" if decoder else r"compressed as JPEG-LS.*pip install pylibjpeg"
    with pytest.raises(InputError, match=says):
        read_volume(dicom_files(paths))
    assert not caplog.records  # pydicom logs the traceback of every decoder that fails


def test_localizers_radiographs_and_reports_are_passed_over(tmp_path):
    write_dicom(tmp_path / "ct", make_volume())

    def localizer(ds, index):
        ds.ImageType, ds.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], generate_uid()

    def radiograph(ds, index):
        ds.Modality, ds.SeriesInstanceUID = "DX", "9.9"

    write_dicom(tmp_path / "scout", make_volume(shape=(1, 12, 16)), localizer)
    write_dicom(tmp_path / "xray", make_volume(shape=(1, 12, 16)), radiograph)
    (tmp_path / "ct" / "notes").write_text("not an image", encoding="utf-8")
    found = find_series(tmp_path)
    assert [len(files.files) for files in found.series] == [6]
    assert not found.problems


@pytest.mark.skipif(not SHARED.exists(), reason="development data")
def test_slices_without_modality_or_patient():
    (files,) = find_series(SHARED / "small-samples" / "lungmask-slices").series
    volume = read_volume(files)
    assert volume.hu.shape == (2, 512, 512)
    assert volume.hu.min() == -1024
    assert not volume.patient_known
