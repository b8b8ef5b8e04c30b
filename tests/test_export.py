import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from fake_bundles import edit_config, write_fake_bundles
from PIL import Image
from placement_toys import add_lung, add_nodule, group_at, write_catalogue
from pydicom.pixels import apply_modality_lut

from lungsynth.compositing.render import Renderer
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.export.formats import FORMATS
from lungsynth.export.growth import Growth, variants
from lungsynth.export.split import PARTS
from lungsynth.export.writer import ExportJob, Shard, ShardWriter, export_catalogue
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import write_json
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe, read_catalogue
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.rules import PlacementRules, resolve

N = 6


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    """Six samples on two lungs of different spacing, some with two nodules."""
    folder = tmp_path_factory.mktemp("layers")
    library = AssetLibrary(folder)
    lungs = [add_lung(library, spacing, seed=seed) for seed, spacing in enumerate([(0.7, 0.7), (0.9, 0.8)])]
    nodules = [add_nodule(library, 6.0, category="ground_glass", weights="w"), add_nodule(library, 9.0)]
    shapes = [LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm) for lung in lungs]
    recipes = []
    for index in range(N):
        places = [(0.2, 0.4 + index / 50), (0.8, 0.5)][: 1 + index % 2]
        group = group_at(nodules[index % 2], *places)
        placed = resolve(shapes[index % 2], group, PlacementRules()).placements
        recipes.append(make_recipe(lungs[index % 2], group, placed, seed=index, weights_nodule="w"))
    library.save_table()
    return write_catalogue(recipes, folder / "catalogue.parquet")


def export(catalogue: Path, out: Path, kind: str, **settings: object) -> Path:
    how = {key: settings.pop(key) for key in ("begin", "end", "workers", "engine") if key in settings}
    export_catalogue(ExportJob(catalogue=catalogue, out=out, format=kind, **settings), **how)
    return out


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def rendered(catalogue: Path) -> dict:
    renderer = Renderer(AssetLibrary(catalogue.parent))
    return {recipe.id: renderer.render(recipe) for recipe in read_catalogue(catalogue)}


def need(kind: str) -> None:
    pytest.importorskip({"dicom": "highdicom", "zarr": "zarr"}.get(kind, "json"))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_bytes_again_and_in_pieces(catalogue, tmp_path, kind, monkeypatch):
    need(kind)
    first = files(export(catalogue, tmp_path / "a", kind))
    assert first == files(export(catalogue, tmp_path / "b", kind))
    # Cut off in the middle of the second part: its files are there, damaged, and its record is not.
    out = tmp_path / "c"
    monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], shard_size=2))
    pieces = files(export(catalogue, tmp_path / "d", kind))
    job = ExportJob(catalogue=catalogue, out=out, format=kind)
    ShardWriter(job).write(Shard(0, 2))
    ShardWriter(job).write(Shard(2, 4))
    job.record(Shard(2, 4)).unlink()
    victim = next(path for path in sorted(out.rglob("*")) if path.is_file() and not path.parent.name.startswith("."))
    victim.write_bytes(b"half")
    job.record(Shard(0, 2)).unlink()
    write_json(out / "export.json", job.identity(), indent=2, sort_keys=True)
    assert files(export(catalogue, out, kind)) == pieces
    if not FORMATS[kind].one_file and kind not in ("webdataset", "zarr"):
        labels = {name: content for name, content in first.items() if ".parts" not in name}
        assert labels == {name: content for name, content in pieces.items() if ".parts" not in name}


