"""What is inserted into which scans, and the plan of a sample: its nodules and places, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lungsynth.config import PlacementConfig, Policy, default_bundles
from lungsynth.ct.discover import SortSettings
from lungsynth.ct.series import SeriesFiles
from lungsynth.errors import InputError
from lungsynth.export.growth import Growth
from lungsynth.placement.rules import PlacementRules
from lungsynth.scans.cubes import CubeSource, SourcedCube
from lungsynth.scans.insert import PlacedNodule
from lungsynth.scans.places import NodulePlace, find_places
from lungsynth.scans.request import NoduleRequest, WantedNodule, draw_wanted
from lungsynth.scans.shape import ScanShape
from lungsynth.scans.write import check_format

__all__ = ["InsertConfig", "ScanPlan", "plan_scan"]

_MAX_VARIANTS = 10_000


@dataclass(frozen=True, kw_only=True)
class InsertConfig:
    """What is inserted into which scans.

    Args:
        sources: folders, archives or files with CT, as for `lungsynth prepare`.
        out: folder of the run; one left unfinished is continued.
        nodules: of each sample.
        cubes: whence the nodules come.
        variants: samples of each scan, with other nodules at other places.
        seed: of everything random.
        format: one of `config.SCAN_FORMATS`.
        policy: `varied`: where nodules occur; `farthest`: far from the pleura, as in the paper.
        rules: where they may lie; those of the policy when None.
        pairs: write each scan without its nodules, too.
        growth: days on which each sample is written, its nodules grown; their sizes are those of day 0.
        enhance: send the nodules through the CycleGAN, slice by slice, as far as the label check allows.
        check: look which nodules `lung_seg_bundle` finds, and what else it finds that it did not find before.
        bundles: folder of the bundles that enhance and check; those of this installation when None.
        files: what a user says of the source's files.

    Raises:
        InputError: when a value is out of its range, or a package is missing.
    """

    sources: tuple[Path, ...]
    out: Path
    nodules: tuple[NoduleRequest, ...]
    cubes: CubeSource
    variants: int = 1
    seed: int = 0
    format: str = "nifti"
    policy: Policy = "varied"
    rules: PlacementRules | None = None
    pairs: bool = False
    growth: Growth | None = None
    enhance: bool = False
    check: bool = False
    bundles: Path | None = None
    files: SortSettings = field(default_factory=SortSettings)

    def __post_init__(self) -> None:
        if not self.nodules:
            raise InputError("`nodules`: ask for at least one, such as 'solid 6-10mm'.")
        if not 1 <= self.variants <= _MAX_VARIANTS:
            raise InputError(f"`variants` must be 1 to {_MAX_VARIANTS}, got {self.variants}.")
        if self.policy not in ("varied", "farthest"):
            raise InputError(f"`policy`: nodules are inserted into scans as varied or farthest, got {self.policy}.")
        if self.seed < 0:
            raise InputError(f"`seed` must not be negative, got {self.seed}.")
        check_format(self.format)

    @property
    def placement_rules(self) -> PlacementRules:
        """The rules given, else those of the policy."""
        return PlacementConfig(policy=self.policy, rules=self.rules).placement_rules

    @property
    def bundles_dir(self) -> Path:
        """Folder of the bundles."""
        return self.bundles or default_bundles()

    @property
    def largest_factor(self) -> float:
        """By which nodules have grown on the last day."""
        return self.growth.factor(self.days[-1]) if self.growth else 1.0

    @property
    def days(self) -> tuple[int, ...]:
        """On which each sample is written."""
        return self.growth.days if self.growth else (0,)

    def identity(self, series: Sequence[SeriesFiles]) -> dict[str, Any]:
        """What decides the bytes of the run, for these scans."""
        return {
            "scans": [_fingerprint(files) for files in series],
            "nodules": [str(request) for request in self.nodules],
            "cubes": self.cubes.identity(),
            "variants": self.variants,
            "seed": self.seed,
            "format": self.format,
            "policy": self.policy,
            "rules": self.placement_rules.to_json(),
            "pairs": self.pairs,
            "growth": [list(self.growth.days), self.growth.doubling_days] if self.growth else None,
            **self._after(),
        }

    def _after(self) -> dict[str, Any]:
        """What decides over what comes after the nodules; the CycleGAN is opened only for runs that need it."""
        if not (self.enhance or self.check):
            return {}
        from lungsynth.scans.enhance import scan_enhancement_identity

        return scan_enhancement_identity(self.bundles_dir, enhance=self.enhance, check=self.check)


def _fingerprint(files: SeriesFiles) -> list[Any]:
    """A series by its id, its files' number and their bytes' number; paths may change between two runs."""
    return [files.series_id, len(files.files), sum(path.stat().st_size for path in files.files)]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanPlan:
    """The nodules of a sample, before they are drawn.

    Args:
        wanted: what was asked for.
        cubes: the nodules.
        places: where.
        seed: of the noise.
        factor: by which they have grown.
    """

    wanted: tuple[WantedNodule, ...]
    cubes: tuple[SourcedCube, ...]
    places: tuple[NodulePlace, ...]
    seed: int
    factor: float = 1.0

    @property
    def placed(self) -> list[PlacedNodule]:
        """To be drawn."""
        return [
            PlacedNodule(cube=cube.cube, place=place, diameter_mm=self.factor * nodule.diameter_mm)
            for nodule, cube, place in zip(self.wanted, self.cubes, self.places, strict=True)
        ]

    def on_day(self, growth: Growth | None, day: int) -> "ScanPlan":
        """As they are on a day."""
        return self if growth is None else replace(self, factor=growth.factor(day))


def plan_scan(
    shape: ScanShape,
    requests: Sequence[NoduleRequest],
    cubes: CubeSource,
    rules: PlacementRules,
    *,
    seed: int,
    farthest: bool = False,
    largest_factor: float = 1.0,
    name: str = "The scan",
) -> ScanPlan:
    """Chooses nodules and places.

    Args:
        shape: of the scan.
        requests: what is asked for.
        cubes: whence the nodules come.
        rules: where they may lie.
        seed: of the sample.
        farthest: take the places farthest from the pleura.
        largest_factor: by which nodules will have grown at last; places have room for that.
        name: of the scan, for messages.

    Raises:
        NoRoomError: when there is no room for all of them.
        InputError: when there is no such nodule.
    """
    wanted = draw_wanted(requests, seed=seed)
    grown = [replace(nodule, diameter_mm=nodule.diameter_mm * largest_factor) for nodule in wanted]
    places = find_places(shape, grown, rules, seed=seed, farthest=farthest, name=name)
    chosen = cubes.cubes(wanted, seed=seed)
    return ScanPlan(wanted=tuple(wanted), cubes=tuple(chosen), places=tuple(places), seed=seed)
