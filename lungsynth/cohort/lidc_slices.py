"""Importer of LIDC nodules that come as slices in PNG, the layout in which crops of LIDC-IDRI are passed around.

`<patient>/nodule-<k>/images/slice-<j>.png`, with a folder `mask-<r>` for each reader. An `index.csv` in any source
tells pixel spacing and distance of slices by patient and nodule, a `nodules.csv` the ratings; without the first,
`ASSUMED_SPACING_MM` is taken. Grey levels are brought back to HU by `calibration`; HU of such nodules are estimates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lungsynth.cohort.calibration import estimate_calibration
from lungsynth.cohort.lidc_nodules import ImportedNodule, imported_row, ratings_in_range, read_ratings, readers_window
from lungsynth.cohort.patches import NodulePlanes, cut_patches
from lungsynth.cohort.schema import nodule_id
from lungsynth.errors import InputError, naming_file
from lungsynth.hounsfield import to_int16
from lungsynth.io.names import readable

__all__ = ["ASSUMED_SPACING_MM", "is_slice_index", "nodule_folders", "read_slices"]

ASSUMED_SPACING_MM = 0.7  # median of LIDC-IDRI, whose scans have 0.46 to 0.98 mm
_ASSUMED_STEP_MM = 2.5
_PIXEL_MM = (0.1, 3.0)  # of chest CT
_STEP_MM = (0.1, 20.0)
_UNREADABLE = "could not be read as slices of LIDC nodules"
_SLICE_COLUMNS = {"patient", "nodule", "slice", "pixel_spacing_mm", "slice_spacing_mm"}


def nodule_folders(folder: Path) -> list[Path]:
    """Folders `nodule-<k>` that hold slices and readers' masks as PNG, at any depth, in the order of their names."""
    found = (images.parent for images in folder.rglob("nodule-*/images") if any(images.glob("slice-*.png")))
    return sorted(found, key=lambda path: (path.parent.name, _number(path)))


def is_slice_index(path: Path) -> bool:
    """Whether a table tells the spacing of slices by patient and nodule."""
    try:
        return set(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns) >= _SLICE_COLUMNS
    except (OSError, ValueError):
        return False


def read_slices(folders: Sequence[Path], *, tables: Sequence[Path] = ()) -> Iterator[ImportedNodule]:
    """Yields the nodules of such folders that at least one reader drew and whose patch holds them.

    Args:
        folders: of one nodule each.
        tables: `index.csv` and `nodules.csv`, if any.

    Raises:
        InputError: when an image cannot be read, or a mask has another shape than its image.
    """
    spacings = _slice_spacings([path for path in tables if is_slice_index(path)])
    ratings: dict[tuple[str, int], dict[str, float]] = {}
    for path in tables:
        ratings |= {} if is_slice_index(path) else read_ratings(path)
    for folder in folders:
        patient, number = readable(folder.parent.name), _number(folder)
        indices, images, readers = _read_pngs(folder)
        votes = np.bitwise_count(readers)
        if not votes.any():
            continue
        known = spacings.get((patient, number))
        spacing, step = known or (ASSUMED_SPACING_MM, _ASSUMED_STEP_MM)
        hu = np.stack([to_int16(estimate_calibration(image).to_hu(image)) for image in images])
        planes = NodulePlanes(hu=hu, votes=votes, spacing_mm=(spacing, spacing))
        window = readers_window(planes, z_mm=np.array(indices) * step, readers=readers)
        patches = replace(cut_patches(planes), window=window)
        ids = {"nodule_id": nodule_id(patient, number), "patient_id": patient, "series_id": f"{patient}_crops"}
        kept, notes = ratings_in_range(ratings.get((patient, number), {}), ids["nodule_id"])
        row = imported_row(patches, ids, kept, diameter_mm=patches.disc_diameter_mm)
        assumed = () if known else (_assumed(ids["nodule_id"]),)
        yield ImportedNodule(row=row, patient_known=True, patches=patches, notes=(*notes, *assumed))


def _assumed(name: str) -> str:
    return (
        f"{name}: no table tells its spacing; {ASSUMED_SPACING_MM} mm a pixel are assumed, and sizes may be off by a "
        "third; give an index.csv with patient, nodule, slice, pixel_spacing_mm and slice_spacing_mm"
    )


def _number(folder: Path) -> int:
    digits = folder.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _read_pngs(folder: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Slice numbers, grey levels and readers (bit k: reader k drew) of one nodule, in the order of the slices."""
    files = sorted((folder / "images").glob("slice-*.png"), key=lambda path: _number(path.with_suffix("")))
    images, readers = [], []
    for path in files:
        image = _read_png(path)
        drawn = np.zeros(image.shape, np.uint8)
        for bit, reader in enumerate(sorted(folder.glob("mask-*"))):
            if (reader / path.name).is_file():
                mask = _read_png(reader / path.name)
                if mask.shape != image.shape:
                    raise InputError(
                        f"{reader / path.name}: a mask has its image's shape {image.shape}, got {mask.shape}."
                    )
                drawn |= (mask > 0).astype(np.uint8) << bit
        images.append(image)
        readers.append(drawn)
    if len({image.shape for image in images}) != 1:
        raise InputError(f"{folder}: slices of one nodule have one shape, got {sorted({i.shape for i in images})}.")
    return [_number(path.with_suffix("")) for path in files], np.stack(images), np.stack(readers)


def _read_png(path: Path) -> np.ndarray:
    with naming_file(path, _UNREADABLE), Image.open(path) as image:
        if image.mode not in ("L", "1", "P", "RGB"):
            raise InputError(f"{path}: expected an 8-bit image, got one of mode {image.mode}; export it again.")
        return np.asarray(image.convert("L"))


def _slice_spacings(tables: Sequence[Path]) -> dict[tuple[str, int], tuple[float, float]]:
    """(pixel spacing, distance of slices numbered 0 and 1) in mm by (patient, nodule), where both are known."""
    known = {}
    for path in tables:
        with naming_file(path, _UNREADABLE):
            table = pd.read_csv(path, encoding="utf-8-sig", dtype={"patient": str})
            for row in table.drop_duplicates(["patient", "nodule"]).to_dict("records"):
                spacing, step = float(row["pixel_spacing_mm"]), float(row["slice_spacing_mm"])
                if _PIXEL_MM[0] <= spacing <= _PIXEL_MM[1] and _STEP_MM[0] <= step <= _STEP_MM[1]:
                    known[readable(row["patient"]), int(row["nodule"])] = spacing, step
    return known
