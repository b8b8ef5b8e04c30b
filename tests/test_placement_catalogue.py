import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from placement_toys import add_lung, add_nodule, group_at, library_in, write_catalogue

from lungsynth.compositing.render import render
from lungsynth.data.dataset import LayeredLungDataset
from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import make_recipe, read_catalogue
from lungsynth.placement.groups import draw_groups
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.planning import plan_pairs
from lungsynth.placement.presence import analytic_presence
from lungsynth.placement.rules import PlacementRules, resolve


def fill(folder):
    """A library with its catalogue, as the chain makes them."""
    library = AssetLibrary(folder)
    lungs = [add_lung(library, spacing, seed=seed) for seed, spacing in enumerate([(0.7, 0.7), (0.9, 0.8)])]
    nodules = [
        add_nodule(library, 6.0, category="ground_glass", weights="w"),
        add_nodule(library, 9.0, source="real"),
    ]
    groups = draw_groups(nodules, 40, seed=5, prior=analytic_presence())
    shapes = [LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm) for lung in lungs]
    recipes = []
    for seed, (lung, group) in enumerate(plan_pairs(shapes, groups, keep=12)):
        placed = resolve(shapes[lung], groups[group], PlacementRules()).placements
        recipes.append(make_recipe(lungs[lung], groups[group], placed, seed=seed, weights_nodule="w"))
    library.save_table()
    write_catalogue(recipes, folder / "catalogue.parquet")
    return library, recipes


def test_a_catalogue_gives_its_recipes_back_and_the_same_samples_bit_for_bit(tmp_path):
    library, recipes = fill(tmp_path)
    again, other = read_catalogue(tmp_path / "catalogue.parquet"), AssetLibrary(tmp_path)
    assert list(again) == recipes
    assert again[-1] == recipes[-1]
    assert list(again[2:5]) == recipes[2:5]
    for recipe, copy in zip(recipes, again, strict=True):
        first, second = render(recipe, library), render(copy, other)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
        assert first.annotations == second.annotations
        assert (first.label == 2).any()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        fill(tmp_path / folder)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / f).rglob("*.*")} for f in ("a", "b"))
    assert first == second
    assert not [name for name in first if name.endswith(".part")]


def test_derived_columns_say_what_the_recipe_holds(tmp_path):
    library, lung, nodule = library_in(tmp_path)
    shape = LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm)
    real = add_nodule(library, 5.0, source="real")
    group = group_at(nodule, (0.2, 0.5), (0.8, 0.5))
    generated, mixed = (
        make_recipe(lung, g, resolve(shape, g, PlacementRules()).placements, seed=0, weights_nodule="w")
        for g in (group, group_at(real, (0.2, 0.5)))
    )
    write_catalogue([generated, mixed], tmp_path / "c.parquet")
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    assert [row["has_real_voxels"] for row in rows] == [False, True]
    assert [row["n_nodules"] for row in rows] == [2, 1]
    assert [row["weights_nodule"] for row in rows] == ["w", None]
    assert rows[0]["min_distance_mm"] == min(rows[0]["distance_mm"])
    assert rows[0]["id"].startswith("synth-")
    assert len(rows[0]["id"]) == 22


def test_a_changed_row_is_refused(tmp_path):
    _, recipes = fill(tmp_path)
    path = tmp_path / "catalogue.parquet"
    table = pq.read_table(path)
    seeds = table.column_names.index("seed")
    pq.write_table(table.set_column(seeds, "seed", [[seed.as_py() + 1 for seed in table["seed"]]]), path)
    with pytest.raises(InputError, match=f"sample {recipes[3].id} .* was changed"):
        read_catalogue(path)[3]


def test_a_file_that_is_no_catalogue_is_refused(tmp_path):
    library, _, _ = library_in(tmp_path)
    library.save_table()
    with pytest.raises(InputError, match=r"'lung', .* are missing"):
        read_catalogue(tmp_path / "assets.parquet")
    with pytest.raises(InputError, match="expected a catalogue"):
        read_catalogue(tmp_path / "none.parquet")


def test_the_dataset_serves_workers_what_the_catalogue_says(tmp_path):
    library, recipes = fill(tmp_path)
    dataset = LayeredLungDataset(tmp_path / "catalogue.parquet")
    assert dataset.categories == ("ground_glass", "solid")
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)
    for recipe, item in zip(recipes, loader, strict=True):
        sample = render(recipe, library)
        assert item["image"].dtype == torch.float32
        np.testing.assert_array_equal(item["image"][0], sample.image)
        np.testing.assert_array_equal(item["mask"][0], sample.label)
        assert item["boxes"].shape == (recipe.n_nodules, 4)
        assert [dataset.categories[label] for label in item["labels"]] == [n.category for n in recipe.nodules]
        assert item["meta"]["id"] == recipe.id
        for row_from, column_from, row_to, column_to in item["boxes"].int().tolist():
            assert (item["mask"][0, row_from:row_to, column_from:column_to] == 2).any()
