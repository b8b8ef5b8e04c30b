from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_bundles import write_fake_bundles
from monai.data import MetaTensor, list_data_collate, pad_list_data_collate
from monai.transforms import Compose, EnsureTyped
from placement_toys import add_lung, add_nodule, group_at, lung_hu, lung_mask, write_catalogue
from torch.utils.data import default_collate

from lungsynth.bundles import read_weights
from lungsynth.data.dataset import LayeredLungDataset, LayeredLungLoader, collate_samples
from lungsynth.data.insert import InsertionSettings, RandInsertNodulesd
from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe, read_catalogue
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.rules import PlacementRules, resolve

N = 10


@pytest.fixture(scope="module", params=["one grid", "two grids"])
def catalogue(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    library = AssetLibrary(folder)
    lungs = [add_lung(library, seed=seed) for seed in range(2)]
    if request.param == "two grids":
        hu, mask = lung_hu(lung_mask())[:, 20:], lung_mask()[:, 20:]
        affine = lungs[0].affine_matrix
        lungs[1] = library.add_lung(hu, mask, affine=affine, source="generated", origin="cropped")
    nodules = [add_nodule(library, 6.0, category="ground_glass"), add_nodule(library, 9.0)]
    recipes = []
    for index in range(N):
        lung = lungs[index % 2]
        shape = LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm)
        group = group_at(nodules[index % 2], *[(0.2, 0.5), (0.8, 0.5)][: 1 + index % 2])
        recipes.append(make_recipe(lung, group, resolve(shape, group, PlacementRules()).placements, seed=index))
    library.save_table()
    return write_catalogue(recipes, folder / "catalogue.parquet")


