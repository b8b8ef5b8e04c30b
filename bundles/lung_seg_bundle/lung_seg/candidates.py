# SPDX-License-Identifier: Apache-2.0
"""Nodule candidates: what hangs together above a probability, with its place, size and height.

Places are LPS millimetres (x to the patient's left, y to posterior, z to superior), as in LUNA16's tables.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy import ndimage

from .losses import LUNG, NODULE

__all__ = ["Candidate", "CandidateTable", "RecordCandidates", "ToLabelMap", "find_candidates"]

LPS_FROM_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the table: the file's name, centroid (LPS mm), diameter of the ball (of a single slice: the disc) of
    equal size in mm, and the highest probability within.
    """

    name: str
    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float
    probability: float


def find_candidates(
    probability: np.ndarray, affine: np.ndarray, *, name: str, threshold: float, min_diameter_mm: float
) -> list[Candidate]:
    """Candidates of one volume, the most probable first.

    Args:
        probability: (i, j, k) of nodule.
        affine: (4, 4), (i, j, k) -> RAS mm.
        name: of the file.
        threshold: probability from which on voxels belong to a candidate; neighbours by corners hang together.
        min_diameter_mm: smaller ones are left out.
    """
    regions, count = ndimage.label(probability >= threshold, structure=np.ones((3,) * 3))
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    flat = probability.shape[-1] == 1
    found = []
    for index, box in enumerate(ndimage.find_objects(regions, max_label=count), start=1):
        inside = regions[box] == index
        voxels = np.argwhere(inside) + [axis.start for axis in box]
        area_or_volume = len(voxels) * float(np.prod(steps[:2] if flat else steps))
        diameter = 2 * math.sqrt(area_or_volume / math.pi) if flat else (6 * area_or_volume / math.pi) ** (1 / 3)
        if diameter < min_diameter_mm:
            continue
        x, y, z = LPS_FROM_RAS * (affine[:3, :3] @ voxels.mean(axis=0) + affine[:3, 3])
        peak = float(probability[box][inside].max())
        found.append(Candidate(name=name, x_mm=x, y_mm=y, z_mm=z, diameter_mm=diameter, probability=peak))
    return sorted(found, key=lambda candidate: -candidate.probability)


class CandidateTable:
    """The candidates of all volumes so far, in a CSV file that is always whole.

    Args:
        path: of the CSV file; its folder is made when the first volume is done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Candidate] = []

    def add(self, candidates: list[Candidate]) -> None:
        """Adds a volume's candidates and writes the table anew."""
        self.rows.extend(candidates)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Candidate)])
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in asdict(row).items()} for row in self.rows
            )
        temporary.rename(self.path)


class RecordCandidates(Transform):
    """Finds the candidates in `pred` (2, H, W, D) of one volume and adds them to a table; passes the data on.

    Args:
        table: where they go.
        threshold: see `find_candidates`.
        min_diameter_mm: see `find_candidates`.
    """

    def __init__(self, table: CandidateTable, *, threshold: float = 0.5, min_diameter_mm: float = 3.0) -> None:
        self.table = table
        self.threshold = threshold
        self.min_diameter_mm = min_diameter_mm

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        nodule = torch.as_tensor(data["pred"])[1].float().cpu().numpy()
        affine = np.asarray(data["image"].affine, dtype=np.float64)
        self.table.add(
            find_candidates(
                nodule,
                affine,
                name=data["name"],
                threshold=self.threshold,
                min_diameter_mm=self.min_diameter_mm,
            )
        )
        return dict(data)


class ToLabelMap(Transform):
    """Turns `pred` from probabilities (2, ...) into label ids (1, ...): 0 background, 1 lung, 2 nodule.

    The label map has the affine of `image`.

    Args:
        threshold: of either channel.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        lung, nodule = torch.as_tensor(data["pred"]) >= self.threshold
        label = torch.where(nodule, NODULE, torch.where(lung, LUNG, 0)).to(torch.uint8)
        # A MetaTensor, so that Invertd takes it back to the image's own grid.
        return {**data, "pred": MetaTensor(label[None], affine=data["image"].affine)}