def test_checksums_are_those_of_sha256sum(catalogue, tmp_path):
    out = export(catalogue, tmp_path / "out", "png", pairs=True)
    lines = [line.split("  ") for line in (out / "checksums.sha256").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * 2 * N
    for digest, name in lines:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_ranges_fill_one_folder_to_the_same_labels(catalogue, tmp_path):
    whole = export(catalogue, tmp_path / "whole", "nifti")
    out = tmp_path / "ranges"
    at_work = out / ".another.nii.gz.tmp"  # of a range that still writes
    for begin, end in ((4, 6), (0, 3), (2, 5)):
        export(catalogue, out, "nifti", begin=begin, end=end)
        at_work.touch()
        assert at_work.exists()
    export(catalogue, out, "nifti", begin=0, end=1)
    assert not at_work.exists()
    for name in ("checksums.sha256", "annotations.csv", "coco.json", "datalist.json", "detection.json"):
        assert sorted((out / name).read_text(encoding="utf-8")) == sorted((whole / name).read_text(encoding="utf-8"))
    assert (out / "checksums.sha256").read_bytes() == (whole / "checksums.sha256").read_bytes()


def test_workers_change_no_byte(catalogue, tmp_path):
    assert files(export(catalogue, tmp_path / "a", "nifti")) == files(
        export(catalogue, tmp_path / "b", "nifti", workers=2)
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """An enhancer that draws a bright spot on each lung, and a label check that minds."""
    folder = write_fake_bundles(tmp_path_factory.mktemp("bundles"), "exporting")
    edit_config(folder, "cyclegan", "enhancer", spot_hu=300)
    edit_config(folder, "lung_seg", "detector", above_hu=200)
    return folder


def test_a_stop_and_workers_change_no_byte_of_an_enhanced_export(
    catalogue, tmp_path, monkeypatch, bundles, forked_workers
):
    monkeypatch.setitem(FORMATS, "nifti", replace(FORMATS["nifti"], shard_size=2))
    whole = export(catalogue, tmp_path / "whole", "nifti", enhance=True, bundles=bundles)
    out = tmp_path / "stopped"
    job = ExportJob(catalogue=catalogue, out=out, format="nifti", enhance=True, bundles=bundles)
    ShardWriter(job).write(Shard(0, 2))
    write_json(out / "export.json", job.identity(), indent=2, sort_keys=True)
    kept = [np.load(path) for path in (out / ".enhanced").iterdir()]
    assert [int(share.min()) for _, share in kept] == [0, 0], "the spot is blended back, and that is kept with the lung"
    assert files(export(catalogue, out, "nifti", enhance=True, bundles=bundles, workers=2)) == files(whole)
    plain = export(catalogue, tmp_path / "plain", "nifti")
    for path in (plain / "images").iterdir():
        changed = read_plane(whole / "images" / path.name)[0] - read_plane(path)[0]
        assert set(np.unique(changed)) == {0, 1}


@pytest.mark.parametrize(
    ("name", "component", "settings", "part"),
    [
        ("cyclegan", "enhancer", {"spot_hu": 250}, "enhancer_settings"),
        ("lung_seg", "detector", {"operating_point": 0.4}, "label_check_settings"),
    ],
)
def test_an_enhanced_export_does_not_go_on_with_other_settings(
    catalogue, tmp_path, bundles, name, component, settings, part
):
    mine = shutil.copytree(bundles, tmp_path / "bundles")
    job = {"enhance": True, "bundles": bundles, "end": 1}
    out = export(catalogue, tmp_path / "out", "png", **job)
    before = files(out)
    claimed = ExportJob(catalogue=catalogue, out=out, format="png", enhance=True, bundles=mine).identity()
    assert claimed == json.loads((out / "export.json").read_text(encoding="utf-8")), "the same settings elsewhere"
    edit_config(mine, name, component, **settings)
    with pytest.raises(InputError, match=f"holds another run \\({part} is"):
        export(catalogue, out, "png", enhance=True, bundles=mine)
    assert files(out) == before


def test_nifti_and_labels_say_what_was_rendered(catalogue, tmp_path):
    out = export(catalogue, tmp_path / "out", "nifti")
    samples = rendered(catalogue)
    table = pd.read_csv(out / "annotations.csv")
    coco = json.loads((out / "coco.json").read_text(encoding="utf-8"))
    detection = json.loads((out / "detection.json").read_text(encoding="utf-8"))
    assert list(table.columns) == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm", "texture"]
    textures = [nodule.category for recipe in read_catalogue(catalogue) for nodule in recipe.nodules]
    assert list(table["texture"]) == textures
    listed = {entry["image"]: entry for part in PARTS for entry in detection[part]}
    assert detection["categories"] == ["ground_glass", "solid"]
    for number, (name, sample) in enumerate(samples.items(), start=1):
        np.testing.assert_array_equal(read_plane(out / f"images/{name}.nii.gz")[0], sample.image)
        label, affine = read_plane(out / f"masks/{name}.nii.gz")
        np.testing.assert_array_equal(label, sample.label)
        np.testing.assert_allclose(affine, sample.affine, atol=1e-5)
        np.testing.assert_allclose(table[table.seriesuid == name].iloc[:, 1:5], sample.annotations, atol=6e-4)
        boxes = [[box.column_from, box.row_from, box.column_to, box.row_to] for box in sample.boxes]
        assert listed[f"images/{name}.nii.gz"]["box"] == boxes
        found = [a for a in coco["annotations"] if a["image_id"] == number]
        for annotation, box, mask in zip(found, sample.boxes, sample.masks, strict=True):
            counts = annotation["segmentation"]["counts"]
            plane = np.repeat(np.arange(len(counts)) % 2, counts).reshape(sample.label.shape, order="F")
            np.testing.assert_array_equal(plane == 1, np.pad(mask, _margins(box, sample.label.shape)))
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == [box[1], box[0], box[3] - box[1], box[2] - box[0]]


def _margins(box, shape):
    return (box[0], shape[0] - box[2]), (box[1], shape[1] - box[3])


def test_png_is_the_lung_window(catalogue, tmp_path):
    out = export(catalogue, tmp_path / "out", "png", end=1)
    name, sample = next(iter(rendered(catalogue).items()))
    np.testing.assert_array_equal(Image.open(out / f"images/{name}.png"), DISPLAY_WINDOW.to_grey(sample.image))
    np.testing.assert_array_equal(Image.open(out / f"masks/{name}.png"), sample.label)


def test_dicom_is_read_to_the_same_hu_and_names_no_patient(catalogue, tmp_path):
    pytest.importorskip("highdicom")
    from monai.transforms import LoadImage

    out = export(catalogue, tmp_path / "out", "dicom", end=2)
    for name, sample in list(rendered(catalogue).items())[:2]:
        path = out / name / name / "ct.dcm"
        image = pydicom.dcmread(path)
        np.testing.assert_array_equal(apply_modality_lut(image.pixel_array, image), sample.image)
        itk = SimpleITK.ReadImage(str(path))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk)[0], sample.image)
        row, column = 20, 30
        world = itk.TransformIndexToPhysicalPoint((column, row, 0))
        expected = np.diag([-1, -1, 1, 1]) @ sample.affine @ [column, row, 0, 1]
        np.testing.assert_allclose(world, expected[:3], atol=1e-3)
        monai = LoadImage(image_only=True, reader="PydicomReader")(path)
        np.testing.assert_array_equal(np.squeeze(monai.numpy()).T, sample.image)
        assert (image.SyntheticData, image.ImageType[0], image.PatientID) == ("YES", "DERIVED", name)
        assert name in image.DerivationDescription
        purpose = image.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")


