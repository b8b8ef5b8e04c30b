"""Figures with intervals over seeds and patients: both are drawn again, since either could have been others.

A seed is another choice of the few patients, another start of the network and other added samples. A test patient is
judged under every seed. A figure is a mean of shares; a run's share is a sum over a sum over the patients, and the
figure of an arm is the mean of its runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate

__all__ = ["Shares", "Table", "compare", "share_table"]

Shares = Mapping[str, Sequence[tuple[str, str]]]  # figure -> pairs of columns: hits, and of how many
Rows = Float[np.ndarray, "rows columns"]


class Table:
    """Sums of one run by patient.

    Args:
        columns: names.
        rows: by patient.
    """

    def __init__(self, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
        self.columns = list(columns)
        self.rows = dict(rows)

    def matrix(self, patients: Sequence[str]) -> Rows:
        """The rows in the order of the patients; zeros for those without any."""
        none = [0.0] * len(self.columns)
        return np.array([self.rows.get(patient, none) for patient in patients], dtype=np.float64)

    def totals(self) -> dict[str, float]:
        """Sums over all patients."""
        sums = self.matrix(list(self.rows)).sum(axis=0) if self.rows else np.zeros(len(self.columns))
        return dict(zip(self.columns, sums.tolist(), strict=True))


def share_table(items: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """Adds up items (patient, values by column)."""
    columns = sorted({column for _, values in items for column in values})
    rows: dict[str, list[float]] = {}
    for patient, values in items:
        row = rows.setdefault(patient, [0.0] * len(columns))
        for place, column in enumerate(columns):
            row[place] += values.get(column, 0.0)
    return Table(columns, rows)


def compare(
    runs: Mapping[int, Table], reference: Mapping[int, Table], shares: Shares, *, seed: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """The figures of an arm, and their differences to those of a reference, on the same draws of seeds and patients.

    Args:
        runs: of the arm, by seed.
        reference: likewise; seeds that one of the two lacks are left out of the differences.
        shares: the figures. A pair that is of nothing in all runs is left out of its figure, as a category is that
            does not occur; a figure without any pair is not defined.
        seed: of the draws.
    """
    own = _estimates({number: (table, None) for number, table in runs.items()}, shares, seed=seed)
    both = {number: (table, reference[number]) for number, table in runs.items() if number in reference}
    return own, _estimates(both, shares, seed=seed) if both else {}


class _Prepared(NamedTuple):
    """The pairs of all figures, each by patient, and which figure each belongs to; pairs of nothing are left out."""

    tops: Rows
    bottoms: Rows
    figure: Int[np.ndarray, " pairs"]
    n_figures: int

    @classmethod
    def of(cls, table: Table, patients: Sequence[str], shares: Shares) -> "_Prepared":
        matrix, nothing = table.matrix(patients), np.zeros(len(patients))
        column = {name: matrix[:, place] for place, name in enumerate(table.columns)}
        pairs = [
            (place, *pair)
            for place, pairs in enumerate(shares.values())
            for pair in pairs
            if column.get(pair[1], nothing).any()
        ]
        return cls(
            tops=np.array([column.get(top, nothing) for _, top, _ in pairs]).reshape(-1, len(patients)),
            bottoms=np.array([column.get(bottom, nothing) for _, _, bottom in pairs]).reshape(-1, len(patients)),
            figure=np.array([place for place, _, _ in pairs], dtype=np.int64),
            n_figures=len(shares),
        )

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """Mean share of each figure; NaN where one is of nobody drawn, or there is none."""
        bottoms = self.bottoms @ weights
        known = bottoms > 0
        shares = np.where(known, self.tops @ weights / np.where(known, bottoms, 1), np.nan)
        sums, counts = (np.bincount(self.figure, values, self.n_figures) for values in (shares, np.ones(len(shares))))
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _estimates(runs: Mapping[int, tuple[Table, Table | None]], shares: Shares, *, seed: int) -> dict[str, Estimate]:
    patients = sorted({patient for tables in runs.values() for table in tables if table for patient in table.rows})
    seeds = [f"seed {number}" for number in runs]
    prepared = [[_Prepared.of(table, patients, shares) for table in tables if table] for tables in runs.values()]

    def statistic(weights: PatientCounts) -> list[float]:
        of_patients, of_seeds = weights[: len(patients)], weights[len(patients) :]
        drawn = [index for index, weight in enumerate(of_seeds) if weight > 0]
        found = [[table.figures(of_patients) for table in prepared[index]] for index in drawn]
        values = np.array([tables[0] - tables[1] if len(tables) > 1 else tables[0] for tables in found])
        return list(np.average(values, axis=0, weights=of_seeds[drawn]))

    counts = [_count(next(iter(runs.values()))[0], pairs) for pairs in shares.values()]
    found = estimate([patients, seeds], statistic, n=counts, seed=seed)
    return {name: replace(one, patients=len(patients)) for name, one in zip(shares, found, strict=True)}


def _count(table: Table, pairs: Sequence[tuple[str, str]]) -> int:
    totals = table.totals()
    return round(sum(totals.get(bottom, 0.0) for bottom in {bottom for _, bottom in pairs}))
