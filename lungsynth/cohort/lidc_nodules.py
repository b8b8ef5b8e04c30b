"""Importers of LIDC nodules that come without their scans, as 8-bit crops or as cubes in HU.

Crops: a folder of `*_64.npz` with `index.csv` and, when present, `nodules.csv`. The npz holds `image` and `votes`
(uint8, N x 64 x 64) and `row` (which line of index.csv). Grey levels are brought back to HU by `calibration`; HU of
such nodules are estimates. Nodules that are cut by their crop, were drawn by nobody or have no pixel spacing are left
out.

Cubes: `cubes.npz` with `index.csv`. The npz holds `hu` and `mask`, N x 51 x 51 x 51 at 1 mm in (z, y, x). The mask is
one reader's, so `mask_votes` is 1. Cubes without a known patient are marked so: they must never meet a test set.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lungsynth.cohort.calibration import estimate_calibration
from lungsynth.cohort.cubes import cut_cube
from lungsynth.cohort.patches import NodulePatches, NodulePlanes, cut_patches, sphere_diameter_mm, texture_class
from lungsynth.cohort.schema import RATINGS, NoduleRow
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16

__all__ = ["COLLECTION", "ImportedNodule", "is_crop_folder", "is_cube_folder", "read_crops", "read_cubes"]

_logger = logging.getLogger(__name__)

COLLECTION = "LIDC-IDRI"
INDEX_COLUMNS = ("row", "patient", "nodule", "slice", "px_cut_by_64crop", "pixel_spacing_mm")
CUBE_SPACING_MM = 1.0
# LIDC's characteristics, by the names that this project uses.
_RATINGS = {"internalStructure" if name == "internal_structure" else name: name for name in RATINGS}


@dataclass(frozen=True, eq=False, kw_only=True)
class ImportedNodule:
    """A nodule without its scan; `patient_known` is False where its patient id is only a stand-in."""

    row: NoduleRow
    patient_known: bool
    patches: NodulePatches


def is_crop_folder(folder: Path) -> bool:
    """Whether `folder` holds such crops."""
    return (folder / "index.csv").is_file() and any(folder.glob("*_64.npz"))


def read_crops(folder: Path) -> Iterator[ImportedNodule]:
    """Yields the nodules of a crop folder, in the order of index.csv.

    Raises:
        InputError: when a file lacks columns or arrays, or index and images disagree.
    """
    archive = sorted(folder.glob("*_64.npz"))[0]
    index = _read_index(folder / "index.csv")
    images, votes = _read_arrays(archive, index)
    ratings = _read_ratings(folder / "nodules.csv")
    for (patient, nodule), rows in index.groupby(["patient", "nodule"], sort=False):
        spacing = float(rows["pixel_spacing_mm"].iloc[0])
        whole = rows[rows["px_cut_by_64crop"] == 0]
        lines = whole.index.to_numpy()
        if len(lines) == 0 or not votes[lines].any() or len(whole) < len(rows) or not spacing > 0:
            _logger.debug("%s nodule %s is cut by its crop, without mask or without spacing", patient, nodule)
            continue
        hu = np.stack([to_int16(estimate_calibration(images[k]).to_hu(images[k])) for k in lines])
        patches = cut_patches(NodulePlanes(hu=hu, votes=votes[lines], spacing_mm=(spacing, spacing)))
        row = _row(
            patches,
            {"nodule_id": f"{patient}_n{int(nodule):02d}", "patient_id": str(patient), "series_id": f"{patient}_crops"},
            ratings.get((patient, nodule), {}),
            diameter_mm=patches.disc_diameter_mm,
        )
        yield ImportedNodule(row=row, patient_known=True, patches=patches)


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
    names = {**_RATINGS, "mean_diameter_mm": "reader_diameter_mm"}
    table = pd.read_csv(path)
    columns = [name for name in names if name in table.columns]
    return {
        (str(row["patient"]), int(row["nodule"])): {names[c]: float(row[c]) for c in columns if pd.notna(row[c])}
        for row in table.to_dict("records")
    }


def is_cube_folder(folder: Path) -> bool:
    """Whether `folder` holds such cubes."""
    return (folder / "index.csv").is_file() and (folder / "cubes.npz").is_file()


def read_cubes(folder: Path) -> Iterator[ImportedNodule]:
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
        hu, name = to_int16(cubes[row]), f"cube{row:03d}"
        planes = NodulePlanes(hu=hu, votes=mask.astype(np.uint8), spacing_mm=(CUBE_SPACING_MM, CUBE_SPACING_MM))
        patches = replace(cut_patches(planes), cube=cut_cube(hu, mask, spacing_mm=(CUBE_SPACING_MM,) * 3))
        ids = {
            "nodule_id": f"{record['lidc_patient']}_{name}" if known else f"LIDC-{name}",
            "patient_id": str(record["lidc_patient"]) if known else f"LIDC-{name}",
            "series_id": f"LIDC-{name}",
        }
        ratings = {_RATINGS[key]: float(value) for key, value in record.items() if key in _RATINGS and pd.notna(value)}
        diameter_mm = sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=CUBE_SPACING_MM**3)
        yield ImportedNodule(
            row=_row(patches, ids, ratings, diameter_mm=diameter_mm), patient_known=bool(known), patches=patches
        )


def _row(
    patches: NodulePatches, ids: Mapping[str, Any], ratings: Mapping[str, Any], *, diameter_mm: float
) -> NoduleRow:
    return NoduleRow(
        **ids,
        source=COLLECTION,
        texture_class=texture_class(ratings.get("texture")),
        diameter_mm=diameter_mm,
        votes=patches.mask_votes,
        mean_hu=patches.mean_hu,
        solid_fraction=patches.solid_fraction,
        **ratings,
        has_cube=patches.cube is not None,
    )
