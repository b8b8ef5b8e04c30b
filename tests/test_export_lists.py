"""The lists of an export as a training reads them: MONAI loads, collates and learns from them as they are."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from placement_toys import add_nodule, disc, group_at, lung_hu, write_catalogue

from lungsynth.ct.write import read_plane
from lungsynth.export.split import PARTS, provenances, split_blocks
from lungsynth.export.writer import ExportJob, export_catalogue
from lungsynth.geometry import axial_affine
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe, read_catalogue
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.rules import PlacementRules, resolve

LUNGS = 8
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Eight lungs with a slice each, every second one with two nodules; two lungs and a nodule are of one patient."""
    folder = tmp_path_factory.mktemp("listed")
    library = AssetLibrary(folder)
    recipes = []
    mask = disc((96, 120), (48, 30), 25) | disc((96, 120), (48, 90), 25)
    affine = axial_affine(spacing_mm=(2.5, 1.4, 1.4), origin_lps_mm=(-90.0, -70.0, 12.5))
    for index in range(LUNGS):
        patient = "A" if index < 2 else None
        source = "real" if patient else "generated"
        facts = {"affine": affine, "source": source, "origin": str(index), "patient": patient}
        lung = library.add_lung(lung_hu(mask, index), mask, **facts)
        nodule = add_nodule(library, 6.0 + index / 2, category=("ground_glass", "solid")[index % 2], patient=patient)
        shape = LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm)
        group = group_at(nodule, *[(0.2, 0.3 + index / 50), (0.8, 0.5)][: 1 + index % 2])
        recipes.append(make_recipe(lung, group, resolve(shape, group, PlacementRules()).placements, seed=index))
    library.save_table()
    write_catalogue(recipes, folder / "catalogue.parquet")
    export_catalogue(ExportJob(catalogue=folder / "catalogue.parquet", out=folder / "out", format="nifti"))
    return folder / "out"


