"""How varied a set is: how often nodules, lungs and places come again, and how it compares with real nodules.

Places are those of nodules' centres on the mean lung of the set, in mm. Two nodules are as far apart as the root mean
square of the difference of their patches, each faded into lung by its alpha, in HU. What the set is held against (real
nodules of the cohort, and LIDC-IDRI's presence on the lungs at hand) stands in the plan's record.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from lungsynth.hounsfield import LUNG_HU
from lungsynth.io.atomic import write_json
from lungsynth.io.stored import integers, mappings, objects, of_type, read_json
from lungsynth.placement.assets import ALPHA_SCALE, AssetLibrary
from lungsynth.placement.catalogue import Catalogue
from lungsynth.placement.groups import NoduleGroup
from lungsynth.placement.lung_shape import LibraryLungs
from lungsynth.placement.plan_catalogue import PlanRecord
from lungsynth.placement.policy import DISTANCE_EDGES_MM, SIZE_EDGES_MM, distance_class, size_class

__all__ = ["VARIETY_FILE", "VarietyFigures", "measure_variety"]

VARIETY_FILE = "variety.json"
_BY_NAME = ("categories", "real_categories")  # counts
_MANY = 1000  # samples up to which each is to have a nodule of its own
_OWN = 0.95  # share of samples, or places, that are to be distinct
_NEAR_MM, _DEEP_MM, _SMALL_MM = 10.0, 20.0, 4.0
_LEAST_NEAR = 0.30  # of nodules within `_NEAR_MM` of the pleura, or nearly as many as real ones
_OF_REAL = 0.85
_MAX_GAP = 0.15  # share of nodules that may be of another class than aimed at
_FEW = 20  # nodules of which shares are noise
_COMPARED = 1000  # nodules of which the nearest other one is looked for


@dataclass(frozen=True, kw_only=True)
class VarietyFigures:
    """What repeats in a set, and how it is distributed.

    Args:
        samples: slices.
        asked: samples that were asked for; fewer may fit.
        nodules: in all of them.
        distinct_nodules: different ones.
        distinct_lungs: different ones.
        distinct_places: of nodules, to the mm on the mean lung.
        most_often_nodule: samples of the nodule that comes most often.
        most_often_lung: likewise of the lung.
        real_nodules: placed nodules of patients.
        real_lungs: samples on lungs of patients.
        nearest_place_mm: from a nodule to the nearest other one of the set, median; None for a single one.
        nearest_nodule_hu: difference of a nodule from the most similar other one, median; None for a single one.
        categories: nodules of each.
        sizes: nodules of each class of diameter, see `SIZE_EDGES_MM`.
        real_sizes: likewise of the cohort's training patients; all 0 without a cohort.
        real_categories: nodules of each category there.
        distances: share of nodules of each class of distance to the pleura, see `DISTANCE_EDGES_MM`.
        real_distances: likewise of real ones: measured on the cohort, and expected from LIDC-IDRI on these lungs.
        within_10_mm: share of nodules so near to the pleura.
        beyond_20_mm: share of nodules farther from it.
        under_4_mm: share of nodules smaller than this.
        smallest_mm: diameter of the smallest.
        target_gap: share of nodules that are of another class of distance than the policy aims at; None without aim.
    """

    samples: int
    asked: int
    nodules: int
    distinct_nodules: int
    distinct_lungs: int
    distinct_places: int
    most_often_nodule: int
    most_often_lung: int
    real_nodules: int
    real_lungs: int
    nearest_place_mm: float | None
    nearest_nodule_hu: float | None
    categories: Mapping[str, int]
    sizes: tuple[int, ...]
    real_sizes: tuple[int, ...]
    real_categories: Mapping[str, int]
    distances: tuple[float, ...]
    real_distances: tuple[float, ...]
    within_10_mm: float
    beyond_20_mm: float
    under_4_mm: float
    smallest_mm: float
    target_gap: float | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is amiss, a sentence each, with what to do."""
        few = self.nodules < _FEW
        checks = [
            (
                self.distinct_nodules < _OWN * min(self.samples, _MANY),
                f"the set repeats itself: {self.samples} samples have {self.distinct_nodules} different nodules; give "
                "more `nodules`, or leave it out",
            ),
            (
                self.distinct_places < _OWN * min(self.samples, _MANY),
                f"the set repeats itself: its nodules lie at {self.distinct_places} different places in {self.samples} "
                "samples; give more `groups`, or leave it out",
            ),
            (
                self.samples < self.asked,
                f"{self.samples} of {self.asked} samples fit; give more `lungs` or `groups`",
            ),
            (
                not few and self.within_10_mm < min(_LEAST_NEAR, _OF_REAL * _near(self.real_distances) or 1.0),
                f"only {self.within_10_mm:.0%} of the nodules lie within 10 mm of the pleura: a detector trained on "
                "this set learns little of the periphery; the policy varied has at least 30 %",
            ),
            (
                not few and (self.target_gap or 0.0) > _MAX_GAP,
                f"the target is missed: {self.target_gap or 0.0:.0%} of the nodules are at another distance from the "
                "pleura than aimed at; give more `groups` or `lungs`, or rules that allow these distances",
            ),
        ]
        return tuple(text for amiss, text in checks if amiss)

    def lines(self) -> list[str]:
        """A few plain figures."""
        sizes = " ".join(
            f"{name} mm: {count}" for name, count in zip(_ranges(SIZE_EDGES_MM), self.sizes, strict=True) if count
        )
        categories = ", ".join(f"{count} {name}" for name, count in self.categories.items())
        real = f", {self.real_nodules} of them real" if self.real_nodules else ""
        lungs = f", {self.real_lungs} samples on real ones" if self.real_lungs else ""
        return [
            f"Variety          {self.samples} samples with {self.distinct_nodules} different nodules{real}, at "
            f"{self.distinct_places} places, on {self.distinct_lungs} lungs{lungs}",
            f"Nodules          {categories}; {sizes}",
            f"To the pleura    {self.within_10_mm:.0%} within 10 mm, {self.beyond_20_mm:.0%} deeper than 20 mm (real: "
            f"{_near(self.real_distances):.0%}, {_deep(self.real_distances):.0%})",
        ]

    def metrics(self) -> dict[str, float]:
        """All numbers, flat, for a tracker."""
        flat: dict[str, float] = {}
        for name, value in asdict(self).items():
            if isinstance(value, int | float):
                flat[name] = float(value)
        flat |= {f"nodules_{name}": float(count) for name, count in self.categories.items()}
        flat |= {f"nodules_{name}_mm": float(n) for name, n in zip(_names(SIZE_EDGES_MM), self.sizes, strict=True)}
        shares = zip(_names(DISTANCE_EDGES_MM), self.distances, strict=True)
        return {**flat, **{f"pleura_{name}_mm": share for name, share in shares}, "warnings": float(len(self.warnings))}

    def write(self, folder: Path) -> Path:
        """Writes `variety.json` into a folder."""
        write_json(folder / VARIETY_FILE, {**asdict(self), "warnings": list(self.warnings)}, indent=2)
        return folder / VARIETY_FILE

    @classmethod
    def read(cls, folder: Path) -> "VarietyFigures":
        """The figures that stand in a folder.

        Raises:
            InputError: when there are none, or they are not whole.
        """
        names = {item.name: item.type for item in fields(cls)}
        counts = mappings(integers(0))
        schema = objects({name: counts if name in _BY_NAME else of_type(kind) for name, kind in names.items()})
        content = read_json(folder / VARIETY_FILE, schema, what="figures of a set", remedy="Repeat the command.")
        values = {name: content[name] for name in names}
        lists: dict[str, Any] = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


