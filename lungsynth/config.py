"""What a run is: its settings, and the sizes that follow from them.

A configuration checks itself when it is made; its messages name its fields (`count`), which the command line turns
into flags (`--count`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lungsynth.errors import InputError

if TYPE_CHECKING:
    from lungsynth.placement.rules import PlacementRules

__all__ = [
    "EXPORT_ENGINES",
    "EXPORT_FORMATS",
    "MIN_DIAMETER_MM",
    "PAPER",
    "SCAN_FORMATS",
    "SELECTION_STRATEGIES",
    "EnhancementConfig",
    "GenerateConfig",
    "PlacementConfig",
    "Policy",
    "Selection",
    "SelectionConfig",
    "SelectionStrategy",
    "Sizes",
    "default_bundles",
    "even_shares",
    "shares_of",
]

# Which accepted pairs become samples, see `placement.policy`.
Policy = Literal["varied", "farthest", "matched", "balanced"]
SelectionStrategy = Literal["coverage", "nearest", "none"]
SELECTION_STRATEGIES: tuple[SelectionStrategy, ...] = get_args(SelectionStrategy)
EXPORT_FORMATS = ("nifti", "nnunet", "msd", "luna16", "dicom", "png", "webdataset", "zarr")
SCAN_FORMATS = ("nifti", "luna16", "dicom")  # of whole scans
EXPORT_ENGINES = ("local", "ray")
_CANDIDATES = 3  # generated for each one kept; docs/results/selection.md says what 1, 2 and 4 give

# Chi et al. (2023), a disease: 50 normal and 50 nodule images -> 200 real and 1,000 generated nodules, 50 real and 450
# generated lungs, 5,000 groups -> 2,500,000 overlays -> the 1,000,000 farthest from the edge.
PAPER = {"lungs": 500, "groups": 5000, "keep": 1_000_000, "nodules": 1200}
_PAIRS_PER_SAMPLE = 2.5  # 2,500,000 overlays for 1,000,000 samples
_REAL_NODULES = Fraction(200, 1200)
_REAL_LUNGS = Fraction(50, 500)
# What is more than these would run out of memory or time, after hours; they are ten times the paper's and more.
_LIMITS: Mapping[str, tuple[int, str]] = {
    "count": (20_000_000, "a plan holds its samples in memory, 100 bytes each; plan several with other seeds"),
    "lungs": (100_000, "they are measured one after the other, and each takes 0.5 MB on the disk"),
    "groups": (1_000_000, "each is tried on each lung; plan several catalogues with other seeds"),
    "nodules": (1_000_000, "each takes 16 kB on the disk; plan several catalogues with other seeds"),
    "candidates": (1000, "so many times the nodules and lungs would be generated to keep one of them"),
    "batch_size": (65_536, "a batch is written at once, and one that is stopped begins again"),
    "seed": (2**63 - 1, "a seed has 63 bits"),
    "workers": (1024, "each is a process of several hundred MB"),
}
_NODULES_PER_GROUP = 2  # of the paper's preset: a group has 1.4 on average, so that few are drawn twice in a small run

# A set that does not repeat itself. More nodules than samples, because a slice has 1.1 on average and some fit nowhere.
_NODULES_PER_SAMPLE = 1.35
_SAMPLES_PER_LUNG = 2  # a lung takes the longest to make and to enhance, so each is used twice
_GROUPS_PER_SAMPLE = 6  # places at which each nodule is tried
MIN_DIAMETER_MM = 3.0  # what is smaller is no nodule in LIDC-IDRI, and hardly shows on any grid
_BALANCED_MM = (4.0, 30.0)  # diameters that are asked for, evenly on a scale of ratios; masses begin at 30 mm


def default_bundles() -> Path:
    """Folder of the three bundles: the repository's, else the copy in the installed package.

    Raises:
        InputError: when there is neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "bundles", package / "_bundles"):
        if (folder / "wcapsgan_bundle").is_dir():
            return folder
    raise InputError("No bundles are installed with lungsynth. Give `bundles` a folder that holds the three of them.")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How generated nodules and lungs are chosen, all defaults filled in; made by `SelectionConfig.resolve`.

    Args:
        strategy: see `SelectionConfig`.
        candidates: generated for each one kept.
        cohort: whose training patients rank them and say what a copy is; None where they are taken unranked.
    """

    strategy: SelectionStrategy
    candidates: int
    cohort: Path | None

    def to_json(self) -> dict[str, str | int]:
        """Without the path."""
        return {"strategy": self.strategy, "candidates": self.candidates}


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How generated nodules and lungs are chosen among more than are needed, by similarity to a cohort's real ones.

    Args:
        strategy: `coverage`: each real sample in turn takes the most similar candidate; `nearest`: the paper's, the
            most similar of all; `none`: unranked. None for `coverage` with a cohort and `none` without.
        candidates: generated for each one kept; None for 3 where they are ranked, else 1.

    Raises:
        InputError: when a value is out of its range.
    """

    strategy: str | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        _check_range("candidates", self.candidates, 1)
        if self.strategy is not None and self.strategy not in SELECTION_STRATEGIES:
            known = ", ".join(SELECTION_STRATEGIES)
            raise InputError(f"`strategy` of the selection must be one of {known}, got {self.strategy!r}.")
        if self.strategy == "none" and self.candidates not in (None, 1):
            raise InputError(
                f"The selection strategy none ranks nothing, so {self.candidates} `candidates` would be made for "
                "nothing. Leave one of the two out."
            )

    def resolve(self, cohort: Path | None) -> Selection:
        """What it means with this cohort, or without one.

        Raises:
            InputError: when there is nothing to rank by.
        """
        if cohort is None and (self.strategy not in (None, "none") or self.candidates not in (None, 1)):
            raise InputError(
                "The selection `strategy` and `candidates` need a `cohort`, whose real samples rank the generated ones."
            )
        named = next((name for name in SELECTION_STRATEGIES if name == self.strategy), None)
        strategy: SelectionStrategy = named or ("coverage" if cohort else "none")
        default = 1 if strategy == "none" else _CANDIDATES
        return Selection(strategy=strategy, candidates=self.candidates or default, cohort=cohort)


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Which nodules are placed on which lungs; by default each sample has nodules and places of its own.

    `paper` gives the crossing of lungs and groups of Chi et al. (2023), `at_scale` the settings of a catalogue of
    millions. Numbers that are None follow from `count` (`GenerateConfig.sizes`).

    Args:
        lungs: distinct lungs, for all categories.
        groups: nodule groups; when None, more are drawn while too few pairs are accepted.
        nodules: distinct nodules.
        per_category: `count`, `groups` and `nodules` are numbers of each category (with `matched` and `balanced`:
            `count` of the category that gets most); else of all together, in the shares of `categories`.
        policy: which of the accepted pairs become samples, see `placement.policy`.
        rules: which pairs are accepted; those of the policy when None.
        crossing: the paper's way: every group on every lung, and numbers in the paper's proportions; nothing keeps
            nodules and places from coming again. Else `placement.spread` chooses.
        max_reuse: no lung, group or nodule is used more often than this many times its even share while others are
            left; None for no limit.
        allow_fewer: fewer samples than asked for are no error.
        keep_real_sizes: no nodule is scaled out of the range of its category's real diameters.
        categories: share of the samples of each category, scaled to a sum of 1; all of the generator's, evenly, when
            None.
        diameters_mm: range of the diameters, in which generated nodules are spread evenly on a scale of ratios; None
            for 4 to 30 mm, or for the real ones' diameters with the policy `matched` and the paper's crossing.
        real_share: share of real lungs, and of real nodules; None for the paper's.
        real_voxels: whether a patient's voxels may be in samples.
        own_grids: real lungs keep the grids of their scans; else all lungs share one, the generator's, so that images
            can be stacked to batches.
        vessel_masks: folder with `<pseudonym of the slice>.nii.gz` of vessels and airways of real lungs.

    Raises:
        InputError: when a value is out of its range.
    """

    lungs: int | None = None
    groups: int | None = None
    nodules: int | None = None
    per_category: bool = False
    policy: Policy = "varied"
    rules: "PlacementRules | None" = None
    crossing: bool = False
    max_reuse: float | None = 1.0
    allow_fewer: bool = False
    keep_real_sizes: bool = False
    categories: Mapping[str, float] | None = None
    diameters_mm: tuple[float, float] | None = None
    real_share: float | None = None
    real_voxels: bool = True
    own_grids: bool = False
    vessel_masks: Path | None = None

    def __post_init__(self) -> None:
        for name in ("lungs", "groups", "nodules"):
            _check_range(name, getattr(self, name), 1)
        if self.policy not in get_args(Policy):
            raise InputError(f"`policy` must be one of {', '.join(get_args(Policy))}, got {self.policy!r}.")
        if self.max_reuse is None and not self.crossing:
            raise InputError("`max_reuse` None is for the paper's `crossing`; give at least 1, the even share.")
        if self.max_reuse is not None and not self.max_reuse >= 1:
            raise InputError(f"`max_reuse` must be at least 1, the even share, got {self.max_reuse:g}.")
        _check_categories(self.categories)
        if self.categories is not None and self.policy in ("matched", "balanced"):
            raise InputError(
                f"`categories` asks for shares that the policy {self.policy} sets itself. Give one of them."
            )
        if self.diameters_mm is not None and not MIN_DIAMETER_MM <= self.diameters_mm[0] < self.diameters_mm[1]:
            low, high = self.diameters_mm
            raise InputError(
                f"`diameters_mm` needs {MIN_DIAMETER_MM:g} <= low < high, got {low:g} and {high:g}: what is smaller "
                "than 3 mm is no nodule in LIDC-IDRI, and hardly shows in a slice."
            )
        if self.real_share is not None and not 0 <= self.real_share <= 1:
            raise InputError(f"`real_share` must lie in [0, 1], got {self.real_share:g}.")
        if self.vessel_masks is not None and not self.vessel_masks.is_dir():
            raise InputError(f"`vessel_masks`: expected a folder of masks, got {self.vessel_masks}.")

    @classmethod
    def at_scale(cls, **settings: Any) -> "PlacementConfig":
        """The configuration of a catalogue that is not rendered: numbers count for each category, fewer are allowed."""
        return cls(**{"per_category": True, "allow_fewer": True, "keep_real_sizes": True, **settings})

    @classmethod
    def paper(cls, **settings: Any) -> "PlacementConfig":
        """The paper's crossing: few lungs and groups, each on each, and the pairs farthest from the pleura."""
        return cls(**{"policy": "farthest", "crossing": True, "max_reuse": 2.0, **settings})

    @classmethod
    def paper_at_scale(cls, **settings: Any) -> "PlacementConfig":
        """The paper's million of each category: nothing limits reuse."""
        usual = {"policy": "farthest", "crossing": True, "max_reuse": None, "nodules": PAPER["nodules"]}
        return cls.at_scale(**{**usual, **settings})

    @property
    def placement_rules(self) -> "PlacementRules":
        """The rules asked for, else the policy's: the paper's keeps nodules off the edge, others reach the pleura."""
        from lungsynth.placement.rules import PlacementRules

        if self.rules is not None or self.policy == "farthest":
            return self.rules or PlacementRules()
        return PlacementRules(types=("isolated", "juxta_pleural", "juxta_vascular"), pleural_clearance=0.5)

    @property
    def allowed_mm(self) -> tuple[float, float]:
        """Range of diameters of real nodules that are used."""
        return self.diameters_mm or (MIN_DIAMETER_MM, inf)

    def category_shares(self, total: int, names: Sequence[str]) -> dict[str, int]:
        """A total of samples or nodules by category: as asked for, else even.

        Raises:
            InputError: when a category was asked for that there is not.
        """
        if self.categories is None:
            return dict(zip(names, even_shares(total, len(names)), strict=True))
        if unknown := sorted(set(self.categories) - set(names)):
            raise InputError(f"`categories` names {unknown}; there are {list(names)}.")
        weights = [self.categories.get(name, 0.0) for name in names]
        return dict(zip(names, shares_of(total, weights), strict=True))

    @property
    def requested_mm(self) -> tuple[float, float] | None:
        """Range in which diameters of generated nodules are asked for; None for those of the training."""
        if self.diameters_mm is not None or self.policy == "matched" or self.crossing:
            return self.diameters_mm
        return _BALANCED_MM


