"""A COHORT with few training patients: what a user with little data has.

Validation and test stay as they are. Nodules come from `patients` training patients; where those have no slices with
outlined lungs, a few more patients lend such slices (and nothing else), since crops of nodules have no lungs.
Everything else of the training part is gone from all tables and lists, and the split's hash is another one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes, write_json

__all__ = ["CATEGORIES", "SubCohort", "choose_patients", "make_subcohort", "split_hash_of"]

CATEGORIES = ("ground_glass", "part_solid", "solid")
_LISTS = ("segmentation", "nodules", "lungs", "enhancement")
_FOLDERS = ("slices", "labels", "nodules", "lungs")


@dataclass(frozen=True, kw_only=True)
class SubCohort:
    """Few patients.

    Args:
        name: of its folder.
        folder: a COHORT (contract C5).
        patients: whose nodules train.
        seed: of the choice.
        nodules: of each category.
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


def choose_patients(entries: Sequence[Mapping[str, Any]], count: int, *, seed: int) -> list[str]:
    """Patients with nodules, so that each category has one at least; more patients begin with the fewer ones.

    Args:
        entries: training part of `nodules.json`.
        count: of patients.
        seed: of the order.

    Raises:
        InputError: when there are fewer patients, or fewer than the categories need.
    """
    of_patient: dict[str, set[str]] = {}
    for entry in entries:
        if entry["category"] in CATEGORIES:
            of_patient.setdefault(entry["patient_id"], set()).add(entry["category"])
    order = sorted(of_patient, key=lambda patient: hashlib.sha256(f"utility:{seed}:{patient}".encode()).hexdigest())
    chosen: list[str] = []
    for category in CATEGORIES:
        if not any(category in of_patient[patient] for patient in chosen):
            chosen += [patient for patient in order if category in of_patient[patient]][:1]
    chosen += [patient for patient in order if patient not in chosen]
    covered = set().union(*(of_patient[patient] for patient in chosen[:count]))
    if len(chosen) < count or covered != set(CATEGORIES):
        raise InputError(
            f"--patients: {count} training patients with nodules of all of {list(CATEGORIES)} are needed, the cohort "
            f"has {len(chosen)} patients with {sorted(covered)}. Ask for another number, or prepare a larger cohort."
        )
    return chosen[:count]


def make_subcohort(cohort: Path, folder: Path, *, patients: int, lung_patients: int, seed: int) -> SubCohort:
    """Writes a COHORT of few training patients, or the same one again.

    Args:
        cohort: the whole one; its files are linked to, not copied.
        folder: of the new one.
        patients: whose nodules train.
        lung_patients: who lend slices with outlined lungs, where those have fewer.
        seed: of the choice.

    Raises:
        InputError: when the cohort cannot be read or has too few patients.
    """
    lists = {name: _read(cohort / f"{name}.json") for name in _LISTS}
    chosen = set(choose_patients(lists["nodules"]["training"], patients, seed=seed))
    lenders = _lenders(lists, chosen, lung_patients, seed=seed)
    kept = {name: {**parts, "training": _kept(parts, chosen, lenders)} for name, parts in lists.items()}
    described = _read(cohort / "cohort.json")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: _rows(cohort / f"{name}.csv", chosen, lenders) for name in ("series", "nodules")}
    split_hash = split_hash_of(tables["series"])
    about = {"split_hash_of_all": described.get("split_hash"), "patients": patients, "seed": seed}
    for name, table in tables.items():
        write_bytes(folder / f"{name}.csv", table.to_csv(index=False).encode())
    for name, content in kept.items():
        _write(folder / f"{name}.json", content)
    for name in _FOLDERS:
        (folder / name).unlink(missing_ok=True)  # may lead to another cohort
        if (cohort / name).is_dir():
            (folder / name).symlink_to((cohort / name).resolve(), target_is_directory=True)
    _write(folder / "cohort.json", {**described, "split_hash": split_hash, "subcohort": about})
    segmentation = kept["segmentation"]["training"]
    outlined = [entry for entry in segmentation if entry["kind"] == "slice" and "lung" in entry["labelled"]]
    return SubCohort(
        name=folder.name,
        folder=folder,
        patients=patients,
        seed=seed,
        nodules=dict(sorted(Counter(entry["category"] for entry in kept["nodules"]["training"]).items())),
        crops=sum(entry["kind"] == "nodule" for entry in segmentation),
        lung_slices=len(outlined),
        lung_patients=len({entry["patient_id"] for entry in outlined}),
        split_hash=split_hash,
    )


def split_hash_of(series: pd.DataFrame) -> str:
    """SHA-256 of the sorted `patient_id,split` lines (contract C5.3)."""
    lines = sorted({f"{row.patient_id},{row.split}\n" for row in series.itertuples()})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _lenders(lists: Mapping[str, Any], chosen: set[str], count: int, *, seed: int) -> set[str]:
    """Patients whose slices have outlined lungs, those chosen already first."""
    able = {
        entry["patient_id"]
        for entry in lists["segmentation"]["training"]
        if entry["kind"] == "slice" and "lung" in entry["labelled"]
    } & {entry["patient_id"] for entry in lists["lungs"]["training"]}
    order = sorted(able, key=lambda patient: hashlib.sha256(f"lungs:{seed}:{patient}".encode()).hexdigest())
    own = [patient for patient in order if patient in chosen]
    return set([*own, *(patient for patient in order if patient not in chosen)][: max(count, len(own))])


def _kept(parts: Mapping[str, Any], chosen: set[str], lenders: set[str]) -> list[dict[str, Any]]:
    """Entries of the chosen patients; of the lenders, slices without any nodule."""
    return [
        entry
        for entry in parts.get("training", [])
        if entry["patient_id"] in chosen
        or (entry["patient_id"] in lenders and ("lung" in entry or entry.get("labelled") == ["lung"]))
    ]


def _rows(path: Path, chosen: set[str], lenders: set[str]) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    held_out = table["split"].isin(["validation", "test"])
    own = chosen if "nodule_id" in table else chosen | lenders
    return table[held_out | (table["split"].eq("training") & table["patient_id"].isin(own))]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a file of a cohort, got {error}. Give --cohort a folder that scripts/prepare.py wrote."
        ) from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, content)
