"""What the files of a cohort hold: a dataclass for each table or data list, a field for each column or key.

`prepare` writes these rows and `lungsynth.cohort.reader.Cohort` gives them back; docs/reference/formats.md is generated
from them. A field's metadata say what it means, its unit, and whether it is a column (`columns`); the other fields are
known while a cohort is made, and read from its lists again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from lungsynth.errors import InputError
from lungsynth.io.names import file_stem
from lungsynth.io.stored import Check, Unfit, file_names, lists, of_type, one_of, shortened

__all__ = [
    "CLASSES",
    "COHORT_FORMAT",
    "EXCLUDED",
    "FORMAT_1_NAMES",
    "RATINGS",
    "SPLITS",
    "Column",
    "CubeEntry",
    "DiseasedEntry",
    "LungEntry",
    "NoduleEntry",
    "NoduleRow",
    "SegmentationEntry",
    "SeriesRow",
    "SliceRow",
    "about",
    "columns",
    "from_format_1",
    "from_mapping",
    "nodule_id",
    "slice_id",
    "to_json",
]

COHORT_FORMAT = 2
SPLITS = ("training", "validation", "test")
EXCLUDED = "excluded"
CLASSES = ("solid", "part_solid", "ground_glass", "unknown")
# Fields that are, or become, names of files of a cohort.
_NAMES = ("nodule", "cube", "lung", "image", "label", "slice_id", "nodule_id", "candidate_id")
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

Row = TypeVar("Row")


def about(
    description: str, *, unit: str = "", column: bool = True, choices: Sequence[str] | None = None
) -> Mapping[str, Any]:
    """Metadata of a field: its meaning, its unit (none when empty), whether it is a column or key of a file, and the
    only texts that it may be or hold.
    """
    return {"description": description, "unit": unit, "column": column, "choices": choices}


@dataclass(frozen=True)
class Column:
    """A column of a table or key of a data list, as the documentation shows it; `kind` is its Python type."""

    name: str
    kind: Any
    description: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """A row of `series.csv`: a scan, or the crops of one."""

    series_id: str = field(metadata=about("SeriesInstanceUID, or the name of the file"))
    patient_id: str = field(metadata=about("PatientID, or the series where nobody tells the patient"))
    patient_known: bool = field(default=True, metadata=about("false where `patient_id` is only the series"))
    source: str = field(metadata=about("name of the collection"))
    licence: str = field(default="", metadata=about("as a table of the user says; empty: the collection's"))
    split: str = field(
        default="", metadata=about("`training`, `validation`, `test` or `excluded`", choices=("", *SPLITS, EXCLUDED))
    )
    slices: int = field(default=0, metadata=about("how many were written; 0 for crops"))
    spacing_slice_mm: float | None = field(default=None, metadata=about("of slices; empty for crops", unit="mm"))
    spacing_row_mm: float | None = field(default=None, metadata=about("of rows; empty for crops", unit="mm"))
    spacing_column_mm: float | None = field(default=None, metadata=about("of columns; empty for crops", unit="mm"))
    lung_mask: str = field(
        metadata=about("where it is from: `data`, `threshold` or `none`", choices=("data", "threshold", "none"))
    )
    nodule_mask: str = field(
        metadata=about("where it is from: `data`, `network` or `none`", choices=("data", "network", "none"))
    )
    family: str = field(default="", metadata=about("collections that share patients", column=False))
    folder: str = field(default="", metadata=about("name of the source's folder", column=False))
    labelled: tuple[str, ...] = field(
        default=(), metadata=about("what an expert drew: `lung`, `nodule`", column=False, choices=("lung", "nodule"))
    )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(slice, row, column); NaN where unknown."""
        spacings = (self.spacing_slice_mm, self.spacing_row_mm, self.spacing_column_mm)
        slice_mm, row_mm, column_mm = (math.nan if value is None else value for value in spacings)
        return slice_mm, row_mm, column_mm


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """An axial slice that was written; no table lists them, but file names and data lists do."""

    slice_id: str = field(metadata=about("`<series_id>_<index:04d>`, the series as a file name"))
    series_id: str = field(metadata=about("whose slice"))
    shows_nodule: bool = field(metadata=about("whether a pixel is a labelled nodule"))
    normal: bool = field(metadata=about("whether it is in `lungs/`"))

    def __post_init__(self) -> None:
        if not self.slice_id.rpartition("_")[2].isdecimal():
            raise InputError(f"a slice_id ends in an index, one is {shortened(self.slice_id)}")

    @property
    def index(self) -> int:
        """Index in its series, from inferior to superior."""
        return int(self.slice_id.rpartition("_")[2])

    @property
    def image(self) -> str:
        """Its file, relative to the cohort."""
        return f"slices/{self.slice_id}.nii.gz"

    @property
    def label(self) -> str:
        """Its label map."""
        return f"labels/{self.slice_id}.nii.gz"

    @property
    def lung(self) -> str:
        """Its file on the generator's grid; only a normal slice has one."""
        return f"lungs/{self.slice_id}.npz"


