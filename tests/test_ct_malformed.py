"""What readers of CT make of files that are damaged, unclear or hostile: the right values, or one sentence."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from ct_files import dicom_files, make_volume, one_file, save_nifti, write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage

from lungsynth.cohort.prepare import PrepareSettings, look_at_sources
from lungsynth.ct.dicom import looks_like_dicom, read_header
from lungsynth.ct.read import read_mask, read_volume
from lungsynth.ct.series import NoduleSphere, Problem, SeriesFiles
from lungsynth.ct.volume import check_size, same_grid, to_volume_axes
from lungsynth.ct.write import write_nifti
from lungsynth.errors import InputError, naming_file, reason
from lungsynth.hounsfield import check_hu
from lungsynth.io.names import file_stem, readable

# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("../../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "a\nb", "a\0b", "x" * 300, "CON"),
        *("nul.txt", "ü", "scan_\udcff", "-rf x", "a.", "C:x", "a b", "\u202eevil", "\uff11"),
    ],
)
def test_no_id_is_a_path(text):
    stem = file_stem(text)
    assert stem.isascii()
    assert 1 <= len(stem) <= 96
    assert not set(stem) & set("/\\\0: \n")
    assert stem[0] not in ".-"
    assert stem != text
    assert stem == file_stem(text) != file_stem(text + "x")
    readable(text).encode()  # any file can hold it
    assert "\n" not in readable(text)


def test_plain_ids_are_their_own_names():
    for text in ("1.3.6.1.4.1.14519.5.2.1.6279.6001.100621", "LIDC-IDRI-0001", "lung_001", "x" * 96):
        assert file_stem(text) == text
    assert readable(" P\t1 \n x\udcff ") == "P 1 x\\xff"
    files = SeriesFiles(kind="nifti", series_id="a\nb", patient_id="p\udcfe", patient_known=True, files=(Path("x"),))
    assert (files.series_id, files.patient_id) == ("a b", "p\\xfe")
    assert Problem(Path("x"), "a\nb").message == "a b"


def test_whatever_a_reader_raises_is_a_sentence_that_names_the_file(tmp_path):
    errors = [
        MemoryError(),
        RecursionError("maximum"),
        KeyError("rows"),
        OSError(5, "Input/output error"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        LookupError("unknown encoding: x"),
        ValueError(""),
        ZeroDivisionError("a\nb"),
    ]
    for error in errors:
        told = pytest.raises(InputError, match=r"f\.dcm: could not be read \(.+\); copy it again")
        with told as caught, naming_file(tmp_path / "f.dcm"):
            raise error
        assert "Error" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert reason(error)
    with pytest.raises(InputError, match=r"^mine$"), naming_file(tmp_path):
        raise InputError("mine")


# --- MetaImage -----------------------------------------------------------------------------------------------------


def metaimage(folder, name="v.mhd", *, compress=False, **fields):
    image = sitk.GetImageFromArray(make_volume().hu)
    image.SetSpacing((0.8, 0.7, 2.5))
    path = folder / name
    sitk.WriteImage(image, str(path), compress)
    if fields:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.split(" =")[0] not in fields]
        last = [line for line in lines if line.startswith("ElementDataFile")]
        lines = [line for line in lines if line not in last] + [f"{key} = {value}" for key, value in fields.items()]
        lines.sort(key=lambda line: line.startswith("ElementDataFile"))
        path.write_text("\n".join(lines + (last if "ElementDataFile" not in fields else [])) + "\n", encoding="utf-8")
    return one_file(path, "metaimage")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"NDims": "99"}, "NDims = 99"),
        ({"NDims": "-1"}, "NDims = -1"),
        ({"NDims": "3.0"}, "NDims = 3.0, which is no whole number"),
        ({"NDims": "2"}, "NDims = 2 and DimSize"),
        ({"NDims": "4", "DimSize": "16 12 3 2"}, "got 4 dimensions"),
        ({"DimSize": "0 12 6"}, "DimSize = 0 12 6"),
        ({"DimSize": "-16 12 6"}, "DimSize = -16 12 6"),
        ({"DimSize": "99999 99999 99999"}, "99999 x 99999 x 99999 voxels, more than"),
        ({"DimSize": "16 12 7"}, r"v\.raw: truncated, expected 2688 bytes .* got 2304"),
        ({"DimSize": "16 12 5"}, r"v\.raw: holds 384 bytes more than v\.mhd says"),
        ({"ElementType": "MET_HALF"}, "ElementType MET_HALF, which is none of"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "ElementType"),
        ({"ElementNumberOfChannels": "3"}, "3 channels"),
        ({"ElementSpacing": "0.8 nan 2.5"}, "needs 3 numbers as elementspacing"),
        ({"ElementSpacing": "0.8 0.7"}, "needs 3 numbers as elementspacing"),
        ({"ElementSpacing": "0 0.7 2.5"}, "no voxel size"),
        ({"ElementSpacing": "0.8 0.7 1e9"}, "spacing of .* mm is that of no CT"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "needs 9 numbers as transformmatrix"),
        ({"CompressedData": "perhaps"}, "neither True nor False"),
        ({"CompressedData": "True"}, r"v\.raw: damaged"),
        ({"BinaryData": "False"}, "written as text"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scales its values"),
        ({"HeaderSize": "-2"}, "truncated"),
        ({"HeaderSize": "10"}, "truncated"),
        (
            {"CompressedData": "True", "CompressedDataSize": "99"},
            r"v\.raw: holds 2304 bytes .* CompressedDataSize = 99",
        ),
        ({"ElementDataFile": "LIST"}, "no data file is listed"),
        ({"ElementDataFile": "%s%s%n 1 3 1"}, "no name of a data file"),
        ({"ElementDataFile": "v%999d.raw 1 3 1"}, "too wide"),
        ({"ElementDataFile": "v%03d.raw 1 999999999 1"}, "no name of a data file"),
        ({"ElementDataFile": "v%03d.raw 1 6 1"}, r"v001\.raw is missing"),
        ({"ElementDataFile": "/etc/passwd"}, "does not lie beside the header"),
        ({"ElementDataFile": "../v.raw"}, "does not lie beside the header"),
        ({"ElementDataFile": "C:\\v.raw"}, "does not lie beside the header"),
        ({"ElementDataFile": ""}, "does not lie beside the header"),
        ({"ElementDataFile": "w.raw"}, r"data file w\.raw is missing"),
        ({"ElementDataFile": "LOCAL"}, "truncated, expected 2304 bytes"),
    ],
)
def test_metaimage_headers_are_checked(tmp_path, fields, message):
    with pytest.raises(InputError, match=message) as told:
        read_volume(metaimage(tmp_path, **fields))
    assert str(tmp_path) in str(told.value)


def test_metaimage_header_that_contradicts_itself_is_refused(tmp_path):
    files = metaimage(tmp_path)
    path = files.files[0]
    path.write_text("NDims = 2\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match="says ndims twice, 2 and 3"):
        read_volume(files)


@pytest.mark.parametrize("kind", ["list", "numbers", "big endian", "skipped", "element size"])
def test_metaimage_in_other_words_is_the_same(tmp_path, kind):
    volume, files = make_volume(), metaimage(tmp_path)
    raw = (tmp_path / "v.raw").read_bytes()
    for index in range(6):
        (tmp_path / f"v{index + 1:03d}.raw").write_bytes(raw[index * 384 : (index + 1) * 384])
    names = "\n".join(f"v{index + 1:03d}.raw" for index in range(6))
    fields = {
        "list": {"ElementDataFile": f"LIST\n{names}"},
        "numbers": {"ElementDataFile": "v%03d.raw 1 6 1"},
        "big endian": {"BinaryDataByteOrderMSB": "True"},
        "skipped": {"HeaderSize": "-1"},
        "element size": {"ElementSpacing": "0.8 0.7 2.5", "ElementSize": "9 9 9"},
    }[kind]
    metaimage(tmp_path, **fields)
    if kind == "big endian":
        (tmp_path / "v.raw").write_bytes(volume.hu.astype(">i2").tobytes())
    if kind == "skipped":
        (tmp_path / "v.raw").write_bytes(b"head" * 9 + raw)
    again = read_volume(files)
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.spacing_mm == pytest.approx((2.5, 0.7, 0.8))


def some_flips(data, *, head):
    """Streams with one bit flipped that still inflate, to other bytes; the checksum is all that tells."""
    true = zlib.decompressobj(47).decompress(data)
    for position in range(head, len(data), 97):
        for bit in range(8):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            try:
                got = zlib.decompressobj(-15).decompress(bytes(broken[head:]))
            except zlib.error:
                continue
            if len(got) == len(true) and got != true:
                yield bytes(broken)


def test_flipped_bits_of_compressed_volumes_are_found(tmp_path):
    files = metaimage(tmp_path, compress=True)
    packed = tmp_path / "v.zraw"
    flips = list(some_flips(packed.read_bytes(), head=2))
    assert len(flips) > 5
    for broken in flips:
        packed.write_bytes(broken)
        with pytest.raises(InputError, match=r"v\.zraw: (damaged|truncated)"):
            read_volume(files)
    path = save_nifti(tmp_path / "w.nii.gz", make_volume().hu.T)
    flips = list(some_flips(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0), head=10))
    assert len(flips) > 5
    for broken in flips:
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"w\.nii\.gz: (damaged|truncated)"):
            read_volume(one_file(path, "nifti"))


@pytest.mark.parametrize("change", ["short", "long", "bomb"])
def test_compressed_data_are_as_long_as_the_header_says(tmp_path, change):
    files = metaimage(tmp_path, compress=True, CompressedDataSize="0")
    packed = tmp_path / "v.zraw"
    data = packed.read_bytes()
    data = {
        "short": data[:-30],
        "long": data + b"more",
        "bomb": zlib.compress(bytes(10_000_000)),
    }[change]
    packed.write_bytes(data)
    with pytest.raises(InputError, match=r"v\.zraw: (truncated|damaged|holds more)"):
        read_volume(files)


# --- NIfTI ---------------------------------------------------------------------------------------------------------


def nifti(folder, edit=None, *, name="v.nii"):
    path = folder / name
    write_nifti(path, make_volume())
    data = bytearray(path.read_bytes())
    if edit is not None and (changed := edit(data)) is not None:
        data = changed
    path.write_bytes(data)
    return one_file(path, "nifti")


def put(offset, form, *values):
    def edit(data):
        struct.pack_into(form, data, offset, *values)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(112, "<ff", -1.0, 0.0), "scl_slope -1 "),
        (put(112, "<ff", float("inf"), 0.0), "scl_slope inf"),
        (put(112, "<ff", 1.0, float("nan")), "scl_inter nan"),
        (put(42, "<hhh", 30000, 30000, 30000), "30000 x 30000 x 30000 voxels, more than"),
        (put(42, "<h", -16), "expected one CT of 3 dimensions"),
        (put(40, "<h", 99), "expected one CT of 3 dimensions"),
        (put(46, "<h", 5), r"holds 384 bytes after the voxels"),
        (put(46, "<h", 7), r"truncated: expected 2688 bytes"),
        (put(70, "<h", 128), "expected one number a voxel"),
        (put(70, "<h", 12345), "could not be read as NIfTI"),
        (put(108, "<f", 1e9), "voxels begin at byte"),
        (put(108, "<f", float("nan")), "could not be read as NIfTI"),
        (put(252, "<hh", 0, 0), "neither sform nor qform"),
        (put(280, "<f", float("nan")), "sform and qform differ"),
        (put(280, "<f", 1.0), "sform and qform differ"),
        (put(344, "4s", b"ni1\0"), "header file .* without its voxels"),
        (put(344, "4s", b"what"), "not a NIfTI file in spite of its name"),
        (lambda data: data[:200], "not a NIfTI file"),
        (lambda data: data[:0], "not a NIfTI file"),
    ],
)
def test_nifti_headers_are_checked(tmp_path, edit, message):
    with pytest.raises(InputError, match=message) as told:
        read_volume(nifti(tmp_path, edit))
    assert "v.nii" in str(told.value)


def test_nifti_in_other_words_is_the_same(tmp_path):
    volume = make_volume()
    write_nifti(tmp_path / "a.nii.gz", volume)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    metres = bytearray(content)
    for offset in (76, 280, 296, 312):
        struct.pack_into("<4f", metres, offset, *(np.array(struct.unpack_from("<4f", metres, offset)) / 1000))
    struct.pack_into("<f", metres, 76, -1.0 if struct.unpack_from("<f", content, 76)[0] < 0 else 1.0)
    struct.pack_into("<3f", metres, 268, *(np.array(struct.unpack_from("<3f", metres, 268)) / 1000))
    metres[123] = 1
    for name, data in {
        "plain.nii.gz": content,
        "packed.nii": gzip.compress(content),
        "members.nii.gz": gzip.compress(content[:700]) + gzip.compress(content[700:]),
        "padded.nii.gz": gzip.compress(content + bytes(100)) + bytes(512),
        "metres.nii": bytes(metres),
    }.items():
        (tmp_path / name).write_bytes(data)
        again = read_volume(one_file(tmp_path / name, "nifti"))
        np.testing.assert_array_equal(again.hu, volume.hu)
        np.testing.assert_allclose(again.affine, volume.affine, atol=1e-3)
    second = nib.Nifti2Image(volume.hu.T, volume.affine)
    nib.save(second, tmp_path / "two.nii")
    np.testing.assert_array_equal(read_volume(one_file(tmp_path / "two.nii", "nifti")).hu, volume.hu)


def test_axes_of_one_direction_are_no_grid():
    affine = np.array([[-3.2, -3.2, 0, 0], [0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    with pytest.raises(InputError, match="v: two axes of its affine have one direction"):
        to_volume_axes(np.zeros((4, 4, 4)), affine, name="v")


def test_affines_within_a_quarter_of_a_voxel_are_one_grid(tmp_path):
    image = read_volume(nifti(tmp_path))
    mask = np.zeros(image.hu.shape[::-1], np.float32)
    mask[3, 4, 2] = 0.9999999
    for shift, same in ((0.02, True), (0.15, True), (0.3, False)):
        near = image.affine.copy()
        near[0, 3] += shift
        assert same_grid(near, image.affine, image.hu.shape[::-1]) is same
        path = save_nifti(tmp_path / "m.nii.gz", mask, near)
        if same:
            assert read_mask(path, image).sum() == 1
        else:
            with pytest.raises(InputError, match="grid differs"):
                read_mask(path, image)
    mask[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"m\.nii\.gz: .*NaN"):
        read_mask(save_nifti(tmp_path / "m.nii.gz", mask, image.affine), image)
    check_size((512, 512, 2048), name="v")
    with pytest.raises(InputError, match="v: says 4096 x 4096 x 4096 voxels"):
        check_size((4096, 4096, 4096), name="v")


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 4095, "look 1024 too high"),
        (-24, 1416, "look 1024 too high"),
        (-416, 1024, "had the wrong sign"),
        (0, 65535, "stored as if they had no sign"),
        (-2000, -10, "look 1024 too low"),
        (0, 255, "8 bits"),
        (0, 1, "scaled to 0..1"),
        (-160, 240, "cut to a window"),
        (-1000, np.nan, "NaN"),
        (-np.inf, 10, "NaN or infinity"),
    ],
)
def test_values_that_are_no_hu_have_their_own_sentences(low, high, message):
    with pytest.raises(InputError, match=f"v: .*{message}"):
        check_hu(np.array([low, high], np.float32), name="v")


@pytest.mark.parametrize("values", [{"diameter_mm": 301.0}, {"diameter_mm": float("inf")}, {"x": float("nan")}])
def test_spheres_are_places(values):
    with pytest.raises(InputError, match="a nodule's"):
        NoduleSphere(
            series_id="s", centre_lps_mm=(values.get("x", 0.0), 0.0, 0.0), diameter_mm=values.get("diameter_mm", 5.0)
        )


# --- DICOM ---------------------------------------------------------------------------------------------------------


def text_tag(ds, tag, value):
    ds.add_new(tag, "DS", "1")
    ds[tag].VR = "LO"
    ds[tag].value = value


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("RescaleSlope", "NaN", "RescaleSlope is nan"),
        ("RescaleSlope", "-1", "RescaleSlope is -1"),
        ("RescaleSlope", "0", "RescaleSlope is 0"),
        ("RescaleSlope", "1e9", r"RescaleSlope is 1e\+09"),
        ("RescaleSlope", "1,0", "RescaleSlope is '1,0', which is no number"),
        ("RescaleSlope", "", "RescaleSlope is '', which is no number"),
        ("RescaleIntercept", "inf", "RescaleIntercept is inf"),
        ("RescaleIntercept", "-1e7", "RescaleIntercept is -1e"),
        ("PixelSpacing", ["0,7", "0,7"], "needs .* PixelSpacing"),
        ("PixelSpacing", ["0", "0"], "PixelSpacing is "),
        ("PixelSpacing", ["0.7"], "PixelSpacing is "),
        ("ImagePositionPatient", ["nan", "0", "0"], "ImagePositionPatient is "),
        ("ImageOrientationPatient", ["0"] * 6, "ImageOrientationPatient is "),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "ImageOrientationPatient is "),
    ],
)
def test_tags_that_decide_are_named(tmp_path, tag, value, message):
    paths = write_dicom(tmp_path, make_volume(), lambda ds, index: text_tag(ds, tag, value))
    with pytest.raises(InputError, match=rf"\.dcm: .*{message}"):
        read_volume(dicom_files(paths))


def test_tags_that_nobody_needs_may_be_anything(tmp_path):
    def edit(ds, index):
        for tag in ("GantryDetectorTilt", "SliceThickness", "KVP", "PixelPaddingValue", "SpacingBetweenSlices"):
            text_tag(ds, tag, "0,0")

    volume = make_volume()
    np.testing.assert_array_equal(read_volume(dicom_files(write_dicom(tmp_path, volume, edit))).hu, volume.hu)


def test_rescale_that_only_some_slices_have_is_refused(tmp_path):
    def edit(ds, index):
        if index == 3:
            del ds.RescaleIntercept

    with pytest.raises(InputError, match="RescaleIntercept is missing in 1 of 6 slices"):
        read_volume(dicom_files(write_dicom(tmp_path, make_volume(), edit)))


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_are_dicom(tmp_path, implicit):
    volume = make_volume()
    paths = write_dicom(tmp_path / "a", volume)
    bare = []
    for index, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        del ds.file_meta
        bare.append(tmp_path / f"IM{index:04d}")
        ds.save_as(bare[-1], implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert all(looks_like_dicom(path) for path in bare)
    np.testing.assert_array_equal(read_volume(dicom_files(bare)).hu, volume.hu)
    for content in (b"", b"\x08\0", b"text " * 40, bytes(200), b"\x08\0\x99\x99" + bytes(200)):
        (tmp_path / "other").write_bytes(content)
        assert not looks_like_dicom(tmp_path / "other")


def test_zeros_and_endless_tags_are_no_dicom(tmp_path):
    path = tmp_path / "z.dcm"
    with path.open("wb") as stream:
        stream.truncate(200_000_000)
    with pytest.raises(InputError, match=r"z\.dcm: not a DICOM file"):
        read_header(path)
    path.write_bytes(bytes(128) + b"DICM" + b"\x09\0\x01\x10\0\0\0\0" * 100_000)
    with pytest.raises(InputError, match=r"z\.dcm: not a readable DICOM file \(more than"):
        read_header(path)


def enhanced(path, volume):
    """The whole volume in one file, the rescale shared and the places a frame's own."""
    ds = pydicom.dcmread(write_dicom(path.parent / "single", volume)[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, values, measures, turn = Dataset(), Dataset(), Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    measures.PixelSpacing, turn.ImageOrientationPatient = [0.7, 0.8], [1, 0, 0, 0, 1, 0]
    shared.PixelValueTransformationSequence, shared.PixelMeasuresSequence = Sequence([values]), Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([turn])
    frames = []
    for index in range(len(volume.hu)):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [-30, -40, -100 + 2.5 * index]
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, tag)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames[::-1])
    ds.NumberOfFrames = len(frames)
    ds.PixelData = (volume.hu[::-1] + 1024).astype("<i2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_a_stack_in_one_file_is_read(tmp_path):
    volume = make_volume()
    read = read_volume(dicom_files([enhanced(tmp_path / "e.dcm", volume)]))
    np.testing.assert_array_equal(read.hu, volume.hu)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-6)


