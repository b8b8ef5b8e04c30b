"""MONAI data lists of a cohort, from which the bundles train (docs/reference/formats.md, "Data lists")."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lungsynth.cohort.schema import (
    CubeEntry,
    DiseasedEntry,
    LungEntry,
    NoduleEntry,
    NoduleRow,
    SegmentationEntry,
    SeriesRow,
    SliceRow,
    columns,
    to_json,
)
from lungsynth.cohort.series_rows import CohortRows
from lungsynth.cohort.split import EXCLUDED, SPLITS

__all__ = ["Datalist", "build_datalists"]

Datalist = dict[str, list[dict[str, Any]]]
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
