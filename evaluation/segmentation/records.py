"""What a method did on all images, as plain records from which figures are computed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule
from evaluation.runner import RecordStore
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.scans import LungScore, ScanRecords
from evaluation.segmentation.windows import WindowRecords

__all__ = ["SegmentationResult", "result_from_json", "result_store", "windows_from_json"]


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """A method's records.

    Args:
        operating_point: probability from which on a candidate counts as found.
        windows: nodules among what surrounds them.
        crops: nodules with little of it.
        composites: cases of the composites.
        scans: whole scans.
        problems: images that could not be read.
    """

    operating_point: float = 0.5
    windows: WindowRecords = field(default_factory=WindowRecords)
    crops: CropRecords = field(default_factory=CropRecords)
    composites: tuple[Case, ...] = ()
    scans: ScanRecords = field(default_factory=ScanRecords)
    problems: tuple[str, ...] = ()


def result_store(folder: Path) -> RecordStore[SegmentationResult]:
    """The records of methods in a folder."""
    return RecordStore(folder=folder, to_json=asdict, from_json=result_from_json)


def result_from_json(content: Mapping[str, Any]) -> SegmentationResult:
    """A method's records from what `dataclasses.asdict` gave; those of format 1 have other names.

    Raises:
        KeyError, TypeError: when it is something else.
    """
    crops, scans, windows = content["crops"], content["scans"], content.get("windows", {})
    return SegmentationResult(
        operating_point=content["operating_point"],
        windows=windows_from_json(windows),
        crops=CropRecords(
            cases=_cases(crops["cases"]),
            off_centre=_cases(crops["off_centre"]),
            pixels=tuple(PixelCounts(**count) for count in crops["pixels"]),
            pixels_ignored=tuple(PixelCounts(**count) for count in crops["pixels_ignored"]),
        ),
        composites=_cases(content["composites"]),
        scans=ScanRecords(
            cases=_cases(scans["cases"]),
            unknown=_cases(scans["unknown"]),
            lungs=tuple(LungScore(**score) for score in scans["lungs"]),
        ),
        problems=tuple(content["problems"]),
    )


def windows_from_json(content: Mapping[str, Any]) -> WindowRecords:
    """Records of windows from what `dataclasses.asdict` gave; empty where there is nothing.

    Raises:
        KeyError, TypeError: when it is something else.
    """
    return WindowRecords(
        cases=_cases(content.get("cases", [])),
        pixels=tuple(PixelCounts(**count) for count in content.get("pixels", [])),
    )


def _cases(content: list[dict[str, Any]]) -> tuple[Case, ...]:
    return tuple(_case(dict(case)) for case in content)


def _case(content: dict[str, Any]) -> Case:
    nodules = content.pop("nodules" if "nodules" in content else "targets")
    false_positives = content.pop("false_positives" if "false_positives" in content else "alarms")
    return Case(
        **content,
        nodules=tuple(ReferenceNodule(**_with_centre(nodule)) for nodule in nodules),
        false_positives=tuple(FalsePositive(**_with_centre(item)) for item in false_positives),
    )


def _with_centre(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "centre": tuple(content["centre"])}
