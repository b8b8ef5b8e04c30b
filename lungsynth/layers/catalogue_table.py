"""The file of a catalogue: its columns, how it is written, and the ids and seeds of samples.

Numbers in `row_px`, `col_px` (quarters of a pixel) and `distance_mm` (1/64 mm) are exact in float32.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.layers.atomic import replacing
from lungsynth.layers.mixing import Purpose, mix, mix_arrays

__all__ = ["ID_PREFIX", "ROW_GROUP", "SCHEMA", "TableWriter", "sample_id", "sample_seeds"]

ROW_GROUP = 262_144
_DICTIONARY_BYTES = 1 << 28  # a group's text is long; the default would give up the dictionary
ID_PREFIX = "synth-"
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
    return f"{ID_PREFIX}{mix(Purpose.ID, lung, group, seed):016x}"


def sample_seeds(seed: int, lungs: Any, groups: np.ndarray) -> np.ndarray:
    """The seeds of pairs, int64 and not negative: a pair's depends on no other pair.

    Args:
        seed: of the run.
        lungs: hashes as numbers, uint64, an array or one.
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
        self._writer.write_table(table.cast(self.schema), row_group_size=ROW_GROUP)
