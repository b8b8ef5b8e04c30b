"""Importers of LIDC nodules that come without their scans: as 8-bit crops, as slices in PNG, or as cubes in HU.

Crops: a folder of `*_64.npz` with `index.csv` and, when present, `nodules.csv`. The npz holds `image` and `votes`
(uint8, N x 64 x 64) and `row` (which line of index.csv). Grey levels are brought back to HU by `calibration`; HU of
such nodules are estimates. Nodules that are cut by their crop, were drawn by nobody or have no pixel spacing are left
out.

Slices: the layout in which crops of LIDC-IDRI are passed around, `<patient>/nodule-<k>/images/slice-<j>.png`, with a
folder `mask-<r>` for each reader. An `index.csv` in any source tells pixel spacing and distance of slices by patient
and nodule, a `nodules.csv` the ratings; without the first, `ASSUMED_SPACING_MM` is taken. HU are estimates, too.

Cubes: `cubes.npz` with `index.csv`. The npz holds `hu` and `mask`, N x 51 x 51 x 51 at 1 mm in (z, y, x). The mask is
one reader's, so `mask_votes` is 1. Cubes without a known patient are marked so: they must never meet a test set.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lungsynth.cohort.calibration import estimate_calibration
from lungsynth.cohort.patches import (
    NodulePatches,
    NodulePlanes,
    NoduleWindow,
    cut_cube,
    cut_patches,
    cut_window,
    reader_label,
    sphere_diameter_mm,
    texture_class,
)
from lungsynth.cohort.schema import RATINGS, NoduleRow, nodule_id
from lungsynth.cohort.stacks import stack_cube
from lungsynth.errors import InputError, naming_file
from lungsynth.hounsfield import check_hu, to_int16
from lungsynth.io.names import file_stem, readable

__all__ = [
    "ASSUMED_SPACING_MM",
    "COLLECTION",
    "SPACING_ASSUMED",
    "ImportedNodule",
    "imported_row",
    "is_crop_folder",
    "is_cube_folder",
    "is_slice_index",
    "nodule_folders",
    "ratings_in_range",
    "read_crops",
    "read_cubes",
    "read_ratings",
    "read_slices",
    "readers_window",
]

_logger = logging.getLogger(__name__)

COLLECTION = "LIDC-IDRI"
INDEX_COLUMNS = ("row", "patient", "nodule", "slice", "px_cut_by_64crop", "pixel_spacing_mm")
_CROP_NUMBERS = ("row", "nodule", "px_cut_by_64crop", "pixel_spacing_mm")
_ID_COLUMNS = ("patient", "lidc_patient", "name")
CUBE_SPACING_MM = 1.0
SPACING_ASSUMED = "no table tells its spacing"  # how the note of such a nodule begins, behind its id
ASSUMED_SPACING_MM = 0.7  # median of LIDC-IDRI, whose scans have 0.46 to 0.98 mm
_PIXEL_MM = (0.1, 3.0)  # of chest CT
_STEP_MM = (0.1, 20.0)
_UNREADABLE_SLICES = "could not be read as slices of LIDC nodules"
_SLICE_COLUMNS = {"patient", "nodule", "slice", "pixel_spacing_mm", "slice_spacing_mm"}
_ASSUMED_STEP_MM = 2.5  # of crops and slices whose index does not tell it
# LIDC's characteristics, by the names that this project uses.
_RATINGS = {"internalStructure" if name == "internal_structure" else name: name for name in RATINGS}


_HIGHEST = {"calcification": 6, "internal_structure": 4}  # ratings go from 1 to 5, but for these
_SPACING_MM = (0.1, 3.0)  # of a pixel of chest CT
_UNREADABLE = "could not be read as LIDC nodules"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImportedNodule:
    """A nodule without its scan.

    Args:
        row: its row.
        patient_known: False where its patient id is only a stand-in.
        patches: its slices.
        notes: ratings that were left out, and why.
    """

    row: NoduleRow
    patient_known: bool
    patches: NodulePatches
    notes: tuple[str, ...] = ()


def is_crop_folder(folder: Path) -> bool:
    """Whether `folder` holds such crops."""
    return (folder / "index.csv").is_file() and any(folder.glob("*_64.npz"))


def read_crops(folder: Path) -> Iterator[ImportedNodule]:
    """Yields the nodules of a crop folder, in the order of index.csv.

    Raises:
        InputError: when a file is damaged, lacks columns or arrays, or index and images disagree.
    """
    archive = sorted(folder.glob("*_64.npz"))[0]
    index = _read_index(folder / "index.csv", INDEX_COLUMNS, _CROP_NUMBERS)
    images, votes = _read_crop_arrays(archive, index)
    ratings = read_ratings(folder / "nodules.csv")
    for (patient, nodule), rows in index.groupby(["patient", "nodule"], sort=False):
        spacing = float(rows["pixel_spacing_mm"].iloc[0])
        whole = rows[rows["px_cut_by_64crop"] == 0]
        lines = whole.index.to_numpy()
        known = _SPACING_MM[0] <= spacing <= _SPACING_MM[1]
        if len(lines) == 0 or not votes[lines].any() or len(whole) < len(rows) or not known:
            _logger.debug("%s nodule %s is cut by its crop, without mask or without spacing", patient, nodule)
            continue
        hu = np.stack([to_int16(estimate_calibration(images[k]).to_hu(images[k])) for k in lines])
        planes = NodulePlanes(hu=hu, votes=votes[lines], spacing_mm=(spacing, spacing))
        z_mm = np.arange(len(lines)) * _ASSUMED_STEP_MM
        patches = replace(cut_patches(planes), window=readers_window(planes, z_mm=z_mm))
        ids = {
            "nodule_id": nodule_id(patient, int(nodule)),
            "patient_id": patient,
            "series_id": f"{patient}_crops",
        }
        kept, notes = ratings_in_range(ratings.get((patient, nodule), {}), ids["nodule_id"])
        row = imported_row(patches, ids, kept, diameter_mm=patches.disc_diameter_mm)
        yield ImportedNodule(row=row, patient_known=True, patches=patches, notes=notes)


def _read_index(path: Path, columns: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A table with these columns, ids as one line of text."""
    with naming_file(path, _UNREADABLE):
        index = pd.read_csv(path, encoding="utf-8-sig", dtype=dict.fromkeys(_ID_COLUMNS, str))
        if missing := [name for name in columns if name not in index.columns]:
            raise InputError(
                f"{path}: needs the columns {list(columns)}, lacks {missing}; take the index of the export."
            )
        for name in numbers:
            index[name] = pd.to_numeric(index[name], errors="coerce")
        whole = [name for name in numbers if name in ("row", "nodule")]
        if (bad := ~np.isfinite(index[whole]).all(axis=1)).any():
            raise InputError(f"{path}: line {int(bad.idxmax()) + 2} has no number as {' or '.join(whole)}; mend it.")
        for name in _ID_COLUMNS:
            if name in index.columns:
                index[name] = index[name].map(readable, na_action="ignore")
        return index


