"""What a catalogue remembers of its plan, in its file and in one of groups beside it: enough to explain any pair."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lungsynth.errors import InputError
from lungsynth.io.atomic import replacing
from lungsynth.placement.catalogue import Catalogue
from lungsynth.placement.groups import NoduleGroup
from lungsynth.placement.planning import PairOrder, PlacementPlan
from lungsynth.placement.policy import PolicyWeights
from lungsynth.placement.presence import PresencePrior
from lungsynth.placement.rules import PlacementRules

__all__ = ["PartRecord", "PlanRecord", "groups_path", "write_groups"]

METADATA_KEY = "plan"


@dataclass(frozen=True, eq=False, kw_only=True)
class PartRecord:
    """One category of a plan.

    Args:
        groups: all that were tried.
        kept: samples.
        candidates: pairs.
        verdicts: pairs by name of the verdict.
        threshold: the highest rank kept.
        ranking: what pairs were ranked by.
        gaps: see `placement.planning.Plan`.
    """

    groups: int
    kept: int
    candidates: int
    verdicts: Mapping[str, int]
    threshold: int
    ranking: PairOrder
    gaps: tuple[float, float] | None

    @classmethod
    def of(cls, plan: PlacementPlan, groups: int) -> "PartRecord":
        """The record of a plan."""
        return cls(
            groups=groups,
            kept=len(plan),
            candidates=plan.candidates,
            verdicts={verdict.name: count for verdict, count in plan.verdicts.items()},
            threshold=plan.threshold,
            ranking=plan.ranking,
            gaps=plan.gaps,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        weights = self.ranking.weights
        return {
            **{name: getattr(self, name) for name in ("groups", "kept", "candidates", "threshold")},
            "verdicts": dict(self.verdicts),
            "weights": None
            if weights is None
            else {"distance": weights.distance.tolist(), "size": weights.size.tolist()},
            "seed": self.ranking.seed,
            "gaps": self.gaps,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PartRecord":
        """The record of which these are the values."""
        found = values["weights"]
        weights = None if found is None else PolicyWeights(**{key: np.array(factors) for key, factors in found.items()})
        names = ("groups", "kept", "candidates", "threshold", "verdicts")
        ranking = PairOrder(weights=weights, seed=values["seed"])
        gaps = values["gaps"]
        return cls(
            **{name: values[name] for name in names}, ranking=ranking, gaps=None if gaps is None else (gaps[0], gaps[1])
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PlanRecord:
    """A plan as its catalogue remembers it.

    Args:
        identity: settings, cohort and assets; equal for equal plans.
        sample_seed: what the samples' seeds are mixed with.
        parts: by category.
        figures: what was reported.
        prior: presence of nodules.
    """

    identity: Mapping[str, Any]
    sample_seed: int
    parts: Mapping[str, PartRecord]
    figures: Mapping[str, Any]
    prior: PresencePrior

    @property
    def rules(self) -> PlacementRules:
        """Of placement."""
        return PlacementRules.from_json(self.identity["settings"]["rules"])

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "identity": dict(self.identity),
            "sample_seed": self.sample_seed,
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "figures": dict(self.figures),
            "prior": np.round(self.prior.grid, 4).tolist(),
        }

    @classmethod
    def read(cls, catalogue: Catalogue) -> "PlanRecord":
        """The record in a catalogue's file.

        Raises:
            InputError: when there is none.
        """
        text = (catalogue.table.schema.metadata or {}).get(f"lungsynth.{METADATA_KEY}".encode())
        if text is None:
            raise InputError(f"{catalogue.path}: no plan is noted in it; catalogues of scripts/plan.py have one.")
        values = json.loads(text)
        return cls(
            identity=values["identity"],
            sample_seed=values["sample_seed"],
            parts={name: PartRecord.from_json(part) for name, part in values["parts"].items()},
            figures=values["figures"],
            prior=PresencePrior(np.array(values["prior"])),
        )


def groups_path(catalogue: Path) -> Path:
    """Where the groups of a catalogue are, those included of which no pair was kept."""
    return catalogue.with_name(f"{catalogue.stem}.groups.parquet")


def write_groups(groups: Mapping[str, Sequence[NoduleGroup]], catalogue: Path) -> Path:
    """Writes the groups of each category."""
    rows = [(category, group.id, group.json) for category, own in groups.items() for group in own]
    names = ("category", "id", "group")
    columns = zip(*rows, strict=True)
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    with replacing(groups_path(catalogue)) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["category"])
    return groups_path(catalogue)


def read_groups(catalogue: Path) -> Iterator[tuple[str, str, str]]:
    """(category, id, canonical JSON) of each group, in the order of the plan.

    Raises:
        InputError: when the file is missing.
    """
    path = groups_path(catalogue)
    if not path.is_file():
        raise InputError(f"{path}: expected the groups of {catalogue.name}, found no such file. Plan it again.")
    table = pq.read_table(path)
    return zip(*(table[name].to_pylist() for name in ("category", "id", "group")), strict=True)
