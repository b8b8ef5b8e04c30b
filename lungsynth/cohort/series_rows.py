"""The rows that a cohort's files are made of: those of one series or folder, and all together.

`SeriesRows` are what preparing a series, or a folder of crops, leaves behind. They are written as JSON last, when all
its files are there: what has rows that can be read back is finished, and a run that was stopped goes on with the rest.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lungsynth.cohort.schema import COHORT_FORMAT, NoduleRow, SeriesRow, SliceRow, from_format_1, from_mapping
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json
from lungsynth.io.names import file_stem
from lungsynth.io.stored import anything, lists, mappings, objects, read_json, texts

__all__ = ["FINISHED", "CohortRows", "SeriesRows"]

FINISHED = ".parts"  # folder of a cohort that holds the rows of what is finished
_REMEDY = "Remove the file and prepare the cohort again."
_OBJECTS = lists(mappings(anything))
_ROWS = objects(
    {
        **dict.fromkeys(("series", "slices", "nodules"), _OBJECTS),
        "fingerprint": texts(),
        "notes": lists(texts()),
        "figures": texts(),
    },
    {"task_id": texts(), "part_id": texts()},
)


@dataclass(frozen=True, kw_only=True)
class SeriesRows:
    """The rows of one series or one folder of crops.

    Args:
        task_id: what was prepared.
        fingerprint: of its files; others need to be prepared again.
        notes: what was left out and why, for the report.
        figures: what was measured on the way, for the report (Markdown).
    """

    task_id: str
    fingerprint: str
    series: tuple[SeriesRow, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    nodules: tuple[NoduleRow, ...] = ()
    notes: tuple[str, ...] = ()
    figures: str = ""

    def files(self) -> Iterator[str]:
        """Files of these rows, relative to the cohort."""
        for row in self.slices:
            yield from (row.image, row.label)
            if row.normal:
                yield row.lung
        for nodule in self.nodules:
            if nodule.has_patch:
                yield nodule.patch
                yield nodule.window
            if nodule.has_cube:
                yield nodule.cube

    def save(self, cohort: Path) -> Path:
        """Writes `<task_id>.json` into the folder of finished rows."""
        path = self.path(cohort, self.task_id)
        write_json(path, {"format": COHORT_FORMAT, **asdict(self)})
        return path

    @staticmethod
    def path(cohort: Path, task_id: str) -> Path:
        """Where the finished rows of a task stand."""
        return cohort / FINISHED / f"{file_stem(task_id)}.json"

    @classmethod
    def load(cls, cohort: Path, task_id: str, *, fingerprint: str) -> "SeriesRows | None":
        """The finished rows, or None when there are none or when the files have changed since."""
        path = cls.path(cohort, task_id)
        rows = cls.read(path) if path.exists() else None
        return rows if rows is not None and rows.fingerprint == fingerprint else None

    @classmethod
    def read(cls, path: Path) -> "SeriesRows":
        """The finished rows that `save` wrote to `path`.

        Raises:
            InputError: naming the file, when it is damaged.
        """
        stored: dict[str, Any] = from_format_1(read_json(path, _ROWS, what="rows of a cohort", remedy=_REMEDY))
        try:
            rows = cls(
                task_id=stored["task_id"],
                fingerprint=stored["fingerprint"],
                series=tuple(from_mapping(SeriesRow, row) for row in stored["series"]),
                slices=tuple(from_mapping(SliceRow, row) for row in stored["slices"]),
                nodules=tuple(from_mapping(NoduleRow, row) for row in stored["nodules"]),
                notes=tuple(stored["notes"]),
                figures=stored["figures"],
            )
        except InputError as error:
            raise InputError(f"{path}: {error}. {_REMEDY}") from error
        own = {row.series_id for row in rows.series}
        named = {row.series_id for row in rows.slices} | {row.series_id for row in rows.nodules}
        if strangers := named - own:
            raise InputError(f"{path}: has rows of the series {min(strangers)!r}, which it lacks. {_REMEDY}")
        return rows


@dataclass(frozen=True, kw_only=True)
class CohortRows:
    """All rows of a cohort, each in the split of its series.

    Args:
        pieces: in the order of their ids.
        splits: by series id.
    """

    pieces: tuple[SeriesRows, ...]
    splits: dict[str, str]

    @cached_property
    def series(self) -> tuple[SeriesRow, ...]:
        """In the order of their ids."""
        rows = (replace(row, split=self.splits[row.series_id]) for piece in self.pieces for row in piece.series)
        return tuple(sorted(rows, key=lambda row: row.series_id))

    @cached_property
    def slices(self) -> tuple[SliceRow, ...]:
        """In the order of their ids."""
        return tuple(sorted((row for piece in self.pieces for row in piece.slices), key=lambda row: row.slice_id))

    @cached_property
    def nodules(self) -> tuple[NoduleRow, ...]:
        """In the order of their ids."""
        rows = (replace(row, split=self.splits[row.series_id]) for piece in self.pieces for row in piece.nodules)
        return tuple(sorted(rows, key=lambda row: row.nodule_id))
