import pickle

import numpy as np
import pytest
from placement_toys import add_lung, add_nodule, library_in, soft_disc

from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary


def test_an_asset_is_stored_as_given_and_found_again(tmp_path):
    library, lung, nodule = library_in(tmp_path)
    library.save_table()
    again = AssetLibrary(tmp_path)
    assert list(again) == list(library)
    np.testing.assert_array_equal(again.load(nodule.hash)[1], np.rint(soft_disc(10.0) * 16384))
    assert again.load(lung.hash).dtype == np.int16
    assert again[lung.hash].spacing_mm == pytest.approx((0.7, 0.7))
    assert nodule.diameter_mm == pytest.approx(10.0, rel=0.02)


def test_the_same_content_is_stored_once_with_its_first_row(tmp_path):
    library = AssetLibrary(tmp_path)
    first = add_nodule(library, origin="a")
    assert add_nodule(library, origin="b") == first
    assert len(library) == len(list((tmp_path / "assets").iterdir())) == 1


def test_the_table_does_not_depend_on_the_order_of_adding(tmp_path):
    for folder, seeds in (("a", (0, 1)), ("b", (1, 0))):
        library = AssetLibrary(tmp_path / folder)
        for seed in seeds:
            add_lung(library, seed=seed)
        library.save_table()
    assert (tmp_path / "a/assets.parquet").read_bytes() == (tmp_path / "b/assets.parquet").read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[:-2] + b"\1\2", lambda data: data[:200], lambda data: b""])
def test_a_damaged_asset_is_refused(tmp_path, damage):
    library, lung, _ = library_in(tmp_path)
    path = tmp_path / "assets" / f"{lung.hash}.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{lung.hash}\.npy: expected .* Restore the file"):
        library.load(lung.hash)


def test_an_unknown_asset_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a row for asset abc"):
        AssetLibrary(tmp_path)["abc"]


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "assets.parquet").write_text("hash\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"assets\.parquet: cannot be read as a table of assets"):
        AssetLibrary(tmp_path)


@pytest.mark.parametrize("alpha", [np.zeros((64, 64)), np.ones((64, 64)), soft_disc(10.0) * 2])
def test_a_nodule_needs_a_mask_that_ends_in_the_patch(tmp_path, alpha):
    with pytest.raises(InputError, match="is 0 on the border"):
        AssetLibrary(tmp_path).add_nodule(
            np.zeros((64, 64), dtype=np.int16), alpha, category="solid", source="real", origin="n"
        )


def test_a_lung_without_lung_is_refused(tmp_path):
    with pytest.raises(InputError, match="with 0 lung pixels"):
        AssetLibrary(tmp_path).add_lung(
            np.zeros((8, 8), dtype=np.int16), np.zeros((8, 8), bool), affine=np.eye(4), source="real", origin="l"
        )


def test_mapped_arrays_do_not_travel_to_workers(tmp_path):
    library, lung, _ = library_in(tmp_path)
    library.load(lung.hash)
    assert len(pickle.dumps(library)) < 5000
