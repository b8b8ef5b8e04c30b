# SPDX-License-Identifier: Apache-2.0
"""Patches that detail is learnt from: of whole slices, and of the windows around nodules of many more patients.

Both come from a cohort on one grid: `lungs/` (lungsynth prepare --lung-size 512) and `windows/`, at 0.7 mm. Slices from
coarser scans are left out: they have no detail to teach.
"""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .common.hounsfield import CT_RANGE_HU, NETWORK_WINDOW

__all__ = ["DetailPatches", "PatchSettings"]

_logger = logging.getLogger(__name__)

_WINDOW_SLICES = 6  # of a nodule, evenly over its stack: neighbours look alike
_OFF_CENTRE_PX = 12  # a patch is centred so near to a pixel that was drawn
_LUNG_SHARE = 0.75  # of the patches of whole slices that lie on lung; the others anywhere in the body
_BODY_HU = -300
_GRAIN_HU = 5.0  # half a step of the 8 bits that windows were stored in; drawn evenly, it fills the steps
_STRIDE = 4  # pixels between the places that may be drawn


class PatchSettings(NamedTuple):
    """Sizes and shares of patches.

    Attributes:
        size: pixels of a patch's side.
        margin: pixels around it, surroundings for the network.
        window_share: of patches from windows; the others are of whole slices.
        largest_spacing_mm: of the scans that whole slices come from.
    """

    size: int = 96
    margin: int = 16
    window_share: float = 0.5
    largest_spacing_mm: float = 1.0


_SETTINGS = PatchSettings()


class _Picture(NamedTuple):
    """HU int16 (H, W), with pixels (n, 2) to centre patches on: on lung, and in the body; none for a window."""

    hu: np.ndarray
    on_lung: np.ndarray | None = None
    in_body: np.ndarray | None = None


