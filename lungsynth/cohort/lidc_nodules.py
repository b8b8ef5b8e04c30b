"""Importer of 8-bit LIDC crops: a folder of `*_64.npz` with `index.csv` and, when present, `nodules.csv`.

The npz holds `image` and `votes` (uint8, N x 64 x 64) and `row` (which line of index.csv). Grey levels are brought back
to HU by `calibration`; HU of such nodules are estimates. Nodules that are cut by their crop,
were drawn by nobody or have no pixel spacing are left out.

Importer of LIDC nodule cubes in HU: `cubes.npz` with `index.csv`.

The npz holds `hu` and `mask`, N x 51 x 51 x 51 at 1 mm in (z, y, x). One reader's mask, so
`mask_votes` is 1. Cubes without a known patient are marked so: they must never meet a test set.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lungsynth.cohort.calibration import estimate_calibration
from lungsynth.cohort.cubes import cut_cube
from lungsynth.cohort.patches import NodulePatches, patches_from_planes, sphere_diameter_mm
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16

__all__ = ["COLLECTION", "RATINGS", "is_crop_folder", "is_cube_folder", "read_crops", "read_cubes"]

_logger = logging.getLogger(__name__)

COLLECTION = "LIDC-IDRI"
INDEX_COLUMNS = ("row", "patient", "nodule", "slice", "px_cut_by_64crop", "pixel_spacing_mm")
# LIDC's characteristics, by the names that this project uses.
RATINGS = {
    "malignancy": "malignancy",
    "texture": "texture",
    "spiculation": "spiculation",
    "lobulation": "lobulation",
    "margin": "margin",
    "sphericity": "sphericity",
    "calcification": "calcification",
    "subtlety": "subtlety",
    "internalStructure": "internal_structure",
}


def is_crop_folder(folder: Path) -> bool:
    """Whether `folder` holds such crops."""
    return (folder / "index.csv").is_file() and any(folder.glob("*_64.npz"))


def read_crops(folder: Path) -> Iterator[NodulePatches]:
    """Yields the nodules of a crop folder, in the order of index.csv.

    Raises:
        InputError: when a file lacks columns or arrays, or index and images disagree.
    """
    archive = sorted(folder.glob("*_64.npz"))[0]
    index = _read_index(folder / "index.csv")
    images, votes = _read_arrays(archive, index)
    ratings = _read_ratings(folder / "nodules.csv")
    for (patient, nodule), rows in index.groupby(["patient", "nodule"], sort=False):
        attributes, spacing = ratings.get((patient, nodule), {}), float(rows["pixel_spacing_mm"].iloc[0])
        whole = rows[rows["px_cut_by_64crop"] == 0]
        lines = whole.index.to_numpy()
        if len(lines) == 0 or not votes[lines].any() or len(whole) < len(rows) or not spacing > 0:
            _logger.debug("%s nodule %s is cut by its crop, without mask or without spacing", patient, nodule)
            continue
        yield patches_from_planes(
            np.stack([to_int16(estimate_calibration(images[k]).to_hu(images[k])) for k in lines]),
            votes[lines],
            spacing_mm=(spacing, spacing),
            nodule_id=f"{patient}_n{int(nodule):02d}",
            patient_id=str(patient),
            series_id=f"{patient}_crops",
            source=COLLECTION,
            attributes=attributes,
        )


def _read_index(path: Path) -> pd.DataFrame:
    index = pd.read_csv(path)
    missing = [name for name in INDEX_COLUMNS if name not in index.columns]
    if missing:
        raise InputError(
            f"{path}: needs the columns {list(INDEX_COLUMNS)}, lacks {missing}; take the index of the crops."
        )
    return index


def _read_arrays(archive: Path, index: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Images and votes in the order of `index`."""
    with np.load(archive) as arrays:
        missing = [name for name in ("image", "votes", "row") if name not in arrays]
        if missing:
            raise InputError(f"{archive}: needs the arrays image, votes and row, lacks {missing}.")
        images, votes, rows = arrays["image"], arrays["votes"], arrays["row"]
    if images.dtype != np.uint8 or images.shape != votes.shape or images.shape[1:] != (64, 64):
        raise InputError(
            f"{archive}: needs uint8 images and votes of (N, 64, 64), "
            f"got {images.dtype} {images.shape} and {votes.shape}."
        )
    place = pd.Series(np.arange(len(rows)), index=rows)
    absent = ~index["row"].isin(place.index)
    if absent.any():
        raise InputError(f"{archive}: lacks {int(absent.sum())} rows of index.csv; both must come from one export.")
    order = place.loc[index["row"]].to_numpy()
    return images[order], votes[order]


def _read_ratings(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Mean ratings by (patient, nodule); empty without the file."""
    if not path.is_file():
        return {}
    names = {**RATINGS, "mean_diameter_mm": "reader_diameter_mm"}
    table = pd.read_csv(path)
    columns = [name for name in names if name in table.columns]
    return {
        (str(row["patient"]), int(row["nodule"])): {names[c]: float(row[c]) for c in columns if pd.notna(row[c])}
        for row in table.to_dict("records")
    }


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
