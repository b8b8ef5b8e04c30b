"""`Cohort`: the only reader of the folder that `prepare` writes.

`Cohort.open(folder).split("training").nodules()` gives typed rows (`lungsynth.cohort.schema`); files are opened when
they are asked for. Folders of `format: 1` are read in the words of today. What is missing or damaged is told in one
way, with the file and the way out.
"""

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from lungsynth.categories import AS_LISTED, CategoryRule
from lungsynth.cohort.datalists import Pseudonyms
from lungsynth.cohort.files import damaged, read_arrays, read_cohort_json, read_table
from lungsynth.cohort.schema import (
    COHORT_FORMAT,
    FORMAT_1_NAMES,
    CubeEntry,
    DiseasedEntry,
    LungEntry,
    NoduleEntry,
    NoduleRow,
    SegmentationEntry,
    SeriesRow,
    from_mapping,
)
from lungsynth.cohort.series_rows import FINISHED, SeriesRows
from lungsynth.cohort.slices import SliceStack, read_scan
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_text
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane

__all__ = ["Cohort", "CohortSplit", "RealLung", "RealNodule", "Split"]

_logger = logging.getLogger(__name__)
_REMEDY = "Give `cohort` a folder that `lungsynth prepare` wrote."
_DAMAGED = (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
_IDENTIFYING = ("series.csv", "nodules.csv", "segmentation.json", "nodules.json", "lungs.json", "enhancement.json")
_OLD_NAMES = {new: old for old, new in FORMAT_1_NAMES.items()}

Split = Literal["training", "validation", "test"]
Row = TypeVar("Row")


class RealNodule(NamedTuple):
    """The largest slice of a nodule: its pseudonym, HU and alpha, both (64, 64) at 0.7 mm."""

    origin: str
    hu: np.ndarray
    alpha: np.ndarray


class RealLung(NamedTuple):
    """A normal slice on its own grid: its pseudonym, HU, and the mask of its lungs."""

    origin: str
    hu: HuPlane
    mask: MaskPlane
    affine: Affine


@dataclass(frozen=True, eq=False, kw_only=True)
class Cohort:
    """A cohort on disk; made by `open`.

    Args:
        folder: where it stands.
        described: the content of `cohort.json`.
        rule: which categories its nodules have.
    """

    folder: Path
    described: Mapping[str, Any]
    rule: CategoryRule = AS_LISTED

    @classmethod
    def open(cls, folder: Path, *, rule: CategoryRule = AS_LISTED) -> "Cohort":
        """Opens a cohort.

        Args:
            folder: what `prepare` wrote.
            rule: gives its nodules the categories of a generator (`bundles.nodule_rule`).

        Raises:
            InputError: when the folder is no cohort, is not finished, or is of a newer format.
        """
        if not (folder / "cohort.json").is_file() and (folder / FINISHED).is_dir():
            raise InputError(
                f"{folder}: this cohort is not finished: cohort.json is missing, which is written last. Repeat the "
                "command that began it."
            )
        described = read_cohort_json(folder / "cohort.json")
        if described.get("format", 1) not in range(1, COHORT_FORMAT + 1):
            raise InputError(
                f"{folder}: is of format {described['format']}, this version reads up to {COHORT_FORMAT}. Update "
                "lungsynth, or prepare the cohort again."
            )
        return cls(folder=folder, described=described, rule=rule)

    @property
    def split_hash(self) -> str:
        """SHA-256 of who is in which split."""
        return str(self.described.get("split_hash"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was prepared with."""
        return dict(self.described.get("settings", {}))

    @property
    def sources(self) -> tuple[Mapping[str, Any], ...]:
        """Its collections: `name`, `licence`, `citation` and `counts` of each."""
        return tuple(self.described.get("sources", ()))

    @cached_property
    def identity(self) -> dict[str, str]:
        """`split_hash`, and a hash of the data lists and the rule: equal for equal cohorts.

        Raises:
            InputError: when a data list is missing or damaged.
        """
        digest = hashlib.sha256()
        for name in ("nodules", "lungs", "enhancement"):
            digest.update(json.dumps(self._list(name), sort_keys=True).encode())
        digest.update(self.rule.identity.encode())
        return {"split_hash": self.split_hash, "datalists": digest.hexdigest()}

    def split(self, name: str) -> "CohortSplit":
        """The patients of one split; it may have none.

        Raises:
            InputError: when there is no such split.
        """
        if name not in get_args(Split):
            raise InputError(f"A split is one of {', '.join(get_args(Split))}, got {name!r}.")
        return CohortSplit(cohort=self, name=name)

    def entries(self, name: str, split: str) -> list[dict[str, Any]]:
        """The entries of a split in the data list of this name, as they stand there; none when it lacks the split.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return list(self._list(name).get(split, []))

    @cached_property
    def series(self) -> tuple[SeriesRow, ...]:
        """All rows of `series.csv`, in its order.

        Raises:
            InputError: when the table is missing or damaged.
        """
        path = self.folder / "series.csv"
        rows = tuple(read_table(path, SeriesRow))
        if lost := [row.series_id for row in rows if not row.split]:
            raise damaged(path, f"{lost[0]} has no split")
        if len({row.series_id for row in rows}) < len(rows):
            raise damaged(path, "it has a series twice")
        return rows

    @cached_property
    def nodules(self) -> tuple[NoduleRow, ...]:
        """All rows of `nodules.csv`, in its order, with what the data lists say of them.

        Raises:
            InputError: when the table or a data list is missing or damaged.
        """
        listed, drawn, spheres = set[str](), set[str](), set[str]()
        for split in get_args(Split):
            listed |= {str(entry.get("nodule_id")) for entry in self.entries("nodules", split)}
            for entry in self.entries("segmentation", split):
                chosen = {"nodule": drawn, "sphere": spheres}.get(str(entry.get("kind")))
                if chosen is not None:
                    chosen.add(Path(str(entry.get("image"))).stem)
        return tuple(
            replace(
                row,
                has_patch=row.nodule_id in listed,
                expert_mask=row.nodule_id in drawn if row.nodule_id in listed else row.votes > 0,
                sphere=row.nodule_id in spheres,
            )
            for row in read_table(self.folder / "nodules.csv", NoduleRow)
        )

    @property
    def splits(self) -> dict[str, str]:
        """Split of each series id, `excluded` among them."""
        return {row.series_id: row.split for row in self.series}

    @cached_property
    def pieces(self) -> tuple[SeriesRows, ...]:
        """The rows that preparing left behind, in the order of their ids; only the hidden folder `.parts` has them.

        Raises:
            InputError: when they are not there, damaged, or not those of `series.csv`.
        """
        names = sorted(path for path in (self.folder / FINISHED).glob("*.json") if path.stem != "identity")
        try:
            pieces = tuple(SeriesRows.read(path) for path in names)
        except InputError:
            raise
        except _DAMAGED as error:
            raise damaged(self.folder / FINISHED, error) from error
        if {row.series_id for piece in pieces for row in piece.series} != set(self.splits):
            raise InputError(
                f"{self.folder}: its hidden folder {FINISHED} is missing, or not that of its series.csv. Copy the "
                "cohort whole, or prepare it again."
            )
        return pieces

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """What its patients, nodules and slices are called outside of it; older cohorts get their map here.

        Raises:
            InputError: when a data list or `pseudonyms.csv` is damaged.
        """
        if (path := self.folder / "pseudonyms.csv").is_file():
            return Pseudonyms.read(path)
        splits = [CohortSplit(cohort=self, name=name) for name in get_args(Split)]
        nodules = [nodule for split in splits for nodule in split.typed_entries("nodules", NoduleEntry)]
        slices: list[LungEntry | DiseasedEntry] = [lung for split in splits for lung in split.lungs()]
        slices += [entry for split in splits for entry in split.diseased()]
        names = Pseudonyms.of(nodules, slices)
        try:
            write_text(path, names.csv())
        except OSError:
            _logger.warning("%s: cannot be written, so nothing there says whom pseudonyms mean", path)
        return names

    @property
    def digest(self) -> str:
        """SHA-256 of its tables and lists.

        Raises:
            InputError: when one is missing.
        """
        try:
            content = b"".join((self.folder / name).read_bytes() for name in _IDENTIFYING)
        except OSError as error:
            raise damaged(self.folder, error) from error
        return hashlib.sha256(content).hexdigest()

    @cached_property
    def slice_indices(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the slices that were written, ascending, by series id."""
        written: dict[str, list[int]] = {}
        for path in (self.folder / "slices").glob("*.nii.gz"):
            series_id, _, index = path.name.removesuffix(".nii.gz").rpartition("_")
            if index.isdecimal():  # else it is not ours
                written.setdefault(series_id, []).append(int(index))
        return {series_id: tuple(sorted(indices)) for series_id, indices in written.items()}

    def read_slice(self, entry: LungEntry | DiseasedEntry | SegmentationEntry) -> tuple[HuPlane, LabelPlane, Affine]:
        """HU, label map and affine of a slice.

        Raises:
            InputError: when a file cannot be read or their grids differ.
        """
        hu, affine = read_plane(self.folder / entry.image)
        label, label_affine = read_plane(self.folder / entry.label)
        if hu.shape != label.shape or not np.allclose(affine, label_affine, atol=1e-3):
            raise InputError(
                f"{self.folder / entry.label}: its grid differs from that of {entry.image}. Prepare the cohort again."
            )
        return hu, label, affine

    def read_scan(self, series: SeriesRow) -> SliceStack:
        """The slices of a series as one stack; what was not written between them is unlabelled (`scans.read_scan`).

        Raises:
            InputError: when the series has no slice, or a file is missing or damaged.
        """
        if not (indices := self.slice_indices.get(series.series_id)):
            raise InputError(f"{self.folder / 'slices'}: has no slice of {series.series_id}. Prepare the cohort again.")
        return read_scan(self.folder, series, indices)

    @cached_property
    def _lists(self) -> dict[str, dict[str, Any]]:
        return {}

    def _list(self, name: str) -> dict[str, Any]:
        if name not in self._lists:
            self._lists[name] = read_cohort_json(self.folder / f"{name}.json")
        return self._lists[name]


@dataclass(frozen=True, eq=False, kw_only=True)
class CohortSplit:
    """The patients of one split of a cohort; made by `Cohort.split`.

    Args:
        cohort: the whole one.
        name: `training`, `validation` or `test`.
        without: patients that are left out.
    """

    cohort: Cohort
    name: str
    without: frozenset[str] = field(default=frozenset())

    @property
    def folder(self) -> Path:
        """Of the cohort."""
        return self.cohort.folder

    def nodules(self) -> tuple[NoduleEntry, ...]:
        """Nodules that have patches, with the categories of the cohort's rule.

        Raises:
            InputError: when the list is missing or damaged, or its nodules lack what the rule asks for.
        """
        return self._nodules

    def cubes(self) -> tuple[CubeEntry, ...]:
        """Nodules that are known in three dimensions.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return self.typed_entries("cubes", CubeEntry)

    def lungs(self) -> tuple[LungEntry, ...]:
        """Normal slices.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return self._lungs

    def diseased(self) -> tuple[DiseasedEntry, ...]:
        """Slices that show a nodule, from which the enhancer learns.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return self.typed_entries("enhancement", DiseasedEntry)

    def slices(self) -> tuple[SegmentationEntry, ...]:
        """Slices on which an expert drew.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return tuple(entry for entry in self.typed_entries("segmentation", SegmentationEntry) if entry.kind == "slice")

    def series(self) -> tuple[SeriesRow, ...]:
        """Its series, in the order of their ids.

        Raises:
            InputError: when the table is missing or damaged.
        """
        return tuple(self._of_split(self.cohort.series, key=lambda row: row.series_id))

    def all_nodules(self) -> tuple[NoduleRow, ...]:
        """Its nodules, also those without patches, in the order of their ids.

        Raises:
            InputError: when a table or list is missing or damaged.
        """
        return tuple(self._of_split(self.cohort.nodules, key=lambda row: row.nodule_id))

    def scans(self) -> Iterator[tuple[SeriesRow, SliceStack]]:
        """Its series that have slices, put together again.

        Raises:
            InputError: when a file is missing or damaged.
        """
        for row in self.series():
            if row.series_id in self.cohort.slice_indices:
                yield row, self.cohort.read_scan(row)

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """Ids of the patients of its nodules and normal slices, sorted."""
        entries = (*self.nodules(), *self.lungs())
        return tuple(sorted({entry.patient_id for entry in entries} - {""}))

    @cached_property
    def patient_of(self) -> Mapping[str, str]:
        """Patient of each nodule and normal slice, by pseudonyms; without those whose patient nobody tells."""
        names = self.cohort.pseudonyms
        owners = {names.named("nodules", nodule.nodule_id): nodule.patient_id for nodule in self.nodules()}
        owners |= {names.named("slices", lung.slice_id): lung.patient_id for lung in self.lungs()}
        return {origin: names.named("patients", patient) for origin, patient in owners.items() if patient}

    def nonempty(self) -> "CohortSplit":
        """Itself.

        Raises:
            InputError: when it has neither nodules nor normal slices, or their lists cannot be used.
        """
        if not self.nodules() and not self.lungs():
            raise InputError(
                f"{self.folder}: its {self.name} split has neither nodules nor normal slices. Prepare it with `split` "
                "auto, or with more patients."
            )
        return self

    def without_diseased(self) -> "CohortSplit":
        """The patients who have no slice in `diseased`, so that what is made of them and those share no patient.

        Raises:
            InputError: when neither nodules nor lungs are left.
        """
        left = replace(self, without=self.without | {entry.patient_id for entry in self.diseased() if entry.patient_id})
        if not left.nodules() and not left.lungs():
            raise InputError(
                f"{self.folder}: all patients of its {self.name} split are in enhancement.json, so "
                "`exclude_enhancer_patients` leaves none. Prepare a cohort with more patients."
            )
        return left

    def read_nodules(self, category: str, *, seed: int) -> Iterator[RealNodule]:
        """The nodules of a category in an order that the seed gives; unreadable files are reported and left out."""
        entries = [entry for entry in self.nodules() if entry.category == category]
        for index in np.random.default_rng(seed).permutation(len(entries)):
            try:
                hu, alpha, largest = read_arrays(self.folder / entries[index].nodule, "hu", "alpha", "largest")
                name = self.cohort.pseudonyms.named("nodules", entries[index].nodule_id)
                yield RealNodule(name, hu[int(largest)], alpha[int(largest)])
            except (InputError, IndexError) as error:
                _logger.warning("left out: %s", error)

    def read_lungs(self, *, seed: int) -> Iterator[RealLung]:
        """The normal slices in an order that the seed gives; unreadable files are reported and left out."""
        for index in np.random.default_rng(seed).permutation(len(self.lungs())):
            entry = self.lungs()[index]
            try:
                hu, label, affine = self.cohort.read_slice(entry)
            except InputError as error:
                _logger.warning("left out: %s", error)
                continue
            name = self.cohort.pseudonyms.named("slices", entry.slice_id)
            yield RealLung(name, hu, label == Label.LUNG, affine)

    @cached_property
    def _nodules(self) -> tuple[NoduleEntry, ...]:
        entries = self.cohort.rule.relabelled(self.cohort.entries("nodules", self.name))
        return self._typed("nodules", entries, NoduleEntry)

    @cached_property
    def _lungs(self) -> tuple[LungEntry, ...]:
        return self.typed_entries("lungs", LungEntry)

    def typed_entries(self, name: str, row_type: type[Row]) -> tuple[Row, ...]:
        """The entries of a data list as they stand there.

        Raises:
            InputError: when the list is missing or damaged.
        """
        return self._typed(name, self.cohort.entries(name, self.name), row_type)

    def _typed(self, name: str, entries: Sequence[Mapping[str, Any]], row_type: type[Row]) -> tuple[Row, ...]:
        try:
            return tuple(
                from_mapping(row_type, entry) for entry in entries if entry.get("patient_id") not in self.without
            )
        except (InputError, AttributeError) as error:
            raise damaged(self.folder / f"{name}.json", error) from error

    def _of_split(self, rows: Sequence[Row], *, key: Any) -> list[Row]:
        own = (row for row in rows if row.split == self.name and row.patient_id not in self.without)  # type: ignore[attr-defined]
        return sorted(own, key=key)