@dataclass(frozen=True, kw_only=True)
class EnhancementConfig:
    """The last stage.

    Args:
        enabled: send the composites through the CycleGAN.
        label_check: blend back what would lose or invent a nodule, as `lung_seg_bundle` sees it.
    """

    enabled: bool = True
    label_check: bool = True


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers to begin with; `groups` grows while too few pairs are accepted, unless the user fixed it."""

    lungs: int
    groups: int
    nodules: int
    real_lungs_share: Fraction | float = _REAL_LUNGS
    real_nodules_share: Fraction | float = _REAL_NODULES

    @property
    def real_lungs(self) -> int:
        """Lungs of patients, as far as there are any."""
        return round(self.lungs * self.real_lungs_share)

    @property
    def real_nodules(self) -> int:
        """Nodules of patients, likewise."""
        return round(self.nodules * self.real_nodules_share)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """A set of synthetic slices, or its plan alone.

    Args:
        out: folder of the run; one with the same settings is continued.
        count: samples to end with.
        seed: of everything random, not negative.
        bundles: folder of the three bundles.
        cohort: folder written by `lungsynth prepare`, whose training patients lend real nodules and lungs.
        library: folder whose nodules and lungs are used, instead of making some.
        exclude_enhancer_patients: use nothing of the patients in `enhancement.json`, from whom the enhancer learns.
        batch_size: samples that are written, and noted as done, together; no byte of them depends on it.
        workers: processes that render; no byte depends on it, either.
        catalogue: name of the catalogue in `out`.
        lung_px: pixels of the generated lungs' sides, 512 (0.7 mm) or 256 (1.4 mm).
        selection: of generated nodules and lungs.
        placement: of nodules on lungs.
        enhancement: of composites.

    Raises:
        InputError: when a value is out of its range, or something lacks its cohort.
    """

    out: Path
    count: int = 64
    seed: int = 0
    bundles: Path = field(default_factory=default_bundles)
    cohort: Path | None = None
    library: Path | None = None
    exclude_enhancer_patients: bool = False
    batch_size: int = 16
    workers: int = 1
    catalogue: str = "catalogue.parquet"
    lung_px: int = 512
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    enhancement: EnhancementConfig = field(default_factory=EnhancementConfig)

    def __post_init__(self) -> None:
        for name, low in (("count", 1), ("seed", 0), ("batch_size", 1), ("workers", 1)):
            _check_range(name, getattr(self, name), low)
        if self.cohort is None:
            if self.placement.real_share or self.exclude_enhancer_patients:
                raise InputError(
                    "`real_share` and `exclude_enhancer_patients` need a `cohort`, which lends real nodules and lungs."
                )
            if self.placement.policy == "matched":
                raise InputError("`policy` matched needs a `cohort`: its real nodules are what is matched.")
        self.selection.resolve(self.cohort)

    @property
    def chosen(self) -> Selection:
        """The selection with its defaults filled in."""
        return self.selection.resolve(self.cohort)

    @property
    def catalogue_path(self) -> Path:
        """Where the catalogue is."""
        return self.out / self.catalogue

    @property
    def library_folder(self) -> Path:
        """Where the assets are."""
        return self.library or self.out

    def to_json(self) -> dict[str, Any]:
        """What decides over the bytes, beside the cohort, the library and the weights; flat, without paths."""
        placement, enhancement = self.placement, self.enhancement
        plain = ("lungs", "groups", "nodules", "per_category", "policy", "crossing", "max_reuse", "allow_fewer")
        return {
            **{name: getattr(self, name) for name in ("count", "seed", "exclude_enhancer_patients")},
            **{name: getattr(placement, name) for name in (*plain, "keep_real_sizes", "real_share", "real_voxels")},
            "own_grids": placement.own_grids,
            "categories": None if placement.categories is None else dict(placement.categories),
            "diameters_mm": None if placement.requested_mm is None else list(placement.requested_mm),
            "rules": placement.placement_rules.to_json(),
            "vessel_masks": placement.vessel_masks is not None,
            "enhance": enhancement.enabled,
            "label_check": enhancement.enabled and enhancement.label_check,
        }

    def sizes(self, categories: int) -> Sizes:
        """How many lungs, groups and nodules these settings ask for, of all categories together."""
        placement, times = self.placement, categories if self.placement.per_category else 1
        if placement.crossing:
            pairs = ceil(_PAIRS_PER_SAMPLE * self.count)
            lungs = placement.lungs or min(PAPER["lungs"], ceil(sqrt(pairs)))
            groups = placement.groups or ceil(pairs / lungs)
            nodules = placement.nodules or min(PAPER["nodules"], _NODULES_PER_GROUP * groups)
        else:
            # As many as the samples need, so that none comes twice; beyond the paper's numbers some do.
            lungs = placement.lungs or min(PAPER["lungs"], ceil(times * self.count / _SAMPLES_PER_LUNG))
            nodules = placement.nodules or min(PAPER["nodules"], ceil(_NODULES_PER_SAMPLE * self.count))
            groups = placement.groups or min(PAPER["groups"], _GROUPS_PER_SAMPLE * self.count)
        return Sizes(
            lungs=lungs,
            groups=groups * times,
            nodules=nodules * times,
            real_lungs_share=_REAL_LUNGS if placement.real_share is None else placement.real_share,
            real_nodules_share=_REAL_NODULES if placement.real_share is None else placement.real_share,
        )


def even_shares(total: int, parts: int) -> list[int]:
    """Splits a total as evenly as integers allow; the first parts get the rest."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Splits a total in proportion to weights, not negative and not all 0; the largest remainders get the rest."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda index: (shares[index] - exact[index], index))
    for index in order[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _check_categories(categories: Mapping[str, float] | None) -> None:
    if categories is not None and (not categories or min(categories.values()) < 0 or not sum(categories.values()) > 0):
        raise InputError(f"`categories` needs names with shares, none negative and not all 0, got {dict(categories)}.")


def _check_range(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise InputError(f"`{name}` must be at least {low}, got {value}.")
    high, reason = _LIMITS[name]
    if value is not None and value > high:
        raise InputError(f"`{name}` must be at most {high:,}, got {value:,}: {reason}.")
