# SPDX-License-Identifier: Apache-2.0
"""What inference writes: three maps a volume, on the volume's own grid, and one table of candidates for all.

Places are LPS millimetres (x to the patient's left, y to posterior, z to superior), as in LUNA16's tables. Files appear
whole or not at all.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import Transform
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from .candidates import CandidateFinder
from .common.atomic import replacing
from .losses import LUNG, NODULE
from .pleura import pleural_distances

__all__ = ["CandidateTable", "RecordCandidates", "SaveImageMaps", "table_rows"]

COLUMNS = ("name", "x_mm", "y_mm", "z_mm", "diameter_mm", "probability", "pleura_distance_mm")
LPS_FROM_RAS = np.array([-1.0, -1.0, 1.0])
LEVELS = 255  # of a probability in a uint8 file, whose header scales it back to [0, 1]


def table_rows(
    name: str, candidates: np.ndarray, affine: np.ndarray, distances_mm: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of the table for one volume.

    Args:
        name: of the volume.
        candidates: (n, 5), see `candidates.COLUMNS`.
        affine: (4, 4), (row, column, slice) -> RAS mm.
        distances_mm: (n,), to the edge of the lung.
    """
    places = candidates[:, [1, 2, 0]].astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]
    values = np.column_stack([places * LPS_FROM_RAS, candidates[:, 3:], distances_mm])
    return [{"name": name, **dict(zip(COLUMNS[1:], map(float, row), strict=True))} for row in values]


class CandidateTable:
    """The candidates of all volumes so far, in a CSV file that is always whole.

    Args:
        path: of the CSV file; its folder is made when the first volume is done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self.volumes = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds a volume's candidates and writes the table anew."""
        self.rows.extend(rows)
        self.volumes += 1
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in self.rows:
                writer.writerow({key: f"{v:.3f}" if isinstance(v, float) else v for key, v in row.items()})


class RecordCandidates(Transform):
    """Finds the candidates in `pred` (2, H, W, D) of one volume and adds them to a table; passes the data on.

    Args:
        table: where they go.
        finder: finds them.
        min_probability: less probable ones do not enter the table.
    """

    def __init__(self, table: CandidateTable, *, finder: CandidateFinder, min_probability: float = 0.5) -> None:
        self.table = table
        self.finder = finder
        self.min_probability = min_probability

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        lung, nodule = torch.as_tensor(data["pred"]).movedim(-1, 1).cpu().numpy()
        affine = np.asarray(data["image"].affine, dtype=np.float64)
        row, column, between = np.linalg.norm(affine[:3, :3], axis=0)
        spacing = (float(between), float(row), float(column))
        found = self.finder(nodule, lung, spacing)
        found = found[found[:, -1] >= self.min_probability]
        distances = pleural_distances(lung, found[:, :3], spacing)
        self.table.add(table_rows(data.get("name", "image"), found, affine, distances))
        return dict(data)


class SaveImageMaps(Transform):
    """Writes the maps of one volume, on the grid of its file; passes the data on.

    `<name>_lung.nii.gz`: 1 in lung, nodules included; `<name>_nodule.nii.gz`: probability of nodule in steps of 1/255
    (uint8, scaled to [0, 1] by the header); `<name>_label.nii.gz`: 0 background, 1 lung, 2 nodule.

    Args:
        output_dir: made when the first volume is done.
        threshold: of either probability, for the lung mask and the label map.
    """

    def __init__(self, output_dir: str | Path, *, threshold: float = 0.5) -> None:
        self.output_dir = Path(output_dir)
        self.threshold = threshold

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        pred, image = torch.as_tensor(data["pred"]).cpu(), data["image"]
        lung, nodule = pred >= self.threshold
        label = torch.where(nodule, NODULE, lung.to(torch.uint8) * LUNG)
        maps = {
            "lung": (lung | nodule, None),
            "nodule": (_in_levels(pred[1]), 1 / LEVELS),
            "label": (label, None),
        }
        own = np.asarray(image.meta["original_affine"], dtype=np.float64)
        affine = np.asarray(image.affine, dtype=np.float64)
        for kind, (values, slope) in maps.items():
            path = self.output_dir / f"{data.get('name', 'image')}_{kind}.nii.gz"
            _write(path, _to_grid(values.to(torch.uint8).numpy(), affine, own), own, slope=slope)
        return dict(data)


def _in_levels(probability: torch.Tensor) -> torch.Tensor:
    """uint8 of a float16 map, a slice at a time."""
    levels = torch.empty(probability.shape, dtype=torch.uint8)
    for index in range(probability.shape[-1]):
        levels[..., index] = (probability[..., index].float() * LEVELS).round().to(torch.uint8)
    return levels


def _to_grid(values: np.ndarray, affine: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Turns an array (i, j, k) of `affine` so that its axes run as those of `own`."""
    return np.asarray(apply_orientation(values, ornt_transform(io_orientation(affine), io_orientation(own))))


def _write(path: Path, values: np.ndarray, affine: np.ndarray, *, slope: float | None) -> None:
    image = nibabel.Nifti1Image(values, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