def lists(out: Path, name: str) -> dict:
    return json.loads((out / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("samples", "lungs", "groups", "lost"),
    [(1, 1, 1, 0), (64, 13, 12, 0.5), (500, 300, 480, 0), (500, 50, 500, 0.4), (3000, 30, 90, 0.6)],
)
def test_parts_share_no_block_and_a_fifth_is_for_validation(samples, lungs, groups, lost) -> None:
    draw = np.random.default_rng(0)
    lung_of, group_of = draw.integers(0, lungs, samples), draw.integers(0, groups, samples)
    blocks = [[lungs + g, lungs + (g + 1) % groups][: 1 + g % 3 // 2] for g in range(groups)]
    parts = split_blocks(lung_of, group_of, range(lungs), blocks, keys=[str(i) for i in range(lungs + groups)])
    used = [{int(lung), *blocks[group]} for lung, group in zip(lung_of, group_of, strict=True)]
    training, validation = (set().union(*(u for u, p in zip(used, parts, strict=True) if p == k)) for k in (0, 1))
    assert not training & validation
    assert (parts == 2).mean() <= lost
    if samples > 1:
        assert 0.1 <= (parts == 1).sum() / (parts < 2).sum() <= 0.4
    again = split_blocks(lung_of, group_of, range(lungs), blocks, keys=[str(i) for i in range(lungs + groups)])
    np.testing.assert_array_equal(parts, again)


def test_a_patient_is_in_one_part(out) -> None:
    catalogue, library = read_catalogue(out.parent / "catalogue.parquet"), AssetLibrary(out.parent)
    made_of = provenances(catalogue, library, [recipe.id for recipe in catalogue])
    assert {made.part for made in made_of[:2]} < set(PARTS)
    assert len({made.part for made in made_of[:2]}) == 1
    assert [(made.patients, made.unnamed) for made in made_of[1:3]] == [(("A",), 0), ((), 2)]
    listed = lists(out, "datalist.json")
    assert {entry["patient_id"] for part in PARTS for entry in listed[part]} == {"A", "none"}
    assert (len(listed["training"]), len(listed["validation"]), listed["unused"]) == (7, 1, [])


def test_boxes_are_where_the_nodules_are_in_images_as_monai_loads_them(out) -> None:
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, SqueezeDim

    load = Compose([LoadImage(image_only=True), EnsureChannelFirst(), SqueezeDim(dim=-1)])
    for name, boxes, labels in (("datalist.json", "boxes", "box_labels"), ("detection.json", "box", "label")):
        for entry in (entry for part in PARTS for entry in lists(out, name)[part]):
            nodule = load(out / entry["label_map" if name == "detection.json" else "label"])[0] == 2
            found = np.zeros(nodule.shape, dtype=bool)
            for (x_from, y_from, x_to, y_to), label in zip(entry[boxes], entry[labels], strict=True):
                if label < 0:
                    assert (x_from, y_from, x_to, y_to) == (-1, -1, -1, -1)
                    continue
                inside = nodule[x_from:x_to, y_from:y_to]
                assert inside.any(0).all()
                assert inside.any(1).all()
                found[x_from:x_to, y_from:y_to] = True
            assert not (np.asarray(nodule) & ~found).any()


def test_the_data_list_loads_and_collates_as_it_is(out) -> None:
    from monai.data import DataLoader, Dataset, load_decathlon_datalist
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    entries = load_decathlon_datalist(out / "datalist.json", data_list_key="training")
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    (batch,) = DataLoader(Dataset(entries, load), batch_size=len(entries))
    assert batch["image"].shape == batch["label"].shape == (7, 1, 120, 96, 1)
    assert set(batch["category"]) == {"ground_glass", "solid"}
    assert set(batch["texture"]) <= {"ground_glass", "solid;solid"}
    assert (len(batch["boxes"]), len(batch["boxes"][0]), batch["boxes"][0][0].shape) == (2, 4, (7,))
    assert batch["nodules"].sum() == (np.stack(batch["box_labels"]) >= 0).sum()


def test_the_coordinates_of_the_lists_agree(out) -> None:
    by_name = {entry["id"]: entry for part in PARTS for entry in lists(out, "datalist.json")[part]}
    for annotation in lists(out, "coco.json")["annotations"]:
        image = lists(out, "coco.json")["images"][annotation["image_id"] - 1]
        x, y, width, height = annotation["bbox"]
        name = Path(image["file_name"]).name.removesuffix(".nii.gz")
        assert [x, y, x + width, y + height] in by_name[name]["boxes"]
        mask, _ = read_plane(out / by_name[name]["label"])
        assert (mask[y : y + height, x : x + width] == 2).any()


def test_layouts_are_read_as_what_they_are(out, tmp_path) -> None:
    from lungsynth.ct.metaimage import read_metaimage

    made = {}
    for kind in ("nnunet", "msd", "luna16"):
        made[kind] = tmp_path / kind
        job = ExportJob(catalogue=out.parent / "catalogue.parquet", out=made[kind], format=kind)
        export_catalogue(job, end=4 if kind == "luna16" else None)
    listed = lists(out, "datalist.json")
    names = {part: [entry["id"] for entry in listed[part]] for part in PARTS}
    nnunet, (fold,) = lists(made["nnunet"], "dataset.json"), lists(made["nnunet"], "splits_final.json")
    assert (nnunet["numTraining"], nnunet["labels"]) == (LUNGS, {"background": 0, "lung": 1, "nodule": 2})
    assert fold == {"train": names["training"], "val": names["validation"]}
    for name in fold["train"] + fold["val"]:
        image = made["nnunet"] / f"imagesTr/{name}_0000.nii.gz"
        assert image.read_bytes() == (out / f"images/{name}.nii.gz").read_bytes()
        assert (made["nnunet"] / f"labelsTr/{name}.nii.gz").is_file()
    msd = lists(made["msd"], "dataset.json")
    assert (msd["numTraining"], len(msd["training"]), len(msd["validation"])) == (7, 7, 1)
    assert all((made["msd"] / pair[key]).is_file() for pair in msd["training"] for key in pair)
    for recipe in list(read_catalogue(out.parent / "catalogue.parquet"))[:4]:
        subset = next(number for number, part in enumerate(PARTS) if recipe.id in names[part])
        values, affine = read_metaimage(made["luna16"] / f"subset{subset}/{recipe.id}.mhd")
        image, expected = read_plane(out / f"images/{recipe.id}.nii.gz")
        np.testing.assert_array_equal(values[0], image)
        np.testing.assert_allclose(affine, expected, atol=1e-5)
        lungs, _ = read_metaimage(made["luna16"] / f"seg-lungs-LUNA16/{recipe.id}.mhd")
        assert set(np.unique(lungs)) == {0, 3, 4}


def recipe(page: str, **settings: object) -> dict:
    """Runs the example of a page, with its first settings replaced; returns its names."""
    text = (ROOT / page).read_text(encoding="utf-8")
    code = re.search(r"tests/test_export_lists.py.*?```python\n(.*?)```", text, re.DOTALL)[1]
    line = next(line for line in code.splitlines() if line.startswith("out, epochs"))
    left, right = line.split(" = ")
    given = dict(zip(left.split(", "), ast.literal_eval(f"({right},)"), strict=True)) | settings
    names: dict = {}
    exec(compile(code.replace(line, f"{left} = {tuple(given.values())!r}"), page, "exec"), names)
    return names


def test_a_segmentation_trains_by_the_readme(out, tmp_path) -> None:
    torch.manual_seed(0)
    shutil.copytree(out, tmp_path / "out")
    made = recipe("README.md", out=str(tmp_path / "out"), epochs=1, size=32)
    assert torch.isfinite(made["loss"])
    assert (tmp_path / "out" / "unet.pt").is_file()


def test_a_detector_trained_by_the_how_to_finds_boxes_where_masks_are(out) -> None:
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, SqueezeDim

    torch.manual_seed(0)
    made = recipe("docs/how_to/use_in_training.md", out=str(out), epochs=20, width=8)
    detector = made["detector"].eval()
    load = Compose([LoadImage(image_only=True), EnsureChannelFirst(), SqueezeDim(dim=-1)])
    hits = []
    for sample in made["batches"].dataset:
        with torch.no_grad():
            (found,) = detector([sample["image"]])
        nodule = load(sample["label_map"])[0] == 2
        x_from, y_from, x_to, y_to = found["box"][0].round().int().clamp(min=0).tolist()
        hits.append(bool(nodule[x_from:x_to, y_from:y_to].float().mean() > 0.3))
    assert sum(hits) >= 5, "of the 7 training slices"
