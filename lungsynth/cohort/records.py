"""What preparing one piece of a source leaves behind: the rows that the cohort's tables are made of.

`SeriesRows` stand for a series or a folder of crops. They are written as JSON last, when all of the files are there: a
part that can be read back is finished, and a run that was stopped goes on from the parts it finds.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lungsynth.io.atomic import write_text

__all__ = ["RATINGS", "NoduleRow", "SeriesRow", "SeriesRows", "SliceRow"]

RATINGS = (
    "malignancy",
    "texture",
    "spiculation",
    "lobulation",
    "margin",
    "sphericity",
    "calcification",
    "subtlety",
    "internal_structure",
)


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One row of `series.csv`. Spacings are None for crops.

    Not columns: `family` (see `sources.Collection`), `folder` (the name of the source's folder), and `labelled`
    (what an expert drew, contract C4.2).
    """

    series_id: str
    patient_id: str
    patient_known: bool
    source: str
    family: str
    folder: str
    slices: int
    spacing_slice_mm: float | None = None
    spacing_row_mm: float | None = None
    spacing_column_mm: float | None = None
    lung_mask: str
    nodule_mask: str
    labelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """One axial slice: `shows_nodule` when a pixel is a labelled nodule, `normal` when it is in `lungs/`."""

    slice_id: str
    series_id: str
    shows_nodule: bool
    normal: bool


@dataclass(frozen=True, kw_only=True)
class NoduleRow:
    """One row of `nodules.csv`; `has_patch` is False for tumours that do not fit into a patch, `has_cube` where a
    nodule is not known in three dimensions (contract C2.5), `expert_mask` where nobody drew it: where only centre and
    diameter were given (`ball`), or where the network found it.
    """

    nodule_id: str
    patient_id: str
    series_id: str
    source: str
    texture_class: str
    diameter_mm: float
    votes: int
    mean_hu: float
    solid_fraction: float
    attributes: dict[str, float] = field(default_factory=dict)
    centre_lps_mm: tuple[float, float, float] | None = None
    has_patch: bool = True
    has_cube: bool = False
    expert_mask: bool = True
    ball: bool = False


@dataclass(frozen=True, kw_only=True)
class SeriesRows:
    """The rows of one series or one folder of crops.

    Args:
        notes: what was left out and why, for the report.
        figures: what was measured on the way, for the report (Markdown).
    """

    part_id: str
    fingerprint: str
    series: tuple[SeriesRow, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    nodules: tuple[NoduleRow, ...] = ()
    notes: tuple[str, ...] = ()
    figures: str = ""

    def save(self, folder: Path) -> Path:
        """Writes `<part_id>.json`, whole or not at all."""
        path = folder / f"{self.part_id}.json"
        write_text(path, json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, folder: Path, part_id: str, *, fingerprint: str) -> "SeriesRows | None":
        """The finished part, or None when there is none or when its files have changed since."""
        path = folder / f"{part_id}.json"
        part = cls.read(path) if path.exists() else None
        return part if part is not None and part.fingerprint == fingerprint else None

    @classmethod
    def read(cls, path: Path) -> "SeriesRows":
        """The finished part that `save` wrote to `path`."""
        stored = json.loads(path.read_text())
        rows = {
            "series": [SeriesRow(**{**row, "labelled": tuple(row["labelled"])}) for row in stored["series"]],
            "slices": [SliceRow(**row) for row in stored["slices"]],
            "nodules": [NoduleRow(**{**row, "centre_lps_mm": _point(row)}) for row in stored["nodules"]],
            "notes": stored["notes"],
        }
        return cls(
            part_id=stored["part_id"],
            fingerprint=stored["fingerprint"],
            figures=stored["figures"],
            **{name: tuple(values) for name, values in rows.items()},
        )


def _point(row: dict) -> tuple[float, float, float] | None:
    return None if row["centre_lps_mm"] is None else tuple(row["centre_lps_mm"])
