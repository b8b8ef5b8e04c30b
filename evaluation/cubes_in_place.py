"""Inserted nodules beside held-out patients' own: can a patch of the scan tell which one was there before?

A host is the window of a held-out nodule, the slices that show it and their neighbours (90 x 90 mm). Beside that
nodule, on the same slice, another one of its category and diameter is inserted in three dimensions, as `lungsynth
insert` does. Both are cut out, 33.6 x 33.6 mm through their middles, and told apart by the CNN of the two-sample tests
on HU alone. Windows of LIDC-IDRI have the grey values of 8-bit images, so what was inserted is rounded to them, too.

A training patient's nodule that is inserted shows what inserting gives away, whatever is inserted. Training patients'
nodules where they grew are the floor. The generated ones as even discs, neither blended nor noisy, show what the test
can see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from evaluation.boundary import BoundaryReference, measure_boundary
from evaluation.cohort_subsets import Subset
from evaluation.metrics.bootstrap import Estimate, Estimates, estimate, estimate_ratio, patient_index
from evaluation.metrics.c2st import CNN_STEPS, c2st_cnn
from evaluation.utility.windows import lung_of
from lungsynth.categories import UNKNOWN
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import NoduleRow
from lungsynth.config import PlacementConfig
from lungsynth.ct.volume import Volume
from lungsynth.errors import NoSamplesError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import DENSE_HU, Label
from lungsynth.placement.lung_shape import AIRWAY_HU
from lungsynth.scans.cubes import CohortCubes, CubeSource, GeneratedCubes
from lungsynth.scans.insert import PlacedNodule, insert_nodules
from lungsynth.scans.places import NodulePlace
from lungsynth.scans.request import DIAMETERS_MM, WantedNodule
from lungsynth.similarity.samples import Samples, owner_folds
from lungsynth.types import HuPlane, HuVolume, MaskPlane

__all__ = ["evaluate_in_place"]

_SIDE_PX = 48  # of what is compared, 33.6 mm
_FEWEST_SLICES = 3  # of a host, evenly spaced
_STEP_TOLERANCE = 0.01  # share by which steps may differ and count as even
_RULES = PlacementConfig(policy="varied").placement_rules
_NOTHING = 255  # in the label of a window: nobody can tell


@dataclass(frozen=True, eq=False, kw_only=True)
class _Host:
    """A window with its nodule, and a place beside it.

    `nodule` is its row, `volume` the window, `index` the slice, `mask` the nodule on it, `centre` the (row, column)
    where another one fits, None where there is no room.
    """

    nodule: NoduleRow
    volume: Volume
    index: int
    mask: MaskPlane
    centre: tuple[int, int] | None

    @property
    def wanted(self) -> WantedNodule:
        """A nodule like its own."""
        return WantedNodule(texture=self.nodule.texture_class, diameter_mm=self.nodule.diameter_mm)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Patch:
    """A nodule with what surrounds it: HU and mask (48, 48)."""

    hu: HuPlane
    mask: MaskPlane


def evaluate_in_place(
    subset: Subset, bundles: Path, *, seed: int, steps: int = CNN_STEPS
) -> tuple[dict[str, Estimates], int]:
    """Inserts beside each held-out nodule, and asks the two-sample test.

    Args:
        subset: whose nodules are hosts.
        bundles: folder of the bundles.
        seed: of places, noise and the test.
        steps: of the test's CNN, for each fold.

    Returns:
        `c2st` and `boundary` by row: `training` (the floor), `inserted` (training patients' nodules), `generated`,
        `even` (the control); of `held_out` the boundary alone. And how many hosts there are.

    Raises:
        NoSamplesError: when the cohort has no such windows, or no nodules to insert.
    """
    votes = subset.min_votes
    hosts = [host for host in _hosts(subset.cohort, subset.split, votes=votes, seed=seed) if host.centre is not None]
    sources: dict[str, CubeSource] = {
        "inserted": CohortCubes(cohort=subset.cohort),
        "generated": GeneratedCubes(bundles=bundles),
    }
    rows = []
    for number, host in enumerate(tqdm(hosts, desc="in place", unit="nodule")):
        try:
            made = {name: _insert(host, source, seed=seed + number) for name, source in sources.items()}
        except NoSamplesError:  # no training nodule of this texture and size
            continue
        if (own := _cut(host.volume.hu[host.index], host.mask)) and all(made.values()):
            rows.append((host, own, made))
    grown = _grown(_hosts(subset.cohort, "training", votes=votes, seed=seed, places=False))
    if not rows or len(grown) < len(rows):
        raise NoSamplesError(
            f"{subset.folder}: {len(rows)} windows of its {subset.split} split have room beside their nodule, and "
            f"{len(grown)} of its training split show one. Prepare it from more patients."
        )
    used = [host for host, _, _ in rows]
    held_out = _samples(used, [own for _, own, _ in rows])
    sets = {"training": _like(used, grown)} | {
        name: _samples(used, [made[name] for _, _, made in rows]) for name in sources
    }
    sets["even"] = _samples(used, [_even(made["generated"]) for _, _, made in rows])
    boundary = BoundaryReference.of(_bordered(_samples(*zip(*grown, strict=True))))
    figures: dict[str, Estimates] = {
        name: {
            "c2st": _two_sample_test(held_out, other, seed=seed, steps=steps),
            "boundary": _boundary(other, boundary, seed=seed),
        }
        for name, other in sets.items()
    }
    figures["held_out"] = {"boundary": _boundary(held_out, boundary, seed=seed)}
    return figures, len(used)


def _hosts(cohort: Cohort, split: str, *, votes: int, seed: int, places: bool = True) -> list[_Host]:
    """The windows of a split that show a nodule that so many readers drew, on evenly spaced slices."""
    hosts = []
    for number, nodule in enumerate(cohort.split(split).all_nodules()):
        path = cohort.folder / nodule.window
        usable = nodule.texture_class != UNKNOWN and nodule.votes >= votes
        if usable and DIAMETERS_MM[0] <= nodule.diameter_mm <= DIAMETERS_MM[1] and path.is_file():
            hosts += _host(nodule, path, np.random.default_rng([seed, number]), votes=votes, places=places)
    return hosts


def _host(nodule: NoduleRow, path: Path, rng: np.random.Generator, *, votes: int, places: bool) -> list[_Host]:
    """The host of a nodule; none where its slices are few or uneven."""
    hu, label, drawn, z_mm, largest = read_arrays(path, "hu", "label", "votes", "z_mm", "largest")
    steps, index = np.diff(z_mm), int(largest)
    mask = drawn[index] >= votes
    if len(z_mm) < _FEWEST_SLICES or np.ptp(steps) > _STEP_TOLERANCE * steps.min() or not mask.any():
        return []
    affine = np.diag([-PATCH_SPACING_MM, -PATCH_SPACING_MM, float(steps[0]), 1.0])
    volume = Volume(hu=hu, affine=affine, series_id=nodule.nodule_id, patient_id=nodule.patient_id)
    busy = (label[index] == _NOTHING) | (drawn[index] > 0)
    centre = _place(hu[index], busy, nodule.diameter_mm, rng) if places else None
    return [_Host(nodule=nodule, volume=volume, index=index, mask=mask, centre=centre)]


def _place(hu: HuPlane, busy: MaskPlane, diameter_mm: float, rng: np.random.Generator) -> tuple[int, int] | None:
    """A pixel of lung where the rules of placement let a nodule lie, and whose patch does not show what is there."""
    lung, radius_px = lung_of(hu), diameter_mm / 2 / PATCH_SPACING_MM
    away_mm = ndimage.distance_transform_edt(lung) * PATCH_SPACING_MM
    reach = np.arange(-int(radius_px), int(radius_px) + 1)
    disc = np.hypot(*np.meshgrid(reach, reach)) <= radius_px
    obstacles = (lung & (hu > DENSE_HU)), (lung & (hu < AIRWAY_HU))
    dense, airway = (ndimage.convolve(what.astype(np.float32), disc / disc.sum()) for what in obstacles)
    fits = lung & (away_mm >= max(diameter_mm / 2 * _RULES.edge_clearance, _RULES.min_distance_mm))
    fits &= (dense <= _RULES.max_vessel_share) & (airway <= _RULES.max_airway_share)
    margin = _SIDE_PX // 2
    fits &= ~ndimage.maximum_filter(busy, 2 * margin + 1)
    inside = np.zeros_like(fits)
    inside[margin:-margin, margin:-margin] = True
    places = np.argwhere(fits & inside)
    if not len(places):
        return None
    row, column = places[int(rng.integers(len(places)))]
    return int(row), int(column)


def _insert(host: _Host, source: CubeSource, *, seed: int) -> _Patch | None:
    """A nodule of a source beside the host's own, as the two are to be compared."""
    rng, (row, column) = np.random.default_rng([seed, 1]), host.centre or (0, 0)
    rotation, flip, mirror = rng.random(3).tolist()
    place = NodulePlace(
        voxel=(float(host.index), float(row), float(column)),
        distance_mm=0.0,
        type="isolated",
        vessel_share=0.0,
        rotation_deg=round(rotation * 360, 1),
        flip=flip < 0.5,
        mirror=mirror < 0.5,
    )
    hu = host.volume.hu
    label = np.stack([lung_of(plane) for plane in hu]).astype(np.uint8) * np.uint8(Label.LUNG)
    (cube,) = source.cubes([host.wanted], seed=seed)
    placed = PlacedNodule(cube=cube.cube, place=place, diameter_mm=host.wanted.diameter_mm)
    inserted = insert_nodules(host.volume, label, [placed], seed=seed)
    index = int((inserted.instances == 1).sum(axis=(1, 2)).argmax())
    return _cut(_rounded(inserted.volume.hu[index], hu), inserted.instances[index] == 1)


def _even(patch: _Patch | None) -> _Patch | None:
    """A nodule with its mean HU in its outline."""
    if patch is None:
        return None
    hu = patch.hu.copy()
    hu[patch.mask] = round(float(hu[patch.mask].mean()))
    return _Patch(hu=hu, mask=patch.mask)


def _rounded(hu: HuPlane, host: HuVolume) -> HuPlane:
    """HU as the nearest of those that the host has."""
    levels = np.unique(host)
    above = np.clip(np.searchsorted(levels, hu), 1, len(levels) - 1)
    nearer = np.where(levels[above] - hu < hu - levels[above - 1], above, above - 1)
    rounded: HuPlane = levels[nearer]
    return rounded


def _cut(hu: HuPlane, mask: MaskPlane) -> _Patch | None:
    """The square around a mask; None where the window ends."""
    corner = [round(float(at)) - _SIDE_PX // 2 for at in ndimage.center_of_mass(mask)]
    window = tuple(slice(at, at + _SIDE_PX) for at in corner)
    if min(corner) < 0 or hu[window].shape != (_SIDE_PX, _SIDE_PX):
        return None
    return _Patch(hu=hu[window], mask=mask[window])


def _grown(hosts: Sequence[_Host]) -> list[tuple[_Host, _Patch]]:
    """Hosts with their own nodules."""
    cuts = [(host, _cut(host.volume.hu[host.index], host.mask)) for host in hosts]
    return [(host, patch) for host, patch in cuts if patch is not None]


def _like(hosts: Sequence[_Host], grown: Sequence[tuple[_Host, _Patch]]) -> Samples:
    """For each host another one's nodule where it grew: of its category, and of those left the nearest in size."""
    left, chosen = list(grown), []
    for host in hosts:
        texture, diameter_mm = host.nodule.texture_class, host.nodule.diameter_mm
        apart = [
            (other.nodule.texture_class != texture, abs(other.nodule.diameter_mm - diameter_mm), k)
            for k, (other, _) in enumerate(left)
        ]
        chosen.append(left.pop(min(apart)[2]))
    return _samples(*zip(*chosen, strict=True))


def _samples(hosts: Sequence[_Host], patches: Sequence[_Patch | None]) -> Samples:
    shown = [patch for patch in patches if patch is not None]
    return Samples(
        hu=np.stack([patch.hu for patch in shown]),
        mask=np.stack([patch.mask for patch in shown]).astype(np.float16),
        categories=tuple(host.nodule.texture_class for host in hosts),
        owners=tuple(host.nodule.patient_id for host in hosts),
        names=tuple(host.nodule.nodule_id for host in hosts),
        spacing_mm=PATCH_SPACING_MM,
    )


def _two_sample_test(held_out: Samples, other: Samples, *, seed: int, steps: int) -> Estimate:
    """Share told correctly by HU alone; both sides are as large."""
    folds = owner_folds(held_out.owners, seed=seed), owner_folds(other.owners, seed=seed)
    sides = c2st_cnn(_without_mask(held_out), _without_mask(other), folds, seed=seed, steps=steps)
    correct = np.concatenate(sides).astype(np.float64)
    owners = (*held_out.owners, *other.owners)
    return estimate_ratio(owners, correct.tolist(), [1.0] * len(correct), seed=seed)


def _without_mask(samples: Samples) -> Samples:
    return Samples(**{**vars(samples), "mask": np.zeros_like(samples.mask)})


def _boundary(samples: Samples, reference: BoundaryReference, *, seed: int) -> Estimate:
    """Median boundary score of those that can be measured."""
    measured = [measure_boundary(hu, mask) for hu, mask in _bordered(samples)]
    scored = [(who, reference.score(f)) for who, f in zip(samples.owners, measured, strict=True) if f is not None]
    patients = sorted({who for who, _ in scored})
    index, scores = patient_index([who for who, _ in scored], patients), np.array([score for _, score in scored])

    def median(counts: np.ndarray) -> list[float]:
        drawn = np.repeat(scores, counts[index].astype(int))
        return [float(np.median(drawn)) if len(drawn) else float("nan")]

    return estimate([patients], median, n=[len(scores)], seed=seed)[0]


def _bordered(samples: Samples) -> list[tuple[np.ndarray, np.ndarray]]:
    """HU and mask on the patch grid, which is larger."""
    border = (PATCH_PX - _SIDE_PX) // 2
    return [
        (np.pad(hu, border, mode="edge"), np.pad(mask, border) >= 0.5)
        for hu, mask in zip(samples.hu, samples.mask, strict=True)
    ]
