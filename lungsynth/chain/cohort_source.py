"""What the chain borrows from a COHORT (contract C5): nodules and normal slices of its training patients alone."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane

__all__ = ["CohortSource", "RealLung", "RealNodule", "open_cohort"]

_logger = logging.getLogger(__name__)
_REMEDY = "Give `cohort` a folder that `lungsynth prepare` wrote."


class RealNodule(NamedTuple):
    """The largest slice of a nodule: HU and alpha, both (64, 64) at 0.7 mm."""

    origin: str
    hu: np.ndarray
    alpha: np.ndarray


class RealLung(NamedTuple):
    """A normal slice on its own grid, with the mask of its lungs."""

    origin: str
    hu: HuPlane
    mask: MaskPlane
    affine: Affine


@dataclass(frozen=True, kw_only=True)
class CohortSource:
    """The training part of a cohort; made by `open_cohort`. Another part is asked for by name, with `of_part`.

    Args:
        folder: the cohort.
        identity: split hash and hash of the datalists (and of the rule); equal for equal cohorts.
        nodules: entries of `nodules.json`, with the categories of the rule.
        lungs: entries of `lungs.json`.
        diseased: entries of `enhancement.json`.
        rule: what categories are.
    """

    folder: Path
    identity: dict[str, str]
    nodules: Sequence[dict[str, Any]]
    lungs: Sequence[dict[str, Any]]
    diseased: Sequence[dict[str, Any]]
    rule: CategoryRule = AS_LISTED

    def without_diseased(self) -> "CohortSource":
        """Its nodules and lungs of patients who are not in `diseased`, so that composites and those share no patient.

        Raises:
            InputError: when neither nodules nor lungs are left.
        """
        spared = {str(entry["patient_id"]) for entry in self.diseased if "patient_id" in entry}

        def others(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            return [entry for entry in entries if str(entry.get("patient_id")) not in spared]

        nodules, lungs = others(self.nodules), others(self.lungs)
        if not nodules and not lungs:
            raise InputError(
                f"{self.folder}: all its training patients are in enhancement.json, so `exclude_enhancer_patients` "
                "leaves none. Prepare a cohort with more patients."
            )
        return replace(self, nodules=nodules, lungs=lungs)

    def of_part(self, part: str) -> "CohortSource":
        """The same of `training`, `validation` or `test`; it may be empty.

        Raises:
            InputError: when a data list cannot be read.
        """
        nodules, lungs, diseased = (
            list(_read_json(self.folder / f"{name}.json").get(part, [])) for name in ("nodules", "lungs", "enhancement")
        )
        return replace(self, nodules=self.rule.relabelled(nodules), lungs=lungs, diseased=diseased)

    @cached_property
    def patients(self) -> dict[str, str]:
        """Patient of each training nodule and normal slice, by the `origin` that its asset names."""
        found = {str(entry["nodule_id"]): entry for entry in self.nodules}
        found |= {_slice_id(entry): entry for entry in self.lungs}
        return {origin: str(entry["patient_id"]) for origin, entry in found.items() if entry.get("patient_id")}

    def read_nodules(self, category: str, *, seed: int) -> Iterator[RealNodule]:
        """The nodules of a category in an order that the seed gives; unreadable files are reported and left out."""
        entries = [entry for entry in self.nodules if entry["category"] == category]
        for index in np.random.default_rng(seed).permutation(len(entries)):
            path = self.folder / entries[index]["nodule"]
            try:
                with np.load(path, allow_pickle=False) as patch:
                    largest = int(patch["largest"])
                    yield RealNodule(str(entries[index]["nodule_id"]), patch["hu"][largest], patch["alpha"][largest])
            except (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
                _logger.warning("%s: left out, not a nodule of a cohort (%s)", path, error)

    def read_lungs(self, *, seed: int) -> Iterator[RealLung]:
        """The normal slices, in an order that the seed gives; unreadable files are reported and left out."""
        for index in np.random.default_rng(seed).permutation(len(self.lungs)):
            entry = self.lungs[index]
            try:
                hu, label, affine = self.read_pair(entry)
            except InputError as error:
                _logger.warning("left out: %s", error)
                continue
            yield RealLung(_slice_id(entry), hu, label == Label.LUNG, affine)

    def read_pair(self, entry: dict[str, Any]) -> tuple[HuPlane, LabelPlane, Affine]:
        """Image and label of a datalist entry.

        Raises:
            InputError: when a file cannot be read or their grids differ.
        """
        hu, affine = read_plane(self.folder / entry["image"])
        label, label_affine = read_plane(self.folder / entry["label"])
        if hu.shape != label.shape or not np.allclose(affine, label_affine, atol=1e-3):
            raise InputError(
                f"{self.folder / entry['label']}: its grid differs from that of {entry['image']}. "
                "Prepare the cohort again."
            )
        return hu, label, affine


def open_cohort(folder: Path, *, rule: CategoryRule = AS_LISTED) -> CohortSource:
    """Reads the datalists of a cohort.

    Args:
        folder: the cohort.
        rule: gives its nodules the categories of a generator (`bundles.nodule_rule`).

    Raises:
        InputError: when a file of contract C5 is missing or damaged, the training part is empty, or the rule asks for
            what its nodules do not have.
    """
    split_hash = str(_read_json(folder / "cohort.json").get("split_hash"))
    digest, entries = hashlib.sha256(), {}
    for name in ("nodules", "lungs", "enhancement"):
        content = _read_json(folder / f"{name}.json")
        entries[name] = list(content.get("training", []))
        digest.update(json.dumps(content, sort_keys=True).encode())
    if not entries["nodules"] and not entries["lungs"]:
        raise InputError(
            f"{folder}: its training part has neither nodules nor normal slices. Prepare it with `split` auto."
        )
    digest.update(rule.identity.encode())
    return CohortSource(
        folder=folder,
        identity={"split_hash": split_hash, "datalists": digest.hexdigest()},
        nodules=rule.relabelled(entries["nodules"]),
        lungs=entries["lungs"],
        diseased=entries["enhancement"],
        rule=rule,
    )


def _slice_id(entry: dict[str, Any]) -> str:
    return Path(entry["image"]).name.removesuffix(".nii.gz")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected this file of a cohort, found none. {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, got {error}. {_REMEDY}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}. {_REMEDY}")
    return content