def _read_crop_arrays(archive: Path, index: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Images and votes in the order of `index`."""
    images, votes, rows = _read_arrays(archive, "image", "votes", "row")
    if images.dtype != np.uint8 or images.shape != votes.shape or images.shape[1:] != (64, 64):
        raise InputError(
            f"{archive}: needs uint8 images and votes of (N, 64, 64), "
            f"got {images.dtype} {images.shape} and {votes.shape}."
        )
    with naming_file(archive, _UNREADABLE):
        votes = votes.astype(np.uint8)
        place = pd.Series(np.arange(len(rows)), index=rows)
        absent = ~index["row"].isin(place.index)
        if absent.any() or not place.index.is_unique:
            raise InputError(f"{archive}: lacks {int(absent.sum())} rows of index.csv; both must come from one export.")
        order = place.loc[index["row"]].to_numpy()
        return images[order], votes[order]


def _read_arrays(archive: Path, *names: str) -> tuple[np.ndarray, ...]:
    with naming_file(archive, _UNREADABLE), np.load(archive, allow_pickle=False) as arrays:
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"{archive}: needs the arrays {', '.join(names)}, lacks {missing}, has {arrays.files}.")
        return tuple(arrays[name] for name in names)


def read_ratings(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Mean ratings by (patient, nodule); empty without the file."""
    if not path.is_file():
        return {}
    names = {**_RATINGS, "mean_diameter_mm": "reader_diameter_mm"}
    table = _read_index(path, ("patient", "nodule"), ("nodule", *(_columns_of(path) & set(names))))
    columns = [name for name in names if name in table.columns]
    return {
        (str(row["patient"]), int(row["nodule"])): {names[c]: float(row[c]) for c in columns if pd.notna(row[c])}
        for row in table.to_dict("records")
    }


def _columns_of(path: Path) -> set[str]:
    with naming_file(path, _UNREADABLE):
        return set(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)


def ratings_in_range(values: Mapping[str, float], nodule: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """Ratings and diameters that can be, and notes on the others."""
    kept, notes = {}, []
    for name, value in values.items():
        low, high = (0.0, 300.0) if name == "reader_diameter_mm" else (1.0, _HIGHEST.get(name, 5))
        if low <= value <= high:
            kept[name] = value
        else:
            notes.append(f"{nodule}: {name} {value:g} lies outside {low:g}..{high:g} and was left out")
    return kept, tuple(notes)


def is_cube_folder(folder: Path) -> bool:
    """Whether `folder` holds such cubes."""
    return (folder / "index.csv").is_file() and (folder / "cubes.npz").is_file()


def read_cubes(folder: Path) -> Iterator[ImportedNodule]:
    """Yields the nodules of a cube folder, in the order of index.csv.

    Raises:
        InputError: when a file is damaged, an array or a column is missing, or a cube is not in HU.
    """
    path = folder / "cubes.npz"
    index = _read_index(folder / "index.csv", ("row", "name", "lidc_patient"), ("row", *_columns_of_ratings(folder)))
    cubes, masks = _read_arrays(path, "hu", "mask")
    if cubes.ndim != 4 or cubes.shape != masks.shape or not index["row"].isin(range(len(cubes))).all():
        raise InputError(
            f"{path}: needs hu and mask of one shape (N, depth, height, width) for the rows of index.csv, got "
            f"{cubes.shape} and {masks.shape}; both must come from one export."
        )
    for record in index.to_dict("records"):
        row, known = int(record["row"]), pd.notna(record["lidc_patient"])
        mask = masks[row] > 0
        if not mask.any():
            continue
        check_hu(cubes[row], name=f"{path}, row {row}")
        hu, name = to_int16(cubes[row]), f"cube{row:03d}"
        planes = NodulePlanes(hu=hu, votes=mask.astype(np.uint8), spacing_mm=(CUBE_SPACING_MM, CUBE_SPACING_MM))
        z_mm = np.arange(len(hu)) * CUBE_SPACING_MM
        patches = replace(
            cut_patches(planes),
            cube=cut_cube(hu, mask, spacing_mm=(CUBE_SPACING_MM,) * 3),
            window=readers_window(planes, z_mm=z_mm),
        )
        patient = str(record["lidc_patient"]) if known else f"LIDC-{name}"
        ids = {
            "nodule_id": f"{file_stem(patient)}_{name}" if known else patient,
            "patient_id": patient,
            "series_id": f"LIDC-{name}",
        }
        given = {_RATINGS[key]: float(value) for key, value in record.items() if key in _RATINGS and pd.notna(value)}
        ratings, notes = ratings_in_range(given, ids["nodule_id"])
        diameter_mm = sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=CUBE_SPACING_MM**3)
        yield ImportedNodule(
            row=imported_row(patches, ids, ratings, diameter_mm=diameter_mm),
            patient_known=bool(known),
            patches=patches,
            notes=notes,
        )


def _columns_of_ratings(folder: Path) -> set[str]:
    return _columns_of(folder / "index.csv") & set(_RATINGS)


def readers_window(planes: NodulePlanes, *, z_mm: np.ndarray, readers: np.ndarray | None = None) -> NoduleWindow:
    """The window of a nodule that comes without its scan, its label from the readers' votes.

    Args:
        planes: its slices.
        z_mm: their positions, (n,).
        readers: uint8, which readers drew each pixel, by bit; None where only their number is known.
    """
    return cut_window(
        planes.hu,
        reader_label(planes.votes),
        spacing_mm=planes.spacing_mm,
        z_mm=z_mm,
        nodule=planes.votes >= planes.mask_votes,
        votes=planes.votes,
        readers=readers,
    )


def imported_row(
    patches: NodulePatches, ids: Mapping[str, Any], ratings: Mapping[str, Any], *, diameter_mm: float
) -> NoduleRow:
    """The row of a nodule that comes without its scan, measured on its patches."""
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
        z_mm = np.array(indices) * step
        window = readers_window(planes, z_mm=z_mm, readers=readers)
        cube = stack_cube(planes, z_mm) if known else None  # an assumed step would make another shape
        patches = replace(cut_patches(planes), window=window, cube=cube)
        ids = {"nodule_id": nodule_id(patient, number), "patient_id": patient, "series_id": f"{patient}_crops"}
        kept, notes = ratings_in_range(ratings.get((patient, number), {}), ids["nodule_id"])
        row = imported_row(patches, ids, kept, diameter_mm=patches.disc_diameter_mm)
        assumed = () if known else (_assumed(ids["nodule_id"]),)
        yield ImportedNodule(row=row, patient_known=True, patches=patches, notes=(*notes, *assumed))


def _assumed(name: str) -> str:
    return (
        f"{name}: {SPACING_ASSUMED}; {ASSUMED_SPACING_MM} mm a pixel are assumed, and sizes may be off by a third; "
        "give an index.csv with patient, nodule, slice, pixel_spacing_mm and slice_spacing_mm"
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
    with naming_file(path, _UNREADABLE_SLICES), Image.open(path) as image:
        if image.mode not in ("L", "1", "P", "RGB"):
            raise InputError(f"{path}: expected an 8-bit image, got one of mode {image.mode}; export it again.")
        return np.asarray(image.convert("L"))


def _slice_spacings(tables: Sequence[Path]) -> dict[tuple[str, int], tuple[float, float]]:
    """(pixel spacing, distance of slices numbered 0 and 1) in mm by (patient, nodule), where both are known."""
    known = {}
    for path in tables:
        with naming_file(path, _UNREADABLE_SLICES):
            table = pd.read_csv(path, encoding="utf-8-sig", dtype={"patient": str})
            for row in table.drop_duplicates(["patient", "nodule"]).to_dict("records"):
                spacing, step = float(row["pixel_spacing_mm"]), float(row["slice_spacing_mm"])
                if _PIXEL_MM[0] <= spacing <= _PIXEL_MM[1] and _STEP_MM[0] <= step <= _STEP_MM[1]:
                    known[readable(row["patient"]), int(row["nodule"])] = spacing, step
    return known
