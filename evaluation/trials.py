"""Does a virtual trial hold for real nodules? Detectors on both, on the same slices, sizes and textures.

Each real nodule of a held-out patient in its window (see `segmentation.windows`) is answered by others of its diameter,
texture and class of distance to the pleura, each put elsewhere into the same window, as a trial puts them:

- `own`: the nodule itself, cut out and put in again: place and compositing differ;
- `donor`: a real nodule of a training patient: the nodule differs, too;
- `generated`: one of wcapsgan_bundle: as trials use by default.

Windows are single slices here, as a trial's. A method's threshold is that of so many false positives on the real
windows. What is compared are sensitivities by method, and by cell of size and texture.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata
from tqdm import tqdm

from evaluation.cohort_subsets import Subset, open_subset
from evaluation.methods import Method, check_relations, digest_of
from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index
from evaluation.metrics.froc import Froc
from evaluation.runner import EvaluationResult, RecordStore, Report, Runner, records_folder
from evaluation.segmentation.detectors import baselines, find_detectors
from evaluation.segmentation.windows import SIDE_PX, NoduleView, evaluate_windows, read_windows
from evaluation.tables import format_estimate, json_estimates, markdown_table, relation_notes
from lungsynth.bundles import open_bundle, read_weights
from lungsynth.cohort.files import read_arrays
from lungsynth.compositing.render import Renderer
from lungsynth.errors import InputError, naming_file
from lungsynth.geometry import PATCH_SPACING_MM, axial_affine, disc_diameter
from lungsynth.hounsfield import DENSE_HU, Label
from lungsynth.io.atomic import write_arrays
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import make_recipe
from lungsynth.placement.lung_shape import LungShape
from lungsynth.tracking import DEFAULT_URI
from lungsynth.trial.design import ATTACHED, Level
from lungsynth.trial.samples import GeneratedNodules, Host, RealNodules, place_nodule

__all__ = ["ARMS", "TrialEvaluationConfig", "evaluate_trials", "make_arms"]

_logger = logging.getLogger(__name__)

ARMS = ("own", "donor", "generated")
TEXTURES = ("solid", "part_solid", "ground_glass")
SIZE_EDGES_MM = (3.0, 5.0, 7.0, 10.0, 30.0)
RATE_PER_100_CM2 = 0.5
_AREA_CM2 = (SIDE_PX * PATCH_SPACING_MM / 10) ** 2
_LEAST = 8  # nodules of a cell
_STEP = 1.08  # ratio of the diameters that nodules are generated for
_OUTER_AIR_HU = -950  # a piece of air that is emptier on average lies outside the body
_SMALLEST_LUNG_PX = 400  # 2 cm2
_CLOSED_PX = 4
_CLASSES_MM = (1.0, 5.0)  # of the distance from a nodule's edge to the pleura


@dataclass(frozen=True, kw_only=True)
class TrialEvaluationConfig:
    """What is compared.

    Args:
        cohort: folder that `prepare` wrote, with windows.
        out: folder of the results.
        bundles: folder of the bundles.
        weights: folder of the methods' weights.
        methods: names; all with weights when None.
        patients: file with ids of patients, one a line, to whom it is limited; None for all who validate or test.
        per_cell: nodules of a cell of size and texture at most; those are most that are small and solid.
        require_held_out: refuse methods that may have been trained on the evaluated patients.
        seed: of everything random.
    """

    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    patients: Path | None = None
    per_cell: int = 30
    require_held_out: bool = False
    seed: int = 0


Found = dict[str, np.ndarray]  # by arm, and for `real`: bool (nodules,)


def evaluate_trials(config: TrialEvaluationConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Runs the methods on real nodules and on those of each arm, and writes `trials.json` and `trials.md`.

    Args:
        config: what is compared.
        tracking_uri: MLflow store.

    Raises:
        InputError: when the cohort has no windows of held-out patients, or a method cannot be used.
    """
    test = open_subset(config.cohort, "test")
    found, left_out = find_detectors(test, config.bundles, config.weights, requested=config.methods)
    check_relations(found, required=config.require_held_out)
    methods = [*(method for method in baselines() if method.name == "threshold"), *found]
    runner = Runner(command="trials", subset=test, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, test, methods, left_out, runner))


