"""What a detector is trained on: windows of 90 x 90 mm around the nodules of few patients, or cut from lungs.

Real windows come from a cohort's `windows/<id>.npz`: what surrounds a nodule, slice by slice. Lungs in them are not
outlined, so lung is what holds air and is not outside of the body.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from scipy import ndimage

from evaluation.cohort_subsets import Subset
from evaluation.segmentation.windows import SIDE_PX, FreeView
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.patches import WINDOW_PX
from lungsynth.cohort.reader import CohortSplit
from lungsynth.cohort.schema import LungEntry
from lungsynth.cohort.slices import slice_on_grid
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM, PATCH_SPACING_MM
from lungsynth.hounsfield import Label, to_int16
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane

__all__ = [
    "TrainingWindows",
    "cut_windows",
    "generated_windows",
    "join_windows",
    "lung_of",
    "read_free_windows",
    "read_training_windows",
]

_DENSER_THAN_LUNG_HU = -550  # vessels and nodules; the closing takes them in where lung surrounds them
_OUTSIDE_HU = -950  # on average: air that nobody breathes
_CLOSING_PX = 3  # 2.1 mm: vessels up to twice as wide are lung
_TRIES = 20  # places for each window wanted
_LEAST_LUNG = 0.3  # of a window that is cut from a lung
_LUNGS, _LUNGS_AT_ONCE = 64, 8  # generated ones that windows are cut from; memory only
_SLICES_PER_PATIENT = 12  # normal ones that free windows are cut from; neighbours show the same
_GRID_PX = round(LUNG_FIELD_MM / PATCH_SPACING_MM)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingWindows:
    """Windows on the grid of 0.7 mm.

    Args:
        hu: HU.
        label: 0 background, 2 nodule, 255 where nobody can tell.
        lung: pixels of lung, where nodules can be inserted; found by `lung_of` when None.
    """

    hu: Int16[np.ndarray, "n 128 128"]
    label: UInt8[np.ndarray, "n 128 128"]
    lung: Bool[np.ndarray, "n 128 128"] | None = None

    def __len__(self) -> int:
        return len(self.hu)

    def lung_at(self, index: int) -> MaskPlane:
        """Lung of one window."""
        return lung_of(self.hu[index]) if self.lung is None else self.lung[index]


def read_training_windows(split: CohortSplit, patients: Collection[str]) -> TrainingWindows:
    """All slices of the windows around the nodules of some patients.

    Args:
        split: of the cohort, the training one.
        patients: ids.

    Raises:
        InputError: when none of them has a window.
    """
    hu, label = [], []
    for nodule in split.all_nodules():
        if nodule.patient_id in patients and nodule.window and nodule.expert_mask:
            planes, labels = read_arrays(split.folder / nodule.window, "hu", "label")
            hu.append(planes)
            label.append(labels)
    if not hu:
        raise InputError(
            f"{split.folder}: none of {len(patients)} patients of its {split.name} split has a window around an "
            "outlined nodule. Prepare it again from scans, or from crops of 128 pixels."
        )
    return TrainingWindows(hu=np.concatenate(hu).astype(np.int16), label=np.concatenate(label))


def lung_of(hu: HuPlane) -> MaskPlane:
    """Lung in a window, with the vessels and nodules that lung surrounds: bool (H, W)."""
    air = np.pad(hu < _DENSER_THAN_LUNG_HU, _CLOSING_PX, mode="edge")
    closed = ndimage.binary_closing(air, iterations=_CLOSING_PX)[(slice(_CLOSING_PX, -_CLOSING_PX),) * 2]
    pieces, count = ndimage.label(closed)
    numbers = np.arange(1, count + 1)
    return np.isin(pieces, numbers[ndimage.mean(hu, pieces, numbers) >= _OUTSIDE_HU])


def cut_windows(lungs: Sequence[tuple[HuPlane, MaskPlane]], count: int, *, seed: int) -> TrainingWindows:
    """Windows without nodules from slices at 0.7 mm, at random places that show enough lung.

    Args:
        lungs: HU and lung mask of each slice, 128 pixels a side or more.
        count: of windows.
        seed: of the places.

    Raises:
        InputError: when no place shows enough lung.
    """
    pieces = _pieces(lungs, count, side=WINDOW_PX, rng=np.random.default_rng(seed))
    if len(pieces) < count:
        raise InputError(
            f"{len(pieces)} of {count} windows of the generated lungs show enough lung. Look at the lungs."
        )
    hu, masks = zip(*pieces, strict=True)
    label = np.zeros((count, WINDOW_PX, WINDOW_PX), np.uint8)
    return TrainingWindows(hu=np.stack(hu), label=label, lung=np.stack(masks))


def _pieces(
    lungs: Sequence[tuple[HuPlane, MaskPlane]], count: int, *, side: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most so many squares that show enough lung, at random places."""
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_TRIES * count):
        if len(pieces) == count:
            break
        image, mask = lungs[int(rng.integers(len(lungs)))]
        row, column = (int(rng.integers(0, length - side + 1)) for length in image.shape)
        window = (slice(row, row + side), slice(column, column + side))
        if mask[window].mean() >= _LEAST_LUNG:
            pieces.append((image[window], mask[window]))
    return pieces


