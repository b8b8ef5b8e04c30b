"""Synthetic slices and scans as DICOM that tells the truth: CT images marked as synthetic, and their Segmentation.

Nothing of a source patient is in it: names, UIDs and dates follow from the sample's name alone, so the same sample has
the same bytes. Synthetic Data (0008,001C) is YES; a validator of 2022 does not know that attribute yet. The
Segmentation of lung and nodules refers to the image, and needs highdicom.
"""

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from lungsynth.errors import InputError
from lungsynth.hounsfield import CT_RANGE_HU
from lungsynth.io.atomic import write_bytes
from lungsynth.types import Affine, HuPlane, LabelVolume, MaskPlane

__all__ = [
    "SyntheticScan",
    "derived_uid",
    "dicom_bytes",
    "mark_synthetic",
    "scan_seg",
    "synthetic_ct",
    "synthetic_seg",
    "write_dicom",
]

MANUFACTURER = "lungsynth"
# UIDs are UUIDs (v5) of the sample's id in this namespace; another one would change every UID.
_NAMESPACE = uuid.UUID("5c0f3f5e-6a0d-5e0b-9c59-0d6a3f1f8b7e")
_IMPLEMENTATION = "lungsynth"
_FIRST_DAY = date(2000, 1, 1)  # day 0 of every synthetic patient
_TIME = "120000"  # of every image: no clock decides a byte
_LUNG_WINDOW = (-600, 1500)  # centre, width
# By `of_patient`: of study and series, and of the patient.
_DESCRIPTIONS = {
    False: ("Synthetic chest CT, not of a patient", "Synthetic lung slice"),
    True: ("Chest CT with synthetic nodules", "CT with inserted nodules"),
}
_COMMENTS = {
    False: "Synthetic: not a patient. Not for diagnosis.",
    True: "Synthetic nodules were inserted into a CT of a patient. Not for diagnosis.",
}
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class SyntheticScan:
    """Who and what a synthetic slice is.

    Args:
        subject: the synthetic patient; scans of one growth series share it.
        name: of the sample, unique.
        derivation: how the image was produced; goes to Derivation Description.
        day: of the scan, from 0.
        of_patient: whether it is the CT of a patient into which nodules were inserted; else it is of nobody.
    """

    subject: str
    name: str
    derivation: str
    day: int = 0
    of_patient: bool = False

    @property
    def study_date(self) -> str:
        """DICOM date of the scan."""
        return (_FIRST_DAY + timedelta(days=self.day)).strftime("%Y%m%d")


def derived_uid(*words: str) -> UID:
    """A UID under 2.25 (a UUID as a number) that follows from words; other words, other UID."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(words)).int}")


def synthetic_ct(hu: HuPlane, affine: Affine, scan: SyntheticScan, *, number: int | None = None) -> FileDataset:
    """A CT image of one slice.

    Args:
        hu: int16 (H, W), within `CT_RANGE_HU`.
        affine: (column, row, slice) -> RAS mm, axial.
        scan: who and what.
        number: of the slice in its series, from 1; None for a slice that is alone.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = derived_uid(scan.name, "image", *([] if number is None else [str(number)]))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = derived_uid("implementation")
    meta.ImplementationVersionName = _IMPLEMENTATION
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    _describe(image, scan)
    image.InstanceNumber = number or 1
    _place(image, affine)
    _fill(image, hu)
    mark_synthetic(image, scan)
    return image


def mark_synthetic(dataset: Dataset, scan: SyntheticScan) -> None:
    """Says that a dataset is synthetic, and what made it."""
    dataset.SyntheticData = "YES"
    equipment = Dataset()
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = MANUFACTURER
    equipment.ContributionDescription = scan.derivation[:1024]
    dataset.ContributingEquipmentSequence = [equipment]


def dicom_bytes(dataset: Dataset) -> bytes:
    """The file of a dataset that has its meta information."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Writes a dataset, whole or not at all."""
    write_bytes(path, dicom_bytes(dataset))


def _describe(image: Dataset, scan: SyntheticScan) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.InstanceCreationDate = image.StudyDate = image.SeriesDate = image.ContentDate = scan.study_date
    image.InstanceCreationTime = image.StudyTime = image.SeriesTime = image.ContentTime = _TIME
    image.AcquisitionDate, image.AcquisitionTime = scan.study_date, _TIME
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.StudyID, image.BodyPartExamined = "1", "CHEST"
    image.Modality, image.Manufacturer, image.ManufacturerModelName = "CT", MANUFACTURER, MANUFACTURER
    image.StudyDescription, image.SeriesDescription = _DESCRIPTIONS[scan.of_patient]
    image.PatientName, image.PatientID = f"Synthetic^{scan.subject}", scan.subject
    image.PatientBirthDate = image.PatientSex = ""
    image.PatientComments = _COMMENTS[scan.of_patient]
    image.StudyInstanceUID = derived_uid(scan.subject, "study", str(scan.day))
    image.SeriesInstanceUID = derived_uid(scan.name, "series")
    image.FrameOfReferenceUID = derived_uid(scan.subject, "frame")
    image.SeriesNumber = 1
    image.AcquisitionNumber = image.KVP = None
    image.PatientPosition, image.PositionReferenceIndicator = "HFS", ""
    image.DerivationDescription = scan.derivation[:1024]
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"