def _evaluate(
    config: TrialEvaluationConfig,
    test: Subset,
    methods: Sequence[Method],
    left_out: Mapping[str, str],
    runner: Runner,
) -> Report:
    problems: list[str] = []
    views, owners = _chosen_views(config, test, problems)
    arms = _kept_arms(views, owners, config, identity=f"{test.identity}:{config.seed}")
    store: RecordStore[dict[str, Any]] = RecordStore(folder=records_folder(config.out), to_json=dict, from_json=dict)
    identity = f"{test.identity}:{config.seed}:{len(arms['real'])}"

    def run(method: Method) -> dict[str, Any]:
        return store.get(method.name, lambda: _scores(method, arms), identity=f"{identity}:{method.identity}")

    records, failures = runner.run_methods(methods, run, requested=config.methods)
    usable = [method for method in methods if method.name in records]
    comparison = _Comparison.of(arms["real"], {method.name: records[method.name] for method in usable}, config.seed)
    return Report(
        name="trials",
        table={**comparison.to_json(), "left_out": {**left_out, **failures}, "problems": problems},
        markdown=comparison.markdown(usable),
        metrics={name: own.value for name, own in comparison.agreement.items()},
        problems=tuple(problems),
    )


def _chosen_views(
    config: TrialEvaluationConfig, test: Subset, problems: list[str]
) -> tuple[list[NoduleView], dict[str, Subset]]:
    """Views of held-out nodules of known texture, up to so many of each cell, and the subset of each."""
    chosen = set(config.patients.read_text(encoding="utf-8").split()) if config.patients else None
    views, owners, taken = [], {}, Counter[tuple[str, str]]()
    for subset in (test, open_subset(config.cohort, "validation")):
        for view in read_windows(subset, problems):
            nodule = view.nodule
            if nodule.texture_class not in TEXTURES or (chosen is not None and nodule.patient_id not in chosen):
                continue
            taken[_cell(view)] += 1
            if taken[_cell(view)] <= config.per_cell:
                views.append(view)
                owners[nodule.nodule_id] = subset
    return views, owners


# The arms


def _kept_arms(
    views: Sequence[NoduleView], owners: Mapping[str, Subset], config: TrialEvaluationConfig, *, identity: str
) -> dict[str, list[NoduleView]]:
    """The arms as an earlier call left them, else made and kept."""
    path = records_folder(config.out) / "arms.npz"
    by_id = {view.nodule.nodule_id: view for view in views}
    identity = digest_of([identity, sorted(by_id)])
    if path.is_file():
        with naming_file(path, remedy="delete it"), np.load(path) as kept:
            if str(kept["identity"]) == identity:
                names = kept["nodules"].tolist()
                return {
                    arm: [
                        replace(by_id[name], hu=hu[None], votes=votes, index=0, slice_mm=1.0, readers=None)
                        for name, hu, votes in zip(names, kept[f"{arm}_hu"], kept[f"{arm}_votes"], strict=True)
                    ]
                    for arm in ("real", *ARMS)
                }
    arms = make_arms(views, owners, config)
    planes = {f"{arm}_hu": np.stack([view.hu[0] for view in own]) for arm, own in arms.items()}
    votes = {f"{arm}_votes": np.stack([view.votes for view in own]) for arm, own in arms.items()}
    names = np.array([view.nodule.nodule_id for view in arms["real"]])
    write_arrays(path, identity=np.array(identity), nodules=names, **planes, **votes)
    return arms


def make_arms(
    views: Sequence[NoduleView], owners: Mapping[str, Subset], config: TrialEvaluationConfig
) -> dict[str, list[NoduleView]]:
    """Views of the real nodules and of those put in for them, the same nodules in each arm, in the same order.

    Args:
        views: of real nodules.
        owners: the subset of each nodule id.
        config: of the evaluation.

    Raises:
        InputError: when no nodule has a place in its window.
    """
    library = AssetLibrary(config.out / "arms")
    training = open_subset(config.cohort, "test").cohort.split("training")
    weights = read_weights(config.bundles, "wcapsgan").sha256
    pools: dict[str, GeneratedNodules | RealNodules] = {
        "donor": RealNodules(library, [training], seed=config.seed),
        "generated": GeneratedNodules(
            library, open_bundle(config.bundles, "wcapsgan"), weights=weights, seed=config.seed
        ),
    }
    renderer = Renderer(library)
    arms: dict[str, list[NoduleView]] = {name: [] for name in ("real", *ARMS)}
    for view in tqdm(views, desc="arms", unit="nodule"):
        made = _answers(view, owners[view.nodule.nodule_id], library, pools, renderer, config.seed)
        if made is not None:
            for name, own in made.items():
                arms[name].append(own)
    if not arms["real"]:
        raise InputError(f"{config.cohort}: no held-out nodule has a window with room for another. See `read_windows`.")
    _logger.info("%d of %d nodules have room for others in their windows", len(arms["real"]), len(views))
    return arms


