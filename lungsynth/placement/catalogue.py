"""The catalogue: a row for each sample, from which its image, label map and annotations are made again, bit for bit.

A `Recipe` says what one sample is made of: it names a lung and nodules by the hashes of their assets, and says where
the nodules lie. `catalogue.parquet` holds recipes: the group (its nodules, their transforms, categories and diameters)
stands once in a dictionary, a row adds the places of the group's members on its lung, in the group's order. Numbers in
`row_px`, `col_px` (quarters of a pixel) and `distance_mm` (1/64 mm) are exact in float32.

`read_catalogue` opens a file as a `Catalogue`. `write_pairs` writes planned pairs by the million, whole columns at
once.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM
from lungsynth.io.atomic import replacing
from lungsynth.io.stored import HASH, booleans, objects, parse_json, read_parquet, shortened
from lungsynth.placement.groups import PHASES, NoduleGroup, NodulePlacement, place
from lungsynth.types import Origin

if TYPE_CHECKING:
    from lungsynth.placement.assets import Asset
    from lungsynth.placement.planning import Pairs
from lungsynth.seeds import HashDomain, hash_arrays, hash_words

__all__ = [
    "ID_PREFIX",
    "ROW_GROUP",
    "SCHEMA",
    "Catalogue",
    "NotedEnhancement",
    "PlanWeights",
    "Recipe",
    "TableWriter",
    "in_turn",
    "make_recipe",
    "read_catalogue",
    "sample_id",
    "sample_seeds",
    "write_pairs",
]

ROW_GROUP = 262_144  # rows written together: memory while writing, and the size that readers load at once
_DICTIONARY_BYTES = 1 << 28  # a group's text is long; the default would give up the dictionary
ID_PREFIX = "synth-"
_TEXT = pa.dictionary(pa.int32(), pa.string())
_REMEDY = "Restore the file or plan it again."
_NOTED = objects({}, {"identity": objects({}, {"settings": objects({}, {"label_check": booleans})})})
_LIMITS = {"row_px": (-1.0, 65536.0), "col_px": (-1.0, 65536.0), "distance_mm": (1 / 128, 1000.0)}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("category", _TEXT),
        ("lung", _TEXT),
        ("lung_source", _TEXT),
        ("group", _TEXT),
        ("row_px", pa.list_(pa.float32())),
        ("col_px", pa.list_(pa.float32())),
        ("distance_mm", pa.list_(pa.float32())),
        ("n_nodules", pa.int32()),
        ("min_distance_mm", pa.float32()),
        ("has_real_voxels", pa.bool_()),
        ("seed", pa.int64()),
        ("weights_nodule", _TEXT),
        ("weights_lung", _TEXT),
        ("weights_enhancer", _TEXT),
    ]
)


def sample_id(lung: int, group: int, seed: int) -> str:
    """The id of a sample: `synth-` and 16 hex digits of lung, group (their hashes as numbers) and seed."""
    return f"{ID_PREFIX}{hash_words(HashDomain.ID, lung, group, seed):016x}"


def sample_seeds(seed: int, lungs: Any, groups: np.ndarray) -> np.ndarray:
    """The seeds of pairs, int64 and not negative: a pair's depends on no other pair.

    Args:
        seed: of the run.
        lungs: hashes as numbers, uint64, an array or one.
        groups: likewise.
    """
    return (hash_arrays(HashDomain.SEED, seed, lungs, groups) >> np.uint64(1)).astype(np.int64)


class TableWriter:
    """Writes a catalogue part by part; the file appears when the block ends without an error.

    Args:
        path: `catalogue.parquet`.
        metadata: JSON values that are stored in the file's schema.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        texts = {f"lungsynth.{key}": json.dumps(value, sort_keys=True) for key, value in (metadata or {}).items()}
        self.schema = SCHEMA.with_metadata(texts or None)
        self._target = replacing(path)

    def __enter__(self) -> "TableWriter":
        names = [field.name for field in SCHEMA if pa.types.is_dictionary(field.type)]
        numbers = ["row_px.list.element", "col_px.list.element", "distance_mm.list.element", "min_distance_mm"]
        self._writer = pq.ParquetWriter(
            self._target.__enter__(),
            self.schema,
            compression="zstd",
            use_dictionary=[*names, *numbers],
            dictionary_pagesize_limit=_DICTIONARY_BYTES,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._target.__exit__(kind, error, trace)

    def write(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> None:
        """Appends rows."""
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=self.schema)
        self._writer.write_table(table.cast(self.schema), row_group_size=ROW_GROUP)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One sample.

    Args:
        lung: hash of the lung.
        lung_source: real or generated.
        group: canonical JSON of the nodule group.
        nodules: the group's members on this lung, in the group's order.
        seed: of the sample, not negative.
        weights_nodule: SHA-256 of the weights that made nodules of this sample; None when all are real.
        weights_lung: likewise for the lung.
        weights_enhancer: likewise for the enhancer; None when the sample is not enhanced.

    Raises:
        InputError: when there is no nodule.
    """

    lung: str
    lung_source: Origin
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
        """`synth-` and 16 hex digits that follow from lung, group and seed."""
        return sample_id(int(self.lung, 16), int(_group_id(self.group), 16), self.seed)

    @property
    def category(self) -> str:
        """The nodules' category, or `mixed`."""
        categories = {nodule.category for nodule in self.nodules}
        return categories.pop() if len(categories) == 1 else "mixed"

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
    lung: "Asset",
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
        placements: what `rules.resolve` gave.
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


@lru_cache(maxsize=1 << 16)
def _group_id(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:16]


_DICTIONARIES = ("lung", "lung_source", "group", "weights_nodule", "weights_lung", "weights_enhancer")
_PLACES = ("row_px", "col_px", "distance_mm")


class NotedEnhancement(NamedTuple):
    """What the last stage of a catalogue's samples is.

    Args:
        weights: SHA-256 of the CycleGAN's.
        label_check: whether it must cost and invent no nodule.
    """

    weights: str
    label_check: bool


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

    def find(self, sample: str) -> int | None:
        """The row of a sample's id, or None."""
        index = pc.index(self._ids, sample).as_py()
        return None if index < 0 else int(index)

    @cached_property
    def enhancement(self) -> NotedEnhancement | None:
        """The last stage of its samples; None where they stay composites."""
        weights = [text for text in self.table["weights_enhancer"].unique().to_pylist() if text is not None]
        if not weights:
            return None
        text = (self.table.schema.metadata or {}).get(b"lungsynth.plan", b"{}")
        noted = parse_json(text, _NOTED, source=self.path, what="a catalogue with its plan", remedy=_REMEDY)
        settings = (noted.get("identity") or {}).get("settings") or {}
        return NotedEnhancement(weights[0], settings.get("label_check") is not False)

    def categories(self) -> tuple[str, ...]:
        """The nodules' categories, sorted."""
        groups = [self._values["group"][code] for code in np.unique(self._codes["group"])]
        return tuple(sorted({member.category for text in groups for member in self._group(text, "a group").members}))

    def assets(self) -> list[str]:
        """Hashes of all lungs and nodules of its recipes, sorted."""
        codes = np.unique(self._codes["group"])
        groups = [self._group(self._values["group"][code], "a group") for code in codes]
        lungs = {self._values["lung"][code] for code in np.unique(self._codes["lung"])}
        return sorted(lungs | {member.asset for group in groups for member in group.members})

    def _recipe(self, index: int) -> Recipe:
        row = {name: self._values[name][self._codes[name][index]] for name in _DICTIONARIES}
        places = [self._places[name][self._ends[index] : self._ends[index + 1]].tolist() for name in _PLACES]
        stored_id = self._ids[index].as_py()
        group = self._group(row["group"], f"sample {stored_id} (row {index})")
        if len(group.members) != len(places[0]):
            raise InputError(
                f"{self.path}: sample {stored_id} (row {index}) has places for {len(places[0])} nodules, and its group "
                f"has {len(group.members)}. {_REMEDY}"
            )
        recipe = Recipe(**row, nodules=place(group, list(zip(*places, strict=True))), seed=int(self._seeds[index]))
        if recipe.id != stored_id:
            raise InputError(
                f"{self.path}: sample {stored_id} (row {index}) was changed, its content has the id {recipe.id}. "
                f"{_REMEDY}"
            )
        return recipe

    def _group(self, text: str, where: str) -> NoduleGroup:
        try:
            return _parsed(text)
        except InputError as error:
            raise InputError(f"{self.path}: {where}: {error}") from error


def read_catalogue(path: Path) -> Catalogue:
    """Opens a catalogue.

    Raises:
        InputError: when the file is missing, is no parquet file, lacks columns, or has values that no plan writes.
    """
    table = read_parquet(path, SCHEMA, what="a catalogue", remedy=_REMEDY)
    metadata = table.schema.metadata
    table = table.unify_dictionaries().combine_chunks().replace_schema_metadata(metadata)
    if fault := _fault(table):
        raise InputError(f"{path}: expected a catalogue, but {fault}. {_REMEDY}")
    return Catalogue(table, path)


def _fault(table: pa.Table) -> str | None:
    """What no plan would have written, in words; None where all is well. Whole columns at once."""
    for name in SCHEMA.names:
        if table[name].null_count and not name.startswith("weights_"):
            return f"{table[name].null_count} rows have no {name}"
    columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
    sizes = columns["n_nodules"].to_numpy()
    for name, (low, high) in _LIMITS.items():
        lengths = pc.list_value_length(columns[name]).to_numpy(zero_copy_only=False)
        values = columns[name].flatten().to_numpy(zero_copy_only=False)
        if (lengths != sizes).any() or (lengths < 1).any():
            return f"a row has another number of {name} than of nodules"
        if not ((values >= low) & (values <= high)).all():  # a NaN is not, either
            return f"{name} must lie in {low:g} to {high:g} and be finite"
    for name, pattern in (("lung", HASH), ("lung_source", "|".join(get_args(Origin)))):
        if odd := [text for text in columns[name].dictionary.to_pylist() if not re.fullmatch(pattern, text or "")]:
            return f"{shortened(odd[0])} is no {name}"
    if len(table) and columns["seed"].to_numpy().min() < 0:
        return "a seed is negative"
    if pc.count_distinct(columns["id"]).as_py() != len(table):
        return "several rows have one id"
    return None


@dataclass(frozen=True, kw_only=True)
class PlanWeights:
    """SHA-256 of the weights that recipes name; None where nothing is generated, or samples are not enhanced."""

    nodule: str | None
    enhancer: str | None


def write_pairs(
    writer: TableWriter,
    lungs: Sequence["Asset"],
    parts: Sequence[tuple["Pairs", Sequence[NoduleGroup]]],
    *,
    seed: int,
    weights: PlanWeights,
) -> None:
    """Writes planned pairs, one of each part in turn.

    Args:
        writer: open.
        lungs: that the pairs mean.
        parts: pairs and the groups they mean, as a rule of a category.
        seed: the samples' seeds follow from it, see `sample_seeds`.
        weights: for the recipes.
    """
    groups: list[NoduleGroup] = []
    shifted = []
    for pairs, own in parts:
        shifted.append(replace(pairs, group=pairs.group + np.int32(len(groups))))
        groups += own
    rows = _Rows(lungs=lungs, groups=groups, seed=seed, weights=weights)
    joined, order = shifted[0].joined(shifted), in_turn([len(pairs) for pairs in shifted])
    for begin in range(0, len(order), ROW_GROUP):
        writer.write(rows.table(joined.take(order[begin : begin + ROW_GROUP])))


def in_turn(sizes: Sequence[int]) -> np.ndarray:
    """Indices into lists that lie one after the other: the first of each, the second of each, and so on."""
    place = np.concatenate([np.arange(size) for size in sizes])
    which = np.repeat(np.arange(len(sizes)), sizes)
    return np.lexsort((which, place))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
    lungs: Sequence["Asset"]
    groups: Sequence[NoduleGroup]
    seed: int
    weights: PlanWeights

    @cached_property
    def facts(self) -> "_Facts":
        return _Facts.of(self.lungs, self.groups)

    def table(self, pairs: "Pairs") -> pa.Table:
        facts = self.facts
        lung_hash, group_hash = facts.lung_hash[pairs.lung], facts.group_hash[pairs.group]
        seeds = sample_seeds(self.seed, lung_hash, group_hash)
        sizes = facts.group_size[pairs.group]
        generated = facts.group_generated[pairs.group]
        columns = {
            "id": _ids(hash_arrays(HashDomain.ID, lung_hash, group_hash, seeds)),
            "category": _coded(pairs.group, [group.category for group in self.groups]),
            "lung": _coded(pairs.lung, [lung.hash for lung in self.lungs]),
            "lung_source": _coded(pairs.lung, [lung.source for lung in self.lungs]),
            "group": _coded(pairs.group, [group.json for group in self.groups]),
            "row_px": _lists(pairs.row, sizes, PHASES),
            "col_px": _lists(pairs.col, sizes, PHASES),
            "distance_mm": _lists(pairs.distance, sizes, UNITS_PER_MM),
            "n_nodules": pa.array(sizes.astype(np.int32)),
            "min_distance_mm": pa.array(pairs.min_distance_mm),
            "has_real_voxels": pa.array(facts.lung_real[pairs.lung] | facts.group_real[pairs.group]),
            "seed": pa.array(seeds),
            "weights_nodule": _coded(np.where(generated, 0, 1), [self.weights.nodule, None]),
            "weights_lung": _coded(pairs.lung, [lung.weights for lung in self.lungs]),
            "weights_enhancer": _coded(np.zeros(len(pairs), np.int32), [self.weights.enhancer]),
        }
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


@dataclass(frozen=True, eq=False)
class _Facts:
    """What is looked up for each pair."""

    lung_hash: np.ndarray
    lung_real: np.ndarray
    group_hash: np.ndarray
    group_size: np.ndarray
    group_real: np.ndarray
    group_generated: np.ndarray

    @classmethod
    def of(cls, lungs: Sequence["Asset"], groups: Sequence[NoduleGroup]) -> "_Facts":
        sources = [{member.source for member in group.members} for group in groups]
        return cls(
            lung_hash=np.array([int(lung.hash, 16) for lung in lungs], dtype=np.uint64),
            lung_real=np.array([lung.source == "real" for lung in lungs], dtype=bool),
            group_hash=np.array([int(group.id, 16) for group in groups], dtype=np.uint64),
            group_size=np.array([len(group.members) for group in groups]),
            group_real=np.array(["real" in group for group in sources], dtype=bool),
            group_generated=np.array(["generated" in group for group in sources], dtype=bool),
        )


def _ids(numbers: np.ndarray) -> pa.Array:
    """Texts of ids, without a Python string for each."""
    length = len(ID_PREFIX) + 16
    texts = np.empty((len(numbers), length), dtype=np.uint8)
    texts[:, : len(ID_PREFIX)] = np.frombuffer(ID_PREFIX.encode(), dtype=np.uint8)
    digits = numbers.astype(">u8").tobytes().hex().encode()
    texts[:, len(ID_PREFIX) :] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 16)
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(length)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))


def _coded(index: np.ndarray, texts: Sequence[str | None]) -> pa.DictionaryArray:
    """Texts by index, as a dictionary of those that occur, in the order of first mention in `texts`."""
    distinct = list(dict.fromkeys(text for text in texts if text is not None))
    code = {text: place for place, text in enumerate(distinct)}
    codes = np.array([-1 if text is None else code[text] for text in texts], dtype=np.int32)[index]
    used, codes_used = np.unique(codes, return_inverse=True)
    shift = int(len(used) > 0 and used[0] < 0)
    indices = pa.array(codes_used.astype(np.int32) - shift, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array([distinct[place] for place in used[shift:]], pa.string()))


def _lists(values: np.ndarray, sizes: np.ndarray, units: int) -> pa.ListArray:
    flat = values[np.arange(values.shape[1]) < sizes[:, None]]
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((flat / np.float32(units)).astype(np.float32)))


@lru_cache(maxsize=1 << 16)
def _parsed(group: str) -> NoduleGroup:
    return NoduleGroup.from_json(group)
