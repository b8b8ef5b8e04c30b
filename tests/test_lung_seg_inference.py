"""Laws of the lung_seg bundle on whole scans: probabilities, candidates, files, exports."""

import csv
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.candidates import CandidateFinder  # noqa: E402
from lung_seg.detector import Detector  # noqa: E402
from lung_seg.fused_inference import fuse, join  # noqa: E402
from lung_seg.grid import Box, covered, resample, resample_part, source_box  # noqa: E402
from lung_seg.inferer import Segmenter  # noqa: E402
from lung_seg.network import DenseUNet  # noqa: E402
from lung_seg.outputs import table_rows  # noqa: E402
from lung_seg.pleura import pleural_distances  # noqa: E402
from lung_seg.readers import read_volume  # noqa: E402
from lung_seg.region import lung_boxes  # noqa: E402
from lung_seg.volumes import list_volumes  # noqa: E402
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export  # noqa: E402
from monai.inferers import SlidingWindowInferer  # noqa: E402

TINY = {"channels": [4, 8], "convolutions": 1, "growth_rate": 2, "dense_layers": 2}
SPACING = (2.0, 1.0, 1.0)


def tiny_network() -> DenseUNet:
    torch.manual_seed(0)
    return DenseUNet(**TINY).eval()


class Density(torch.nn.Module):
    """Lung where it is darker than soft tissue and not empty, nodule where it is bright."""

    def forward(self, image):
        return torch.cat([40 * (image.abs() < 0.9) - 20.0, 20 * image - 14], dim=1)


def sphere(shape, centre, diameter_mm, spacing_mm) -> np.ndarray:
    """Distance-based sphere with an edge of one voxel: 1 inside, 0 outside."""
    places = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    distance = np.sqrt(np.sum((places * np.reshape(spacing_mm, (3, 1, 1, 1))) ** 2, axis=0))
    return np.clip(0.5 + (diameter_mm / 2 - distance) / spacing_mm[1], 0, 1).astype(np.float32)


def chest(depth=24, size=120, spacing_mm=(5.0, 2.5, 2.5)) -> np.ndarray:
    """Body, two lungs and a table in air; int16 HU."""
    _, row, column = np.indices((depth, size, size)) * np.reshape(spacing_mm, (3, 1, 1, 1))
    middle = size * spacing_mm[1] / 2
    hu = np.full((depth, size, size), -1000, dtype=np.int16)
    hu[((row - middle) / 90) ** 2 + ((column - middle) / 125) ** 2 < 1] = 40
    for side in (-60, 60):
        hu[4:20][(((row - middle) / 60) ** 2 + ((column - middle - side) / 45) ** 2 < 1)[4:20]] = -850
    hu[:, round((middle + 110) / spacing_mm[1])] = 100
    return hu


# ---------------------------------------------------------------- grid
@pytest.mark.parametrize("shape", [(23, 31), (40, 52), (90, 70)])
def test_a_part_is_resampled_as_in_the_whole(shape):
    whole = torch.randn(2, 1, 40, 52, generator=torch.Generator().manual_seed(0))
    expected = resample(whole, shape)
    part = Box(rows=(3, 19), columns=(5, 30))
    held = source_box(part, shape, (40, 52))
    cut = whole[(..., *held.index)]
    got = resample_part(cut, shape, part, held=held, extent=(40, 52))
    torch.testing.assert_close(got, expected[(..., *part.index)], atol=1e-4, rtol=0)
    known = covered(held, (40, 52), shape)
    assert known.rows[0] <= part.rows[0]
    assert known.columns[1] >= part.columns[1]


def test_a_box_without_pixels_cannot_be():
    with pytest.raises(ValueError, match=r"0 <= start < stop, got rows \(3, 3\)"):
        Box(rows=(3, 3), columns=(0, 1))


# ---------------------------------------------------------------- where lungs can be
def test_boxes_hold_the_lungs_and_leave_out_the_rest():
    hu, spacing = chest(), (5.0, 2.5, 2.5)
    boxes = lung_boxes(torch.from_numpy(hu), spacing)
    lung = hu == -850
    assert boxes[0] is None
    for plane, box in zip(lung[4:20], boxes[4:20], strict=True):
        outside = plane.copy()
        outside[box.index] = False
        assert not outside.any()
        height, width = (stop - start for start, stop in (box.rows, box.columns))
        assert height * width < 0.6 * plane.size