def _place(image: Dataset, affine: Affine) -> None:
    lps = _RAS_TO_LPS[:, None] * affine[:3]
    column_mm, row_mm, slice_mm = (float(np.linalg.norm(lps[:, axis])) for axis in range(3))
    image.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    image.SliceThickness = _decimal(slice_mm)
    image.ImageOrientationPatient = [_decimal(v) for v in (*(lps[:, 0] / column_mm), *(lps[:, 1] / row_mm))]
    image.ImagePositionPatient = [_decimal(v) for v in lps[:, 3]]


def _fill(image: Dataset, hu: HuPlane) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = hu.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = CT_RANGE_HU[0], 1, "HU"
    image.WindowCenter, image.WindowWidth = _LUNG_WINDOW
    stored = np.clip(hu.astype(np.int32), *CT_RANGE_HU) - CT_RANGE_HU[0]
    image.PixelData = stored.astype("<u2").tobytes()


def _decimal(value: Any) -> DSfloat:
    return DSfloat(float(value) + 0.0, auto_format=True)  # + 0.0 makes -0.0 a 0


_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_LESION = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LUNG = Code("39607008", "SCT", "Lung")
_NODULE = Code("27925004", "SCT", "Nodule")
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


def synthetic_seg(
    image: Dataset, lung: MaskPlane, nodules: Sequence[MaskPlane], categories: Sequence[str], scan: SyntheticScan
) -> Dataset:
    """A binary Segmentation of a slice: segment 1 is lung (nodules included), then one a nodule.

    Args:
        image: what `synthetic_ct` gave.
        lung: (H, W).
        nodules: (H, W) each.
        categories: one a nodule, for the labels.
        scan: that of the image.

    Raises:
        InputError: when highdicom is not installed.
    """
    pixels = np.stack([lung, *nodules], axis=-1)[None].astype(np.uint8)
    return _segmentation([image], pixels, categories, scan, series="Truth of a synthetic lung slice")


def scan_seg(
    images: Sequence[Dataset], segments: LabelVolume, categories: Sequence[str], scan: SyntheticScan
) -> Dataset:
    """A binary Segmentation of a scan: segment 1 is lung without the nodules, then one a nodule.

    Args:
        images: what `synthetic_ct` gave for each slice.
        segments: (depth, height, width), 0 or the number of the segment.
        categories: one a nodule, for the labels.
        scan: that of the images.

    Raises:
        InputError: when highdicom is not installed.
    """
    return _segmentation(images, segments, categories, scan, series="Lungs and inserted nodules")


def _segmentation(
    images: Sequence[Dataset], pixels: np.ndarray, categories: Sequence[str], scan: SyntheticScan, *, series: str
) -> Dataset:
    highdicom = _highdicom()
    algorithm = highdicom.AlgorithmIdentificationSequence(name=MANUFACTURER, family=_FAMILY, version="1")
    segments = [_segment(1, "Lung", _ANATOMY, _LUNG, scan, algorithm)]
    for number, category in enumerate(categories, start=2):
        label = f"Nodule {number - 1}, {category}"
        segments.append(_segment(number, label, _LESION, _NODULE, scan, algorithm))
    segmentation = highdicom.seg.Segmentation(
        source_images=list(images),
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=derived_uid(scan.name, "seg series"),
        series_number=2,
        sop_instance_uid=derived_uid(scan.name, "seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions="1",
        device_serial_number="1",
        content_label="LUNGSYNTH",
        content_description="Lungs and nodules as they were composed",
        series_description=series,
    )
    _settle(segmentation, images[0], scan)
    mark_synthetic(segmentation, scan)
    return segmentation


def _highdicom() -> Any:
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise InputError(
            "Writing DICOM Segmentations needs highdicom. Install it with: pip install 'lungsynth[dicom]'"
        ) from error
    return highdicom


def _segment(number: int, label: str, category: Code, kind: Code, scan: SyntheticScan, algorithm: Any) -> Any:
    highdicom = _highdicom()
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        anatomic_regions=[_LUNG] if kind is _NODULE else None,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=derived_uid(scan.subject, "segment", str(number)),
        tracking_id=f"{scan.subject} segment {number}",
    )


def _settle(segmentation: Dataset, image: Dataset, scan: SyntheticScan) -> None:
    """Replaces the times and UIDs that highdicom takes from the clock and from chance."""
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(segmentation, keyword, scan.study_date)
    for keyword in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(segmentation, keyword, image.ContentTime)
    organization = derived_uid(scan.name, "dimensions")
    for item in [*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization
