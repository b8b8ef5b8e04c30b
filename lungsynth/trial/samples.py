"""The samples of a trial: hosts, nodules of the levels asked for, and where they lie; a catalogue like any other.

A `Host` is a slice with lungs, a `NodulePool` gives a nodule of a texture and diameter. What stands for a level is an
asset: a nodule of another contrast and a slice of more noise are stored beside those they were made from, so that the
recipes of `catalogue.parquet` render, export and pair as any. Draws depend on the seed, the host and the replicate
alone: on one host, cells that differ in texture or contrast share places as far as these hold the nodule.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from lungsynth.cohort.reader import CohortSplit
from lungsynth.compositing.noise import TILE_UNIT, measure_noise
from lungsynth.errors import InputError
from lungsynth.hounsfield import LUNG_HU, Label, to_int16
from lungsynth.placement.assets import ALPHA_SCALE, Asset, AssetLibrary
from lungsynth.placement.catalogue import Recipe, make_recipe
from lungsynth.placement.groups import PHASES, GroupArrays, Member, NoduleGroup, NodulePlacement, place
from lungsynth.placement.lung_shape import MARGIN_PX, UNITS_PER_MM, LungShape
from lungsynth.placement.rules import REGIONS, PlacementRules, PlacementVerdict, Region, score
from lungsynth.seeds import SeedStream, seeds
from lungsynth.similarity.selection import store_usable
from lungsynth.trial.design import ATTACHED, Cell, TrialDesign, in_words, level_label
from lungsynth.types import MaskPlane

__all__ = [
    "GeneratedNodules",
    "Host",
    "NodulePool",
    "RealNodules",
    "TrialSample",
    "add_noise",
    "cohort_hosts",
    "place_nodule",
    "plan_samples",
    "with_contrast",
]

_logger = logging.getLogger(__name__)

SCALES = (0.8, 1.25)  # of a nodule to the diameter asked for: its noise and edge are scaled with it
_DEFAULT: Cell = {"diameter_mm": 8.0, "texture": "solid"}
_TRIES = (64, 512)  # places that are tried, few at first
_POOL = 16  # nodules of a texture and diameter
_SHOWN = 200  # pairs from which on progress is shown
_ROUNDS = 4  # of as many nodules, before a generator is given up
_ATTACHED_MM = 1.0  # from a nodule's edge to the pleura, at most
_CLEARANCE = 0.7  # radii from a centre to the pleura, at least: what sticks out more is no nodule in the lung
_FREE_SHARE, _CONTACT_SHARE = 0.02, 0.1  # of vessel pixels in the nodule's square, at most and at least
_GAP_MM = 3.0  # to what a host wants to be left alone


@dataclass(frozen=True, eq=False, kw_only=True)
class Host:
    """A slice that nodules are put into.

    Args:
        name: of the slice.
        patient: whose it is; what is inferred is inferred over patients.
        asset: the lung in the trial's library.
        shape: its geometry.
        avoid: (H, W), true where no nodule may lie, such as at real ones; None for nowhere.
    """

    name: str
    patient: str
    asset: Asset
    shape: LungShape
    avoid: MaskPlane | None = None

    @cached_property
    def free_mm(self) -> np.ndarray | None:
        """Distance to what is to be avoided, (H, W)."""
        if self.avoid is None or not self.avoid.any():
            return None
        return np.asarray(ndimage.distance_transform_edt(~self.avoid, sampling=self.shape.spacing_mm))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of the pixels in the lungs, in the frame of `presence`."""
        rows, columns = np.nonzero(self.shape.signed > 0)
        box = self.shape.box
        u, v = self.shape.to_unit(rows + float(box.row_from - MARGIN_PX), columns + float(box.column_from - MARGIN_PX))
        return np.clip(u, 0, 1), np.clip(v, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TrialSample:
    """A pair: a slice with a nodule, and the same without.

    Args:
        recipe: of the catalogue.
        host: name of the slice.
        patient: of the slice.
        replicate: which of the nodules of this cell on this host.
        cell: its levels.
    """

    recipe: Recipe
    host: str
    patient: str
    replicate: int
    cell: Cell

    @property
    def id(self) -> str:
        """Of the recipe."""
        return self.recipe.id

    @property
    def labels(self) -> dict[str, str]:
        """Its levels in words."""
        return {name: level_label(level) for name, level in self.cell.items()}


@runtime_checkable
class NodulePool(Protocol):
    """Where nodules come from."""

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights that made them; None for real ones."""
        ...

    def nodules(self, texture: str, diameter_mm: float) -> Sequence[Asset]:
        """Nodules that can be scaled to a diameter; the same ones each time.

        Raises:
            InputError: when there is none.
        """
        ...


class GeneratedNodules:
    """Nodules of wcapsgan_bundle, asked for by texture and diameter.

    Args:
        library: of the trial.
        sampler: of the bundle.
        weights: SHA-256 of its weights.
        seed: of the trial.
        count: nodules of each texture and diameter.
    """

    def __init__(self, library: AssetLibrary, sampler: Any, *, weights: str, seed: int, count: int = _POOL) -> None:
        self.library, self.sampler, self.seed, self.count = library, sampler, seed, count
        self.weights: str | None = weights
        self._made: dict[tuple[str, float], list[Asset]] = {}

    def nodules(self, texture: str, diameter_mm: float) -> Sequence[Asset]:
        """Of a texture and diameter.

        Raises:
            InputError: when the generator knows no such texture, or makes none of this diameter.
        """
        if texture not in self.sampler.categories:
            raise InputError(
                f"`factors`: texture is one of {', '.join(self.sampler.categories)} for generated nodules, got "
                f"{texture!r}."
            )
        key = texture, diameter_mm
        if key not in self._made:
            self._made[key] = self._make(texture, diameter_mm)
        return self._made[key]

    def _make(self, texture: str, diameter_mm: float) -> list[Asset]:
        found: dict[str, Asset] = {}
        index = list(self.sampler.categories).index(texture)
        drawn = seeds(self.seed, SeedStream.TRIAL, index, round(diameter_mm * 100), n=_ROUNDS * self.count)
        for start in range(0, len(drawn), self.count):
            part = drawn[start : start + self.count]
            samples = self.sampler(part, [texture] * len(part), [diameter_mm] * len(part))
            for hu, alpha, seed in zip(samples["hu"], samples["alpha"], part, strict=True):
                facts = {"category": texture, "source": "generated", "origin": str(seed), "weights": self.weights}
                asset = store_usable(self.library.add_nodule, to_int16(hu), alpha.astype(np.float64), **facts)
                if asset is not None and _scale(asset, diameter_mm) is not None and len(found) < self.count:
                    found[asset.hash] = asset
            if len(found) >= self.count:
                break
        if not found:
            raise InputError(
                f"`factors`: wcapsgan_bundle makes no {texture} nodule of {diameter_mm:g} mm. Ask for other diameters, "
                "or for `nodules` real."
            )
        return list(found.values())


class RealNodules:
    """Nodules of a cohort's patients.

    Args:
        library: of the trial.
        splits: of the cohort, whose nodules are used.
        seed: of the trial.
        count: nodules of each texture and diameter, at most.
    """

    weights: str | None = None

    def __init__(self, library: AssetLibrary, splits: Sequence[CohortSplit], *, seed: int, count: int = _POOL) -> None:
        self.library, self.splits, self.seed, self.count = library, splits, seed, count
        self._read: dict[str, list[Asset]] = {}

    def nodules(self, texture: str, diameter_mm: float) -> Sequence[Asset]:
        """Of a texture, nearest to a diameter.

        Raises:
            InputError: when no patient has one.
        """
        if texture not in self._read:
            self._read[texture] = list(self._assets(texture))
        usable = [asset for asset in self._read[texture] if _scale(asset, diameter_mm) is not None]
        if not usable:
            raise InputError(
                f"`factors`: no patient of the cohort has a {texture} nodule near {diameter_mm:g} mm. Ask for other "
                "levels, or for `nodules` generated."
            )
        nearest = sorted(usable, key=lambda asset: (abs(np.log((asset.diameter_mm or 1) / diameter_mm)), asset.hash))
        return nearest[: self.count]

    def _assets(self, texture: str) -> Iterator[Asset]:
        order = seeds(self.seed, SeedStream.REAL_NODULES, n=1)[0]
        for split in self.splits:
            for nodule in split.read_nodules(texture, seed=order):
                facts = {"category": texture, "source": "real", "origin": nodule.origin}
                if asset := store_usable(self.library.add_nodule, nodule.hu, nodule.alpha, **facts):
                    yield asset


def cohort_hosts(library: AssetLibrary, splits: Sequence[CohortSplit], *, seed: int) -> Iterator[Host]:
    """The normal slices of a cohort's patients, patients in turn, each one's slices in a seeded order."""
    order = np.random.default_rng(seeds(seed, SeedStream.REAL_LUNGS, n=1)[0])
    entries: dict[str, list[Any]] = {}
    cohort = splits[0].cohort
    listed = (entry for split in splits for entry in split.lungs())
    for entry in sorted(listed, key=lambda entry: entry.slice_id):
        entries.setdefault(entry.patient_id or entry.slice_id, []).append(entry)
    patients = {name: [own[place] for place in order.permutation(len(own))] for name, own in entries.items()}
    for turn in itertools.zip_longest(*patients.values()):
        for patient, entry in zip(patients, turn, strict=True):
            if entry is None:
                continue
            try:
                hu, label, affine = cohort.read_slice(entry)
            except InputError as error:
                _logger.warning("left out: %s", error)
                continue
            mask = label == Label.LUNG
            facts = {"affine": affine, "source": "real", "origin": entry.slice_id}
            if asset := store_usable(library.add_lung, hu, mask, **facts):
                shape = LungShape.from_mask(mask, spacing_mm=asset.spacing_mm, hu=hu)
                yield Host(name=entry.slice_id, patient=patient, asset=asset, shape=shape)


def plan_samples(
    library: AssetLibrary,
    hosts: Iterable[Host],
    pool: NodulePool,
    design: TrialDesign,
    *,
    seed: int,
) -> tuple[list[TrialSample], Counter[str]]:
    """Puts a design on hosts.

    Args:
        library: takes the variants of nodules and slices.
        hosts: more than the design needs, for some cannot carry every cell; no more are taken than needed.
        pool: gives the nodules.
        design: what is wanted.
        seed: of places and turns.

    Returns:
        The pairs, host after host, and how often which cell found no place on a host that was given up.

    Raises:
        InputError: when the hosts do not suffice, naming the cell that most often found no place.
    """
    planner = _Planner(library, pool, design, seed)
    wanted = Counter(dict.fromkeys(range(len(design.cells)), design.hosts * design.replicates))
    failed: Counter[str] = Counter()
    samples: list[TrialSample] = []
    with tqdm(total=design.count, desc="pairs", unit="pair", disable=design.count < _SHOWN or None) as progress:
        for host in hosts:
            own = planner.on_host(host, wanted, failed)
            samples += own
            progress.update(len(own))
            if planner.used == design.hosts if design.paired else not +wanted:
                return samples, failed
    reason = f"most often there was no place for {failed.most_common(1)[0][0]}" if failed else "there are no more"
    raise InputError(
        f"`hosts`: {design.hosts} slices that can carry the design are needed, {planner.used} were found; {reason}. "
        "Ask for fewer hosts, easier levels, or hosts that are not paired."
    )


@dataclass(eq=False)
class _Planner:
    library: AssetLibrary
    pool: NodulePool
    design: TrialDesign
    seed: int
    used: int = 0

    def on_host(self, host: Host, wanted: Counter[int], failed: Counter[str]) -> list[TrialSample]:
        """The pairs of a host; none when the design is paired and it cannot carry all of its cells."""
        samples = []
        for replicate in range(self.design.replicates):
            for cell in self.design.cells_of(self.used):
                number = self.design.cells.index(cell)
                if not self.design.paired and wanted[number] <= 0:
                    continue
                sample = self._sample(host, cell, number, replicate)
                if sample is not None:
                    samples.append(sample)
                    wanted[number] -= not self.design.paired
                    continue
                failed[in_words({name: level_label(level) for name, level in cell.items()})] += 1
                if self.design.paired:
                    return []
        self.used += bool(samples)
        return samples

    def _sample(self, host: Host, cell: Cell, number: int, replicate: int) -> TrialSample | None:
        full: Cell = {**_DEFAULT, **cell}
        texture, diameter_mm = str(full["texture"]), float(full["diameter_mm"])  # type: ignore[arg-type]
        words = int(host.asset.hash, 16), replicate
        nodules = self.pool.nodules(texture, diameter_mm)
        nodule = nodules[int(np.random.default_rng([self.seed, *words, 1]).integers(len(nodules)))]
        if "contrast_hu" in full:
            nodule = with_contrast(self.library, nodule, float(full["contrast_hu"]))  # type: ignore[arg-type]
        found = place_nodule(host, nodule, full, seed=(self.seed, *words))
        if found is None:
            return None
        lung = host.asset
        if (times := float(full.get("noise", 1.0))) > 1:  # type: ignore[arg-type]
            lung = add_noise(self.library, lung, times, seed=self.seed)
        group, placements = found
        recipe_seed = int(np.random.default_rng([self.seed, *words, 2, number]).integers(1 << 62))
        recipe = make_recipe(lung, group, placements, seed=recipe_seed, weights_nodule=self.pool.weights)
        return TrialSample(recipe=recipe, host=host.name, patient=host.patient, replicate=replicate, cell=cell)


def place_nodule(
    host: Host, nodule: Asset, cell: Cell, *, seed: Sequence[int]
) -> tuple[NoduleGroup, tuple[NodulePlacement, ...]] | None:
    """Finds a place for a nodule; None where no try met the levels.

    Args:
        host: the slice.
        nodule: is scaled to the cell's `diameter_mm`.
        cell: its `distance_mm`, `vessel`, `third` and `side` decide where.
        seed: numbers that the draws depend on.
    """
    diameter_mm = float(cell["diameter_mm"])  # type: ignore[arg-type]
    scale = _scale(nodule, diameter_mm)
    if scale is None or not len(host.places[0]):
        return None
    rules = _rules(cell, diameter_mm)
    deepest_mm = float(host.shape.signed.max()) / UNITS_PER_MM
    if deepest_mm < max(rules.min_distance_mm, rules.edge_clearance * diameter_mm / 2):
        return None
    rng = np.random.default_rng([*seed, 0])
    member = Member(
        asset=nodule.hash,
        category=nodule.category,
        source=nodule.source,
        diameter_mm=round((nodule.diameter_mm or 0.0) * scale, 3),
        u=0.5,
        v=0.5,
        rotation_deg=round(float(rng.random()) * 360, 1),
        flip=bool(rng.random() < 0.5),
        scale=scale,
        row_phase=int(rng.integers(PHASES)) / PHASES,
        col_phase=int(rng.integers(PHASES)) / PHASES,
    )
    u, v = host.places
    for tries in _TRIES:
        chosen = rng.integers(len(u), size=tries)
        groups = [
            NoduleGroup((replace(member, u=round(float(u[place]), 4), v=round(float(v[place]), 4)),))
            for place in chosen
        ]
        scores = score(host.shape, GroupArrays.of(groups), rules)
        kept = (scores.verdict == PlacementVerdict.KEPT) & _away(host, scores.row, scores.col, diameter_mm)
        if kept.any():
            first = int(np.argmax(kept))
            position = scores.row[first] / PHASES, scores.col[first] / PHASES, scores.distance[first] / UNITS_PER_MM
            numbers = tuple(float(number) for number in position)
            return groups[first], place(groups[first], [(numbers[0], numbers[1], numbers[2])])
    return None


def with_contrast(library: AssetLibrary, nodule: Asset, contrast_hu: float) -> Asset:
    """The nodule with its HU stretched around lung (-850) so that their mean lies `contrast_hu` above it."""
    hu, alpha = library.load(nodule.hash).astype(np.float64)
    weights = alpha / alpha.max()
    own = float(hu[weights >= 0.5].mean()) - LUNG_HU
    if own < 1:
        raise InputError(f"Nodule {nodule.origin} is no denser than lung ({own:.0f} HU above it); it has no contrast.")
    stretched = to_int16(LUNG_HU + (hu - LUNG_HU) * (contrast_hu / own))
    return library.add_nodule(
        stretched,
        alpha / ALPHA_SCALE,
        category=nodule.category,
        source=nodule.source,
        origin=f"{nodule.origin} at {contrast_hu:g} HU",
        diameter_mm=nodule.diameter_mm,
        weights=nodule.weights,
    )


def add_noise(library: AssetLibrary, lung: Asset, times: float, *, seed: int) -> Asset:
    """The slice with so many times its own noise, of the same covariance between neighbouring pixels."""
    hu, mask = library.load(lung.hash)
    noise = measure_noise(hu, mask > 0, spacing_mm=lung.spacing_mm)
    level_hu = noise.whole_hu * (times**2 - 1) ** 0.5
    field = _like_tile(noise.tile, hu.shape, seed=int(lung.hash, 16) ^ seed) if level_hu else np.zeros(hu.shape)
    return library.add_lung(
        to_int16(hu + level_hu * field),
        mask > 0,
        affine=lung.affine_matrix,
        source=lung.source,
        origin=f"{lung.origin} with {times:g} times its noise",
        category=lung.category,
        weights=lung.weights,
    )


def _like_tile(tile: np.ndarray, shape: tuple[int, ...], *, seed: int) -> np.ndarray:
    """Noise of a standard deviation of 1 with the covariance of a tile, (H, W); it does not repeat."""
    unit = tile.astype(np.float64) / TILE_UNIT
    covariance = np.fft.irfft2(np.abs(np.fft.rfft2(unit)) ** 2, s=unit.shape) / unit.size
    reach = 3  # up to which the tile's covariance is made
    wide = np.zeros(shape)
    for down, right in itertools.product(range(-reach, reach + 1), repeat=2):
        wide[down, right] = covariance[down, right]
    spectrum = np.sqrt(np.maximum(np.fft.rfft2(wide).real, 0))
    white = np.random.default_rng(seed).standard_normal(shape)
    field = np.fft.irfft2(np.fft.rfft2(white) * spectrum, s=shape)
    return np.asarray(field / max(float(field.std()), 1e-6))


def _scale(nodule: Asset, diameter_mm: float) -> float | None:
    scale = round(diameter_mm / (nodule.diameter_mm or 1.0), 3)
    return scale if SCALES[0] <= scale <= SCALES[1] else None


def _rules(cell: Cell, diameter_mm: float) -> PlacementRules:
    values: dict[str, Any] = {"types": ("isolated", "juxta_vascular"), "clearance": _CLEARANCE}
    values |= {"pleural_clearance": _CLEARANCE, "max_vessel_share": 0.5}
    level = cell.get("distance_mm")
    if level == ATTACHED:
        values["max_distance_mm"] = diameter_mm / 2 + _ATTACHED_MM
    elif isinstance(level, tuple):
        low, high = level
        values["min_distance_mm"] = diameter_mm / 2 + low
        values["max_distance_mm"] = None if high is None else diameter_mm / 2 + high
    if cell.get("vessel") == "free":
        values |= {"types": ("isolated",), "juxta_vascular_share": _FREE_SHARE}
    elif cell.get("vessel") == "contact":
        values |= {"types": ("juxta_vascular",), "juxta_vascular_share": _CONTACT_SHARE}
    regions = [REGIONS[str(cell[name])] for name in ("third", "side") if name in cell]
    return PlacementRules(**values, min_diameter_mm=2.0, regions=(_common(regions),) if regions else ())


def _common(regions: Sequence[Region]) -> Region:
    u0, u1, v0, v1 = zip(*regions, strict=True)
    return max(u0), min(u1), max(v0), min(v1)


def _away(host: Host, row: np.ndarray, col: np.ndarray, diameter_mm: float) -> np.ndarray:
    """Whether centres, in quarters of a pixel, leave alone what is to be avoided."""
    if host.free_mm is None:
        return np.ones(len(row), dtype=bool)
    rows, columns = host.free_mm.shape
    at = np.clip(row // PHASES, 0, rows - 1), np.clip(col // PHASES, 0, columns - 1)
    return np.asarray(host.free_mm[at] >= diameter_mm / 2 + _GAP_MM)
