import hashlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from ct_files import make_volume, one_file, save_nifti

from lungsynth.ct.annotations import read_luna16_annotations, read_lungs
from lungsynth.ct.read import read_mask, read_volume
from lungsynth.ct.series import MaskFile, NoduleSphere
from lungsynth.ct.write import read_plane, write_annotations, write_nifti, write_plane
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps

HU = np.random.default_rng(1).integers(-1000, 400, (5, 6, 7)).astype(np.int16)  # x, y, z


def read(path):
    return read_volume(one_file(path, "nifti"))


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii"])
def test_volume_written_and_read_is_bit_exact(tmp_path, name):
    volume = make_volume()
    write_nifti(tmp_path / name, volume, descrip="synthetic: lungsynth")
    again = read(tmp_path / name)
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    stored = nib.load(tmp_path / name)
    assert stored.get_data_dtype() == np.int16
    assert bytes(stored.header["descrip"]).startswith(b"synthetic: lungsynth")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), volume.hu.T)


def test_same_image_gives_same_bytes_under_any_name(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, make_volume())
    one, other = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.nii.gz", "b.nii.gz"))
    assert one == other
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5)  # gzip: no name, no time
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_plane_written_and_read_is_bit_exact(tmp_path, dtype):
    volume = make_volume()
    plane = volume.plane(2).astype(dtype)
    write_plane(tmp_path / "p.nii.gz", plane, volume.plane_affine(2))
    again, affine = read_plane(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(again, plane)
    assert again.dtype == dtype
    here, there = voxel_to_lps(affine, np.array([0, 3, 4])), voxel_to_lps(volume.affine, np.array([2, 3, 4]))
    np.testing.assert_allclose(here, there, atol=1e-4)
    assert nib.load(tmp_path / "p.nii.gz").shape == (16, 12, 1)  # contract C1.3


def test_plane_is_what_monai_sees(tmp_path):
    transforms = pytest.importorskip("monai.transforms")
    volume = make_volume()
    write_plane(tmp_path / "p.nii.gz", volume.plane(2), volume.plane_affine(2))
    load = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation(axcodes="PLS"),
            transforms.SqueezeDim(dim=-1),
        ]
    )
    seen = load(tmp_path / "p.nii.gz")
    assert seen.shape == (1, 12, 16)
    np.testing.assert_array_equal(np.asarray(seen)[0], volume.plane(2))


def test_other_dtypes_are_not_written(tmp_path):
    with pytest.raises(InputError, match="needs its affine"):
        write_nifti(tmp_path / "v.nii.gz", make_volume().hu)
    with pytest.raises(InputError, match=r"must end in \.nii or \.nii\.gz"):
        write_nifti(tmp_path / "v.img", make_volume())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "RPI", "PSR", "SAL"])
def test_any_axis_aligned_grid_comes_to_one_orientation(tmp_path, codes):
    lps = np.diag([-0.8, -0.7, 2.5, 1.0])
    lps[:3, 3] = 30, 40, -100
    turn = nib.orientations.ornt_transform(nib.io_orientation(lps), nib.orientations.axcodes2ornt(codes))
    stored = nib.Nifti1Image(HU, lps).as_reoriented(turn)
    nib.save(stored, tmp_path / "v.nii.gz")
    volume = read(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume.hu, HU.T)
    np.testing.assert_allclose(volume.affine, lps, atol=1e-4)


def test_trailing_singletons_and_floats_are_taken(tmp_path):
    volume = read(save_nifti(tmp_path / "v.nii.gz", (HU + 0.3).astype(np.float32)[..., None]))
    np.testing.assert_array_equal(volume.hu, HU.T)


