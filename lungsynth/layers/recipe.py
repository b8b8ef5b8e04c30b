"""A recipe: what one sample is made of. It names a lung and nodules by the hashes of their assets."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from lungsynth.errors import InputError
from lungsynth.layers.assets import Asset, Source
from lungsynth.layers.catalogue_table import sample_id
from lungsynth.layers.groups import NoduleGroup
from lungsynth.layers.placement import NodulePlacement

__all__ = ["Recipe", "make_recipe"]


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
        """`synth-` and 16 hex digits that follow from lung, group and seed."""
        return sample_id(int(self.lung, 16), int(_group_id(self.group), 16), self.seed)

    @property
    def category(self) -> str:
        """The nodules' category, or `mixed`."""
        found = {nodule.category for nodule in self.nodules}
        return found.pop() if len(found) == 1 else "mixed"

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


@lru_cache(maxsize=1 << 16)
def _group_id(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:16]