def _answers(
    view: NoduleView,
    subset: Subset,
    library: AssetLibrary,
    pools: Mapping[str, GeneratedNodules | RealNodules],
    renderer: Renderer,
    seed: int,
) -> dict[str, NoduleView] | None:
    """The view of a real nodule as one slice, and of the nodules put in for it; None where one finds no place."""
    nodule, hu = view.nodule, view.hu[view.index]
    diameter_mm = float(disc_diameter(view.mask.sum() * PATCH_SPACING_MM**2))
    host, level = _host(view, library)
    if host is None:
        return None
    made = {"real": replace(view, hu=hu[None], index=0, slice_mm=1.0)}
    words = seed, zlib.crc32(nodule.nodule_id.encode())
    for number, arm in enumerate(ARMS):
        try:
            asset = _nodule(arm, nodule.texture_class, diameter_mm, subset, view, pools, library, words)
        except InputError as error:
            _logger.debug("%s: %s", nodule.nodule_id, error)
            return None
        anywhere: Mapping[str, Level] = {"diameter_mm": diameter_mm}
        cells = {**anywhere, "distance_mm": level}, anywhere
        placed = next((p for cell in cells if (p := place_nodule(host, asset, cell, seed=words))), None)
        if placed is None:
            return None
        recipe = make_recipe(host.asset, *placed, seed=words[1] * len(ARMS) + number)
        sample = renderer.render(recipe)
        # What is real there is neither to be found nor false.
        votes = np.where(sample.label == Label.NODULE, 2, np.minimum(view.votes, 1)).astype(np.uint8)
        made[arm] = replace(view, hu=sample.image[None], index=0, slice_mm=1.0, votes=votes, readers=None)
    return made


def _nodule(
    arm: str,
    texture: str,
    diameter_mm: float,
    subset: Subset,
    view: NoduleView,
    pools: Mapping[str, GeneratedNodules | RealNodules],
    library: AssetLibrary,
    words: tuple[int, int],
) -> Asset:
    if arm == "own":
        hu, alpha, largest = read_arrays(subset.patch_path(view.nodule), "hu", "alpha", "largest")
        facts: dict[str, Any] = {"category": texture, "source": "real", "origin": view.nodule.nodule_id}
        return library.add_nodule(hu[int(largest)], alpha[int(largest)].astype(np.float64), **facts)
    stepped = diameter_mm
    if arm == "generated":
        stepped = round(float(_STEP ** round(np.log(diameter_mm) / np.log(_STEP))), 2)
    nodules = pools[arm].nodules(texture, stepped)
    return nodules[int(np.random.default_rng([*words, 9]).integers(len(nodules)))]


def _host(view: NoduleView, library: AssetLibrary) -> tuple[Host | None, Level]:
    """The window as a host that leaves its nodule and its border alone; and how far the nodule is from the pleura."""
    hu = view.hu[view.index]
    mask = _lung(hu) | view.mask
    mask = ndimage.binary_closing(np.pad(mask, _CLOSED_PX, mode="edge"), iterations=_CLOSED_PX)[
        _CLOSED_PX:-_CLOSED_PX, _CLOSED_PX:-_CLOSED_PX
    ]
    if mask.sum() < _SMALLEST_LUNG_PX:
        return None, ATTACHED
    affine = axial_affine(spacing_mm=(1.0, PATCH_SPACING_MM, PATCH_SPACING_MM), origin_lps_mm=(0.0, 0.0, 0.0))
    name = view.nodule.nodule_id
    asset = library.add_lung(hu, mask, affine=affine, source="real", origin=name)
    shape = LungShape.from_mask(mask, spacing_mm=asset.spacing_mm, hu=hu)
    avoid = view.votes > 0
    avoid[[0, -1]] = avoid[:, [0, -1]] = True
    centre = ndimage.center_of_mass(view.mask)
    radius_mm = float(disc_diameter(view.mask.sum() * PATCH_SPACING_MM**2)) / 2
    apart_mm = float(shape.distance_mm(np.array([centre[0]]), np.array([centre[1]]))[0]) - radius_mm
    near, far = _CLASSES_MM
    level: Level = ATTACHED if apart_mm < near else (near, far) if apart_mm < far else (far, None)
    return Host(name=name, patient=view.nodule.patient_id, asset=asset, shape=shape, avoid=avoid), level


def _lung(hu: np.ndarray) -> np.ndarray:
    """What is lung in a window: air that is not outside the body, in pieces of some size."""
    pieces, count = ndimage.label(hu < DENSE_HU)
    index = np.arange(1, count + 1)
    sizes, levels = np.bincount(pieces.ravel())[1:], ndimage.mean(hu, pieces, index)
    lungs = index[(sizes >= _SMALLEST_LUNG_PX) & (np.asarray(levels) > _OUTER_AIR_HU)]
    return np.isin(pieces, lungs)


