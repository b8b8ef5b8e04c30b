"""A plan: nodules and lungs in a library, and the catalogue of the samples that they make.

`plan` stops there, with as many as millions of samples and none rendered; `generate` goes on to files.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lungsynth.bundles import lung_generator, nodule_rule, read_weights
from lungsynth.categories import AS_LISTED, TEXTURES, CategoryRule
from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.config import GenerateConfig
from lungsynth.errors import InputError
from lungsynth.generate_assets import make_assets, open_samplers
from lungsynth.io.atomic import remove_temporary, write_json
from lungsynth.io.running import FolderLock, check_place
from lungsynth.io.stored import anything, mappings, read_json
from lungsynth.io.tables import duration
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, read_catalogue
from lungsynth.placement.plan_catalogue import PlanRecord, plan_catalogue
from lungsynth.run_folder import FORMAT
from lungsynth.similarity.selection import selection_identity
from lungsynth.tracking import Tracker, open_tracker
from lungsynth.variety import VarietyFigures, measure_variety

__all__ = [
    "Estimate",
    "PlanResult",
    "assets_digest",
    "category_rule",
    "estimate",
    "grows",
    "lacks_assets",
    "open_cohort",
    "plan",
    "planned",
]

_ASSET_SETTINGS = ("own_grids", "per_category", "real_share", "real_voxels", "categories", "diameters_mm")
_ASSETS_FILE = "assets.json"  # what the library beside a plan was made with
# Seconds of one core (AVX2, float32) and megabytes at 256 pixels: what an estimate is made of. From runs of 8 to 64
# samples at both sizes; lungs of 512 pixels have four times the pixels and seven times the work.
_START_S = 12.0  # PyTorch, MONAI, the networks, and the look at some slices at the end
_NODULE_S, _LUNG_S, _PAIR_S = 1 / 268, 0.1, 2.3e-6
_WRITE_S, _ENHANCE_S = 0.01, 0.0075
_CHECK_S = 0.2  # at 0.7 mm whatever the lung's pixels are
_FINE_LUNG_S, _COARSE_PX = 0.7, 256
_NODULE_MB, _LUNG_MB, _SAMPLE_MB, _ROW_MB = 0.0165, 0.262, 0.08, 24e-6


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A planned catalogue.

    Args:
        catalogue: the file.
        record: what the catalogue remembers of its plan.
        asset_seconds: to make the assets; 0 when they were there.
        plan_seconds: from the library's lungs to the written catalogue; 0 when that was there.
        variety: what repeats in the set, and how it is distributed.
    """

    catalogue: Path
    record: PlanRecord
    asset_seconds: float
    plan_seconds: float
    variety: VarietyFigures


def plan(config: GenerateConfig, *, tracking_uri: str | None = None) -> PlanResult:
    """Plans a catalogue without rendering any sample, or finds that it is there.

    Args:
        config: of the plan.
        tracking_uri: MLflow store; None tracks nothing. A plan that is there leaves no new run.

    Raises:
        InputError: before anything is written, when an input cannot be used; or when it is of another plan.
    """
    tracker, cohort = open_tracker(tracking_uri), open_cohort(config)
    check_place(config.catalogue_path, is_file=True)
    with FolderLock(config.out):
        remove_temporary(config.out)
        return _plan(config, cohort, tracker)