def test_dicom_seg_refers_to_its_image_and_holds_each_nodule(catalogue, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    out = export(catalogue, tmp_path / "out", "dicom", begin=1, end=2)
    name, sample = list(rendered(catalogue).items())[1]
    image = pydicom.dcmread(out / name / name / "ct.dcm")
    seg = highdicom.seg.segread(out / name / name / "seg.dcm")
    assert seg.StudyInstanceUID == image.StudyInstanceUID
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Lung", "Nodule 1, solid", "Nodule 2, solid"]
    planes = seg.get_pixels_by_source_instance([image.SOPInstanceUID])[0]
    np.testing.assert_array_equal(planes[..., 0] == 1, sample.label > 0)
    np.testing.assert_array_equal(planes[..., 1:].any(axis=-1), sample.label == 2)


def test_webdataset_shards_hold_the_samples(catalogue, tmp_path):
    out = export(catalogue, tmp_path / "out", "webdataset")
    (shard,) = (out / "shards").iterdir()
    with tarfile.open(shard) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    wds = pytest.importorskip("webdataset")
    found = {item["__key__"]: item for item in wds.WebDataset(str(shard), shardshuffle=False).decode()}
    for name, sample in rendered(catalogue).items():
        np.testing.assert_array_equal(found[name]["image.npy"], sample.image)
        np.testing.assert_array_equal(found[name]["mask.npy"], sample.label)
        assert found[name]["json"]["boxes"] == [list(box) for box in sample.boxes]


def test_zarr_has_a_group_a_grid(catalogue, tmp_path):
    zarr = pytest.importorskip("zarr")
    out = export(catalogue, tmp_path / "out", "zarr")
    (part,) = (out / "parts").iterdir()
    group = zarr.open_group(part, mode="r")["200x240"]
    for index, (facts, (name, sample)) in enumerate(
        zip(group.attrs["samples"], rendered(catalogue).items(), strict=True)
    ):
        assert facts["name"] == name
        np.testing.assert_array_equal(group["image"][index], sample.image)
        np.testing.assert_array_equal(group["mask"][index], sample.label)


def test_a_pair_differs_in_its_nodules_alone(catalogue, tmp_path):
    out = export(catalogue, tmp_path / "out", "nifti", pairs=True)
    for recipe in read_catalogue(catalogue):
        (image, _), (without, _) = (read_plane(out / f"images/{recipe.id}{end}.nii.gz") for end in ("", "-without"))
        label, _ = read_plane(out / f"masks/{recipe.id}-without.nii.gz")
        assert set(np.unique(label)) == {0, 1}
        lung, mask = AssetLibrary(catalogue.parent).load(recipe.lung)
        np.testing.assert_array_equal(without, lung)
        np.testing.assert_array_equal(label, mask)
        assert (image != without).any()


def test_a_volume_doubles_in_its_doubling_time(catalogue):
    recipe = read_catalogue(catalogue)[1]
    growth = Growth(days=(0, 90), doubling_days=90)
    renderer = Renderer(AssetLibrary(catalogue.parent))
    first, second = variants(recipe, growth=growth)
    assert [v.name for v in (first, second)] == [f"{recipe.id}-day0000", f"{recipe.id}-day0090"]
    small, large = (renderer.render(v.recipe).annotations[0].diameter_mm for v in (first, second))
    assert (large / small) ** 3 == pytest.approx(2, rel=0.15)
    np.testing.assert_array_equal(renderer.render(first.recipe).image, renderer.render(recipe).image)
    assert not variants(recipe, growth=Growth(days=(0, 9000), doubling_days=90)), "it would outgrow its lung"


def test_scans_of_one_growth_series_are_one_patients(catalogue, tmp_path):
    pytest.importorskip("highdicom")
    out = export(catalogue, tmp_path / "out", "dicom", growth=Growth(days=(0, 30), doubling_days=200.0), end=1)
    first, second = (pydicom.dcmread(path) for path in sorted(out.glob("*/*/ct.dcm")))
    assert (first.PatientID, first.FrameOfReferenceUID) == (second.PatientID, second.FrameOfReferenceUID)
    assert first.StudyInstanceUID != second.StudyInstanceUID
    assert (first.StudyDate, second.StudyDate) == ("20000101", "20000131")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": 3, "end": 99}, "`range` 3:99 must lie within the 6 samples"),
        ({"engine": "slurm"}, "`engine` must be one of"),
        ({"pairs": True}, "pairs is false there and true here"),
    ],
)
def test_what_cannot_be_is_refused(catalogue, tmp_path, settings, message):
    export(catalogue, tmp_path / "out", "png", end=1)
    with pytest.raises(InputError, match=message):
        export(catalogue, tmp_path / "out", "png", **settings)


