"""What a method did on all images, as plain records: an evaluation that was stopped goes on from them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.metrics.dice import PixelCounts
from evaluation.metrics.matching import Case, FalsePositive, ReferenceNodule
from evaluation.segmentation.crops import CropRecords
from evaluation.segmentation.scans import LungScore, ScanRecords
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes

__all__ = ["SegmentationResult", "load_result", "read_result", "save_result"]


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """A method's records.

    Args:
        operating_point: probability from which on a candidate counts as found.
        composites: cases of the composites.
        problems: images that could not be read.
    """

    operating_point: float = 0.5
    crops: CropRecords = field(default_factory=CropRecords)
    composites: tuple[Case, ...] = ()
    scans: ScanRecords = field(default_factory=ScanRecords)
    problems: tuple[str, ...] = ()


def save_result(path: Path, outcome: SegmentationResult, *, identity: str) -> None:
    """Writes the records of a method, whole or not at all."""
    content = {"identity": identity, "outcome": asdict(outcome)}
    write_bytes(path, json.dumps(content, separators=(",", ":")).encode())


def load_result(path: Path, *, identity: str) -> SegmentationResult | None:
    """The records of the same evaluation; None where there are none, or those of another one."""
    try:
        stored = json.loads(path.read_text())
        return _outcome(stored["outcome"]) if stored["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_result(path: Path) -> SegmentationResult:
    """The records of a method from an evaluation that is finished.

    Raises:
        InputError: naming the file, when it holds none.
    """
    try:
        return _outcome(json.loads(path.read_text())["outcome"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the records of a method ({error}). Give folders that `evaluate.py segmentation` wrote."
        ) from error


def _outcome(stored: Mapping[str, Any]) -> SegmentationResult:
    crops, scans = stored["crops"], stored["scans"]
    return SegmentationResult(
        operating_point=stored["operating_point"],
        crops=CropRecords(
            cases=_cases(crops["cases"]),
            off_centre=_cases(crops["off_centre"]),
            pixels=tuple(PixelCounts(**count) for count in crops["pixels"]),
            pixels_ignored=tuple(PixelCounts(**count) for count in crops["pixels_ignored"]),
        ),
        composites=_cases(stored["composites"]),
        scans=ScanRecords(
            cases=_cases(scans["cases"]),
            unknown=_cases(scans["unknown"]),
            lungs=tuple(LungScore(**score) for score in scans["lungs"]),
        ),
        problems=tuple(stored["problems"]),
    )


def _cases(stored: list[dict[str, Any]]) -> tuple[Case, ...]:
    return tuple(
        Case(
            **{
                **case,
                "targets": tuple(ReferenceNodule(**_placed(target)) for target in case["targets"]),
                "alarms": tuple(FalsePositive(**_placed(alarm)) for alarm in case["alarms"]),
            }
        )
        for case in stored
    )


def _placed(stored: dict[str, Any]) -> dict[str, Any]:
    return {**stored, "centre": tuple(stored["centre"])}
