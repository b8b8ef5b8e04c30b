# SPDX-License-Identifier: Apache-2.0
"""What the CycleGAN reads: composites (X) and real slices that show nodules (Y), as lists of entries.

An entry is a dict: `image` and `label` (paths), `kind` (`slice`: NIfTI of depth one; `nodule`: the npz of a nodule
patch, the fall-back where a COHORT has no slices with nodules), `patient_id` where known (a text; for a composite
several with semicolons between them, or `none`), and `unnamed`, whether the patient of a part is not known, as of a
generated one.
"""

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Entry", "read_composites", "read_reals", "unpaired_entries"]

_logger = logging.getLogger(__name__)
_SPLITS = ("training", "validation", "test")
HELD_OUT_EVERY = 8  # of an OUT without validation samples, each eighth composite is kept from training for it
_NO_PATIENT = "none"

Entry = dict[str, Any]


def unpaired_entries(composite_dir: str | Path, dataset_dir: str | Path, *, split: str) -> dict[str, list[Entry]]:
    """Entries of both domains for one split.

    Args:
        composite_dir: an OUT folder (`datalist.json`).
        dataset_dir: a COHORT (`enhancement.json`, else `nodules.json`).
        split: `training`, `validation` or `test`.

    Returns:
        `composites` and `reals`.

    Raises:
        FileNotFoundError: when a list is missing.
        ValueError: when a list is empty or malformed, or no real is of a patient who is not in the composites.
    """
    training, held_out = read_composites(composite_dir)
    composites = [*training, *held_out]
    reals = _of_others(read_reals(dataset_dir, split=split), composites, _pseudonyms(dataset_dir))
    if split == "training":
        _warn_of_unnamed(composites)
    chosen = training if split == "training" else held_out
    if not chosen:
        raise ValueError(
            f"{Path(composite_dir) / 'datalist.json'}: needs at least 2 composites, one of them for validation, "
            f"got {len(composites)}. Make more of them (lungsynth generate --no-enhance --count N)."
        )
    return {"composites": chosen, "reals": reals}


def read_composites(composite_dir: str | Path) -> tuple[list[Entry], list[Entry]]:
    """Entries of `OUT/datalist.json`, with absolute paths: those for training, and those for validation."""
    file = Path(composite_dir) / "datalist.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no composites. "
            "Make them with lungsynth generate --no-enhance --out DIR, then give composite_dir DIR."
        )
    training, held_out = ([_slice_entry(entry, file) for entry in _read_list(file, part)] for part in _SPLITS[:2])
    if held_out:
        return training, held_out
    kept = [entry for index, entry in enumerate(training) if index % HELD_OUT_EVERY]
    return kept, training[::HELD_OUT_EVERY]


