"""MONAI data lists of a cohort, from which the bundles train (docs/reference/formats.md, "Data lists")."""

import hmac
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from lungsynth.cohort.schema import (
    EXCLUDED,
    SPLITS,
    CubeEntry,
    DiseasedEntry,
    LungEntry,
    NoduleEntry,
    NoduleRow,
    SegmentationEntry,
    SeriesRow,
    SliceRow,
    columns,
    from_mapping,
    to_json,
)
from lungsynth.cohort.series_rows import CohortRows
from lungsynth.errors import InputError
from lungsynth.io.tables import csv_text

__all__ = ["Datalist", "Pseudonyms", "build_datalists"]

Datalist = dict[str, list[dict[str, Any]]]
Listed = TypeVar("Listed", NoduleEntry, LungEntry, DiseasedEntry)
Entry = SegmentationEntry | NoduleEntry | CubeEntry | LungEntry | DiseasedEntry

_NAMES: dict[type[Entry], str] = {
    SegmentationEntry: "segmentation",
    NoduleEntry: "nodules",
    CubeEntry: "cubes",
    LungEntry: "lungs",
    DiseasedEntry: "enhancement",
}
_FOUR_DECIMALS = ("diameter_mm", "mean_hu", "solid_fraction")  # as in `nodules.csv`


def build_datalists(rows: CohortRows) -> dict[str, Datalist]:
    """Builds the lists by file name, without `.json`; what is excluded from the split stands in none.

    Slices on which no expert drew anything are not in `segmentation`: there is nothing to learn or to measure on them.
    Nodules of which only centre and diameter are known stand there as a kind of their own, `sphere`: a training may ask
    for them, nothing is measured on them.
    """
    lists: dict[str, Datalist] = {name: {split: [] for split in SPLITS} for name in _NAMES.values()}
    series = {row.series_id: row for row in rows.series}
    for entry in _entries(rows, series):
        split = rows.splits[entry.series_id]
        if split != EXCLUDED:
            lists[_NAMES[type(entry)]][split].append(to_json(entry))
    return lists


@dataclass(frozen=True, kw_only=True)
class Pseudonyms:
    """What patients, nodules and slices of a cohort are called outside of it; `pseudonyms.csv` is the map.

    A name is a hash that is keyed by all ids of the cohort: equal cohorts give equal names, two cohorts share none, and
    nobody who lacks the cohort can try out ids.

    Args:
        patients: by patient id.
        nodules: by nodule id.
        slices: of normal slices and of those with nodules, by slice id.
    """

    patients: Mapping[str, str]
    nodules: Mapping[str, str]
    slices: Mapping[str, str]

    @classmethod
    def of(cls, nodules: Sequence[NoduleEntry], slices: Sequence[LungEntry | DiseasedEntry]) -> "Pseudonyms":
        """Those of the entries of `nodules.json`, and of `lungs.json` and `enhancement.json`, of all splits."""
        ids = {
            "patients": {entry.patient_id for entry in (*nodules, *slices)} - {""},
            "nodules": {entry.nodule_id for entry in nodules},
            "slices": {entry.slice_id for entry in slices},
        }
        key = json.dumps({kind: sorted(own) for kind, own in ids.items()}).encode()
        return cls(
            **{kind: {known: _keyed(key, kind[:-1], known) for known in sorted(own)} for kind, own in ids.items()}
        )

    @classmethod
    def of_lists(cls, lists: Mapping[str, Datalist]) -> "Pseudonyms":
        """Those of data lists as `build_datalists` gives them."""

        def entries(name: str, kind: type[Listed]) -> list[Listed]:
            return [from_mapping(kind, entry) for part in lists[name].values() for entry in part]

        slices: list[LungEntry | DiseasedEntry] = [*entries("lungs", LungEntry)]
        slices += entries("enhancement", DiseasedEntry)
        return cls.of(entries("nodules", NoduleEntry), slices)

    def csv(self) -> str:
        """The content of `pseudonyms.csv`."""
        rows = [(kind[:-1], name, known) for kind, names in vars(self).items() for known, name in names.items()]
        return csv_text(pd.DataFrame(rows, columns=["kind", "pseudonym", "id"]))

    def named(self, kind: Literal["patients", "nodules", "slices"], known: str) -> str:
        """The pseudonym of an id.

        Raises:
            InputError: when it has none.
        """
        names: Mapping[str, str] = getattr(self, kind)
        if known not in names:
            raise InputError(f"pseudonyms.csv of the cohort lacks {known}. Remove the file, and it is made anew.")
        return names[known]

    @classmethod
    def read(cls, path: Path) -> "Pseudonyms":
        """The names that a `pseudonyms.csv` gives.

        Raises:
            InputError: naming the file, when it is damaged or gives a name twice.
        """
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            rows = list(zip(table["kind"], table["pseudonym"], table["id"], strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: cannot be read as pseudonyms of a cohort ({error}). Remove it.") from error
        kinds = [item.name for item in fields(cls)]
        given = {kind: {known: name for each, name, known in rows if each == kind[:-1]} for kind in kinds}
        names = [name for _, name, _ in rows]
        odd = [name for name in names if not re.fullmatch(r"[\w.-]{1,96}", name, re.ASCII) or not name.strip(".")]
        if odd or len(set(names)) < len(names):
            what = f"names {odd[0]!r}" if odd else "gives a name twice"
            raise InputError(f"{path}: {what}. Remove the file, and it is made anew.")
        return cls(**given)


def _keyed(key: bytes, kind: str, known: str) -> str:
    return f"{kind}-{hmac.new(key, f'{kind}/{known}'.encode(), 'sha256').hexdigest()[:12]}"


def _entries(rows: CohortRows, series: dict[str, SeriesRow]) -> Iterator[Entry]:
    for row in rows.slices:
        yield from _of_slice(row, series[row.series_id])
    for nodule in rows.nodules:
        if nodule.has_patch:
            yield from _of_nodule(nodule)


def _of_slice(row: SliceRow, series: SeriesRow) -> Iterator[Entry]:
    owner = {"patient_id": series.patient_id, "series_id": series.series_id, "source": series.source}
    if series.labelled:
        yield SegmentationEntry(image=row.image, label=row.label, labelled=series.labelled, kind="slice", **owner)
    if row.normal:
        yield LungEntry(lung=row.lung, image=row.image, label=row.label, **owner)
    if row.shows_nodule:
        yield DiseasedEntry(image=row.image, label=row.label, **owner)


def _of_nodule(nodule: NoduleRow) -> Iterator[Entry]:
    facts = {"category": nodule.texture_class, **_shared_facts(nodule)}
    yield NoduleEntry(nodule=nodule.patch, **facts)
    if nodule.has_cube:
        yield CubeEntry(cube=nodule.cube, **facts)
    owner = {name: facts[name] for name in ("patient_id", "series_id", "source")}
    if nodule.expert_mask:
        yield SegmentationEntry(image=nodule.window, label=nodule.window, labelled=("nodule",), kind="nodule", **owner)
    elif nodule.sphere:
        yield SegmentationEntry(image=nodule.window, label=nodule.window, labelled=(), kind="sphere", **owner)


def _shared_facts(nodule: NoduleRow) -> dict[str, Any]:
    """What a nodule's entries say as its row does."""
    values, names = asdict(nodule), {column.name for column in columns(NoduleEntry)}
    rounded = {name: round(values[name], 4) for name in _FOUR_DECIMALS}
    return {name: value for name, value in {**values, **rounded}.items() if name in names}
