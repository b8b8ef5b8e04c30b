"""A nodule on the grid of generators and augmentations, with HU, soft mask and measurements: patches, cube and window.

Patches have 64 x 64 pixels of 0.7 mm. `votes` counts the readers that drew a pixel. The consensus mask is where two
readers agree; where no two do, it is the single reader's mask, and `mask_votes` says 1. See
docs/reference/conventions.md, "Nodules".

The cube has 64 x 64 x 64 voxels of 0.7 mm. The patches of a nodule cannot be stacked to it: each is centred on the mask
of its own slice, which straightens a nodule that runs obliquely (in 134 LIDC nodules those centres lie 2.3 mm apart in
the median, 20 mm at most).

Patches end 22 mm from the nodule's middle. A network that finds nodules needs vessels, pleura and ribs around them, and
the slices below and above: those are in its window, slices of 90 x 90 mm, from which `lung_seg_bundle` learns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int16, UInt8

from lungsynth.cohort.resampling import CentredGrid, isolate, soft_mask
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM, disc_diameter
from lungsynth.hounsfield import SOLID_HU
from lungsynth.io.atomic import write_arrays
from lungsynth.types import HuPatches, HuVolume

__all__ = [
    "FEWEST_SLICES",
    "IGNORED",
    "NODULE",
    "WINDOW_PX",
    "NoduleCube",
    "NodulePatches",
    "NodulePlanes",
    "NoduleWindow",
    "cube_diameter_mm",
    "cut_cube",
    "cut_patches",
    "cut_window",
    "reader_label",
    "sphere_diameter_mm",
    "texture_class",
]

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


FEWEST_SLICES = 3  # that show a nodule; with fewer its shape along them is a guess
_REACH_MM = (PATCH_PX / 2 - 1) * PATCH_SPACING_MM  # the border stays free


@dataclass(frozen=True, kw_only=True)
class NoduleCube:
    """One nodule, centred: slices inferior to superior, rows and columns as in a patch.

    Args:
        hu: the nodule's HU inside, one level, that of the lung around it, outside.
        alpha: soft mask in [0, 1], 0 on the faces.
    """

    hu: Int16[np.ndarray, "64 64 64"]
    alpha: Float16[np.ndarray, "64 64 64"]

    def save(self, path: Path) -> None:
        """Writes the npz."""
        write_arrays(path, hu=self.hu, alpha=self.alpha)


def cut_cube(
    hu: HuVolume,
    mask: Bool[np.ndarray, "depth height width"],
    *,
    spacing_mm: Sequence[float],
    measured: Bool[np.ndarray, "depth height width"] | None = None,
) -> NoduleCube | None:
    """Cuts a nodule out of a volume.

    Args:
        hu: the volume, or what lies within a cube's reach of the nodule.
        mask: the nodule, not empty.
        spacing_mm: (slice, row, column).
        measured: what of the volume the scanner measured, all by default; only this says what the lung around it is.

    Returns:
        The cube; None when the volume ends within it along the slices, the nodule reaches beyond it, or fewer
        than three slices show the nodule.
    """
    points = np.argwhere(mask)
    if len(np.unique(points[:, 0])) < FEWEST_SLICES:
        return None
    if (np.abs(points - points.mean(axis=0)) * np.asarray(spacing_mm)).max() > _REACH_MM:
        return None
    grid = CentredGrid(mask, spacing_mm)
    if not grid.covered(axis=0):
        return None
    covered = grid.share(np.ones(mask.shape, bool)) > _COVERED
    inside = (grid.share(mask) >= 0.5) & covered
    valid = covered if measured is None else covered & (grid.share(measured) > _COVERED)
    isolated, _ = isolate(grid.hu(hu), inside, valid=valid)
    return NoduleCube(hu=isolated, alpha=soft_mask(inside, valid=covered))


# LIDC's readers rate texture from 1 (ground glass) over 3 (part solid) to 5 (solid); their mean decides.
_GROUND_GLASS_TO = 2
_SOLID_FROM = 4

AlphaPatches = Float16[np.ndarray, "slices 64 64"]
BoolPatches = Bool[np.ndarray, "slices 64 64"]
VotePatches = UInt8[np.ndarray, "slices 64 64"]


def texture_class(rating: float | None) -> str:
    """Class of a mean LIDC texture rating: `ground_glass`, `part_solid`, `solid`, or `unknown` without one."""
    if rating is None or not np.isfinite(rating):
        return "unknown"
    if rating <= _GROUND_GLASS_TO:
        return "ground_glass"
    return "solid" if rating >= _SOLID_FROM else "part_solid"


def sphere_diameter_mm(voxels: float, *, voxel_volume_mm3: float) -> float:
    """Diameter of the sphere of equal volume."""
    return float(np.cbrt(6 * voxels * voxel_volume_mm3 / np.pi))


def cube_diameter_mm(cube: NoduleCube) -> float:
    """Diameter of the sphere of equal volume to alpha >= 0.5."""
    return sphere_diameter_mm(int((cube.alpha >= 0.5).sum()), voxel_volume_mm3=PATCH_SPACING_MM**3)


@dataclass(frozen=True, eq=False, kw_only=True)
class NodulePlanes:
    """The axial slices that show a nodule, or crops of them, on the grid of their scan.

    Args:
        hu: the slices.
        votes: readers that drew the pixel; slices without the mask may be among them.
        spacing_mm: (row, column).
        covered: pixels that the scanner measured; None: all.
    """

    hu: Int16[np.ndarray, "slices height width"]
    votes: UInt8[np.ndarray, "slices height width"]
    spacing_mm: tuple[float, float]
    covered: Bool[np.ndarray, "slices height width"] | None = None

    @property
    def mask_votes(self) -> int:
        """Votes that make the mask: 2 where two readers agree anywhere, else 1."""
        return 2 if (self.votes >= 2).any() else 1


@dataclass(frozen=True, eq=False, kw_only=True)
class NodulePatches:
    """The n axial slices of a nodule as patches, and what was measured on it.

    Args:
        hu, context: int16 (n, 64, 64); `hu` is isolated (the lung level outside), `context` as measured.
        alpha: float16 (n, 64, 64) in [0, 1].
        valid: bool (n, 64, 64), what the source covered.
        votes: uint8 (n, 64, 64), readers that drew the pixel.
        mask_votes: 2 for a consensus, 1 for a single reader's mask.
        disc_diameter_mm: of the disc as large as the largest slice's mask.
        mean_hu, solid_fraction: over the mask, on the scan's own grid.
        cube: the nodule in three dimensions; None where the source has no volume, or one that a cube does not fit in.
        window: the nodule with what surrounds it; None where the source shows nothing of that.
        sphere: bool (n, 64, 64), the spheres around annotated centres with a margin, where the mask is what is dense in
            one; None where somebody drew the mask.
    """

    hu: HuPatches
    context: HuPatches
    alpha: AlphaPatches
    valid: BoolPatches
    votes: VotePatches
    mask_votes: int
    disc_diameter_mm: float
    mean_hu: float
    solid_fraction: float
    cube: NoduleCube | None = None
    window: NoduleWindow | None = None
    sphere: BoolPatches | None = None

    @property
    def largest(self) -> int:
        """Index of the slice with the largest mask."""
        return int((self.alpha >= 0.5).sum(axis=(1, 2)).argmax())

    def save(self, cohort: Path, nodule_id: str) -> Path:
        """Writes `nodules/<nodule_id>.npz`, for a cube `cubes/` and for a window `windows/`; returns the first."""
        if self.cube is not None:
            self.cube.save(cohort / "cubes" / f"{nodule_id}.npz")
        if self.window is not None:
            self.window.save(cohort / "windows" / f"{nodule_id}.npz")
        path = cohort / "nodules" / f"{nodule_id}.npz"
        names = ("hu", "context", "alpha", "valid", "votes")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names} | {"largest": np.int64(self.largest)}
        write_arrays(path, **arrays, **({} if self.sphere is None else {"sphere": self.sphere}))
        return path


def cut_patches(planes: NodulePlanes) -> NodulePatches:
    """Cuts a nodule's patches out of the axial slices that show it, each centred on its mask in that slice.

    Raises:
        ValueError: when no slice shows the nodule.
    """
    masks = planes.votes >= planes.mask_votes
    shown = np.flatnonzero(masks.any(axis=(1, 2))).tolist()
    if not shown:
        raise ValueError("no slice shows the nodule")
    inside = np.concatenate([planes.hu[k][masks[k]] for k in shown]).astype(np.float32)
    context, votes, valid = (np.stack(arrays) for arrays in zip(*(_cut(planes, k) for k in shown), strict=True))
    patch_masks = (votes >= planes.mask_votes) & valid
    isolated = [isolate(c, m, valid=v) for c, m, v in zip(context, patch_masks, valid, strict=True)]
    for k, (_, level) in enumerate(isolated):
        context[k][~valid[k]] = round(level)
    largest_mm2 = int(masks.sum(axis=(1, 2)).max()) * (planes.spacing_mm[0] * planes.spacing_mm[1])
    return NodulePatches(
        hu=np.stack([hu for hu, _ in isolated]),
        context=context,
        alpha=np.stack([soft_mask(m, valid=v) for m, v in zip(patch_masks, valid, strict=True)]),
        valid=valid,
        votes=votes,
        mask_votes=planes.mask_votes,
        disc_diameter_mm=float(disc_diameter(largest_mm2)),
        mean_hu=float(inside.mean()),
        solid_fraction=float((inside > SOLID_HU).mean()),
    )


def _cut(planes: NodulePlanes, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slice k on the patch grid, centred on its mask: HU int16, votes uint8, valid bool."""
    hu, votes = planes.hu[k], planes.votes[k]
    grid = CentredGrid(votes >= planes.mask_votes, planes.spacing_mm)
    covered = np.ones(hu.shape, bool) if planes.covered is None else planes.covered[k]
    valid = grid.share(covered) > _COVERED
    # Each vote level is resampled as a soft mask: nearest neighbour would make ragged outlines.
    levels = [grid.share(votes >= v) >= 0.5 for v in range(1, votes.max() + 1)]
    return grid.hu(hu), np.sum(levels, axis=0).astype(np.uint8), valid
