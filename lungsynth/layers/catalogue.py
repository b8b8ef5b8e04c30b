"""The catalogue: a row a sample, from which its image, label map and annotations are made again, bit for bit.

A `Recipe` names a lung and nodules by the hashes of their assets and says where the nodules lie. `catalogue.parquet`
holds recipes; positions and distances are float32 and exact, all else is text or float64.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.errors import InputError
from lungsynth.layers.assets import Asset, Source
from lungsynth.layers.atomic import replacing
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.placement import NodulePlacement

__all__ = ["SCHEMA", "Catalogue", "Recipe", "make_recipe", "read_catalogue", "write_catalogue"]

_ROW_GROUP = 65536
_PLACEMENT = pa.struct(
    [
        ("asset", pa.string()),
        ("category", pa.string()),
        ("source", pa.string()),
        ("row_px", pa.float32()),
        ("col_px", pa.float32()),
        ("diameter_mm", pa.float64()),
        ("distance_mm", pa.float32()),
        ("rotation_deg", pa.float64()),
        ("flip", pa.bool_()),
        ("scale", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lung", pa.dictionary(pa.int32(), pa.string())),
        ("lung_source", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("nodules", pa.list_(_PLACEMENT)),
        ("n_nodules", pa.int32()),
        ("min_distance_mm", pa.float32()),
        ("has_real_voxels", pa.bool_()),
        ("seed", pa.int64()),
        ("weights_nodule", pa.dictionary(pa.int32(), pa.string())),
        ("weights_lung", pa.dictionary(pa.int32(), pa.string())),
        ("weights_enhancer", pa.dictionary(pa.int32(), pa.string())),
    ]
)
_DERIVED = ("id", "n_nodules", "min_distance_mm", "has_real_voxels")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One sample.

    Args:
        lung: hash of the lung.
        lung_source: real or generated.
        group: canonical JSON of the nodule group.
        nodules: the group's members on this lung.
        seed: of the sample.
        weights_nodule: SHA-256 of the weights that made nodules of this sample; None when all are real.
        weights_lung: likewise for the lung.
        weights_enhancer: likewise for the enhancer; None when the sample is not enhanced.

    Raises:
        InputError: when there is no nodule.
    """

    lung: str
    lung_source: Source
    group: str
    nodules: tuple[NodulePlacement, ...]
    seed: int
    weights_nodule: str | None = None
    weights_lung: str | None = None
    weights_enhancer: str | None = None

    def __post_init__(self) -> None:
        if not self.nodules:
            raise InputError(f"A recipe needs at least one nodule on lung {self.lung}, got none.")

    @property
    def id(self) -> str:
        """`synth-` and the first 16 hex digits of the SHA-256 of lung, group and seed."""
        return "synth-" + hashlib.sha256(f"{self.lung}{self.group}{self.seed}".encode()).hexdigest()[:16]

    @property
    def n_nodules(self) -> int:
        """Number of nodules."""
        return len(self.nodules)

    @property
    def min_distance_mm(self) -> float:
        """Distance to the edge of the lung of the nodule nearest to it."""
        return min(nodule.distance_mm for nodule in self.nodules)

    @property
    def has_real_voxels(self) -> bool:
        """Whether voxels of a patient are in the sample."""
        return "real" in {self.lung_source, *(nodule.source for nodule in self.nodules)}


def make_recipe(
    lung: Asset,
    group: NoduleGroup,
    placements: tuple[NodulePlacement, ...],
    *,
    seed: int,
    weights_nodule: str | None = None,
    weights_enhancer: str | None = None,
) -> Recipe:
    """The recipe of a group resolved on a lung.

    Args:
        lung: the lung's asset.
        group: what was resolved.
        placements: what `placement.resolve` gave.
        seed: of the sample.
        weights_nodule: SHA-256 of the nodule generator's weights; noted only where a generated nodule is used.
        weights_enhancer: SHA-256 of the enhancer's weights; None without one.
    """
    generated = any(placement.source == "generated" for placement in placements)
    return Recipe(
        lung=lung.hash,
        lung_source=lung.source,
        group=group.json,
        nodules=placements,
        seed=seed,
        weights_nodule=weights_nodule if generated else None,
        weights_lung=lung.weights,
        weights_enhancer=weights_enhancer,
    )


class Catalogue:
    """Recipes of a table, read one at a time.

    Args:
        table: with the columns of `SCHEMA`.
        path: the file, for messages.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.table = table
        self.path = path

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
            return Catalogue(self.table.take(list(range(*index.indices(len(self))))), self.path)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, asked for {index}.")
        return self._recipe(index % len(self))

    def categories(self) -> tuple[str, ...]:
        """The nodules' categories, sorted."""
        nodules = self.table["nodules"].combine_chunks().flatten()
        return tuple(sorted(nodules.field("category").unique().to_pylist()))

    def _recipe(self, index: int) -> Recipe:
        row = self.table.slice(index, 1).to_pylist()[0]
        values = {name: value for name, value in row.items() if name not in _DERIVED}
        recipe = Recipe(**values | {"nodules": tuple(NodulePlacement(**nodule) for nodule in row["nodules"])})
        if recipe.id != row["id"]:
            raise InputError(
                f"{self.path}: sample {row['id']} (row {index}) was changed, its content has the id {recipe.id}. "
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
    rows = [asdict(recipe) | {name: getattr(recipe, name) for name in _DERIVED} for recipe in recipes]
    if len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path}: expected samples that differ, got some twice. Give each sample a seed of its own.")
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=_ROW_GROUP)
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
    return Catalogue(table.select(SCHEMA.names).cast(SCHEMA).combine_chunks(), path)
