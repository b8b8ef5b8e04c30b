"""Laws of lung_seg from file to file: detector, readers, the bundle as a whole, exports."""

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

from lung_seg.detector import Detector
from lung_seg.inferer import Segmenter
from lung_seg.readers import read_volume
from lung_seg.volumes import list_volumes
from lung_seg_toys import TINY_CONFIG, Density, chest, sphere, tiny_network
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export


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


def test_a_look_at_what_changed_is_one_at_the_whole_slice():
    """With a network that sees 40 pixels around each; its windows begin where its coarsest pixels do."""
    before, spacing = chest(depth=12, size=150, spacing_mm=(5.0, 2.0, 2.0))[10], (2.0, 2.0)
    after = before.copy()
    after[70:78, 40:48] = 60
    segmenter = Segmenter(tiny_network(), spacing_mm=1.6, amp=False, reach_px=80)
    detector = Detector(segmenter)
    known, whole = detector.look(before, spacing), detector.look(after, spacing)
    again = detector.look_again(known, after, spacing, [(70, 40, 78, 48)])
    np.testing.assert_allclose(again.look.maps, whole.look.maps, atol=2e-3)
    assert not np.allclose(known.look.maps, whole.look.maps, atol=2e-3)
    np.testing.assert_array_equal(known.look.maps, detector.look(before, spacing).look.maps)  # not written to
    called = detector(before[None], (2.0, *spacing))
    shown = (np.asarray(known.look.maps)[0] > 0) & (called["lung"][0] > 0)
    assert np.abs(np.asarray(known.look.maps)[0] - called["lung"][0])[shown].mean() < 0.02
    outside = detector.look_again(known, after, spacing, [(0, 0, 2, 2)])
    np.testing.assert_array_equal(outside.look.maps, known.look.maps)


def test_the_detector_names_what_it_cannot_take():
    detector = Detector(Segmenter(Density()))
    with pytest.raises(ValueError, match=r"Give one slice as \(1, H, W\)"):
        detector(np.zeros((4, 4), np.int16), (1, 1, 1))
    with pytest.raises(ValueError, match=r"positive spacing in mm along each axis, got \(1, 0, 1\)"):
        detector(np.zeros((1, 4, 4), np.int16), (1, 0, 1))
    with pytest.raises(ValueError, match=r"operating_point lies in \[0, 1\], got 2"):
        Detector(Segmenter(Density()), operating_point=2)


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
        **{**TINY_CONFIG, **settings},
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
        "in_channels": 3,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    }
    overlay.write_text(json.dumps({"network_def": unet}), encoding="utf-8")
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


def export_arguments(tmp_path: Path, network: torch.nn.Module) -> dict:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    configs = {name: str(BUNDLE / "configs" / f"{name}.json") for name in ("metadata", "inference")}
    return {
        "net_id": "network_def",
        "ckpt_file": str(tmp_path / "model.pt"),
        "meta_file": configs["metadata"],
        "config_file": configs["inference"],
        **TINY_CONFIG,
    }


def test_torchscript_equals_the_network_at_any_size(tmp_path):
    network, image = tiny_network(), torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
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
        input_shape=[1, 3, 32, 32],
        converter_kwargs={
            "dynamo": False,
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_axes": {"image": axes, "pred": axes},
        },
        **export_arguments(tmp_path, network),
    )
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for shape in [(1, 3, 32, 32), (2, 3, 48, 52)]:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(image).detach(), atol=1e-5, rtol=1e-4)
