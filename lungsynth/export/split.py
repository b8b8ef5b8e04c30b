"""Training and validation parts of a catalogue's samples: no lung, no nodule and no patient is in both.

All that must stay together is a block: the lungs and nodules of a patient, or a generated one by itself. Where samples
fall apart into clusters that share no block, whole clusters are for validation and no sample is lost. A catalogue that
lays each group on many lungs is one cluster: there some lungs and the nodules that are mostly on them are for
validation, and a sample that would tie the two parts together is in neither. The same catalogue has the same parts,
however much of it is rendered.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lungsynth.errors import InputError
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue
from lungsynth.placement.groups import NoduleGroup

__all__ = ["PARTS", "VALIDATION_SHARE", "Part", "Provenance", "catalogue_parts", "provenances", "split_blocks"]

Part = Literal["training", "validation", "unused"]
PARTS: tuple[Part, ...] = ("training", "validation", "unused")
VALIDATION_SHARE = 0.2
_ENOUGH = 0.5  # of that share: with so much from whole clusters, none is cut


class Provenance(NamedTuple):
    """What a sample was made of.

    Args:
        part: of the catalogue.
        lung: hash of its asset.
        nodules: likewise.
        patients: whose voxels are in it, sorted.
        unnamed: how many of its lung and nodules name no patient.
    """

    part: Part
    lung: str
    nodules: tuple[str, ...]
    patients: tuple[str, ...]
    unnamed: int


def provenances(catalogue: Catalogue, library: AssetLibrary, ids: Sequence[str]) -> list[Provenance]:
    """What samples were made of, and their parts.

    Args:
        catalogue: all of it decides over the parts.
        library: its assets, which name their patients.
        ids: of recipes.

    Raises:
        InputError: when the catalogue has no recipe of an id, or the library lacks an asset.
    """
    table = catalogue.table
    lung_of, lungs = _coded(table["lung"])
    group_of, groups = _groups(catalogue)
    parts = catalogue_parts(catalogue, library)
    patient_of = {asset.hash: asset.patient for asset in library}
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=table["id"].combine_chunks()).to_pylist()
    if None in rows:
        raise InputError(f"{catalogue.path}: has no sample {ids[rows.index(None)]}; give the catalogue it was made of.")
    found = []
    for row in rows:
        lung, nodules = lungs[lung_of[row]], groups[group_of[row]]
        named = [patient for asset in (lung, *nodules) if (patient := patient_of.get(asset))]
        unnamed = 1 + len(nodules) - len(named)
        found.append(Provenance(PARTS[parts[row]], lung, nodules, tuple(sorted(set(named))), unnamed))
    return found


def catalogue_parts(catalogue: Catalogue, library: AssetLibrary) -> np.ndarray:
    """The part of each of a catalogue's samples, as an index into `PARTS`."""
    lung_of, lungs = _coded(catalogue.table["lung"])
    group_of, groups = _groups(catalogue)
    blocks = _Blocks.of(lungs, groups, {asset.hash: asset.patient for asset in library})
    return split_blocks(lung_of, group_of, blocks.lungs, blocks.groups, keys=blocks.keys)


def split_blocks(
    lung_of: np.ndarray,
    group_of: np.ndarray,
    lung_blocks: Sequence[int],
    group_blocks: Sequence[Sequence[int]],
    *,
    keys: Sequence[str],
) -> np.ndarray:
    """The part of each sample, as an index into `PARTS`.

    Args:
        lung_of: index of each sample's lung, (n,).
        group_of: index of each sample's group, (n,).
        lung_blocks: block of each lung.
        group_blocks: blocks of each group.
        keys: a text for each block, which decides in what order they are taken.

    Returns:
        int8 (n,); all training where there is only one lung, or one block.
    """
    lung_block = np.asarray(lung_blocks)[lung_of]
    sample_of, nodule_block = _flat(group_of, group_blocks)
    ends = lung_block[sample_of], nodule_block
    graph = coo_array((np.ones(len(sample_of), dtype=bool), ends), shape=(len(keys), len(keys)))
    _, cluster_of_block = connected_components(graph, directed=False)
    cluster_of = cluster_of_block[lung_block]
    order = np.argsort([hashlib.sha256(key.encode()).digest() for key in keys])
    validates = _whole_clusters(cluster_of, cluster_of_block[order])
    parts = np.where(validates[cluster_of], 1, 0).astype(np.int8)
    if parts.mean() < _ENOUGH * VALIDATION_SHARE:
        inside = cluster_of == np.bincount(cluster_of).argmax()
        nodules = inside[sample_of]
        row_of = np.cumsum(inside) - 1  # of a sample, among those of the cluster
        parts[inside] = _cut(lung_block[inside], row_of[sample_of[nodules]], nodule_block[nodules], order)
    return parts