def test_a_collapsed_lung_stays_in_the_box():
    hu = chest()
    hu[:, :, :60][hu[:, :, :60] == -850] = 30
    boxes = lung_boxes(torch.from_numpy(hu), (5.0, 2.5, 2.5))
    assert boxes[10].columns[0] <= 60 - (60 + 45) / 2.5
    assert boxes[10].columns[1] >= 60 + (60 + 45) / 2.5 - 1


@pytest.mark.parametrize(
    ("hu", "spacing"),
    [(chest()[:, :64, :64], (5.0, 0.7, 0.7)), (np.full((2, 120, 120), -1000, np.int16), (5.0, 2.5, 2.5))],
)
def test_what_is_no_chest_is_taken_whole(hu, spacing):
    boxes = lung_boxes(torch.from_numpy(np.ascontiguousarray(hu)), spacing)
    assert boxes == [Box.whole(hu.shape[1:])] * len(hu)


# ---------------------------------------------------------------- the leaner network
@pytest.mark.parametrize("widths", [(8, 8), (4, 2), (3, 5)])
def test_join_is_cat(widths):
    parts = [torch.randn(2, width, 5, 7).to(torch.bfloat16) for width in widths]
    parts = [part.to(memory_format=torch.channels_last) for part in parts]
    joined = join(parts)
    assert torch.equal(joined, torch.cat(parts, dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(64, 96), (37, 51), (3, 2)])
def test_the_lean_network_equals_the_network(shape):
    torch.manual_seed(0)
    network = DenseUNet().train()
    network(torch.randn(4, 1, 64, 64))  # so that batch norms have something to fold
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 1, *shape)
    torch.testing.assert_close(fuse(network, amp=False)(image), network(image), atol=1e-5, rtol=1e-4)
    rough = fuse(network, amp=True)(image).float()
    assert (torch.sigmoid(rough) - torch.sigmoid(network(image))).abs().max() < 0.02
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other = torch.nn.Identity()
    assert fuse(other, amp=False) is other


# ---------------------------------------------------------------- segmenter
class Brightness(torch.nn.Module):
    """Says lung where it is bright, nodule nowhere."""

    def forward(self, image):
        return torch.cat([50 * image, -50 * torch.ones_like(image)], dim=1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.6, 0.7), (1.7, 1.4)])
def test_segmenter_answers_on_the_images_own_grid(spacing_mm):
    hu = np.full((61, 83), -1000, dtype=np.int16)
    hu[20:40, 30:60] = 400
    maps = Segmenter(Brightness(), spacing_mm=1.0)(hu, spacing_mm)
    assert {name: (m.shape, m.dtype) for name, m in maps.items()} == {
        "lung": (hu.shape, np.float32),
        "nodule": (hu.shape, np.float32),
    }
    agrees = (maps["lung"] > 0.5) == (hu > 0)
    edge = np.zeros_like(agrees)
    edge[18:42, 28:62] = True
    edge[22:38, 32:58] = False  # only pixels beside the edge may differ
    assert agrees[~edge].all()
    assert agrees[edge].mean() > 0.7
    assert (maps["nodule"] < 1e-6).all()


def test_segmenter_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"one slice \(H, W\) in HU, got shape \(1, 4, 4\)"):
        Segmenter(Brightness())(np.zeros((1, 4, 4), np.int16), (1.0, 1.0))


def test_amp_and_crop_change_little():
    """The tolerance that docs/README.md of the bundle states, on a chest, with the shipped weights.

    What cropping changes depends on how far a network sees; random weights see as far as trained ones.
    """
    torch.manual_seed(1)
    plain, shipped = DenseUNet().eval(), DenseUNet().eval()
    shipped.load_state_dict(torch.load(BUNDLE / "models" / "model.pt"))
    hu = torch.from_numpy(chest(depth=12))
    spacing, lung = (10.0, 2.5, 2.5), (hu == -850).expand(2, -1, -1, -1)

    def maps(network, **settings):
        return Segmenter(network, spacing_mm=1.4, **settings).volume(hu, spacing).float()

    cropped = maps(plain, amp=False)
    assert (cropped - maps(plain, amp=False, crop=False)).abs()[lung].max() < 0.01
    assert not cropped[:, 0].any()
    exact, fast = (maps(shipped, amp=amp, crop=False) for amp in (False, True))
    assert (fast - exact).abs()[lung].max() < 0.15
    assert ((fast >= 0.5) != (exact >= 0.5))[lung].float().mean() < 0.005


