"""Rows of planned pairs, made by the million: whole columns at once, a part of the catalogue at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from lungsynth.layers.assets import Asset
from lungsynth.layers.catalogue_table import ID_PREFIX, ROW_GROUP, SCHEMA, TableWriter, sample_seeds
from lungsynth.layers.groups import PHASES, NoduleGroup
from lungsynth.layers.lung_shape import UNITS_PER_MM
from lungsynth.layers.mixing import Purpose, mix_arrays
from lungsynth.layers.selection import Pairs, in_turn

__all__ = ["PlanWeights", "write_pairs"]


@dataclass(frozen=True, kw_only=True)
class PlanWeights:
    """SHA-256 of the weights that recipes name; None where nothing is generated, or samples are not enhanced."""

    nodule: str | None
    enhancer: str | None


def write_pairs(
    writer: TableWriter,
    lungs: Sequence[Asset],
    parts: Sequence[tuple[Pairs, Sequence[NoduleGroup]]],
    *,
    seed: int,
    weights: PlanWeights,
) -> None:
    """Writes planned pairs, one of each part in turn.

    Args:
        writer: open.
        lungs: that the pairs mean.
        parts: pairs and the groups they mean, as a rule of a category.
        seed: the samples' seeds follow from it, see `catalogue_table.sample_seeds`.
        weights: for the recipes.
    """
    groups: list[NoduleGroup] = []
    shifted = []
    for pairs, own in parts:
        shifted.append(Pairs(**{**vars(pairs), "group": pairs.group + np.int32(len(groups))}))
        groups += own
    rows = _Rows(lungs=lungs, groups=groups, seed=seed, weights=weights)
    joined, order = Pairs.joined(shifted), in_turn([len(pairs) for pairs in shifted])
    for begin in range(0, len(order), ROW_GROUP):
        writer.write(rows.table(joined.take(order[begin : begin + ROW_GROUP])))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
    lungs: Sequence[Asset]
    groups: Sequence[NoduleGroup]
    seed: int
    weights: PlanWeights

    @cached_property
    def facts(self) -> "_Facts":
        return _Facts.of(self.lungs, self.groups)

    def table(self, pairs: Pairs) -> pa.Table:
        facts = self.facts
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
    length = len(ID_PREFIX) + 16
    texts = np.empty((len(numbers), length), dtype=np.uint8)
    texts[:, : len(ID_PREFIX)] = np.frombuffer(ID_PREFIX.encode(), dtype=np.uint8)
    digits = numbers.astype(">u8").tobytes().hex().encode()
    texts[:, len(ID_PREFIX) :] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 16)
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(length)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))


def _coded(index: np.ndarray, texts: Sequence[str | None]) -> pa.DictionaryArray:
    """Texts by index, as a dictionary of those that occur, in the order of first mention in `texts`."""
    known = list(dict.fromkeys(text for text in texts if text is not None))
    code = {text: place for place, text in enumerate(known)}
    codes = np.array([-1 if text is None else code[text] for text in texts], dtype=np.int32)[index]
    used, codes_used = np.unique(codes, return_inverse=True)
    shift = int(len(used) > 0 and used[0] < 0)
    indices = pa.array(codes_used.astype(np.int32) - shift, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array([known[place] for place in used[shift:]], pa.string()))


def _lists(values: np.ndarray, sizes: np.ndarray, units: int) -> pa.ListArray:
    flat = values[np.arange(values.shape[1]) < sizes[:, None]]
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((flat / np.float32(units)).astype(np.float32)))
