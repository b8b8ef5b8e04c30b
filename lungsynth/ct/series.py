"""What a source holds, before any pixel is read: the files of a series, its masks and its annotations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lungsynth.errors import InputError

__all__ = ["Annotations", "NoduleSphere", "Problem", "SeriesFiles"]


@dataclass(frozen=True, kw_only=True)
class NoduleSphere:
    """A nodule given by its centre and diameter only, a row of LUNA16's `annotations.csv`.

    Args:
        series_id: SeriesInstanceUID, or the id of a synthetic sample.
        centre_lps_mm: (x, y, z) in LPS millimetres.
        diameter_mm: positive.

    Raises:
        InputError: when the diameter is not positive.
    """

    series_id: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float

    def __post_init__(self) -> None:
        if not self.diameter_mm > 0:
            raise InputError(f"{self.series_id}: a nodule's diameter_mm must be positive, got {self.diameter_mm:g}.")


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What readers said about a series, beside mask volumes.

    Args:
        lidc_xml: the four readers' contours.
        voc_xml: Pascal-VOC boxes; each file is named by the SOPInstanceUID of its slice.
        spheres: rows of an `annotations.csv`.
    """

    lidc_xml: Path | None = None
    voc_xml: tuple[Path, ...] = ()
    spheres: tuple[NoduleSphere, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SeriesFiles:
    """The files of one CT series.

    Args:
        kind: which reader opens it.
        series_id: SeriesInstanceUID, or the file's stem without `_ct`.
        patient_id: `series_id` where no patient is known.
        patient_known: False when `patient_id` is only the series.
        files: DICOM: all slices, in any order; otherwise one file.
        lung_mask: a volume on the same grid.
        nodule_mask: a volume on the same grid.
        annotations: see `Annotations`.

    Raises:
        InputError: when there is no file.
    """

    kind: Literal["dicom", "nifti", "metaimage"]
    series_id: str
    patient_id: str
    patient_known: bool
    files: tuple[Path, ...]
    lung_mask: Path | None = None
    nodule_mask: Path | None = None
    annotations: Annotations = field(default_factory=Annotations)

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError(f"Series {self.series_id} has no files; give at least one.")


@dataclass(frozen=True)
class Problem:
    """A file or series that could not be used, and the sentence that says why and what to do."""

    path: Path
    message: str
