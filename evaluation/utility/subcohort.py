"""A cohort with few training patients: what a user with little data has.

Validation and test stay as they are. Nodules come from `patients` training patients; where those have no slices with
outlined lungs, a few more patients donate such slices (and nothing else), since crops of nodules have no lungs.
Everything else of the training split is gone from all tables and lists, and the split's hash is another one.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lungsynth.cohort.files import read_cohort_json
from lungsynth.cohort.reader import Cohort
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text

__all__ = ["CATEGORIES", "SubCohort", "choose_patients", "make_subcohort", "split_hash_of"]

CATEGORIES = ("ground_glass", "part_solid", "solid")
_LISTS = ("segmentation", "nodules", "lungs", "enhancement")
_FOLDERS = ("slices", "labels", "nodules", "windows", "lungs")

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SubCohort:
    """Few patients.

    Args:
        name: of its folder.
        folder: of the cohort.
        patients: whose nodules train.
        seed: of the choice.
        nodules: number of each category.
        crops: labelled nodules for the segmentation.
        lung_slices: slices with outlined lungs.
        lung_patients: whose slices those are.
        split_hash: of this cohort.
    """

    name: str
    folder: Path
    patients: int
    seed: int
    nodules: Mapping[str, int]
    crops: int
    lung_slices: int
    lung_patients: int
    split_hash: str


def choose_patients(entries: Entries, count: int, *, seed: int) -> list[str]:
    """Patients with nodules, so that each category has one at least; more patients begin with the fewer ones.

    Args:
        entries: training split of `nodules.json`.
        count: of patients.
        seed: of the order.

    Raises:
        InputError: when there are fewer patients, or fewer than the categories need.
    """
    categories: dict[str, set[str]] = {}
    for entry in entries:
        if entry["category"] in CATEGORIES:
            categories.setdefault(entry["patient_id"], set()).add(entry["category"])
    order = sorted(categories, key=lambda patient: _rank("utility", seed, patient))
    patients: list[str] = []
    for category in CATEGORIES:
        if not any(category in categories[patient] for patient in patients):
            patients += [patient for patient in order if category in categories[patient]][:1]
    patients += [patient for patient in order if patient not in patients]
    covered = set().union(*(categories[patient] for patient in patients[:count]))
    if len(patients) < count or covered != set(CATEGORIES):
        raise InputError(
            f"`patients`: {count} training patients with nodules of all of {list(CATEGORIES)} are needed, the cohort "
            f"has {len(patients)} patients with {sorted(covered)}. Give another number, or prepare a larger cohort."
        )
    return patients[:count]


def make_subcohort(cohort: Path, folder: Path, *, patients: int, lung_patients: int, seed: int) -> SubCohort:
    """Writes a cohort of few training patients, or the same one again.

    Args:
        cohort: the whole one; its files are linked to, not copied.
        folder: of the new one.
        patients: whose nodules train.
        lung_patients: who have slices with outlined lungs; donors join where those patients are fewer.
        seed: of the choice.

    Raises:
        InputError: when the cohort cannot be read or has too few patients.
    """
    whole = Cohort.open(cohort)
    lists = {name: read_cohort_json(cohort / f"{name}.json") for name in _LISTS}
    chosen = set(choose_patients(lists["nodules"]["training"], patients, seed=seed))
    donors = _lung_donors(lists, chosen, lung_patients, seed=seed)
    reduced = {name: {**splits, "training": _reduced(splits, chosen, donors)} for name, splits in lists.items()}
    tables = {name: _rows(cohort / f"{name}.csv", chosen, donors) for name in ("series", "nodules")}
    split_hash = split_hash_of(tables["series"])
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
    for name, content in reduced.items():
        write_json(folder / f"{name}.json", content)
    for name in _FOLDERS:
        (folder / name).unlink(missing_ok=True)  # may lead to another cohort
        if (cohort / name).is_dir():
            (folder / name).symlink_to((cohort / name).resolve(), target_is_directory=True)
    about = {"split_hash_of_all": whole.split_hash, "patients": patients, "seed": seed}
    write_json(folder / "cohort.json", {**whole.described, "split_hash": split_hash, "subcohort": about})
    return _describe(folder, reduced, patients=patients, seed=seed, split_hash=split_hash)


def split_hash_of(series: pd.DataFrame) -> str:
    """SHA-256 of the sorted `patient_id,split` lines, as in a whole cohort."""
    lines = sorted({f"{row.patient_id},{row.split}\n" for row in series.itertuples()})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _describe(
    folder: Path, lists: Mapping[str, Mapping[str, Any]], *, patients: int, seed: int, split_hash: str
) -> SubCohort:
    segmentation = lists["segmentation"]["training"]
    outlined = [entry for entry in segmentation if _shows_lung(entry)]
    return SubCohort(
        name=folder.name,
        folder=folder,
        patients=patients,
        seed=seed,
        nodules=dict(sorted(Counter(entry["category"] for entry in lists["nodules"]["training"]).items())),
        crops=sum(entry["kind"] == "nodule" for entry in segmentation),
        lung_slices=len(outlined),
        lung_patients=len({entry["patient_id"] for entry in outlined}),
        split_hash=split_hash,
    )


def _rank(purpose: str, seed: int, patient: str) -> str:
    """Sorts patients in an order that depends on each of them alone."""
    return hashlib.sha256(f"{purpose}:{seed}:{patient}".encode()).hexdigest()


def _shows_lung(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] == "slice" and "lung" in entry["labelled"]


def _lung_donors(lists: Mapping[str, Any], chosen: set[str], count: int, *, seed: int) -> set[str]:
    """Patients whose slices have outlined lungs: those chosen already, then others up to `count`."""
    able = {entry["patient_id"] for entry in lists["segmentation"]["training"] if _shows_lung(entry)}
    able &= {entry["patient_id"] for entry in lists["lungs"]["training"]}
    order = sorted(able, key=lambda patient: _rank("lungs", seed, patient))
    own = [patient for patient in order if patient in chosen]
    return set([*own, *(patient for patient in order if patient not in chosen)][: max(count, len(own))])


def _reduced(splits: Mapping[str, Any], chosen: set[str], donors: set[str]) -> list[Mapping[str, Any]]:
    """Training entries of the chosen patients; of the donors, slices without any nodule."""
    return [
        entry
        for entry in splits.get("training", [])
        if entry["patient_id"] in chosen
        or (entry["patient_id"] in donors and ("lung" in entry or entry.get("labelled") == ["lung"]))
    ]


def _rows(path: Path, chosen: set[str], donors: set[str]) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    held_out = table["split"].isin(["validation", "test"])
    patients = chosen if "nodule_id" in table else chosen | donors
    return table[held_out | (table["split"].eq("training") & table["patient_id"].isin(patients))]
