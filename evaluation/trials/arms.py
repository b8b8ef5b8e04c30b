"""What detectors are asked: a real nodule in its window, and others that stand in for it, as a trial puts them there.

Each real nodule is painted over with lung of its slice (`removal`). Into the same window are put, by the code that
trials use, nodules of its diameter and texture, one an arm:

- `own`: the nodule itself, in its place, turned: compositing differs;
- `donor`: a real nodule of a training patient, in that place: the nodule differs, too;
- `generated`: one of wcapsgan_bundle, in that place: as trials use by default;
- `elsewhere`: the nodule itself, in another place of the window, as far from the pleura: surroundings differ, and how
  far from the middle of the window it lies.

Windows are single slices here, as a trial's.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.methods import digest_of
from evaluation.segmentation.windows import NoduleView
from evaluation.trials.removal import without_nodule
from evaluation.utility.windows import lung_of
from lungsynth.bundles import open_bundle, read_weights
from lungsynth.cohort.files import read_arrays
from lungsynth.compositing.render import Renderer
from lungsynth.errors import InputError, naming_file
from lungsynth.geometry import PATCH_SPACING_MM, axial_affine, disc_diameter
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_arrays
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import make_recipe
from lungsynth.placement.groups import PHASES, Member, NoduleGroup, NodulePlacement, place
from lungsynth.placement.lung_shape import LungShape
from lungsynth.trial.design import ATTACHED, Level
from lungsynth.trial.samples import GeneratedNodules, Host, NodulePool, RealNodules, place_nodule

__all__ = ["ARMS", "REAL", "Arms", "kept_arms", "make_arms"]

_logger = logging.getLogger(__name__)

REAL = "real"
ARMS = ("own", "donor", "generated", "elsewhere")  # those that were put in

Arms = dict[str, list[NoduleView]]  # by arm, and REAL: the same nodules in each, in the same order

_STEP = 1.08  # ratio of the diameters that nodules are generated for
_SMALLEST_LUNG_PX = 400  # 2 cm2
_CLASSES_MM = (1.0, 5.0)  # of the distance from a nodule's edge to the pleura

_Placed = tuple[NoduleGroup, tuple[NodulePlacement, ...]]


def kept_arms(
    views: Sequence[NoduleView], owners: Mapping[str, Subset], folder: Path, *, bundles: Path, seed: int, identity: str
) -> Arms:
    """The arms as an earlier call left them in the folder, else made and kept.

    Args:
        views: of real nodules.
        owners: the subset of each nodule id.
        folder: of what is kept.
        bundles: folder of the bundles.
        seed: of everything random.
        identity: changes with the cohort.

    Raises:
        InputError: when no nodule can be put in, or what is kept is damaged.
    """
    path = folder / "arms.npz"
    by_id = {view.nodule.nodule_id: view for view in views}
    identity = digest_of([identity, sorted(by_id), ARMS, seed])
    if path.is_file():
        with naming_file(path, remedy="delete it"), np.load(path) as kept:
            if str(kept["identity"]) == identity:
                names = kept["nodules"].tolist()
                return {
                    arm: [
                        _single(by_id[name], hu, votes)
                        for name, hu, votes in zip(names, kept[f"{arm}_hu"], kept[f"{arm}_votes"], strict=True)
                    ]
                    for arm in (REAL, *ARMS)
                }
    arms = make_arms(views, owners, AssetLibrary(folder / "arms"), bundles=bundles, seed=seed)
    planes = {f"{arm}_hu": np.stack([view.hu[0] for view in own]) for arm, own in arms.items()}
    votes = {f"{arm}_votes": np.stack([view.votes for view in own]) for arm, own in arms.items()}
    names = np.array([view.nodule.nodule_id for view in arms[REAL]])
    write_arrays(path, identity=np.array(identity), nodules=names, **planes, **votes)
    return arms


def make_arms(
    views: Sequence[NoduleView], owners: Mapping[str, Subset], library: AssetLibrary, *, bundles: Path, seed: int
) -> Arms:
    """Views of the real nodules, and of those put in for them.

    Args:
        views: of real nodules.
        owners: the subset of each nodule id.
        library: takes what is put in, and where.
        bundles: folder of the bundles.
        seed: of everything random.

    Raises:
        InputError: when no nodule can be put in.
    """
    cohort = next(iter(owners.values())).cohort
    weights = read_weights(bundles, "wcapsgan").sha256
    pools: dict[str, NodulePool] = {
        "donor": RealNodules(library, [cohort.split("training")], seed=seed),
        "generated": GeneratedNodules(library, open_bundle(bundles, "wcapsgan"), weights=weights, seed=seed),
    }
    renderer = Renderer(library)
    arms: Arms = {name: [] for name in (REAL, *ARMS)}
    for view in tqdm(views, desc="arms", unit="nodule"):
        answers = _answers(view, owners[view.nodule.nodule_id], library, pools, renderer, seed)
        for name, answer in (answers or {}).items():
            arms[name].append(answer)
    if not arms[REAL]:
        raise InputError(f"{cohort.folder}: no held-out nodule has a window in which others can stand in for it.")
    _logger.info("others stand in for %d of %d nodules", len(arms[REAL]), len(views))
    return arms


def _answers(
    view: NoduleView,
    subset: Subset,
    library: AssetLibrary,
    pools: Mapping[str, NodulePool],
    renderer: Renderer,
    seed: int,
) -> dict[str, NoduleView] | None:
    """The view of a real nodule as one slice, and of what stands in for it; None where something cannot."""
    words = seed, zlib.crc32(view.nodule.nodule_id.encode())
    spot = _Spot.of(view, library, rng=np.random.default_rng([*words, 8]))
    if spot is None:
        return None
    answers = {REAL: _single(view, view.hu[view.index], view.votes)}
    for number, arm in enumerate(ARMS):
        try:
            nodule = _nodule(arm, spot.diameter_mm, subset, view, pools, library, words)
        except InputError as error:
            _logger.debug("%s: %s", view.nodule.nodule_id, error)
            return None
        placed = spot.elsewhere(nodule, seed=words) if arm == "elsewhere" else spot.in_place(nodule, seed=words)
        if placed is None:
            return None
        sample = renderer.render(make_recipe(spot.host.asset, *placed, seed=words[1] * len(ARMS) + number))
        # A candidate where the real nodule was is neither a hit nor false.
        votes = np.where(sample.label == Label.NODULE, 2, np.minimum(view.votes, 1)).astype(np.uint8)
        answers[arm] = _single(view, sample.image, votes)
    return answers


def _single(view: NoduleView, hu: np.ndarray, votes: np.ndarray) -> NoduleView:
    """A view of one slice, and of what is drawn there."""
    return replace(view, hu=hu[None], votes=votes, index=0, slice_mm=1.0, readers=None)


def _nodule(
    arm: str,
    diameter_mm: float,
    subset: Subset,
    view: NoduleView,
    pools: Mapping[str, NodulePool],
    library: AssetLibrary,
    words: tuple[int, int],
) -> Asset:
    texture = view.nodule.texture_class
    if arm not in pools:
        hu, alpha, largest = read_arrays(subset.patch_path(view.nodule), "hu", "alpha", "largest")
        facts: dict[str, Any] = {"category": texture, "source": "real", "origin": view.nodule.nodule_id}
        return library.add_nodule(hu[int(largest)], alpha[int(largest)].astype(np.float64), **facts)
    if arm == "generated":
        diameter_mm = round(float(_STEP ** round(np.log(diameter_mm) / np.log(_STEP))), 2)
    nodules = pools[arm].nodules(texture, diameter_mm)
    return nodules[int(np.random.default_rng([*words, 9]).integers(len(nodules)))]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Spot:
    """Where a real nodule was.

    Args:
        host: its slice without it; others leave its place and the border alone.
        centre_px: (row, column), in quarters of a pixel.
        diameter_mm: of the nodule.
        distance_mm: class of the distance from its edge to the pleura.
    """

    host: Host
    centre_px: tuple[float, float]
    diameter_mm: float
    distance_mm: Level

    @classmethod
    def of(cls, view: NoduleView, library: AssetLibrary, *, rng: np.random.Generator) -> "_Spot | None":
        """Of a view; None where there is too little lung."""
        hu = view.hu[view.index]
        lung = lung_of(hu) | view.mask
        cleared = without_nodule(hu, view.votes > 0, lung, rng=rng) if lung.sum() >= _SMALLEST_LUNG_PX else None
        if cleared is None:
            return None
        affine = axial_affine(spacing_mm=(1.0, PATCH_SPACING_MM, PATCH_SPACING_MM), origin_lps_mm=(0.0, 0.0, 0.0))
        name = view.nodule.nodule_id
        asset = library.add_lung(cleared, lung, affine=affine, source="real", origin=f"{name}, taken out")
        shape = LungShape.from_mask(lung, spacing_mm=asset.spacing_mm, hu=cleared)
        avoid = view.votes > 0
        avoid[[0, -1]] = avoid[:, [0, -1]] = True
        row, column = (round(c * PHASES) / PHASES for c in ndimage.center_of_mass(view.mask))
        diameter_mm = float(disc_diameter(view.mask.sum() * PATCH_SPACING_MM**2))
        apart_mm = float(shape.distance_mm(np.array([row]), np.array([column]))[0]) - diameter_mm / 2
        near, far = _CLASSES_MM
        level: Level = ATTACHED if apart_mm < near else (near, far) if apart_mm < far else (far, None)
        host = Host(name=name, patient=view.nodule.patient_id, asset=asset, shape=shape, avoid=avoid)
        return cls(host=host, centre_px=(row, column), diameter_mm=diameter_mm, distance_mm=level)

    def in_place(self, nodule: Asset, *, seed: tuple[int, int]) -> _Placed:
        """A nodule of any turn where the real one was."""
        rng = np.random.default_rng([*seed, 0])
        row, column = self.centre_px
        u, v = self.host.shape.to_unit(np.array([row]), np.array([column]))
        scale = round(self.diameter_mm / (nodule.diameter_mm or 1.0), 3)
        member = Member(
            asset=nodule.hash,
            category=nodule.category,
            source=nodule.source,
            diameter_mm=round((nodule.diameter_mm or 0.0) * scale, 3),
            u=float(np.clip(u[0], 0, 1)),
            v=float(np.clip(v[0], 0, 1)),
            rotation_deg=round(float(rng.random()) * 360, 1),
            flip=bool(rng.random() < 0.5),
            scale=scale,
            row_phase=row % 1,
            col_phase=column % 1,
        )
        distance_mm = float(self.host.shape.distance_mm(np.array([row]), np.array([column]))[0])
        group = NoduleGroup((member,))
        return group, place(group, [(row, column, distance_mm)])

    def elsewhere(self, nodule: Asset, *, seed: tuple[int, int]) -> _Placed | None:
        """A nodule as a trial places it, as far from the pleura if possible; None without a place."""
        anywhere: Mapping[str, Level] = {"diameter_mm": self.diameter_mm}
        cells = {**anywhere, "distance_mm": self.distance_mm}, anywhere
        return next((p for cell in cells if (p := place_nodule(self.host, nodule, cell, seed=seed))), None)