def measure_variety(catalogue: Catalogue, library: AssetLibrary) -> VarietyFigures:
    """Measures a planned set.

    Args:
        catalogue: its samples, one at least.
        library: its assets.

    Raises:
        InputError: when an asset is missing.
    """
    members = _Members.of(catalogue)
    places = _places_mm(members, library)
    figures = _record_figures(catalogue)
    counts, lungs = np.bincount(members.asset), np.unique(members.lung_of_sample, return_counts=True)[1]
    classes = np.bincount(distance_class(members.distance_mm), minlength=len(DISTANCE_EDGES_MM) + 1)
    distances = classes / classes.sum()
    return VarietyFigures(
        samples=len(catalogue),
        asked=int(figures.get("asked", len(catalogue))),
        nodules=len(members.asset),
        distinct_nodules=int(np.count_nonzero(counts)),
        distinct_lungs=len(lungs),
        distinct_places=len(np.unique(np.rint(places), axis=0)),
        most_often_nodule=int(counts.max()),
        most_often_lung=int(lungs.max()),
        real_nodules=int(members.real.sum()),
        real_lungs=Counter(catalogue.table["lung_source"].to_pylist())["real"],
        nearest_place_mm=_nearest(places),
        nearest_nodule_hu=_nearest_nodule(members.names, library),
        categories=dict(sorted(Counter(members.categories[members.category].tolist()).items())),
        sizes=tuple(np.bincount(size_class(members.diameter_mm), minlength=len(SIZE_EDGES_MM) + 1).tolist()),
        real_sizes=tuple(figures.get("real_sizes", [0] * (len(SIZE_EDGES_MM) + 1))),
        real_categories=dict(figures.get("real_categories", {})),
        distances=tuple(np.round(distances, 4).tolist()),
        real_distances=tuple(figures.get("real_distances", [0.0] * (len(DISTANCE_EDGES_MM) + 1))),
        within_10_mm=float((members.distance_mm <= _NEAR_MM).mean()),
        beyond_20_mm=float((members.distance_mm >= _DEEP_MM).mean()),
        under_4_mm=float((members.diameter_mm < _SMALL_MM).mean()),
        smallest_mm=float(members.diameter_mm.min()),
        target_gap=_gap(distances, figures.get("target_distances")),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Members:
    """Nodules of a catalogue, a line each: indices of names, and places on their lungs."""

    names: list[str]  # of assets
    categories: np.ndarray
    lungs: list[str]
    asset: np.ndarray
    category: np.ndarray
    real: np.ndarray
    diameter_mm: np.ndarray
    lung: np.ndarray
    row_px: np.ndarray
    col_px: np.ndarray
    distance_mm: np.ndarray
    lung_of_sample: np.ndarray

    @classmethod
    def of(cls, catalogue: Catalogue) -> "_Members":
        table = catalogue.table
        groups, lungs = (table[name].combine_chunks() for name in ("group", "lung"))
        parsed = [NoduleGroup.from_json(text).members for text in groups.dictionary.to_pylist()]
        flat = [member for members in parsed for member in members]
        starts = np.cumsum([0, *(len(members) for members in parsed)])
        codes, sizes = groups.indices.to_numpy(), table["n_nodules"].to_numpy()
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        index = np.repeat(starts[codes], sizes) + np.arange(int(sizes.sum())) - first
        names, asset = np.unique([member.asset for member in flat], return_inverse=True)
        categories, category = np.unique([member.category for member in flat], return_inverse=True)
        lung = lungs.indices.to_numpy()
        places = {name: table[name].combine_chunks().values.to_numpy() for name in ("row_px", "col_px", "distance_mm")}
        used, compact = np.unique(asset[index], return_inverse=True)
        return cls(
            names=names[used].tolist(),
            categories=categories,
            lungs=lungs.dictionary.to_pylist(),
            asset=compact,
            category=category[index],
            real=np.array([member.source == "real" for member in flat])[index],
            diameter_mm=np.array([member.diameter_mm for member in flat])[index],
            lung=np.repeat(lung, sizes),
            lung_of_sample=lung,
            **places,
        )


def _places_mm(members: _Members, library: AssetLibrary) -> np.ndarray:
    lungs = LibraryLungs(library=library, assets=[library[name] for name in members.lungs])
    return lungs.frames().places_mm(members.lung, members.row_px[:, None], members.col_px[:, None])[:, 0]


def _nearest(points: np.ndarray) -> float | None:
    """Median distance from a point to the nearest other one."""
    if len(points) < 2:
        return None
    distances, _ = cKDTree(points).query(points, k=2)
    return float(np.median(distances[:, 1]))


def _nearest_nodule(names: list[str], library: AssetLibrary) -> float | None:
    """Median over nodules of the root mean square difference from the most similar other one, in HU."""
    if len(names) < 2:
        return None
    patches = np.stack([_faded(library.load(name, keep=False)) for name in names[:_COMPARED]])
    squares = (patches**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * patches @ patches.T
    np.fill_diagonal(distances, np.inf)
    return float(np.median(np.sqrt(np.maximum(distances.min(axis=1), 0) / patches.shape[1])))


def _faded(stored: np.ndarray) -> np.ndarray:
    """A nodule's HU above lung, faded by its alpha, means of 2 x 2 pixels, flat."""
    shown = (stored[0].astype(np.float32) - LUNG_HU) * (stored[1].astype(np.float32) / ALPHA_SCALE)
    return (shown[::2, ::2] + shown[1::2, ::2] + shown[::2, 1::2] + shown[1::2, 1::2]).ravel() / 4


def _record_figures(catalogue: Catalogue) -> Mapping[str, Any]:
    return PlanRecord.read(catalogue).figures if PlanRecord.stands_in(catalogue) else {}


def _gap(shares: np.ndarray, aimed: list[float] | None) -> float | None:
    return None if aimed is None else float(np.abs(shares - np.array(aimed)).sum() / 2)


def _near(shares: tuple[float, ...]) -> float:
    return sum(shares[: DISTANCE_EDGES_MM.index(_NEAR_MM) + 1])


def _deep(shares: tuple[float, ...]) -> float:
    return sum(shares[DISTANCE_EDGES_MM.index(_DEEP_MM) + 1 :])


def _ranges(edges: tuple[float, ...]) -> list[str]:
    inner = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    return [f"under {edges[0]:g}", *inner, f"{edges[-1]:g} and more"]


def _names(edges: tuple[float, ...]) -> list[str]:
    """As `_ranges`, without blanks."""
    inner = [f"{low:g}_to_{high:g}" for low, high in pairwise(edges)]
    return [f"under_{edges[0]:g}", *inner, f"from_{edges[-1]:g}"]