def read_reals(dataset_dir: str | Path, *, split: str) -> list[Entry]:
    """Real entries of one split: slices that show nodules or, where the COHORT has none, nodule patches.

    A COHORT without reals to validate on gives the last of its training patients (of several), for validation only.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {_SPLITS}, got {split!r}.")
    read, file = _real_list(Path(dataset_dir))
    entries = {name: [read(entry, file) for entry in _read_list(file, name)] for name in ("training", split)}
    if split == "test":
        if not entries["test"]:
            raise ValueError(f"{file}: has no entries under `test`. Prepare the COHORT with patients for the test.")
        return entries["test"]
    validation = entries.get("validation") or [read(entry, file) for entry in _read_list(file, "validation")]
    return _without_empty(entries["training"], validation, file)[split]


def _real_list(dataset_dir: Path) -> tuple[Callable[[Mapping[str, Any], Path], Entry], Path]:
    slices, patches = dataset_dir / "enhancement.json", dataset_dir / "nodules.json"
    if slices.is_file() and _read_list(slices, "training"):
        return _slice_entry, slices
    if patches.is_file() and _read_list(patches, "training"):
        _logger.warning("%s: no real slices with nodules, so their patches of %s stand in", slices, patches.name)
        return _patch_entry, patches
    raise FileNotFoundError(
        f"{dataset_dir}: needs real images of nodules under `training` of enhancement.json or nodules.json, found none."
        " Make a COHORT with lungsynth prepare, then give dataset_dir COHORT."
    )


def _without_empty(training: list[Entry], validation: list[Entry], file: Path) -> dict[str, list[Entry]]:
    """Both parts, the second one taken from the first where it is empty, by patient."""
    if not validation:
        patients = sorted({str(entry.get("patient_id")) for entry in training})
        if len(patients) < 2:
            raise ValueError(
                f"{file}: needs reals under `validation`, or two patients under `training` to hold one out; found "
                f"{len(patients)}. Prepare the COHORT from more patients."
            )
        _logger.warning("%s: nothing under `validation`, so the last training patient is held out instead", file)
        validation = [entry for entry in training if str(entry.get("patient_id")) == patients[-1]]
        training = [entry for entry in training if str(entry.get("patient_id")) != patients[-1]]
    return {"training": training, "validation": validation}


def _read_list(file: Path, name: str) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return list(content.get(name, []))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: expected a datalist with lists of entries under {_SPLITS}, got {error}.") from error


def _slice_entry(entry: Mapping[str, Any], file: Path) -> Entry:
    return _entry(entry, file, kind="slice", image="image", label="label")


def _patch_entry(entry: Mapping[str, Any], file: Path) -> Entry:
    return _entry(entry, file, kind="nodule", image="nodule", label="nodule")


def _entry(entry: Mapping[str, Any], file: Path, *, kind: str, image: str, label: str) -> Entry:
    if missing := sorted({image, label} - set(entry)):
        raise ValueError(f"{file}: expected entries with {image!r} and {label!r}, one lacks {missing}.")
    paths = {"image": str(file.parent / entry[image]), "label": str(file.parent / entry[label])}
    patient = entry.get("patient_id")
    patient = None if patient == _NO_PATIENT else patient
    return {
        **paths,
        "kind": kind,
        "patient_id": patient,
        "unnamed": bool(entry.get("parts_without_patient", 0 if patient else 1)),
    }


def _pseudonyms(dataset_dir: str | Path) -> dict[str, str]:
    """What patients of the COHORT are called in composites that were made with it; empty where nothing tells."""
    file = Path(dataset_dir) / "pseudonyms.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["id"]: row["pseudonym"] for row in csv.DictReader(lines) if row.get("kind") == "patient"}


def _of_others(reals: Sequence[Entry], composites: Sequence[Entry], pseudonyms: Mapping[str, str]) -> list[Entry]:
    """The reals whose patients are not in the composites: the discriminator would learn to look for the patient."""
    shared = _patients(composites)
    shared |= {patient for patient, name in pseudonyms.items() if name in shared}
    others = [entry for entry in reals if not _patients([entry]) & shared]
    if not others:
        raise ValueError(
            f"Composites and reals must not share patients, but {sorted(_patients(reals) & shared)[0]} and all others "
            "of the reals are in both. Make the composites with lungsynth generate --exclude-enhancer-patients, or of "
            "generated lungs and nodules."
        )
    if len(others) < len(reals):
        _logger.warning(
            "%d of %d reals are of patients in the composites: left out", len(reals) - len(others), len(reals)
        )
    return others


def _warn_of_unnamed(composites: Sequence[Entry]) -> None:
    """What `_of_others` cannot see: generated parts name no patient, whomever their generators were trained on."""
    if unnamed := sum(entry["unnamed"] for entry in composites):
        _logger.warning(
            "%d of %d composites have parts without a known patient, as generated ones are: whether the networks that "
            "made those were trained on patients of the reals cannot be seen here",
            unnamed,
            len(composites),
        )


def _patients(entries: Sequence[Entry]) -> set[str]:
    named = [entry["patient_id"] for entry in entries if entry["patient_id"]]
    texts = {str(patient) for ids in named for patient in ([ids] if isinstance(ids, str) else ids)}
    # An id that has a semicolon itself counts as a whole and in its parts.
    return (texts | {part for text in texts for part in text.split(";")}) - {_NO_PATIENT}
