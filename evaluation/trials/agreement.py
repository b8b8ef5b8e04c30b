"""How well nodules that were put in foretell what is found of real ones: by method, and by size and texture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import rankdata

from evaluation.methods import Method
from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index
from evaluation.segmentation.windows import NoduleView
from evaluation.tables import format_estimate, json_estimates, markdown_table, relation_notes
from evaluation.trials.arms import ARMS, REAL
from lungsynth.geometry import PATCH_SPACING_MM, disc_diameter

__all__ = ["RATE_PER_100_CM2", "TEXTURES", "Agreement", "cell_of"]

RATE_PER_100_CM2 = 0.5  # false positives on the real windows, where a method's threshold is set
TEXTURES = ("solid", "part_solid", "ground_glass")
_SIZE_EDGES_MM = (3.0, 5.0, 7.0, 10.0, 30.0)
_LEAST = 8  # nodules of a cell
_TITLES = {
    REAL: "real",
    "own": "itself, put in again",
    "donor": "another real one",
    "generated": "generated",
    "elsewhere": "itself, elsewhere",
}
_FIGURES = {
    "rank_methods": "rank correlation of the methods' sensitivities",
    "rank_cells": "rank correlation of the cells, mean over methods",
    "rank_all": "rank correlation of all methods and cells",
    "difference": "sensitivity less that of real nodules, mean over methods",
    "cell_error": "error of a cell, mean",
    "cell_error_calibrated": "the same, corrected by the other methods' errors in that cell",
}

_RANKS = ("rank_methods", "rank_cells", "rank_all")
_HALVES = 200  # draws of half of the patients

Found = Mapping[str, np.ndarray]  # by arm, and for REAL: bool (nodules,)


def cell_of(view: NoduleView) -> tuple[str, str]:
    """Class of the nodule's size, and its texture."""
    diameter_mm = float(disc_diameter(view.mask.sum() * PATCH_SPACING_MM**2))
    edges = _SIZE_EDGES_MM
    place = int(np.clip(np.searchsorted(edges, diameter_mm, side="right") - 1, 0, len(edges) - 2))
    return f"{edges[place]:g}-{edges[place + 1]:g}", view.nodule.texture_class


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement:
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
    def of(cls, views: Sequence[NoduleView], records: Mapping[str, Mapping[str, Any]], seed: int) -> "Agreement":
        owners = [view.nodule.patient_id for view in views]
        patients = tuple(sorted(set(owners)))
        names = [cell_of(view) for view in views]
        cells = tuple(sorted({name for name in names if names.count(name) >= _LEAST}, key=_order))
        position = {name: index for index, name in enumerate(cells)}
        found = {
            method: {arm: np.array(own[arm]) >= own["threshold"] for arm in (REAL, *ARMS)}
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
    def figures(self) -> dict[str, Estimate]:
        """For each arm: rank correlations, differences and errors of the sensitivities that it foretells."""
        names = [f"{arm}_{name}" for arm in ARMS for name in _FIGURES]

        def of_draw(counts: PatientCounts) -> list[float]:
            return [value for arm in ARMS for value in self._of_arm(arm, counts)]

        n = [len(self.owner)] * len(names)
        made = estimate([list(self.patients)], of_draw, n=n, seed=self.seed)
        return dict(zip(names, made, strict=True))

    def _of_arm(self, arm: str, counts: PatientCounts) -> Iterator[float]:
        yield from self._ranks(arm, counts, counts)
        methods = list(self.found)
        yield float(np.mean([self.sensitivity(m, arm, counts) - self.sensitivity(m, REAL, counts) for m in methods]))
        real, trial = (np.array([self.by_cell(name, own, counts) for name in methods]) for own in (REAL, arm))
        yield float(_mean(np.abs(trial - real)))
        yield float(_mean(np.abs(self._calibrated(real, trial) - real)))

    def _ranks(self, arm: str, foretold: PatientCounts, asked: PatientCounts) -> tuple[float, float, float]:
        """Rank correlations between real nodules of patients, foretold, and an arm's of those that were asked."""
        both = ((REAL, foretold), (arm, asked))
        methods = [[self.sensitivity(name, own, counts) for name in self.found] for own, counts in both]
        real, trial = (np.array([self.by_cell(name, own, counts) for name in self.found]) for own, counts in both)
        each = [_rank_correlation(a, b) for a, b in zip(real, trial, strict=True)]
        of_methods = _rank_correlation(np.array(methods[0]), np.array(methods[1]))
        return of_methods, float(_mean(np.array(each))), _rank_correlation(real.ravel(), trial.ravel())

    @cached_property
    def halves(self) -> dict[str, float]:
        """Rank correlations between real nodules of half of the patients and an arm's of the others, also of real ones.

        What real nodules of others foretell is what a trial could at best.
        """
        rng = np.random.default_rng(self.seed)
        draws = []
        for _ in range(_HALVES):
            half = (rng.permutation(len(self.patients)) < len(self.patients) // 2).astype(np.float64)
            draws.append([self._ranks(arm, half, 1 - half) for arm in (REAL, *ARMS)])
        means = _mean(np.array(draws), axis=0)
        return {
            f"{arm}_{name}": float(value)
            for arm, values in zip((REAL, *ARMS), means, strict=True)
            for name, value in zip(_RANKS, values, strict=True)
        }

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
        arms = (REAL, *ARMS)
        return {
            "nodules": len(self.owner),
            "patients": len(self.patients),
            "false_positives_per_100_cm2": RATE_PER_100_CM2,
            "sensitivity": {name: {arm: self.sensitivity(name, arm) for arm in arms} for name in self.found},
            "cells": [" ".join(cell) for cell in self.cells],
            "by_cell": {name: {arm: self.by_cell(name, arm).tolist() for arm in arms} for name in self.found},
            "agreement": json_estimates(self.figures),
            "agreement_of_halves": self.halves,
        }

    def markdown(self, methods: Sequence[Method]) -> str:
        """Three tables and a note of who was trained on whom."""
        arms = (REAL, *ARMS)
        real_first = [_TITLES[arm] for arm in arms]
        parts = [
            f"{len(self.owner)} nodules of {len(self.patients)} patients, in "
            f"windows of 67 x 67 mm, one slice each; found at {RATE_PER_100_CM2:g} false positives per 100 cm2 of the "
            "real windows. 95 % intervals over patients.\n",
            markdown_table(
                ["method", *real_first],
                [[method.title, *(self._estimated(method.name, arm) for arm in arms)] for method in methods],
            ),
            markdown_table(["cell, mean of the methods", "nodules", *real_first], list(self._cell_rows())),
            markdown_table(["", *real_first], list(self._agreement_rows())),
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
        means = {arm: np.mean([self.by_cell(name, arm) for name in self.found], axis=0) for arm in (REAL, *ARMS)}
        for index, (size, texture) in enumerate(self.cells):
            count = int((self.cell == index).sum())
            yield [f"{texture}, {size} mm", str(count), *(f"{values[index]:.2f}" for values in means.values())]

    def _agreement_rows(self) -> Iterator[list[str]]:
        for name, title in _FIGURES.items():
            yield [title, "-", *(format_estimate(self.figures[f"{arm}_{name}"]) for arm in ARMS)]
        for name in _RANKS:
            title = f"{_FIGURES[name]}, between halves of the patients"
            yield [title, *(f"{self.halves[f'{arm}_{name}']:.2f}" for arm in (REAL, *ARMS))]


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