def _rotated(degrees):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine[1:3, 1:3] = [[-c, -s], [-s, c]]
    return affine


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.stack([HU, HU], axis=-1), None, r"v.nii.gz: expected one CT of 3 dimensions, got 4 .*Split it"),
        (((HU + 1024) / 1500).astype(np.float32), None, r"v.nii.gz: expected CT in HU.*Convert it back to HU"),
        (((HU + 1024) // 6).astype(np.uint8), None, r"v.nii.gz: expected CT in HU.*grey values of 8 bits"),
        (np.where(HU == HU, np.nan, 0).astype(np.float32), None, "expected CT in HU"),
        (HU, _rotated(10), r"v.nii.gz: the grid is oblique .* 10.00 degrees.*Resample"),
    ],
    ids=["4d", "unit", "grey", "nan", "oblique"],
)
def test_what_is_no_ct_is_refused(tmp_path, array, affine, message):
    with pytest.raises(InputError, match=message):
        read(save_nifti(tmp_path / "v.nii.gz", array, affine))


def test_damaged_files_are_named(tmp_path):
    path = save_nifti(tmp_path / "v.nii.gz", HU)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"v\.nii\.gz: truncated.*copy it again"):
        read(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"v\.nii\.gz: not a NIfTI file"):
        read(path)
    image = nib.Nifti1Image(HU, None)
    nib.save(image, tmp_path / "w.nii.gz")
    with pytest.raises(InputError, match="neither sform nor qform"):
        read(tmp_path / "w.nii.gz")


def test_mask_must_lie_on_its_image(tmp_path):
    volume = read(save_nifti(tmp_path / "v.nii.gz", HU))
    mask = (HU > 0).astype(np.uint8)
    good = save_nifti(tmp_path / "m.nii.gz", mask)
    np.testing.assert_array_equal(read_mask(good, volume), mask.T)
    shifted = np.diag([-1.0, -1.0, 1.0, 1.0])
    shifted[0, 3] = 0.3
    for array, affine in ((mask, shifted), (mask[:-1], None)):
        with pytest.raises(InputError, match=r"bad.nii.gz: the mask's grid differs from its image s.*Resample"):
            read_mask(save_nifti(tmp_path / "bad.nii.gz", array, affine), volume)
    with pytest.raises(InputError, match=r"whole numbers 0\.\.255"):
        read_mask(tmp_path / "v.nii.gz", volume)
    empty = MaskFile(path=save_nifti(tmp_path / "empty.nii.gz", mask * 0), lung=(1,))
    with pytest.raises(InputError, match="the lung mask is empty"):
        read_lungs(replace(one_file(tmp_path / "v.nii.gz", "nifti"), masks=(empty,)), volume)


COLUMNS = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
ROW = NoduleSphere(series_id="a", centre_lps_mm=(1.5, -2.25, 3.0), diameter_mm=6.5)


def test_annotations_written_and_read_are_the_same(tmp_path):
    write_annotations(tmp_path / "annotations.csv", [("a", 1.5, -2.25, 3.0, 6.5)])
    assert (tmp_path / "annotations.csv").read_text(encoding="utf-8").startswith(COLUMNS)
    assert read_luna16_annotations(tmp_path / "annotations.csv") == (ROW,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seriesuid,coordX,coordY\na,1,2\n", "missing columns coordZ, diameter_mm; an annotations file needs"),
        (
            COLUMNS + "a,1,x,3,4\n",
            "row 2 has a coordinate or diameter that is no number",
        ),
        (
            COLUMNS + "a,1,2,3,0\n",
            r"annotations\.csv: row 2: a: .*diameter_mm must be positive.*Mend or delete the row",
        ),
        ("", "could not be read as CSV"),
    ],
)
def test_bad_annotations_are_refused(tmp_path, text, message):
    (tmp_path / "annotations.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_luna16_annotations(tmp_path / "annotations.csv")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (COLUMNS.upper() + "a,1.5,-2.25,3,6.5\n", "utf-8"),
        (COLUMNS.replace(",", ";") + "a;1,5;-2,25;3,0;6,5\r\n", "utf-8-sig"),
        (COLUMNS.replace(",", "\t") + "a\t1.5\t-2.25\t3\t6.5\r\n", "utf-16"),
        ("note," + COLUMNS + "f\xfcr,a,1.5,-2.25,3,6.5\n", "cp1252"),
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, text, encoding):
    (tmp_path / "annotations.csv").write_bytes(text.encode(encoding))
    assert read_luna16_annotations(tmp_path / "annotations.csv") == (ROW,)
