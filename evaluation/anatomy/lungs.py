"""Lungs at 0.7 mm: those of a cohort's patients on their own grids, and generated ones on whatever grid they come."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage

from evaluation.anatomy.outline import PIXEL_MM
from lungsynth.cohort.files import read_arrays, read_cohort_json
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import LungEntry
from lungsynth.cohort.slices import slice_on_grid
from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM
from lungsynth.hounsfield import Label, to_int16
from lungsynth.similarity.samples import Samples

__all__ = ["COARSEST_MM", "SLICES_PER_PATIENT", "at_full_resolution", "read_images", "read_native_lungs"]

COARSEST_MM = 1.0  # pixels of a scan that shows what 0.7 mm can; chests fill 512 pixels of at most about 0.98 mm
SLICES_PER_PATIENT = 4  # neighbours are nearly the same slice, and patients count evenly
_SIZE_PX = round(LUNG_FIELD_MM / PIXEL_MM)
T = TypeVar("T")


def read_native_lungs(cohort: Path, splits: Sequence[str], *, per_patient: int = SLICES_PER_PATIENT) -> Samples:
    """Normal slices of patients, from their own grids to 0.7 mm, evenly spread over each patient's.

    Args:
        cohort: what `lungsynth prepare` wrote, with lungs of either size.
        splits: whose patients.
        per_patient: at most so many slices each.

    Raises:
        InputError: when no scan is fine enough, or a file is damaged.
    """
    opened = Cohort.open(cohort)
    pixel_mm = {
        row.series_id: max(row.spacing_row_mm or math.inf, row.spacing_column_mm or math.inf)
        for split in splits
        for row in opened.split(split).series()
    }
    by_patient: dict[str, list[LungEntry]] = defaultdict(list)
    for split in splits:
        for entry in opened.split(split).lungs():
            if pixel_mm.get(entry.series_id, math.inf) <= COARSEST_MM:
                by_patient[entry.patient_id or entry.series_id].append(entry)
    entries = [(owner, entry) for owner, own in sorted(by_patient.items()) for entry in _chosen(own, per_patient)]
    if not entries:
        raise InputError(
            f"{cohort}: no normal slice of its {' and '.join(splits)} patients has pixels of at most {COARSEST_MM} mm; "
            "anatomy at 0.7 mm cannot be judged against coarser ones. Prepare it from scans at full resolution."
        )
    planes = [_on_grid(*opened.read_slice(entry)) for _, entry in entries]
    return Samples(
        hu=np.stack([hu for hu, _ in planes]),
        mask=np.stack([mask for _, mask in planes]).astype(np.float16),
        categories=tuple(entry.category for _, entry in entries),
        owners=tuple(owner for owner, _ in entries),
        names=tuple(entry.slice_id for _, entry in entries),
        spacing_mm=PIXEL_MM,
    )


def at_full_resolution(samples: Samples) -> Samples:
    """Lungs at 0.7 mm: coarser ones are interpolated linearly, as the compositing does; finer ones are averaged."""
    zoom = samples.spacing_mm / PIXEL_MM
    if abs(zoom - 1) < 1e-3:
        return samples
    hu = np.stack([to_int16(_zoomed(plane, zoom)) for plane in samples.hu])
    mask = np.stack([_zoomed(plane, zoom) >= 0.5 for plane in samples.mask]).astype(np.float16)
    return Samples(
        hu=hu,
        mask=mask,
        categories=samples.categories,
        owners=samples.owners,
        names=samples.names,
        spacing_mm=PIXEL_MM,
    )


def read_images(path: Path, *, count: int) -> Samples:
    """Generated lungs, each its own owner; of more than `count`, that many evenly spread.

    Args:
        path: an npz with `hu` and `mask`, each (N, S, S) or (S, S), a folder of such, or a folder with a
            `datalist.json` of slices and label maps, such as `lungsynth generate` writes. The arrays are 358.4 mm
            across, at any S.
        count: at most so many.

    Raises:
        InputError: when there is none, or one cannot be read.
    """
    if (path / "datalist.json").is_file():
        planes = _listed(path, count)
    elif path.is_dir():
        planes = [_planes(one) for one in _evenly(sorted(path.glob("*.npz")), count)]
    else:
        planes = [_planes(path)]
    if not planes or len({hu.shape[1:] for hu, _ in planes}) != 1:
        raise InputError(
            f"{path}: expected an npz with `hu` and `mask`, a folder of such of one size, or a folder with a "
            f"datalist.json, got {len(planes)} images."
        )
    hu, mask = (np.concatenate(side) for side in zip(*planes, strict=True))
    chosen = _evenly(range(len(hu)), count)
    names = tuple(f"{path.name} {index}" for index in chosen)
    return Samples(
        hu=to_int16(hu[chosen]),
        mask=mask[chosen].astype(np.float16),
        categories=("normal",) * len(names),
        owners=names,
        names=names,
        spacing_mm=LUNG_FIELD_MM / hu.shape[-1],
    )


def _planes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    hu, mask = read_arrays(path, "hu", "mask")
    if hu.shape != mask.shape or hu.ndim not in (2, 3) or hu.shape[-1] != hu.shape[-2]:
        raise InputError(f"{path}: expected `hu` and `mask` of one shape (N, S, S), got {hu.shape} and {mask.shape}.")
    return (hu, mask) if hu.ndim == 3 else (hu[None], mask[None])


def _listed(folder: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Slices of a data list, on the grid of 0.7 mm."""
    content = read_cohort_json(folder / "datalist.json")
    pairs = [one for key in ("training", "validation") for one in content.get(key, [])]
    planes = []
    for pair in _evenly(pairs, count):
        hu, affine = read_plane(folder / pair["image"])
        label, _ = read_plane(folder / pair["label"])
        plane, lung = _on_grid(hu, label, affine)
        planes.append((plane[None], lung[None]))
    return planes


def _evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, evenly spread over their order."""
    if len(items) <= count:
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def _chosen(entries: Sequence[LungEntry], count: int) -> list[LungEntry]:
    return _evenly(sorted(entries, key=lambda entry: entry.slice_id), count)


def _on_grid(hu: np.ndarray, label: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its lungs, nodules included, at 0.7 mm; one that is on the generator's field already is not moved."""
    row_mm, column_mm = (float(np.linalg.norm(affine[:3, axis])) for axis in (1, 0))
    labels = np.where(label == Label.UNLABELLED, np.uint8(Label.BACKGROUND), label)
    if hu.shape == (_SIZE_PX, _SIZE_PX) and max(abs(row_mm - PIXEL_MM), abs(column_mm - PIXEL_MM)) < 1e-3:
        return hu, labels != Label.BACKGROUND
    plane, labels = slice_on_grid(hu, labels, spacing_mm=(row_mm, column_mm), size_px=_SIZE_PX)
    return plane, labels != Label.BACKGROUND


def _zoomed(plane: np.ndarray, zoom: float) -> np.ndarray:
    if zoom < 1:
        plane = ndimage.gaussian_filter(plane.astype(np.float32), 0.5 / zoom / 2)
    return np.asarray(ndimage.zoom(plane.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest"))
