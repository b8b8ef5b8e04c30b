"""Finds the pair that a user names, by sample id or as LUNG:GROUP, and has it explained."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lungsynth.chain.plan_record import PlanRecord, read_groups
from lungsynth.errors import InputError
from lungsynth.layers import AssetLibrary, NoduleGroup, read_catalogue
from lungsynth.layers.catalogue_table import sample_id, sample_seeds
from lungsynth.layers.explain import Explanation, PairPlace, explain
from lungsynth.layers.library_lungs import LibraryLungs
from lungsynth.layers.mixing import Purpose, mix_arrays

__all__ = ["PlanExplainer"]

_HASH_DIGITS = 16


@dataclass(frozen=True)
class _Pair:
    lung: int
    group: int  # among all groups of all categories


class PlanExplainer:
    """A finished plan that answers for its pairs.

    Args:
        path: the catalogue.
        library: folder of its library; the catalogue's own when None.
        vessel_masks: the folder that the plan was made with.

    Raises:
        InputError: when a file of the plan is missing.
    """

    def __init__(self, path: Path, *, library: Path | None = None, vessel_masks: Path | None = None) -> None:
        self.catalogue = read_catalogue(path)
        self.record = PlanRecord.read(self.catalogue)
        real_voxels = bool(self.record.identity["settings"]["real_voxels"])
        folder = AssetLibrary(library or path.parent)
        self.lungs = LibraryLungs.of(folder, real_voxels=real_voxels, vessel_masks=vessel_masks)
        self.lungs = self.lungs.first(int(self.record.identity["settings"]["lungs"]))
        self._groups = list(read_groups(path))

    def explain(self, query: str) -> tuple[str, Explanation]:
        """The sample id of a pair, and what is to be said of it.

        Args:
            query: a sample id, of a kept pair or of any other; or LUNG:GROUP, each a hash or an index.

        Raises:
            InputError: when there is no such pair.
        """
        pair = self._by_names(query) if ":" in query else self._by_id(query)
        category, group_id, text = self._groups[pair.group]
        part = self.record.parts[category]
        lung_hash = self.lungs.hashes[pair.lung]
        first = next(index for index, (name, _, _) in enumerate(self._groups) if name == category)
        place = PairPlace(lung=pair.lung, lung_hash=lung_hash, group=pair.group - first, groups=part.groups)
        found = explain(
            self.lungs[pair.lung],
            NoduleGroup.from_json(text),
            place,
            rules=self.record.rules,
            ranking=part.ranking,
            threshold=part.threshold,
            prior=self.record.prior,
        )
        hashes = (np.array([number], dtype=np.uint64) for number in (lung_hash, int(group_id, 16)))
        seed = int(sample_seeds(self.record.sample_seed, *hashes)[0])
        return sample_id(lung_hash, int(group_id, 16), seed), found

    @cached_property
    def _group_hashes(self) -> np.ndarray:
        return np.array([int(group_id, 16) for _, group_id, _ in self._groups], dtype=np.uint64)

    def _by_id(self, sample: str) -> _Pair:
        wanted = _number(sample.removeprefix("synth-"), sample)
        for index, lung in enumerate(self.lungs.hashes):
            lungs = np.uint64(lung)
            seeds = sample_seeds(self.record.sample_seed, lungs, self._group_hashes)
            found = np.flatnonzero(mix_arrays(Purpose.ID, lungs, self._group_hashes, seeds) == np.uint64(wanted))
            if len(found):
                return _Pair(index, int(found[0]))
        raise InputError(
            f"{sample}: no pair of {len(self.lungs)} lungs and {len(self._groups)} groups of {self.catalogue.path} has "
            "this id. Look it up in the catalogue that it comes from."
        )

    def _by_names(self, query: str) -> _Pair:
        lung, group = query.split(":", 1)
        return _Pair(
            _index(lung, [asset.hash for asset in self.lungs.assets], "lung"),
            _index(group, [group_id for _, group_id, _ in self._groups], "group"),
        )


def _number(digits: str, text: str) -> int:
    try:
        return int(digits, 16) if len(digits) == _HASH_DIGITS else int("")
    except ValueError:
        raise InputError(f"Expected a sample id (synth- and 16 hex digits) or LUNG:GROUP, got {text!r}.") from None


def _index(name: str, names: Sequence[str], what: str) -> int:
    if len(name) < _HASH_DIGITS and name.isdecimal() and int(name) < len(names):
        return int(name)
    if name in names:
        return names.index(name)
    raise InputError(f"No {what} {name}; give the hash of one of the {len(names)}, or its index from 0.")