def test_windows_equal_the_whole_inside():
    network, hu = tiny_network(), torch.from_numpy(chest(depth=1))
    windows = SlidingWindowInferer(roi_size=(96, 96), overlap=0.5, padding_mode="replicate")
    settings = {"spacing_mm": 1.25, "amp": False, "crop": False}
    whole = Segmenter(network, **settings).volume(hu, (5.0, 2.5, 2.5))
    parts = Segmenter(network, inferer=windows, **settings).volume(hu, (5.0, 2.5, 2.5))
    difference = (whole - parts).float().abs()
    assert difference.median() < 1e-3
    assert difference.max() < 0.1  # at the windows' edges
    fitting = Segmenter(network, inferer=SlidingWindowInferer(roi_size=(512, 512)), **settings)
    assert torch.equal(fitting.volume(hu, (5.0, 2.5, 2.5)), whole)


# ---------------------------------------------------------------- candidates
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.8)])
@pytest.mark.parametrize("diameter_mm", [5.0, 9.0, 20.0])
def test_a_ball_comes_back_with_its_place_and_size(spacing_mm, diameter_mm):
    shape = tuple(int(30 / mm) for mm in spacing_mm)
    centre = np.array([size * 0.45 for size in shape])
    nodule = 0.9 * sphere(shape, centre, diameter_mm, spacing_mm)
    (found,) = CandidateFinder()(nodule, np.ones(shape), spacing_mm)
    assert found[:3] == pytest.approx(centre, abs=0.35)
    assert found[3] == pytest.approx(diameter_mm, rel=0.12)
    assert found[4] == pytest.approx(0.9, abs=0.08)


def test_a_faint_nodule_has_the_size_of_a_clear_one():
    nodule = sphere((30, 40, 40), (15, 20, 20), 12.0, (1, 1, 1))
    clear, faint = (CandidateFinder()(height * nodule, nodule, (1, 1, 1))[0] for height in (1.0, 0.3))
    assert faint[3] == pytest.approx(clear[3])
    assert faint[4] == pytest.approx(0.3, abs=1e-3)


def test_a_single_slice_has_discs():
    nodule = sphere((1, 40, 40), (0, 20, 15), 10.0, (1, 0.7, 0.7))
    (found,) = CandidateFinder()(nodule, nodule, (3.0, 0.7, 0.7))
    assert found[:3] == pytest.approx([0, 20, 15], abs=0.1)
    assert found[3] == pytest.approx(10.0, rel=0.08)


def test_two_balls_that_touch_faintly_stay_two():
    shape, spacing = (24, 24, 40), (1.0, 1.0, 1.0)
    centres = [(12, 12, 12), (12, 12, 27)]
    nodule = np.maximum(*(sphere(shape, centre, 10.0, spacing) for centre in centres))
    bridge = np.zeros(shape, dtype=np.float32)
    bridge[11:14, 11:14, 12:28] = 0.25
    found = CandidateFinder(threshold=0.1)(np.maximum(0.9 * nodule, bridge), np.ones(shape), spacing)
    assert sorted(found[:, 2]) == pytest.approx([12, 27], abs=0.3)
    assert found[:, 3] == pytest.approx([10, 10], rel=0.1)


def test_one_ball_with_a_noisy_top_stays_one():
    nodule = sphere((24, 24, 24), (12, 12, 12), 14.0, (1, 1, 1))
    noisy = nodule * np.random.default_rng(0).uniform(0.8, 0.95, nodule.shape)
    assert len(CandidateFinder()(noisy, nodule, (1, 1, 1))) == 1


def test_small_and_outside_candidates_are_left_out_and_the_pleura_is_not():
    shape, spacing = (20, 220, 220), (2.0, 1.0, 1.0)
    lung = np.zeros(shape, dtype=np.float32)
    lung[:, 60:160, 40:120] = 1
    spheres = {"inside": (10, 100, 80), "at the pleura": (10, 100, 122), "outside": (10, 100, 160)}
    nodule = np.max([sphere(shape, centre, 10.0, spacing) for centre in spheres.values()], axis=0)
    nodule[3, 70, 50] = 1  # one voxel
    found = CandidateFinder()(nodule, lung, spacing)
    assert sorted(found[:, 2]) == pytest.approx([80, 122], abs=0.3)
    crop = CandidateFinder()(nodule[:, 80:120, 140:180], lung[:, 80:120, 140:180], spacing)
    assert crop[:, 1:3] == pytest.approx(np.array([[20, 20]]), abs=0.3), "a crop need not show lung"