def generated_windows(sampler: Any, count: int, *, seed: int) -> TrainingWindows:
    """Windows without nodules of generated lungs, on the grid of the real ones.

    Args:
        sampler: of the lungs, of wcapsgan_bundle.
        count: of windows.
        seed: of the lungs and the places.
    """
    lungs = []
    for begin in range(0, _LUNGS, _LUNGS_AT_ONCE):
        numbers = [seed * _LUNGS + number for number in range(begin, begin + _LUNGS_AT_ONCE)]
        drawn = sampler(numbers, ["normal"] * len(numbers), [None] * len(numbers))
        scale = float(np.mean(sampler.spacing_mm)) / PATCH_SPACING_MM
        for hu, mask in zip(drawn["hu"], drawn["mask"], strict=True):
            planes = (ndimage.zoom(np.asarray(plane, dtype=np.float32), scale, order=1) for plane in (hu, mask))
            lungs.append((to_int16(next(planes)), next(planes) >= 0.5))
    return cut_windows(lungs, count, seed=seed)


def read_free_windows(subset: Subset, count: int, *, seed: int) -> list[FreeView]:
    """Windows without a nodule from the normal slices of a subset, as many of each of its patients; none without such.

    Args:
        subset: who is evaluated on.
        count: of windows, at most.
        seed: of slices and places.
    """
    by_patient: dict[str, list[LungEntry]] = {}
    for entry in subset.lungs:
        by_patient.setdefault(entry.patient_id or entry.series_id, []).append(entry)
    rng, views = np.random.default_rng(seed), []
    for number, (patient, entries) in enumerate(sorted(by_patient.items())):
        wanted = count * (number + 1) // len(by_patient) - count * number // len(by_patient)
        chosen = rng.permutation(len(entries))[:_SLICES_PER_PATIENT]
        lungs = [_on_grid(*subset.cohort.read_slice(entries[int(index)])) for index in chosen] if wanted else []
        views += [
            FreeView(id=f"{patient} {place}", patient=patient, hu=hu)
            for place, (hu, _) in enumerate(_pieces(lungs, wanted, side=SIDE_PX, rng=rng))
        ]
    return views


def _on_grid(hu: HuPlane, label: LabelPlane, affine: Affine) -> tuple[HuPlane, MaskPlane]:
    spacing_mm = (float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0])))
    plane, labels = slice_on_grid(hu, label, spacing_mm=spacing_mm, size_px=_GRID_PX)
    return plane, labels != Label.BACKGROUND


def join_windows(parts: Sequence[TrainingWindows]) -> TrainingWindows:
    """All of them, one part after the other; what was known of their lungs is left out."""
    return TrainingWindows(
        hu=np.concatenate([part.hu for part in parts]), label=np.concatenate([part.label for part in parts])
    )
