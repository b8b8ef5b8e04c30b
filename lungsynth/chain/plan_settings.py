"""What a plan at the paper's size is: the command line of `scripts/plan.py`, and the paper's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lungsynth.errors import InputError
from lungsynth.placement.policy import Policy
from lungsynth.placement.rules import PlacementRules
from lungsynth.similarity.strategies import Selection, select_by

__all__ = ["PAPER", "PlanSettings", "default_rules"]

# Chi et al. (2023), a disease: 50 normal and 50 nodule images -> 200 real and 1,000 generated nodules, 50 real and 450
# generated lungs, 5,000 groups -> 2,500,000 overlays -> the 1,000,000 farthest from the edge.
PAPER: Mapping[str, int] = {"lungs": 500, "groups": 5000, "keep": 1_000_000, "nodules": 1200}


def default_rules(policy: Policy) -> PlacementRules:
    """The rules of a policy: the paper's wants nodules away from the edge, the others must reach the pleura too."""
    if policy == "farthest":
        return PlacementRules()
    return PlacementRules(types=("isolated", "juxta_pleural", "juxta_vascular"))


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The command line of `scripts/plan.py`; numbers count for each category.

    Args:
        out: the catalogue; assets are made beside it.
        lungs: distinct lungs, shared by the categories.
        groups: nodule groups a category.
        keep: samples a category (`matched`, `balanced`: of the category that gets most).
        nodules: distinct nodules a category.
        policy: see `placement.policy`.
        seed: of everything random, not negative.
        rules: of placement; those of the policy when None.
        bundles: folder of the bundles; needed to make assets, and to enhance.
        cohort: lends real lungs and nodules, and says how real ones are distributed.
        library: folder of a library that is there already, instead of making assets.
        real_voxels: whether a patient's voxels may be in samples.
        vessel_masks: see `library_lungs.LibraryLungs`.
        enhance: note the enhancer's weights in the recipes.
        ranking: rule by which generated assets are chosen (`ranking.Ranking`); None for `spread` with a cohort.
        candidates: generated for each one kept; None for 3 where they are ranked.

    Raises:
        InputError: when a value is out of its range, or a policy lacks its cohort.
    """

    out: Path
    lungs: int
    groups: int
    keep: int
    nodules: int = PAPER["nodules"]
    policy: Policy = "farthest"
    seed: int = 0
    rules: PlacementRules | None = None
    bundles: Path | None = None
    cohort: Path | None = None
    library: Path | None = None
    real_voxels: bool = True
    vessel_masks: Path | None = None
    enhance: bool = False
    ranking: str | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("lungs", 1), ("groups", 1), ("keep", 1), ("nodules", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise InputError(f"--{name} must be at least {low}, got {getattr(self, name)}.")
        if self.policy not in get_args(Policy):
            raise InputError(f"--policy must be one of {get_args(Policy)}, got {self.policy!r}.")
        if self.policy == "matched" and self.cohort is None:
            raise InputError("--policy matched needs --cohort: its real nodules are what is matched.")
        if self.vessel_masks is not None and not self.vessel_masks.is_dir():
            raise InputError(f"--vessel-masks: expected a folder of masks, got {self.vessel_masks}.")
        if self.bundles is None and (self.library is None or self.enhance):
            raise InputError("A plan needs --bundles to make assets and to enhance; without them give --library.")
        select_by(self.cohort, self.ranking, self.candidates)

    @property
    def selection(self) -> Selection:
        """How generated assets are chosen, where they are made."""
        return select_by(self.cohort, self.ranking, self.candidates)

    @property
    def placement_rules(self) -> PlacementRules:
        """The rules asked for, else those of the policy."""
        return self.rules or default_rules(self.policy)

    @property
    def folder(self) -> Path:
        """Where the library is."""
        return self.library or self.out.parent

    def to_json(self) -> dict[str, Any]:
        """What decides the bytes of the catalogue beside its assets and its cohort."""
        names = ("lungs", "groups", "keep", "nodules", "policy", "seed", "real_voxels", "enhance")
        return {
            **{name: getattr(self, name) for name in names},
            "rules": self.placement_rules.to_json(),
            "vessel_masks": self.vessel_masks is not None,
        }