def test_candidates_come_by_probability_and_none_are_an_empty_table():
    shape = (12, 40, 40)
    nodule = 0.4 * sphere(shape, (6, 10, 10), 8.0, (1, 1, 1)) + 0.9 * sphere(shape, (6, 28, 28), 8.0, (1, 1, 1))
    found = CandidateFinder()(nodule, np.ones(shape), (1, 1, 1))
    assert found[:, 4] == pytest.approx([0.9, 0.4], abs=0.02)
    nothing = CandidateFinder()(np.zeros(shape), np.ones(shape), (1, 1, 1))
    assert (nothing.shape, nothing.dtype) == ((0, 5), np.float32)
    with pytest.raises(ValueError, match=r"one shape, got \(12, 40, 40\) and \(1, 40, 40\)"):
        CandidateFinder()(nodule, nodule[:1], (1, 1, 1))
    with pytest.raises(ValueError, match=r"threshold lies in \(0, 1\)"):
        CandidateFinder(threshold=0)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, 1), (-1, 1, -1)])
def test_rows_are_lps_millimetres(signs):
    affine = np.zeros((4, 4))  # (row, column, slice) -> RAS, rows run along y, columns along x
    affine[[1, 0, 2], [0, 1, 2]] = np.array([0.7, 0.8, 2.5]) * np.array(signs)
    affine[:, 3] = [10, 20, -30, 1]
    (row,) = table_rows("a", np.array([[4, 7, 9, 6.0, 0.5]]), affine, [3.0])
    x, y, z = affine[:3, :3] @ [7, 9, 4] + affine[:3, 3]
    assert [row[key] for key in ("x_mm", "y_mm", "z_mm")] == pytest.approx([-x, -y, z])
    assert (row["diameter_mm"], row["probability"], row["pleura_distance_mm"]) == (6.0, 0.5, 3.0)


def test_pleural_distance_is_to_the_edge_and_not_to_a_vessel():
    lung = np.zeros((20, 120, 120), dtype=np.float32)
    lung[:, 20:100, 20:100] = 1
    lung[:, 58:62, 48:52] = 0  # a vessel
    lung[:, 60, 20:50] = 0  # and one that reaches the edge
    places = np.array([[10, 60, 35], [10, 30, 60], [10, 98, 60], [10, 110, 60]])
    found = pleural_distances(lung, places, (2.0, 0.8, 0.8))
    assert found == pytest.approx([15.5 * 0.8, 10.5 * 0.8, 1.5 * 0.8, 0], abs=1.2)
    assert not pleural_distances(np.zeros_like(lung), places, (2.0, 0.8, 0.8)).any()


# ---------------------------------------------------------------- detector
def nodule_scan() -> tuple[np.ndarray, tuple[float, float, float]]:
    hu, spacing = chest(), (5.0, 2.5, 2.5)
    inside = sphere(hu.shape, (12, 60, 35), 25.0, spacing) > 0.5
    hu[inside] = 300
    return hu, spacing


def test_the_detector_finds_the_nodule_again_and_again_the_same():
    hu, spacing = nodule_scan()
    detector = Detector(Segmenter(Density(), spacing_mm=2.5, amp=False), operating_point=0.4)
    found, again = detector(hu, spacing), detector(hu, spacing)
    assert all(np.array_equal(found[key], again[key]) for key in found)
    assert found["candidates"][0, :3] == pytest.approx([12, 60, 35], abs=0.5)
    assert found["nodule"].dtype == found["lung"].dtype == np.float16
    assert found["nodule"].shape == found["lung"].shape == hu.shape
    assert detector.operating_point == 0.4


@pytest.mark.parametrize("shape", [(1, 120, 120), (5, 64, 64), (1, 3, 2)])
def test_the_detector_takes_slices_and_crops(shape):
    hu = np.ascontiguousarray(chest()[10 : 10 + shape[0], : shape[1], : shape[2]])
    found = Detector(Segmenter(tiny_network(), spacing_mm=0.7))(hu, (1.0, 0.7, 0.7))
    assert found["nodule"].shape == shape
    assert found["candidates"].shape[1] == 5


def test_the_detector_names_what_it_cannot_take():
    detector = Detector(Segmenter(Density()))
    with pytest.raises(ValueError, match=r"Give one slice as \(1, H, W\)"):
        detector(np.zeros((4, 4), np.int16), (1, 1, 1))
    with pytest.raises(ValueError, match=r"positive spacing in mm along each axis, got \(1, 0, 1\)"):
        detector(np.zeros((1, 4, 4), np.int16), (1, 0, 1))
    with pytest.raises(ValueError, match=r"operating_point lies in \[0, 1\], got 2"):
        Detector(Segmenter(Density()), operating_point=2)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("suffix", ["a.nii.gz", "a.mha"])