def _whole_clusters(cluster_of: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which clusters are for validation: in the order of their first block, as many as fit into the share.

    Where hardly any fits, the smallest of all, unless it has twice the share.
    """
    sizes = np.bincount(cluster_of, minlength=int(ordered.max()) + 1)
    chosen, taken, wanted = np.zeros(len(sizes), dtype=bool), 0, VALIDATION_SHARE * len(cluster_of)
    for cluster in dict.fromkeys(ordered.tolist()):
        if sizes[cluster] and taken + sizes[cluster] <= max(wanted, 1) and sizes[cluster] < len(cluster_of):
            chosen[cluster] = True
            taken += sizes[cluster]
    left = [cluster for cluster in np.argsort(sizes, kind="stable") if sizes[cluster] and not chosen[cluster]]
    if len(left) > 1 and taken < _ENOUGH * wanted and taken + sizes[left[0]] <= 2 * wanted:
        chosen[left[0]] = True
    return chosen


def _cut(lungs: np.ndarray, sample_of: np.ndarray, nodules: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Parts of the samples of one cluster: some lungs for validation, and the nodules that are mostly on them.

    Args:
        lungs: block of each sample's lung, (n,).
        sample_of: index of the sample of each nodule, (m,).
        nodules: block of each nodule, (m,).
        order: of all blocks.
    """
    size = np.bincount(lungs, minlength=len(order))
    validates, taken = np.zeros(len(order), dtype=bool), 0
    candidates = [block for block in order if size[block]]
    for block in candidates[:-1]:
        if taken < VALIDATION_SHARE * len(lungs):
            validates[block] = True
            taken += size[block]
    with_validation = validates[lungs[sample_of]]
    uses = [
        np.where(size > 0, 0, np.bincount(nodules[side], minlength=len(order)))
        for side in (~with_validation, with_validation)
    ]
    rank = np.argsort(order)
    mostly = sorted(np.flatnonzero(uses[1]), key=lambda b: (-uses[1][b] / (uses[0][b] + uses[1][b]), rank[b]))
    won, rest = 0, int(uses[0].sum())
    for block in mostly:
        if won >= VALIDATION_SHARE * (won + rest):
            break
        validates[block] = True
        won, rest = won + int(uses[1][block]), rest - int(uses[0][block])
    total = 1 + np.bincount(sample_of, minlength=len(lungs))
    found = validates[lungs] + np.bincount(sample_of[validates[nodules]], minlength=len(lungs))
    parts = np.select([found == 0, found == total], [0, 1], 2).astype(np.int8)
    return parts if (parts == 0).any() and (parts == 1).any() else np.zeros(len(parts), np.int8)


class _Blocks(NamedTuple):
    """The block of each lung, those of each group, and a text for each block."""

    lungs: list[int]
    groups: list[list[int]]
    keys: list[str]

    @classmethod
    def of(cls, lungs: Sequence[str], groups: Sequence[Sequence[str]], patient_of: dict[str, str | None]) -> "_Blocks":
        keys: dict[str, int] = {}

        def block(asset: str) -> int:
            patient = patient_of.get(asset)
            return keys.setdefault(f"patient {patient}" if patient else asset, len(keys))

        named = [block(lung) for lung in lungs]
        return cls(named, [[block(asset) for asset in group] for group in groups], list(keys))


def _groups(catalogue: Catalogue) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """The group of each sample, as an index, and the nodules of each group."""
    group_of, texts = _coded(catalogue.table["group"])
    return group_of, [tuple(member.asset for member in NoduleGroup.from_json(text).members) for text in texts]


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Indices and values of a dictionary column."""
    encoded = column.combine_chunks()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _flat(group_of: np.ndarray, group_blocks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each nodule of each sample the sample, and the nodule's block."""
    sizes = np.array([len(group) for group in group_blocks])
    blocks = np.array([block for group in group_blocks for block in group], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    n = sizes[group_of]
    within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    return np.repeat(np.arange(len(group_of)), n), blocks[np.repeat(starts[group_of], n) + within]
