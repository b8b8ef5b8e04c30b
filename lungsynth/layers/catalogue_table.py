"""How a catalogue is written: the columns, the ids and seeds of samples, and rows made by the million.

Numbers in `row_px`, `col_px` (quarters of a pixel) and `distance_mm` (1/64 mm) are exact in float32. Rows are written a
part at a time, so memory does not grow with the catalogue.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.layers.assets import Asset
from lungsynth.layers.atomic import replacing
from lungsynth.layers.groups import PHASES, NoduleGroup
from lungsynth.layers.lung_shape import UNITS_PER_MM
from lungsynth.layers.mixing import Purpose, mix, mix_arrays
from lungsynth.layers.selection import Pairs

__all__ = ["SCHEMA", "PlannedRows", "TableWriter", "sample_id", "sample_seeds"]

_ROW_GROUP = 262_144
_DICTIONARY_BYTES = 1 << 28  # a group's text is long; the default would give up the dictionary
_PREFIX = "synth-"
_TEXT = pa.dictionary(pa.int32(), pa.string())
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
    return f"{_PREFIX}{mix(Purpose.ID, lung, group, seed):016x}"


def sample_seeds(seed: int, lungs: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The seeds of pairs, int64 and not negative: a pair's depends on no other pair.

    Args:
        seed: of the run.
        lungs: hashes as numbers, uint64.
        groups: likewise.
    """
    return (mix_arrays(Purpose.SEED, seed, lungs, groups) >> np.uint64(1)).astype(np.int64)


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
        self._writer.write_table(table.cast(self.schema), row_group_size=_ROW_GROUP)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedRows:
    """Rows of planned pairs.

    Args:
        lungs: that the pairs' lung indices mean.
        groups: likewise.
        seed: of the run.
        weights_nodule: SHA-256 of the nodule generator's weights, None where nothing is generated.
        weights_enhancer: likewise of the enhancer.
    """

    lungs: Sequence[Asset]
    groups: Sequence[NoduleGroup]
    seed: int
    weights_nodule: str | None = None
    weights_enhancer: str | None = None

    def write(self, pairs: Pairs, writer: TableWriter, *, order: np.ndarray) -> None:
        """Writes pairs in an order (indices)."""
        facts = _Facts.of(self.lungs, self.groups)
        for begin in range(0, len(order), _ROW_GROUP):
            writer.write(self._table(pairs.take(order[begin : begin + _ROW_GROUP]), facts))

    def _table(self, pairs: Pairs, facts: "_Facts") -> pa.Table:
        lung_hash, group_hash = facts.lung_hash[pairs.lung], facts.group_hash[pairs.group]
        seeds = sample_seeds(self.seed, lung_hash, group_hash)
        sizes = facts.group_size[pairs.group]
        generated = facts.group_generated[pairs.group]
        columns = {
            "id": _ids(mix_arrays(Purpose.ID, lung_hash, group_hash, seeds)),
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
            "weights_nodule": _coded(np.where(generated, 0, 1), [self.weights_nodule, None]),
            "weights_lung": _coded(pairs.lung, [lung.weights for lung in self.lungs]),
            "weights_enhancer": _coded(np.zeros(len(pairs), np.int32), [self.weights_enhancer]),
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
    def of(cls, lungs: Sequence[Asset], groups: Sequence[NoduleGroup]) -> "_Facts":
        sources = [{member.source for member in group.members} for group in groups]
        return cls(
            lung_hash=np.array([int(lung.hash, 16) for lung in lungs], dtype=np.uint64),
            lung_real=np.array([lung.source == "real" for lung in lungs], dtype=bool),
            group_hash=np.array([int(group.id, 16) for group in groups], dtype=np.uint64),
            group_size=np.array([len(group.members) for group in groups]),
            group_real=np.array(["real" in found for found in sources], dtype=bool),
            group_generated=np.array(["generated" in found for found in sources], dtype=bool),
        )


def _ids(numbers: np.ndarray) -> pa.Array:
    """Texts of ids, without a Python string for each."""
    length = len(_PREFIX) + 16
    texts = np.empty((len(numbers), length), dtype=np.uint8)
    texts[:, : len(_PREFIX)] = np.frombuffer(_PREFIX.encode(), dtype=np.uint8)
    digits = numbers.astype(">u8").tobytes().hex().encode()
    texts[:, len(_PREFIX) :] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 16)
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(length)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))


def _coded(index: np.ndarray, texts: Sequence[str | None]) -> pa.DictionaryArray:
    """Texts by index, as a dictionary of those that occur, in the order of first mention in `texts`."""
    known = list(dict.fromkeys(text for text in texts if text is not None))
    code = {text: place for place, text in enumerate(known)}
    codes = np.array([code.get(text, -1) for text in texts], dtype=np.int32)[index]
    used, codes_used = np.unique(codes, return_inverse=True)
    shift = int(len(used) > 0 and used[0] < 0)
    indices = pa.array(codes_used.astype(np.int32) - shift, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array([known[place] for place in used[shift:]], pa.string()))


def _lists(values: np.ndarray, sizes: np.ndarray, units: int) -> pa.ListArray:
    flat = values[np.arange(values.shape[1]) < sizes[:, None]]
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((flat / np.float32(units)).astype(np.float32)))
