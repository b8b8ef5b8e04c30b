"""What a run of the chain is: its settings, its sizes, its seeds, and the folder that belongs to it alone.

Every random number follows from the run's seed S: seed i of a purpose is word i of `numpy.random.SeedSequence(S,
spawn_key=(purpose, *keys))`, shortened to 63 bits. Asking for more seeds never changes the first ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from lungsynth.ct.write import write_atomically
from lungsynth.errors import InputError
from lungsynth.similarity.strategies import Selection, select_by

__all__ = ["ChainSettings", "SeedStream", "Sizes", "check_folder", "seeds", "share", "write_run_file"]

_PAIRS_PER_SAMPLE = 2.5  # the paper plans 2,500,000 pairs and keeps 1,000,000
_MAX_LUNGS = 500  # the paper: 50 real and 450 generated
_MAX_NODULES = 1200  # the paper: 200 real and 1,000 generated
REAL_NODULES = Fraction(200, 1200)
REAL_LUNGS = Fraction(50, 500)
_NODULES_PER_GROUP = 2  # a group has 1.4 on average, so that few nodules are drawn twice in a small run


class SeedStream(IntEnum):
    """What seeds are for; the first key of their `SeedSequence`."""

    GENERATED_NODULES = 0
    GENERATED_LUNGS = 1
    REAL_NODULES = 2
    REAL_LUNGS = 3
    GROUPS = 4
    SAMPLES = 5
    SLICES = 6


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """The command line of `scripts/synthesize.py`.

    Args:
        out: folder of the run.
        count: samples to end with.
        seed: of everything random, not negative.
        bundles: folder of the three bundles.
        cohort: folder written by `scripts/prepare.py`, whose training part lends real nodules and lungs.
        enhance: send the composites through the CycleGAN.
        gate: blend back what would cost or invent a nodule.
        batch_size: samples between two reports of progress; no byte depends on it.
        lungs: distinct lungs; None for the paper's rule.
        groups: nodule groups; None for the paper's rule.
        real_share: share of real lungs, and of real nodules; None for the paper's rule.
        spare_diseased: leave out the patients of `enhancement.json`, from whom the enhancer learns what is real.
        ranking: rule by which generated samples are chosen (`ranking.Ranking`); None for `spread` with a cohort.
        candidates: generated for each one kept; None for 3 where they are ranked.

    Raises:
        InputError: when a number is out of its range.
    """

    out: Path
    count: int
    seed: int
    bundles: Path
    cohort: Path | None = None
    enhance: bool = True
    gate: bool = True
    batch_size: int = 16
    lungs: int | None = None
    groups: int | None = None
    real_share: float | None = None
    spare_diseased: bool = False
    ranking: str | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("count", 1), ("seed", 0), ("batch_size", 1), ("lungs", 1), ("groups", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"--{name.replace('_', '-')} must be at least {low}, got {value}.")
        if self.real_share is not None and not 0 <= self.real_share <= 1:
            raise InputError(f"--real-share must lie in [0, 1], got {self.real_share:g}.")
        if self.cohort is None and (self.real_share or self.spare_diseased):
            raise InputError("--real-share and --spare-diseased need --cohort, which lends real nodules and lungs.")
        select_by(self.cohort, self.ranking, self.candidates)

    @property
    def selection(self) -> Selection:
        """How generated samples are chosen."""
        return select_by(self.cohort, self.ranking, self.candidates)

    @property
    def sizes(self) -> "Sizes":
        """How many lungs, groups and nodules these settings ask for."""
        pairs = ceil(_PAIRS_PER_SAMPLE * self.count)
        lungs = self.lungs or min(_MAX_LUNGS, ceil(sqrt(pairs)))
        groups = self.groups or ceil(pairs / lungs)
        return Sizes(
            lungs=lungs,
            groups=groups,
            nodules=min(_MAX_NODULES, _NODULES_PER_GROUP * groups),
            real_lungs_share=REAL_LUNGS if self.real_share is None else self.real_share,
            real_nodules_share=REAL_NODULES if self.real_share is None else self.real_share,
        )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers to begin with; `groups` grows while too few pairs are accepted, unless the user fixed it."""

    lungs: int
    groups: int
    nodules: int
    real_lungs_share: Fraction | float = REAL_LUNGS
    real_nodules_share: Fraction | float = REAL_NODULES

    @property
    def real_lungs(self) -> int:
        """Lungs of patients, as far as there are any."""
        return round(self.lungs * self.real_lungs_share)

    @property
    def real_nodules(self) -> int:
        """Nodules of patients, likewise."""
        return round(self.nodules * self.real_nodules_share)


def seeds(seed: int, purpose: SeedStream, *keys: int, n: int) -> list[int]:
    """The first n seeds of a purpose, each below 2**63."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *keys))
    return [int(word) >> 1 for word in sequence.generate_state(n, np.uint64)]


def share(total: int, parts: int) -> list[int]:
    """Splits a total as evenly as integers allow; the first parts get the rest."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def check_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that `out` is free, or holds a run with these settings.

    Raises:
        InputError: naming what is different there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder for --out, found a file. Name another one.")
    run_file = out / "run.json"
    if not run_file.is_file():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(
                f"{out}: the folder holds other files and no run.json. Give a new or empty folder to --out."
            )
        return
    try:
        found = json.loads(run_file.read_text())
    except ValueError as error:
        raise InputError(f"{run_file}: expected the settings of a run, got {error}. Give another --out.") from error
    if differences := _differences(found, settings):
        raise InputError(
            f"{out}: holds another run ({'; '.join(differences)}). Repeat its settings to go on with it, or give "
            "another --out."
        )


def write_run_file(out: Path, settings: Mapping[str, Any]) -> Path:
    """Writes `run.json`."""
    path = out / "run.json"
    write_atomically(path, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    return path


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    keys = sorted({*found, *wanted}, key=str)
    return [
        f"{key} is {_short(found.get(key))} there and {_short(wanted.get(key))} here"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:16]}...{text[-1]}"
