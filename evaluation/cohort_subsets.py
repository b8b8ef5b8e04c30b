"""The patients that an evaluation looks at: the test (or validation) split of a cohort, as typed rows.

Any mix of collections may be there: what a cohort lacks is an empty tuple here, and null in the tables.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.cohort.schema import LungEntry, NoduleRow, SeriesRow
from lungsynth.errors import InputError

__all__ = ["EVALUATION_SPLITS", "MIN_DIAMETER_MM", "EvaluationSplit", "Subset", "open_subset"]

MIN_DIAMETER_MM = 3.0  # LIDC's readers outlined nothing smaller
_CROP_SLICE_MM = 2.0  # spacing of the slices of crops that do not state it; volumes and diameters depend on it

EvaluationSplit = Literal["test", "validation"]
EVALUATION_SPLITS: tuple[EvaluationSplit, ...] = get_args(EvaluationSplit)


@dataclass(frozen=True, eq=False, kw_only=True)
class Subset:
    """One split of a cohort; made by `open_subset`.

    Args:
        patients: the rows of the split.
    """

    patients: CohortSplit

    @property
    def cohort(self) -> Cohort:
        """The whole cohort."""
        return self.patients.cohort

    @property
    def folder(self) -> Path:
        """Of the cohort."""
        return self.patients.folder

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.patients.name

    @property
    def split_hash(self) -> str:
        """Of the cohort."""
        return self.cohort.split_hash

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the collections in the cohort."""
        return tuple(sorted({str(source.get("name")) for source in self.cohort.sources}))

    @property
    def own_collections(self) -> tuple[str, ...]:
        """Names of the collections that this split's nodules and scans come from."""
        return tuple(sorted({row.source for row in self.nodules} | {row.source for row in self.series}))

    @cached_property
    def nodules(self) -> tuple[NoduleRow, ...]:
        """All nodules, in the order of their ids."""
        return self.patients.all_nodules()

    @cached_property
    def series(self) -> tuple[SeriesRow, ...]:
        """All series of which slices were written, in the order of their ids."""
        return tuple(row for row in self.patients.series() if row.series_id in self.cohort.slice_indices)

    @property
    def lungs(self) -> tuple[LungEntry, ...]:
        """Normal slices."""
        return self.patients.lungs()

    @cached_property
    def identity(self) -> str:
        """Changes with the split and with what it holds."""
        rows = [*map(asdict, self.patients.series()), *map(asdict, self.nodules)]
        lists = [self.cohort.entries(name, self.split) for name in ("segmentation", "nodules", "lungs")]
        facts = json.dumps([self.split, self.split_hash, lists, rows], sort_keys=True, default=str)
        return hashlib.sha256(facts.encode()).hexdigest()

    @cached_property
    def min_votes(self) -> int:
        """2; 1 where no nodule was drawn by two readers, so that one reader's mask is all there is."""
        return 2 if any(nodule.votes >= 2 for nodule in self.nodules) else 1

    @cached_property
    def evaluated_nodules(self) -> tuple[NoduleRow, ...]:
        """Nodules with a patch, of 3 mm or more, that enough readers drew, in the order of their ids."""
        least = self.min_votes if any(nodule.votes for nodule in self.nodules) else 0
        return tuple(
            nodule
            for nodule in self.nodules
            if nodule.has_patch and nodule.votes >= least and nodule.diameter_mm >= MIN_DIAMETER_MM
        )

    @cached_property
    def _slice_mm(self) -> dict[str, float]:
        return {row.series_id: row.spacing_slice_mm or 0.0 for row in self.patients.series()}

    def patch_path(self, nodule: NoduleRow) -> Path:
        """The npz of a nodule's patches."""
        return self.folder / nodule.patch

    def slice_mm(self, nodule: NoduleRow) -> float:
        """Spacing of the slices of a nodule's crop."""
        spacing_mm = self._slice_mm.get(nodule.series_id, 0.0)
        return spacing_mm if spacing_mm > 0 else _CROP_SLICE_MM

    def located_nodules(self, series: SeriesRow) -> tuple[NoduleRow, ...]:
        """Nodules of a series whose centre is known."""
        return tuple(
            nodule
            for nodule in self.nodules
            if nodule.series_id == series.series_id and nodule.centre_lps_mm is not None
        )

    def facts(self) -> dict[str, Any]:
        """What tables say of it."""
        return {"split": self.split, "split_hash": self.split_hash, "sources": list(self.own_collections)}


def open_subset(folder: Path, split: EvaluationSplit = "test") -> Subset:
    """Opens a cohort and looks at one of its splits.

    Raises:
        InputError: when a file of the cohort is missing or damaged, or the split has no patient.
    """
    patients = Cohort.open(folder).split(split)
    if not patients.series():
        raise InputError(
            f"{folder}: its {split} split has no patient, so that there is nothing to evaluate on. Prepare the cohort "
            "with more patients, or with `split` test."
        )
    return Subset(patients=patients)
