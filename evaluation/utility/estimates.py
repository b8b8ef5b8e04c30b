"""Figures with intervals over seeds and patients: both are resampled, since either could have been others.

A seed is another choice of the few patients, another start of the network and other added samples. A test patient is
evaluated under every seed. A figure is a mean of shares; a run's share is a sum over a sum over the patients, and the
figure of an arm is the mean of its runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from evaluation.metrics.bootstrap import RESAMPLES, Estimates, PatientCounts, estimate

__all__ = ["PatientTable", "ShareColumns", "compare", "share_table"]

ShareColumns = Mapping[str, Sequence[tuple[str, str]]]  # figure -> pairs of columns: hits, and of how many


class PatientTable:
    """Sums of one run by patient.

    Args:
        columns: names.
        rows: by patient.
    """

    def __init__(self, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
        self.columns = list(columns)
        self.rows = dict(rows)

    def matrix(self, patients: Sequence[str]) -> Float[np.ndarray, "patients columns"]:
        """The rows in the order of the patients; zeros for those without any."""
        none = [0.0] * len(self.columns)
        return np.array([self.rows.get(patient, none) for patient in patients], dtype=np.float64)

    def totals(self) -> dict[str, float]:
        """Sums over all patients."""
        sums = self.matrix(list(self.rows)).sum(axis=0) if self.rows else np.zeros(len(self.columns))
        return dict(zip(self.columns, sums.tolist(), strict=True))


def share_table(items: Sequence[tuple[str, Mapping[str, float]]]) -> PatientTable:
    """Adds up items (patient, values by column)."""
    columns = sorted({column for _, values in items for column in values})
    rows: dict[str, list[float]] = {}
    for patient, values in items:
        row = rows.setdefault(patient, [0.0] * len(columns))
        for index, column in enumerate(columns):
            row[index] += values.get(column, 0.0)
    return PatientTable(columns, rows)


def compare(
    runs: Mapping[int, PatientTable],
    reference: Mapping[int, PatientTable],
    shares: ShareColumns,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[Estimates, Estimates]:
    """The figures of an arm, and their differences to those of a reference, on the same draws of seeds and patients.

    Args:
        runs: of the arm, by seed.
        reference: likewise; seeds that one of the two lacks are left out of the differences.
        shares: the figures. A pair that is of nothing in all runs is left out of its figure, as a category is that
            does not occur; a figure without any pair is not defined.
        seed: of the draws.
        resamples: number of draws.
    """
    settings = {"seed": seed, "resamples": resamples}
    own = _estimates({number: [table] for number, table in runs.items()}, shares, **settings)
    pairs = {number: [table, reference[number]] for number, table in runs.items() if number in reference}
    return own, _estimates(pairs, shares, **settings) if pairs else {}


@dataclass(frozen=True, eq=False)
class _ShareSums:
    """Sums by patient of the pairs of all figures, and the figure of each pair; pairs of nothing are left out."""

    hits: Float[np.ndarray, "pairs patients"]
    totals: Float[np.ndarray, "pairs patients"]
    figure: Int[np.ndarray, " pairs"]
    n_figures: int

    @classmethod
    def of(cls, table: PatientTable, patients: Sequence[str], shares: ShareColumns) -> "_ShareSums":
        matrix = table.matrix(patients)
        columns = {name: matrix[:, index] for index, name in enumerate(table.columns)}
        nothing = np.zeros(len(patients))
        pairs = [
            (index, columns.get(hits, nothing), columns.get(total, nothing))
            for index, own in enumerate(shares.values())
            for hits, total in own
        ]
        pairs = [pair for pair in pairs if pair[2].any()]
        return cls(
            hits=np.array([hits for _, hits, _ in pairs]).reshape(-1, len(patients)),
            totals=np.array([total for _, _, total in pairs]).reshape(-1, len(patients)),
            figure=np.array([index for index, _, _ in pairs], dtype=np.int64),
            n_figures=len(shares),
        )

    def figures(self, counts: PatientCounts) -> np.ndarray:
        """Mean share of each figure; NaN where one is of nobody drawn, or there is none."""
        totals = self.totals @ counts
        defined = totals > 0
        shares = np.where(defined, self.hits @ counts / np.where(defined, totals, 1), np.nan)
        sums, n_pairs = (np.bincount(self.figure, values, self.n_figures) for values in (shares, np.ones(len(shares))))
        return np.where(n_pairs > 0, sums / np.maximum(n_pairs, 1), np.nan)


def _estimates(
    runs: Mapping[int, Sequence[PatientTable]], shares: ShareColumns, *, seed: int, resamples: int
) -> Estimates:
    """Of a table for each seed, or of the first minus the second."""
    patients = sorted({patient for tables in runs.values() for table in tables for patient in table.rows})
    sums = [[_ShareSums.of(table, patients, shares) for table in tables] for tables in runs.values()]

    def of_run(tables: Sequence[_ShareSums], counts: PatientCounts) -> np.ndarray:
        first, *others = (table.figures(counts) for table in tables)
        return first - others[0] if others else first

    def statistic(counts: PatientCounts) -> list[float]:
        of_patients, of_seeds = counts[: len(patients)], counts[len(patients) :]
        drawn = np.flatnonzero(of_seeds > 0)
        values = np.array([of_run(sums[index], of_patients) for index in drawn])
        return list(np.average(values, axis=0, weights=of_seeds[drawn]))

    groups = [patients, [f"seed {number}" for number in runs]]
    n = [_n_counted(next(iter(runs.values()))[0], pairs) for pairs in shares.values()]
    estimates = estimate(groups, statistic, n=n, seed=seed, resamples=resamples)
    return {name: replace(figure, patients=len(patients)) for name, figure in zip(shares, estimates, strict=True)}


def _n_counted(table: PatientTable, pairs: Sequence[tuple[str, str]]) -> int:
    totals = table.totals()
    return round(sum(totals.get(total, 0.0) for total in {total for _, total in pairs}))