def test_copies_and_scouts_are_left_out_and_said(tmp_path):
    volume = make_volume(shape=(12, 12, 16))
    paths = write_dicom(tmp_path, volume)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[4].read_bytes())
    scout = pydicom.dcmread(paths[0])
    scout.Rows, scout.Columns, scout.ImageOrientationPatient = 8, 20, [1, 0, 0, 0, 0, -1]
    scout.PixelData = bytes(320)
    scout.save_as(tmp_path / "scout.dcm")
    read = read_volume(dicom_files([*paths, copy, tmp_path / "scout.dcm"]))
    np.testing.assert_array_equal(read.hu, volume.hu)
    assert float(read.modality_info["RescaleIntercept"]) == -1024
    assert "scout.dcm left out" in read.notes[0]
    assert "copy.dcm: 1 slices are in the series twice" in read.notes[1]
    other = pydicom.dcmread(copy)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(copy)
    with pytest.raises(InputError, match="1 duplicate slices"):
        read_volume(dicom_files([*paths, copy]))


@pytest.mark.parametrize("name", ["b.nii", "b.nii.gz", "b.mhd", "b.mha"])
@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"{}", b"\x80\x04.", b"\x1f\x8b\x08\0" * 9])
def test_one_file_without_an_image_costs_itself_alone(tmp_path, name, content):
    save_nifti(tmp_path / "a_ct.nii.gz", make_volume().hu)
    (tmp_path / name).write_bytes(content)
    settings = PrepareSettings().files
    lines, problems = look_at_sources([tmp_path], settings)
    assert any("a_ct.nii.gz | 1 | CT" in line for line in lines)
    said = " ".join([*lines, *(problem.message for problem in problems)])
    assert name in said
