"""The catalogue: a row a sample, from which its image, label map and annotations are made again, bit for bit.

A `Recipe` names a lung and nodules by the hashes of their assets and says where the nodules lie. `catalogue.parquet`
holds recipes: the group (its nodules, their transforms, categories and diameters) stands once in a dictionary, a row
adds the places of the group's members on its lung, in the group's order. `catalogue_table` says how rows are written.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lungsynth.errors import InputError
from lungsynth.layers.catalogue_table import SCHEMA, TableWriter
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.placement import place
from lungsynth.layers.recipe import Recipe, make_recipe

__all__ = ["SCHEMA", "Catalogue", "Recipe", "make_recipe", "read_catalogue", "write_catalogue"]

_DICTIONARIES = ("lung", "lung_source", "group", "weights_nodule", "weights_lung", "weights_enhancer")
_PLACES = ("row_px", "col_px", "distance_mm")


class Catalogue:
    """Recipes of a table, read one at a time.

    Args:
        table: with the columns of `SCHEMA`.
        path: the file, for messages.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.table = table
        self.path = path
        columns = {name: table[name].combine_chunks() for name in (*_DICTIONARIES, *_PLACES)}
        self._values = {name: [*columns[name].dictionary.to_pylist(), None] for name in _DICTIONARIES}
        self._codes = {name: columns[name].indices.fill_null(-1).to_numpy() for name in _DICTIONARIES}
        self._ends = columns["row_px"].offsets.to_numpy()
        self._places = {name: columns[name].values.to_numpy() for name in _PLACES}
        self._seeds = table["seed"].to_numpy()
        self._ids = table["id"].combine_chunks()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Recipe]:
        return (self._recipe(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Recipe: ...

    @overload
    def __getitem__(self, index: slice) -> "Catalogue": ...

    def __getitem__(self, index: int | slice) -> "Recipe | Catalogue":
        """A recipe, or the catalogue of some.

        Raises:
            IndexError: beyond the end.
            InputError: when the row was changed, so that its id does not fit any more.
        """
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, asked for {index}.")
        return self._recipe(index % len(self))

    def __getstate__(self) -> tuple[pa.Table, Path]:
        return self.table, self.path

    def __setstate__(self, state: tuple[pa.Table, Path]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def take(self, rows: np.ndarray) -> "Catalogue":
        """The catalogue of some rows."""
        return Catalogue(self.table.take(pa.array(rows)).combine_chunks(), self.path)

    def without_real_voxels(self) -> "Catalogue":
        """The samples in which no voxel is a patient's."""
        return self.take(np.flatnonzero(~self.table["has_real_voxels"].to_numpy()))

    def find(self, sample: str) -> int | None:
        """The row of a sample's id, or None."""
        index = pc.index(self._ids, sample).as_py()
        return None if index < 0 else int(index)

    def categories(self) -> tuple[str, ...]:
        """The nodules' categories, sorted."""
        groups = [self._values["group"][code] for code in np.unique(self._codes["group"])]
        return tuple(sorted({member.category for text in groups for member in _parsed(text).members}))

    def _recipe(self, index: int) -> Recipe:
        row = {name: self._values[name][self._codes[name][index]] for name in _DICTIONARIES}
        places = [self._places[name][self._ends[index] : self._ends[index + 1]].tolist() for name in _PLACES]
        nodules = place(_parsed(row["group"]), list(zip(*places, strict=True)))
        recipe = Recipe(**row, nodules=nodules, seed=int(self._seeds[index]))
        if recipe.id != (found := self._ids[index].as_py()):
            raise InputError(
                f"{self.path}: sample {found} (row {index}) was changed, its content has the id {recipe.id}. "
                f"Restore the file or plan it again."
            )
        return recipe


def write_catalogue(recipes: Iterable[Recipe], path: Path) -> Path:
    """Writes recipes in their order; the same recipes give the same bytes.

    Args:
        recipes: all with different ids.
        path: `catalogue.parquet`.

    Raises:
        InputError: when two recipes have one id.
    """
    found = list(recipes)
    if len({recipe.id for recipe in found}) < len(found):
        raise InputError(f"{path}: expected samples that differ, got some twice. Give each sample a seed of its own.")
    with TableWriter(path) as writer:
        writer.write([_row(recipe) for recipe in found])
    return path


def read_catalogue(path: Path) -> Catalogue:
    """Opens a catalogue.

    Raises:
        InputError: when the file is missing, is no parquet file, or lacks columns.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected a catalogue, got what cannot be read: {error}.") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: expected the columns of a catalogue, {missing} are missing. Plan it again.")
    kept = table.schema.metadata
    table = table.select(SCHEMA.names).cast(SCHEMA).unify_dictionaries().combine_chunks()
    return Catalogue(table.replace_schema_metadata(kept), path)


def _row(recipe: Recipe) -> dict[str, object]:
    places = {name: [getattr(nodule, name) for nodule in recipe.nodules] for name in _PLACES}
    derived = {name: getattr(recipe, name) for name in SCHEMA.names if name not in places}
    return {**derived, **places}


@lru_cache(maxsize=1 << 16)
def _parsed(group: str) -> NoduleGroup:
    return NoduleGroup.from_json(group)
