"""Patient-level split into training, validation and test (docs/reference/conventions.md, "Patients").

Patients that occur in the same sources form a group, and each group is divided on its own, so that a collection with
lung masks and one with nodules both stand in each split. Within a group the order of the patients is that of a hash of
seed and patient id: stable, and independent of how the files were found.

For cross-validation the patients that test move along that order: in `FOLDS` folds every patient tests once. Fold 0 is
the split that everything else uses.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set

from lungsynth.cohort.schema import EXCLUDED, SeriesRow

__all__ = ["FOLDS", "assign_splits", "split_hash", "split_patients"]

FOLDS = 5
_TEST_SHARE = 1 / FOLDS  # the paper's 4:1
_VALIDATION_SHARE = 0.1
_SMALLEST_GROUP = 4  # smaller groups only train in fold 0; in fold k their k-th patient tests


def split_patients(sources_of: Mapping[str, Set[str]], *, seed: int, fold: int = 0) -> dict[str, str]:
    """Divides patients.

    Args:
        sources_of: for each patient id, the sources that hold the patient.
        seed: another seed, another order.
        fold: below `FOLDS`; which fifth of the order tests.

    Returns:
        `training`, `validation` or `test` for each patient id.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient, sources in sources_of.items():
        groups[tuple(sorted(sources))].append(patient)
    split = {}
    for patients in groups.values():
        first, tests, validations = _shares(len(patients), fold=fold)
        ordered = sorted(patients, key=lambda patient: _order(patient, seed))
        ordered = ordered[first:] + ordered[:first]
        for rank, patient in enumerate(ordered):
            split[patient] = "test" if rank < tests else "validation" if rank < tests + validations else "training"
    return split


def assign_splits(series: Iterable[SeriesRow], *, mode: str, seed: int, fold: int = 0) -> dict[str, str]:
    """Split of each series id.

    Series without a known patient are possible twins of the known patients of their family: they are excluded
    when one of those validates or tests, and only train otherwise. In a family without any known patient each
    series is its own patient.

    Args:
        series: all rows of the cohort.
        mode: `auto`, or `test` for a cohort that only tests.
        seed: see `split_patients`.
        fold: see `split_patients`.
    """
    rows = list(series)
    families = {row.family for row in rows if row.patient_known}
    twins = [row for row in rows if not row.patient_known and row.family in families]
    others = [row for row in rows if row.patient_known or row.family not in families]
    sources_of: dict[str, set[str]] = defaultdict(set)
    for row in others:
        sources_of[row.patient_id].add(row.folder)
    patients = split_patients(sources_of, seed=seed, fold=fold) if mode == "auto" else dict.fromkeys(sources_of, "test")
    held_out = {row.family for row in others if patients[row.patient_id] != "training"}
    return {row.series_id: patients[row.patient_id] for row in others} | {
        row.series_id: EXCLUDED if row.family in held_out else "training" for row in twins
    }


def split_hash(patients: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the sorted `patient_id,split` lines, each once."""
    lines = sorted({f"{patient},{split}\n" for patient, split in patients})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _order(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def _shares(patients: int, *, fold: int) -> tuple[int, int, int]:
    """Of a group: rank of the first patient that tests, how many test, how many validate."""
    if patients < _SMALLEST_GROUP:
        return max(0, fold - 1), int(0 < fold <= patients), 0
    first, behind = (round(_TEST_SHARE * number * patients) for number in (fold, fold + 1))
    return first, behind - first, max(1, round(_VALIDATION_SHARE * patients))
