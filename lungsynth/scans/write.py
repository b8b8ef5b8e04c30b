"""Scans with inserted nodules as files: NIfTI, LUNA16's layout, or DICOM series with a Segmentation.

All have the same lists beside them: `annotations.csv` as in LUNA16 and `detection.json` for MONAI's detectors, both in
LPS millimetres, `datalist.json` for segmentation, and `nodules.csv` with all that is known of each nodule. A nodule
that the scan had before counts as a nodule in all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lungsynth.categories import TEXTURES
from lungsynth.config import SCAN_FORMATS
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_annotations, write_metaimage, write_nifti
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_json, write_text
from lungsynth.io.tables import csv_text
from lungsynth.types import LabelVolume

__all__ = ["WrittenScan", "check_format", "write_lists", "write_scan"]

_DESCRIPTION = "Chest CT with nodules inserted by lungsynth. Not for diagnosis."
_BOX_MODE = "cccwhd in LPS mm: centre x, y, z, then width, height, depth, as in MONAI's detection of LUNA16"
_LUNGS = {False: 3, True: 4}  # LUNA16's ids of the lungs, at the lower and at the higher columns

Facts = Mapping[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class WrittenScan:
    """A scan to write.

    Args:
        name: of its files.
        subject: who it is: variants and days of one scan share it.
        volume: HU.
        label: `Label` ids.
        instances: 0, or the number of the inserted nodule.
        categories: of the inserted nodules.
        day: of the scan, 0 but in a growth series.
    """

    name: str
    subject: str
    volume: Volume
    label: LabelVolume
    instances: LabelVolume
    categories: tuple[str, ...]
    day: int = 0

    @property
    def descrip(self) -> str:
        """What a header says of it."""
        return f"lungsynth: {len(self.categories)} synthetic nodules"


def check_format(name: str) -> None:
    """Whether what a format needs is there.

    Raises:
        InputError: when it is not.
    """
    if name not in SCAN_FORMATS:
        raise InputError(f"`format`: scans are written as {', '.join(SCAN_FORMATS)}, got {name!r}.")
    if name == "dicom" and find_spec("highdicom") is None:
        raise InputError("Writing DICOM needs highdicom. Install it with: pip install 'lungsynth[dicom]'")


def write_scan(scan: WrittenScan, out: Path, *, format: str) -> dict[str, str]:  # noqa: A002
    """Writes a scan.

    Args:
        scan: what.
        out: folder of the run.
        format: one of `SCAN_FORMATS`.

    Returns:
        Names in `out`: `image`, `label`, and `instances` where they are a file of their own.
    """
    return _WRITERS[format](scan, out)


def _write_nifti(scan: WrittenScan, out: Path) -> dict[str, str]:
    names = {key: f"{folder}/{scan.name}.nii.gz" for key, folder in _FOLDERS.items()}
    arrays = {"image": scan.volume.hu, "label": scan.label, "instances": scan.instances}
    for key, array in arrays.items():
        write_nifti(out / names[key], array, scan.volume.affine, descrip=scan.descrip)
    return names


_FOLDERS = {"image": "images", "label": "labels", "instances": "nodules"}


def _write_luna16(scan: WrittenScan, out: Path) -> dict[str, str]:
    names = {"image": f"subset0/{scan.name}.mhd", "label": f"masks/{scan.name}.mhd"}
    names |= {"instances": f"nodules/{scan.name}.mhd", "lungs": f"seg-lungs-LUNA16/{scan.name}.mhd"}
    lung = (scan.label == Label.LUNG) | (scan.label == Label.NODULE)
    columns = np.flatnonzero(lung.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) / 2 if len(columns) else 0
    sides = np.where(np.arange(lung.shape[2]) <= middle, np.uint8(_LUNGS[False]), np.uint8(_LUNGS[True]))
    arrays = {"image": scan.volume.hu, "label": scan.label, "instances": scan.instances, "lungs": lung * sides}
    for key, array in arrays.items():
        write_metaimage(out, names[key], array, scan.volume.affine, comment=scan.descrip)
    return names


def _write_dicom(scan: WrittenScan, out: Path) -> dict[str, str]:
    from lungsynth.ct.write_dicom import SyntheticScan, scan_seg, synthetic_ct, write_dicom

    what = SyntheticScan(
        subject=scan.subject,
        name=scan.name,
        derivation=f"lungsynth: {len(scan.categories)} synthetic nodules inserted into a CT. Not for diagnosis.",
        day=scan.day,
        of_patient=True,
    )
    names = {"image": f"{scan.name}/ct", "label": f"{scan.name}/seg.dcm"}
    images = []
    for index, plane in enumerate(scan.volume.hu):
        image = synthetic_ct(plane, scan.volume.plane_affine(index), what, number=index + 1)
        write_dicom(out / names["image"] / f"{index + 1:04d}.dcm", image)
        images.append(image)
    segments = (scan.label != Label.BACKGROUND).astype(np.uint8)
    np.copyto(segments, scan.instances + np.uint8(1), where=scan.instances > 0)
    write_dicom(out / names["label"], scan_seg(images, segments, scan.categories, what))
    return names


_WRITERS: Mapping[str, Callable[[WrittenScan, Path], dict[str, str]]] = {
    "nifti": _write_nifti,
    "luna16": _write_luna16,
    "dicom": _write_dicom,
}


def write_lists(samples: Sequence[Facts], out: Path) -> None:
    """Writes the lists of all samples.

    Args:
        samples: `name`, `subject`, `files`, `nodules` (rows of nodules.csv) of each.
        out: folder of the run.
    """
    nodules = [(sample, nodule) for sample in samples for nodule in sample["nodules"]]
    rows = [(sample["name"], *nodule["centre_lps_mm"], nodule["diameter_mm"]) for sample, nodule in nodules]
    write_annotations(out / "annotations.csv", rows, textures=[nodule["texture"] for _, nodule in nodules])
    table = pd.DataFrame([{"name": sample["name"], **_flat(nodule)} for sample, nodule in nodules])
    write_text(out / "nodules.csv", csv_text(table))
    categories = sorted({nodule["texture"] for _, nodule in nodules}, key=_order)
    write_json(out / "detection.json", _detection(samples, categories), indent=1)
    write_json(out / "datalist.json", _datalist(samples))


def _order(texture: str) -> tuple[int, str]:
    return (TEXTURES.index(texture) if texture in TEXTURES else len(TEXTURES), texture)


def _detection(samples: Sequence[Facts], categories: Sequence[str]) -> dict[str, Any]:
    entries = [
        {
            "image": sample["files"]["image"],
            "box": [nodule["box_lps_mm"] for nodule in sample["nodules"]],
            "label": [categories.index(nodule["texture"]) for nodule in sample["nodules"]],
        }
        for sample in samples
    ]
    return {"description": _DESCRIPTION, "categories": list(categories), "box_mode": _BOX_MODE, "training": entries}


def _datalist(samples: Sequence[Facts]) -> dict[str, Any]:
    labels = {str(int(label)): label.name.lower() for label in Label}
    entries = [{"id": sample["name"], "subject": sample["subject"], **sample["files"]} for sample in samples]
    return {"description": _DESCRIPTION, "labels": labels, "training": entries}


_ENDS: Mapping[str, Sequence[str]] = {
    "centre_lps_mm": ("x", "y", "z"),
    "box_lps_mm": ("x", "y", "z", "width", "height", "depth"),
    "centre_voxel": ("slice", "row", "column"),
}


def _flat(nodule: Facts) -> dict[str, Any]:
    """A row: lists become a column for each number."""
    row: dict[str, Any] = {}
    for key, value in nodule.items():
        ends = _ENDS.get(key)
        row |= {key: value} if ends is None else {f"{key}_{end}": at for end, at in zip(ends, value, strict=True)}
    return row
