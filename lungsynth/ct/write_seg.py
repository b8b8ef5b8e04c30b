"""Lungs and nodules of a synthetic slice as a DICOM Segmentation that refers to its image. Needs highdicom."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from lungsynth.ct.write_dicom import MANUFACTURER, SyntheticScan, derived_uid, mark_synthetic
from lungsynth.errors import InputError
from lungsynth.types import MaskPlane

__all__ = ["synthetic_seg"]

_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_LESION = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LUNG = Code("39607008", "SCT", "Lung")
_NODULE = Code("27925004", "SCT", "Nodule")
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


def synthetic_seg(
    image: Dataset, lung: MaskPlane, nodules: Sequence[MaskPlane], categories: Sequence[str], scan: SyntheticScan
) -> Dataset:
    """A binary Segmentation: segment 1 is lung (nodules included), then one a nodule.

    Args:
        image: what `synthetic_ct` gave.
        lung: (H, W).
        nodules: (H, W) each.
        categories: one a nodule, for the labels.
        scan: that of the image.

    Raises:
        InputError: when highdicom is not installed.
    """
    highdicom = _highdicom()
    algorithm = highdicom.AlgorithmIdentificationSequence(name=MANUFACTURER, family=_FAMILY, version="1")
    segments = [_segment(1, "Lung", _ANATOMY, _LUNG, scan, algorithm)]
    for number, category in enumerate(categories, start=2):
        label = f"Nodule {number - 1}, {category}"
        segments.append(_segment(number, label, _LESION, _NODULE, scan, algorithm))
    segmentation = highdicom.seg.Segmentation(
        source_images=[image],
        pixel_array=np.stack([lung, *nodules], axis=-1)[None].astype(np.uint8),
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
        series_description="Truth of a synthetic lung slice",
    )
    _settle(segmentation, image, scan)
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