class DetailPatches:
    """All training pictures of a cohort in memory; a patient is drawn evenly, then one of the patient's pictures.

    Args:
        dataset_dir: a cohort with lungs of 0.7 mm, windows, or both.
        split: "training", "validation" or "test".
        settings: see there.

    Raises:
        FileNotFoundError: when `dataset_dir` is no cohort.
        ValueError: when it has no picture for a share that is not 0.
    """

    def __init__(self, dataset_dir: str | Path, *, split: str, settings: PatchSettings = _SETTINGS) -> None:
        folder, self.settings = Path(dataset_dir), settings
        self.slices = _by_patient(self._read_slices(folder, split))
        self.windows = _by_patient(self._read_windows(folder, split))
        for pictures, share, what in (
            (self.windows, settings.window_share, "windows"),
            (self.slices, 1 - settings.window_share, f"lungs of scans up to {settings.largest_spacing_mm:g} mm"),
        ):
            if share > 0 and not pictures:
                raise ValueError(
                    f"{folder}: expected {what} of the split {split!r}, got none. Prepare the cohort with --lung-size "
                    "512 and with nodules, or set window_share to 0 or 1."
                )
        _logger.info("Detail of %d patients of whole slices, %d of windows.", len(self.slices), len(self.windows))

    def draw(self, generator: torch.Generator, count: int) -> Tensor:
        """Draws patches with their margin, (count, 1, size + 2 * margin, ...) in [-1, 1]."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        hu = np.stack([self._patch(rng) for _ in range(count)])
        return NETWORK_WINDOW.to_unit(torch.from_numpy(hu), clip=True)[:, None]

    def _patch(self, rng: np.random.Generator) -> np.ndarray:
        """One patch, every other one mirrored, float32."""
        if rng.random() < self.settings.window_share:
            patch = self._of_window(_any(_any(self.windows, rng), rng).hu, rng)
        else:
            patch = self._of_slice(_any(_any(self.slices, rng), rng), rng)
        return np.ascontiguousarray(patch[:, ::-1] if rng.random() < 0.5 else patch)

    def _of_window(self, hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A patch inside a window, its border repeated for the margin."""
        size, margin = self.settings.size, self.settings.margin
        row, column = (int(rng.integers(side - size + 1)) for side in hu.shape)
        patch = _cut(np.pad(hu, margin, mode="edge"), row, column, size + 2 * margin)
        return patch + (rng.uniform(-_GRAIN_HU, _GRAIN_HU, patch.shape) * (patch > CT_RANGE_HU[0])).astype(np.float32)

    def _of_slice(self, picture: _Picture, rng: np.random.Generator) -> np.ndarray:
        """A patch of a whole slice, air beyond it."""
        size, margin = self.settings.size, self.settings.margin
        places = picture.on_lung if rng.random() < _LUNG_SHARE else picture.in_body
        centre = places[rng.integers(len(places))] + rng.integers(-_OFF_CENTRE_PX, _OFF_CENTRE_PX + 1, 2)
        row, column = np.clip(centre - size // 2, 0, np.asarray(picture.hu.shape) - size)
        air = int(NETWORK_WINDOW.low_hu)
        return _cut(np.pad(picture.hu, margin, constant_values=air), row, column, size + 2 * margin)

    def _read_slices(self, folder: Path, split: str) -> Iterator[tuple[str, _Picture]]:
        coarse = _coarse_series(folder, self.settings.largest_spacing_mm)
        for entry in _entries(folder / "lungs.json", split) if self.settings.window_share < 1 else ():
            if entry["series_id"] in coarse:
                continue
            with np.load(folder / entry["lung"]) as file:
                hu, mask = file["hu"], file["mask"] > 0
            on_lung = np.argwhere(mask[::_STRIDE, ::_STRIDE]) * _STRIDE
            in_body = np.argwhere(hu[::_STRIDE, ::_STRIDE] > _BODY_HU) * _STRIDE
            if min(hu.shape) >= self.settings.size and len(on_lung) and len(in_body):
                yield str(entry["patient_id"]), _Picture(hu, on_lung, in_body)

    def _read_windows(self, folder: Path, split: str) -> Iterator[tuple[str, _Picture]]:
        for entry in _entries(folder / "nodules.json", split) if self.settings.window_share > 0 else ():
            path = folder / "windows" / f"{entry['nodule_id']}.npz"
            if not path.is_file():
                continue
            with np.load(path) as file:
                stack = file["hu"]
            measured = _measured(stack)
            for index in np.unique(np.linspace(0, len(stack) - 1, _WINDOW_SLICES).round().astype(int)):
                hu = stack[(index, *measured)]
                if min(hu.shape) >= self.settings.size:
                    yield str(entry["patient_id"]), _Picture(np.ascontiguousarray(hu))


def _entries(path: Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Entries of a data list; FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the data list of a cohort, found none. Prepare one (lungsynth prepare) and give its "
            "folder as dataset_dir."
        )
    return json.loads(path.read_text(encoding="utf-8")).get(split) or []


def _coarse_series(folder: Path, largest_mm: float) -> set[str]:
    """Ids of the series with larger pixels; none where the cohort does not say."""
    path = folder / "series.csv"
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {row["series_id"] for row in csv.DictReader(file) if float(row["spacing_row_mm"] or 0) > largest_mm}


def _measured(stack: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a window (n, H, W) between the borders that the cohort repeated beyond the source."""
    spans = []
    for axis in (1, 2):
        others = tuple(a for a in range(3) if a != axis)
        changes = np.flatnonzero((np.diff(stack, axis=axis) != 0).any(axis=others))
        spans.append(slice(changes[0], changes[-1] + 2) if len(changes) else slice(0, 0))
    return spans[0], spans[1]


def _by_patient(pictures: Iterator[tuple[str, _Picture]]) -> list[list[_Picture]]:
    patients: dict[str, list[_Picture]] = {}
    for patient, picture in pictures:
        patients.setdefault(patient, []).append(picture)
    return [patients[name] for name in sorted(patients)]


def _any(items: list[Any], rng: np.random.Generator) -> Any:
    return items[rng.integers(len(items))]


def _cut(hu: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    return hu[row : row + size, column : column + size].astype(np.float32)
