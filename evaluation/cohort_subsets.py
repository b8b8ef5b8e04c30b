"""Whom the judge looks at: the test (or validation) part of a COHORT (contract C5), as facts; files are read later.

Any mix of sources may be there: what a cohort lacks is an empty list here, and null in the tables.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lungsynth.errors import InputError

__all__ = ["MIN_DIAMETER_MM", "Split", "Subset", "SubsetNodule", "SubsetSeries", "open_subset"]

MIN_DIAMETER_MM = 3.0  # LIDC's readers outlined nothing smaller
_CROP_SLICE_MM = 2.0  # of crops without a known distance of slices; only volumes and diameters depend on it

Split = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True)
class SubsetNodule:
    """A row of `nodules.csv`.

    Args:
        patch: its npz; None where it has none.
        drawn: whether an expert drew its mask.
        votes: readers of its consensus mask; 0 where only centre and diameter were given.
        centre_lps_mm: None where unknown.
        slice_mm: distance of its slices.
    """

    id: str
    patient: str
    series: str
    source: str
    category: str
    diameter_mm: float
    votes: int
    patch: Path | None
    drawn: bool
    centre_lps_mm: tuple[float, float, float] | None
    slice_mm: float


@dataclass(frozen=True, kw_only=True)
class SubsetSeries:
    """A series with slices in the cohort.

    Args:
        spacing_mm: (slice, row, column).
        expert_lung: whether its lung mask is the data's own.
        nodules: its nodules whose place is known.
        indices: of the slices that were written, ascending.
    """

    id: str
    patient: str
    source: str
    spacing_mm: tuple[float, float, float]
    expert_lung: bool
    expert_nodule: bool
    nodules: tuple[SubsetNodule, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The patients that are judged on.

    Args:
        folder: the cohort.
        part: which of its parts.
        split_hash: of the cohort.
        settings: of the cohort.
        sources: names of its sources.
        identity: changes with the split and with what the part holds.
        nodules: all of the part.
        series: all of the part that have slices.
        lungs: entries of `lungs.json`.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    folder: Path
    part: Split
    split_hash: str
    settings: Mapping[str, Any]
    sources: tuple[str, ...]
    identity: str
    nodules: tuple[SubsetNodule, ...]
    series: tuple[SubsetSeries, ...]
    lungs: tuple[Mapping[str, Any], ...]

    @cached_property
    def min_votes(self) -> int:
        """2; 1 where no nodule of the part was drawn by two readers, so that one mask is all there is."""
        return 2 if any(nodule.votes >= 2 for nodule in self.nodules) else 1

    @cached_property
    def judged_nodules(self) -> tuple[SubsetNodule, ...]:
        """Nodules with a patch, of 3 mm or more, that enough readers drew, in the order of their ids."""
        least = self.min_votes if any(nodule.votes for nodule in self.nodules) else 0
        return tuple(
            nodule
            for nodule in self.nodules
            if nodule.patch is not None and nodule.votes >= least and nodule.diameter_mm >= MIN_DIAMETER_MM
        )


def open_subset(folder: Path, part: Split = "test") -> Subset:
    """Reads the tables and datalists of a cohort.

    Raises:
        InputError: when a file of contract C5 is missing or damaged, or the part has no patient.
    """
    cohort = _read_json(folder / "cohort.json")
    lists = {name: _read_json(folder / f"{name}.json").get(part, []) for name in ("segmentation", "nodules", "lungs")}
    series, nodules = (_read_table(folder / f"{name}.csv") for name in ("series", "nodules"))
    series, nodules = series[series["split"] == part], nodules[nodules["split"] == part]
    if series.empty:
        raise InputError(
            f"{folder}: its {part} part has no patient, nothing can be judged. Prepare it with more patients, or with "
            "--split test."
        )
    found = _nodules(folder, nodules, lists, series)
    digest = hashlib.sha256(json.dumps([part, cohort.get("split_hash"), lists], sort_keys=True).encode())
    digest.update(nodules.to_csv().encode() + series.to_csv().encode())
    return Subset(
        folder=folder,
        part=part,
        split_hash=str(cohort.get("split_hash")),
        settings=cohort.get("settings", {}),
        sources=tuple(sorted({str(source.get("name")) for source in cohort.get("sources", [])})),
        identity=digest.hexdigest(),
        nodules=found,
        series=_series(folder, series, found),
        lungs=tuple(lists["lungs"]),
    )


def _nodules(
    folder: Path, table: pd.DataFrame, lists: Mapping[str, list[dict[str, Any]]], series: pd.DataFrame
) -> tuple[SubsetNodule, ...]:
    patches = {entry["nodule_id"]: folder / entry["nodule"] for entry in lists["nodules"]}
    drawn = {Path(entry["image"]).stem for entry in lists["segmentation"] if entry.get("kind") == "nodule"}
    slice_mm = dict(zip(series["series_id"], series["spacing_slice_mm"], strict=True))
    found = []
    for row in table.sort_values("nodule_id").to_dict("records"):
        centre = (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"]))
        known_mm = float(slice_mm.get(row["series_id"], np.nan))
        found.append(
            SubsetNodule(
                id=row["nodule_id"],
                patient=row["patient_id"],
                series=row["series_id"],
                source=row["source"],
                category=row["texture_class"],
                diameter_mm=float(row["diameter_mm"]),
                votes=int(row["votes"]),
                patch=patches.get(row["nodule_id"]),
                drawn=row["nodule_id"] in drawn,
                centre_lps_mm=centre if np.isfinite(centre).all() else None,
                slice_mm=known_mm if known_mm > 0 else _CROP_SLICE_MM,
            )
        )
    return tuple(found)


def _series(folder: Path, table: pd.DataFrame, nodules: tuple[SubsetNodule, ...]) -> tuple[SubsetSeries, ...]:
    written: dict[str, list[int]] = {}
    for path in (folder / "slices").glob("*.nii.gz"):
        series_id, _, index = path.name.removesuffix(".nii.gz").rpartition("_")
        written.setdefault(series_id, []).append(int(index))
    placed = [nodule for nodule in nodules if nodule.centre_lps_mm is not None]
    found = []
    for row in table.sort_values("series_id").to_dict("records"):
        if indices := written.get(row["series_id"]):
            spacing = (row["spacing_slice_mm"], row["spacing_row_mm"], row["spacing_column_mm"])
            found.append(
                SubsetSeries(
                    id=row["series_id"],
                    patient=row["patient_id"],
                    source=row["source"],
                    spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
                    expert_lung=row["lung_mask"] == "data",
                    expert_nodule=row["nodule_mask"] == "data",
                    nodules=tuple(nodule for nodule in placed if nodule.series == row["series_id"]),
                    indices=tuple(sorted(indices)),
                )
            )
    return tuple(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a file of a cohort, got {error}. Give --cohort a folder that scripts/prepare.py wrote."
        ) from error
    return dict(content)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"series_id": str, "patient_id": str, "nodule_id": str}, keep_default_na=True)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(
            f"{path}: expected a table of a cohort, got {error}. Give --cohort a folder that scripts/prepare.py wrote."
        ) from error