def _plan(config: GenerateConfig, cohort: CohortSplit | None, tracker: Tracker) -> PlanResult:
    started = time.monotonic()
    library = AssetLibrary(config.library) if config.library else _plan_assets(config, cohort)
    identity = _plan_identity(config, cohort, library)
    asset_seconds, started = time.monotonic() - started, time.monotonic()
    if config.catalogue_path.exists():
        record = PlanRecord.read(read_catalogue(config.catalogue_path))
        if json.loads(json.dumps(identity)) != record.identity:
            raise InputError(
                f"{config.catalogue_path}: holds another plan. Give another `out`, or repeat its settings."
            )
        seconds = {"asset_seconds": asset_seconds, "plan_seconds": 0.0}
        variety = measure_variety(read_catalogue(config.catalogue_path), library)
        return PlanResult(catalogue=config.catalogue_path, record=record, variety=variety, **seconds)
    enhancer = read_weights(config.bundles, "cyclegan").sha256 if config.enhancement.enabled else None
    with tracker.run(f"plan {config.out.name}", tags={"command": "plan"}) as run:
        run.log_params({**identity["settings"], "assets": identity["assets"]})
        record = plan_catalogue(library, config, cohort, enhancer=enhancer, identity=identity)
        seconds = {"asset_seconds": asset_seconds, "plan_seconds": time.monotonic() - started}
        variety = measure_variety(read_catalogue(config.catalogue_path), library)
        run.log_json({**record.figures, **variety.metrics()}, "figures.json")
        run.log_metrics({**seconds, "samples": record.figures["samples"], "within_10_mm": variety.within_10_mm})
    return PlanResult(catalogue=config.catalogue_path, record=record, variety=variety, **seconds)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would make, before anything is made.

    Args:
        samples: of all categories.
        nodules: distinct ones in the library.
        lungs: likewise.
        groups: of nodules that are tried, at first.
        generated: nodules and lungs that are drawn, to choose from or keep.
        seconds: of one core.
        megabytes: on the disk.
    """

    samples: int
    nodules: int
    lungs: int
    groups: int
    generated: tuple[int, int]
    seconds: float
    megabytes: float

    def lines(self) -> list[str]:
        """For a user."""
        nodules, lungs = self.generated
        return [
            f"Samples    {self.samples:,}",
            f"Nodules    {self.nodules:,}; {nodules:,} are generated to have them",
            f"Lungs      {self.lungs:,}; {lungs:,} are generated to have them",
            f"Groups     {self.groups:,} of nodules tried on the lungs, more where too few fit",
            f"Time       about {duration(self.seconds)} of one core, start included",
            f"Disk       about {self.megabytes:,.0f} MB",
            "Nothing was written.",
        ]


def estimate(config: GenerateConfig, *, rendered: bool) -> Estimate:
    """Looks at the inputs of a run and says what it would make, and take.

    Args:
        config: of the run or plan.
        rendered: whether its samples are written as files, too.

    Raises:
        InputError: when an input cannot be used.
    """
    cohort = open_cohort(config)
    categories = max(1, len(_categories(config)))
    sizes, times = config.sizes(categories), categories if config.placement.per_category else 1
    lent = (len(cohort.nodules()), len(cohort.lungs())) if cohort and config.placement.real_voxels else (0, 0)
    real = min(lent[0], sizes.real_nodules), min(lent[1], sizes.real_lungs)
    tries = 0 if config.library else config.chosen.candidates
    generated = (sizes.nodules - real[0]) * tries, (sizes.lungs - real[1]) * tries
    samples = config.count * times
    area = (config.lung_px / _COARSE_PX) ** 2
    lung_s = _LUNG_S if area == 1 else _FINE_LUNG_S
    seconds = _START_S + generated[0] * _NODULE_S + generated[1] * lung_s + sizes.groups * sizes.lungs * _PAIR_S
    megabytes = 0.0 if config.library else sizes.nodules * _NODULE_MB + sizes.lungs * _LUNG_MB * area
    if rendered:
        enhancement = config.enhancement
        checked = enhancement.enabled and enhancement.label_check
        seconds += samples * ((_WRITE_S + enhancement.enabled * _ENHANCE_S) * area + checked * _CHECK_S)
        megabytes += samples * _SAMPLE_MB * area
    megabytes += samples * _ROW_MB
    return Estimate(
        samples=samples,
        nodules=sizes.nodules,
        lungs=sizes.lungs,
        groups=sizes.groups,
        generated=generated,
        seconds=seconds,
        megabytes=megabytes,
    )


def _categories(config: GenerateConfig) -> tuple[str, ...]:
    """Of the library's nodules, else of those that the bundles make."""
    if config.library:
        return tuple({asset.category for asset in AssetLibrary(config.library) if asset.kind == "nodule"})
    return nodule_rule(config.bundles).names or ()