def test_a_file_is_read_as_hu_with_its_place(tmp_path, suffix):
    hu = np.random.default_rng(0).integers(-1024, 3071, (5, 4, 3)).astype(np.int16)
    affine = np.array([[-0.7, 0, 0, 10], [0, 0.8, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
    if suffix.endswith("gz"):
        nibabel.save(nibabel.Nifti1Image(hu, affine), tmp_path / suffix)
    else:
        image = sitk.GetImageFromArray(hu.T)
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
        image.SetOrigin((-10, -20, -30))
        sitk.WriteImage(image, str(tmp_path / suffix))
    got, place = read_volume(tmp_path / suffix)
    assert got.dtype == np.int16
    assert np.array_equal(got, hu)
    np.testing.assert_allclose(place, affine, atol=1e-6)


def test_scaled_values_become_hu(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2.0, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii")[0][1, 2, 3] == 2 * 23 - 1024


def write_dicom(folder: Path, hu: np.ndarray, leave_out: tuple[int, ...] = ()) -> None:
    """A series of slices 2.5 mm apart, (D, H, W)."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in set(range(len(hu))) - set(leave_out):
        plane = sitk.GetImageFromArray(hu[index][None])
        plane.SetSpacing((0.7, 0.8, 2.5))
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.3",
            "0008|0018": f"1.2.3.{index}",
            "0020|0013": str(index),
            "0020|0032": f"-10\\-20\\{2.5 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(plane)


def test_a_dicom_series_is_found_and_read_and_a_gap_is_named(tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    write_dicom(tmp_path / "whole", hu)
    write_dicom(tmp_path / "gap", hu, leave_out=(3,))
    entries = {entry["name"]: entry for entry in list_volumes(tmp_path)}
    assert set(entries) == {"whole", "gap"}
    got, affine = read_volume(entries["whole"]["image"], series=entries["whole"]["series"])
    assert np.array_equal(got, hu.T)
    np.testing.assert_allclose(affine @ [0, 0, 1, 1], [10, 20, 2.5, 1], atol=1e-6)
    with pytest.raises(ValueError, match=r"gap: expected evenly spaced slices, got steps of 2\.50 to 5\.00 mm"):
        read_volume(entries["gap"]["image"], series=entries["gap"]["series"])


def test_equal_names_get_a_number_and_nothing_is_named(tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.mhd"):
        (tmp_path / name).touch()
    assert [entry["name"] for entry in list_volumes(tmp_path)] == ["a_1", "a_2", "b"]
    with pytest.raises(ValueError, match=r"found none\. Give --dataset_dir FOLDER"):
        list_volumes(tmp_path / "empty")


# ---------------------------------------------------------------- the bundle as a whole
def workflow_on(source: Path, out: Path, network: torch.nn.Module, **settings) -> ConfigWorkflow:
    torch.save(network.state_dict(), out.with_suffix(".pt"))
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "inference.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        dataset_dir=str(source),
        output_dir=str(out),
        ckpt_path=str(out.with_suffix(".pt")),
        device="cpu",
        **{**TINY, **settings},
    )
    workflow.initialize()
    return workflow


@pytest.fixture(scope="module")
def inferred(tmp_path_factory) -> tuple[ConfigWorkflow, Path, np.ndarray, np.ndarray]:
    """A folder with one good and two bad files, through inference.json."""
    root = tmp_path_factory.mktemp("inference")
    source, affine = root / "source", np.diag([-0.8, 0.8, 2.5, 1.0])  # left, anterior, superior
    source.mkdir()
    hu = np.random.default_rng(0).integers(-1000, 100, (30, 20, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, affine), source / "one.nii.gz")
    nibabel.save(nibabel.Nifti1Image((hu / 1000 + 1).astype(np.float32), affine), source / "normalised.nii.gz")
    (source / "broken.nii.gz").write_bytes(b"not a NIfTI")
    workflow = workflow_on(source, root / "out", tiny_network(), candidate_threshold=0.3, min_probability=0.0)
    workflow.run()
    return workflow, root / "out", hu, affine


def test_inference_writes_maps_on_the_images_grid(inferred):
    workflow, out, hu, affine = inferred
    maps = {kind: nibabel.load(out / f"one_{kind}.nii.gz") for kind in ("lung", "nodule", "label")}
    for image in maps.values():
        assert image.shape == hu.shape
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, affine)
    detector = workflow.parser.get_parsed_content("detector")
    volume = hu[:, ::-1].transpose(2, 1, 0)  # slices upwards, rows to posterior, columns to the patient's left
    found = detector(np.ascontiguousarray(volume), (2.5, 0.8, 0.8))
    back = found["nodule"].transpose(2, 1, 0)[:, ::-1]
    np.testing.assert_allclose(maps["nodule"].get_fdata(), back, atol=1 / 255)
    label = np.asarray(maps["label"].dataobj)
    assert np.array_equal(label == 2, back >= 0.5)
    assert np.array_equal(np.asarray(maps["lung"].dataobj), label > 0)
    assert set(np.unique(label)) <= {0, 1, 2}


def test_inference_writes_a_table_in_lps(inferred):
    workflow, out, hu, affine = inferred
    with (out / "candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    volume = np.ascontiguousarray(hu[:, ::-1].transpose(2, 1, 0))
    expected = workflow.parser.get_parsed_content("detector")(volume, (2.5, 0.8, 0.8))["candidates"]
    assert rows
    assert len(rows) == len(expected)
    for row, (plane, line, column, diameter, probability) in zip(rows, expected, strict=True):
        x, y, z = (affine @ [column, hu.shape[1] - 1 - line, plane, 1])[:3]
        assert [float(row[key]) for key in ("x_mm", "y_mm", "z_mm")] == pytest.approx([-x, -y, z], abs=2e-3)
        assert float(row["diameter_mm"]) == pytest.approx(diameter, abs=1e-3)
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-3)
        assert float(row["pleura_distance_mm"]) >= 0
    assert not list(out.glob("*part*"))


def test_bad_files_are_told_and_do_not_stop_the_others(inferred, tmp_path):
    workflow, out, _, _ = inferred
    problems = workflow.parser.get_parsed_content("problems").by_name
    assert set(problems) == {"broken", "normalised"}
    assert "expected CT in HU" in problems["normalised"]
    assert "cannot be read" in problems["broken"]
    assert not list(out.glob("broken*")) + list(out.glob("normalised*"))
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "broken.nii").write_bytes(b"not a NIfTI")
    with pytest.raises(RuntimeError) as error:
        workflow_on(tmp_path / "only", tmp_path / "out", tiny_network()).run()
    assert "None of 1 volumes could be segmented" in str(error.value.__cause__ or error.value)


def test_other_networks_fit_the_detector(tmp_path):
    overlay = tmp_path / "inference_other.json"
    unet = {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    }
    overlay.write_text(json.dumps({"network_def": unet}))
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / "inference.json"), str(overlay)],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        ckpt_path=str(tmp_path / "unet.pt"),
        device="cpu",
    )
    network = workflow.parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    found = workflow.parser.get_parsed_content("detector")(chest(depth=6), (10.0, 2.5, 2.5))
    assert found["lung"].shape == (6, 120, 120)


# ---------------------------------------------------------------- exports
def export_arguments(tmp_path: Path, network: torch.nn.Module) -> dict:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    configs = {name: str(BUNDLE / "configs" / f"{name}.json") for name in ("metadata", "inference")}
    return {
        "net_id": "network_def",
        "ckpt_file": str(tmp_path / "model.pt"),
        "meta_file": configs["metadata"],
        "config_file": configs["inference"],
        **TINY,
    }


def test_torchscript_equals_the_network_at_any_size(tmp_path):
    network, image = tiny_network(), torch.randn(2, 1, 37, 50, generator=torch.Generator().manual_seed(0))
    ckpt_export(filepath=str(tmp_path / "model.ts"), **export_arguments(tmp_path, network))
    exported = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(exported(image), network(image))


def test_onnx_equals_the_network_at_multiples_of_its_coarsest_pixel(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    network = tiny_network()
    axes = {0: "batch", 2: "height", 3: "width"}
    onnx_export(
        filepath=str(tmp_path / "model.onnx"),
        use_trace=True,
        input_shape=[1, 1, 32, 32],
        converter_kwargs={
            "dynamo": False,
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_axes": {"image": axes, "pred": axes},
        },
        **export_arguments(tmp_path, network),
    )
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for shape in [(1, 1, 32, 32), (2, 1, 46, 50)]:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(image).detach(), atol=1e-5, rtol=1e-4)