def _scores(method: Method, arms: Mapping[str, Sequence[NoduleView]]) -> dict[str, Any]:
    """For each arm the score of each nodule, -1 where nothing hits it; and the threshold."""
    detector = method.open()
    scores: dict[str, Any] = {}
    for name, views in arms.items():
        records = evaluate_windows(views, detector, name=f"{method.name}, {name}")
        scores[name] = [-1.0 if case.nodules[0].score is None else case.nodules[0].score for case in records.cases]
        if name == "real":
            scores["threshold"] = Froc(records.cases).threshold_at(RATE_PER_100_CM2 * _AREA_CM2 / 100)
    return scores


# What follows


@dataclass(frozen=True, eq=False, kw_only=True)
class _Comparison:
    """Who found what, and how well the arms foretell it.

    Args:
        patients: sorted.
        owner: index of each nodule's patient.
        cell: of each nodule, index into `cells`; -1 in small ones.
        cells: size class and texture.
        found: by method and arm, bool (nodules,).
        seed: of the draws.
    """

    patients: tuple[str, ...]
    owner: np.ndarray
    cell: np.ndarray
    cells: tuple[tuple[str, str], ...]
    found: Mapping[str, Found]
    seed: int

    @classmethod
    def of(cls, views: Sequence[NoduleView], records: Mapping[str, Mapping[str, Any]], seed: int) -> "_Comparison":
        owners = [view.nodule.patient_id for view in views]
        patients = tuple(sorted(set(owners)))
        names = [_cell(view) for view in views]
        cells = tuple(sorted({name for name in names if names.count(name) >= _LEAST}, key=_order))
        position = {name: index for index, name in enumerate(cells)}
        found = {
            method: {arm: np.array(own[arm]) >= own["threshold"] for arm in ("real", *ARMS)}
            for method, own in records.items()
        }
        cell = np.array([position.get(name, -1) for name in names])
        owner = patient_index(owners, patients)
        return cls(patients=patients, owner=owner, cell=cell, cells=cells, found=found, seed=seed)

    def sensitivity(self, method: str, arm: str, counts: PatientCounts | None = None) -> float:
        """Share found of all nodules."""
        hits, totals = self._sums[method, arm]
        counts = np.ones(len(self.patients)) if counts is None else counts
        return float(hits.sum(axis=0) @ counts / (totals.sum(axis=0) @ counts))

    def by_cell(self, method: str, arm: str, counts: PatientCounts | None = None) -> np.ndarray:
        """Share found in each cell; NaN where no nodule was drawn."""
        hits, totals = self._sums[method, arm]
        counts = np.ones(len(self.patients)) if counts is None else counts
        with np.errstate(invalid="ignore"):
            return np.asarray((hits[:-1] @ counts) / (totals[:-1] @ counts))

    @cached_property
    def _sums(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """Nodules found, and nodules, by (cell, patient), for each method and arm; the last row is of small cells."""
        shape = len(self.cells) + 1, len(self.patients)
        totals = np.zeros(shape)
        sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        np.add.at(totals, (self.cell, self.owner), 1.0)
        for method, arms in self.found.items():
            for arm, found in arms.items():
                hits = np.zeros(shape)
                np.add.at(hits, (self.cell, self.owner), found.astype(np.float64))
                sums[method, arm] = hits, totals
        return sums

    @cached_property
    def agreement(self) -> dict[str, Estimate]:
        """For each arm: rank correlations, differences and errors of the sensitivities that it foretells."""
        names = [f"{arm}_{name}" for arm in ARMS for name in _FIGURES]

        def figures(counts: PatientCounts) -> list[float]:
            return [value for arm in ARMS for value in self._agreement(arm, counts)]

        n = [len(self.owner)] * len(names)
        made = estimate([list(self.patients)], figures, n=n, seed=self.seed)
        return dict(zip(names, made, strict=True))

    def _agreement(self, arm: str, counts: PatientCounts) -> Iterator[float]:
        methods = list(self.found)
        real, trial = (np.array([self.sensitivity(name, own, counts) for name in methods]) for own in ("real", arm))
        cells_real, cells_trial = (
            np.array([self.by_cell(name, own, counts) for name in methods]) for own in ("real", arm)
        )
        yield _rank_correlation(real, trial)
        each = [_rank_correlation(a, b) for a, b in zip(cells_real, cells_trial, strict=True)]
        yield float(_mean(np.array(each)))
        yield _rank_correlation(cells_real.ravel(), cells_trial.ravel())
        yield float((trial - real).mean())
        yield float(_mean(np.abs(cells_trial - cells_real)))
        yield float(_mean(np.abs(self._calibrated(cells_real, cells_trial) - cells_real)))

    @staticmethod
    def _calibrated(real: np.ndarray, trial: np.ndarray) -> np.ndarray:
        """The cells that a trial foretells, corrected by how far off it is for the other methods in the same cell."""
        made = np.empty_like(trial)
        for index in range(len(trial)):
            others = np.arange(len(trial)) != index
            made[index] = np.clip(trial[index] + _mean((real - trial)[others], axis=0), 0, 1)
        return made

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        arms = ("real", *ARMS)
        return {
            "nodules": len(self.owner),
            "patients": len(self.patients),
            "false_positives_per_100_cm2": RATE_PER_100_CM2,
            "sensitivity": {name: {arm: self.sensitivity(name, arm) for arm in arms} for name in self.found},
            "cells": [" ".join(cell) for cell in self.cells],
            "by_cell": {name: {arm: self.by_cell(name, arm).tolist() for arm in arms} for name in self.found},
            "agreement": json_estimates(self.agreement),
        }

    def markdown(self, methods: Sequence[Method]) -> str:
        """Three tables and a note of who was trained on whom."""
        arms = ("real", *ARMS)
        real_first = [_TITLES[arm] for arm in arms]
        parts = [
            f"{len(self.owner)} nodules of {len(self.patients)} patients who train no method as far as is known, in "
            f"windows of 67 x 67 mm, one slice each; found at {RATE_PER_100_CM2:g} false positives per 100 cm2 of the "
            "real windows. 95 % intervals over patients.\n",
            markdown_table(
                ["method", *real_first],
                [[method.title, *(self._estimated(method.name, arm) for arm in arms)] for method in methods],
            ),
            markdown_table(["cell, mean of the methods", "nodules", *real_first], list(self._cell_rows())),
            markdown_table(["", *real_first[1:]], list(self._agreement_rows())),
            *(f"{note}\n" for note in relation_notes(methods)),
        ]
        return "\n".join(parts)

    def _estimated(self, method: str, arm: str) -> str:
        made = estimate(
            [list(self.patients)],
            lambda counts: [self.sensitivity(method, arm, counts)],
            n=[len(self.owner)],
            seed=self.seed,
        )
        return format_estimate(made[0])

    def _cell_rows(self) -> Iterator[list[str]]:
        means = {arm: np.mean([self.by_cell(name, arm) for name in self.found], axis=0) for arm in ("real", *ARMS)}
        for index, (size, texture) in enumerate(self.cells):
            count = int((self.cell == index).sum())
            yield [f"{texture}, {size} mm", str(count), *(f"{values[index]:.2f}" for values in means.values())]

    def _agreement_rows(self) -> Iterator[list[str]]:
        agreement = self.agreement
        for name, title in _FIGURES.items():
            yield [title, *(format_estimate(agreement[f"{arm}_{name}"]) for arm in ARMS)]


_TITLES = {"real": "real", "own": "itself, elsewhere", "donor": "another real one", "generated": "generated (trial)"}
_FIGURES = {
    "rank_methods": "rank correlation of the methods' sensitivities",
    "rank_cells": "rank correlation of the cells, mean over methods",
    "rank_all": "rank correlation of all methods and cells",
    "difference": "sensitivity less that of real nodules, mean over methods",
    "cell_error": "error of a cell, mean",
    "cell_error_calibrated": "the same, corrected by the other methods' errors in that cell",
}


def _cell(view: NoduleView) -> tuple[str, str]:
    diameter_mm = float(disc_diameter(view.mask.sum() * PATCH_SPACING_MM**2))
    place = int(np.clip(np.searchsorted(SIZE_EDGES_MM, diameter_mm, side="right") - 1, 0, len(SIZE_EDGES_MM) - 2))
    return f"{SIZE_EDGES_MM[place]:g}-{SIZE_EDGES_MM[place + 1]:g}", view.nodule.texture_class


def _order(cell: tuple[str, str]) -> tuple[int, float]:
    return TEXTURES.index(cell[1]), float(cell[0].split("-")[0])


def _mean(values: np.ndarray, axis: int | None = None) -> Any:
    """Of what is known; NaN of nothing."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, known.sum(axis=axis), out=np.full(np.shape(total), np.nan), where=known.any(axis=axis))


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 3 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first[known]), rankdata(second[known]))[0, 1])
