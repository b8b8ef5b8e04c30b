"""The label files of an export: LUNA16's annotations.csv, MONAI's detection JSON, COCO, and the checksums."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lungsynth.ct.series import NoduleSphere
from lungsynth.ct.write import write_annotations, write_atomically

__all__ = ["write_checksums", "write_labels"]

_INFO = {"description": "Synthetic lung CT slices made by lungsynth. Not patients, not for diagnosis."}


def write_labels(samples: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes `annotations.csv`, `detection.json` and `coco.json`.

    Args:
        samples: `Exported.facts` with the names of the files.
        out: folder of the export.
    """
    categories = sorted({category for sample in samples for category in sample["categories"]})
    write_annotations(out / "annotations.csv", _spheres(samples))
    _write_json(out / "detection.json", _detection(samples, categories))
    _write_json(out / "coco.json", _coco(samples, categories))


def write_checksums(files: dict[str, str], out: Path) -> Path:
    """Writes `checksums.sha256`, which `sha256sum --check` reads.

    Args:
        files: name -> SHA-256.
        out: folder of the export.
    """
    path = out / "checksums.sha256"
    write_atomically(path, "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode())
    return path


def _spheres(samples: Iterable[dict[str, Any]]) -> Iterable[NoduleSphere]:
    for sample in samples:
        for x_mm, y_mm, z_mm, diameter_mm in sample["annotations"]:
            centre = (x_mm, y_mm, z_mm)
            yield NoduleSphere(series_id=sample["name"], centre_lps_mm=centre, diameter_mm=diameter_mm)


def _detection(samples: Iterable[dict[str, Any]], categories: list[str]) -> dict[str, Any]:
    """MONAI's list for detectors. Boxes are `xyxy` in pixels of (1, H, W): rows come first, ends are excluded."""
    entries = [
        {
            "image": sample["image"],
            "label_map": sample["label"],
            "box": sample["boxes"],
            "label": [categories.index(category) for category in sample["categories"]],
        }
        for sample in samples
    ]
    return {"categories": categories, "box_mode": "xyxy", "training": entries}


def _coco(samples: Iterable[dict[str, Any]], categories: list[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        height, width = sample["shape"]
        images.append({"id": number, "file_name": sample["image"], "height": height, "width": width})
        for box, runs, category in zip(sample["boxes"], sample["runs"], sample["categories"], strict=True):
            row_from, column_from, row_to, column_to = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories.index(category) + 1,
                    "bbox": [column_from, row_from, column_to - column_from, row_to - row_from],
                    "area": sum(runs[1::2]),
                    "segmentation": {"counts": runs, "size": [height, width]},
                    "iscrowd": 0,
                }
            )
    named = [{"id": index, "name": name, "supercategory": "nodule"} for index, name in enumerate(categories, start=1)]
    return {"info": _INFO, "images": images, "annotations": annotations, "categories": named}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, separators=(",", ":")) + "\n").encode())
