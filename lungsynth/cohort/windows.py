"""A nodule with what surrounds it: slices of 90 x 90 mm, one above the other, from which `lung_seg_bundle` learns.

The patches of a nodule (`patches.py`) end 22 mm from its middle and are centred slice by slice. A network that finds
nodules needs vessels, pleura and ribs around them, and the slices below and above.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8

from lungsynth.cohort.resampling import CentredGrid
from lungsynth.io.atomic import write_arrays

__all__ = ["IGNORED", "NODULE", "WINDOW_PX", "NoduleWindow", "cut_window", "reader_label"]

WINDOW_PX = 128  # of 0.7 mm
NODULE = 2
IGNORED = 255  # nobody can tell, or the source does not reach so far
_COVERED = 0.999  # share of a pixel that must be measured; 1 but for the rounding of the resampling

HuWindow = Int16[np.ndarray, "slices 128 128"]
LabelWindow = UInt8[np.ndarray, "slices 128 128"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NoduleWindow:
    """Slices that show a nodule, and their neighbours, on the grid of 0.7 mm centred on it.

    Args:
        hu: int16 (n, 128, 128), the source's border repeated.
        label: uint8 (n, 128, 128): 0 background, 2 nodule, 255 where nobody can tell.
        votes: uint8 (n, 128, 128), readers that drew the pixel.
        readers: uint8 (n, 128, 128), which ones: bit k for reader k; None where only their number is known.
        z_mm: float64 (n,), positions of the slices, ascending.
        largest: index of the slice that shows most of the nodule.
    """

    hu: HuWindow
    label: LabelWindow
    votes: LabelWindow
    readers: LabelWindow | None = None
    z_mm: Float[np.ndarray, " slices"]
    largest: int

    def save(self, path: Path) -> None:
        """Writes the npz."""
        names = ("hu", "label", "votes", "z_mm", "largest", *(() if self.readers is None else ("readers",)))
        write_arrays(path, **{name: np.asarray(getattr(self, name)) for name in names})


def reader_label(votes: UInt8[np.ndarray, "slices height width"]) -> UInt8[np.ndarray, "slices height width"]:
    """Label of a nodule from the number of readers that drew each pixel.

    Nodule is what two readers agree on. Where a slice shows that, what one reader alone drew is background; on slices
    without it, and on nodules that only one reader saw, nobody can tell.
    """
    agreed = votes >= 2
    label = np.where(agreed, NODULE, 0).astype(np.uint8)
    label[(votes == 1) & ~agreed.any(axis=(1, 2), keepdims=True)] = IGNORED
    return label


def cut_window(
    hu: Int16[np.ndarray, "slices height width"],
    label: UInt8[np.ndarray, "slices height width"],
    *,
    spacing_mm: tuple[float, float],
    z_mm: Float[np.ndarray, " slices"],
    nodule: Bool[np.ndarray, "slices height width"],
    votes: UInt8[np.ndarray, "slices height width"],
    readers: UInt8[np.ndarray, "slices height width"] | None = None,
) -> NoduleWindow:
    """Cuts a window out of slices.

    Args:
        hu: the slices, inferior to superior.
        label: 0, 2 or 255 a pixel, also of other nodules on these slices.
        spacing_mm: (row, column).
        z_mm: positions of the slices.
        nodule: the nodule that the window is centred on, not empty.
        votes: readers that drew each pixel.
        readers: which ones, if known.
    """
    grid = CentredGrid(np.asarray(nodule.any(axis=0)), spacing_mm, size_px=WINDOW_PX)
    covered = grid.share(np.ones(hu.shape[1:], bool)) > _COVERED
    labels = np.full((len(hu), WINDOW_PX, WINDOW_PX), IGNORED, np.uint8)
    for plane, ids in zip(labels, label, strict=True):
        plane[covered & (grid.share(ids == IGNORED) < 0.5)] = 0
        plane[covered & (grid.share(ids == NODULE) >= 0.5)] = NODULE
    counts = [sum(grid.share(plane >= vote) >= 0.5 for vote in range(1, int(votes.max()) + 1)) for plane in votes]
    return NoduleWindow(
        hu=np.stack([grid.hu(plane) for plane in hu]),
        label=labels,
        votes=np.stack([np.broadcast_to(count, covered.shape) for count in counts]).astype(np.uint8),
        readers=None if readers is None else np.stack([_bits(grid, plane) for plane in readers]),
        z_mm=z_mm.astype(np.float64),
        largest=int(nodule.sum(axis=(1, 2)).argmax()),
    )


def _bits(grid: CentredGrid, plane: np.ndarray) -> np.ndarray:
    """The readers' masks, each resampled."""
    bits = np.zeros((WINDOW_PX, WINDOW_PX), np.uint8)
    for bit in range(int(plane.max()).bit_length()):
        bits |= (grid.share((plane >> bit & 1) > 0) >= 0.5).astype(np.uint8) << bit
    return bits