@dataclass(frozen=True, kw_only=True)
class _Owner:
    patient_id: str = field(default="", metadata=about("of the series"))
    series_id: str = field(default="", metadata=about("whose it is"))
    source: str = field(default="", metadata=about("name of the collection"))


@dataclass(frozen=True, kw_only=True)
class _Measurements:
    diameter_mm: float = field(
        default=math.nan, metadata=about("of the sphere of equal volume, or of the largest slice's disc", unit="mm")
    )
    votes: int = field(default=0, metadata=about("readers whose agreement makes the mask; 0 where nobody drew it"))
    mean_hu: float = field(default=math.nan, metadata=about("over the mask", unit="HU"))
    solid_fraction: float = field(default=math.nan, metadata=about("share of the mask above -300 HU"))
    reader_diameter_mm: float | None = field(default=None, metadata=about("the readers' own", unit="mm"))
    malignancy: float | None = field(default=None, metadata=about("mean rating, 1 to 5"))
    texture: float | None = field(default=None, metadata=about("mean rating, 1 (ground glass) to 5 (solid)"))
    spiculation: float | None = field(default=None, metadata=about("mean rating, 1 to 5"))
    lobulation: float | None = field(default=None, metadata=about("mean rating, 1 to 5"))
    margin: float | None = field(default=None, metadata=about("mean rating, 1 (poorly defined) to 5 (sharp)"))
    sphericity: float | None = field(default=None, metadata=about("mean rating, 1 (linear) to 5 (round)"))
    calcification: float | None = field(default=None, metadata=about("mean rating, 1 to 6 (absent)"))
    subtlety: float | None = field(default=None, metadata=about("mean rating, 1 (subtle) to 5 (obvious)"))
    internal_structure: float | None = field(default=None, metadata=about("mean rating, 1 (soft tissue) to 4 (air)"))


@dataclass(frozen=True, kw_only=True)
class _NoduleIds:
    nodule_id: str = field(metadata=about("`<series_id>_n<number:02d>`, or as its source names it, as a file name"))
    patient_id: str = field(metadata=about("of the series"))
    series_id: str = field(metadata=about("whose it is"))
    source: str = field(metadata=about("name of the collection"))
    split: str = field(default="", metadata=about("of its patient", choices=("", *SPLITS, EXCLUDED)))
    texture_class: str = field(metadata=about("`ground_glass`, `part_solid`, `solid` or `unknown`", choices=CLASSES))


# Fields of the last base come first: what names a row, then what was measured, then whose it is.
@dataclass(frozen=True, kw_only=True)
class NoduleRow(_Measurements, _NoduleIds):
    """A row of `nodules.csv`: every nodule, also one that is too large for a patch."""

    x_mm: float | None = field(default=None, metadata=about("centre, LPS; empty where unknown", unit="mm"))
    y_mm: float | None = field(default=None, metadata=about("centre, LPS; empty where unknown", unit="mm"))
    z_mm: float | None = field(default=None, metadata=about("centre, LPS; empty where unknown", unit="mm"))
    has_patch: bool = field(default=True, metadata=about("whether it fits into a patch", column=False))
    has_cube: bool = field(default=False, metadata=about("whether it is known in three dimensions", column=False))
    expert_mask: bool = field(default=True, metadata=about("whether an expert drew it", column=False))
    sphere: bool = field(default=False, metadata=about("whether only centre and diameter are known", column=False))

    @property
    def centre_lps_mm(self) -> tuple[float, float, float] | None:
        """(x, y, z); None where unknown."""
        if self.x_mm is None or self.y_mm is None or self.z_mm is None:
            return None
        return self.x_mm, self.y_mm, self.z_mm

    @property
    def patch(self) -> str:
        """File of its patches, relative to the cohort, if it has any."""
        return f"nodules/{self.nodule_id}.npz"

    @property
    def cube(self) -> str:
        """File of its cube, if it has one."""
        return f"cubes/{self.nodule_id}.npz"

    @property
    def window(self) -> str:
        """File of its window, if it has patches."""
        return f"windows/{self.nodule_id}.npz"


@dataclass(frozen=True, kw_only=True)
class _PatchFile:
    nodule: str = field(metadata=about("npz of its patches"))
    nodule_id: str = field(metadata=about("as in `nodules.csv`"))
    category: str = field(default="unknown", metadata=about("its texture class"))


@dataclass(frozen=True, kw_only=True)
class NoduleEntry(_Owner, _Measurements, _PatchFile):
    """An entry of `nodules.json`: a nodule with patches."""


@dataclass(frozen=True, kw_only=True)
class _CubeFile:
    cube: str = field(metadata=about("npz of its cube"))
    nodule_id: str = field(metadata=about("as in `nodules.csv`"))
    category: str = field(default="unknown", metadata=about("its texture class"))