def open_cohort(config: GenerateConfig) -> CohortSplit | None:
    """The training patients who lend real nodules and lungs; None without a cohort.

    Raises:
        InputError: when the cohort cannot be read, or lends nothing.
    """
    if config.cohort is None:
        return None
    cohort = Cohort.open(config.cohort, rule=category_rule(config)).split("training").nonempty()
    return cohort.without_diseased() if config.exclude_enhancer_patients else cohort


def category_rule(config: GenerateConfig) -> CategoryRule:
    """What the categories of real nodules are: as the bundles have them that make the nodules.

    The bundles of a library that is there already are asked only where it has others than texture classes, because
    that takes PyTorch and MONAI; without a cohort there is nothing to name.
    """
    if config.cohort is None:
        return AS_LISTED
    if config.library and {a.category for a in AssetLibrary(config.library) if a.kind == "nodule"} <= set(TEXTURES):
        return AS_LISTED
    return nodule_rule(config.bundles)


def planned(config: GenerateConfig) -> Catalogue | None:
    """The catalogue of a run, where it is planned already."""
    return read_catalogue(config.catalogue_path) if config.catalogue_path.exists() else None


def grows(config: GenerateConfig, catalogue: Catalogue) -> bool:
    """Whether more samples are asked for than a finished catalogue was planned for."""
    if config.placement.per_category or not PlanRecord.stands_in(catalogue):
        return False
    return int(PlanRecord.read(catalogue).figures.get("asked", len(catalogue))) < config.count


def lacks_assets(config: GenerateConfig) -> bool:
    """Whether nodules or lungs are still to be made for a run: none are there, or fewer than a larger run needs."""
    library = AssetLibrary(config.out)
    if not len(library):
        return True
    there = Counter(asset.kind for asset in library)
    sizes = config.sizes(len({asset.category for asset in library if asset.kind == "nodule"}))
    catalogue = planned(config)
    few = there["nodule"] < sizes.nodules or there["lung"] < sizes.lungs
    return few and catalogue is not None and grows(config, catalogue)


def assets_digest(library: AssetLibrary) -> str:
    """SHA-256 of the hashes of all assets."""
    return hashlib.sha256("".join(asset.hash for asset in library).encode()).hexdigest()


def _plan_identity(config: GenerateConfig, cohort: CohortSplit | None, library: AssetLibrary) -> dict[str, Any]:
    return {
        "lungsynth": version("lungsynth"),
        "settings": config.to_json(),
        "cohort": cohort.cohort.identity if cohort else None,
        "assets": assets_digest(library),
    }


def _plan_assets(config: GenerateConfig, cohort: CohortSplit | None) -> AssetLibrary:
    """The library beside a plan, made when it is not there."""
    lungs = lung_generator(config.lung_px)
    weights = {
        "nodule_weights": read_weights(config.bundles, "wcapsgan").sha256,
        "lung_weights": read_weights(config.bundles, "wcapsgan", file=lungs.weights).sha256,
    }
    sizes = config.sizes(1)
    identity = {
        "format": FORMAT,
        "lungsynth": version("lungsynth"),
        "seed": config.seed,
        "lungs": sizes.lungs,
        "nodules": sizes.nodules,
        **{key: config.to_json()[key] for key in _ASSET_SETTINGS},
        "cohort": cohort.cohort.identity if cohort else None,
        **selection_identity(config.chosen),
        **weights,
    }
    library, path = AssetLibrary(config.out), config.out / _ASSETS_FILE
    _check_assets(library, path, identity)
    if not len(library):
        samplers = open_samplers(config.bundles, lungs=lungs, rule=category_rule(config), **weights)
        write_json(path, identity, indent=2, sort_keys=True)
        make_assets(library, samplers, config, cohort=cohort)
    return library


def _check_assets(library: AssetLibrary, path: Path, identity: Mapping[str, Any]) -> None:
    if not path.is_file():
        if len(library):
            raise InputError(
                f"{library.folder}: holds assets that no plan made. Give {library.folder} as `library` to use them, or "
                "another folder in `out`."
            )
        return
    there = read_json(path, mappings(anything), what="the settings of a library", remedy="Give another `out`.")
    if differing := sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key)):
        raise InputError(
            f"{path}: the assets beside `out` were made with other {', '.join(differing)}. Give another `out`, or "
            f"{library.folder} as `library` to use them as they are."
        )
