"""Nodule groups: nodules that appear together on one slice, with their transforms, not yet on any lung.

A group knows positions in the frame of `presence` (u, v) and how each patch is turned, mirrored and scaled. It is
resolved on a lung by `placement`. Its canonical JSON is its identity: equal groups have equal text and an equal id.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from lungsynth.errors import InputError
from lungsynth.layers.assets import Asset, Source
from lungsynth.layers.presence import PresencePrior

__all__ = ["GroupSettings", "Member", "NoduleGroup", "draw_groups"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One nodule of a group.

    Args:
        asset: hash of the nodule.
        category: its class.
        source: real or generated.
        diameter_mm: after scaling.
        u: 0 patient's right .. 1 left, in the bounding box of the lungs.
        v: 0 anterior .. 1 posterior.
        rotation_deg: turns the patch's column axis towards its row axis (clockwise on the screen).
        flip: mirrors the patch's columns, before turning.
        scale: enlarges the patch.

    Raises:
        InputError: when a value is out of its range.
    """

    asset: str
    category: str
    source: Source
    diameter_mm: float
    u: float
    v: float
    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.u <= 1 and 0 <= self.v <= 1 and self.diameter_mm > 0 and self.scale > 0):
            raise InputError(
                f"A member of a group needs u and v in [0, 1], a positive diameter_mm and a positive scale, got "
                f"u={self.u:g}, v={self.v:g}, diameter_mm={self.diameter_mm:g}, scale={self.scale:g}."
            )


@dataclass(frozen=True)
class NoduleGroup:
    """Nodules of one slice.

    Raises:
        InputError: when there are none.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise InputError("A nodule group needs at least one member.")

    @cached_property
    def json(self) -> str:
        """Canonical JSON: a list of members, keys sorted, no spaces."""
        return json.dumps([asdict(member) for member in self.members], sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> "NoduleGroup":
        """The group whose `json` this is.

        Raises:
            InputError: when the text is not that of a group.
        """
        try:
            return cls(tuple(Member(**member) for member in json.loads(text)))
        except (TypeError, json.JSONDecodeError) as error:
            raise InputError(f"Expected the JSON of a nodule group, got {text[:80]!r} ({error}).") from error


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """How groups are drawn.

    Args:
        count_probabilities: nodules a slice -> probability; scaled to a sum of 1.
        scale_range: of the patches.
        rotate: by any angle; else not at all.
        flip: mirror every second nodule on average.

    Raises:
        InputError: when a probability is negative, all are zero, a count is below 1, or the range is empty.
    """

    count_probabilities: Mapping[int, float] = field(default_factory=lambda: {1: 0.7, 2: 0.2, 3: 0.1})
    scale_range: tuple[float, float] = (0.9, 1.1)
    rotate: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        weights, counts = self.count_probabilities.values(), self.count_probabilities.keys()
        if not counts or min(counts) < 1 or min(weights) < 0 or sum(weights) <= 0:
            raise InputError(
                f"count_probabilities needs counts >= 1 with probabilities, got {dict(self.count_probabilities)}."
            )
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise InputError(f"scale_range needs 0 < low <= high, got {self.scale_range}.")


def draw_groups(
    nodules: Sequence[Asset], n: int, *, seed: int, prior: PresencePrior, settings: GroupSettings | None = None
) -> list[NoduleGroup]:
    """Draws n groups; group i depends on the seed and i alone, so a longer list begins with the shorter one.

    Args:
        nodules: to choose from, all equally likely (the paper: 200 real and 1,000 generated ones).
        n: number of groups (the paper: 5,000 a category).
        seed: not negative.
        prior: presence probability.
        settings: counts, scales and turns.

    Raises:
        InputError: when there is no nodule.
    """
    if not nodules:
        raise InputError("Drawing groups needs at least one nodule, got none. Ask for another category or add nodules.")
    chosen = settings or GroupSettings()
    return [_draw_group(nodules, np.random.default_rng([seed, index]), prior, chosen) for index in range(n)]


def _draw_group(
    nodules: Sequence[Asset], rng: np.random.Generator, prior: PresencePrior, settings: GroupSettings
) -> NoduleGroup:
    counts = list(settings.count_probabilities)
    weights = np.array([settings.count_probabilities[count] for count in counts], dtype=np.float64)
    count = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    positions = prior.sample(rng, count)
    members = []
    for (u, v), index in zip(
        positions, rng.choice(len(nodules), size=count, replace=count > len(nodules)), strict=True
    ):
        nodule = nodules[int(index)]
        # Rounded so that the text is short and says all there is.
        scale = round(float(rng.uniform(*settings.scale_range)), 3)
        rotation, flip = round(float(rng.uniform(0, 360)), 1), bool(rng.integers(2))
        members.append(
            Member(
                asset=nodule.hash,
                category=nodule.category,
                source=nodule.source,
                diameter_mm=round((nodule.diameter_mm or 0) * scale, 3),
                u=round(float(u), 4),
                v=round(float(v), 4),
                rotation_deg=rotation if settings.rotate else 0.0,
                flip=flip and settings.flip,
                scale=scale,
            )
        )
    return NoduleGroup(tuple(members))
