import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from ct_files import make_volume, one_file

from lungsynth.ct.read import read_volume
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps


def save(path, volume, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), compress=False):
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing((0.8, 0.7, 2.5))
    image.SetOrigin((-30, -40, -100))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), compress)
    return path


def read(path):
    return read_volume(one_file(path, "metaimage"))


@pytest.mark.parametrize(("name", "compress"), [("v.mhd", False), ("v.mhd", True), ("v.mha", False)])
def test_world_is_that_of_luna16(tmp_path, name, compress):
    volume = make_volume()
    again = read(save(tmp_path / name, volume, compress=compress))
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(voxel_to_lps(again.affine, np.array([1, 2, 3])), [-30 + 2.4, -40 + 1.4, -100 + 2.5])


def test_prone_direction_is_flipped_back(tmp_path):
    volume = make_volume()
    path = save(tmp_path / "v.mhd", volume, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    again = read(path)
    np.testing.assert_array_equal(again.hu, volume.hu[:, ::-1, ::-1])
    stored = sitk.ReadImage(str(path))
    point = stored.TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose(voxel_to_lps(again.affine, np.array([1, 11 - 2, 15 - 3])), point)


def _truncate_raw(folder):
    raw = folder / "v.raw"
    raw.write_bytes(raw.read_bytes()[:-100])


def _remove_raw(folder):
    (folder / "v.raw").unlink()


def _cut_header(folder):
    header = folder / "v.mhd"
    header.write_text(header.read_text(encoding="utf-8").split("ElementDataFile")[0], encoding="utf-8")


def _no_sizes(folder):
    header = folder / "v.mhd"
    header.write_text(header.read_text(encoding="utf-8").replace("DimSize", "Size"), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_raw, r"v\.raw: truncated, expected 2304 bytes .* got 2204\. Copy it again"),
        (_remove_raw, r"v\.mhd: its data file v\.raw is missing; put it beside"),
        (_cut_header, r"v\.mhd: no ElementDataFile"),
        (_no_sizes, r"v\.mhd: its MetaImage header says NDims = 3 and DimSize = nothing"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    path = save(tmp_path / "v.mhd", make_volume())
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read(path)


def test_truncated_mha_and_zraw_are_named(tmp_path):
    path = save(tmp_path / "v.mha", make_volume())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"v\.mha: truncated"):
        read(path)
    path = save(tmp_path / "w.mhd", make_volume(), compress=True)
    data = tmp_path / "w.zraw"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"w\.(mhd|zraw): .*(truncated|could not be read)"):
        read(path)


def test_oblique_grid_is_refused(tmp_path):
    c, s = np.cos(0.2), np.sin(0.2)
    path = save(tmp_path / "v.mhd", make_volume(), direction=(1, 0, 0, 0, c, -s, 0, s, c))
    with pytest.raises(InputError, match="oblique"):
        read(path)