@dataclass(frozen=True, kw_only=True)
class CubeEntry(_Owner, _Measurements, _CubeFile):
    """An entry of `cubes.json`: a nodule that is known in three dimensions."""


@dataclass(frozen=True, kw_only=True)
class _LungFiles:
    lung: str = field(metadata=about("npz on the generator's grid"))
    image: str = field(metadata=about("the slice on its own grid"))
    label: str = field(metadata=about("its label map"))
    category: str = field(default="normal", metadata=about("`normal`"))


@dataclass(frozen=True, kw_only=True)
class LungEntry(_Owner, _LungFiles):
    """An entry of `lungs.json`: a slice without any labelled nodule near it."""

    @property
    def slice_id(self) -> str:
        """Of the slice."""
        return _slice_id(self.image)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    image: str = field(metadata=about("a slice, or the npz of a nodule's window"))
    label: str = field(metadata=about("its label map, or the same npz"))


@dataclass(frozen=True, kw_only=True)
class _Labels:
    labelled: tuple[str, ...] = field(
        metadata=about("what an expert drew: `lung`, `nodule`; empty for a sphere", choices=("lung", "nodule"))
    )
    kind: str = field(
        metadata=about(
            "`slice`, `nodule`, or `sphere` (only centre and diameter are known)", choices=("slice", "nodule", "sphere")
        )
    )


@dataclass(frozen=True, kw_only=True)
class SegmentationEntry(_Owner, _Labels, _Pair):
    """An entry of `segmentation.json`: a slice or a nodule on which an expert drew, or a nodule known as a sphere."""


@dataclass(frozen=True, kw_only=True)
class DiseasedEntry(_Owner, _Pair):
    """An entry of `enhancement.json`: a slice that shows a nodule."""

    @property
    def slice_id(self) -> str:
        """Of the slice."""
        return _slice_id(self.image)


def slice_id(series_id: str, index: int) -> str:
    """Id of a slice of a series, which is the stem of its files too."""
    return f"{file_stem(series_id)}_{index:04d}"


def nodule_id(owner: str, number: int) -> str:
    """Id of a nodule of a series or patient, which is the stem of its files too."""
    return f"{file_stem(owner)}_n{number:02d}"


def columns(row_type: type) -> tuple[Column, ...]:
    """The columns of a table, or keys of a data list, in the order of the file."""
    return tuple(
        Column(name=item.name, kind=item.type, description=item.metadata["description"], unit=item.metadata["unit"])
        for item in fields(row_type)
        if item.metadata["column"]
    )


def to_json(entry: Any) -> dict[str, Any]:
    """An entry of a data list as it stands in the file."""
    values = {column.name: getattr(entry, column.name) for column in columns(type(entry))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_mapping(row_type: type[Row], values: Mapping[str, Any]) -> Row:
    """A row or entry from what stands in a file; keys that it does not know are left out, null is the default.

    Raises:
        InputError: when a value without a default is missing, or one is of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"expected an object for each row or entry, one is {shortened(values)}")
    checks, needed = _checks(row_type)  # type: ignore[arg-type]
    given = {name: values[name] for name in checks if values.get(name) is not None}
    if lacking := [name for name in needed if name not in given]:
        raise InputError(f"expected {', '.join(lacking)} in each row or entry, one has none")
    try:
        for name, value in given.items():
            checks[name](value)
    except Unfit as error:
        raise InputError(f"{name} of a row or entry should be {error.wanted}, one is {shortened(value)}") from None
    return row_type(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@cache
def _checks(row_type: type) -> tuple[Mapping[str, Check], tuple[str, ...]]:
    """By field, what it may hold; and the fields without a default."""
    own = fields(row_type)
    return {item.name: _check(item) for item in own}, tuple(item.name for item in own if item.default is MISSING)


def _check(item: Field[Any]) -> Check:
    if item.name in _NAMES:
        return file_names
    if (choices := item.metadata["choices"]) is None:
        return of_type(item.type)
    return one_of(*choices) if item.type is str else lists(one_of(*choices))


FORMAT_1_NAMES: Mapping[str, str] = {"ball": "sphere", "part_id": "task_id", "separation": "pseudo_labels"}


def from_format_1(content: Any) -> Any:
    """What stands in a JSON file of a cohort of `format: 1`, in the words of today; other content stays as it is."""
    if isinstance(content, list):
        return [from_format_1(item) for item in content]
    if not isinstance(content, dict):
        return content
    renamed = {FORMAT_1_NAMES.get(key, key): from_format_1(value) for key, value in content.items()}
    if renamed.get("kind") == "ball":
        renamed["kind"] = "sphere"
    if isinstance(attributes := renamed.pop("attributes", {}), dict):
        renamed |= attributes
    centre = renamed.pop("centre_lps_mm", None)
    return renamed | dict(zip(("x_mm", "y_mm", "z_mm"), centre if isinstance(centre, list) else (), strict=False))


def _slice_id(image: str) -> str:
    return image.rpartition("/")[2].removesuffix(".nii.gz")
