"""Importer of LIDC nodule cubes in HU: `cubes.npz` with `index.csv`.

The npz holds `hu` and `mask`, N x 51 x 51 x 51 at 1 mm in (z, y, x). One reader's mask, so
`mask_votes` is 1. Cubes without a known patient are marked so: they must never meet a test set.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lungsynth.cohort.cubes import cut_cube
from lungsynth.cohort.lidc_crops import COLLECTION, RATINGS
from lungsynth.cohort.patches import NodulePatches, patches_from_planes, sphere_diameter_mm
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16

__all__ = ["is_cube_folder", "read_cubes"]

CUBE_SPACING_MM = 1.0


def is_cube_folder(folder: Path) -> bool:
    """Whether `folder` holds such cubes."""
    return (folder / "index.csv").is_file() and (folder / "cubes.npz").is_file()


def read_cubes(folder: Path) -> Iterator[NodulePatches]:
    """Yields the nodules of a cube folder, in the order of index.csv.

    Raises:
        InputError: when an array or a column is missing, or the cubes are not in HU.
    """
    index = pd.read_csv(folder / "index.csv")
    missing = [name for name in ("row", "name", "lidc_patient") if name not in index.columns]
    if missing:
        raise InputError(f"{folder / 'index.csv'}: needs the columns row, name and lidc_patient, lacks {missing}.")
    with np.load(folder / "cubes.npz") as arrays:
        if not {"hu", "mask"} <= set(arrays.files):
            raise InputError(f"{folder / 'cubes.npz'}: needs the arrays hu and mask, got {arrays.files}.")
        cubes, masks = arrays["hu"], arrays["mask"]
    for record in index.to_dict("records"):
        row, known = int(record["row"]), pd.notna(record["lidc_patient"])
        mask = masks[row] > 0
        if not mask.any():
            continue
        identity = f"cube{row:03d}"
        hu = to_int16(cubes[row])
        patches = patches_from_planes(
            hu,
            mask.astype(np.uint8),
            spacing_mm=(CUBE_SPACING_MM, CUBE_SPACING_MM),
            nodule_id=f"{record['lidc_patient']}_{identity}" if known else f"LIDC-{identity}",
            patient_id=str(record["lidc_patient"]) if known else f"LIDC-{identity}",
            patient_known=bool(known),
            series_id=f"LIDC-{identity}",
            source=COLLECTION,
            diameter_mm=sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=CUBE_SPACING_MM**3),
            attributes={RATINGS[k]: float(v) for k, v in record.items() if k in RATINGS and pd.notna(v)},
        )
        yield replace(patches, cube=cut_cube(hu, mask, spacing_mm=(CUBE_SPACING_MM,) * 3))
