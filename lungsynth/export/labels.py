"""What lists say of an export's samples: MONAI's, LUNA16's and COCO's, and the checksums.

`datalist.json` is for segmentation and classification: every value of an entry has the same shape in all entries, so
that MONAI's `DataLoader` makes batches of them as they are. `detection.json` has as many boxes in an entry as there are
nodules, as MONAI's detectors take them. Boxes of both are `xyxy` on images as MONAI's `LoadImaged` gives them: the
column is the first axis, the row the second, ends are excluded. Boxes of `ExportedSample` are rows first.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lungsynth.categories import TEXTURES, UNKNOWN
from lungsynth.ct.write import write_annotations
from lungsynth.export.split import PARTS, Provenance
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_json, write_text

__all__ = ["NO_PATIENT", "write_checksums", "write_labels", "write_msd", "write_nnunet"]

_DESCRIPTION = "Synthetic lung CT slices made by lungsynth. Not patients, not for diagnosis."
_AXES = "xyxy in pixels of the image as MONAI loads it: (column, row) of the first and behind the last pixel"
NO_PATIENT = "none"  # an empty text would become a folder in `load_decathlon_datalist`
_SEPARATOR = ";"

Facts = Mapping[str, Any]


def write_labels(samples: Sequence[Facts], provenances: Sequence[Provenance], out: Path) -> None:
    """Writes `datalist.json`, `detection.json`, `annotations.csv` and `coco.json`.

    Args:
        samples: `ExportedSample.facts` with `image` and `label`, the names of the files.
        provenances: one a sample.
        out: folder of the export.
    """
    categories = sorted({category for sample in samples for category in sample["categories"]})
    textures = [_texture(category) for sample in samples for category in sample["categories"]]
    write_annotations(out / "annotations.csv", _annotation_rows(samples), textures=textures)
    write_json(out / "datalist.json", _datalist(samples, provenances, categories))
    write_json(out / "detection.json", _detection(samples, provenances, categories), indent=None)
    write_json(out / "coco.json", _coco(samples, categories), indent=None)


def write_checksums(files: dict[str, str], out: Path) -> Path:
    """Writes `checksums.sha256`, which `sha256sum --check` reads.

    Args:
        files: name -> SHA-256.
        out: folder of the export.
    """
    path = out / "checksums.sha256"
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())))
    return path


def write_nnunet(samples: Sequence[Facts], provenances: Sequence[Provenance], out: Path) -> None:
    """Writes nnU-Net's `dataset.json`, and `splits_final.json` with the parts of the data list as its one fold."""
    content = {
        "channel_names": {"0": "CT"},
        "labels": {name: int(number) for number, name in _label_names().items()},
        "numTraining": len(samples),  # of files: what is in neither part counts, too
        "file_ending": ".nii.gz",
        "description": _DESCRIPTION,
    }
    write_json(out / "dataset.json", content)
    names = _in_parts([sample["name"] for sample in samples], provenances)
    write_json(out / "splits_final.json", [{"train": names["training"], "val": names["validation"]}])


def write_msd(samples: Sequence[Facts], provenances: Sequence[Provenance], out: Path) -> None:
    """Writes the `dataset.json` of the Medical Segmentation Decathlon, with a list `validation` beside `training`."""
    pairs = [{key: f"./{sample[key]}" for key in ("image", "label")} for sample in samples]
    parts = _in_parts(pairs, provenances)
    content = {
        "name": "lungsynth",
        "description": _DESCRIPTION,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": _label_names(),
        "numTraining": len(parts["training"]),
        "numTest": 0,
        "training": parts["training"],
        "validation": parts["validation"],
        "test": [],
    }
    write_json(out / "dataset.json", content)


def _label_names() -> dict[str, str]:
    return {str(int(label)): label.name.lower() for label in Label if label != Label.UNLABELLED}


def _texture(category: str) -> str:
    return category if category in TEXTURES else UNKNOWN


def _annotation_rows(samples: Iterable[Facts]) -> Iterable[tuple[str, float, float, float, float]]:
    for sample in samples:
        for x_mm, y_mm, z_mm, diameter_mm in sample["annotations"]:
            yield sample["name"], x_mm, y_mm, z_mm, diameter_mm


def _column_first(box: Sequence[int]) -> list[int]:
    row_from, column_from, row_to, column_to = box
    return [column_from, row_from, column_to, row_to]


def _in_parts(entries: Sequence[Any], provenances: Sequence[Provenance]) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {part: [] for part in PARTS}
    for entry, provenance in zip(entries, provenances, strict=True):
        lists[provenance.part].append(entry)
    return lists


def _datalist(samples: Sequence[Facts], provenances: Sequence[Provenance], categories: list[str]) -> dict[str, Any]:
    most = max((len(sample["boxes"]) for sample in samples), default=0)
    entries = [
        _entry(sample, provenance, categories, most) for sample, provenance in zip(samples, provenances, strict=True)
    ]
    return {
        "description": _DESCRIPTION,
        "labels": _label_names(),
        "categories": categories,
        "box_mode": f"{_AXES}; rows of -1 fill up to the most nodules of a sample",
        **_in_parts(entries, provenances),
    }


def _entry(sample: Facts, provenance: Provenance, categories: list[str], most: int) -> dict[str, Any]:
    named, missing = list(sample["categories"]), most - len(sample["boxes"])
    distinct = sorted(set(named))
    return {
        "image": sample["image"],
        "label": sample["label"],
        "id": sample["name"],
        "category": distinct[0] if len(distinct) == 1 else "mixed" if distinct else NO_PATIENT,
        "texture": _SEPARATOR.join(map(_texture, named)) or NO_PATIENT,
        "nodules": len(named),
        "boxes": [_column_first(box) for box in sample["boxes"]] + [[-1] * 4] * missing,
        "box_labels": [categories.index(category) for category in named] + [-1] * missing,
        "lung": provenance.lung,
        "patient_id": _SEPARATOR.join(provenance.patients) or NO_PATIENT,
        "parts_without_patient": provenance.unnamed,
    }


def _detection(samples: Sequence[Facts], provenances: Sequence[Provenance], categories: list[str]) -> dict[str, Any]:
    entries = [
        {
            "image": sample["image"],
            "label_map": sample["label"],
            "box": [_column_first(box) for box in sample["boxes"]],
            "label": [categories.index(category) for category in sample["categories"]],
        }
        for sample in samples
    ]
    return {"categories": categories, "box_mode": _AXES, **_in_parts(entries, provenances)}


def _coco(samples: Iterable[Facts], categories: list[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        height, width = sample["shape"]
        images.append({"id": number, "file_name": sample["image"], "height": height, "width": width})
        for box, runs, category in zip(sample["boxes"], sample["runs"], sample["categories"], strict=True):
            column_from, row_from, column_to, row_to = _column_first(box)
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
    info = {"description": _DESCRIPTION}
    return {"info": info, "images": images, "annotations": annotations, "categories": named}
