"""What a source holds, before any pixel is read: the files of a series, its masks and its annotations."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lungsynth.errors import InputError
from lungsynth.io.names import readable

_LARGEST_MM = 300.0  # of a nodule; a lung is not longer

__all__ = ["Annotations", "MaskFile", "NoduleSphere", "Problem", "SeriesFiles"]


@dataclass(frozen=True, kw_only=True)
class NoduleSphere:
    """A nodule given by its centre and diameter only, a row of LUNA16's `annotations.csv`.

    Args:
        series_id: SeriesInstanceUID, or the id of a synthetic sample.
        centre_lps_mm: (x, y, z) in LPS millimetres.
        diameter_mm: positive, at most 300.

    Raises:
        InputError: when the diameter is not so, or the centre is no place.
    """

    series_id: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float

    def __post_init__(self) -> None:
        if not 0 < self.diameter_mm <= _LARGEST_MM:
            raise InputError(
                f"{self.series_id}: a nodule's diameter_mm must be positive and at most {_LARGEST_MM:g}, got "
                f"{self.diameter_mm:g}."
            )
        if not all(map(math.isfinite, self.centre_lps_mm)):
            raise InputError(f"{self.series_id}: a nodule's centre must be three numbers, got {self.centre_lps_mm}.")


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
class MaskFile:
    """A mask volume of a series, and what its values mean; values that are in no tuple are not used.

    Args:
        path: NIfTI or MetaImage on the grid of its image.
        lung: values that are lung.
        nodule: values that are nodule.
        finding: values that are neither: where they lie, nobody says that the lung is normal.
        votes: the values of nodules count readers; otherwise several values count nodules.
    """

    path: Path
    lung: tuple[int, ...] = ()
    nodule: tuple[int, ...] = ()
    finding: tuple[int, ...] = ()
    votes: bool = False


@dataclass(frozen=True, kw_only=True)
class SeriesFiles:
    """The files of one CT series. Its ids become one line of text that can be printed and written.

    Args:
        kind: which reader opens it.
        series_id: SeriesInstanceUID, or the file's stem without `_ct`.
        patient_id: `series_id` where no patient is known.
        patient_known: False when `patient_id` is only the series.
        files: DICOM: all slices, in any order; otherwise one file.
        patient_from: who names the patient, for the report.
        licence: of the scan, as a table says; empty where none does.
        masks: volumes on the same grid.
        annotations: see `Annotations`.
        unread: marks that belong to it and could not be used, so that none of its slices counts as normal.

    Raises:
        InputError: when there is no file.
    """

    kind: Literal["dicom", "nifti", "metaimage"]
    series_id: str
    patient_id: str
    patient_known: bool
    files: tuple[Path, ...]
    patient_from: str = ""
    licence: str = ""
    masks: tuple[MaskFile, ...] = ()
    annotations: Annotations = field(default_factory=Annotations)
    unread: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError(f"Series {self.series_id} has no files; give at least one.")
        for name in ("series_id", "patient_id", "licence"):
            object.__setattr__(self, name, readable(getattr(self, name)))

    @property
    def lung_mask(self) -> Path | None:
        """The first file with values that are lung."""
        return next((mask.path for mask in self.masks if mask.lung), None)

    @property
    def nodule_mask(self) -> Path | None:
        """The first file with values that are nodule."""
        return next((mask.path for mask in self.masks if mask.nodule), None)


@dataclass(frozen=True)
class Problem:
    """A file or series that could not be used, and the sentence that says why and what to do, as one line of text."""

    path: Path
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", readable(self.message))
