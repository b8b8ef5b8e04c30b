"""The design of a trial: its factors and their levels, how they are crossed, and what a trial of it can show.

A design is a small YAML or JSON file, or flags:

    factors:
      diameter_mm: [4, 6, 8, 12]
      texture: [solid, part_solid, ground_glass]
      distance_mm: [attached, "2:8", "10:"]
    hosts: 40
    replicates: 1
    paired: true
    fraction: 1

Paired hosts carry every cell (combination of levels), so that cells differ by nothing but their levels. Hosts that are
not paired carry the cells that find a place on them, and further ones fill up. With a `fraction` of k, each host
carries every k-th cell, and k hosts in turn carry them all.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from scipy.stats import norm

from lungsynth.errors import InputError, naming_file

__all__ = [
    "ATTACHED",
    "FACTORS",
    "Cell",
    "Factor",
    "Level",
    "TrialDesign",
    "describe_power",
    "in_words",
    "level_label",
    "parse_levels",
    "read_design",
]

Level = float | str | tuple[float, float | None]
Cell = Mapping[str, Level]

ATTACHED = "attached"
_SENSITIVITY = 0.7  # that power is stated at
_CORRELATION = 0.1  # of a detector's answers on one host, likewise; what real trials have is in their reports
_Z_95, _Z_80 = float(norm.ppf(0.975)), float(norm.ppf(0.8))
_LARGEST_MM = 40.0  # of nodules: a patch of 44.8 mm holds no larger one
_DEFAULTS: Mapping[str, tuple[Level, ...]] = {
    "diameter_mm": (4.0, 6.0, 8.0, 12.0, 18.0),
    "texture": ("solid", "part_solid", "ground_glass"),
}


@dataclass(frozen=True, kw_only=True)
class Factor:
    """What a trial can vary.

    Args:
        title: in reports, with its unit.
        phrase: that says a level of it.
        kind: of its levels: numbers, names, or ranges of a number.
        names: that a level may have.
        low: the smallest number that makes sense.
        high: the largest.
        curve: whether detection is fitted as a curve over its numbers: on a scale of `log` or `linear`; None for none.
    """

    title: str
    phrase: str
    kind: Literal["number", "name", "range"]
    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = float("inf")
    curve: Literal["log", "linear"] | None = None


FACTORS: Mapping[str, Factor] = {
    "diameter_mm": Factor(title="diameter, mm", phrase="{} mm", kind="number", low=2.0, high=_LARGEST_MM, curve="log"),
    "texture": Factor(title="texture", phrase="{}", kind="name"),
    "distance_mm": Factor(
        title="edge to pleura, mm",
        phrase="{} mm from the pleura",
        kind="range",
        names=(ATTACHED,),
    ),
    "vessel": Factor(title="vessels", phrase="vessels: {}", kind="name", names=("free", "contact")),
    "contrast_hu": Factor(
        title="contrast to the lung, HU", phrase="contrast {} HU", kind="number", low=20.0, high=1500.0, curve="linear"
    ),
    "third": Factor(
        title="third of the lungs", phrase="{} third", kind="name", names=("anterior", "middle", "posterior")
    ),
    "side": Factor(title="side", phrase="{} lung", kind="name", names=("right", "left")),
    "noise": Factor(
        title="noise of the slice, times its own", phrase="{} times the noise", kind="number", low=1.0, high=10.0
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrialDesign:
    """What is varied, and on how many hosts.

    Args:
        factors: levels by name of `FACTORS`; what is not named is as it comes: 8 mm, solid, anywhere in the lung.
        hosts: slices that nodules are put into.
        replicates: nodules of each cell on each host, each on a slice of its own.
        paired: each host carries all cells; else those that find a place on it.
        fraction: each host carries one of so many parts of the cells.

    Raises:
        InputError: naming the factor, when a level makes no sense, or there is nothing to vary.
    """

    factors: Mapping[str, tuple[Level, ...]] = field(default_factory=lambda: dict(_DEFAULTS))
    hosts: int = 40
    replicates: int = 1
    paired: bool = True
    fraction: int = 1

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.factors) - set(FACTORS)):
            raise InputError(f"`factors`: {unknown} are unknown; there are {', '.join(FACTORS)}.")
        for name, levels in self.factors.items():
            labels = [level_label(level) for level in levels]
            if not levels or len(set(labels)) < len(labels):
                raise InputError(f"`factors`: {name} needs levels that differ, got {labels}.")
            for level in levels:
                _check_level(name, level)
        for name in ("hosts", "replicates", "fraction"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.fraction > 1 and (not self.paired or self.fraction > len(self.cells)):
            raise InputError(
                f"`fraction` {self.fraction} needs paired hosts and at least as many cells, got {len(self.cells)}."
            )

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the factors with more than one level."""
        return tuple(name for name, levels in self.factors.items() if len(levels) > 1)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All combinations of levels, the last factor first to change."""
        return tuple(
            dict(zip(self.factors, levels, strict=True)) for levels in itertools.product(*self.factors.values())
        )

    def cells_of(self, host: int) -> tuple[Cell, ...]:
        """The cells that a host carries: all, or one of `fraction` parts that together are all.

        A part takes every cell whose levels' numbers add up to the same rest, so that each part holds each level of a
        factor, and each pair of levels of two factors, about equally often.
        """
        if self.fraction == 1:
            return self.cells
        numbers = itertools.product(*(range(len(levels)) for levels in self.factors.values()))
        rest = host % self.fraction
        chosen = [sum(place) % self.fraction == rest for place in numbers]
        return tuple(itertools.compress(self.cells, chosen))

    @property
    def count(self) -> int:
        """Pairs: samples with a nodule."""
        if not self.paired:
            return len(self.cells) * self.hosts * self.replicates
        return sum(len(self.cells_of(host)) for host in range(self.hosts)) * self.replicates

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return json.loads(json.dumps({**asdict(self), "factors": dict(self.factors)}))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrialDesign":
        """The design that a file's values describe; what is not named keeps its default.

        Raises:
            InputError: when a key is unknown or a value is of another kind.
        """
        names = [item.name for item in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise InputError(f"A design has the keys {names}, got {unknown}.")
        chosen = dict(values)
        if "factors" in chosen:
            if not isinstance(chosen["factors"], Mapping):
                raise InputError(f"`factors` needs names with lists of levels, got {chosen['factors']!r}.")
            chosen["factors"] = {name: parse_levels(name, levels) for name, levels in chosen["factors"].items()}
        for name, kind in (("hosts", int), ("replicates", int), ("fraction", int), ("paired", bool)):
            if name in chosen and type(chosen[name]) is not kind:
                raise InputError(f"`{name}` of a design is of type {kind.__name__}, got {chosen[name]!r}.")
        return cls(**chosen)


def read_design(path: Path) -> TrialDesign:
    """Reads a design from YAML or JSON.

    Raises:
        InputError: naming the file, when it is missing or is no design, or YAML cannot be read here.
    """
    with naming_file(path, "could not be read as a design", remedy="mend it, see docs/how_to/run_a_trial.md"):
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _yaml(text)
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: expected the keys and values of a design, got {type(values).__name__}.")
    try:
        return TrialDesign.from_json(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_levels(name: str, levels: Any) -> tuple[Level, ...]:
    """Levels of a factor out of a list, a single one, or text with commas: numbers, names, and `LOW:HIGH`."""
    values = levels.split(",") if isinstance(levels, str) else levels if isinstance(levels, list | tuple) else [levels]
    return tuple(_level(name, value) for value in values)


def level_label(level: Level) -> str:
    """A level in words: `6`, `solid`, `2-8`, `10+`."""
    if isinstance(level, tuple | list):
        low, high = level
        return f"{low:g}+" if high is None else f"{low:g}-{high:g}"
    return level if isinstance(level, str) else f"{level:g}"


def in_words(labels: Mapping[str, str]) -> str:
    """The labels of levels, by factor, as a phrase: `8 mm, solid, 2-8 mm from the pleura`."""
    phrases = []
    for name, label in labels.items():
        own = "{} to the pleura" if label == ATTACHED else FACTORS[name].phrase
        phrases.append(own.format(label.replace("_", " ")))
    return ", ".join(phrases)


def describe_power(design: TrialDesign) -> list[str]:
    """What a trial can tell apart, a line a factor.

    Normal approximations at a sensitivity of 70 %, where answers on one host correlate by 0.1: half the width of the
    interval of a level, and the difference of two levels that is found with a power of 80 %.
    """
    lines = []
    spread = _SENSITIVITY * (1 - _SENSITIVITY)
    for name in design.varied:
        levels = len(design.factors[name])
        each = design.count / levels
        per_host = max(1.0, each / design.hosts)
        inflated = 1 + (per_host - 1) * _CORRELATION
        half = _Z_95 * (spread * inflated / each) ** 0.5
        # What a host's answers share drops out of a difference within the host.
        remaining = 1 - _CORRELATION if design.paired else inflated
        difference = (_Z_95 + _Z_80) * (2 * spread * remaining / each) ** 0.5
        lines.append(
            f"{name}: {levels} levels of {each:.0f} pairs; at 70 % found, a level is known to +-{100 * half:.0f} "
            f"points, and a difference of {100 * difference:.0f} points is seen with a power of 80 %"
        )
    return lines


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            "a design in YAML needs PyYAML; install it with pip install 'lungsynth[trial]', or write the design as JSON"
        ) from error
    return yaml.safe_load(text)


def _level(name: str, value: Any) -> Level:
    kind = FACTORS[name].kind if name in FACTORS else "name"
    if isinstance(value, list | tuple) and len(value) == 2:
        return (float(value[0]), None if value[1] is None else float(value[1]))
    text = str(value).strip()
    try:
        if kind == "number":
            return float(text)
        if kind == "range" and ":" in text:
            low, high = text.split(":")
            return (float(low), float(high) if high else None)
    except ValueError as error:
        wanted = "a number" if kind == "number" else "LOW:HIGH or LOW:"
        raise InputError(f"`factors`: {name} needs {wanted}, got {text!r}.") from error
    return text


def _check_level(name: str, level: Level) -> None:
    factor = FACTORS[name]
    if factor.kind == "number":
        if not isinstance(level, int | float) or not factor.low <= level <= factor.high:
            raise InputError(
                f"`factors`: {name} lies between {factor.low:g} and {factor.high:g}, got {level_label(level)!r}."
            )
    elif isinstance(level, tuple):
        if factor.kind != "range" or level[0] < 0 or (level[1] is not None and level[1] <= level[0]):
            raise InputError(f"`factors`: {name} needs 0 <= LOW < HIGH, got {level_label(level)!r}.")
    elif factor.names and level not in factor.names:
        more = " or LOW:HIGH" if factor.kind == "range" else ""
        raise InputError(f"`factors`: {name} is one of {', '.join(factor.names)}{more}, got {level!r}.")