def test_a_format_a_growth_or_a_shards_range_that_does_not_exist_is_refused(catalogue, tmp_path):
    with pytest.raises(InputError, match="`format` must be one of nifti"):
        ExportJob(catalogue=catalogue, out=tmp_path, format="jpeg")
    with pytest.raises(InputError, match="must rise"):
        Growth(days=(90, 0), doubling_days=100)
    with pytest.raises(InputError, match="doubling time must be positive"):
        Growth(days=(0, 90), doubling_days=0)
    with pytest.raises(InputError, match="multiples of 256"):
        export(catalogue, tmp_path / "shards", "webdataset", begin=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"):
        export(catalogue, tmp_path / "full", "png")


def test_the_script_renders_and_explains(catalogue, tmp_path, capsys):
    arguments = [str(catalogue), "--out", str(tmp_path / "out"), "--tracking-uri", "none", "--format"]
    script = Path(__file__).resolve().parents[1] / "scripts" / "render.py"
    command = [sys.executable, str(script), *arguments, "png", "--range", "1:3"]
    good = subprocess.run(command, cwd=script.parents[1], capture_output=True, text=True, check=False)
    assert (good.returncode, "Samples    2 in 4 files" in good.stdout) == (0, True), good.stderr
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(script))["main"]([*arguments, "jpeg"])
    assert "--format: invalid choice: 'jpeg'" in capsys.readouterr().err


def test_an_independent_validator_finds_nothing_but_the_tag_it_does_not_know(catalogue, tmp_path):
    pytest.importorskip("highdicom")
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's dicom3tools")
    out = export(catalogue, tmp_path / "out", "dicom", begin=1, end=2, pairs=True)
    for path in out.glob("*/*/*.dcm"):
        report = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        errors = [line for line in report.splitlines() if line.startswith("Error")]
        assert len(errors) == 1
        assert "(0x0008,0x001c)" in errors[0]
        image = pydicom.dcmread(path)
        del image.SyntheticData
        image.save_as(tmp_path / "without.dcm")
        report = subprocess.run(
            ["dciodvfy", str(tmp_path / "without.dcm")], capture_output=True, text=True, check=False
        )
        assert "Error" not in report.stderr


def test_ray_changes_no_byte(catalogue, tmp_path):
    """Slow to start, so only on request: LUNGSYNTH_TEST_RAY=1."""
    if not os.environ.get("LUNGSYNTH_TEST_RAY"):
        pytest.skip("set LUNGSYNTH_TEST_RAY=1")
    pytest.importorskip("ray")
    local, ray = (export(catalogue, tmp_path / name, "nifti", engine=name) for name in ("local", "ray"))
    assert files(local) == files(ray)