def same(first, second) -> bool:
    return all(torch.equal(first[key], second[key]) for key in ("image", "mask", "boxes", "labels"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_the_loader_gives_what_the_dataset_gives(catalogue, workers, dtype):
    dataset = LayeredLungDataset(catalogue, dtype=dtype)
    loader = LayeredLungLoader(dataset, batch_size=3, num_workers=workers, multiprocessing_context=_fork(workers))
    for _ in range(2):
        # Batches are kept, so that a slot overwritten too early would show.
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches] == [3, 3, 3, 1]
        for number, batch in enumerate(batches):
            expected = collate_samples([dataset[index] for index in range(3 * number, min(N, 3 * number + 3))])
            assert type(batch["image"]) is type(expected["image"])
            for key in ("image", "mask", "boxes", "labels"):
                for got, wanted in zip(batch[key], expected[key], strict=True):
                    assert got.dtype == wanted.dtype
                    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
            assert [meta["id"] for meta in batch["meta"]] == [meta["id"] for meta in expected["meta"]]


def _fork(workers):
    return "fork" if workers else None


def test_without_copies_a_batch_is_right_until_the_next_is_asked_for(catalogue):
    dataset = LayeredLungDataset(catalogue)
    loader = LayeredLungLoader(dataset, batch_size=1, num_workers=2, copy=False, multiprocessing_context="fork")
    for index, batch in enumerate(loader):
        torch.testing.assert_close(batch["image"][0].float(), dataset[index]["image"], rtol=0, atol=0)


def test_the_loader_and_the_dataset_refuse_what_they_cannot_do(catalogue):
    with pytest.raises(InputError, match="makes its own batches"):
        LayeredLungLoader(LayeredLungDataset(catalogue), collate_fn=list)
    with pytest.raises(InputError, match=r"float32 or int16, got torch\.uint8"):
        LayeredLungDataset(catalogue, dtype=torch.uint8)


def test_an_enhancer_works_in_the_loader_too(catalogue):
    def darker(hu, nodule_mask):
        return np.where(nodule_mask, -1000, hu).astype(np.int16)

    dataset = LayeredLungDataset(catalogue, enhance=darker)
    (image, *_), (mask, *_) = (next(iter(LayeredLungLoader(dataset, batch_size=2)))[key] for key in ("image", "mask"))
    assert (image[mask == 2] == -1000).all()


@pytest.mark.parametrize("collate", [list_data_collate, pad_list_data_collate, default_collate])
def test_samples_batch_with_ordinary_collate_functions(catalogue, collate):
    dataset = LayeredLungDataset(catalogue)
    chosen = [dataset[index] for index in (range(3) if collate is pad_list_data_collate else (0, 4, 6))]
    batch = collate(chosen)
    expected = collate_samples(chosen)
    assert len(batch["image"]) == 3
    for key in ("boxes", "labels"):
        assert all(type(values) is torch.Tensor for values in batch[key])
        assert all(torch.equal(got, wanted) for got, wanted in zip(batch[key], expected[key], strict=True))
    assert [len(values) for values in batch["meta"]["diameters_mm"]] == [len(values) for values in batch["labels"]]


def test_inserted_nodules_batch_with_ordinary_collate_functions(catalogue):
    insert = RandInsertNodulesd(catalogue.parent, prob=0.5).set_random_state(1)
    batch = list_data_collate([insert(users_slice("meta tensor")) for _ in range(6)])
    assert batch["image"].shape == (6, 1, 200, 240)
    numbers = {len(boxes) for boxes in batch["boxes"]}
    assert min(numbers) == 0
    assert max(numbers) >= 1


def test_what_the_catalogue_notes_is_rendered(catalogue, tmp_path):
    bundles = write_fake_bundles(tmp_path / "bundles", tmp_path.name)  # packages are one a name and process
    weights = read_weights(bundles, "cyclegan").sha256
    recipes = [replace(recipe, weights_enhancer=weights) for recipe in read_catalogue(catalogue)]
    noted = write_catalogue(recipes, tmp_path / "catalogue.parquet")
    settings = {"library": catalogue.parent, "bundles": bundles}
    enhanced, plain = (LayeredLungDataset(noted, enhance=enhance, **settings) for enhance in (None, False))
    change = enhanced[1]["image"] - plain[1]["image"]
    assert torch.equal(change, (plain[1]["mask"] != 2).float()), "the fake CycleGAN makes all but nodules brighter"
    (batch,) = LayeredLungLoader(enhanced, batch_size=N)
    assert torch.equal(batch["image"][1], enhanced[1]["image"])
    edit_weights(bundles)
    with pytest.raises(InputError, match="went through a CycleGAN with the weights"):
        LayeredLungDataset(noted, **settings)
    assert torch.equal(LayeredLungDataset(noted, enhance=True, **settings)[1]["image"], enhanced[1]["image"])


def edit_weights(bundles):
    """Other weights of the CycleGAN, which does not look at them."""
    path = bundles / "cyclegan_bundle" / "models" / "model.pt"
    state = {key: value + 1 for key, value in torch.load(path, weights_only=True).items()}
    torch.save(state, path)
    path.with_suffix(".json").unlink(missing_ok=True)


def users_slice(kind):
    mask = lung_mask()
    image, label = lung_hu(mask, seed=9)[None].astype(np.float32) + 0.25, mask[None].astype(np.uint8)
    if kind == "array":
        return {"image": image, "label": label}
    return {"image": MetaTensor(image, affine=np.diag([0.7, 0.7, 1.0, 1.0])), "label": torch.from_numpy(label)}


@pytest.mark.parametrize("kind", ["array", "meta tensor"])
def test_nodules_are_laid_on_a_users_slice(catalogue, kind):
    insert = RandInsertNodulesd(catalogue.parent, spacing_mm=(0.7, 0.7) if kind == "array" else None)
    before = users_slice(kind)
    first, again = (insert.set_random_state(3)(before) for _ in range(2))
    other = insert.set_random_state(4)(before)
    image, label = (np.asarray(first[key])[0] for key in ("image", "label"))
    assert type(first["image"]) is type(before["image"])
    assert first["image"].dtype == before["image"].dtype
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (np.asarray(first["image"]) != np.asarray(other["image"])).any()
    assert len(first["boxes"]) == len(first["labels"]) >= 1
    near = np.zeros(label.shape, dtype=bool)
    for row_from, column_from, row_to, column_to in first["boxes"].int().tolist():
        assert (label[row_from:row_to, column_from:column_to] == 2).any()
        near[row_from - 5 : row_to + 5, column_from - 5 : column_to + 5] = True
    untouched = np.asarray(users_slice(kind)["image"])[0]
    np.testing.assert_array_equal(image[~near], untouched[~near])
    np.testing.assert_array_equal(np.asarray(before["image"])[0], untouched)


def test_insertion_extends_what_is_known_and_can_be_left_to_chance(catalogue):
    known = users_slice("array") | {"boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "labels": torch.tensor([0])}
    known["label"][0, 1:3, 2:4] = 2
    found = RandInsertNodulesd(catalogue.parent, spacing_mm=(0.7, 0.7)).set_random_state(3)(known)
    assert found["boxes"][0].tolist() == [1, 2, 3, 4]
    assert len(found["boxes"]) > 1
    assert (found["label"][0, 1:3, 2:4] == 2).all()
    never = RandInsertNodulesd(catalogue.parent, spacing_mm=(0.7, 0.7), prob=0.0)
    assert len(never(known)["boxes"]) == 1
    assert never(users_slice("array"))["boxes"].shape == (0, 4)
    chained = Compose([RandInsertNodulesd(catalogue.parent, spacing_mm=(0.7, 0.7)), EnsureTyped(keys="image")])
    chained.set_random_state(3)
    assert isinstance(chained(users_slice("array"))["image"], torch.Tensor)


def test_insertion_shares_the_policies_of_plans(catalogue):
    library = AssetLibrary(catalogue.parent)
    nodules = [asset for asset in library if asset.kind == "nodule"]
    shape = LungShape.from_mask(lung_mask(), spacing_mm=(0.7, 0.7))

    def distances(policy):
        placed = [InsertionSettings(policy=policy).choose(shape, nodules, seed=seed) for seed in range(30)]
        return np.array([nodule.distance_mm for nodules in placed for nodule in nodules])

    varied, farthest = distances("varied"), distances("farthest")
    assert (varied < 10).mean() >= 0.3
    assert farthest.mean() > varied.mean()
    with pytest.raises(InputError, match="policy varied or farthest, got matched"):
        InsertionSettings(policy="matched")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((1, 8, 8, 8))}, r"slices of shape \(1, H, W\), got \(1, 8, 8, 8\)"),
        ({"image": np.full((1, 200, 240), 0.5)}, "expected CT in HU"),
        ({"label": np.zeros((1, 200, 240))}, "lung mask with lung in it"),
    ],
)
def test_a_slice_that_is_none_is_refused(catalogue, change, message):
    with pytest.raises(InputError, match=message):
        RandInsertNodulesd(catalogue.parent, spacing_mm=(0.7, 0.7))(users_slice("array") | change)
    with pytest.raises(InputError, match="give spacing_mm"):
        RandInsertNodulesd(catalogue.parent)(users_slice("array"))
    with pytest.raises(InputError, match=r"no nodule of \('part_solid',\)"):
        RandInsertNodulesd(catalogue.parent, categories=("part_solid",))
